"""Commands that adbd answers itself where the device has no program of that name: ``cmd``, ``pm``, ``logcat``...

On Android these are programs. A Linux root file system has none of them, yet every ADB tool calls them.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb import _shell
from anbox_tw.adb.streams import AdbStream
from anbox_tw.errors import PeerError

__all__ = ["Command", "CommandFactory", "CommandStream", "PropertyCommand", "find_command", "split_command"]

_META = re.compile(r"[|&;<>()$`*?\[\]{}~#\n]")
_REDIRECTION = re.compile(r"\s([12]?)>\s*(/dev/null|&1)\s*$")
_PREFIX = re.compile(r"""^(?:export ANDROID_LOG_TAGS=(?:'[^']*'|"[^"]*") *; *)?(?:exec +)?""")


class Command:
    """One run of a built-in command. Subclasses override the ``on_`` methods.

    Attributes:
        arguments: what follows the command's name.
    """

    _stream: CommandStream | None = None
    _out_kind: int | None = _shell.STDOUT
    _err_kind: int | None = _shell.STDERR

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)

    def on_start(self) -> None:
        """The stream is open."""

    def on_input(self, data: bytes) -> None:
        """Bytes on stdin."""

    def on_input_end(self) -> None:
        """No more stdin will come."""

    def on_close(self) -> None:
        """The host is gone, or ``exit`` was called."""

    def on_writable(self, writable: bool) -> None:
        """Whether the host takes output at the moment."""

    def out(self, data: bytes) -> None:
        """Write to stdout."""
        if self._stream is not None and self._out_kind is not None:
            self._stream.say(self._out_kind, data)

    def err(self, data: bytes) -> None:
        """Write to stderr."""
        if self._stream is not None and self._err_kind is not None:
            self._stream.say(self._err_kind, data)

    def exit(self, status: int = 0) -> None:
        """End with ``status``."""
        if self._stream is not None:
            self._stream.finish(status)

    def pause_input(self) -> None:
        """Take no more stdin for now."""
        if self._stream is not None:
            self._stream.transport.pauseProducing()

    def resume_input(self) -> None:
        """Take stdin again."""
        if self._stream is not None:
            self._stream.transport.resumeProducing()


CommandFactory = Callable[[Sequence[str]], Command]
"""Makes a command from its arguments."""


@implementer(IPushProducer)
class CommandStream(Protocol):
    """Joins a stream and a built-in command.

    Args:
        command: the command, not started yet.
        framed: speak shell protocol v2, else raw bytes.
    """

    transport: AdbStream
    _log = Logger()

    def __init__(self, command: Command, *, framed: bool) -> None:
        self._command = command
        self._framed = framed
        self._packets = _shell.ShellReader()
        self._done = False

    def connectionMade(self) -> None:
        """The stream is open."""
        self._command._stream = self
        self.transport.registerProducer(self, True)
        self._command.on_start()

    def say(self, kind: int, data: bytes) -> None:
        """Send output."""
        if not self._done:
            self.transport.write(_shell.encode(kind, data) if self._framed else data)

    def finish(self, status: int) -> None:
        """Send the exit status and close."""
        if self._done:
            return
        self._done = True
        self.transport.unregisterProducer()
        if self._framed:
            self.transport.write(_shell.encode(_shell.EXIT, bytes([status & 0xFF])))
        self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """Input."""
        if not self._framed:
            self._command.on_input(data)
            return
        try:
            packets = self._packets.feed(data)
        except PeerError as error:
            self._log.warn("closing a command: {error}", error=error)
            self.transport.abortConnection()
            return
        for kind, payload in packets:
            if kind == _shell.STDIN:
                self._command.on_input(bytes(payload))
            elif kind == _shell.CLOSE_STDIN:
                self._command.on_input_end()

    def pauseProducing(self) -> None:
        """The host is slow."""
        self._command.on_writable(False)

    def resumeProducing(self) -> None:
        """The host takes more."""
        self._command.on_writable(True)

    def stopProducing(self) -> None:
        """The stream is gone."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is over."""
        self._done = True
        self._command.on_close()
        self._command._stream = None


def split_command(line: str) -> list[str] | None:
    """The words of a simple command; None when a shell is needed to understand it."""
    text = _PREFIX.sub("", line.strip(), count=1)
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    # What is quoted is plain text for the shell too: look for its signs in the rest alone.
    bare = re.sub(r"'[^']*'", "", text)
    return words if words and not _META.search(bare) else None


def find_command(
    commands: Mapping[str, CommandFactory], line: str, path: Callable[[], str]
) -> Command | None:
    """The built-in command that ``line`` calls, if it is one and the device has no program of that name.

    Args:
        commands: the built-in ones, by name.
        line: the command line.
        path: gives the directories of the device's programs, joined by ``:``.
    """
    first = _PREFIX.sub("", line.strip(), count=1).split(None, 1)
    if not first or first[0] not in commands:
        return None
    line, out_kind, err_kind = _redirections(line)
    words = split_command(line)
    if words is None or words[0] not in commands or shutil.which(words[0], path=path()) is not None:
        return None
    command = commands[words[0]](words[1:])
    command._out_kind, command._err_kind = out_kind, err_kind
    return command


def _redirections(line: str) -> tuple[str, int | None, int | None]:
    """``line`` without ``2>/dev/null`` and the like at its end, which tools add, and where output goes then."""
    found = []
    while (match := _REDIRECTION.search(line)) is not None:
        found.append((match[1], match[2]))
        line = line[: match.start()]
    kinds: dict[str, int | None] = {"1": _shell.STDOUT, "2": _shell.STDERR}
    for which, target in reversed(found):
        kinds[which or "1"] = kinds["1"] if target == "&1" else None
    return line, kinds["1"], kinds["2"]


class PropertyCommand(Command):
    """``getprop [NAME [DEFAULT]]``.

    Args:
        arguments: of the command.
        properties: all properties.
    """

    def __init__(self, arguments: Sequence[str], properties: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        self._properties = properties

    def on_start(self) -> None:
        """Answer at once."""
        if self.arguments:
            default = self.arguments[1] if len(self.arguments) > 1 else ""
            self.out(f"{self._properties.get(self.arguments[0], default)}\n".encode())
        else:
            lines = (f"[{name}]: [{value}]\n" for name, value in sorted(self._properties.items()))
            self.out("".join(lines).encode())
        self.exit(0)
