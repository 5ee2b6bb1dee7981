"""The local end of ``anbox adb shell``: standard input to the device, its output to ours."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred

from anbox_tw.adb.client import ByteStream, Device, ShellSession
from anbox_tw.adb.daemon._fds import FdReader
from anbox_tw.errors import AnboxError

__all__ = ["copy_out", "run_shell"]


LOST_EXIT_CODE = 255
"""What adb's own client exits with when the stream ends before the exit code has come."""


FILE_CHUNK = 65536
"""How much of a regular file is read before the device has taken it."""


def _write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            # Our standard input made the shared terminal non-blocking: wait for room.
            import select

            select.select([], [fd], [])
        except BrokenPipeError:
            raise  # who reads has seen enough
        except OSError as error:
            name = "standard error" if fd == 2 else "standard output"
            raise AnboxError(
                f"cannot write to {name}: {error.strerror}",
                "make room for the output, or redirect it elsewhere",
            ) from error


@contextlib.contextmanager
def _raw_terminal(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Input:
    """Standard input, read by the reactor and written to the session, each slowing the other."""

    def __init__(self, reactor: Any, session: ShellSession) -> None:
        self._session = session
        self._blocking = os.get_blocking(0)
        self._waiting: Deferred[None] | None = None
        self._reader: FdReader | None = None
        try:
            self._reader = FdReader(reactor, os.dup(0), self._data, session.close_stdin)
        except OSError:
            # A regular file cannot be waited for, and need not be.
            self._waiting = Deferred.fromCoroutine(self._feed_file())
            self._waiting.addErrback(lambda _: None)

    async def _feed_file(self) -> None:
        """Send a file piece by piece, so that its size is no matter of memory."""
        session = self._session
        try:
            while not session.stream.ended and (data := os.read(0, FILE_CHUNK)):
                session.write(data)
                await session.stream.drain()
        except OSError:
            pass  # a disk that fails: no more comes
        session.close_stdin()

    def _data(self, data: bytes) -> None:
        self._session.write(data)
        if self._session.stream._blocked and self._reader is not None:
            reader = self._reader
            reader.pauseProducing()
            self._waiting = self._session.stream.drain()
            self._waiting.addCallbacks(lambda _: reader.resumeProducing(), lambda _: None)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._waiting is not None:
            self._waiting.cancel()
        os.set_blocking(0, self._blocking)


def _tell_size(session: ShellSession) -> None:
    rows, columns, width, height = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    session.resize(rows, columns, width, height)


async def run_shell(reactor: Any, device: Device, command: str, *, pty: bool | None, stdin: bool) -> int:
    """Run a command or an interactive shell on this terminal.

    Args:
        reactor: the reactor.
        device: where.
        command: empty for an interactive shell.
        pty: whether the device gives it a terminal; None to decide as adb does.
        stdin: whether our standard input goes to it.

    Returns:
        Its exit code; 0 if the device cannot tell, 255 if the connection ended before it did.
    """
    local = stdin and os.isatty(0)
    if pty is None:
        pty = not command and local
    session = await device.open_shell(command, pty=pty, term=os.environ.get("TERM"))
    feeding: _Input | None = None
    with contextlib.ExitStack() as undo:
        if pty and local and session.framed:
            undo.enter_context(_raw_terminal(0))
            previous = signal.getsignal(signal.SIGWINCH)
            undo.callback(signal.signal, signal.SIGWINCH, previous)
            signal.signal(signal.SIGWINCH, lambda *_: reactor.callFromThread(_tell_size, session))
            _tell_size(session)
        try:
            if stdin:
                feeding = _Input(reactor, session)
            else:
                session.close_stdin()
            async for kind, data in session:
                _write_all(kind, data)
        finally:
            if feeding is not None:
                feeding.close()
            session.close()
    if session.framed and session.exit_code is None:
        return LOST_EXIT_CODE
    return session.exit_code or 0


async def copy_out(stream: ByteStream) -> None:
    """Write a stream to our standard output until its end."""
    sys.stdout.flush()
    try:
        while data := await stream.read():
            _write_all(1, data)
    finally:
        stream.abort()
