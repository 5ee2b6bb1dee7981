"""The device model: what a container's hardware is at this moment, with no I/O and no guest needed.

One `Device` holds the parts (location, sensors, battery, network, display, ...). Everything that shows or changes the
device is a view of it: the qemu pipe's services, the emulator console, D-Bus, the command line, scenario files.
"""

from __future__ import annotations

from anbox_tw.device.calls import Call, CallDirection, Calls, CallsState, CallState
from anbox_tw.device.errors import BadValue, DeviceError, Refused, SensorDisabled, UnknownName
from anbox_tw.device.location import Fix, Location
from anbox_tw.device.messages import Message, Messages, MessagesState
from anbox_tw.device.model import Device
from anbox_tw.device.network import Network, NetworkState
from anbox_tw.device.part import Change, Observer, Part
from anbox_tw.device.phone import DataContext, Operator, Phone, PhoneState, Registration, SimStatus, UssdState
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
    "Call",
    "CallDirection",
    "CallState",
    "Calls",
    "CallsState",
    "Change",
    "DataContext",
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
    "Message",
    "Messages",
    "MessagesState",
    "Network",
    "NetworkState",
    "Observer",
    "Operator",
    "Part",
    "Phone",
    "PhoneState",
    "Refused",
    "Registration",
    "SensorDisabled",
    "SensorKind",
    "SensorValues",
    "Sensors",
    "SimStatus",
    "UnknownName",
    "UssdState",
]
