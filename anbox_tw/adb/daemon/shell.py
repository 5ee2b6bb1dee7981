"""``shell:``, ``shell,v2,...:`` and ``exec:`` (AOSP ``daemon/shell_service.cpp``)."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb import _shell
from anbox_tw.adb.daemon._fds import FdReader, FdWriter
from anbox_tw.adb.daemon.config import DaemonConfig
from anbox_tw.adb.daemon.process import Child, ChildSet, set_window_size
from anbox_tw.adb.streams import AdbStream
from anbox_tw.errors import AdbError, PeerError

__all__ = ["ProcessStream", "TextStream", "open_exec", "open_program", "open_shell"]

START_FAILED = 126
"""Exit status when the shell itself cannot be started."""


class TextStream(Protocol):
    """Says ``data`` and closes; what the peer says is swallowed."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def connectionMade(self) -> None:
        """The stream is open."""
        assert self.transport is not None
        self.transport.write(self._data)
        self.transport.loseConnection()


@implementer(IPushProducer)
class ProcessStream(Protocol):
    """Joins a stream and a child.

    Args:
        reactor: the reactor.
        child: just started.
        framed: speak shell protocol v2, else raw bytes.
        on_pty: the child has a terminal.
        hang_up: send SIGHUP to the child's group when the stream closes first. Without it the child
            just finds its pipes closed, so that what ``exec-in`` fed it is worked off.
    """

    takes_buffers = True
    transport: AdbStream
    _log = Logger()

    def __init__(self, reactor: Any, child: Child, *, framed: bool, on_pty: bool, hang_up: bool) -> None:
        self._reactor = reactor
        self._child = child
        self._framed = framed
        self._on_pty = on_pty
        self._hang_up = hang_up
        self._packets = _shell.ShellReader()
        self._readers: list[FdReader] = []
        self._open = 0
        self._status: int | None = None
        self._stdin: FdWriter | None = None
        self._closed = False

    def connectionMade(self) -> None:
        """The stream is open: let data flow."""
        child = self._child
        self._stdin = FdWriter(self._reactor, child.stdin, self.transport)
        outputs = [(child.stdout, _shell.STDOUT)]
        if child.stderr >= 0:
            outputs.append((child.stderr, _shell.STDERR))
        self._open = len(outputs)
        for fd, kind in outputs:
            write = self._writer(kind) if self._framed else self.transport.write
            self._readers.append(FdReader(self._reactor, fd, write, self._output_ended))
        self.transport.registerProducer(self, True)
        child.ended.addCallback(self._child_ended)

    def _writer(self, kind: int) -> Any:
        def write(data: bytes) -> None:
            self.transport.write(_shell.encode(kind, data))

        return write

    def pauseProducing(self) -> None:
        """The peer is slow: read no more from the child."""
        for reader in self._readers:
            reader.pauseProducing()

    def resumeProducing(self) -> None:
        """The peer takes more."""
        for reader in self._readers:
            reader.resumeProducing()

    def stopProducing(self) -> None:
        """The stream is gone; ``connectionLost`` tidies up."""

    def dataReceived(self, data: bytes) -> None:
        """Input for the child."""
        assert self._stdin is not None
        if not self._framed:
            self._stdin.write(data)
            return
        try:
            packets = self._packets.feed(data)
        except PeerError as error:
            self._log.warn("closing a shell: {error}", error=error)
            self.transport.abortConnection()
            return
        for kind, payload in packets:
            if kind == _shell.STDIN:
                self._stdin.write(payload)
            elif kind == _shell.CLOSE_STDIN:
                if not self._on_pty:
                    self._stdin.close_when_written()
            elif kind == _shell.WINDOW_SIZE and self._on_pty:
                size = _shell.parse_window_size(payload)
                if size is not None and self._stdin.fileno() >= 0:
                    set_window_size(self._stdin.fileno(), *size)

    def _output_ended(self) -> None:
        self._open -= 1
        self._finish_if_done()

    def _child_ended(self, status: int) -> None:
        self._status = status
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._open or self._status is None or self._closed:
            return
        self.transport.unregisterProducer()
        if self._framed:
            self.transport.write(_shell.encode(_shell.EXIT, bytes([self._status & 0xFF])))
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is over, whoever ended it."""
        self._closed = True
        for reader in self._readers:
            reader.close()
        if self._stdin is not None:
            if self._hang_up:
                self._stdin.close()
            else:
                self._stdin.close_when_written()
        if self._hang_up:
            self._child.signal_group(signal.SIGHUP)


def open_shell(
    reactor: Any, children: ChildSet, config: DaemonConfig, arguments: str, command: str
) -> Protocol:
    """Serve ``shell[,ARGUMENTS]:COMMAND``.

    Args:
        reactor: the reactor.
        children: where the child is kept.
        config: shell, environment, directory.
        arguments: the comma-separated part behind ``shell``, may be empty.
        command: what to run; empty for an interactive shell.
    """
    names = [name for name in arguments.split(",") if name]
    framed = "v2" in names
    terminal = next((name[5:] for name in names if name.startswith("TERM=")), "dumb")
    wants_pty = "pty" in names or ("raw" not in names and not command)
    # Without packets there is no other way to hang up on a child, so "raw" is a raw terminal then.
    on_pty = wants_pty or not framed
    environment = config.shell_environment({"TERM": terminal})
    argv = [config.shell, "-c", command] if command else [config.shell, "-"]
    try:
        if on_pty:
            child = children.spawn_on_pty(
                _bytes(argv),
                environment=environment,
                cwd=config.cwd,
                raw=not wants_pty,
                helper=config.shell,
                identity=config.identity,
            )
        else:
            child = children.spawn(
                _bytes(argv),
                environment=environment,
                cwd=config.cwd,
                separate_stderr=True,
                identity=config.identity,
            )
    except (OSError, ValueError) as error:
        text = f"error: cannot start {config.shell}: {error}\n".encode()
        if not framed:
            return TextStream(text)
        return TextStream(
            _shell.encode(_shell.STDERR, text) + _shell.encode(_shell.EXIT, bytes([START_FAILED]))
        )
    return ProcessStream(reactor, child, framed=framed, on_pty=on_pty, hang_up=True)


def open_program(
    reactor: Any, children: ChildSet, config: DaemonConfig, argv: Sequence[str], *, framed: bool
) -> Protocol:
    """Run a program without a shell.

    Raises:
        AdbError: it cannot be started.
    """
    try:
        child = children.spawn(
            _bytes(argv),
            environment=config.shell_environment({}),
            cwd=config.cwd,
            separate_stderr=framed,
            identity=config.identity,
        )
    except (OSError, ValueError) as error:
        raise AdbError(f"cannot start {argv[0]}: {error}") from error
    return ProcessStream(reactor, child, framed=framed, on_pty=False, hang_up=framed)


def open_exec(reactor: Any, children: ChildSet, config: DaemonConfig, command: str) -> Protocol:
    """Serve ``exec:COMMAND``: raw bytes both ways, stderr with stdout."""
    try:
        child = children.spawn(
            _bytes([config.shell, "-c", command]),
            environment=config.shell_environment({}),
            cwd=config.cwd,
            identity=config.identity,
        )
    except (OSError, ValueError) as error:
        return TextStream(f"error: cannot start {config.shell}: {error}\n".encode())
    return ProcessStream(reactor, child, framed=False, on_pty=False, hang_up=False)


def _bytes(argv: Sequence[str]) -> list[bytes]:
    # Service names arrive as bytes that need not be UTF-8; surrogateescape brings them back.
    return [argument.encode("utf-8", "surrogateescape") for argument in argv]
