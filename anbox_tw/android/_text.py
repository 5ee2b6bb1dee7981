"""Bytes that are no text, in places that want text."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: object) -> str:
    """``text`` with everything that cannot be encoded as an escape: for logs and terminals."""
    return str(text).encode("utf-8", "backslashreplace").decode()
