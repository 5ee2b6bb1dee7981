"""Messages on the property socket, ``/dev/socket/property_service``.

Source: ``prop_msg`` in bionic's ``sys/_system_properties.h`` at android-7.0.0_r1 (``PROP_MSG_SETPROP``), the same
header at android-8.0.0_r1 (``PROP_MSG_SETPROP2``, with an answer). Reading has no message on Android, where
programs map ``/dev/__properties__``; ``GET`` and ``LIST`` are ours.

All numbers are 32 bits, little-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from attrs import frozen

from anbox_tw.errors import PeerError

__all__ = [
    "MAX_NAME",
    "MAX_VALUE",
    "PropertyReader",
    "Request",
    "Status",
    "decode_answer",
    "encode_answer",
    "encode_get",
    "encode_list",
    "encode_set",
    "encode_set2",
    "is_legal_name",
]

MAX_NAME = 31
"""``PROP_NAME_MAX`` without its NUL."""

MAX_VALUE = 91
"""``PROP_VALUE_MAX`` without its NUL."""

MAX_FIELD = 4096
"""Longest text in a message with lengths: refused before it is stored."""

SETPROP = 1
SETPROP2 = 0x00020001
GET = 0x61780001
LIST = 0x61780002

_OLD = struct.Struct("<I32s92s")
_U32 = struct.Struct("<I")


class Status(IntEnum):
    """``PROP_SUCCESS``, ``PROP_ERROR_*`` of bionic."""

    SUCCESS = 0
    READ_CMD = 0x4
    READ_DATA = 0x8
    READ_ONLY_PROPERTY = 0xB
    INVALID_NAME = 0x10
    INVALID_VALUE = 0x14
    PERMISSION_DENIED = 0x18
    INVALID_CMD = 0x1B
    HANDLE_CONTROL_MESSAGE = 0x20
    SET_FAILED = 0x24


@frozen
class Request:
    """One message: the command's number, and the texts that came with it."""

    command: int
    name: str = ""
    value: str = ""

    @property
    def wants_answer(self) -> bool:
        """Whether the peer reads a status (``SETPROP`` only waits for the end of the connection)."""
        return self.command != SETPROP


def is_legal_name(name: str) -> bool:
    """``is_legal_property_name`` of init: letters, digits, ``. - _``; no dot first, last or doubled."""
    return (
        0 < len(name) <= MAX_NAME
        and name[0] != "."
        and name[-1] != "."
        and ".." not in name
        and all(character.isascii() and (character.isalnum() or character in "._-") for character in name)
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _field(text: str) -> bytes:
    data = _bytes(text)
    return _U32.pack(len(data)) + data


def encode_set(name: str, value: str) -> bytes:
    """The 128 bytes of 7.0.

    Raises:
        ValueError: a text does not fit or holds NUL.
    """
    for text, limit in ((name, MAX_NAME), (value, MAX_VALUE)):
        if len(_bytes(text)) > limit or "\0" in text:
            raise ValueError(f"{text!r} does not fit in {limit} bytes")
    return _OLD.pack(SETPROP, _bytes(name), _bytes(value))


def encode_set2(name: str, value: str) -> bytes:
    """The message of 8.0, which is answered with a status."""
    return _U32.pack(SETPROP2) + _field(name) + _field(value)


def encode_get(name: str) -> bytes:
    """Ask for one value; answered with a status and the text."""
    return _U32.pack(GET) + _field(name)


def encode_list() -> bytes:
    """Ask for all; answered with a status, a count, and that many names and values."""
    return _U32.pack(LIST)


def encode_answer(status: Status, *texts: str) -> bytes:
    """A status, and texts with their lengths."""
    return _U32.pack(status) + b"".join(_field(text) for text in texts)


def decode_answer(data: bytes) -> tuple[int, list[str]]:
    """The status and the texts of a whole answer.

    Raises:
        PeerError: it is cut off.
    """
    if len(data) < 4:
        raise PeerError("the property service closed the connection without an answer")
    status = _U32.unpack_from(data)[0]
    texts: list[str] = []
    position = 4
    while position < len(data):
        if position + 4 > len(data):
            raise PeerError("the property service's answer is cut off")
        size = _U32.unpack_from(data, position)[0]
        position += 4
        if position + size > len(data):
            raise PeerError("the property service's answer is cut off")
        texts.append(_text(data[position : position + size]))
        position += size
    return status, texts


class PropertyReader:
    """Collects one request from bytes cut at any place; each connection carries one."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Request | None:
        """Take bytes.

        Returns:
            The request once it is whole; bytes behind it are ignored, as on Android.

        Raises:
            PeerError: an unknown command, or a text longer than any property.
        """
        self._buffer += data
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        command = _U32.unpack_from(buffer)[0]
        if command == SETPROP:
            if len(buffer) < _OLD.size:
                return None
            _, name, value = _OLD.unpack_from(buffer)
            # init puts a NUL on the last byte of each and reads up to the first
            return Request(
                SETPROP, _text(name[:MAX_NAME].split(b"\0")[0]), _text(value[:MAX_VALUE].split(b"\0")[0])
            )
        count = {SETPROP2: 2, GET: 1, LIST: 0}.get(command)
        if count is None:
            raise PeerError(f"unknown property command {command:#x}")
        texts: list[str] = []
        position = 4
        for _ in range(count):
            if len(buffer) < position + 4:
                return None
            size = _U32.unpack_from(buffer, position)[0]
            if size > MAX_FIELD:
                raise PeerError(f"a property text of {size} bytes, at most {MAX_FIELD} are read")
            position += 4
            if len(buffer) < position + size:
                return None
            texts.append(_text(buffer[position : position + size]))
            position += size
        return Request(command, *texts)
