"""The files of the SIM card (3GPP TS 51.011 section 10), with what the emulator's card holds (``sim_card.c``)."""

from __future__ import annotations

import re

import attrs

__all__ = ["SimCard", "SimFile"]

READ_BINARY, READ_RECORD, GET_RESPONSE, UPDATE_BINARY, UPDATE_RECORD, STATUS = 176, 178, 192, 214, 220, 242
"""Commands of ``+CRSM`` (3GPP TS 27.007 section 8.18)."""

OK = (144, 0)
FILE_NOT_FOUND = (148, 4)
OUT_OF_RANGE = (148, 2)
INCONSISTENT = (148, 8)
WRONG_LENGTH = (103, 0)
WRONG_PARAMETER = (107, 0)
NOT_ALLOWED = (152, 4)


@attrs.define
class SimFile:
    """An elementary file.

    Attributes:
        data: all records, one behind the other.
        access: the first octet of the access conditions: who reads (high half) and updates (low half), ``a`` and ``f``
            are "administrator" and "never".
        record: bytes of a record; 0 is a transparent file.
    """

    data: bytearray
    access: int
    record: int = 0

    def header(self, file_id: int) -> bytes:
        """What GET RESPONSE tells (TS 51.011 section 9.2.1)."""
        return (
            b"\0\0"
            + len(self.data).to_bytes(2, "big")
            + file_id.to_bytes(2, "big")
            + bytes([0x04, 0x00, self.access, 0xA0, 0xAA, 0x01, 0x02, int(self.record > 0), self.record])
        )


def _file(data: str, access: int, record: int = 0, records: int = 1) -> SimFile:
    content = bytes.fromhex(data)
    if record:
        content = content.ljust(record, b"\xff") + b"\xff" * record * (records - 1)
    return SimFile(bytearray(content), access, record)


def _files() -> dict[int, SimFile]:
    return {
        0x2FE2: _file("98101430121181157002", 0x0F),  # ICCID
        0x6F11: _file("55", 0x11),  # voice message waiting (CPHS)
        0x6F13: _file("55", 0x11),  # call forwarding flags (CPHS)
        0x6F14: _file("416e64726f6964" + "ff" * 13, 0x1A),  # operator name (CPHS)
        0x6F16: _file("0233", 0x1A),  # CPHS information
        0x6F38: _file("ff30ffff3c003c03000c0000f03f00", 0x1A),  # service table
        0x6F40: _file("", 0x11, 32, 4),  # own numbers; made of the phone's number
        0x6F7B: _file("ff" * 12, 0x11),  # forbidden networks
        0x6FAD: _file("00000003", 0x0A),  # administrative data
        0x6FC5: _file("43058441aa890a", 0x0A, 24, 10),  # network names
        0x6FC7: _file(
            "566f6963656d61696cffffffffffffffffff07915155125740f9ffffffffffff", 0x11, 32, 2
        ),  # mailbox
        0x6FC9: _file("01000000", 0x11, 4, 2),  # which mailbox
        0x6FCA: _file("0000000000", 0x11, 5, 2),  # messages waiting
    }


class SimCard:
    """The card's files; what the guest writes stays until the session ends."""

    def __init__(self) -> None:
        self._files = _files()
        self._number = ""

    def command(self, arguments: list[str], number: str) -> str | None:
        """Answer ``+CRSM``.

        Args:
            arguments: of it.
            number: of the phone.

        Returns:
            The answer behind ``+CRSM:``, or None for what is no command.
        """
        numbers = [int(text) for text in arguments[:5] if re.fullmatch(r"[0-9]{1,6}", text, re.ASCII)]
        if not 1 <= len(arguments) <= 7 or len(numbers) != min(len(arguments), 5):
            return None
        command, file_id, p1, p2, p3 = (*numbers, 0, 0, 0, 0)[:5]
        data = arguments[5] if len(arguments) > 5 else ""
        if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", data, re.ASCII):
            return None
        if command == STATUS:
            return "144,0"
        if command not in (READ_BINARY, READ_RECORD, GET_RESPONSE, UPDATE_BINARY, UPDATE_RECORD):
            return None
        file = self._files.get(file_id)
        if file is None:
            return _answer(FILE_NOT_FOUND)
        if number != self._number:
            self._number = number
            self._files[0x6F40].data[:32] = _number_record(number)
        if command == GET_RESPONSE:
            return _answer(OK, file.header(file_id)[: p3 or 15])
        if command in (READ_BINARY, UPDATE_BINARY):
            if file.record:
                return _answer(INCONSISTENT)
            start, size = p1 << 8 | p2, len(file.data)
        else:
            if not file.record:
                return _answer(INCONSISTENT)
            if p2 != 4:  # absolute: the only mode that RILs use
                return _answer(WRONG_PARAMETER)
            if not 1 <= p1 <= len(file.data) // file.record:
                return _answer(OUT_OF_RANGE)
            start = (p1 - 1) * file.record
            size = start + file.record
        return self._access(file, command, start, size, p3, bytes.fromhex(data))

    def _access(self, file: SimFile, command: int, start: int, end: int, length: int, data: bytes) -> str:
        if command in (READ_BINARY, READ_RECORD):
            length = length or end - start
            if start > end or start + length > end:
                return _answer(WRONG_LENGTH)
            return _answer(OK, bytes(file.data[start : start + length]))
        if file.access & 0x0F in (0x0A, 0x0F):
            return _answer(NOT_ALLOWED)
        if (
            len(data) != length
            or start + length > end
            or (command == UPDATE_RECORD and length != file.record)
        ):
            return _answer(WRONG_LENGTH)
        file.data[start : start + length] = data
        return _answer(OK)


def _answer(status: tuple[int, ...], data: bytes = b"") -> str:
    return ",".join([*map(str, status), *([data.hex()] if data else [])])


def _number_record(number: str) -> bytes:
    """A record of EF(MSISDN): 18 bytes of name, length, type, ten bytes of digits, two pointers."""
    digits = number + "f" * (len(number) % 2)
    swapped = bytes.fromhex("".join(digits[i + 1] + digits[i] for i in range(0, len(digits), 2)))
    return b"\xff" * 18 + bytes([1 + len(swapped), 0x81]) + swapped.ljust(10, b"\xff") + b"\xff\xff"
