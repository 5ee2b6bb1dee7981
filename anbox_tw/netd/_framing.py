"""The text protocol of libsysutils, both sides, as pure functions of bytes.

Facts are those of AOSP ``system/core/libsysutils/src/FrameworkListener.cpp`` and ``SocketClient.cpp``
(android-7.0) and of ``NativeDaemonConnector.java``. One thing is done better than there: a command that
arrives in pieces is put together, where the original lost what a read brought after the last NUL.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable
from typing import Final

from attrs import field, frozen

__all__ = [
    "MAX_ARGUMENTS",
    "MAX_COMMAND_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_TOKEN_BYTES",
    "Command",
    "CommandRefused",
    "CommandSplitter",
    "Message",
    "MessageDecoder",
    "MessageError",
    "encode_binary",
    "encode_code",
    "encode_command",
    "encode_event",
    "encode_reply",
    "join_command",
    "parse_command",
    "quote_argument",
    "strtol",
    "unescape_arguments",
]

# FrameworkListener::CMD_ARGS_MAX; the command's name counts, the sequence number does not
MAX_ARGUMENTS: Final = 26
# FrameworkListener's CMD_BUF_SIZE less the NUL
MAX_TOKEN_BYTES: Final = 1023
# The original reads 1024 bytes at a time and never joins two reads. Nothing it accepts is longer; with
# reassembly a command of 26 arguments may be, so we take four such buffers (NativeDaemonConnector's own size).
MAX_COMMAND_BYTES: Final = 4096
# The longest thing a daemon says is one line; `bandwidth gettetherstats` failures carry a dump of a few KiB.
MAX_MESSAGE_BYTES: Final = 64 * 1024

_INT: Final = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\Z")
_LONG_MAX: Final = 2**63 - 1


class CommandRefused(Exception):
    """A command that is not dispatched.

    Attributes:
        text: what is answered with code 500.
        sequence: the command's own sequence number, or None when it was not understood.
    """

    def __init__(self, text: str, sequence: int | None) -> None:
        super().__init__(text)
        self.text = text
        self.sequence = sequence


class MessageError(Exception):
    """A daemon sent something that is no message."""


@frozen
class Command:
    """One command as it was understood.

    Attributes:
        sequence: its number, or None on a listener without numbers or when it had none.
        arguments: the tokens, the command's name first.
    """

    sequence: int | None
    arguments: list[str]


def strtol(text: str) -> int | None:
    """C's ``(int) strtol(text, &end, 0)``, or None when something is left over; empty text is 0."""
    if not text:
        return 0
    match = _INT.match(text)
    if match is None:
        return None
    sign, digits = match.groups()
    # a long run of digits is clamped like strtol does, before Python spends time on it
    if len(digits) > 24:
        value = _LONG_MAX
    elif digits[:2] in ("0x", "0X"):
        value = int(digits, 16)
    else:
        value = int(digits, 8 if digits[0] == "0" else 10)
    value = -min(value, _LONG_MAX + 1) if sign == "-" else min(value, _LONG_MAX)
    value &= 0xFFFFFFFF
    return value - 2**32 if value & 0x80000000 else value


class CommandSplitter:
    """Cuts a stream at its NULs."""

    def __init__(self, max_bytes: int = MAX_COMMAND_BYTES) -> None:
        self._max = max_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._skipping = False

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished command are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes | CommandRefused]:
        """Take the next bytes.

        Returns:
            The commands they complete, without their NULs, in order. In the place of one that is too long stands the
            refusal, once; the rest of it is skipped.
        """
        found: list[bytes | CommandRefused] = []
        self._buffer += data
        while True:
            end = self._buffer.find(0, self._searched)
            if end < 0:
                self._searched = len(self._buffer)
                if self._skipping:
                    self._clear(len(self._buffer))
                elif len(self._buffer) > self._max:
                    found.append(self._refuse())
                    self._skipping = True
                    self._clear(len(self._buffer))
                return found
            if self._skipping:
                self._skipping = False
            elif end > self._max:
                found.append(self._refuse())
            else:
                found.append(bytes(self._buffer[:end]))
            self._clear(end + 1)

    def _clear(self, count: int) -> None:
        del self._buffer[:count]
        self._searched = 0

    def _refuse(self) -> CommandRefused:
        # the number is at the head, so whoever waits for it is told (text: android-9.0)
        head = bytes(self._buffer[:16]).partition(b" ")
        number = strtol(head[0].decode("latin-1")) if head[1] and head[0] else None
        return CommandRefused("Command too large for buffer", number)


def parse_command(data: bytes, *, with_sequence: bool) -> Command:
    """Split one command into tokens as ``FrameworkListener::dispatchCommand`` does.

    Args:
        data: the command without its NUL.
        with_sequence: whether the listener's commands start with a number.

    Raises:
        CommandRefused: with the text of the original's answer.
    """
    sequence: int | None = None
    have_sequence = not with_sequence
    tokens: list[bytes] = []
    token = bytearray()
    escaped = quoted = False
    for byte in data:
        if escaped:
            if byte not in b'"\\':
                raise CommandRefused("Unsupported escape sequence", sequence)
            escaped = False
        elif byte == 0x5C:
            escaped = True
            continue
        elif byte == 0x22:
            quoted = not quoted
            continue
        elif byte == 0x20 and not quoted:
            if not have_sequence:
                sequence = strtol(token.decode("latin-1"))
                if sequence is None:
                    raise CommandRefused("Invalid sequence number", None)
                have_sequence = True
            else:
                _add(tokens, token, sequence)
            token.clear()
            continue
        if len(token) >= MAX_TOKEN_BYTES:
            raise CommandRefused("Command too long", sequence)
        token.append(byte)
    _add(tokens, token, sequence)
    if quoted:
        raise CommandRefused("Unclosed quotes error", sequence)
    return Command(sequence, [each.decode("utf-8", "surrogateescape") for each in tokens])


def _add(tokens: list[bytes], token: bytearray, sequence: int | None) -> None:
    if len(tokens) >= MAX_ARGUMENTS:
        raise CommandRefused("Command too long", sequence)
    tokens.append(bytes(token))


def quote_argument(text: str) -> str:
    """``SocketClient::quoteArg``: in quotes, with a backslash before each quote and backslash."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _bytes(text: str) -> bytes:
    if "\0" in text:
        raise ValueError("a message cannot hold a NUL")
    return text.encode("utf-8", "surrogateescape")


def encode_reply(code: int, sequence: int | None, text: str, error: int | None = None) -> bytes:
    """``SocketClient::sendMsg``: a text reply.

    Args:
        code: three digits.
        sequence: the command's number; None on a listener without numbers.
        text: what is said.
        error: an errno whose text is put behind in parentheses.

    Raises:
        ValueError: the text has a NUL.
    """
    if error is not None:
        text = f"{text} ({os.strerror(error)})"
    if sequence is None:
        return b"%d %s\0" % (code, _bytes(text))
    return b"%d %d %s\0" % (code, sequence, _bytes(text))


def encode_event(code: int, text: str) -> bytes:
    """A broadcast: a reply that belongs to no command."""
    return encode_reply(code, None, text)


def encode_code(code: int) -> bytes:
    """``SocketClient::sendCode``: three digits and a NUL."""
    return b"%03d\0" % code


def encode_binary(code: int, payload: bytes) -> bytes:
    """``SocketClient::sendBinaryMsg``: the code, the length in network order, the payload."""
    return encode_code(code) + struct.pack(">I", len(payload)) + payload


def join_command(arguments: Iterable[str]) -> str:
    """Write a command as ``NativeDaemonConnector`` does: quotes only around what has a space (or is empty).

    Raises:
        ValueError: the name has a space, or anything has a NUL.
    """
    words = list(arguments)
    if not words or not words[0] or " " in words[0]:
        raise ValueError("a command's name is one word")
    out = []
    for number, word in enumerate(words):
        if "\0" in word:
            raise ValueError("an argument cannot hold a NUL")
        escaped = word.replace("\\", "\\\\").replace('"', '\\"')
        # an empty word in quotes reads back as an empty token; the framework never sends one
        out.append(f'"{escaped}"' if number and (" " in word or not word) else escaped)
    return " ".join(out)


def encode_command(sequence: int | None, arguments: Iterable[str]) -> bytes:
    """One command as a client writes it, with its NUL.

    Raises:
        ValueError: as `join_command`, or it is longer than a daemon takes.
    """
    text = join_command(arguments)
    if sequence is not None:
        text = f"{sequence} {text}"
    data = text.encode("utf-8", "surrogateescape") + b"\0"
    if len(data) > MAX_COMMAND_BYTES:
        raise ValueError(f"the command has {len(data)} bytes, and a daemon takes {MAX_COMMAND_BYTES}")
    return data


@frozen
class Message:
    """One thing a daemon said.

    Attributes:
        code: three digits.
        sequence: the number of the command it answers; None for an event.
        text: what follows.
        arguments: the text as tokens, quotes undone.
    """

    code: int
    sequence: int | None
    text: str
    arguments: list[str] = field(factory=list)

    @property
    def is_continue(self) -> bool:
        """1xx: more replies follow."""
        return 100 <= self.code < 200

    @property
    def is_ok(self) -> bool:
        """2xx: the command is done."""
        return 200 <= self.code < 300

    @property
    def is_server_error(self) -> bool:
        """4xx: the daemon could not do it."""
        return 400 <= self.code < 500

    @property
    def is_client_error(self) -> bool:
        """5xx: the request was wrong."""
        return 500 <= self.code < 600

    @property
    def is_event(self) -> bool:
        """6xx: nobody asked for it."""
        return 600 <= self.code < 700


def unescape_arguments(text: str) -> list[str]:
    """``NativeDaemonEvent.unescapeArgs``: the tokens of a message, quoted ones whole."""
    out: list[str] = []
    position, length = 0, len(text)
    while position < length:
        quoted = text[position] == '"'
        position += quoted
        word: list[str] = []
        while position < length:
            char = text[position]
            if char == "\\" and position + 1 < length:
                word.append(text[position + 1])
                position += 2
                continue
            if char == ('"' if quoted else " "):
                break
            word.append(char)
            position += 1
        out.append("".join(word))
        position += quoted
        if position < length and text[position] == " ":
            position += 1
    return out


def _number(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,10}", text):
        raise MessageError(f"not a number: {text[:40]!r}")
    return int(text)


class MessageDecoder:
    """What a client reads: NUL-terminated messages, cut anywhere."""

    def __init__(self, *, with_sequence: bool = True, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._with_sequence = with_sequence
        self._splitter = CommandSplitter(max_bytes)

    def feed(self, data: bytes) -> list[Message | MessageError]:
        """Take the next bytes.

        Returns:
            The messages they complete; one that is no message is a `MessageError` in its place.
        """
        found: list[Message | MessageError] = []
        for piece in self._splitter.feed(data):
            if isinstance(piece, CommandRefused):
                found.append(MessageError("the daemon's message is too long"))
                continue
            try:
                found.append(self._parse(piece.decode("utf-8", "surrogateescape")))
            except MessageError as error:
                found.append(error)
        return found

    def _parse(self, text: str) -> Message:
        head, _, rest = text.partition(" ")
        code = _number(head)
        sequence: int | None = None
        if self._with_sequence and not 600 <= code < 700:
            number, _, rest = rest.partition(" ")
            sequence = _number(number)
        return Message(code, sequence, rest, unescape_arguments(rest))
