"""PDUs of short messages: 3GPP TS 23.040 section 9, as a modem gives and takes them (with the service centre in front).

SMS-DELIVER and SMS-STATUS-REPORT go to the guest, SMS-SUBMIT comes from it; each can be made and read here, for the guest's
side and the tests. Long texts are split into parts that a user data header joins (9.2.3.24.1 and .8).
"""

from __future__ import annotations

import calendar
import time
from typing import Any

import attrs

from anbox_tw.errors import PeerError, PipeError
from anbox_tw.qemu.modem._gsm7 import decode_septets, encode_septets, pack, unpack

__all__ = ["Deliver", "Part", "PduError", "StatusReport", "Submit", "parse_pdu", "split_text"]

MAX_USER_DATA_BYTES = 140

MAX_SEPTETS = 160

_CONCATENATION = 6
"""Octets of the header of a part: its length, then 00 03 reference, total, number."""

MAX_PARTS = 255

_DIGITS = "0123456789*#abc"

_TYPE_INTERNATIONAL = 0x91
_TYPE_UNKNOWN = 0x81
_TYPE_ALPHANUMERIC = 0xD0


class PduError(PipeError, PeerError):
    """A PDU that cannot be read."""

    default_code = "ANBOX-Q009"


@attrs.frozen
class Part:
    """User data of one PDU.

    Attributes:
        text: what it says; for 8-bit data, each byte as a character.
        reference: of the message that it is a part of; None is a message in one part.
        total: parts of the message.
        number: of this part, from 1.
        coding: ``gsm7``, ``ucs2`` or ``8bit``.
    """

    text: str
    reference: int | None = None
    total: int = 1
    number: int = 1
    coding: str = "gsm7"


def split_text(text: str, reference: int) -> list[Part]:
    """The parts that ``text`` needs: GSM 7 bit if it has all characters, else UCS-2 (surrogate pairs are not torn).

    Args:
        text: at most `MAX_PARTS` parts of it.
        reference: 0 to 255, of a message that needs several parts.

    Raises:
        ValueError: the text is too long.
    """
    coded = encode_septets(text)
    if coded is not None:
        coding, sizes = "gsm7", [len(codes) for codes in coded]
        whole, part = MAX_SEPTETS, MAX_SEPTETS - 7
    else:
        coding, sizes = "ucs2", [1 + (ord(character) > 0xFFFF) for character in text]
        whole, part = MAX_USER_DATA_BYTES // 2, (MAX_USER_DATA_BYTES - _CONCATENATION) // 2
    if sum(sizes) <= whole:
        return [Part(text, coding=coding)]
    pieces: list[str] = []
    start = used = 0
    for index, size in enumerate(sizes):
        if used + size > part:
            pieces.append(text[start:index])
            start, used = index, 0
        used += size
    pieces.append(text[start:])
    if len(pieces) > MAX_PARTS:
        raise ValueError(f"a message has at most {MAX_PARTS} parts, this one needs {len(pieces)}")
    return [Part(piece, reference, len(pieces), number, coding) for number, piece in enumerate(pieces, 1)]


@attrs.frozen
class Deliver:
    """SMS-DELIVER: the network to the phone.

    Attributes:
        sender: number, or a name.
        part: what it says.
        time: when the service centre got it, seconds since 1970.
        zone: of that time, quarters of an hour east of UTC.
        more: whether further messages wait.
        status_report: whether the sender wants to know (TP-SRI).
        service_centre: its number, or empty.
    """

    sender: str
    part: Part
    time: float = 0.0
    zone: int = 0
    more: bool = False
    status_report: bool = False
    service_centre: str = ""

    def encode(self) -> bytes:
        """The PDU."""
        coded, octets = _encode_user_data(self.part)
        first = (
            0x00
            | (0 if self.more else 0x04)
            | (0x20 if self.status_report else 0)
            | (0x40 if self.part.reference is not None else 0)
        )
        return (
            _encode_centre(self.service_centre)
            + bytes([first])
            + _encode_address(self.sender)
            + bytes([0, coded])
            + _encode_time(self.time, self.zone)
            + octets
        )


@attrs.frozen
class Submit:
    """SMS-SUBMIT: the phone to the network.

    Attributes:
        receiver: number.
        part: what it says.
        reference: 0 to 255, the phone's number for it (TP-MR).
        status_report: whether a report of its delivery is wanted (TP-SRR).
        reject_duplicates: TP-RD.
        reply_path: TP-RP.
        validity: minutes, or None for the network's; absolute and enhanced periods are read over.
        service_centre: its number, or empty for the phone's.
    """

    receiver: str
    part: Part
    reference: int = 0
    status_report: bool = False
    reject_duplicates: bool = False
    reply_path: bool = False
    validity: int | None = None
    service_centre: str = ""

    def encode(self) -> bytes:
        """The PDU."""
        coded, octets = _encode_user_data(self.part)
        first = (
            0x01
            | (0x04 if self.reject_duplicates else 0)
            | (0x10 if self.validity is not None else 0)
            | (0x20 if self.status_report else 0)
            | (0x40 if self.part.reference is not None else 0)
            | (0x80 if self.reply_path else 0)
        )
        return (
            _encode_centre(self.service_centre)
            + bytes([first, self.reference & 0xFF])
            + _encode_address(self.receiver)
            + bytes([0, coded])
            + (b"" if self.validity is None else bytes([_encode_minutes(self.validity)]))
            + octets
        )


@attrs.frozen
class StatusReport:
    """SMS-STATUS-REPORT: what became of a message that the phone sent.

    Attributes:
        receiver: of that message.
        reference: of that message.
        sent: when the service centre got it, seconds since 1970.
        done: when the outcome was known.
        status: TP-ST: 0 is received by the other side.
        service_centre: its number, or empty.
    """

    receiver: str
    reference: int
    sent: float = 0.0
    done: float = 0.0
    status: int = 0
    service_centre: str = ""

    def encode(self) -> bytes:
        """The PDU."""
        return (
            _encode_centre(self.service_centre)
            + bytes([0x06, self.reference & 0xFF])
            + _encode_address(self.receiver)
            + _encode_time(self.sent, 0)
            + _encode_time(self.done, 0)
            + bytes([self.status])
        )


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int, what: str) -> bytes:
        found = self.data[self.at : self.at + count]
        if len(found) < count:
            raise PduError(f"the PDU ends within its {what}")
        self.at += count
        return found

    def octet(self, what: str) -> int:
        return self.take(1, what)[0]


def parse_pdu(data: bytes, *, to_network: bool) -> Deliver | Submit | StatusReport:
    """Read a PDU.

    Args:
        data: with the service centre's address in front.
        to_network: whether it goes to the network; the same type number means different PDUs in the two directions.

    Raises:
        PduError: it cannot be read.
    """
    reader = _Reader(data)
    centre = _read_centre(reader)
    first = reader.octet("first octet")
    kind = first & 3
    if to_network and kind == 1:
        return _read_submit(reader, first, centre)
    if not to_network and kind == 0:
        return _read_deliver(reader, first, centre)
    if not to_network and kind == 2:
        reference = reader.octet("reference")
        receiver = _read_address(reader)
        sent, _ = _read_time(reader)
        done, _ = _read_time(reader)
        return StatusReport(receiver, reference, sent, done, reader.octet("status"), centre)
    raise PduError(f"a PDU of type {kind} is not expected here")


def _read_deliver(reader: _Reader, first: int, centre: str) -> Deliver:
    sender = _read_address(reader)
    reader.octet("protocol")
    coding = _coding(reader.octet("coding scheme"))
    seconds, zone = _read_time(reader)
    part = _read_user_data(reader, coding, bool(first & 0x40))
    return Deliver(sender, part, seconds, zone, not first & 0x04, bool(first & 0x20), centre)


def _read_submit(reader: _Reader, first: int, centre: str) -> Submit:
    reference = reader.octet("reference")
    receiver = _read_address(reader)
    reader.octet("protocol")
    coding = _coding(reader.octet("coding scheme"))
    validity = None
    form = first >> 3 & 3
    if form == 2:
        validity = _decode_minutes(reader.octet("validity period"))
    elif form:
        reader.take(7, "validity period")
    return Submit(
        receiver,
        _read_user_data(reader, coding, bool(first & 0x40)),
        reference=reference,
        status_report=bool(first & 0x20),
        reject_duplicates=bool(first & 0x04),
        reply_path=bool(first & 0x80),
        validity=validity,
        service_centre=centre,
    )


def _coding(scheme: int) -> str:
    """The alphabet of a TP-DCS (23.038 section 4)."""
    group = scheme >> 4
    if group < 8:
        if group & 2:
            raise PduError("compressed text is not known here")
        return ("gsm7", "8bit", "ucs2", "gsm7")[scheme >> 2 & 3]
    if group == 0xF:
        return "8bit" if scheme & 4 else "gsm7"
    if group == 0xE:
        return "ucs2"
    return "gsm7"


def _encode_user_data(part: Part) -> tuple[int, bytes]:
    header = b""
    if part.reference is not None:
        header = bytes([5, 0, 3, part.reference & 0xFF, part.total, part.number])
    if part.coding == "gsm7":
        codes = encode_septets(part.text)
        if codes is None:
            raise ValueError(f"{part.text!r} does not fit GSM 7 bit")
        septets = bytes(code for pair in codes for code in pair)
        head = (8 * len(header) + 6) // 7
        fill = 7 * head - 8 * len(header)
        return 0x00, bytes([head + len(septets)]) + header + pack(septets, fill)
    data = part.text.encode("utf-16-be" if part.coding == "ucs2" else "latin-1")
    return (0x08 if part.coding == "ucs2" else 0x04), bytes([len(header) + len(data)]) + header + data


def _read_user_data(reader: _Reader, coding: str, has_header: bool) -> Part:
    length = reader.octet("user data length")
    size = (7 * length + 7) // 8 if coding == "gsm7" else length
    if size > MAX_USER_DATA_BYTES:
        raise PduError(f"user data of {size} bytes is too long")
    data = reader.take(size, "user data")
    header = b""
    if has_header:
        if not data or len(data) < 1 + data[0]:
            raise PduError("the user data header is longer than the user data")
        header = data[: 1 + data[0]]
    joined = _read_header(header[1:])
    if coding == "gsm7":
        head = (8 * len(header) + 6) // 7
        fill = 7 * head - 8 * len(header)
        text = decode_septets(unpack(data[len(header) :], length - head, fill))
    elif coding == "ucs2":
        text = data[len(header) :].decode("utf-16-be", "replace")
    else:
        text = data[len(header) :].decode("latin-1")
    return Part(text, *joined, coding=coding)


def _read_header(header: bytes) -> tuple[int | None, int, int]:
    """Reference, total and number of a part; other elements are skipped."""
    at = 0
    while at + 2 <= len(header):
        kind, size = header[at], header[at + 1]
        value = header[at + 2 : at + 2 + size]
        if len(value) < size:
            raise PduError("an element of the user data header is cut")
        if (kind, size) in ((0, 3), (8, 4)):
            total, number = value[-2], value[-1]
            if 1 <= number <= total:  # else the element is to be ignored (9.2.3.24.1)
                return int.from_bytes(value[:-2], "big"), total, number
        at += 2 + size
    return None, 1, 1


def _encode_address(number: str) -> bytes:
    digits = number[1:] if number.startswith("+") else number
    if digits and all(digit in _DIGITS for digit in digits):
        if len(digits) > 20:
            raise ValueError(f"the number {number} has more than 20 digits")
        kind = _TYPE_INTERNATIONAL if number.startswith("+") else _TYPE_UNKNOWN
        return bytes([len(digits), kind]) + _semi_octets(digits)
    codes = encode_septets(number)
    septets = bytes(code for pair in codes or () for code in pair)
    if not 1 <= len(septets) <= 11:
        raise ValueError(f"{number!r} is no address")
    return bytes([(7 * len(septets) + 3) // 4, _TYPE_ALPHANUMERIC]) + pack(septets)


def _read_address(reader: _Reader) -> str:
    length = reader.octet("address")
    kind = reader.octet("address")
    if length > 20:
        raise PduError(f"an address of {length} digits is too long")
    return _decode_address(reader.take((length + 1) // 2, "address"), length, kind)


def _decode_address(data: bytes, length: int, kind: int) -> str:
    if kind & 0x70 == 0x50:
        return decode_septets(unpack(data, 4 * length // 7))
    digits = "".join(f"{octet & 15:x}{octet >> 4:x}" for octet in data)[:length].rstrip("f")
    text = "".join(_DIGITS[int(digit, 16)] if digit != "f" else "" for digit in digits)
    return f"+{text}" if kind & 0x70 == 0x10 else text


def _encode_centre(number: str) -> bytes:
    if not number:
        return b"\0"
    coded = _encode_address(number)
    return bytes([len(coded) - 1]) + coded[1:]


def _read_centre(reader: _Reader) -> str:
    length = reader.octet("service centre")
    if not length:
        return ""
    if length > 11:
        raise PduError(f"a service centre of {length} bytes is too long")
    data = reader.take(length, "service centre")
    return _decode_address(data[1:], 2 * (length - 1), data[0])


def _semi_octets(digits: str) -> bytes:
    codes = [_DIGITS.index(digit) for digit in digits]
    if len(codes) % 2:
        codes.append(15)
    return bytes(low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True))


def _encode_time(seconds: float, zone: int) -> bytes:
    when = time.gmtime(seconds + 900 * zone)
    fields = (
        when.tm_year % 100,
        when.tm_mon,
        when.tm_mday,
        when.tm_hour,
        when.tm_min,
        when.tm_sec,
        abs(zone),
    )
    octets = bytearray(field % 10 << 4 | field // 10 for field in fields)
    if zone < 0:
        octets[-1] |= 0x08
    return bytes(octets)


def _read_time(reader: _Reader) -> tuple[float, int]:
    octets = reader.take(7, "time")
    fields = [(octet & 15) * 10 + (octet >> 4) for octet in octets[:6]]
    quarters = (octets[6] & 7) * 10 + (octets[6] >> 4)
    zone = -quarters if octets[6] & 8 else quarters
    year, month, day, hour, minute, second = fields
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
        return 0.0, 0  # some networks send nonsense; the text counts
    year += 2000 if year < 90 else 1900
    moment: Any = (year, month, day, hour, minute, second, 0, 0, 0)
    return float(calendar.timegm(moment)) - 900 * zone, zone


def _decode_minutes(octet: int) -> int:
    """Relative validity period (9.2.3.12.1)."""
    if octet < 144:
        return (octet + 1) * 5
    if octet < 168:
        return 12 * 60 + (octet - 143) * 30
    if octet < 197:
        return (octet - 166) * 24 * 60
    return (octet - 192) * 7 * 24 * 60


def _encode_minutes(minutes: int) -> int:
    return next((octet for octet in range(256) if _decode_minutes(octet) >= minutes), 255)
