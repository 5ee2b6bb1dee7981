"""The ADB packet: a 24-byte header of six little-endian words and a payload.

Everything here is pure: bytes in, packets out. Wire facts are those of AOSP
``packages/modules/adb``: ``protocol.txt``, ``adb.h``, ``types.h`` and ``transport.cpp``.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import adler32

from anbox_tw.errors import PeerError

__all__ = [
    "AUTH",
    "AUTH_RSAPUBLICKEY",
    "AUTH_SIGNATURE",
    "AUTH_TOKEN",
    "CLSE",
    "CNXN",
    "COMMAND_NAMES",
    "HANDSHAKE_PAYLOAD_LIMIT",
    "HEADER_SIZE",
    "MAX_PAYLOAD",
    "MAX_PAYLOAD_V1",
    "OKAY",
    "OPEN",
    "STLS",
    "STLS_VERSION",
    "SYNC",
    "VERSION",
    "VERSION_MIN",
    "VERSION_SKIP_CHECKSUM",
    "WRTE",
    "Buffer",
    "Packet",
    "PacketReader",
    "checksum",
    "command_name",
    "encode_header",
]

Buffer = bytes | bytearray
"""A payload: ``bytes``, or a ``bytearray`` when it was assembled from several reads."""

SYNC = 0x434E5953
CNXN = 0x4E584E43
AUTH = 0x48545541
OPEN = 0x4E45504F
OKAY = 0x59414B4F
CLSE = 0x45534C43
WRTE = 0x45545257
STLS = 0x534C5453

COMMAND_NAMES = {
    SYNC: "SYNC",
    CNXN: "CNXN",
    AUTH: "AUTH",
    OPEN: "OPEN",
    OKAY: "OKAY",
    CLSE: "CLSE",
    WRTE: "WRTE",
    STLS: "STLS",
}

AUTH_TOKEN = 1
AUTH_SIGNATURE = 2
AUTH_RSAPUBLICKEY = 3

STLS_VERSION = 0x01000000
TLS_RECORD = b"\x16\x03"
"""What a TLS ClientHello begins with (RFC 8446, section 5.1); no packet's command does."""
VERSION_MIN = 0x01000000
"""Android 1.6 to 8.1: every packet carries, and every receiver checks, the byte sum."""
VERSION_SKIP_CHECKSUM = 0x01000001
"""Android 9 and later: the sum may be left out."""
VERSION = VERSION_SKIP_CHECKSUM

MAX_PAYLOAD_V1 = 4096
"""Largest payload of Android 1.6 to 6, and of CNXN and AUTH packets in every version."""
MAX_PAYLOAD = 1024 * 1024
"""Largest payload of Android 9 and later (``MAX_PAYLOAD`` in ``adb.h``)."""
HANDSHAKE_PAYLOAD_LIMIT = 64 * 1024
"""What a peer that is not yet accepted may make us hold; real ones stay below 4096."""

HEADER = Struct("<6I")
HEADER_SIZE = HEADER.size

_MASK = 0xFFFFFFFF
_SCRATCH_SIZE = 64 * 1024
"""One read of a stream of small packets."""
_SCRATCH_AFTER_BULK = 4096
"""One read for the header that follows a large payload: little is then copied twice."""
_BULK = 64 * 1024


class Packet(NamedTuple):
    """One packet as received, its header already checked."""

    command: int
    arg0: int
    arg1: int
    payload: Buffer


def command_name(command: int) -> str:
    """The four letters of ``command``, or its hexadecimal value when it is not a known one."""
    return COMMAND_NAMES.get(command) or f"{command:#010x}"


def checksum(data: Buffer | memoryview) -> int:
    """The sum of the bytes of ``data`` modulo 2**32, which old texts call ``crc32``.

    ``adler32`` from zero holds the plain byte sum modulo 65521 in its low half, and 256 bytes
    cannot exceed that: ten times as fast as ``sum``.
    """
    view = memoryview(data)
    total = 0
    for start in range(0, len(view), 256):
        total += adler32(view[start : start + 256], 0) & 0xFFFF
    return total & _MASK


def encode_header(command: int, arg0: int, arg1: int, length: int = 0, check: int = 0) -> bytes:
    """The 24 header bytes; ``check`` is the payload's sum, or 0 where none is asked for."""
    return HEADER.pack(command, arg0, arg1, length, check, command ^ _MASK)


class PacketReader:
    """Cuts a byte stream into packets.

    Two ways in, to be mixed freely: ``feed`` takes bytes that were already read;
    ``get_buffer`` and ``buffer_updated`` let a ``recv_into`` write a payload where it will stay.

    Attributes:
        max_payload: largest ``data_length`` accepted, in bytes; looked at for each header, so a
            caller may change it between two ``next_packet`` calls.
        verify: whether a wrong ``data_check`` is an error; Android 9 and later never look.
    """

    __slots__ = (
        "_after_bulk",
        "_data",
        "_filled",
        "_head",
        "_payload",
        "_pos",
        "_scratch",
        "max_payload",
        "verify",
    )

    def __init__(self, max_payload: int = HANDSHAKE_PAYLOAD_LIMIT, *, verify: bool = False) -> None:
        self.max_payload = max_payload
        self.verify = verify
        self._data: bytes = b""
        self._pos = 0
        self._head: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._payload: bytearray | None = None
        self._filled = 0
        self._scratch: memoryview | None = None
        self._after_bulk = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream, cut at any place."""
        if self._pos < len(self._data):
            self._data = self._data[self._pos :] + data
        else:
            self._data = data
        self._pos = 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes of the stream may be written; call ``buffer_updated`` after.

        Only to be used when ``next_packet`` has returned None since the last bytes came in.
        """
        if self._payload is not None:
            return memoryview(self._payload)[self._filled :]
        if self._scratch is None:
            self._scratch = memoryview(bytearray(_SCRATCH_SIZE))
        return self._scratch[:_SCRATCH_AFTER_BULK] if self._after_bulk else self._scratch

    def buffer_updated(self, count: int) -> None:
        """``count`` bytes were written at the start of what ``get_buffer`` returned."""
        if self._payload is not None:
            self._filled += count
        else:
            assert self._scratch is not None
            self.feed(bytes(self._scratch[:count]))

    def next_packet(self) -> Packet | None:
        """The next whole packet, or None when more bytes are needed.

        Raises:
            PeerError: the header is not one, or announces more than ``max_payload`` bytes, or
                (with ``verify``) the payload does not have the sum the header says.
        """
        payload = self._payload
        if payload is None:
            data, pos = self._data, self._pos
            if len(data) - pos < HEADER_SIZE:
                return None
            command, arg0, arg1, length, check, magic = HEADER.unpack_from(data, pos)
            if magic != command ^ _MASK:
                raise PeerError(
                    f"not an ADB packet: command {command:#010x} with magic {magic:#010x}",
                    "check that the other end speaks the ADB transport protocol",
                    code="ANBOX-A001",
                )
            if length > self.max_payload:
                raise PeerError(
                    f"{command_name(command)} announces {length} payload bytes, at most "
                    f"{self.max_payload} are allowed here",
                    code="ANBOX-A002",
                )
            pos += HEADER_SIZE
            end = pos + length
            if end <= len(data):
                self._pos = end
                self._after_bulk = False
                return self._checked(command, arg0, arg1, check, data[pos:end])
            payload = self._payload = bytearray(length)
            self._head = (command, arg0, arg1, check)
            self._filled = 0
            self._pos = pos
        self._fill(payload)
        if self._filled < len(payload):
            return None
        self._payload = None
        self._after_bulk = len(payload) >= _BULK
        command, arg0, arg1, check = self._head
        return self._checked(command, arg0, arg1, check, payload)

    def begins_with(self, prefix: bytes) -> bool:
        """Whether the bytes that are next to be parsed begin with ``prefix``."""
        return self._payload is None and self._data.startswith(prefix, self._pos)

    def take_rest(self) -> bytes:
        """The bytes read but not parsed, which belong to another protocol (TLS after STLS)."""
        rest = self._data[self._pos :]
        self._data = b""
        self._pos = 0
        return rest

    def _fill(self, payload: bytearray) -> None:
        count = min(len(payload) - self._filled, len(self._data) - self._pos)
        if count:
            payload[self._filled : self._filled + count] = memoryview(self._data)[
                self._pos : self._pos + count
            ]
            self._filled += count
            self._pos += count

    def _checked(self, command: int, arg0: int, arg1: int, check: int, payload: Buffer) -> Packet:
        if self.verify and checksum(payload) != check:
            raise PeerError(
                f"{command_name(command)} has data_check {check:#x}, its payload sums to {checksum(payload):#x}",
                code="ANBOX-A003",
            )
        return Packet(command, arg0, arg1, payload)
