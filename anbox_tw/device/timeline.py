"""Doing things at their times: what routes and scenarios are played by.

Everything is due at a distance from one beginning, never from what was done before, so lateness does not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

__all__ = ["Timeline", "TimelineResult"]

MAX_PER_TURN = 100
"""Steps done in one turn of the reactor when many are due at once, as at a high speed: others must have their turn."""


@attrs.frozen
class TimelineResult:
    """How it ended.

    Attributes:
        finished: whether all was done.
        reason: one line.
        done: steps done.
        failed: steps that raised an error.
    """

    finished: bool
    reason: str
    done: int
    failed: int


class Timeline:
    """Plays steps, each a time in seconds from the beginning and what to do.

    Args:
        clock: an ``IReactorTime``.
        steps: in the order of their times; taken one by one, so a generator may make them as they come.
        speed: factor: 2 plays in half the time.
        on_error: told of a step that raised; the rest is played all the same. Logged without it.
        catch_up: whether steps whose time has passed are still done, all of them and in order; without it only the last
            of them is, as for positions, of which only the newest is true.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        steps: Iterable[tuple[float, Callable[[], object]]],
        *,
        speed: float = 1.0,
        on_error: Callable[[Exception], object] | None = None,
        catch_up: bool = True,
    ) -> None:
        if not 0 < speed <= 1e6:
            raise ValueError(f"a speed is above 0 and at most a million, not {speed!r}")
        self._clock = clock
        self._steps: Iterator[tuple[float, Callable[[], object]]] = iter(steps)
        self._next = next(self._steps, None)
        self.speed = speed
        self._on_error = on_error
        self._catch_up = catch_up
        self._timer: Any = None
        self._base = 0.0
        self._position = 0.0
        self._running = False
        self.done = 0
        self.failed = 0
        self.result: TimelineResult | None = None
        self._waiters: list[Deferred[TimelineResult]] = []

    @property
    def state(self) -> str:
        """``playing``, ``paused``, ``finished`` or ``stopped``."""
        if self.result is not None:
            return "finished" if self.result.finished else "stopped"
        return "playing" if self._running else "paused"

    @property
    def position(self) -> float:
        """Seconds from the beginning, in the time of the steps."""
        if not self._running:
            return self._position
        return (float(self._clock.seconds()) - self._base) * self.speed

    def start(self) -> None:
        """Begin, or go on after `pause`; what is due at once is done before this returns."""
        if self._running or self.result is not None:
            return
        self._running = True
        self._base = self._clock.seconds() - self._position / self.speed
        self._play()

    def pause(self) -> None:
        """Hold; harmless when it does not play."""
        if self._running:
            self._position = self.position
            self._running = False
            self._cancel()

    def stop(self, reason: str = "stopped") -> None:
        """End it, for good; harmless when it has ended."""
        if self.result is None:
            self.pause()
            self._finish(False, reason)

    def when_done(self) -> Deferred[TimelineResult]:
        """A Deferred of the caller's own: fires with the result, also when it was stopped; never fails."""
        if self.result is not None:
            return succeed(self.result)
        waiter: Deferred[TimelineResult] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def _play(self) -> None:
        self._timer = None
        for _ in range(MAX_PER_TURN):
            if self._next is None:
                self._position = self.position
                self._running = False
                self._finish(True, "all was played")
                return
            at, step = self._next
            wait = self._base + at / self.speed - self._clock.seconds()
            if wait > 0:
                self._timer = self._clock.callLater(wait, self._play)
                return
            self._next = next(self._steps, None)
            if not self._catch_up and self._next is not None and self._is_due(self._next[0]):
                continue
            self._do(step)
            if not self._running:  # the step itself paused or stopped us
                return
        self._timer = self._clock.callLater(0, self._play)

    def _is_due(self, at: float) -> bool:
        return bool(self._base + at / self.speed <= self._clock.seconds())

    def _do(self, step: Callable[[], object]) -> None:
        self.done += 1
        try:
            step()
        except Exception as error:
            self.failed += 1
            if self._on_error is not None:
                self._on_error(error)
            else:
                self._log.failure("A step failed")

    def _finish(self, finished: bool, reason: str) -> None:
        self._cancel()
        self.result = TimelineResult(finished, reason, self.done, self.failed)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(self.result)

    def _cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
