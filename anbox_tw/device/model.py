"""The device as one object: its parts, by attribute and by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from anbox_tw.device.calls import Calls
from anbox_tw.device.errors import UnknownName
from anbox_tw.device.location import Location
from anbox_tw.device.messages import Messages
from anbox_tw.device.network import Network
from anbox_tw.device.part import Change, Observer, Part
from anbox_tw.device.phone import Phone
from anbox_tw.device.power import Battery
from anbox_tw.device.screen import Display, Fingerprint, Input
from anbox_tw.device.sensors import Sensors

__all__ = ["Device"]


class Device:
    """Everything that can be read and set of a device; pipe services, console, D-Bus and commands are views of it.

    Args:
        disabled_sensors: names of sensors that it does not have.
        width: of the display, pixels.
        height: of the display, pixels.
        clock: an ``IReactorTime`` for what happens by itself, such as a dialled call that is answered; without it, it
            does not.
    """

    def __init__(
        self,
        *,
        disabled_sensors: Iterable[str] = (),
        width: int = 1024,
        height: int = 768,
        clock: Any = None,
    ) -> None:
        self.location = Location()
        self.sensors = Sensors(disabled_sensors)
        self.battery = Battery()
        self.network = Network()
        self.display = Display(width, height)
        self.fingerprint = Fingerprint()
        self.input = Input()
        self.phone = Phone(clock)
        self.calls = Calls(self.phone, clock)
        self.messages = Messages()
        parts: tuple[Part[Any], ...] = (
            self.location,
            self.sensors,
            self.battery,
            self.network,
            self.display,
            self.fingerprint,
            self.input,
            self.phone,
            self.calls,
            self.messages,
        )
        self._parts = {part.name: part for part in parts}
        self.network.observe(self._network_changed)

    def _network_changed(self, change: Change) -> None:
        if "speed" in change.fields:
            self.phone.set_speed(change.value.speed)

    def use_clock(self, clock: Any) -> None:
        """Give a clock to what was made without one."""
        self.phone.use_clock(clock)
        self.calls.use_clock(clock)

    def __iter__(self) -> Iterator[Part[Any]]:
        return iter(self._parts.values())

    def part(self, name: str) -> Part[Any]:
        """A part by its name.

        Raises:
            UnknownName: the device has no such part.
        """
        try:
            return self._parts[name]
        except KeyError:
            raise UnknownName(
                f"the device has no {name!r}", f"its parts are {', '.join(self._parts)}"
            ) from None

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell ``observer`` each change and event of every part; returns what ends that."""
        ends = [part.observe(observer) for part in self]

        def end() -> None:
            for stop in ends:
                stop()

        return end

    def as_dict(self) -> dict[str, Any]:
        """The whole device, JSON-able: part name to state."""
        return {part.name: part.as_dict() for part in self}
