"""Sound at the speed of the clock: how many bytes are due now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from anbox_tw.device.pcm import PcmFormat

__all__ = ["Pacer"]

TICK_S = 0.02
"""As often as Android's own mixer runs."""

MAX_LEAP_S = 1.0
"""A clock that leaps further was set, or the machine slept: what would have been due then is not made up for."""


class Pacer:
    """Calls back at every tick with the bytes that have become due since it started.

    The schedule is absolute: a late tick has more due, so that the rate stays right whatever the load is.

    Args:
        clock: tells the time.
        form: of the samples.
        due: called with a number of bytes, whole frames, 1 or more.
    """

    def __init__(self, clock: IReactorTime, form: PcmFormat, due: Callable[[int], object]) -> None:
        self._clock = clock
        self._form = form
        self._due = due
        self._begin = 0.0
        self._given = 0
        self._call: IDelayedCall | None = None

    @property
    def running(self) -> bool:
        """Whether it ticks."""
        return self._call is not None

    def start(self) -> None:
        """Tick from now on; nothing is due yet."""
        if self._call is None:
            self._restart()

    def stop(self) -> None:
        """Tick no more."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _restart(self) -> None:
        self._begin, self._given = self._clock.seconds(), 0
        self._call = self._schedule(TICK_S)

    def _schedule(self, delay: float) -> Any:
        return self._clock.callLater(delay, self._tick)

    def _tick(self) -> None:
        elapsed = self._clock.seconds() - self._begin
        due = self._form.bytes_of(max(0.0, elapsed)) - self._given
        if not 0 <= self._form.seconds_of(due) <= MAX_LEAP_S:
            self._restart()
            due = self._form.bytes_of(TICK_S)
            self._given = due
        else:
            self._given += due
            # the next multiple that is not just now
            ticks = int(elapsed / TICK_S + 0.5) + 1
            self._call = self._schedule(ticks * TICK_S - elapsed)
        if due:
            self._due(due)
