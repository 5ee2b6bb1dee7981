"""A client of the emulator console: commands to another session, or to an emulator, on this host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed, ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from anbox_tw.console._auth import AuthToken
from anbox_tw.errors import NetworkError, NotRunning, TimedOut
from anbox_tw.network import abort_transport

__all__ = ["send_commands"]

TIMEOUT_S = 5.0
"""For all commands of one connection; a console answers at once."""

MAX_ANSWER_BYTES = 64 * 1024
"""Of one answer: ``help`` and lists are far below."""


class _Dialogue(Protocol):
    def __init__(self) -> None:
        self._buffer = b""
        self._waiting: Deferred[list[str]] | None = None
        self._ended = False

    def answer(self) -> Deferred[list[str]]:
        """The lines of the next answer, the last of which begins with ``OK`` or ``KO``."""
        self._waiting = Deferred()
        waiting = self._waiting
        self._look()
        return waiting

    def say(self, line: str) -> Deferred[list[str]]:
        assert self.transport is not None
        self.transport.write(line.encode("utf-8") + b"\n")
        return self.answer()

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ended = True
        self._look()

    def _look(self) -> None:
        waiting = self._waiting
        if waiting is None:
            return
        lines: list[str] = []
        at = 0
        while (end := self._buffer.find(b"\n", at)) >= 0:
            lines.append(self._buffer[at:end].rstrip(b"\r").decode("utf-8", "replace"))
            at = end + 1
            if lines[-1] == "OK" or lines[-1].startswith(("KO:", "OK:")):
                self._buffer = self._buffer[at:]
                self._waiting = None
                waiting.callback(lines)
                return
        if self._ended or len(self._buffer) > MAX_ANSWER_BYTES:
            self._waiting = None
            waiting.errback(ConnectionDone("the console has closed the connection"))


async def send_commands(
    reactor: Any, port: int, commands: Sequence[str], token: AuthToken, host: str = "127.0.0.1"
) -> list[list[str]]:
    """Connect, say the token if it is wanted, run commands, quit.

    Args:
        reactor: connects and tells the time.
        port: of the console.
        commands: without line ends.
        token: the secret.
        host: where it is.

    Returns:
        The answers: lines, of which the last begins with ``OK`` or ``KO``.

    Raises:
        NotRunning: nobody listens there.
        NetworkError: the token is not taken, or the connection breaks.
        TimedOut: it is no console, or a stuck one.
        PermissionRefused: the token cannot be read.
    """
    endpoint = HostnameEndpoint(reactor, host, port, timeout=TIMEOUT_S)
    try:
        dialogue: _Dialogue = await connectProtocol(endpoint, _Dialogue())
    except ConnectError as error:
        raise NotRunning(f"no console answers at port {port}: {error}") from error
    work = Deferred.fromCoroutine(_talk(dialogue, commands, token))
    try:
        return await work.addTimeout(TIMEOUT_S, reactor)
    except TimeoutError as error:
        raise TimedOut(f"the console at port {port} did not answer within {TIMEOUT_S:g} s") from error
    except ConnectionClosed as error:
        raise NetworkError(f"the console at port {port}: {error}") from error
    finally:
        if dialogue.transport is not None:
            abort_transport(dialogue.transport)


async def _talk(dialogue: _Dialogue, commands: Sequence[str], token: AuthToken) -> list[list[str]]:
    greeting = await dialogue.answer()
    if "Authentication required" in greeting[0]:
        said = await dialogue.say(f"auth {token.load()}")
        if said[-1] != "OK":
            raise NetworkError(f"the console does not take the token: {said[-1]}")
    return [await dialogue.say(command) for command in commands]
