"""Steps at their times, on a clock of the test's."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device.timeline import MAX_PER_TURN, Timeline


class TimelineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.done: list[tuple[float, float]] = []

    def step(self, at: float) -> tuple[float, Callable[[], object]]:
        return at, lambda: self.done.append((at, round(self.clock.seconds(), 6)))

    def run_until(self, end: float, by: float) -> None:
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(by)

    def test_each_step_at_its_time_without_drift(self) -> None:
        line = Timeline(self.clock, (self.step(number * 0.1) for number in range(101)))
        line.start()
        line.start()
        self.run_until(10.1, 0.013)
        self.assertEqual(len(self.done), 101)
        self.assertTrue(all(0 <= was - at < 0.014 for at, was in self.done), self.done)
        result = self.successResultOf(line.when_done())
        self.assertEqual(
            (result.finished, result.done, result.failed, line.state), (True, 101, 0, "finished")
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_speed(self) -> None:
        line = Timeline(self.clock, [self.step(0), self.step(10)], speed=4)
        line.start()
        self.clock.advance(1)
        self.assertEqual((line.position, len(self.done)), (4, 1))
        self.clock.advance(1.5)
        self.assertEqual(self.done[-1], (10, 2.5))
        for speed in (0, -1, 2e6, float("nan")):
            with self.assertRaises(ValueError):
                Timeline(self.clock, [], speed=speed)

    def test_pause_and_go_on(self) -> None:
        line = Timeline(self.clock, [self.step(1), self.step(2)], speed=2)
        line.start()
        self.clock.advance(0.75)
        line.pause()
        line.pause()
        self.assertEqual((line.state, line.position, self.clock.getDelayedCalls()), ("paused", 1.5, []))
        self.clock.advance(100)
        line.start()
        self.assertEqual((line.state, len(self.done)), ("playing", 1))
        self.clock.advance(0.25)
        self.assertEqual(self.done[-1], (2, 101.0))

    def test_stop(self) -> None:
        line = Timeline(self.clock, [self.step(1)])
        waiting = line.when_done()
        given_up = line.when_done()
        given_up.cancel()
        self.failureResultOf(given_up)
        line.start()
        line.stop("enough")
        line.stop()
        line.start()
        self.clock.advance(5)
        result = self.successResultOf(waiting)
        self.assertEqual((result.finished, result.reason, line.state), (False, "enough", "stopped"))
        self.assertEqual(self.done, [])

    def test_a_step_that_fails_does_not_end_it(self) -> None:
        def fails() -> None:
            raise RuntimeError("mine")

        seen: list[Exception] = []
        line = Timeline(self.clock, [(0, fails), self.step(0)], on_error=seen.append)
        line.start()
        self.assertEqual((len(seen), len(self.done), line.failed), (1, 1, 1))
        Timeline(self.clock, [(0, fails)]).start()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_step_may_stop_or_pause_the_timeline(self) -> None:
        line = Timeline(self.clock, [(0, lambda: line.stop()), self.step(0)])
        line.start()
        self.assertEqual((line.state, self.done), ("stopped", []))
        paused = Timeline(self.clock, [(0, lambda: paused.pause()), self.step(0)])
        paused.start()
        self.assertEqual((paused.state, self.done), ("paused", []))
        paused.start()
        self.assertEqual(len(self.done), 1)

    def test_what_was_missed_is_done_in_order_or_only_its_last(self) -> None:
        steps = [self.step(at) for at in (0, 1, 2, 3, 10)]
        line = Timeline(self.clock, steps)
        line.start()
        self.clock.advance(5)
        self.assertEqual([at for at, _ in self.done], [0, 1, 2, 3])
        line.stop()
        self.done.clear()
        newest = Timeline(self.clock, steps, catch_up=False)
        newest.start()
        self.clock.advance(5)
        self.assertEqual([at for at, _ in self.done], [0, 3])
        newest.stop()

    def test_many_at_once_leave_others_their_turn(self) -> None:
        line = Timeline(self.clock, [self.step(0)] * (3 * MAX_PER_TURN))
        line.start()
        self.assertEqual(len(self.done), MAX_PER_TURN)
        self.clock.pump([0, 0, 0])
        self.assertEqual((len(self.done), line.state), (3 * MAX_PER_TURN, "finished"))

    def test_an_endless_generator_is_taken_step_by_step(self) -> None:
        taken = []

        def steps():  # type: ignore[no-untyped-def]
            number = 0
            while True:
                taken.append(number)
                yield self.step(number)
                number += 1

        line = Timeline(self.clock, steps())
        line.start()
        self.clock.advance(1)
        self.assertEqual(taken, [0, 1, 2])
        line.stop()
