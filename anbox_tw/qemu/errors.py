"""Errors of the qemu pipe."""

from __future__ import annotations

from anbox_tw.errors import PeerError, PipeError

__all__ = [
    "CameraError",
    "FramingError",
    "HandshakeError",
    "IdentificationError",
    "PipeServiceExists",
    "QueryError",
    "SlowGuest",
    "UnknownPipeService",
]


class IdentificationError(PipeError, PeerError):
    """The guest did not begin its pipe with ``pipe:<name>`` and a NUL, within the limits."""

    default_code = "ANBOX-Q001"


class UnknownPipeService(PipeError, PeerError):
    """The guest asked for a pipe service that this session does not have."""

    default_code = "ANBOX-Q002"


class FramingError(PipeError, PeerError):
    """A qemud frame's header is not four hexadecimal digits, or announces more than is allowed."""

    default_code = "ANBOX-Q003"


class HandshakeError(PipeError, PeerError):
    """The guest's adbd left the ``accept``, ``ok``, ``start`` order, or was too slow."""

    default_code = "ANBOX-Q004"


class PipeServiceExists(PipeError):
    """A service of this name is registered already."""

    default_code = "ANBOX-Q005"


class QueryError(PipeError, PeerError):
    """A camera query has no end, or too many of them come at once."""

    default_code = "ANBOX-Q006"


class CameraError(PipeError):
    """A camera source cannot show what it should."""

    default_code = "ANBOX-Q007"


class SlowGuest(PipeError, PeerError):
    """The guest does not read what it is told, and that must not be lost."""

    default_code = "ANBOX-Q008"
