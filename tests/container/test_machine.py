"""The machine of a container's life: its table, and what it does in each state."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.container.diagnosis import DiagnosedError, Diagnosis, Probe
from anbox_tw.container.journal import UndoKind
from anbox_tw.container.machine import LIVING, MACHINE, ContainerMachine, PhaseEvent, PhaseLimits, State
from anbox_tw.errors import AlreadyRunning, ConfigError
from anbox_tw.interfaces import IContainer, IContainerBackend
from tests.container.doubles import ManualBackend, ManualContainer, a_journal, a_spec

TABLE = {
    # state: {input: next state}; what is not here stays where it is
    "absent": {"start": "preparing"},
    "preparing": {"_done": "starting", "_failed": "stopping", "stop": "stopping"},
    "starting": {"_done": "running", "_failed": "stopping", "stop": "stopping"},
    "running": {"_exited": "stopping", "stop": "stopping"},
    "stopping": {"_done": "stopped", "_done_after_failure": "failed", "_failed": "failed"},
    "stopped": {"start": "preparing"},
    "failed": {"start": "preparing"},
}
INPUTS = ("start", "stop", "_done", "_done_after_failure", "_failed", "_exited")


class TableTests(SynchronousTestCase):
    def test_each_state_answers_each_input_as_the_table_says(self) -> None:
        found = {
            (old.name, name): new.name for old, name, new, _ in MACHINE.__automat_automaton__.allTransitions()
        }
        wanted = {(state, name): TABLE[state].get(name, state) for state in TABLE for name in INPUTS}
        self.assertEqual(found, wanted)

    def test_the_states_of_the_table_are_those_users_see(self) -> None:
        self.assertEqual(set(TABLE), {state.value for state in State})


class MachineCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = os.path.abspath(self.mktemp())
        self.clock = Clock()
        self.backend = ManualBackend()
        self.spec = a_spec(directory)
        self.journal = a_journal(self.clock, self.spec.journal_path)
        self.addCleanup(self.journal.close)
        self.limits = PhaseLimits()
        self.machine = ContainerMachine(
            self.clock, self.backend, self.spec, self.journal, limits=self.limits, now=self.clock.seconds
        )
        self.events: list[PhaseEvent] = []
        self.machine.observe(self.events.append)

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [], "a timer was left")

    @property
    def container(self) -> ManualContainer:
        return self.backend.made[-1]

    def seen(self) -> list[tuple[str, str]]:
        return [(event.state.value, event.phase) for event in self.events]

    def bring_to(self, state: State) -> Deferred[None] | None:
        """Bring the machine into a state; the Deferred of its start, if it is still waiting."""
        if state is State.ABSENT:
            return None
        waiter = self.machine.start()
        if state is State.PREPARING:
            return waiter
        if state is State.FAILED:
            self.container.pending["prepare"].errback(DiagnosedError.of("ANBOX-C011", "no mount"))
            self.container.pending["stop"].callback(None)
            self.failureResultOf(waiter, DiagnosedError)
            return None
        self.container.pending["prepare"].callback(None)
        if state is State.STARTING:
            return waiter
        self.container.pending["start"].callback(None)
        self.successResultOf(waiter)
        if state is State.RUNNING:
            return None
        stopped = self.machine.stop()
        if state is State.STOPPING:
            return stopped
        self.container.pending["stop"].callback(None)
        self.successResultOf(stopped)
        return None

    def end(self) -> None:
        """Let a container that is being stopped be gone."""
        self.container.pending["stop"].callback(None)


class LifeTests(MachineCase):
    def test_the_doubles_are_what_they_stand_for(self) -> None:
        self.assertTrue(verifyObject(IContainerBackend, self.backend))
        self.assertTrue(verifyObject(IContainer, ManualContainer(self.spec, self.journal)))

    def test_a_whole_life(self) -> None:
        started = self.machine.start()
        self.assertEqual(self.machine.state, State.PREPARING)
        self.container.pending["prepare"].callback(None)
        self.assertEqual((self.machine.state, self.machine.phase), (State.STARTING, "start"))
        self.assertNoResult(started)
        self.container.pending["start"].callback(None)
        self.successResultOf(started)
        self.assertEqual(self.machine.info(), {"pid": 42})
        self.assertEqual(self.machine.probes, self.backend.probes)
        stopped = self.machine.stop()
        self.assertNoResult(stopped)
        self.end()
        self.successResultOf(stopped)
        self.assertEqual(self.machine.info(), {})
        self.assertEqual(
            self.seen(),
            [
                ("preparing", "check"),
                ("preparing", "prepare"),
                ("starting", "start"),
                ("running", "run"),
                ("stopping", "stop"),
                ("stopping", "undo"),
                ("stopped", ""),
            ],
        )
        self.assertEqual(self.journal.last_phase, "")

    def test_every_state_can_be_reached_and_says_so(self) -> None:
        for state in State:
            with self.subTest(state=state):
                self.setUp()
                waiter = self.bring_to(state)
                self.assertEqual(self.machine.state, state)
                self.assertEqual(self.machine.since, self.clock.seconds())
                if waiter is not None:
                    waiter.addErrback(lambda _: None)
                    self.machine.stop()
                    self.end()
                elif state is State.RUNNING:
                    self.machine.stop()
                    self.end()

    def test_start_in_each_state(self) -> None:
        for state in State:
            with self.subTest(state=state):
                self.setUp()
                waiter = self.bring_to(state)
                again = self.machine.start()
                if state in LIVING:
                    failure = self.failureResultOf(again, AlreadyRunning)
                    self.assertIn(state.value, str(failure.value))
                    self.assertEqual(self.machine.state, state)
                else:
                    self.assertEqual(self.machine.state, State.PREPARING)
                    again.addErrback(lambda _: None)
                if waiter is not None:
                    waiter.addErrback(lambda _: None)
                self.machine.stop()
                self.end()

    def test_stop_in_each_state(self) -> None:
        for state in State:
            with self.subTest(state=state):
                self.setUp()
                waiter = self.bring_to(state)
                stopped = self.machine.stop()
                if state not in LIVING:
                    self.successResultOf(stopped)
                    self.assertEqual(self.machine.state, state)
                    continue
                self.assertEqual(self.machine.state, State.STOPPING)
                self.assertNoResult(stopped)
                self.end()
                self.successResultOf(stopped)
                self.assertEqual(self.machine.state, State.STOPPED)
                if state in (State.PREPARING, State.STARTING):
                    assert waiter is not None
                    self.assertEqual(self.failureResultOf(waiter, DiagnosedError).value.code, "ANBOX-C022")
                    self.assertEqual(
                        self.container.cancelled, ["prepare" if state is State.PREPARING else "start"]
                    )
                elif waiter is not None:
                    self.successResultOf(waiter)

    def test_it_can_be_started_again(self) -> None:
        self.bring_to(State.STOPPED)
        self.bring_to(State.RUNNING)
        self.assertEqual(len(self.backend.made), 2)
        self.machine.stop()
        self.end()

    def test_the_end_of_the_first_container_does_not_touch_the_second(self) -> None:
        self.bring_to(State.STOPPED)
        first = self.container
        self.bring_to(State.RUNNING)
        first.exits[0].callback("late")
        self.assertEqual(self.machine.state, State.RUNNING)
        self.machine.stop()
        self.end()


class FailureTests(MachineCase):
    def assert_failed(self, started: Deferred[None], code: str) -> Diagnosis:
        error = self.failureResultOf(started, DiagnosedError).value
        self.assertEqual(error.code, code)
        self.assertEqual(self.machine.state, State.FAILED)
        assert self.machine.failure is not None
        self.assertEqual(self.machine.failure, error.diagnosis)
        self.assertEqual(self.events[-1].error, error.diagnosis)
        self.assertEqual(self.events[-1].as_dict()["error"]["code"], code)
        return self.machine.failure

    def test_a_phase_that_fails_is_undone_before_it_is_told(self) -> None:
        for phase in ("prepare", "start"):
            with self.subTest(phase=phase):
                self.setUp()
                started = self.machine.start()
                if phase == "start":
                    self.container.pending["prepare"].callback(None)
                directory = self.mktemp()
                os.makedirs(directory)
                self.journal.record("directory", path=os.path.abspath(directory))
                self.container.pending[phase].errback(DiagnosedError.of("ANBOX-C011", "no mount"))
                self.assertNoResult(started)
                self.assertTrue(os.path.exists(directory))
                self.end()
                self.assert_failed(started, "ANBOX-C011")
                self.assertFalse(os.path.exists(directory))

    def test_each_phase_has_a_time_limit_and_its_name_is_told(self) -> None:
        for phase, limit in (("prepare", self.limits.prepare), ("start", self.limits.start)):
            with self.subTest(phase=phase):
                self.setUp()
                started = self.machine.start()
                if phase == "start":
                    self.container.pending["prepare"].callback(None)
                self.clock.advance(limit - 0.1)
                self.assertNotEqual(self.machine.state, State.STOPPING)
                self.clock.advance(0.2)
                self.assertEqual(self.container.cancelled, [phase])
                self.end()
                diagnosis = self.assert_failed(started, "ANBOX-C015")
                self.assertIn(f"'{phase}'", diagnosis.what)
                self.assertIn(f"{limit:g} s", diagnosis.why)

    def test_a_missing_part_of_the_host_is_told_with_its_cure(self) -> None:
        self.backend.probes = [
            Probe("loop", False, "no /dev/loop-control", "load the module loop"),
            Probe("nft", False, "not installed", "apt install nftables", required=False),
        ]
        diagnosis = self.assert_failed(self.machine.start(), "ANBOX-C006")
        self.assertEqual(
            (diagnosis.why, diagnosis.cure), ("loop: no /dev/loop-control", "load the module loop")
        )
        self.assertEqual(self.backend.made, [])

    def test_a_spec_that_the_backend_refuses(self) -> None:
        self.backend.create_error = ConfigError("no", "yes", code="ANBOX-C002")
        self.assert_failed(self.machine.start(), "ANBOX-C002")

    def test_a_defect_is_told_as_one(self) -> None:
        self.backend.create_error = ZeroDivisionError("oops")
        diagnosis = self.assert_failed(self.machine.start(), "ANBOX-C024")
        self.assertIn("ZeroDivisionError: oops", diagnosis.why)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_container_that_ends_by_itself(self) -> None:
        self.bring_to(State.RUNNING)
        os.makedirs(self.spec.logs_dir)
        with open(self.spec.console_log, "w") as file:
            file.write("last words\n")
        self.container.exits[0].callback("init exited with status 3")
        self.assertEqual(self.machine.state, State.STOPPING)
        self.end()
        self.assertEqual(self.machine.state, State.FAILED)
        assert self.machine.failure is not None
        self.assertEqual(self.machine.failure.code, "ANBOX-C014")
        self.assertEqual(self.machine.failure.why, "init exited with status 3")
        self.assertEqual(self.machine.failure.log_tail, ("last words",))

    def test_a_stop_that_fails_still_undoes_and_tells(self) -> None:
        self.bring_to(State.RUNNING)
        directory = os.path.abspath(self.mktemp())
        os.makedirs(directory)
        self.journal.record("directory", path=directory)
        stopped = self.machine.stop()
        self.container.pending["stop"].errback(DiagnosedError.of("ANBOX-C018", "it does not die"))
        self.assertEqual(self.failureResultOf(stopped, DiagnosedError).value.code, "ANBOX-C018")
        self.assertEqual(self.machine.state, State.FAILED)
        self.assertFalse(os.path.exists(directory))

    def test_a_stop_that_hangs_has_a_limit(self) -> None:
        self.bring_to(State.RUNNING)
        stopped = self.machine.stop()
        self.clock.advance(self.limits.stop)
        self.assertEqual(self.failureResultOf(stopped, DiagnosedError).value.code, "ANBOX-C015")

    def test_the_first_cause_is_kept_when_stopping_fails_too(self) -> None:
        started = self.machine.start()
        self.container.pending["prepare"].errback(DiagnosedError.of("ANBOX-C011", "no mount"))
        stopped = self.machine.stop()
        self.container.pending["stop"].errback(DiagnosedError.of("ANBOX-C018", "it does not die"))
        self.assert_failed(started, "ANBOX-C011")
        self.assertEqual(self.failureResultOf(stopped, DiagnosedError).value.code, "ANBOX-C018")

    def test_a_stop_during_a_failure_that_is_undone_succeeds(self) -> None:
        started = self.machine.start()
        self.container.pending["prepare"].errback(DiagnosedError.of("ANBOX-C011", "no mount"))
        stopped = self.machine.stop()
        self.end()
        self.assert_failed(started, "ANBOX-C011")
        self.successResultOf(stopped)

    def test_what_cannot_be_undone_is_told_and_tried_again_by_the_next_start(self) -> None:
        self.bring_to(State.RUNNING)
        broken = True

        async def undo(args: Any, context: Any) -> None:
            if broken:
                raise OSError("busy")

        self.journal.kinds.register(UndoKind("thing", undo, lambda args: "the thing"))
        self.journal.record("thing")
        stopped = self.machine.stop()
        self.end()
        self.assertEqual(self.failureResultOf(stopped, DiagnosedError).value.code, "ANBOX-C017")
        self.assert_cannot_start()
        broken = False
        self.events.clear()
        self.bring_to(State.RUNNING)
        self.assertEqual(self.seen()[0], ("preparing", "recover"))
        self.machine.stop()
        self.end()
        self.assertEqual(self.journal.pending, [])

    def assert_cannot_start(self) -> None:
        self.assertEqual(self.failureResultOf(self.machine.start(), DiagnosedError).value.code, "ANBOX-C017")

    def test_a_full_disk_does_not_keep_it_from_stopping(self) -> None:
        self.bring_to(State.RUNNING)

        def full(name: str) -> None:
            raise DiagnosedError.of("ANBOX-C023", "full")

        self.patch(self.journal, "phase", full)
        stopped = self.machine.stop()
        self.end()
        self.successResultOf(stopped)

    def test_nothing_new_can_be_made_while_all_is_undone(self) -> None:
        self.bring_to(State.RUNNING)
        hold: Deferred[None] = Deferred()

        async def undo(args: Any, context: Any) -> None:
            await hold

        self.journal.kinds.register(UndoKind("slow", undo, lambda args: "the slow thing"))
        self.journal.record("slow")
        stopped = self.machine.stop()
        self.end()
        error = self.assertRaises(DiagnosedError, self.journal.record, "directory", path="/x")
        self.assertEqual(error.code, "ANBOX-C022")
        hold.callback(None)
        self.successResultOf(stopped)


class ObserverTests(MachineCase):
    def test_each_entry_of_the_journal_is_told_as_a_detail(self) -> None:
        self.machine.start().addErrback(lambda _: None)
        self.journal.record("mount", path="/nowhere/x")
        self.assertEqual(self.events[-1].detail, "the mount at /nowhere/x")
        self.assertEqual(self.events[-1].phase, "prepare")
        self.machine.stop()
        self.end()

    def test_an_observer_that_fails_harms_nobody(self) -> None:
        later: list[PhaseEvent] = []

        def broken(event: PhaseEvent) -> None:
            raise ZeroDivisionError

        self.machine.observe(broken)
        self.machine.observe(later.append)
        self.bring_to(State.STOPPED)
        self.assertEqual(len(later), 7)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 7)

    def test_an_observer_can_leave_twice(self) -> None:
        seen: list[PhaseEvent] = []
        leave = self.machine.observe(seen.append)
        leave()
        leave()
        self.bring_to(State.STOPPED)
        self.assertEqual(seen, [])

    def test_an_observer_may_stop_the_container_at_any_event(self) -> None:
        for phase in ("check", "prepare", "start", "run"):
            with self.subTest(phase=phase):
                self.setUp()
                stops: list[Deferred[None]] = []

                def stop_it(
                    event: PhaseEvent, phase: str = phase, stops: list[Deferred[None]] = stops
                ) -> None:
                    if event.phase == phase:
                        stops.append(self.machine.stop())

                self.machine.observe(stop_it)
                started = self.machine.start()
                for name in ("prepare", "start", "stop"):
                    for made in self.backend.made:
                        if name in made.pending and not made.pending[name].called:
                            made.pending[name].callback(None)
                self.assertEqual(self.machine.state, State.STOPPED)
                self.successResultOf(stops[0])
                if phase == "run":
                    self.successResultOf(started)
                else:
                    self.failureResultOf(started, DiagnosedError)

    def test_a_waiter_may_be_cancelled(self) -> None:
        started = self.machine.start()
        started.cancel()
        self.failureResultOf(started)
        self.container.pending["prepare"].callback(None)
        self.container.pending["start"].callback(None)
        self.assertEqual(self.machine.state, State.RUNNING)
        stopped = self.machine.stop()
        stopped.cancel()
        self.failureResultOf(stopped)
        self.end()
        self.assertEqual(self.machine.state, State.STOPPED)
