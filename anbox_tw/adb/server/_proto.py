"""The few protobuf messages that adb's server sends (AOSP ``proto/devices.proto``, ``adb_host.proto``). No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["DeviceEntry", "device_list", "device_list_text", "embedded", "message"]

STATES = {
    "connecting": 1,
    "authorizing": 2,
    "unauthorized": 3,
    "no permissions": 4,
    "detached": 5,
    "offline": 6,
    "bootloader": 7,
    "device": 8,
    "host": 9,
    "recovery": 10,
    "sideload": 11,
    "rescue": 12,
}
USB, SOCKET = 1, 2

DeviceEntry = dict[str, str | int]
"""serial, state, bus_address, product, model, device, connection_type, transport_id."""

_FIELDS = {
    "serial": 1,
    "state": 2,
    "bus_address": 3,
    "product": 4,
    "model": 5,
    "device": 6,
    "connection_type": 7,
    "negotiated_speed": 8,
    "max_speed": 9,
    "transport_id": 10,
}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(fields: Iterable[tuple[int, str | bytes | int | bool]], *, explicit: bool = False) -> bytes:
    """A message.

    Args:
        fields: numbers and values.
        explicit: write what is zero or empty too; otherwise it is left out, as proto3 does.
    """
    out = bytearray()
    for number, value in fields:
        if not value and not explicit:
            continue
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode("utf-8", "replace") if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("no varint")


def embedded(data: bytes, number: int) -> Iterator[bytes]:
    """The values of a field of bytes, text or messages; ends where the data is no message."""
    at = 0
    skip = {1: 8, 5: 4}
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            kind = tag & 7
            if kind == 2:
                size, at = _read_varint(data, at)
                if size > len(data) - at:
                    return
                if tag >> 3 == number:
                    yield data[at : at + size]
                at += size
            elif kind == 0:
                _, at = _read_varint(data, at)
            elif kind in skip:
                at += skip[kind]
            else:
                return
    except ValueError:
        return


def device_list(entries: Iterable[DeviceEntry]) -> bytes:
    """``Devices`` in binary."""
    out = bytearray()
    for entry in entries:
        inner = message((_FIELDS[name], entry.get(name, 0)) for name in _FIELDS)
        out += _varint(1 << 3 | 2) + _varint(len(inner)) + inner
    return bytes(out)


def device_list_text(entries: Iterable[DeviceEntry]) -> str:
    """``Devices`` in protobuf's text form."""
    names = {number: name.upper().replace(" ", "") for name, number in STATES.items()}
    lines = []
    for entry in entries:
        lines.append("device {")
        for name in _FIELDS:
            value = entry.get(name, 0)
            if not value:
                continue
            if name == "state":
                text = names[int(value)]
            elif name == "connection_type":
                text = "USB" if value == USB else "SOCKET"
            elif isinstance(value, int):
                text = str(value)
            else:
                text = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
            lines.append(f"  {name}: {text}")
        lines.append("}")
    return "".join(line + "\n" for line in lines)
