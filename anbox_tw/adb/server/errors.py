"""Errors of the adb server; their cause is the text that a client gets with ``FAIL``."""

from __future__ import annotations

from anbox_tw.errors import AdbError

__all__ = ["Ambiguous", "RequestFailed"]


class RequestFailed(AdbError):
    """A request cannot be served; ``cause`` is sent to the client as adb words it."""


class Ambiguous(RequestFailed):
    """Several devices are meant where one is needed."""
