"""An adb server, seen from its client."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from anbox_tw.adb.client._errors import DeviceOffline, RemoteFailure
from anbox_tw.adb.client.device import Device
from anbox_tw.adb.client.links import DirectLink, ServerLink, SmartSocket, server_endpoint
from anbox_tw.adb.client.streams import deferred, with_timeout
from anbox_tw.adb.keys import AdbKey, load_user_keys
from anbox_tw.adb.pairing import pair
from anbox_tw.errors import AdbError, PeerError
from anbox_tw.network.connectors import tcp_client_endpoint

__all__ = ["AdbClient", "DeviceInfo", "connect_device", "pair_device", "tcp_device_endpoint"]

DEFAULT_DEVICE_PORT = 5555
SLOW_TIMEOUT_S = 60.0
"""``connect`` and ``pair``: the server itself waits 10 s and more."""


@attrs.frozen
class DeviceInfo:
    """One line of ``devices``.

    Attributes:
        serial: its name.
        state: ``device``, ``offline``, ``unauthorized``...
        properties: ``product``, ``model``, ``device``, ``transport_id``..., in the long form.
    """

    serial: str
    state: str
    properties: dict[str, str] = attrs.field(factory=dict)


class AdbClient:
    """Talks to an adb server, ours or Google's.

    Every operation returns a Deferred, which can be awaited.

    Args:
        reactor: the reactor.
        endpoint: where the server is; by default where ``adb`` itself looks.
    """

    def __init__(self, reactor: Any, endpoint: IStreamClientEndpoint | None = None) -> None:
        self._reactor = reactor
        self.endpoint = endpoint or server_endpoint(reactor)

    async def _smart(self, request: str, stall_timeout: float | None = SLOW_TIMEOUT_S) -> SmartSocket:
        smart = await SmartSocket.connect(self._reactor, self.endpoint, stall_timeout)
        try:
            await smart.request(request)
        except BaseException:
            smart.stream.abort()
            raise
        return smart

    @deferred
    async def query(self, request: str) -> str:
        """Send any request that is answered with one text."""
        smart = await self._smart(request)
        try:
            return (await smart.body()).decode("utf-8", "replace")
        finally:
            smart.stream.close()

    @deferred
    async def version(self) -> int:
        """The server's version, 41 for every recent one."""
        text = await self.query("host:version")
        try:
            return int(text, 16)
        except ValueError:
            raise PeerError(f"the adb server's version is {text!r}", "is that an adb server?") from None

    @deferred
    async def server_features(self) -> frozenset[str]:
        """What the server itself can do."""
        return frozenset((await self.query("host:host-features")).split(","))

    @deferred
    async def kill(self) -> None:
        """End the server; fires when it has closed the connection."""
        smart = await self._smart("host:kill")
        await with_timeout(self._reactor, smart.stream.when_closed(), SLOW_TIMEOUT_S, "the end of the server")

    @deferred
    async def devices(self) -> list[DeviceInfo]:
        """All devices that the server knows."""
        return parse_devices(await self.query("host:devices-l"))

    async def track_devices(self) -> AsyncGenerator[list[DeviceInfo], None]:
        """The list, now and after each change; ends when the iteration is closed."""
        smart = await self._smart("host:track-devices-l", None)
        try:
            while True:
                yield parse_devices((await smart.body()).decode("utf-8", "replace"))
        finally:
            smart.stream.abort()

    @deferred
    async def connect(self, address: str) -> str:
        """Have the server connect to a device on TCP.

        Returns:
            What the server says, ``connected to ...``.

        Raises:
            DeviceOffline: it could not; the server does not call that a failure, we do.
        """
        text = await self.query(f"host:connect:{address}")
        if text.startswith(("connected to", "already connected")):
            return text
        raise DeviceOffline(text)

    @deferred
    async def disconnect(self, address: str = "") -> str:
        """Have the server forget a device on TCP, or all."""
        return await self.query(f"host:disconnect:{address}")

    @deferred
    async def pair(self, address: str, code: str) -> str:
        """Have the server pair with a device. Returns what the server says.

        Raises:
            RemoteFailure: the code is wrong, or nobody pairs there.
        """
        smart = await self._smart(f"host:pair:{code}:{address}")
        try:
            text = (await smart.late_body()).decode("utf-8", "replace")
        finally:
            smart.stream.close()
        if not text.startswith("Successfully"):
            raise RemoteFailure(text)
        return text

    @deferred
    async def reconnect(self, *, offline: bool = True) -> str:
        """Have the server connect again to what is offline."""
        return await self.query("host:reconnect-offline" if offline else "host:reconnect")

    @deferred
    async def remove_all_forwards(self) -> None:
        """End all forwards of all devices."""
        smart = await self._smart("host:killforward-all")
        try:
            await smart.status()
        finally:
            smart.stream.close()

    def device(
        self,
        serial: str | None = None,
        *,
        transport_id: int | None = None,
        usb: bool = False,
        local: bool = False,
    ) -> Device:
        """A device; nothing is asked before something is done with it.

        Args:
            serial: its serial, or what else the server matches (``model:X``...).
            transport_id: its number instead.
            usb: the only one on USB.
            local: the only one on TCP.
        """
        if transport_id is not None:
            words = (
                f"host-transport-id:{transport_id}",
                f"host:transport-id:{transport_id}",
                f"transport {transport_id}",
            )
        elif serial is not None:
            words = (f"host-serial:{serial}", f"host:transport:{serial}", serial)
        elif usb:
            words = ("host-usb", "host:transport-usb", "the USB device")
        elif local:
            words = ("host-local", "host:transport-local", "the TCP device")
        else:
            words = ("host", "host:transport-any", "the device")
        prefix, switch, name = words
        return Device(self._reactor, ServerLink(self._reactor, self.endpoint, prefix, switch, name))


def parse_devices(text: str) -> list[DeviceInfo]:
    """The lines of ``devices`` in either form."""
    found = []
    for line in text.splitlines():
        if "\t" in line:
            serial, _, state = line.partition("\t")
            found.append(DeviceInfo(serial, state))
            continue
        words = line.split()
        if len(words) < 2:
            continue
        pairs = [word.partition(":") for word in words[2:]]
        found.append(DeviceInfo(words[0], words[1], {key: value for key, colon, value in pairs if colon}))
    return found


def tcp_device_endpoint(reactor: Any, address: str) -> tuple[IStreamClientEndpoint, str]:
    """(endpoint, name) for ``HOST[:PORT]``; the port is 5555 unless given.

    Raises:
        AdbError: it is no such address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(DEFAULT_DEVICE_PORT)
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise AdbError(f"{address!r} is not HOST[:PORT]")
    return tcp_client_endpoint(reactor, host.strip("[]"), int(port)), f"{host}:{port}"


def connect_device(
    reactor: Any,
    address: str | IStreamClientEndpoint,
    *,
    keys: list[AdbKey] | None = None,
    timeout: float = 30.0,
) -> Deferred[Device]:
    """Connect straight to a device, without any server.

    Args:
        reactor: the reactor.
        address: ``HOST[:PORT]``, or any endpoint (UNIX, an SSH tunnel's, ...).
        keys: ours; by default the user's, as adb uses them.
        timeout: seconds, the user's answer on the device included.

    Returns:
        The device; call its ``close`` when done.
    """
    return Deferred.fromCoroutine(_connect_device(reactor, address, keys, timeout))


async def _connect_device(
    reactor: Any, address: str | IStreamClientEndpoint, keys: list[AdbKey] | None, timeout: float
) -> Device:
    if isinstance(address, str):
        endpoint, name = tcp_device_endpoint(reactor, address)
    else:
        endpoint, name = address, str(address)
    chosen = load_user_keys() if keys is None else keys
    return Device(reactor, await DirectLink.connect(reactor, endpoint, chosen, name, timeout))


def pair_device(
    reactor: Any, address: str | IStreamClientEndpoint, code: str, *, key: AdbKey | None = None
) -> Deferred[str]:
    """Pair with a device without any server; fires with its GUID.

    Args:
        reactor: the reactor.
        address: ``HOST:PORT`` of its pairing port, or any endpoint.
        code: what it shows.
        key: ours; by default the user's.
    """
    endpoint = tcp_device_endpoint(reactor, address)[0] if isinstance(address, str) else address
    chosen = load_user_keys()[0] if key is None else key
    return Deferred.fromCoroutine(pair(reactor, endpoint, code, chosen))
