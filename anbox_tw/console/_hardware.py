"""``geo``, ``sensor``, ``power``, ``finger``, ``network``, ``rotate``: what the guest measures."""

from __future__ import annotations

import errno
import math
import os
import re

from anbox_tw.console._text import c_integer, numbers
from anbox_tw.console._tree import Command, Ko, Lines
from anbox_tw.device import (
    SENSORS,
    BadValue,
    BatteryHealth,
    BatteryStatus,
    Fix,
    SensorDisabled,
    UnknownName,
)
from anbox_tw.device.network import DELAYS, SPEEDS
from anbox_tw.interfaces import IConsoleHost

__all__ = ["FINGER", "GEO", "NETWORK", "POWER", "ROTATE", "SENSOR"]

KNOT_M_PER_S = 1852 / 3600

_STATUS_NAMES = {
    BatteryStatus.UNKNOWN: "Unknown",
    BatteryStatus.CHARGING: "Charging",
    BatteryStatus.DISCHARGING: "Discharging",
    BatteryStatus.NOT_CHARGING: "Not charging",
    BatteryStatus.FULL: "Full",
}

_HEALTH_NAMES = {
    BatteryHealth.UNKNOWN: "Unknown",
    BatteryHealth.GOOD: "Good",
    BatteryHealth.OVERHEAT: "Overheat",
    BatteryHealth.DEAD: "Dead",
    BatteryHealth.OVERVOLTAGE: "Overvoltage",
    BatteryHealth.FAILURE: "Unspecified failure",
}

# -- geo --


def _nmea(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("NMEA sentence missing, try 'help geo nmea'")
    try:
        host.device.location.push_sentence(text)
    except BadValue as error:
        raise Ko(error.cause) from None


def _fix(host: IConsoleHost, text: str) -> None:
    given = numbers(text, 5)
    if len(given) < 2:
        raise Ko("not enough arguments: see 'help geo fix' for details")
    longitude, latitude = given[:2]
    if not -180 <= longitude <= 180:
        raise Ko("invalid longitude value. Should be in [-180,+180] range")
    if not -90 <= latitude <= 90:
        raise Ko("invalid latitude value. Should be in [-90,+90] range")
    satellites = given[3] if len(given) > 3 else 1
    if not 1 <= satellites <= 12 or satellites != int(satellites):
        raise Ko("invalid number of satellites. Must be an integer between 1 and 12")
    try:
        fix = Fix(
            latitude=latitude,
            longitude=longitude,
            altitude=given[2] if len(given) > 2 else 0.0,
            satellites=int(satellites),
            speed=given[4] * KNOT_M_PER_S if len(given) > 4 else 0.0,
        )
    except ValueError as error:
        raise Ko(str(error)) from None
    host.device.location.set_fix(fix)


# -- sensor --


def _sensor_status(host: IConsoleHost, text: str) -> Lines:
    sensors = host.device.sensors
    return [f"{name}: {'enabled' if sensors.enabled(name) else 'disabled'}." for name in SENSORS]


def _sensor_values(host: IConsoleHost, name: str) -> tuple[float, ...]:
    try:
        values: tuple[float, ...] = host.device.sensors.get(name)
        return values
    except SensorDisabled:
        raise Ko(f"'{name}' sensor is disabled.") from None
    except UnknownName:
        raise Ko(f"unknown sensor name: {name}, run 'sensor status' to get available sensors.") from None


def _sensor_get(host: IConsoleHost, text: str) -> Lines:
    if not text.strip():
        raise Ko('Usage: "get <sensorname>"')
    name = text.split(maxsplit=1)[0]
    return [f"{name} = {':'.join(f'{value:g}' for value in _sensor_values(host, name))}"]


def _sensor_set(host: IConsoleHost, text: str) -> None:
    usage = Ko('Usage: "set <sensorname> <value-a>[:<value-b>[:<value-c>]]"')
    words = text.split()
    if len(words) < 2:
        raise usage
    known = len(_sensor_values(host, words[0]))
    values: list[float | None] = []
    for piece in words[1].split(":")[:3]:
        try:
            values.append(float(piece) if piece else None)
        except ValueError:
            raise usage from None
        if values[-1] is not None and not math.isfinite(values[-1]):
            raise usage
    # more values than it has are ignored, as in the emulator
    host.device.sensors.set(words[0], values[:known])


# -- power --


def _display(host: IConsoleHost, text: str) -> Lines:
    state = host.device.battery.state
    return [
        f"AC: {'online' if state.ac else 'offline'}",
        f"status: {_STATUS_NAMES[state.status]}",
        f"health: {_HEALTH_NAMES[state.health]}",
        f"present: {'true' if state.present else 'false'}",
        f"capacity: {state.capacity}",
    ]


def _ac(host: IConsoleHost, text: str) -> None:
    if text.lower() not in ("on", "off"):
        raise Ko('Usage: "ac on" or "ac off"')
    host.device.battery.update(ac=text.lower() == "on")


def _present(host: IConsoleHost, text: str) -> None:
    if text.lower() not in ("true", "false"):
        raise Ko('Usage: "present true" or "present false"')
    host.device.battery.update(present=text.lower() == "true")


def _battery_status(host: IConsoleHost, text: str) -> None:
    try:
        host.device.battery.update(status=text)
    except BadValue:
        raise Ko('Usage: "status unknown|charging|discharging|not-charging|full"') from None


def _health(host: IConsoleHost, text: str) -> None:
    try:
        host.device.battery.update(health=text)
    except BadValue:
        raise Ko('Usage: "health unknown|good|overheat|dead|overvoltage|failure"') from None


def _capacity(host: IConsoleHost, text: str) -> None:
    match = re.match(r"[+-]?\d{1,9}", text.strip(), re.ASCII)
    if match is None or not 0 <= int(match[0]) <= 100:
        raise Ko('Usage: "capacity <percentage>"')
    host.device.battery.update(capacity=int(match[0]))


# -- finger --


def _touch(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing fingerid")
    finger = c_integer(text)
    try:
        if finger is None:
            raise BadValue("no number")
        host.device.fingerprint.touch(finger)
    except BadValue:
        raise Ko("invalid fingerid") from None


def _remove(host: IConsoleHost, text: str) -> None:
    host.device.fingerprint.remove()


# -- network --


def _network_status(host: IConsoleHost, text: str) -> Lines:
    state = host.device.network.state
    return [
        "Current network status:",
        f"  download speed:   {state.download:8d} bits/s ({state.download / 8192:.1f} KB/s)",
        f"  upload speed:     {state.upload:8d} bits/s ({state.upload / 8192:.1f} KB/s)",
        f"  minimum latency:  {state.min_delay} ms",
        f"  maximum latency:  {state.max_delay} ms",
    ]


def _speed(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing <speed> argument, see 'help network speed'")
    try:
        host.device.network.set_speed(text)
    except BadValue:
        raise Ko("invalid <speed> argument, see 'help network speed' for valid values") from None


def _delay(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing <delay> argument, see 'help network delay'")
    try:
        host.device.network.set_delay(text)
    except BadValue:
        raise Ko("invalid <delay> argument, see 'help network delay' for valid values") from None


def _capture(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing <file> argument, see 'help network capture start'")
    # The packets are the kernel's here: tcpdump sees them on the container's link.
    raise Ko(f"could not start capture: {os.strerror(errno.EOPNOTSUPP)}")


def _end_capture(host: IConsoleHost, text: str) -> None:
    """There is none, which is what was asked for."""


def _rotate(host: IConsoleHost, text: str) -> None:
    display = host.device.display
    display.update(rotation=(display.state.rotation + 1) % 4)


GEO = Command(
    "geo",
    "Geo-location commands",
    ("where the guest is, and what its GPS receiver says",),
    commands=(
        Command(
            "nmea",
            "send a GPS NMEA sentence",
            ("'geo nmea <sentence>' gives the guest an NMEA 0183 sentence as it is; it reads GGA and RMC",),
            _nmea,
        ),
        Command(
            "fix",
            "send a simple GPS fix",
            (
                "'geo fix <longitude> <latitude> [<altitude> [<satellites> [<velocity>]]]' is where the guest is from now on",
                "",
                "  <longitude>   degrees, east positive",
                "  <latitude>    degrees, north positive",
                "  <altitude>    metres above the sea",
                "  <satellites>  in use, 1 to 12",
                "  <velocity>    knots",
                "",
            ),
            _fix,
        ),
    ),
)

SENSOR = Command(
    "sensor",
    "manage emulator sensors",
    ("what the guest's sensors measure",),
    commands=(
        Command(
            "status",
            "list all sensors and their status",
            ("'sensor status' lists all sensors, and whether the guest has them",),
            _sensor_status,
        ),
        Command(
            "get",
            "get sensor values",
            ("'sensor get <sensorname>' shows the values of a sensor",),
            _sensor_get,
        ),
        Command(
            "set",
            "set sensor values",
            (
                "'sensor set <sensorname> <value-a>[:<value-b>[:<value-c>]]' sets the values of a sensor",
                "a value that is left out stays as it is",
            ),
            _sensor_set,
        ),
    ),
)

POWER = Command(
    "power",
    "power related commands",
    ("battery and charger",),
    commands=(
        Command(
            "display",
            "display battery and charger state",
            ("'power display' shows battery and charger",),
            _display,
        ),
        Command("ac", "set AC charging state", ("'power ac on|off' plugs the charger in or out",), _ac),
        Command(
            "status",
            "set battery status",
            (
                "'power status unknown|charging|discharging|not-charging|full' sets what happens to the charge",
            ),
            _battery_status,
        ),
        Command(
            "present",
            "set battery present state",
            ("'power present true|false' says whether there is a battery",),
            _present,
        ),
        Command(
            "health",
            "set battery health state",
            ("'power health unknown|good|overheat|dead|overvoltage|failure' says how well it is",),
            _health,
        ),
        Command(
            "capacity",
            "set battery capacity state",
            ("'power capacity <percentage>' sets the charge, 0 to 100",),
            _capacity,
        ),
    ),
)

FINGER = Command(
    "finger",
    "manage emulator finger print",
    ("the fingerprint sensor",),
    commands=(
        Command(
            "touch",
            "touch finger print sensor with <fingerid>",
            ("'finger touch <fingerid>' puts a finger on the sensor, by its number from 1",),
            _touch,
        ),
        Command(
            "remove",
            "remove finger from the fingerprint sensor",
            ("'finger remove' takes it away",),
            _remove,
        ),
    ),
)

NETWORK = Command(
    "network",
    "manage network settings",
    ("how fast the guest's network is meant to be",),
    commands=(
        Command(
            "status", "dump network status", ("'network status' shows speeds and latencies",), _network_status
        ),
        Command(
            "speed",
            "change network speed",
            (
                "'network speed <speed>' sets the speed; <speed> is one of:",
                "",
                *(
                    f"  {name:<8} {up} up, {down} down, bits/s (0: no limit)"
                    for name, (up, down) in SPEEDS.items()
                ),
                f"  {'<num>':<8} kilobits/s, both ways",
                f"  {'<up>:<down>':<8} kilobits/s, each way",
            ),
            _speed,
        ),
        Command(
            "delay",
            "change network latency",
            (
                "'network delay <latency>' sets the latency; <latency> is one of:",
                "",
                *(f"  {name:<8} {low} to {high} ms" for name, (low, high) in DELAYS.items()),
                f"  {'<num>':<8} milliseconds",
                f"  {'<min>:<max>':<8} milliseconds",
            ),
            _delay,
        ),
        Command(
            "capture",
            "dump network packets to file",
            ("packets are captured with tcpdump on the container's link, not here",),
            commands=(
                Command(
                    "start",
                    "start network capture",
                    ("'network capture start <file>' is refused: use tcpdump on the container's link",),
                    _capture,
                ),
                Command(
                    "stop", "stop network capture", ("'network capture stop' does nothing",), _end_capture
                ),
            ),
        ),
    ),
)

ROTATE = Command("rotate", "rotate the screen clockwise by 90 degrees", handler=_rotate)
