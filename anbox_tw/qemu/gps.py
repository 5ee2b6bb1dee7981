"""``qemud:gps``: a GPS receiver that speaks NMEA to the guest.

Not framed: lines, each with a line end, host to guest; what the guest says is ignored. Each fix is reported when it is made, and again
every second until the next, as a receiver does; a guest that connects hears the last one at once. Sentences that somebody pushes
raw are passed on as they are, and end the repetition: two sources would contradict each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReactorTime
from zope.interface import implementer

from anbox_tw.device import Change, Fix, Location
from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._guest_connection import GuestConnection
from anbox_tw.qemu._nmea import sentences

__all__ = ["REPEAT_S", "GpsService"]

REPEAT_S = 1.0
"""Between two reports of the same fix: what receivers do by default."""


class _Connection(GuestConnection):
    service = "qemud:gps"
    small = True
    reports = True

    def guest_sent(self, data: bytes) -> None:
        """Ignored, as in the emulator."""

    def report(self, data: bytes) -> None:
        # A position of the past helps nobody: a guest that does not read misses reports.
        if not self.blocked:
            self.write(data)


@implementer(IPipeService)
class GpsService:
    """Reports the device's location to every guest that opens the pipe.

    Args:
        location: of the device.
        clock: for the repetition.
        wall_time: seconds since 1970, for fixes without a time of their own.
    """

    name = "qemud:gps"

    def __init__(
        self, location: Location, clock: IReactorTime, wall_time: Callable[[], float] = time.time
    ) -> None:
        self._location = location
        self._clock = clock
        self._wall_time = wall_time
        self._connections: set[_Connection] = set()
        self._timer: IDelayedCall | None = None
        self._since = clock.seconds()
        self._count = 0
        self._raw = False
        location.observe(self._changed)

    @property
    def guests(self) -> int:
        """How many guests listen."""
        return len(self._connections)

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        connection = _Connection()
        self._connections.add(connection)
        connection.on_lost(lambda: self._left(connection))
        # After the transport is there.
        self._clock.callLater(0, self._greet, connection)
        return connection

    def _greet(self, connection: _Connection) -> None:
        if self._repeats:
            connection.report(self._sentences())
            self._repeat()

    def _left(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._cancel()

    def _changed(self, change: Change) -> None:
        if change.kind == "nmea":
            self._raw = True
            self._cancel()
            self._report(change.value.encode("ascii") + b"\n")
        elif change.kind == "fix":
            self._raw = False
            self._cancel()
            self._since = self._clock.seconds()
            self._count = 0
            self._report(self._sentences())
            self._repeat()

    @property
    def _repeats(self) -> bool:
        return not self._raw and self._location.state.satellites > 0

    def _sentences(self) -> bytes:
        fix: Fix = self._location.state
        if fix.time is None:
            return sentences(fix, self._wall_time())
        return sentences(fix, fix.time + self._clock.seconds() - self._since)

    def _report(self, data: bytes) -> None:
        for connection in list(self._connections):
            connection.report(data)

    def _repeat(self) -> None:
        if self._timer is not None or not self._connections or not self._repeats:
            return
        now = self._clock.seconds()
        # Due at whole seconds after the fix, whatever was late before.
        self._count = max(self._count + 1, math.floor((now - self._since) / REPEAT_S) + 1)
        self._timer = self._clock.callLater(max(0.0, self._since + self._count * REPEAT_S - now), self._due)

    def _due(self) -> None:
        self._timer = None
        self._report(self._sentences())
        self._repeat()

    def _cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
