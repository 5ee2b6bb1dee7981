"""Every phase against every input, and the levels."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.session._state import TRANSITIONS, Input, Levels, Phase, SessionState, WrongInput

PATHS = {
    Phase.STOPPED: [],
    Phase.CONNECTING: [Input.START],
    Phase.STARTING: [Input.START, Input.CONNECTED],
    Phase.RUNNING: [Input.START, Input.CONNECTED, Input.STARTED],
    Phase.WAITING: [Input.START, Input.LOST],
    Phase.STOPPING: [Input.START, Input.STOP],
}


class TableTests(SynchronousTestCase):
    def in_phase(self, phase: Phase) -> SessionState:
        state = SessionState(lambda what: None)
        for event in PATHS[phase]:
            state.feed(event)
        self.assertIs(state.phase, phase)
        return state

    def test_each_phase_and_each_input(self) -> None:
        for phase in Phase:
            for event in Input:
                state = self.in_phase(phase)
                if (phase, event) in TRANSITIONS:
                    self.assertIs(state.feed(event), TRANSITIONS[phase, event])
                else:
                    with self.assertRaises(WrongInput):
                        state.feed(event)
                    self.assertIs(state.phase, phase)

    def test_each_phase_can_be_stopped_and_started_again(self) -> None:
        for phase in set(Phase) - {Phase.STOPPED, Phase.STOPPING}:
            state = self.in_phase(phase)
            state.feed(Input.STOP)
            state.feed(Input.GONE)
            self.assertIs(state.feed(Input.START), Phase.CONNECTING)

    def test_what_a_session_waits_for_is_said_until_nothing_is_left(self) -> None:
        for phase in Phase:
            self.assertTrue(self.in_phase(phase).waiting_for)
        state = self.in_phase(Phase.RUNNING)
        self.assertIn("booted", state.waiting_for)
        state.boot_finished(True)
        self.assertIn("no server", state.waiting_for)
        state.adb_changed("device")
        self.assertEqual(state.waiting_for, "")
        state.feed(Input.LOST, "it was killed")
        self.assertIn("it was killed", state.waiting_for)


class LevelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.changes: list[str] = []
        self.state = SessionState(self.changes.append)

    def feed(self, *events: Input) -> None:
        for event in events:
            self.state.feed(event)

    def test_live_ready_booted(self) -> None:
        self.assertEqual(self.state.levels, Levels())
        self.feed(Input.START)
        self.assertEqual(self.state.levels, Levels(live=True))
        self.feed(Input.CONNECTED, Input.STARTED)
        self.state.adb_changed("offline")
        self.assertEqual(self.state.levels, Levels(live=True))
        self.state.adb_changed("device")
        self.assertEqual(self.state.levels, Levels(live=True, ready=True))
        self.state.boot_finished(False)
        self.assertEqual(self.state.levels, Levels(True, True, True))
        self.assertTrue(self.state.levels.reached("booted"))
        self.assertEqual(self.changes, ["phase", "phase", "phase", "adb", "adb", "booted"])

    def test_a_guest_may_boot_before_the_manager_answers_or_adb_is_there(self) -> None:
        self.feed(Input.START, Input.CONNECTED)
        self.state.boot_finished(True)
        self.assertFalse(self.state.levels.booted)
        self.feed(Input.STARTED)
        self.assertEqual(self.state.levels, Levels(live=True, booted=True))
        self.assertTrue(self.state.first_boot)

    def test_a_lost_container_is_neither_ready_nor_booted_and_the_next_starts_anew(self) -> None:
        self.feed(Input.START, Input.CONNECTED, Input.STARTED)
        self.state.boot_finished(True)
        self.state.adb_changed("device")
        self.feed(Input.ENDED)
        self.assertEqual(self.state.levels, Levels(live=True))
        self.feed(Input.RETRY, Input.CONNECTED, Input.STARTED)
        self.assertEqual(self.state.levels, Levels(live=True, ready=True))
        self.assertFalse(self.state.first_boot)
        self.assertEqual(self.state.starts, 2)
