"""Packets of shell protocol v2 (AOSP ``shell_protocol.h``): one id byte, a length, data. Pure."""

from __future__ import annotations

from struct import Struct

from anbox_tw.adb._wire import Buffer
from anbox_tw.errors import PeerError

__all__ = [
    "CLOSE_STDIN",
    "EXIT",
    "HEADER_SIZE",
    "STDERR",
    "STDIN",
    "STDOUT",
    "WINDOW_SIZE",
    "ShellReader",
    "encode",
    "encode_window_size",
    "parse_window_size",
]

STDIN = 0
STDOUT = 1
STDERR = 2
EXIT = 3
CLOSE_STDIN = 4
WINDOW_SIZE = 5

_HEADER = Struct("<BI")
HEADER_SIZE = _HEADER.size

_DATA_IDS = frozenset({STDIN, STDOUT, STDERR})
MAX_CONTROL = 4096
"""Largest packet that is not data; a window size has some 20 bytes."""


def encode(kind: int, data: Buffer | memoryview = b"") -> bytes:
    """One packet."""
    return b"".join((_HEADER.pack(kind, len(data)), data))


def encode_window_size(rows: int, columns: int, width: int = 0, height: int = 0) -> bytes:
    """A window size packet; its NUL is counted in the length."""
    return encode(WINDOW_SIZE, b"%dx%d,%dx%d\0" % (rows, columns, width, height))


def parse_window_size(data: Buffer) -> tuple[int, int, int, int] | None:
    """(rows, columns, width, height) in characters and pixels, or None when ``data`` is not that."""
    try:
        cells, pixels = bytes(data).rstrip(b"\0").split(b",")
        rows, columns = map(int, cells.split(b"x"))
        width, height = map(int, pixels.split(b"x"))
    except ValueError:
        return None
    values = (rows, columns, width, height)
    return values if all(0 <= value <= 0xFFFF for value in values) else None


class ShellReader:
    """Cuts a stream into packets; packets of data come out in pieces, as they come in.

    A data packet of no length is not reported. So a hostile length costs nothing.
    """

    def __init__(self) -> None:
        self._head = b""
        self._kind = 0
        self._left = 0
        self._control: bytearray | None = None

    def feed(self, data: Buffer) -> list[tuple[int, Buffer]]:
        """Take the next bytes, cut at any place; (id, data) for each packet or piece of one.

        Raises:
            PeerError: a packet that is not data is too long.
        """
        found: list[tuple[int, Buffer]] = []
        pos, size = 0, len(data)
        while pos < size:
            if not self._left and self._control is None:
                take = min(HEADER_SIZE - len(self._head), size - pos)
                self._head += data[pos : pos + take]
                pos += take
                if len(self._head) < HEADER_SIZE:
                    break
                self._kind, self._left = _HEADER.unpack(self._head)
                self._head = b""
                if self._kind not in _DATA_IDS:
                    if self._left > MAX_CONTROL:
                        raise PeerError(
                            f"shell packet {self._kind} announces {self._left} bytes", code="ANBOX-A010"
                        )
                    self._control = bytearray()
                    self._finish_control(found)
                continue
            take = min(self._left, size - pos)
            piece = data if take == size else data[pos : pos + take]
            self._left -= take
            pos += take
            if self._control is None:
                found.append((self._kind, piece))
            else:
                self._control += piece
                self._finish_control(found)
        return found

    def _finish_control(self, found: list[tuple[int, Buffer]]) -> None:
        if not self._left and self._control is not None:
            found.append((self._kind, bytes(self._control)))
            self._control = None
