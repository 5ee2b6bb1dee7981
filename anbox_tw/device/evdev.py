"""The wire format of the sockets in ``/dev/input``: an Info block when a reader comes, then events.

Both are C structures of a 64-bit little-endian guest (``src/anbox/input/device.cpp`` of the original, and the change to
Android's EventHub that reads them). Offsets, sizes and examples: ``protocols/input/README.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import attrs

from anbox_tw.device.errors import BadValue
from anbox_tw.device.screen import InputDevice, InputEvent

__all__ = [
    "ABS_MT_POSITION_X",
    "ABS_MT_POSITION_Y",
    "ABS_MT_SLOT",
    "ABS_MT_TRACKING_ID",
    "BTN_LEFT",
    "EVENT_BYTES",
    "EV_ABS",
    "EV_KEY",
    "EV_REL",
    "EV_SYN",
    "INFO_BYTES",
    "MAX_SLOTS",
    "SYN",
    "SYN_DROPPED",
    "SYN_REPORT",
    "DeviceInfo",
    "EventDecoder",
    "StampedEvent",
    "encode_events",
    "info_for",
]

EV_SYN, EV_KEY, EV_REL, EV_ABS = 0, 1, 2, 3
SYN_REPORT, SYN_DROPPED = 0, 3
BTN_LEFT, BTN_RIGHT, BTN_MIDDLE = 0x110, 0x111, 0x112
BTN_MISC, KEY_OK = 0x100, 0x160
REL_X, REL_Y, REL_HWHEEL, REL_WHEEL = 0, 1, 6, 8
ABS_X, ABS_Y = 0, 1
ABS_MT_SLOT, ABS_MT_TOUCH_MAJOR, ABS_MT_TOUCH_MINOR = 0x2F, 0x30, 0x31
ABS_MT_POSITION_X, ABS_MT_POSITION_Y, ABS_MT_TRACKING_ID = 0x35, 0x36, 0x39
INPUT_PROP_POINTER, INPUT_PROP_DIRECT = 0, 1

BUS_VIRTUAL = 6

MAX_SLOTS = 10
"""Fingers that the touch screen tells apart, as in the original."""

SYN = InputEvent(EV_SYN, SYN_REPORT, 0)
"""Ends a batch."""

_EVENT = struct.Struct("<QQHHi")
EVENT_BYTES = 24
_INFO = struct.Struct("<80si4H80s80s96s8s2s2s2s16s4s2x64I64I")
INFO_BYTES = 896
assert (_EVENT.size, _INFO.size) == (EVENT_BYTES, INFO_BYTES)

_TEXT_BYTES = 79  # and a NUL
_AXES = 64

MAX_BATCH_EVENTS = 1024
"""Events that one injection may have; ten fingers with everything that can be said of them are 71."""


def _bits(numbers: Iterable[int], size: int) -> bytes:
    field = bytearray(size)
    for number in numbers:
        if not 0 <= number < size * 8:
            raise BadValue(f"bit {number} is not among {size * 8}")
        field[number // 8] |= 1 << number % 8
    return bytes(field)


def _numbers(field: bytes) -> frozenset[int]:
    return frozenset(
        place * 8 + bit for place, byte in enumerate(field) if byte for bit in range(8) if byte >> bit & 1
    )


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) > _TEXT_BYTES or b"\0" in data:
        raise BadValue(f"{value[:40]!r} does not fit into {_TEXT_BYTES} bytes")
    return data


def _axes(values: Mapping[int, int]) -> list[int]:
    return [values.get(axis, 0) for axis in range(_AXES)]


@attrs.frozen
class DeviceInfo:
    """What a device says of itself: the Info block.

    Attributes:
        name: at most 79 bytes.
        bus: as in ``linux/input.h``; 6 is BUS_VIRTUAL.
        vendor: 16 bits.
        product: 16 bits.
        version: 16 bits.
        keys: codes of EV_KEY that it has.
        absolute: codes of EV_ABS.
        relative: codes of EV_REL.
        switches: codes of EV_SW.
        leds: codes of EV_LED.
        effects: codes of EV_FF.
        properties: INPUT_PROP_*.
        maximum: of absolute axes, by code; 0 where it is not named.
        minimum: likewise.
        driver_version: 1 in the original.
        location: physical location, at most 79 bytes.
        unique: unique id, at most 79 bytes.
    """

    name: str
    bus: int = BUS_VIRTUAL
    vendor: int = 0
    product: int = 0
    version: int = 0
    keys: frozenset[int] = frozenset()
    absolute: frozenset[int] = frozenset()
    relative: frozenset[int] = frozenset()
    switches: frozenset[int] = frozenset()
    leds: frozenset[int] = frozenset()
    effects: frozenset[int] = frozenset()
    properties: frozenset[int] = frozenset()
    maximum: Mapping[int, int] = attrs.field(factory=dict)
    minimum: Mapping[int, int] = attrs.field(factory=dict)
    driver_version: int = 1
    location: str = "none"
    unique: str = ""

    def encode(self) -> bytes:
        """The block, `INFO_BYTES` long.

        Raises:
            BadValue: a text is too long, or a bit or number does not fit.
        """
        try:
            return _INFO.pack(
                _text(self.name),
                self.driver_version,
                *(self.bus, self.vendor, self.product, self.version),
                _text(self.location),
                _text(self.unique),
                _bits(self.keys, 96),
                _bits(self.absolute, 8),
                _bits(self.relative, 2),
                _bits(self.switches, 2),
                _bits(self.leds, 2),
                _bits(self.effects, 16),
                _bits(self.properties, 4),
                *_axes(self.maximum),
                *_axes(self.minimum),
            )
        except struct.error as error:
            raise BadValue(f"the info of {self.name!r} does not fit: {error}") from error

    @classmethod
    def decode(cls, data: bytes) -> DeviceInfo:
        """Read a block.

        Raises:
            BadValue: it has not `INFO_BYTES`.
        """
        if len(data) != INFO_BYTES:
            raise BadValue(f"an info block has {INFO_BYTES} bytes, not {len(data)}")
        (name, driver, bus, vendor, product, version, location, unique, *rest) = _INFO.unpack(data)
        keys, absolute, relative, switches, leds, effects, properties = map(_numbers, rest[:7])
        maximum, minimum = rest[7 : 7 + _AXES], rest[7 + _AXES :]
        return cls(
            name=_c_text(name),
            bus=bus,
            vendor=vendor,
            product=product,
            version=version,
            keys=keys,
            absolute=absolute,
            relative=relative,
            switches=switches,
            leds=leds,
            effects=effects,
            properties=properties,
            maximum={axis: value for axis, value in enumerate(maximum) if value},
            minimum={axis: value for axis, value in enumerate(minimum) if value},
            driver_version=driver,
            location=_c_text(location),
            unique=_c_text(unique),
        )


def _c_text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


_TOUCH_MAXIMUM = {
    ABS_MT_SLOT: MAX_SLOTS,
    ABS_MT_TOUCH_MAJOR: 127,
    ABS_MT_TOUCH_MINOR: 127,
    ABS_MT_TRACKING_ID: 10,
}

_FEATURES = {
    InputDevice.POINTER: DeviceInfo(
        "anbox-pointer",
        keys=frozenset({BTN_LEFT}),
        relative=frozenset({REL_X, REL_Y, REL_HWHEEL, REL_WHEEL}),
        properties=frozenset({INPUT_PROP_POINTER}),
    ),
    InputDevice.KEYBOARD: DeviceInfo("anbox-keyboard", keys=frozenset({BTN_MISC, KEY_OK})),
    InputDevice.TOUCH: DeviceInfo(
        "anbox-touch",
        absolute=frozenset({*_TOUCH_MAXIMUM, ABS_MT_POSITION_X, ABS_MT_POSITION_Y}),
        properties=frozenset({INPUT_PROP_DIRECT}),
        maximum=_TOUCH_MAXIMUM,
    ),
}


def info_for(device: InputDevice, width: int, height: int) -> DeviceInfo:
    """The Info of one of the original's three devices.

    Args:
        device: which.
        width: of the display, pixels; the largest X of a touch.
        height: likewise for Y.
    """
    number = device.value + 2  # as the original counts them
    info = attrs.evolve(_FEATURES[device], vendor=number, product=number, version=number)
    if device is not InputDevice.TOUCH:
        return info
    return attrs.evolve(info, maximum={**info.maximum, ABS_MT_POSITION_X: width, ABS_MT_POSITION_Y: height})


def encode_events(events: Sequence[InputEvent], nanoseconds: int) -> bytes:
    """A batch as bytes.

    Args:
        events: in their order.
        nanoseconds: CLOCK_MONOTONIC, for all of them.

    Raises:
        BadValue: a number does not fit.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    try:
        return b"".join(
            _EVENT.pack(seconds, rest // 1000, event.type, event.code, event.value) for event in events
        )
    except struct.error as error:
        raise BadValue(
            f"an input event does not fit: {error}", "16 bits of type and code, 32 of value"
        ) from error


@attrs.frozen
class StampedEvent:
    """An event with its time, microseconds of CLOCK_MONOTONIC."""

    microseconds: int
    event: InputEvent


class EventDecoder:
    """The guest's side of the stream: first the Info, then events; cut at any place.

    Attributes:
        info: None until the whole block is there.
    """

    def __init__(self) -> None:
        self.info: DeviceInfo | None = None
        self._buffer = b""

    def receive_data(self, data: bytes) -> list[StampedEvent]:
        """Take the next bytes; returns the events that are whole now."""
        data = self._buffer + data
        if self.info is None:
            if len(data) < INFO_BYTES:
                self._buffer = data
                return []
            self.info = DeviceInfo.decode(data[:INFO_BYTES])
            data = data[INFO_BYTES:]
        whole = len(data) - len(data) % EVENT_BYTES
        self._buffer = data[whole:]
        return [
            StampedEvent(seconds * 1_000_000 + micro, InputEvent(kind, code, value))
            for seconds, micro, kind, code, value in _EVENT.iter_unpack(data[:whole])
        ]
