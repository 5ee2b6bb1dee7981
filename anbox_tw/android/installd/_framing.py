"""installd's messages: two bytes of length, little-endian, then text without terminator.

Source: ``main`` and ``execute`` in ``cmds/installd/installd.cpp`` and ``InstallerConnection.java`` of Android 7.0.
"""

from __future__ import annotations

import struct

from anbox_tw.errors import PeerError

__all__ = [
    "MAX_ARGUMENTS",
    "MAX_TEXT_BYTES",
    "MessageReader",
    "encode_message",
    "format_reply",
    "split_command",
]

MAX_TEXT_BYTES = 1023
"""Longest text: the daemon's buffer has 1024 bytes with its NUL. (The framework's client takes 1024 to be right.)"""

MAX_ARGUMENTS = 15
"""Behind the command's name (``TOKEN_MAX`` is 16, and the sixteenth is already refused)."""

_LENGTH = struct.Struct("<H")
_SPACES = b" \t\n\v\f\r"


def encode_message(text: bytes) -> bytes:
    """Put the length before ``text``.

    Raises:
        ValueError: it is empty or longer than ``MAX_TEXT_BYTES``.
    """
    if not 0 < len(text) <= MAX_TEXT_BYTES:
        raise ValueError(f"a message of {len(text)} bytes, 1 to {MAX_TEXT_BYTES} are allowed")
    return _LENGTH.pack(len(text)) + text


class MessageReader:
    """Cuts a stream into texts."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of a message that is not whole yet, or of later ones."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes, cut anywhere."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole text, or ``None``.

        Raises:
            PeerError: a length of 0, or more than the limit: the stream cannot be followed any more.
        """
        if len(self._buffer) < 2:
            return None
        size = _LENGTH.unpack_from(self._buffer)[0]
        if not 0 < size <= MAX_TEXT_BYTES:
            raise PeerError(f"invalid size {size}: 1 to {MAX_TEXT_BYTES} are allowed")
        if len(self._buffer) < 2 + size:
            return None
        text = bytes(self._buffer[2 : 2 + size])
        del self._buffer[: 2 + size]
        return text


def split_command(text: bytes) -> tuple[str, list[str]] | None:
    """Name and arguments of a request.

    Each white-space byte separates, so a doubled or trailing one makes an empty argument, and the count is then
    wrong for the command: what nobody means is refused. (The original does not look at the byte behind a
    separator; no client depends on that.) A NUL ends the command, as it does there.

    Returns:
        The parts, or ``None`` when there are more than ``MAX_ARGUMENTS`` arguments.
    """
    text = text.partition(b"\0")[0]
    parts: list[bytes] = []
    start = 0
    for position, byte in enumerate(text):
        if byte in _SPACES:
            parts.append(text[start:position])
            start = position + 1
            if len(parts) > MAX_ARGUMENTS:
                return None
    parts.append(text[start:])
    name, *arguments = [part.decode("utf-8", "surrogateescape") for part in parts]
    return name, arguments


def format_reply(result: int, text: str = "") -> bytes:
    """A reply's text: the number, and what follows it."""
    reply = f"{result} {text}" if text else str(result)
    return reply.encode("ascii")
