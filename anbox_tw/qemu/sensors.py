"""``qemud:sensors``: what the device measures, at the rate that the guest's sensors HAL asks for.

Facts are from the emulator's ``android/hw-sensors.c`` and the guest's ``sensors_qemu.c``. Mask and delay belong to the
connection. A report is a frame per enabled sensor and ``sync:<microseconds>`` at its end, before which the guest delivers
nothing; all of it leaves in one write.

Anbox ran a thread per connection that woke even when nothing was enabled, took any delay, and left ``wake`` unanswered. Here a
timer runs while something is enabled. Reports are due at fixed distances from the first, so their rate does not
drift; one whose time was missed is left out, and so is one for a guest that does not read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReactorTime
from zope.interface import implementer

from anbox_tw.device import SENSORS, Sensors
from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._guest_connection import FramedConnection

__all__ = ["DEFAULT_DELAY_S", "MIN_DELAY_S", "SensorsService"]

DEFAULT_DELAY_S = 0.8
"""Between reports, until the guest says otherwise; the emulator's."""

MIN_DELAY_S = 0.02
"""The emulator's; the guest's HAL asks for no less either."""

MAX_DELAY_S = 3600.0
"""What a guest that asks for more gets: it would have switched the sensor off."""


def _microseconds() -> int:
    return time.monotonic_ns() // 1000


class _Connection(FramedConnection):
    service = "qemud:sensors"
    reports = True

    def __init__(self, sensors: Sensors, clock: IReactorTime, microseconds: Callable[[], int]) -> None:
        super().__init__()
        self._sensors = sensors
        self._clock = clock
        self._microseconds = microseconds
        self.enabled: set[str] = set()
        self.delay = DEFAULT_DELAY_S
        self._timer: IDelayedCall | None = None
        self._base = 0.0
        self._tick = 0
        self.on_lost(self._cancel)

    def command(self, command: bytes) -> None:
        word, _, rest = command.partition(b":")
        if command == b"list-sensors":
            self.send(b"%d" % self._sensors.mask)
        elif command == b"wake":
            self.send(b"wake")
        elif word == b"set-delay" and _is_integer(rest):
            self.delay = min(max(int(rest) / 1000, MIN_DELAY_S), MAX_DELAY_S)
            self._restart()
        elif word == b"set" and b":" in rest:
            name, _, value = rest.partition(b":")
            self._set(name.decode("latin-1"), value[:1] == b"1")
        else:
            self.ignored(command)

    def _set(self, name: str, on: bool) -> None:
        if not self._sensors.enabled(name):
            self.note(f"there is no sensor {name!r}")
            return
        if on:
            self.enabled.add(name)
        else:
            self.enabled.discard(name)
        self._restart()

    # -- reports --

    def _restart(self) -> None:
        """Report at once, and from now on every `delay` seconds."""
        self._cancel()
        if self.enabled:
            self._base = self._clock.seconds()
            self._tick = 0
            self._report()
            self._wait()

    def _wait(self) -> None:
        now = self._clock.seconds()
        # What is due is derived from the beginning, never from the last report: lateness does not add up.
        self._tick = max(self._tick + 1, math.floor((now - self._base) / self.delay) + 1)
        self._timer = self._clock.callLater(max(0.0, self._base + self._tick * self.delay - now), self._due)

    def _due(self) -> None:
        self._timer = None
        self._report()
        self._wait()

    def _report(self) -> None:
        if self.blocked:
            return
        frames = []
        for name, kind in SENSORS.items():
            if name in self.enabled and self._sensors.enabled(name):
                values = ":".join(f"{value:g}" for value in self._sensors.get(name))
                frames.append(f"{kind.report}:{values}".encode())
        frames.append(b"sync:%d" % self._microseconds())
        self.send(*frames)

    def _cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _is_integer(text: bytes) -> bool:
    digits = text.removeprefix(b"-")
    return 0 < len(digits) <= 10 and digits.isdigit()


@implementer(IPipeService)
class SensorsService:
    """Serves the guest's sensors HAL from the device model.

    Args:
        sensors: of the device.
        clock: for the reports.
        microseconds: what ``sync`` tells; any clock that only goes forward.
    """

    name = "qemud:sensors"

    def __init__(
        self, sensors: Sensors, clock: IReactorTime, microseconds: Callable[[], int] = _microseconds
    ) -> None:
        self._sensors = sensors
        self._clock = clock
        self._microseconds = microseconds
        self._connections: set[_Connection] = set()

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        connection = _Connection(self._sensors, self._clock, self._microseconds)
        self._connections.add(connection)
        connection.on_lost(lambda: self._connections.discard(connection))
        return connection

    def listeners(self) -> dict[str, float]:
        """The sensors that a guest has enabled: name to its shortest delay in seconds."""
        found: dict[str, float] = {}
        for connection in self._connections:
            for name in connection.enabled:
                found[name] = min(connection.delay, found.get(name, math.inf))
        return found
