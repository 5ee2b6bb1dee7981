"""What the adb server answers itself: the ``host:`` services (AOSP ``SERVICES.TXT``, ``adb.cpp``, ``services.cpp``)."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from twisted.logger import Logger

from anbox_tw._version import __version__
from anbox_tw.adb._numbers import MAX_PORT, decimal
from anbox_tw.adb.banner import SERVER_FEATURES
from anbox_tw.adb.server import _proto
from anbox_tw.adb.server._framing import body, okay
from anbox_tw.adb.server._targets import ANY, Kind, Target, cleaned, parse_transport_request
from anbox_tw.adb.server.devices import Device
from anbox_tw.adb.server.errors import Ambiguous, RequestFailed

if TYPE_CHECKING:
    from anbox_tw.adb.server.server import AdbServer
    from anbox_tw.adb.server.smartsocket import SmartSocket

__all__ = ["SERVER_VERSION", "HostServices"]

SERVER_VERSION = 41
"""``ADB_SERVER_VERSION`` of Android 10 and later; a client with another number replaces the server."""


_WAIT_STATES = ("device", "recovery", "rescue", "sideload", "bootloader", "any", "disconnect")
_ONLINE_STATES = ("device", "recovery", "rescue", "sideload", "bootloader", "host")
_TRACKERS = {
    "track-devices": "short",
    "track-devices-l": "long",
    "track-devices-proto-binary": "binary",
    "track-devices-proto-text": "text",
}

Handler = Callable[[str, Target], Awaitable[bytes]]


class HostServices:
    """Answers host requests; one for all connections of a server."""

    _log = Logger()

    def __init__(self, server: AdbServer) -> None:
        self._server = server
        self._devices = server.devices
        self._plain: dict[str, Handler] = {
            "version": self._version,
            "host-features": self._host_features,
            "devices": self._list,
            "devices-l": self._list,
            "features": self._features,
            "get-state": self._get_state,
            "get-serialno": self._get_serialno,
            "get-devpath": self._get_devpath,
            "list-forward": self._list_forward,
            "killforward-all": self._kill_forwards,
            "reconnect": self._reconnect,
            "reconnect-offline": self._reconnect_offline,
            "attach": self._attach,
            "detach": self._attach,
            "server-status": self._server_status,
        }
        self._with_argument: dict[str, Handler] = {
            "forward:": self._forward,
            "killforward:": self._kill_forward,
            "connect:": self._connect,
            "disconnect:": self._disconnect,
            "pair:": self._pair,
            "mdns:": self._mdns,
        }

    async def serve(self, command: str, target: Target, socket: SmartSocket) -> bytes | None:
        """Answer one request.

        Args:
            command: without its prefix.
            target: the device its prefix, or an earlier switch, names.
            socket: the connection; a switch and the trackers act on it.

        Returns:
            The reply, after which the connection is closed; ``None`` when the connection goes on.

        Raises:
            RequestFailed: with the text for the client.
        """
        switch = parse_transport_request(command)
        if switch is not None:
            device = self._devices.select(switch[0], accept_any_state=True)
            number = device.transport_id.to_bytes(8, "little") if switch[1] else b""
            socket.switch(device, okay() + number)
            return None
        if command in _TRACKERS:
            self._track(_TRACKERS[command], socket)
            return None
        if command == "kill":
            if os.environ.get("ADB_REJECT_KILL_SERVER") == "1":
                raise RequestFailed("kill-server rejected by remote server")
            self._server.asked_to_end()
            return okay()
        if command.startswith("emulator:"):
            port = decimal(command[9:], MAX_PORT)
            if port:
                self._server.links.register_emulator(port)
            return b""
        if command.startswith("wait-for-"):
            await self._wait_for(command[9:], target, socket)
            return None
        if not command:
            # adb takes the empty name for a service of the device, and none is chosen.
            raise RequestFailed("device offline (no transport)")
        handler = self._plain.get(command)
        if handler is not None:
            return await handler(command, target)
        for prefix, handler in self._with_argument.items():
            if command.startswith(prefix):
                return await handler(command[len(prefix) :], target)
        raise RequestFailed(f"unknown host service '{command}'")

    # -- about the server --

    async def _version(self, command: str, target: Target) -> bytes:
        return okay(f"{SERVER_VERSION:04x}")

    async def _host_features(self, command: str, target: Target) -> bytes:
        return okay(",".join(SERVER_FEATURES))

    async def _server_status(self, command: str, target: Target) -> bytes:
        mdns = self._server.mdns is not None
        return okay(
            _proto.message(
                (
                    # Fields 1 and 3, the back ends for USB and mDNS: ours are none of adb's, which is "unknown", 0.
                    (5, f"1.0.{SERVER_VERSION}"),
                    (6, f"anbox-tw {__version__}"),
                    (7, sys.executable),
                    (8, self._server.log_path),
                    (9, f"{platform.system()} {platform.release()} ({platform.machine()})"),
                    (10, ""),
                    (11, False),
                    (12, mdns),
                ),
                explicit=True,
            )
        )

    # -- about devices --

    async def _list(self, command: str, target: Target) -> bytes:
        return okay(self._devices.listing(long=command == "devices-l"))

    async def _features(self, command: str, target: Target) -> bytes:
        return okay(",".join(self._devices.select(target).banner.features))

    async def _get_state(self, command: str, target: Target) -> bytes:
        return okay(self._devices.select(target).state)

    async def _get_serialno(self, command: str, target: Target) -> bytes:
        return okay(self._devices.select(target).serial or "unknown")

    async def _get_devpath(self, command: str, target: Target) -> bytes:
        return okay(self._devices.select(target).devpath or "unknown")

    async def _attach(self, command: str, target: Target) -> bytes:
        self._devices.select(target, accept_any_state=True)
        # The different ends of the two texts are adb's own.
        raise RequestFailed("attach/detach not supported" + ("!" if command == "detach" else ""))

    def entries(self) -> list[_proto.DeviceEntry]:
        """All devices for the protobuf trackers."""
        return [
            {
                "serial": device.serial,
                "state": _proto.STATES.get(device.state, 0),
                "bus_address": device.devpath,
                "product": device.banner.product,
                "model": cleaned(device.banner.model),
                "device": device.banner.device,
                "connection_type": _proto.USB if device.kind is Kind.USB else _proto.SOCKET,
                "transport_id": device.transport_id,
            }
            for device in self._devices
        ]

    def _track(self, how: str, socket: SmartSocket) -> None:
        def frame() -> bytes:
            if how == "binary":
                return body(_proto.device_list(self.entries()))
            if how == "text":
                return body(_proto.device_list_text(self.entries()))
            return body(self._devices.listing(long=how == "long"))

        socket.track(frame, self._devices.observe)

    async def _wait_for(self, what: str, target: Target, socket: SmartSocket) -> None:
        transport, dash, wanted_text = what.partition("-")
        socket.write(okay())
        if not dash:
            raise RequestFailed(f"short wait-for-: {what}")
        kinds = {"usb": Kind.USB, "local": Kind.LOCAL, "any": Kind.ANY}
        if transport not in kinds:
            raise RequestFailed(f"bad wait-for- transport: {what}")
        if target == ANY:
            target = Target(kinds[transport])
        wanted = wanted_text.split("-")
        for state in wanted:
            if state not in _WAIT_STATES:
                raise RequestFailed(f"bad wait-for- state: {what}")
        while not self._is_in(target, wanted):
            await self._devices.next_change()  # cancelled when the client goes away
        socket.finish(okay())

    def _is_in(self, target: Target, wanted: list[str]) -> bool:
        """Whether the wait is over (``wait_service`` in ``services.cpp``).

        Raises:
            Ambiguous: several devices are meant; waiting makes them no fewer.
        """
        try:
            device: Device = self._devices.select(target)
        except RequestFailed as error:
            if "disconnect" in wanted:
                return True
            if isinstance(error, Ambiguous):
                raise
            return False
        return device.state in wanted or ("any" in wanted and device.state in _ONLINE_STATES)

    # -- connections --

    async def _connect(self, argument: str, target: Target) -> bytes:
        if argument.startswith("emu:"):
            return okay(await self._connect_emulator(argument[4:]))
        found = self._server.mdns.resolve(argument) if self._server.mdns is not None else None
        if found is not None:
            return okay(await self._server.links.connect_service(found.serial, found.host, found.port))
        return okay(await self._server.links.connect(argument))

    async def _connect_emulator(self, ports: str) -> str:
        console_text, comma, adb_text = ports.partition(",")
        if not comma:
            return f"unable to parse '{ports}' as <console port>,<adb port>"
        console, adb = decimal(console_text, MAX_PORT), decimal(adb_text, MAX_PORT)
        if not console or not adb:
            return f"Invalid port numbers: {ports}"
        if self._devices.by_emulator_port(adb) is not None:
            return f"Emulator already registered on port {adb}"
        if sum(device.emulator_port is not None for device in self._devices) >= self._server.max_emulators:
            return "Cannot accept more emulators"
        why = await self._server.links.connect_emulator(adb, console)
        if why is not None:
            return f"Could not connect to emulator on ports {console},{adb}: {why}"
        return f"Connected to emulator on ports {console},{adb}"

    async def _disconnect(self, argument: str, target: Target) -> bytes:
        return okay(self._server.links.disconnect(argument))

    async def _pair(self, argument: str, target: Target) -> bytes:
        code, colon, address = argument.partition(":")
        if not colon:
            raise RequestFailed(f"unknown host service 'pair:{argument}'")
        return okay() + await self._server.pair(code, address)

    async def _reconnect(self, command: str, target: Target) -> bytes:
        device = self._devices.select(target, accept_any_state=True)
        text = f"reconnecting {device.serial} [{device.state}]\n"
        device.kick("a client asked to reconnect")
        return okay(text)

    async def _reconnect_offline(self, command: str, target: Target) -> bytes:
        said = ""
        for device in self._devices:
            if device.state in ("offline", "unauthorized", "authorizing", "connecting"):
                device.kick("a client asked to reconnect what is offline")
                said += f"reconnecting {device.serial}\n"
        return okay(said)

    # -- forwards --

    async def _forward(self, argument: str, target: Target) -> bytes:
        rebind = not argument.startswith("norebind:")
        local, semicolon, remote = argument.removeprefix("norebind:").partition(";")
        if not semicolon or not local or not remote:
            raise RequestFailed(f"bad forward: {argument}")
        device = self._devices.select(target)
        chosen = await self._server.forwards.add(local, remote, device, rebind=rebind)
        return okay() + (okay() if chosen is None else okay(str(chosen)))

    async def _list_forward(self, command: str, target: Target) -> bytes:
        return okay(self._server.forwards.listing())

    async def _kill_forward(self, argument: str, target: Target) -> bytes:
        if not argument:
            raise RequestFailed("bad killforward: ")
        self._devices.select(target)
        await self._server.forwards.remove(argument)
        return okay() + okay()

    async def _kill_forwards(self, command: str, target: Target) -> bytes:
        await self._server.forwards.remove_all()
        return okay() + okay()

    # -- mdns --

    async def _mdns(self, argument: str, target: Target) -> bytes:
        mdns = self._server.mdns
        if argument == "check":
            return okay(mdns.version if mdns is not None else "ERROR: mdns discovery disabled")
        if argument == "services":
            return okay(mdns.listing() if mdns is not None else "")
        raise RequestFailed(f"unknown host service 'mdns:{argument}'")
