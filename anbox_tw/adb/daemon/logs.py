"""``logcat`` where the device has none: lines from a pluggable source."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from anbox_tw.adb._numbers import decimal
from anbox_tw.adb.daemon.commands import Command

__all__ = ["LogBuffer", "LogcatCommand"]

MAX_LINES = 10_000
"""Lines kept; a phone's main buffer of 256 KiB holds some thousand."""


class LogBuffer:
    """The last lines and those who follow them.

    Args:
        limit: lines kept.
    """

    def __init__(self, limit: int = MAX_LINES) -> None:
        self._lines: deque[str] = deque(maxlen=limit)
        self._followers: set[Callable[[str], None]] = set()

    def write(self, message: str, *, tag: str = "anbox", priority: str = "I", pid: int = 0) -> None:
        """Add one line, in logcat's ``threadtime`` format."""
        now = time.time()
        stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        line = f"{stamp} {pid:5d} {pid:5d} {priority} {tag:<8}: {message}\n"
        self._lines.append(line)
        for follower in list(self._followers):
            follower(line)

    def lines(self) -> list[str]:
        """What is kept, oldest first."""
        return list(self._lines)

    def clear(self) -> None:
        """Forget all lines."""
        self._lines.clear()

    def follow(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback`` with each new line; returns what ends that."""
        self._followers.add(callback)
        return lambda: self._followers.discard(callback)


class LogcatCommand(Command):
    """``logcat [-d] [-c] [-t N] [-T N]``; other options and filters are accepted and change nothing.

    Args:
        arguments: of the command.
        buffer: the lines.
    """

    def __init__(self, arguments: Sequence[str], buffer: LogBuffer) -> None:
        super().__init__(arguments)
        self._buffer = buffer
        self._stop: Callable[[], None] | None = None
        self._writable = True
        self._dropped = 0

    def on_start(self) -> None:
        """Write what is there, and follow unless told otherwise."""
        arguments = self.arguments
        if "-c" in arguments or "--clear" in arguments:
            self._buffer.clear()
            self.exit(0)
            return
        lines = self._buffer.lines()
        for option in ("-t", "-T"):
            if option in arguments[:-1]:
                text = arguments[arguments.index(option) + 1]
                if text.isascii() and text.isdigit():
                    count = decimal(text, len(lines))
                    lines = lines if count is None else lines[len(lines) - count :]
        text = "".join(lines)
        self.out((f"--------- beginning of main\n{text}" if text else "").encode())
        if "-d" in arguments or "-t" in arguments:
            self.exit(0)
        else:
            self._stop = self._buffer.follow(self._line)

    def _line(self, line: str) -> None:
        if self._writable:
            self.out(line.encode())
        else:
            self._dropped += 1

    def on_writable(self, writable: bool) -> None:
        """A slow reader loses lines, as with logcat, and is told how many."""
        self._writable = writable
        if writable and self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.out(f"--------- {dropped} lines lost: reader too slow\n".encode())

    def on_close(self) -> None:
        """Stop following."""
        if self._stop is not None:
            self._stop()
