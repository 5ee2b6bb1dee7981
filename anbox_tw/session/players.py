"""What plays on the device by itself: routes and scenarios."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.device import BadValue, Device, Fix, Location
from anbox_tw.device.route import RoutePoint, parse_route, positions, timed
from anbox_tw.device.scenario import Scenario, Step, apply_changes, parse_scenario
from anbox_tw.device.timeline import Timeline, TimelineResult
from anbox_tw.errors import AnboxError
from anbox_tw.session.errors import BadRequest
from anbox_tw.session.verbs import DeviceVerbs

__all__ = ["MAX_FILE_BYTES", "Player", "RoutePlayer", "ScenarioPlayer", "read_text"]

MAX_FILE_BYTES = 32 * 1024 * 1024
"""Of a route or scenario: `MAX_POINTS` points of GPX."""

MAX_FACTOR = 1000.0
"""At which a day takes a minute and a half."""

MAX_ERRORS = 20
"""Kept and told of one scenario."""

MAX_RATE_HZ = 100.0
"""Positions per second; receivers make 1 to 20."""


def read_text(path: str) -> Deferred[str]:
    """The text of a file, read in a thread.

    Args:
        path: absolute, as the session sees the host.

    Returns:
        Fires with the text; fails with `BadRequest` where it cannot be read as one.
    """
    return deferToThread(_read, path)


def _read(path: str) -> str:
    if not os.path.isabs(path):
        raise BadRequest(f"the path {path!r} is not absolute", "the session has a directory of its own")
    try:
        # a fifo or a terminal would keep the thread
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadRequest(f"{path} is no file")
        with open(descriptor, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadRequest(f"{path} has more than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path} is no UTF-8 text: {error}") from None


class Player:
    """One timeline at a time: the next one replaces the former.

    Args:
        tell: called with state and reason when it begins, holds, goes on and ends.
    """

    what = ""
    _log = Logger()

    def __init__(self, tell: Callable[[str, str], object] = lambda state, reason: None) -> None:
        self._tell = tell
        self.timeline: Timeline | None = None
        self.duration = 0.0

    def play(self, timeline: Timeline, duration: float) -> None:
        """Play it, and nothing else."""
        if self.timeline is not None:
            self.timeline.stop("replaced by another one")
        self.timeline = timeline
        self.duration = duration
        timeline.when_done().addCallback(self._ended)
        self._tell("playing", "")
        timeline.start()

    def pause(self) -> None:
        """Hold.

        Raises:
            BadRequest: nothing plays.
        """
        self._playing().pause()
        self._tell("paused", "")

    def resume(self) -> None:
        """Go on after `pause`.

        Raises:
            BadRequest: nothing plays.
        """
        timeline = self._playing()
        self._tell("playing", "")
        timeline.start()

    def stop(self) -> None:
        """End what plays; harmless when nothing does."""
        if self.timeline is not None:
            self.timeline.stop()

    def status(self) -> dict[str, Any]:
        """State, position and duration in seconds, speed factor, steps done and failed; JSON-able."""
        timeline = self.timeline
        if timeline is None:
            return {"state": "none"}
        return {
            "state": timeline.state,
            "position": round(min(timeline.position, self.duration), 3),
            "duration": round(self.duration, 3),
            "factor": timeline.speed,
            "done": timeline.done,
            "failed": timeline.failed,
        }

    def _playing(self) -> Timeline:
        if self.timeline is None or self.timeline.result is not None:
            raise BadRequest(f"no {self.what} plays")
        return self.timeline

    def _ended(self, result: TimelineResult) -> None:
        self._log.info(
            "The {what} has ended: {reason}; {done} steps, {failed} failed",
            what=self.what,
            reason=result.reason,
            done=result.done,
            failed=result.failed,
        )
        self._tell("finished" if result.finished else "stopped", result.reason)


class RoutePlayer(Player):
    """Moves the device along a route.

    Args:
        reactor: tells the time.
        location: of the device.
        tell: as that of any player.
    """

    what = "route"

    def __init__(
        self,
        reactor: Any,
        location: Location,
        tell: Callable[[str, str], object] = lambda state, reason: None,
    ) -> None:
        super().__init__(tell)
        self._reactor = reactor
        self._location = location

    async def play_text(
        self,
        text: str,
        *,
        format: str = "",
        rate: float = 1.0,
        speed: float = 0.0,
        factor: float = 1.0,
        repeat: bool = False,
    ) -> None:
        """Play a route from its text, which is read in a thread.

        Args:
            text: as `anbox_tw.device.route.parse_route` reads it.
            format: of the text; found out when it is empty.
            rate: positions per second, of the device's time.
            speed: metres per second instead of the route's own times; 0 for these.
            factor: 2 is twice as fast.
            repeat: begin again at the end, for ever.

        Raises:
            BadValue: an argument does not fit.
        """
        for name, value, most in (("rate", rate, MAX_RATE_HZ), ("factor", factor, MAX_FACTOR)):
            if not 0 < value <= most:
                raise BadValue(f"the {name} is above 0 and at most {most:g}, not {value!r}")
        if not 0 <= speed <= 20_000:
            raise BadValue(f"the speed is 0 to 20000 metres per second, not {speed!r}")
        route: list[tuple[float, RoutePoint]] = await deferToThread(
            lambda: timed(parse_route(text, format), speed)
        )
        duration = route[-1][0]
        if repeat and duration <= 0:
            raise BadValue("a route that takes no time cannot be repeated")
        steps = self._steps(route, rate, duration if repeat else 0.0)
        # At a factor a receiver still reports at its rate: the positions come closer, and only the newest counts.
        self.play(Timeline(self._reactor, steps, speed=factor, catch_up=False), duration)

    def status(self) -> dict[str, Any]:
        """As that of any player; a repeated route tells the position in the round."""
        found = super().status()
        if self.timeline is not None and self.duration and self.timeline.result is None:
            found["position"] = round(self.timeline.position % self.duration, 3)
        return found

    def _steps(
        self, route: Sequence[tuple[float, RoutePoint]], rate: float, period: float
    ) -> Iterator[tuple[float, Callable[[], object]]]:
        for number in itertools.count() if period else (0,):
            for at, fix in positions(route, rate):
                yield number * period + at, self._step(fix)

    def _step(self, fix: Fix) -> Callable[[], object]:
        return lambda: self._location.set_fix(fix)


class ScenarioPlayer(Player):
    """Plays scenarios on the device.

    A step that fails is logged with its line, counted and kept in the status; the others are played all the same. A verb that
    takes its time does not hold up the next step.

    Args:
        reactor: tells the time.
        device: what steps with ``set`` change.
        tell: as that of any player.

    Attributes:
        verbs: what steps with ``do`` run.
    """

    what = "scenario"

    def __init__(self, reactor: Any, device: Device, tell: Callable[[str, str], object]) -> None:
        super().__init__(tell)
        self._reactor = reactor
        self._device = device
        self.verbs: DeviceVerbs | None = None
        self.scenario: Scenario | None = None
        self._errors: list[str] = []
        self._failed = 0

    async def read(self, text: str, format: str = "") -> Scenario:
        """Read a scenario, in a thread, and see that it can be played.

        Raises:
            BadValue: it cannot; the message names the lines.
        """
        scenario: Scenario = await deferToThread(parse_scenario, text, format)
        assert self.verbs is not None
        wrong: list[str] = await deferToThread(scenario.check, self.verbs.check)
        if wrong:
            more = f", and {len(wrong) - MAX_ERRORS} more" if len(wrong) > MAX_ERRORS else ""
            raise BadValue("; ".join(wrong[:MAX_ERRORS]) + more)
        return scenario

    async def play_text(
        self, text: str, *, format: str = "", factor: float = 1.0, repeat: bool = False
    ) -> None:
        """Play a scenario from its text; the one that plays is replaced.

        Args:
            text: as `anbox_tw.device.scenario.parse_scenario` reads it.
            format: of the text; found out when it is empty.
            factor: 2 is twice as fast.
            repeat: begin again after the last step, for ever.

        Raises:
            BadValue: it cannot be played.
        """
        if not 0 < factor <= MAX_FACTOR:
            raise BadValue(f"the factor is above 0 and at most {MAX_FACTOR:g}, not {factor!r}")
        scenario = await self.read(text, format)
        if repeat and scenario.duration <= 0:
            raise BadValue("a scenario that takes no time cannot be repeated")
        self.stop()
        self.scenario = scenario
        self._errors.clear()
        self._failed = 0
        self.play(Timeline(self._reactor, self._steps(scenario, repeat), speed=factor), scenario.duration)

    def status(self) -> dict[str, Any]:
        """As that of any player, with ``name``, ``steps`` and the last ``errors``."""
        found = super().status()
        if self.scenario is not None and self.timeline is not None:
            found["name"] = self.scenario.name
            found["steps"] = sum(step.times for step in self.scenario.steps)
            found["failed"] = self._failed
            found["errors"] = list(self._errors)
        return found

    def _steps(self, scenario: Scenario, repeat: bool) -> Iterator[tuple[float, Callable[[], object]]]:
        for number in itertools.count() if repeat else (0,):
            for at, step in scenario.occurrences():
                yield number * scenario.duration + at, self._step(step)

    def _step(self, step: Step) -> Callable[[], object]:
        def act() -> None:
            work = ensureDeferred(self._run(step))
            work.addErrback(self._step_failed, step)

        return act

    async def _run(self, step: Step) -> None:
        if step.verb:
            assert self.verbs is not None
            await self.verbs.run(step.verb, step.arguments)
        else:
            apply_changes(self._device, step.changes)

    def _step_failed(self, failure: Failure, step: Step) -> None:
        self._failed += 1
        error = failure.value
        if isinstance(error, AnboxError):
            self._log.warn("The scenario's {where} failed: {error}", where=step.where, error=error)
        else:
            self._log.failure("The scenario's {where} failed", failure, where=step.where)
        self._errors = [*self._errors, f"{step.where}: {error}"][-MAX_ERRORS:]
