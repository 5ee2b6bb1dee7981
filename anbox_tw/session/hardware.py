"""The device's hardware in a session: the pipe services that are views of the device model, and what plays on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from anbox_tw.device import Change, Device
from anbox_tw.device.part import plain
from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu.fingerprint import FingerprintService
from anbox_tw.qemu.gps import GpsService
from anbox_tw.qemu.hw_control import HwControlService
from anbox_tw.qemu.null import NullService
from anbox_tw.qemu.sensors import SensorsService
from anbox_tw.session.phone_verbs import PhoneVerbs
from anbox_tw.session.players import RoutePlayer
from anbox_tw.session.verbs import DeviceVerbs

__all__ = ["Hardware", "HardwareSettings"]

TOLD_PARTS = frozenset({"battery", "calls", "display", "fingerprint", "messages", "network", "phone"})
"""Whose changes are events of the control socket; location, sensors and input change too often for that."""


@attrs.frozen
class HardwareSettings:
    """What the hardware can be told at the start of a session."""


class Hardware:
    """Makes the services, and stops what they have running.

    Args:
        reactor: tells the time, connects, starts processes.
        device: the model.
        settings: how it is equipped.
        tell: called with kind, name and detail of each event for the control socket.

    Attributes:
        services: for the registry of pipe services.
        route: plays routes.
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
        self.route = RoutePlayer(reactor, device.location)
        self.services: list[IPipeService] = [
            self.sensors,
            self.gps,
            self.hw_control,
            self.fingerprint,
            NullService("anbox:bootanimation"),
        ]
        device.observe(self._changed)

    def register(self, verbs: DeviceVerbs) -> None:
        """Add the verbs of the hardware."""
        from anbox_tw.session.hardware_verbs import HardwareVerbs

        HardwareVerbs(self).register(verbs)
        verbs.register_methods(PhoneVerbs(self.device))

    def stop(self) -> Deferred[None]:
        """End what plays, and the calls; fires when it has ended."""
        parts: tuple[Any, ...] = (self.route, self.device.calls, self.device.phone)
        stopping: Deferred[Any] = gatherResults(
            [maybeDeferred(part.stop) for part in parts], consumeErrors=True
        )
        return stopping.addCallback(lambda _: None)

    def _changed(self, change: Change) -> None:
        if change.part not in TOLD_PARTS:
            return
        if change.kind == "state":
            if change.part == "messages":
                return  # its events say each message once, its state says all of them
            values = self.device.part(change.part).as_dict()
            for name in sorted(change.fields):
                self._tell("device", f"{change.part}.{name}", _text(values[name]))
        else:
            self._tell("device", f"{change.part}.{change.kind}", _text(plain(change.value)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
