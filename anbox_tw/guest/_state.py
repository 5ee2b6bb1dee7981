"""The guest half of the ``qemud:adb`` handshake, without I/O.

From the guest's ``adb/transport_local.c`` (``qemu_socket_thread``): say ``accept``, read two bytes, which are
``ok`` when a host is there; register the transport, say ``start``, and open the next pipe.
"""

from __future__ import annotations

from anbox_tw.errors import PeerError

__all__ = ["ACCEPT", "START", "HostCame", "PipeHandshake", "PipeRefused"]

ACCEPT = b"accept"
START = b"start"
_OK = b"ok"


class PipeRefused(PeerError):
    """The host side answered something else than ``ok``: it has no host for this pipe, or does not know the words."""


class HostCame:
    """A host is connected; what came in behind ``ok`` is its ADB stream already.

    Args:
        rest: those bytes.
    """

    def __init__(self, rest: bytes) -> None:
        self.rest = rest


class PipeHandshake:
    """Reads the host's answer to ``accept``."""

    def __init__(self) -> None:
        self._buffer = b""

    def receive_data(self, data: bytes) -> HostCame | None:
        """Take the next bytes.

        Returns:
            ``HostCame`` when ``ok`` is complete, after which this object is done with; ``None`` before.

        Raises:
            PipeRefused: it is not ``ok``.
        """
        self._buffer += data
        if not _OK.startswith(self._buffer[: len(_OK)]):
            raise PipeRefused(f"the session answered {self._buffer[:16]!r} to accept")
        if len(self._buffer) < len(_OK):
            return None
        return HostCame(self._buffer[len(_OK) :])
