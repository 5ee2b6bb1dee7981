"""The devices an adb server knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anbox_tw.adb.banner import Banner
from anbox_tw.adb.server._targets import Kind, Target, cleaned, matches
from anbox_tw.adb.server.errors import Ambiguous, RequestFailed
from anbox_tw.adb.transport import HostTransport

__all__ = ["MAX_DEVICES", "Device", "DeviceRegistry"]

MAX_DEVICES = 4096
"""A device farm's host has hundreds; this only keeps ``connect`` in a loop from eating the memory."""

REFUSED_STATES = {
    "connecting": "device still connecting",
    "authorizing": "device still authorizing",
    "offline": "device offline",
}

UNAUTHORIZED = (
    "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is {vendor_keys}\n"
    "Try 'adb kill-server' if that seems wrong.\n"
    "Otherwise check for a confirmation dialog on your device."
)


class Device:
    """One device, whether or not it is connected now.

    Attributes:
        transport_id: unique for the life of the server.
        serial: as listings show it.
        transport: the connection, or ``None`` while there is none.
        emulator_port: the ADB port of an emulator, or ``None``.
        endpoint: where it is connected, and connected again.
        reverses: what the device may open towards us: its own listener to our target.
        unasked: streams it has opened in this connection that it may not open.
        gone: the device has been removed from the registry.
    """

    kind = Kind.LOCAL
    devpath = ""

    def __init__(self, transport_id: int, serial: str, *, emulator_port: int | None = None) -> None:
        self.transport_id = transport_id
        self.serial = serial
        self.emulator_port = emulator_port
        self.transport: HostTransport | None = None
        self.endpoint: Any = None
        self.reverses: dict[str, str] = {}
        self.unasked = 0
        self.gone = False
        self._last_banner = Banner()

    def __repr__(self) -> str:
        return f"<Device {self.transport_id} {self.serial} {self.state}>"

    @property
    def state(self) -> str:
        """In adb's words."""
        return "offline" if self.transport is None else self.transport.state

    @property
    def banner(self) -> Banner:
        """What the device last said of itself."""
        if self.transport is not None and self.transport.is_online:
            self._last_banner = self.transport.banner
        return self._last_banner

    @property
    def is_online(self) -> bool:
        """Whether streams can be opened."""
        return self.transport is not None and self.transport.is_online

    def is_meant_by(self, serial: str) -> bool:
        """Whether ``serial``, as a user writes it, means this device."""
        banner = self.banner
        return matches(
            serial,
            serial=self.serial,
            devpath=self.devpath,
            product=banner.product,
            model=banner.model,
            device=banner.device,
            is_tcp=self.kind is Kind.LOCAL,
        )

    def short_line(self) -> str:
        """The device's line in ``adb devices``."""
        return f"{self.serial or '(no serial number)'}\t{self.state}\n"

    def long_line(self) -> str:
        """The device's line in ``adb devices -l``."""
        banner = self.banner
        line = f"{self.serial or '(no serial number)':<22} {self.state}"
        if self.devpath:
            line += f" {self.devpath}"
        if banner.product:
            line += f" product:{banner.product}"
        if banner.model:
            line += f" model:{cleaned(banner.model)}"
        if banner.device:
            line += f" device:{banner.device}"
        return f"{line} transport_id:{self.transport_id}\n"

    def note_reverse(self, service: str) -> None:
        """Remember what a client has the device listen for, so that the device may open it (``UpdateReverseConfig``)."""
        if not service.startswith("reverse:"):
            return
        command = service[8:]
        if command.startswith("forward:"):
            command = command[8:].removeprefix("norebind:")
            local, semicolon, remote = command.partition(";")
            if semicolon:
                self.reverses[local] = remote
        elif command.startswith("killforward:"):
            self.reverses.pop(command[12:], None)
        elif command == "killforward-all":
            self.reverses.clear()

    def kick(self, reason: str) -> None:
        """Drop the connection; what keeps the device may connect it again."""
        if self.transport is not None:
            self.transport.abort(reason)


class DeviceRegistry:
    """All devices of one server, and who wants to know of changes."""

    _log = Logger()

    def __init__(self, max_devices: int = MAX_DEVICES) -> None:
        self._devices: dict[int, Device] = {}
        self._next_id = 1
        self._max_devices = max_devices
        self._observers: list[Callable[[], object]] = []
        self._on_removed: list[Callable[[Device], object]] = []

    def __iter__(self) -> Iterator[Device]:
        """In the order of listings: by serial."""
        return iter(sorted(self._devices.values(), key=lambda device: (device.serial, device.transport_id)))

    def __len__(self) -> int:
        return len(self._devices)

    def add(self, serial: str, *, emulator_port: int | None = None) -> Device:
        """Make a device and list it.

        Raises:
            RequestFailed: there are too many.
        """
        if len(self._devices) >= self._max_devices:
            raise RequestFailed(f"too many devices: {self._max_devices}")
        device = Device(self._next_id, serial, emulator_port=emulator_port)
        self._next_id += 1
        self._devices[device.transport_id] = device
        self.changed()
        return device

    def remove(self, device: Device) -> None:
        """Take a device from the list; its connection is dropped."""
        if self._devices.pop(device.transport_id, None) is None:
            return
        device.gone = True
        device.kick("the device was removed")
        for observer in list(self._on_removed):
            observer(device)
        self.changed()

    def by_serial(self, serial: str) -> Device | None:
        """The device with exactly this serial."""
        return next((device for device in self if device.serial == serial), None)

    def by_emulator_port(self, port: int) -> Device | None:
        """The emulator on this ADB port."""
        return next((device for device in self if device.emulator_port == port), None)

    def on_removed(self, callback: Callable[[Device], object]) -> None:
        """Call ``callback`` with each device that is taken from the list."""
        self._on_removed.append(callback)

    def observe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback`` after each change; returns what ends that."""
        self._observers.append(callback)
        return lambda: self._observers.remove(callback) if callback in self._observers else None

    def changed(self, _: Any = None) -> None:
        """Something that a listing shows may have changed."""
        for observer in list(self._observers):
            try:
                observer()
            except Exception:
                self._log.failure("an observer of the devices failed")

    def next_change(self) -> Deferred[None]:
        """A Deferred of the caller's own that fires at the next change."""
        end: list[Callable[[], None]] = []

        def cancelled(_: Deferred[None]) -> None:
            end[0]()

        waiter: Deferred[None] = Deferred(cancelled)

        def changed() -> None:
            end[0]()
            waiter.callback(None)

        end.append(self.observe(changed))
        return waiter

    def select(self, target: Target, *, accept_any_state: bool = False) -> Device:
        """The one device that ``target`` means.

        Raises:
            RequestFailed: none, several, or one in a state in which it cannot be used.
        """
        if target.kind is Kind.ID:
            if target.transport_id is None:
                raise RequestFailed("invalid transport id")
            found = self._devices.get(target.transport_id)
            if found is None:
                raise RequestFailed(f"no device with transport id '{target.transport_id}'")
        elif target.kind is Kind.SERIAL:
            exact = [device for device in self if device.serial == target.serial]
            meant = exact or [device for device in self if device.is_meant_by(target.serial)]
            if not meant:
                raise RequestFailed(f"device '{target.serial}' not found")
            if len(meant) > 1:
                raise Ambiguous(f"more than one device with serial {target.serial}")
            found = meant[0]
        else:
            meant = [device for device in self if target.kind in (Kind.ANY, device.kind)]
            found = meant[0] if len(meant) == 1 else self._none_or_several(target.kind, bool(meant))
        if not accept_any_state:
            if found.state in REFUSED_STATES:
                raise RequestFailed(REFUSED_STATES[found.state])
            if found.state == "unauthorized":
                keys = os.environ.get("ADB_VENDOR_KEYS")
                raise RequestFailed(UNAUTHORIZED.format(vendor_keys=f"'{keys}'" if keys else "not set"))
        return found

    def _none_or_several(self, kind: Kind, several: bool) -> Device:
        texts = {
            Kind.ANY: ("no devices/emulators found", "more than one device/emulator"),
            Kind.USB: ("no devices found", "more than one USB device"),
            Kind.LOCAL: ("no emulators found", "more than one emulator"),
        }
        raise (Ambiguous if several else RequestFailed)(texts[kind][several])

    def listing(self, *, long: bool = False) -> str:
        """What ``adb devices`` prints below its heading."""
        return "".join(device.long_line() if long else device.short_line() for device in self)
