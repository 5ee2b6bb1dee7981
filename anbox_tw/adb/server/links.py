"""Connections from the server to its devices: made, kept and made again."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.adb._numbers import MAX_PORT, decimal
from anbox_tw.adb.keys import AdbKey
from anbox_tw.adb.server.bridge import SocketSide, join
from anbox_tw.adb.server.devices import Device, DeviceRegistry
from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.adb.server.specs import parse_spec
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.transport import HostTransport
from anbox_tw.errors import AnboxError
from anbox_tw.network.connectors import tcp_client_endpoint

__all__ = ["CONNECT_WAIT_S", "EMULATOR_PORTS", "DeviceLinks", "split_address"]

# AOSP transport.cpp and transport_local.cpp
CONNECT_WAIT_S = 10.0
FIRST_RECONNECT_S = 0.25
RECONNECT_S = 3.0
RECONNECT_ATTEMPTS = 20
EMULATOR_RETRY_S = 1.0
EMULATOR_ATTEMPTS = 60
DEFAULT_PORT = 5555
EMULATOR_PORTS = range(5555, 5586, 2)
"""The odd ports that are looked at when the server starts."""

EMULATOR_TIMEOUT_S = 5

MAX_UNASKED_OPENS = 1000
"""Streams a device may open in one connection that no reverse forward leads to; adb's own server ends at the first."""

KEEPALIVE_S = 1
KEEPALIVE_PROBES = 10
"""A device whose host vanished without a word is noticed after about ten seconds (``set_tcp_keepalive``)."""


def split_address(address: str, default_port: int | None = DEFAULT_PORT) -> tuple[str, int]:
    """Read ``HOST[:PORT]`` or ``[V6][:PORT]``.

    Args:
        address: what a user wrote.
        default_port: where none is in it; with ``None`` there must be one.

    Raises:
        RequestFailed: it is empty or the port is none.
    """
    address = address.removeprefix("tcp:")
    if not address:
        raise RequestFailed("empty address")
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise RequestFailed(f"bad address '{address}'")
        port_text = rest[1:]
    elif address.count(":") > 1:
        host, port_text = address, ""
    else:
        host, _, port_text = address.partition(":")
    if not host:
        raise RequestFailed(f"no host in '{address}'")
    if not port_text:
        if default_port is None:
            raise RequestFailed(f"no port in '{address}'")
        return host, default_port
    port = decimal(port_text, MAX_PORT)
    if not port:
        raise RequestFailed(f"bad port number '{port_text}' in '{address}'")
    return host, port


class _Once(Factory):
    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._protocol


class DeviceLinks:
    """Makes the connections of a server's devices and keeps them."""

    _log = Logger()

    def __init__(
        self, reactor: Any, devices: DeviceRegistry, keys: Sequence[AdbKey], host: str = "127.0.0.1"
    ) -> None:
        self._reactor = reactor
        self._devices = devices
        self._keys = keys
        self._host = host
        self._keeping: dict[Device, Deferred[None]] = {}
        self._stopped = False
        self._attempts: set[Deferred[Any]] = set()
        devices.on_removed(self._device_removed)

    # -- adb connect --

    async def connect(self, address: str) -> str:
        """Serve ``adb connect``; returns the text for the user, whatever came of it."""
        try:
            host, port = split_address(address)
        except RequestFailed as error:
            return error.cause
        serial = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return await self._connect_to(serial, host, port)

    async def connect_service(self, serial: str, host: str, port: int) -> str:
        """Connect to a device that mDNS has found; the text is as that of ``connect``.

        Args:
            serial: ``INSTANCE._adb-tls-connect._tcp``, or with another service.
            host: its address.
            port: the port it announces, which changes each time wireless debugging is turned on.
        """
        return await self._connect_to(serial, host, port)

    async def _connect_to(self, serial: str, host: str, port: int) -> str:
        known = self._devices.by_serial(serial)
        if known is not None and known.transport is not None:
            return f"already connected to {serial}"
        try:
            host.encode("ascii" if ":" in host else "idna")
        except UnicodeError:
            return f"failed to resolve host: '{host}': Name or service not known"
        endpoint = tcp_client_endpoint(self._reactor, host, port, timeout=CONNECT_WAIT_S)
        transport = self._make_transport()
        try:
            await self._dial(endpoint, transport)
        except DNSLookupError:
            return f"failed to resolve host: '{host}': Name or service not known"
        except (ConnectError, OSError) as error:
            # adb leaves the brackets of an IPv6 address out here.
            return f"failed to connect to '{host}:{port}': {_reason(error)}"
        # Another client, or the device's own keeper, may have been faster.
        known = self._devices.by_serial(serial)
        if known is not None and known.transport is not None:
            transport.abort("connected already")
            return f"already connected to {serial}"
        if self._stopped:
            transport.abort("the server ends")
            return f"failed to connect to {serial}"
        if known is None:
            try:
                known = self._devices.add(serial)
            except RequestFailed as error:
                transport.abort(error.cause)
                return error.cause
        self._adopt(known, transport)
        known.endpoint = endpoint
        self._keep(known, FIRST_RECONNECT_S, RECONNECT_S, RECONNECT_ATTEMPTS)
        return await self._outcome(known, transport)

    async def _outcome(self, device: Device, transport: HostTransport) -> str:
        deadline = self._reactor.seconds() + CONNECT_WAIT_S
        while True:
            if transport.is_online:
                return f"connected to {device.serial}"
            if transport.state == "unauthorized":
                return f"failed to authenticate to {device.serial}"
            left = deadline - self._reactor.seconds()
            if left <= 0 or transport.closed_because is not None or device.gone:
                return f"failed to connect to {device.serial}"
            change = self._devices.next_change()
            timer = self._reactor.callLater(left, change.cancel)
            try:
                await change
            except CancelledError:
                continue
            finally:
                if timer.active():
                    timer.cancel()

    def disconnect(self, serial: str) -> str:
        """Serve ``adb disconnect``.

        Raises:
            RequestFailed: there is no such device.
        """
        if not serial:
            for device in list(self._devices):
                if device.emulator_port is None:
                    self._devices.remove(device)
            return "disconnected everything"
        found = self._devices.by_serial(serial)
        if found is None:
            try:
                host, port = split_address(serial)
                full = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            except RequestFailed:
                full = serial
            found = self._devices.by_serial(full)
            if found is None:
                raise RequestFailed(f"no such device '{full}'")
        self._devices.remove(found)
        return f"disconnected {serial}"

    # -- emulators --

    def scan_emulators(self, ports: Sequence[int] = EMULATOR_PORTS) -> None:
        """Look for emulators once."""
        for port in ports:
            self.register_emulator(port, announced=False)

    def register_emulator(self, port: int, *, announced: bool = True) -> None:
        """An emulator says, or may be expected, to listen on this ADB port."""
        if not 0 < port < 65536 or self._stopped:
            return
        if self._devices.by_emulator_port(port) is None:
            Deferred.fromCoroutine(self.connect_emulator(port)).addErrback(self._not_connected, port)

    def _not_connected(self, failure: Failure, port: int) -> None:
        if not failure.check(CancelledError):
            self._log.failure("connecting to the emulator on {port} failed", failure, port=port)

    async def connect_emulator(self, port: int, console_port: int | None = None) -> str | None:
        """Connect to an emulator; returns why not, or ``None``."""
        endpoint = tcp_client_endpoint(self._reactor, self._host, port, timeout=EMULATOR_TIMEOUT_S)
        transport = self._make_transport()
        try:
            await self._dial(endpoint, transport)
        except (ConnectError, DNSLookupError, OSError) as error:
            return _reason(error)
        if self._stopped or self._devices.by_emulator_port(port) is not None:
            transport.abort("the emulator is connected already")
            return None
        serial = f"emulator-{port - 1 if console_port is None else console_port}"
        try:
            device = self._devices.add(serial, emulator_port=port)
        except RequestFailed as error:
            transport.abort(error.cause)
            return error.cause
        self._adopt(device, transport)
        device.endpoint = endpoint
        self._keep(device, EMULATOR_RETRY_S, EMULATOR_RETRY_S, EMULATOR_ATTEMPTS)
        return None

    async def _dial(self, endpoint: Any, protocol: Protocol) -> None:
        """Connect once; the server's end cancels it."""
        attempt = endpoint.connect(_Once(protocol))
        self._attempts.add(attempt)
        try:
            await attempt
        except ConnectingCancelledError as error:
            raise CancelledError from error
        finally:
            self._attempts.discard(attempt)

    # -- keeping --

    def _make_transport(self) -> HostTransport:
        transport: HostTransport = HostTransport(
            self._reactor, keys=self._keys, on_state=self._devices.changed
        )
        return transport

    def _adopt(self, device: Device, transport: HostTransport) -> None:
        device.transport = transport
        device.reverses.clear()
        device.unasked = 0
        transport.open_handler = lambda service, stream: self._opened_by_device(device, service, stream)
        raw: Any = transport.transport
        if hasattr(raw, "setTcpNoDelay"):
            raw.setTcpNoDelay(True)
            _keep_alive(raw)
        self._devices.changed()

    def _keep(self, device: Device, first: float, later: float, attempts: int) -> None:
        if device in self._keeping:
            return
        keeping = Deferred.fromCoroutine(self._kept(device, first, later, attempts))
        self._keeping[device] = keeping

        def ended(failure: Any) -> None:
            self._keeping.pop(device, None)
            if isinstance(failure, Failure) and not failure.check(CancelledError):
                self._log.failure("the link to {device} failed", failure, device=device)

        keeping.addBoth(ended)

    async def _kept(self, device: Device, first: float, later: float, attempts: int) -> None:
        """Wait for the end of the connection and make it again, until the device is removed or given up."""
        while not device.gone:
            transport = device.transport
            assert transport is not None
            why = await transport.when_closed()
            device.transport = None
            self._devices.changed()
            self._log.info("lost {serial}: {why}", serial=device.serial, why=why)
            delay = first
            for _ in range(attempts):
                await deferLater(self._reactor, delay)
                if device.gone:
                    return
                if device.transport is not None:
                    break  # a client has connected it again
                delay = later
                fresh = self._make_transport()
                try:
                    await self._dial(device.endpoint, fresh)
                except (ConnectError, DNSLookupError, OSError):
                    continue
                if device.gone:
                    fresh.abort("the device was removed")
                    return
                if device.transport is not None:
                    fresh.abort("a client has connected the device again")
                    break
                self._adopt(device, fresh)
                break
            else:
                self._log.info("giving {serial} up", serial=device.serial)
                self._devices.remove(device)
                return

    def _device_removed(self, device: Device) -> None:
        keeping = self._keeping.get(device)
        if keeping is not None:
            keeping.cancel()

    def stop(self) -> None:
        """Drop every device."""
        self._stopped = True
        for attempt in list(self._attempts):
            attempt.cancel()
        for device in list(self._devices):
            self._devices.remove(device)

    # -- reverse --

    def _opened_by_device(
        self, device: Device, service: str, stream: AdbStream
    ) -> Deferred[IProtocol | None] | None:
        """A device opens a stream: served only where a client has set up that reverse forward."""
        if service not in device.reverses.values():
            device.unasked += 1
            if device.unasked == 1:
                self._log.warn("{serial} may not open {service!r}", serial=device.serial, service=service)
            elif device.unasked > MAX_UNASKED_OPENS:
                device.kick(f"the device opened {MAX_UNASKED_OPENS} streams that nobody asked for")
            return None
        return Deferred.fromCoroutine(self._connect_reverse(service, stream))

    async def _connect_reverse(self, service: str, stream: AdbStream) -> IProtocol | None:
        try:
            endpoint = parse_spec(service).client_endpoint(self._reactor)
            side = SocketSide()
            await self._dial(endpoint, side)
        except (AnboxError, ConnectError, DNSLookupError, OSError) as error:
            self._log.debug("reverse to {service!r}: {error}", service=service, error=error)
            return None
        raw: Any = side.transport
        if hasattr(raw, "setTcpNoDelay"):
            raw.setTcpNoDelay(True)
        side.stream = stream
        return join(stream, side.transport)


def _keep_alive(transport: Any) -> None:
    """Have the kernel ask after a silent device; its own first question would come after two hours."""
    transport.setTcpKeepAlive(True)
    handle: socket.socket | None = getattr(transport, "socket", None)
    if handle is not None:
        for option, value in (
            (socket.TCP_KEEPIDLE, KEEPALIVE_S),
            (socket.TCP_KEEPINTVL, KEEPALIVE_S),
            (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        ):
            handle.setsockopt(socket.IPPROTO_TCP, option, value)


def _reason(error: BaseException) -> str:
    """Why a connection was not made, in the words of strerror."""
    import os

    number = getattr(error, "osError", None) or getattr(error, "errno", None)
    if isinstance(number, int):
        return os.strerror(number)
    if isinstance(error, ConnectTimeout):
        return "Connection timed out"
    if isinstance(error, DNSLookupError):
        return "Name or service not known"
    return str(error)
