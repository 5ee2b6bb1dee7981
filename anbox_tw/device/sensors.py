"""What the device's sensors measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from anbox_tw.device.errors import BadValue, SensorDisabled, UnknownName
from anbox_tw.device.part import Part

__all__ = ["SENSORS", "SensorKind", "SensorValues", "Sensors"]


@attrs.frozen
class SensorKind:
    """One kind of sensor.

    Attributes:
        name: as the guest's ``set:NAME:1``, the console and D-Bus's configuration know it.
        bit: in the mask that ``list-sensors`` answers.
        report: the name in a report, which differs for the magnetic field.
        unit: of each value.
        default: the values at first, as the original's.
    """

    name: str
    bit: int
    report: str
    unit: str
    default: tuple[float, ...]


SENSORS: Mapping[str, SensorKind] = {
    kind.name: kind
    for kind in (
        SensorKind("acceleration", 0, "acceleration", "m/s²", (0.0, 0.0, 9.80665)),
        SensorKind("magnetic-field", 1, "magnetic", "µT", (25.0, 25.0, 5.0)),
        SensorKind("orientation", 2, "orientation", "°", (0.0, 0.0, 0.0)),
        SensorKind("temperature", 3, "temperature", "°C", (25.0,)),
        SensorKind("proximity", 4, "proximity", "cm", (5.0,)),
        SensorKind("light", 5, "light", "lx", (1240.0,)),
        SensorKind("pressure", 6, "pressure", "hPa", (1013.25,)),
        SensorKind("humidity", 7, "humidity", "%", (45.1,)),
    )
}
"""By name, in the order of their bits (``external/goldfish`` sensors HAL, and Anbox's ``sensors_state``)."""


@attrs.frozen
class SensorValues:
    """All sensors' values.

    Attributes:
        values: by name; a sensor that is not there is disabled.
    """

    values: Mapping[str, tuple[float, ...]]


class Sensors(Part[SensorValues]):
    """The sensors; each change tells which: ``Change.value.values``, and an event ``sensor`` with the name.

    Args:
        disabled: names of sensors that the device does not have; unknown ones are ignored, as in the original.
    """

    name = "sensors"

    def __init__(self, disabled: Iterable[str] = ()) -> None:
        without = set(disabled)
        super().__init__(
            SensorValues({name: kind.default for name, kind in SENSORS.items() if name not in without})
        )

    @property
    def mask(self) -> int:
        """What ``list-sensors`` answers: a bit for each sensor that the device has."""
        return sum(1 << SENSORS[name].bit for name in self.state.values)

    def enabled(self, name: str) -> bool:
        """Whether the device has it; False for a name that no sensor has."""
        return name in self.state.values

    def get(self, name: str) -> tuple[float, ...]:
        """Its values, one or three.

        Raises:
            UnknownName: no sensor is called so.
            SensorDisabled: the device does not have it.
        """
        self._check(name)
        return self.state.values[name]

    def set(self, name: str, values: Iterable[float | None]) -> None:
        """Replace its values; None, and what is missing at the end, stays as it is.

        Raises:
            UnknownName: no sensor is called so.
            SensorDisabled: the device does not have it.
            BadValue: too many values, or one that is not finite.
        """
        new = self._checked(name, values)
        if new != self.state.values[name]:
            self.replace(SensorValues({**self.state.values, name: new}))
            self.emit("sensor", name)

    def _checked(self, name: str, values: Iterable[float | None]) -> tuple[float, ...]:
        old = self.get(name)
        given = list(values)
        if len(given) > len(old):
            raise BadValue(f"the sensor {name} has {len(old)} value(s), not {len(given)}")
        new = []
        for position, before in enumerate(old):
            value = given[position] if position < len(given) else None
            if value is None:
                new.append(before)
            elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise BadValue(f"the sensor {name} measures finite numbers, not {value!r}")
            else:
                new.append(float(value))
        return tuple(new)

    def update(self, **changes: Any) -> SensorValues:
        """``update(values={name: [..]})`` sets these sensors and leaves the others; all or none.

        Raises:
            UnknownName: there is no other field, or no such sensor.
            SensorDisabled: as `set`.
            BadValue: as `set`.
        """
        values = changes.pop("values", {})
        if changes:
            raise UnknownName(f"sensors has no {min(changes)!r}", "it has values")
        if not isinstance(values, Mapping):
            raise BadValue("sensors: values are a table of names and lists of numbers")
        before = self.state
        given = {}
        for name, numbers in values.items():
            one = [numbers] if isinstance(numbers, int | float) else numbers
            if isinstance(one, str) or not isinstance(one, Iterable):
                raise BadValue(f"the sensor {name} measures numbers, not {numbers!r}")
            given[name] = self._checked(name, one)
        self.replace(SensorValues({**before.values, **given}))
        for name, new in given.items():
            if new != before.values[name]:
                self.emit("sensor", name)
        return self.state

    def _check(self, name: str) -> None:
        if name not in SENSORS:
            raise UnknownName(f"no sensor is called {name!r}", f"there are {', '.join(SENSORS)}")
        if name not in self.state.values:
            raise SensorDisabled(
                f"the sensor {name} is disabled", "the session was started with --disabled-sensors"
            )
