"""What is said on ``qemud:camera``: queries, replies, parameters, pixel formats.

From the emulator's ``android/camera/camera-service.c`` and the guest's ``QemuClient.cpp``: a query is ``name[ params]`` and a NUL, with no length;
a reply is eight hexadecimal digits of length and a payload that begins with ``ok`` or ``ko``, followed by a NUL when that is all, else by
``:`` and data. Text data ends in a NUL that counts; frames are bare bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from anbox_tw.qemu.errors import QueryError

__all__ = [
    "FORMATS",
    "MAX_PENDING_BYTES",
    "MAX_QUERY_BYTES",
    "PREVIEW_BYTES_PER_PIXEL",
    "Query",
    "QueryDecoder",
    "fourcc",
    "parse_floats",
    "parse_number",
    "parse_size",
    "reply_data",
    "reply_text",
    "video_bytes",
]

MAX_QUERY_BYTES = 256
"""With its NUL: the guest builds queries in buffers of 256 bytes."""

MAX_PENDING_BYTES = 4096
"""Of queries that came while one is answered; the guest's HAL waits for each answer."""

PREVIEW_BYTES_PER_PIXEL = 4
"""RGB32: red, green, blue, and a byte of 255."""


def fourcc(text: str) -> int:
    """V4L2's number of a pixel format."""
    return int.from_bytes(text.encode("ascii"), "little")


FORMATS = {fourcc(name): name for name in ("YU12", "YV12", "NV12", "NV21")}
"""Number to name of what a guest may ask video in; twelve bits per pixel each."""


def video_bytes(width: int, height: int) -> int:
    """Of one frame in any of `FORMATS`."""
    return width * height * 12 // 8


@dataclass(frozen=True, slots=True)
class Query:
    """One query.

    Attributes:
        name: the first word; empty for an empty query.
        params: the ``token=value`` words behind it; the first of equal tokens counts.
        has_params: whether there was anything behind the name.
    """

    name: str
    params: dict[str, str]
    has_params: bool


class QueryDecoder:
    """Cuts a stream into queries."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            QueryError: more waits than a guest that reads its answers would send.
        """
        self._buffer += data
        if len(self._buffer) > MAX_PENDING_BYTES:
            raise QueryError(f"more than {MAX_PENDING_BYTES} bytes of queries wait for their answers")

    def next_query(self) -> Query | None:
        """The next complete query, or None.

        Raises:
            QueryError: there is no NUL where one must be.
        """
        end = self._buffer.find(b"\0", 0, MAX_QUERY_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_QUERY_BYTES:
                raise QueryError(
                    f"no NUL within {MAX_QUERY_BYTES} bytes of a query that begins {bytes(self._buffer[:32])!r}"
                )
            return None
        text = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 1]
        name, _, rest = text.partition(" ")
        params: dict[str, str] = {}
        for word in rest.split():
            token, _, value = word.partition("=")
            params.setdefault(token, value)
        return Query(name, params, bool(params))


def reply_text(ok: bool, text: str = "") -> bytes:
    """A reply with a message, or none."""
    return reply_data(ok, text.encode("latin-1") + b"\0" if text else b"")


def reply_data(ok: bool, *parts: bytes) -> bytes:
    """A reply with data, in one piece."""
    status = b"ok" if ok else b"ko"
    size = sum(map(len, parts))
    if not size:
        return b"00000003" + status + b"\0"
    return b"".join((b"%08x" % (3 + size), status, b":", *parts))


def parse_number(text: str | None) -> int | None:
    """A decimal number that is not negative, or None for anything else."""
    return int(text) if text and len(text) <= 10 and text.isascii() and text.isdigit() else None


def parse_size(text: str) -> tuple[int, int] | None:
    """``<width>x<height>``, or None for anything else."""
    width, cross, height = text.partition("x")
    first, second = parse_number(width), parse_number(height)
    return (first, second) if cross and first and second else None


def parse_floats(text: str | None, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers with commas between, or None for anything else."""
    words = (text or "").split(",")
    if len(words) != count or any(len(word) > 32 for word in words):
        return None
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None
