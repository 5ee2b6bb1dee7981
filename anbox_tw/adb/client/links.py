"""The two ways to a device: through an adb server, or straight to it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from zope.interface import Attribute, Interface, implementer

from anbox_tw.adb._numbers import MAX_PORT, decimal
from anbox_tw.adb.banner import SERVER_FEATURES
from anbox_tw.adb.client._errors import DeviceOffline, DeviceUnauthorized, ServerNotRunning, failure_for
from anbox_tw.adb.client.streams import ByteStream, with_timeout
from anbox_tw.adb.daemon.reverse import Reverses
from anbox_tw.adb.daemon.sockets import connect_stream, parse_local, tcp_endpoint, unix_endpoint
from anbox_tw.adb.keys import AdbKey
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.transport import HostTransport
from anbox_tw.errors import AdbError, PeerError, TimedOut
from anbox_tw.network.connectors import tcp_client_endpoint

__all__ = ["DirectLink", "ILink", "ServerLink", "SmartSocket", "server_endpoint"]

CONTROL_TIMEOUT_S = 30.0
"""One request to the server, or one service to open, unless told otherwise."""
MAX_BODY = 0xFFFF
_HEX = frozenset(b"0123456789abcdefABCDEF")


class ILink(Interface):
    """A way to one device."""

    name = Attribute("``str``: what to call the device in messages.")

    def open(service: bytes, stall_timeout: float | None) -> Deferred[ByteStream]:
        """Open a service of the device."""

    def features() -> Deferred[frozenset[str]]:
        """What device and way support."""


def server_endpoint(reactor: Any, environment: Mapping[str, str] | None = None) -> IStreamClientEndpoint:
    """Where the adb server is: ``ADB_SERVER_SOCKET``, ``ANDROID_ADB_SERVER_ADDRESS`` and ``_PORT``, or port 5037.

    Raises:
        AdbError: a variable makes no sense.
    """
    env = os.environ if environment is None else environment
    spec = env.get("ADB_SERVER_SOCKET", "")
    if spec.startswith("localfilesystem:"):
        return UNIXClientEndpoint(reactor, spec.partition(":")[2])
    if spec and not spec.startswith("tcp:"):
        raise AdbError(f"ADB_SERVER_SOCKET={spec}: only tcp: and localfilesystem: are known")
    host, _, port = spec.removeprefix("tcp:").rpartition(":")
    host = host or env.get("ANDROID_ADB_SERVER_ADDRESS", "") or "127.0.0.1"
    port = port or env.get("ANDROID_ADB_SERVER_PORT", "") or "5037"
    number = decimal(port, MAX_PORT)
    if not number:
        raise AdbError(f"{port!r} is no port for an adb server")
    return tcp_client_endpoint(reactor, host, number, timeout=10)


class SmartSocket:
    """One connection to an adb server (AOSP ``adb_client.cpp``).

    Args:
        stream: the connected stream.
    """

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream

    @classmethod
    async def connect(
        cls, clock: Any, endpoint: IStreamClientEndpoint, stall_timeout: float | None = CONTROL_TIMEOUT_S
    ) -> SmartSocket:
        """Connect to the server.

        Raises:
            ServerNotRunning: nobody answers there.
        """
        stream = ByteStream(clock, stall_timeout)
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _address: stream  # type: ignore[method-assign,assignment]
        try:
            await endpoint.connect(factory)
        except (ConnectError, OSError) as error:
            raise ServerNotRunning(
                f"no adb server answers: {error}", "start one: anbox adb start-server, or adb start-server"
            ) from error
        if hasattr(stream.transport, "setTcpNoDelay"):
            stream.transport.setTcpNoDelay(True)
        return cls(stream)

    async def request(self, service: str | bytes) -> None:
        """Send a request and wait for its OKAY.

        Raises:
            RemoteFailure: the answer is FAIL.
            PeerError: it is neither.
        """
        data = service.encode() if isinstance(service, str) else service
        if len(data) > MAX_BODY:
            raise AdbError(f"a request of {len(data)} bytes; servers take {MAX_BODY}")
        self.stream.write(b"%04x" % len(data) + data)
        await self.status()

    async def status(self) -> None:
        """Read one OKAY or FAIL."""
        word = await self.stream.read_exactly(4)
        if word == b"FAIL":
            text = await self.body()
            self.stream.close()
            raise failure_for(text.decode("utf-8", "replace"))
        if word != b"OKAY":
            self.stream.abort()
            raise PeerError(f"the adb server answers {word!r}", "is that an adb server?")

    async def body(self) -> bytes:
        """Read a text with its length in front."""
        return await self._counted(await self.stream.read_exactly(4))

    async def late_body(self) -> bytes:
        """Read a text behind an OKAY that was no success yet.

        Raises:
            RemoteFailure: a FAIL stands where the length belongs.
        """
        digits = await self.stream.read_exactly(4)
        if digits == b"FAIL":
            raise failure_for((await self.body()).decode("utf-8", "replace"))
        return await self._counted(digits)

    async def _counted(self, digits: bytes) -> bytes:
        if not _HEX.issuperset(digits):
            self.stream.abort()
            raise PeerError(f"the adb server announces a length of {digits!r}", "is that an adb server?")
        return await self.stream.read_exactly(int(digits, 16))


@implementer(ILink)
class ServerLink:
    """A device behind an adb server.

    Args:
        clock: for timeouts.
        endpoint: the server.
        prefix: of requests about the device: ``host``, ``host-serial:X``, ``host-transport-id:N``...
        switch: the request that switches a connection to it: ``host:transport:X``...
        name: for messages.
    """

    def __init__(
        self, clock: Any, endpoint: IStreamClientEndpoint, prefix: str, switch: str, name: str
    ) -> None:
        self.clock = clock
        self.endpoint = endpoint
        self.prefix = prefix
        self.switch = switch
        self.name = name

    def open(self, service: bytes, stall_timeout: float | None) -> Deferred[ByteStream]:
        """See ``ILink``."""
        return Deferred.fromCoroutine(self._open(service, stall_timeout))

    async def _open(self, service: bytes, stall_timeout: float | None) -> ByteStream:
        smart = await SmartSocket.connect(self.clock, self.endpoint)
        try:
            await smart.request(self.switch)
            await smart.request(service)
        except BaseException:
            smart.stream.abort()
            raise
        smart.stream.stall_timeout = stall_timeout
        return smart.stream

    async def query(self, service: str) -> bytes:
        """Ask the server something about this device."""
        smart = await SmartSocket.connect(self.clock, self.endpoint)
        try:
            await smart.request(f"{self.prefix}:{service}")
            return await smart.body()
        finally:
            smart.stream.close()

    def features(self) -> Deferred[frozenset[str]]:
        """See ``ILink``."""
        return Deferred.fromCoroutine(self._features())

    async def _features(self) -> frozenset[str]:
        return frozenset((await self.query("features")).decode().split(","))


@implementer(ILink)
class DirectLink:
    """A device that we talk to ourselves.

    Args:
        reactor: the reactor.
        transport: the connection, online.
        name: for messages.
    """

    def __init__(self, reactor: Any, transport: HostTransport, name: str) -> None:
        self.clock = reactor
        self.transport = transport
        self.name = name
        self.allowed: set[str] = set()
        # A forward without a server is a listener that opens streams, which is what a device's
        # reverse is too.
        self.forwards = Reverses(reactor, transport)
        transport.open_handler = self._opened_by_device

    @classmethod
    async def connect(
        cls,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        keys: Sequence[AdbKey],
        name: str,
        timeout: float = CONTROL_TIMEOUT_S,
    ) -> DirectLink:
        """Connect to a device; TLS and authentication are the device's choice.

        Args:
            reactor: the reactor.
            endpoint: where its adbd listens.
            keys: ours; without any, only devices without authentication let us in.
            name: for messages.
            timeout: seconds for all of it, the user's answer on the device included.

        Raises:
            DeviceUnauthorized: the device does not allow our keys.
            DeviceOffline: it is not there, or is no device.
        """
        transport = HostTransport(reactor, keys=keys)
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _address: transport  # type: ignore[method-assign,assignment]
        try:
            await with_timeout(reactor, endpoint.connect(factory), timeout, f"connecting to {name}")
        except (ConnectError, OSError) as error:
            raise DeviceOffline(f"cannot connect to {name}: {error}") from error
        try:
            await transport.when_online(timeout)
        except TimedOut as error:
            state = transport.state
            transport.abort(error)
            if state in ("unauthorized", "authorizing"):
                raise DeviceUnauthorized(
                    f"{name} does not allow our key", "confirm it on the device, or pair with it"
                ) from error
            raise
        except BaseException as error:
            transport.abort()
            if isinstance(error, AdbError):
                raise DeviceOffline(f"{name}: {error.cause}") from error
            raise
        return cls(reactor, transport, name)

    def open(self, service: bytes, stall_timeout: float | None) -> Deferred[ByteStream]:
        """See ``ILink``."""
        stream = ByteStream(self.clock, stall_timeout)
        opening = self.transport.open_stream(service, stream, timeout=CONTROL_TIMEOUT_S)
        return opening.addCallback(lambda _: stream)

    def features(self) -> Deferred[frozenset[str]]:
        """See ``ILink``."""
        done: Deferred[frozenset[str]] = Deferred()
        done.callback(
            frozenset(self.transport.banner.features) & frozenset((*SERVER_FEATURES, "delayed_ack"))
        )
        return done

    def _opened_by_device(self, service: str, _stream: AdbStream) -> Deferred[IProtocol | None]:
        """A reverse forward: only to where the user sent one."""
        if service not in self.allowed:
            raise AdbError(f"the device asks for {service!r}, to which nothing was reversed")
        kind, _, argument = service.partition(":")
        if kind == "tcp":
            port = decimal(argument.rpartition(":")[2], MAX_PORT)
            if not port:
                raise AdbError(f"not a port: {service!r}")
            return connect_stream(tcp_endpoint(self.clock, port))
        return connect_stream(unix_endpoint(self.clock, parse_local(kind, argument)))

    async def close(self) -> None:
        """End the connection."""
        self.transport.close()
        await with_timeout(self.clock, self.transport.when_closed(), CONTROL_TIMEOUT_S, "closing")
