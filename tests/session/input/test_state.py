"""What is told to a reader that missed events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import InputEvent
from anbox_tw.device.evdev import ABS_MT_SLOT, ABS_MT_TRACKING_ID, EV_ABS, EV_KEY, SYN
from anbox_tw.device.gestures import TouchScreen
from anbox_tw.session.input._state import DeviceState

moves = st.lists(
    st.tuples(st.integers(0, 9), st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 9)))),
    max_size=40,
)


class StateTests(SynchronousTestCase):
    def test_nothing_is_down(self) -> None:
        state = DeviceState()
        state.follow([InputEvent(EV_KEY, 30, 1), SYN, InputEvent(EV_KEY, 30, 0), SYN])
        self.assertEqual(state.events(), [])

    def test_keys(self) -> None:
        state = DeviceState()
        state.follow([InputEvent(EV_KEY, 42, 1), InputEvent(EV_KEY, 30, 1), SYN])
        self.assertEqual(state.events(), [InputEvent(EV_KEY, 42, 1), InputEvent(EV_KEY, 30, 1), SYN])

    @given(moves)
    def test_a_late_reader_is_where_the_others_are(
        self, moved: list[tuple[int, tuple[int, int] | None]]
    ) -> None:
        screen, early = TouchScreen(), DeviceState()
        for move in moved:
            early.follow(screen.frame([move]))
        late = DeviceState()
        late.follow(early.events())
        self.assertEqual(late.events(), early.events())
        # and what comes next means the same to both
        for reader in (early, late):
            reader.follow([InputEvent(EV_ABS, ABS_MT_TRACKING_ID, 5), SYN])
        self.assertEqual(late.events(), early.events())

    @given(
        st.lists(
            st.builds(
                InputEvent,
                st.integers(0, 5),
                st.integers(0, 0x50),
                st.integers(-0x8000_0000, 0x7FFF_FFFF),
            ),
            max_size=60,
        )
    )
    def test_any_events_can_be_followed_and_it_stays_small(self, events: list[InputEvent]) -> None:
        state = DeviceState()
        state.follow(events)
        self.assertLess(len(state.events()), 0x50 + 10 * 16 + 12)

    def test_a_slot_that_does_not_exist(self) -> None:
        state = DeviceState()
        state.follow([InputEvent(EV_ABS, ABS_MT_SLOT, 99), InputEvent(EV_ABS, ABS_MT_TRACKING_ID, 1), SYN])
        self.assertEqual(state.events(), [InputEvent(EV_ABS, ABS_MT_SLOT, 99), SYN])
