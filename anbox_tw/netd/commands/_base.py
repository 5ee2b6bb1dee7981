"""What the command classes share: C's ways with numbers, and errors that become replies."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from anbox_tw.errors import AnboxError
from anbox_tw.netd.controllers import Controllers
from anbox_tw.netd.errors import CommandFailed, errno_of, failed, syntax
from anbox_tw.netd.listener import FrameworkCommand, Request

__all__ = ["NetdCommand", "atoi", "failing_with", "is_ipv4"]

Handler = Callable[[Any, Request, list[str]], Coroutine[Any, Any, None]]


def atoi(text: str, bits: int = 64) -> int:
    """C's ``atoi``/``atoll``: leading digits count, the rest does not, too much is clamped."""
    found = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]{1,40})", text)
    value = int(found[1]) if found else 0
    limit = 1 << (bits - 1)
    return max(-limit, min(value, limit - 1))


def is_ipv4(text: str) -> bool:
    """Whether ``inet_aton`` takes it."""
    if not text or not text.isascii() or " " in text:
        return False
    try:
        socket.inet_aton(text)
    except OSError:
        return False
    return True


@contextmanager
def failing_with(text: str, *, tell_errno: bool = True) -> Iterator[None]:
    """Turn what the kernel refuses into a 400 reply."""
    try:
        yield
    except CommandFailed:
        raise
    except (AnboxError, OSError) as error:
        raise failed(text, errno_of(error) if tell_errno else None) from error


class NetdCommand(FrameworkCommand):
    """A command with the controllers; ``run`` dispatches by the second word."""

    subcommands: ClassVar[dict[str, Handler]] = {}
    missing = "Missing argument"
    unknown = "Unknown cmd"
    least = 2

    def __init__(self, controllers: Controllers) -> None:
        super().__init__()
        self.controllers = controllers

    async def run(self, request: Request) -> None:
        words = request.arguments
        if len(words) < self.least:
            raise syntax(self.missing)
        handler = self.subcommands.get(words[1])
        if handler is None:
            raise syntax(self.unknown)
        await handler(self, request, words)
