"""The device's hardware in a session: the pipe services that are views of the device model, and what plays on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from anbox_tw.device import Change, Device
from anbox_tw.device.part import plain
from anbox_tw.interfaces import ICameraSource, IPipeService
from anbox_tw.network import Shaper
from anbox_tw.qemu.boot_animation import BootAnimationService, read_icon
from anbox_tw.qemu.camera import CameraService
from anbox_tw.qemu.camera_sources import make_source
from anbox_tw.qemu.debug import PingPongService, ZeroService
from anbox_tw.qemu.fingerprint import FingerprintService
from anbox_tw.qemu.gps import GpsService
from anbox_tw.qemu.gsm import GsmService
from anbox_tw.qemu.hw_control import HwControlService
from anbox_tw.qemu.opengles import OpenGlesService
from anbox_tw.qemu.outward import Allowance, TcpOutward, UnixOutward
from anbox_tw.qemu.sensors import SensorsService
from anbox_tw.session.phone_verbs import PhoneVerbs
from anbox_tw.session.players import RoutePlayer, ScenarioPlayer
from anbox_tw.session.verbs import DeviceVerbs

__all__ = ["Hardware", "HardwareSettings"]

TOLD_PARTS = frozenset({"battery", "calls", "display", "fingerprint", "messages", "network", "phone"})
"""Whose changes are events of the control socket; location, sensors and input change too often for that."""

MAX_EVENTS = 100
EVENTS_S = 1.0
"""A guest changes its lights as fast as it likes; who watches the session hears so many of it in that time."""

DEFAULT_CAMERAS = {"back": "test-pattern", "front": "none"}
"""A camera costs nothing until a guest starts it."""


@attrs.frozen
class HardwareSettings:
    """What the hardware can be told at the start of a session.

    Attributes:
        cameras: ``back`` and ``front`` to a source, as `anbox_tw.qemu.camera_sources.parse_source` takes it.
        renderer: client endpoint of what draws for ``opengles``; empty for none.
        boot_icon: path of a file; empty for none.
        allowed: what guests may connect to on the host.
        debug_pipes: whether there are ``zero`` and ``pingpong``.
    """

    cameras: Mapping[str, str] = attrs.field(factory=lambda: dict(DEFAULT_CAMERAS))
    renderer: str = ""
    boot_icon: str = ""
    allowed: tuple[Allowance, ...] = ()
    debug_pipes: bool = False


class Hardware:
    """Makes the services, and stops what they have running.

    Args:
        reactor: tells the time, connects, starts processes.
        device: the model.
        settings: how it is equipped.
        tell: called with kind, name and detail of each event for the control socket.

    Raises:
        ConfigError: a setting cannot be used.

    Attributes:
        services: for the registry of pipe services.
        shaper: makes forwards and outward connections as slow as the device's network.
        route: plays routes.
        scenario: plays scenarios.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        device: Device,
        settings: HardwareSettings,
        tell: Callable[[str, str, str], object] = lambda kind, name, detail: None,
    ) -> None:
        self.device = device
        device.use_clock(reactor)
        self._tell = tell
        self.sensors = SensorsService(device.sensors, reactor)
        self.gps = GpsService(device.location, reactor)
        self.hw_control = HwControlService(device.display)
        self.fingerprint = FingerprintService(device.fingerprint)
        self.gsm = GsmService(device)
        self.route = RoutePlayer(
            reactor, device.location, lambda state, reason: self._tell("route", state, reason)
        )
        self.scenario = ScenarioPlayer(
            reactor, device, lambda state, reason: self._tell("scenario", state, reason)
        )
        self._reactor = reactor
        self.camera = CameraService(
            reactor,
            {direction: self.make_camera_source(source) for direction, source in settings.cameras.items()},
        )
        self.opengles = OpenGlesService(reactor, settings.renderer)
        self.shaper = Shaper(reactor)
        device.network.observe(lambda change: self._shape())
        self.outward = (
            TcpOutward(reactor, settings.allowed, self.shaper),
            UnixOutward(reactor, settings.allowed, self.shaper),
        )
        icon = read_icon(settings.boot_icon) if settings.boot_icon else b""
        self.services: list[IPipeService] = [
            self.sensors,
            self.gps,
            self.hw_control,
            self.fingerprint,
            self.gsm,
            self.camera,
            self.opengles,
            *self.outward,
            BootAnimationService(reactor, icon),
        ]
        if settings.debug_pipes:
            self.services += [ZeroService(), PingPongService()]
        self._events_since = 0.0
        self._events = 0
        self._late: dict[str, str] = {}
        self._late_events: IDelayedCall | None = None
        device.observe(self._changed)

    def make_camera_source(self, text: str) -> ICameraSource | None:
        """What ``text`` names; see `anbox_tw.qemu.camera_sources.make_source`."""
        return make_source(self._reactor, text)

    def register(self, verbs: DeviceVerbs) -> None:
        """Add the verbs of the hardware."""
        from anbox_tw.session.hardware_verbs import HardwareVerbs

        self.scenario.verbs = verbs
        verbs.register_methods(HardwareVerbs(self))
        verbs.register_methods(PhoneVerbs(self.device))

    def stop(self) -> Deferred[None]:
        """End what plays, and the calls; fires when it has ended. Guests' connections are closed already."""
        relays = [self.opengles.connections, *(each.connections for each in self.outward)]
        late, self._late_events = self._late_events, None
        if late is not None:
            late.cancel()
        for part in (self.scenario, self.route, self.device.calls, self.device.phone):
            part.stop()
        stopping: Deferred[Any] = gatherResults(
            [self.camera.stop(), *(each.close_all("the session ends") for each in relays)],
            consumeErrors=True,
        )
        return stopping.addCallback(lambda _: None)

    def _shape(self) -> None:
        """Make the network what the device says."""
        state = self.device.network.state
        self.shaper.set(
            upload=state.upload,
            download=state.download,
            min_delay=state.min_delay / 1000,
            max_delay=state.max_delay / 1000,
        )

    def _tell_device(self, name: str, detail: str) -> None:
        """Tell an event, at most `MAX_EVENTS` in `EVENTS_S`; then only the last of each name, when that time is over."""
        now = self._reactor.seconds()
        if self._late_events is None and now - self._events_since >= EVENTS_S:
            self._events_since, self._events = now, 0
        self._events += 1
        if self._events <= MAX_EVENTS:
            self._tell("device", name, detail)
            return
        self._late[name] = detail
        if self._late_events is None:
            wait = max(0.0, self._events_since + EVENTS_S - now)
            self._late_events = self._reactor.callLater(wait, self._tell_late)

    def _tell_late(self) -> None:
        self._late_events = None
        self._events_since, self._events = self._reactor.seconds(), 0
        late, self._late = self._late, {}
        for name, detail in late.items():
            self._tell_device(name, detail)

    def _changed(self, change: Change) -> None:
        if change.part not in TOLD_PARTS:
            return
        if change.kind == "state":
            if change.part == "messages":
                return  # its events say each message once, its state says all of them
            values = self.device.part(change.part).as_dict()
            for name in sorted(change.fields):
                self._tell_device(f"{change.part}.{name}", _text(values[name]))
        else:
            self._tell_device(f"{change.part}.{change.kind}", _text(plain(change.value)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
