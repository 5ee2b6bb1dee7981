"""``anbox:bootanimation``: the picture that the guest shows while it boots.

Framed command ``retrieve-icon``; the answer is the file's bytes without a length, so its end is the end of the connection. Anbox sent whole
blocks of 1024 bytes, lost the last one and left the connection open.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol
from zope.interface import implementer

from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IPipeService
from anbox_tw.network import abort_transport
from anbox_tw.qemu._guest_connection import FramedConnection

__all__ = ["MAX_ICON_BYTES", "BootAnimationService", "read_icon"]

MAX_ICON_BYTES = 4 * 1024 * 1024
"""A boot logo has some hundred kB."""

SEND_TIMEOUT_S = 10.0
"""For a guest to read the icon."""


def read_icon(path: str) -> bytes:
    """The file's bytes.

    Raises:
        ConfigError: it cannot be read, or is too large.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_ICON_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the boot icon {path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_ICON_BYTES:
        raise ConfigError(f"the boot icon {path} has more than {MAX_ICON_BYTES} bytes")
    return data


class _Connection(FramedConnection):
    service = "anbox:bootanimation"

    def __init__(self, icon: bytes, clock: Any) -> None:
        super().__init__()
        self._icon = icon
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self.on_lost(self._cancel)

    def command(self, command: bytes) -> None:
        if command != b"retrieve-icon":
            self.ignored(command)
            return
        if self._timer is not None:
            return
        transport: Any = self.transport
        self.write(self._icon)
        self._timer = self._clock.callLater(SEND_TIMEOUT_S, abort_transport, transport)
        transport.unregisterProducer()
        transport.loseConnection()

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


@implementer(IPipeService)
class BootAnimationService:
    """Gives the guest its boot icon.

    Args:
        clock: for a guest that does not read.
        icon: the file's bytes; without any the guest gets an empty answer and shows what it has.
    """

    name = "anbox:bootanimation"

    def __init__(self, clock: Any, icon: bytes = b"") -> None:
        self._clock = clock
        self.icon = icon

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        return _Connection(self.icon, self._clock)
