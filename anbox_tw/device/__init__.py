"""The device model: what a container's hardware is at this moment, with no I/O and no guest needed.

One `Device` holds the parts (location, sensors, battery, network, display, ...). Everything that shows or changes the
device is a view of it: the qemu pipe's services, the emulator console, D-Bus, the command line, scenario files.
"""

from __future__ import annotations

from anbox_tw.device.errors import BadValue, DeviceError, SensorDisabled, UnknownName
from anbox_tw.device.location import Fix, Location
from anbox_tw.device.model import Device
from anbox_tw.device.network import Network, NetworkState
from anbox_tw.device.part import Change, Observer, Part
from anbox_tw.device.power import Battery, BatteryHealth, BatteryState, BatteryStatus
from anbox_tw.device.screen import (
    Display,
    DisplayState,
    Fingerprint,
    FingerprintState,
    Input,
    InputDevice,
    InputEvent,
)
from anbox_tw.device.sensors import SENSORS, SensorKind, Sensors, SensorValues

__all__ = [
    "SENSORS",
    "BadValue",
    "Battery",
    "BatteryHealth",
    "BatteryState",
    "BatteryStatus",
    "Change",
    "Device",
    "DeviceError",
    "Display",
    "DisplayState",
    "Fingerprint",
    "FingerprintState",
    "Fix",
    "Input",
    "InputDevice",
    "InputEvent",
    "Location",
    "Network",
    "NetworkState",
    "Observer",
    "Part",
    "SensorDisabled",
    "SensorKind",
    "SensorValues",
    "Sensors",
    "UnknownName",
]
