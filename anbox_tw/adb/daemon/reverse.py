"""``reverse:``: listeners in the device whose connections lead to the host (AOSP ``daemon/services.cpp``)."""

from __future__ import annotations

from itertools import count
from typing import Any, cast

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.adb._numbers import listen_port
from anbox_tw.adb.daemon.shell import TextStream
from anbox_tw.adb.daemon.sockets import Inner, SocketStream, parse_local
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.transport import AdbTransport
from anbox_tw.errors import AdbError

__all__ = ["Reverses"]

MAX_LISTENERS = 256
"""Reverse forwards of one host."""
MAX_WAITING = 256
"""Accepted connections of one forward that the host has not answered yet."""

_names = count(1)


class _ForwardFactory(Factory):
    """Asks the host for a stream for each accepted connection."""

    noisy = False

    def __init__(self, clock: IReactorTime, transport: AdbTransport, remote: str) -> None:
        self._clock = clock
        self._transport = transport
        self.remote = remote
        self._waiting = 0

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Accept one connection, if the host is there to ask."""
        if self._waiting >= MAX_WAITING or not self._transport.is_online:
            return None
        inner = Inner()
        inner.when_connected = lambda: self._connected(inner)
        return inner

    def _connected(self, inner: Inner) -> None:
        inner.transport.pauseProducing()
        self._waiting += 1
        # In the next turn: what has connected here may be a stream of the same host, whose OKAY has to leave first, as a
        # real adbd's does. adb loses what its client wrote and closed before that (AOSP test_forward_reverse_echo).
        self._clock.callLater(0, self._open, inner)

    def _open(self, inner: Inner) -> None:
        def opened(stream: AdbStream) -> None:
            self._waiting -= 1
            stream.start(SocketStream(inner))

        def refused(_: Failure) -> None:
            self._waiting -= 1
            inner.transport.loseConnection()

        self._transport.open_stream(self.remote).addCallbacks(opened, refused)


@attrs.define
class _Forward:
    """One listener."""

    port: IListeningPort
    local: str
    factory: _ForwardFactory

    @property
    def remote(self) -> str:
        return self.factory.remote


class Reverses:
    """The reverse forwards that one host has asked for; they end with its transport.

    Args:
        reactor: the reactor.
        transport: the connection with that host.
    """

    _log = Logger()

    def __init__(self, reactor: Any, transport: AdbTransport) -> None:
        self._reactor = reactor
        self._transport = transport
        self._forwards: dict[str, _Forward] = {}
        self.name = f"host-{next(_names)}"
        transport.when_closed().addCallback(lambda _: self.close())

    async def serve(self, command: str) -> IProtocol | None:
        """Answer ``reverse:COMMAND``."""
        try:
            answer = await self.run(command)
        except AdbError as error:
            answer = b"FAIL" + _hex(error.cause.encode("utf-8", "surrogateescape")[:0xFFFF])
        return TextStream(answer)

    async def run(self, command: str) -> bytes:
        """Do what ``command`` says; the bytes of the answer.

        Raises:
            AdbError: with the text of the failure.
        """
        word, _, argument = command.partition(":")
        match word:
            case "list-forward":
                lines = [f"{self.name} {item.local} {item.remote}\n" for item in self._forwards.values()]
                return _hex("".join(lines).encode("utf-8", "surrogateescape"))
            case "killforward-all":
                await self._stop_all()
                return b"OKAY"
            case "killforward":
                forward = self._forwards.pop(argument, None)
                if forward is None:
                    raise AdbError(f"listener '{argument}' not found")
                await _stop(forward.port)
                return b"OKAY"
            case "forward":
                rebind = not argument.startswith("norebind:")
                local, semicolon, remote = argument.removeprefix("norebind:").partition(";")
                if not semicolon or not local or not remote or remote.startswith("*"):
                    raise AdbError(f"bad forward: {argument}")
                return await self._forward(local, remote, rebind=rebind)
        raise AdbError("not a reverse forwarding command")

    async def _forward(self, local: str, remote: str, *, rebind: bool) -> bytes:
        existing = self._forwards.get(local)
        if existing is not None:
            if not rebind:
                raise AdbError("cannot rebind existing socket")
            existing.factory.remote = remote
            return b"OKAY"
        if len(self._forwards) >= MAX_LISTENERS:
            raise AdbError(f"cannot bind listener: {MAX_LISTENERS} are there already")
        try:
            endpoint, is_tcp = self._endpoint(local)
        except AdbError as error:
            raise AdbError(f"cannot bind listener: {error.cause}") from error
        factory = _ForwardFactory(self._reactor, self._transport, remote)
        try:
            port: IListeningPort = await endpoint.listen(factory)
        except CannotListenError as error:
            raise AdbError(f"cannot bind listener: {error.socketError}") from error
        except OSError as error:
            raise AdbError(f"cannot bind listener: {error.strerror}") from error
        if self._transport.closed_because is not None:
            await _stop(port)
            raise AdbError("the connection has ended")
        answer = b"OKAY"
        if is_tcp:
            number = cast(IPv4Address, port.getHost()).port
            local = f"tcp:{number}"
            answer += _hex(str(number).encode())
        self._forwards[local] = _Forward(port, local, factory)
        return answer

    def _endpoint(self, local: str) -> tuple[Any, bool]:
        """Where to listen, and whether that is TCP."""
        kind, _, argument = local.partition(":")
        if kind == "tcp":
            return TCP4ServerEndpoint(self._reactor, listen_port(argument), interface="127.0.0.1"), True
        if kind in ("local", "localreserved", "localabstract", "localfilesystem"):
            return UNIXServerEndpoint(self._reactor, parse_local(kind, argument), mode=0o660), False
        raise AdbError(f"unknown socket specification:{local[:200]}")

    async def _stop_all(self) -> None:
        forwards, self._forwards = self._forwards, {}
        for forward in forwards.values():
            await _stop(forward.port)

    def close(self) -> Deferred[None]:
        """Stop listening: the transport is gone."""
        return Deferred.fromCoroutine(self._stop_all())


async def _stop(port: IListeningPort) -> None:
    try:
        await maybeDeferred(port.stopListening)
    except OSError as error:
        # Somebody has removed the socket's file already.
        Reverses._log.info("stopping a reverse listener: {error}", error=error)


def _hex(data: bytes) -> bytes:
    return b"%04x" % len(data) + data
