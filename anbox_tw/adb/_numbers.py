"""Decimal numbers in requests: from a peer, so of any length and in any script. Pure."""

from __future__ import annotations

from anbox_tw.errors import AdbError

__all__ = ["MAX_PORT", "decimal", "listen_port"]

MAX_PORT = 65535
_LOOPBACK = frozenset({"", "localhost", "127.0.0.1"})


def decimal(text: str, highest: int) -> int | None:
    """The number that ``text`` says in ASCII digits, or None when it is none or above ``highest``.

    ``int`` itself takes other scripts' digits, signs and underscores, and fails at 4300 digits.
    """
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0")
    if len(digits) > len(str(highest)):
        return None
    value = int(digits or "0")
    return value if value <= highest else None


def listen_port(argument: str) -> int:
    """The port of ``tcp:PORT`` or ``tcp:localhost:PORT`` for a listener; 0 leaves the choice to the kernel.

    Raises:
        AdbError: it is none, in the words of ``socket_spec.cpp``.
    """
    host, _, digits = argument.rpartition(":")
    port = decimal(digits, MAX_PORT)
    if host not in _LOOPBACK or (port is None and not digits.lstrip("-").isdigit()):
        raise AdbError("listening on specified hostname currently unsupported")
    if port is None:
        raise AdbError(f"bad port number '{digits[:40]}'")
    return port
