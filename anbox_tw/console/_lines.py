"""The console's lines: bytes in, lines out, and what is no line of a console (``console.cpp``, ``utf8_utils``).

Lines end with LF; CR is dropped wherever it is. Of a line that is too long the emulator forgets what came before, silently; here
too, as its end is then read as a command of its own and answered.
"""

from __future__ import annotations

import re

__all__ = ["MAX_LINE_BYTES", "LineDecoder", "forbidden"]

MAX_LINE_BYTES = 4096
"""The emulator's buffer, which has room for one byte less and a NUL."""

_REQUEST = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH) ")


class LineDecoder:
    """Cuts a client's bytes into lines."""

    def __init__(self) -> None:
        self._line = bytearray()

    def receive_data(self, data: bytes) -> list[bytes]:
        """Take the next bytes; returns the lines that they complete, without their ends."""
        *ended, rest = data.replace(b"\r", b"").split(b"\n")
        lines = []
        for piece in ended:
            self._append(piece)
            lines.append(bytes(self._line))
            self._line.clear()
        self._append(rest)
        return lines

    def _append(self, piece: bytes) -> None:
        total = len(self._line) + len(piece)
        room = MAX_LINE_BYTES - 1
        if total <= room:
            self._line += piece
        else:
            # the buffer is begun anew each time it is full
            left = (total - 1) % room + 1
            self._line = bytearray((bytes(self._line) + piece)[total - left :])


def forbidden(line: bytes) -> str:
    """Why a line ends the connection: a browser's request, or bytes that are no UTF-8; empty for any other line."""
    if _REQUEST.match(line):
        return "Forbidden HTTP request"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "Forbidden binary request"
    return ""
