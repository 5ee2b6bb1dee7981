"""Battery and charger, as ``power_supply`` has them."""

from __future__ import annotations

from enum import Enum
from typing import Any

import attrs

from anbox_tw.device.part import Part, in_range, member_of

__all__ = ["Battery", "BatteryHealth", "BatteryState", "BatteryStatus"]


class BatteryStatus(Enum):
    """Whether it is being charged."""

    UNKNOWN = "unknown"
    CHARGING = "charging"
    DISCHARGING = "discharging"
    NOT_CHARGING = "not-charging"
    FULL = "full"


class BatteryHealth(Enum):
    """How well it is."""

    UNKNOWN = "unknown"
    GOOD = "good"
    OVERHEAT = "overheat"
    DEAD = "dead"
    OVERVOLTAGE = "overvoltage"
    FAILURE = "failure"


def _status(value: Any) -> BatteryStatus:
    return member_of(BatteryStatus, value)


def _health(value: Any) -> BatteryHealth:
    return member_of(BatteryHealth, value)


@attrs.frozen
class BatteryState:
    """The battery.

    Attributes:
        ac: whether the charger is plugged in.
        status: what happens to the charge.
        health: how well it is.
        present: whether there is one.
        capacity: per cent.
    """

    ac: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    status: BatteryStatus = attrs.field(default=BatteryStatus.CHARGING, converter=_status)
    health: BatteryHealth = attrs.field(default=BatteryHealth.GOOD, converter=_health)
    present: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    capacity: int = attrs.field(default=100, validator=in_range(0, 100))


class Battery(Part[BatteryState]):
    """The battery; no events."""

    name = "battery"

    def __init__(self) -> None:
        super().__init__(BatteryState())
