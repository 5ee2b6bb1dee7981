"""A shell over ADB between a terminal, or pipes, and a device: raw mode, window size, signals, exit code."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
import termios
import tty
from typing import Any

from twisted.internet import fdesc
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReadDescriptor
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb import HostTransport, _shell
from anbox_tw.adb.streams import AdbStream
from anbox_tw.errors import AdbError, AnboxError

__all__ = ["ShellSession", "run_shell", "shell_service"]

READ_BYTES = 65536
LOST_EXIT_CODE = 255
"""What adb exits with when the stream ends before the exit code has come."""


def shell_service(command: str, *, terminal: bool) -> str:
    """The name of the shell service, with what we know of the terminal."""
    words = ["shell", "v2"]
    term = os.environ.get("TERM", "")
    if term and term.isascii() and not set(term) & set(",:\0"):
        words.append(f"TERM={term}")
    words.append("pty" if terminal else "raw")
    return f"{','.join(words)}:{command}"


@implementer(IReadDescriptor)
class _Input:
    """Standard input on the reactor; works for terminals, pipes and files."""

    def __init__(self, session: ShellSession, descriptor: int) -> None:
        self._session = session
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "stdin"

    def doRead(self) -> Failure | None:
        """Something can be read."""
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._session.input_came(data)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """The writer of the pipe has gone: the reactor tells so instead of one more read."""
        self._session.input_came(b"")


@implementer(IPushProducer)
class ShellSession(Protocol):
    """The stream's protocol.

    Args:
        reactor: watches standard input.
        terminal: standard input is a terminal, to be put into raw mode.

    Attributes:
        done: fires with the exit code.
    """

    def __init__(self, reactor: Any, *, terminal: bool) -> None:
        self._reactor = reactor
        self._terminal = terminal
        self._reader = _shell.ShellReader()
        self._input: _Input | None = None
        self._regular: int | None = None
        self._saved: Any = None
        self._exit_code: int | None = None
        self.done: Deferred[int] = Deferred()

    @property
    def stream(self) -> AdbStream:
        """The stream beneath."""
        stream: Any = self.transport
        assert isinstance(stream, AdbStream)
        return stream

    def connectionMade(self) -> None:
        self.stream.registerProducer(self, True)
        if self._terminal:
            self._saved = termios.tcgetattr(0)
            tty.setraw(0)
            self._send_window_size()
            signal.signal(signal.SIGWINCH, lambda *_: self._reactor.callFromThread(self._send_window_size))
        self._input = _Input(self, 0)
        self.resumeProducing()

    def _send_window_size(self) -> None:
        rows, columns, width, height = struct.unpack(
            "4H", fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("4H", 0, 0, 0, 0))
        )
        self.stream.write(_shell.encode_window_size(rows, columns, width, height))

    # -- standard input as a producer of the stream --

    def resumeProducing(self) -> None:
        """Read standard input."""
        if self._input is None:
            return
        try:
            self._reactor.addReader(self._input)
        except PermissionError:
            # epoll cannot watch a regular file: it is always ready
            self._regular = self._regular or 0
            self._reactor.callLater(0, self._read_regular)

    def _read_regular(self) -> None:
        if self._input is not None and self._regular is not None:
            source, paused = self._input, self._regular
            if not paused:
                source.doRead()
                if self._input is not None:
                    self._reactor.callLater(0, self._read_regular)

    def pauseProducing(self) -> None:
        """The device does not take more."""
        if self._regular is not None:
            self._regular = 1
        elif self._input is not None:
            self._reactor.removeReader(self._input)

    def stopProducing(self) -> None:
        """The stream has ended."""
        self._stop_input()

    def input_came(self, data: bytes) -> None:
        """Bytes of standard input, or its end."""
        if self._input is None:
            return
        if data:
            self.stream.write(_shell.encode(_shell.STDIN, data))
            return
        self._stop_input()
        self.stream.write(_shell.encode(_shell.CLOSE_STDIN))

    def _stop_input(self) -> None:
        if self._input is not None:
            if self._regular is None:
                self._reactor.removeReader(self._input)
            self._input = None

    # -- what the device sends --

    def dataReceived(self, data: bytes) -> None:
        for kind, piece in self._reader.feed(data):
            if kind in (_shell.STDOUT, _shell.STDERR):
                # Blocking on purpose: a terminal or pipe that does not take it holds the device back,
                # and this program has nothing else to do meanwhile.
                _write_all(1 if kind == _shell.STDOUT else 2, bytes(piece))
            elif kind == _shell.EXIT and piece:
                self._exit_code = piece[0]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_input()
        self.restore()
        if not self.done.called:
            self.done.callback(LOST_EXIT_CODE if self._exit_code is None else self._exit_code)

    def restore(self) -> None:
        """Give the terminal its old settings."""
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
            self._saved = None


def _write_all(descriptor: int, data: bytes) -> None:
    fdesc.setBlocking(descriptor)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def run_shell(reactor: Any, transport: HostTransport, command: str) -> int:
    """Run a command, or a login shell when it is empty, on a device.

    Returns:
        Its exit code; 255 when the connection was lost before.

    Raises:
        AdbError: the device has no shell protocol v2, or refuses.
    """
    if "shell_v2" not in transport.banner.features:
        raise AdbError("the device does not speak shell protocol v2", "use 'adb shell'")
    terminal = not command and sys.stdin.isatty()
    session = ShellSession(reactor, terminal=terminal)
    try:
        await transport.open_stream(shell_service(command, terminal=terminal), session)
        return await session.done
    except BrokenPipeError as error:
        raise AnboxError("nobody reads the output") from error
    finally:
        session.restore()
