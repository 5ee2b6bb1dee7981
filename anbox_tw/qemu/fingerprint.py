"""``qemud:fingerprintlisten``: fingers that touch the sensor.

The guest's HAL (``fingerprint.c``) sends ``listen`` once and then reads frames ``on:<id>`` and ``off``, each with a NUL that is
counted into the frame. Anbox sent the NUL behind the frame, so that the next header was read one byte off.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IAddress, IProtocol
from zope.interface import implementer

from anbox_tw.device import Change, Fingerprint
from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._guest_connection import FramedConnection

__all__ = ["FingerprintService"]


class _Connection(FramedConnection):
    service = "qemud:fingerprintlisten"
    reports = True

    def __init__(self, fingerprint: Fingerprint) -> None:
        super().__init__()
        self._fingerprint = fingerprint
        self._leave: Callable[[], None] | None = None
        self._told: int | None = None
        self.on_lost(self._stop)

    def command(self, command: bytes) -> None:
        # The emulator does not look at the word either.
        if self._leave is None:
            self._leave = self._fingerprint.observe(self._changed)
            self._tell(always=True)

    def caught_up(self) -> None:
        # What happened in between is of no use any more; how it is now, is.
        if self._leave is not None:
            self._tell()

    def _changed(self, change: Change) -> None:
        self._tell()

    def _tell(self, always: bool = False) -> None:
        finger = self._fingerprint.state.finger
        if self.blocked or (finger == self._told and not always):
            return
        self._told = finger
        self.send(b"off\0" if finger is None else b"on:%d\0" % finger)

    def _stop(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


@implementer(IPipeService)
class FingerprintService:
    """Tells the guest's fingerprint HAL who touches the sensor: the state when it begins to listen, and each change.

    Args:
        fingerprint: of the device.
    """

    name = "qemud:fingerprintlisten"

    def __init__(self, fingerprint: Fingerprint) -> None:
        self._fingerprint = fingerprint

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        return _Connection(self._fingerprint)
