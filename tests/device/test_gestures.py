"""Gestures as events, and the injector that plays them, against a clock of the test."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import BadValue, Change, Device, InputDevice, InputEvent, UnknownName
from anbox_tw.device import gestures as g
from anbox_tw.device.evdev import (
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    EV_ABS,
    EV_KEY,
    EV_REL,
    SYN,
)
from anbox_tw.device.gestures import Contact, TouchScreen, TouchStep
from anbox_tw.device.injector import Injector
from anbox_tw.device.keys import US_KEYMAP, key_code, keystrokes


def slot(number: int) -> InputEvent:
    return InputEvent(EV_ABS, ABS_MT_SLOT, number)


def track(number: int) -> InputEvent:
    return InputEvent(EV_ABS, ABS_MT_TRACKING_ID, number)


def at(x: int, y: int) -> list[InputEvent]:
    return [InputEvent(EV_ABS, ABS_MT_POSITION_X, x), InputEvent(EV_ABS, ABS_MT_POSITION_Y, y)]


class KeyTests(SynchronousTestCase):
    def test_names(self) -> None:
        for name, code in (
            ("KEY_A", 30),
            ("a", 30),
            ("A", 30),
            ("KEYCODE_A", 30),
            ("5", 6),
            ("KEYCODE_5", 6),
            (5, 5),
            ("30", 30),
            ("HOME", 172),
            ("KEYCODE_HOME", 172),
            ("KEY_HOME", 102),
            ("back", 158),
            ("ctrl", 29),
            ("BTN_LEFT", 0x110),
            ("leftbrace", 26),
            ("VOLUME_UP", 115),
        ):
            self.assertEqual(key_code(name), code, name)

    def test_no_such_key(self) -> None:
        for bad in ("", "KEY_", "KEYCODE_HOM", "-5", "00", 0, 768, "99999", "KEY_A B"):
            self.assertRaises(UnknownName, key_code, bad)
        error = self.assertRaises(UnknownName, key_code, "VOLUME_UPP")
        self.assertIn("VOLUME_UP", str(error))

    def test_text(self) -> None:
        self.assertEqual(keystrokes("aA1!"), [(30, False), (30, True), (2, False), (2, True)])
        self.assertEqual(keystrokes("\r\n\t "), [(28, False), (15, False), (57, False)])
        printable = {chr(number) for number in range(32, 127)}
        self.assertEqual(set(US_KEYMAP), printable | {"\n", "\t"})
        self.assertEqual(len({(code, shift) for code, shift in US_KEYMAP.values()}), len(US_KEYMAP))

    def test_text_that_cannot_be_typed(self) -> None:
        error = self.assertRaises(BadValue, keystrokes, "caffè ☕")
        self.assertIn("è☕", str(error))
        self.assertIn("clipboard", str(error))
        self.assertRaises(BadValue, keystrokes, "a" * 4097)


class GestureTests(SynchronousTestCase):
    def test_tap(self) -> None:
        steps = g.tap((5, 6), hold=0.1, count=2, interval=0.2)
        self.assertEqual([round(step.at, 6) for step in steps], [0, 0.1, 0.3, 0.4])
        self.assertEqual([step.contacts[0].position for step in steps], [(5, 6), None, (5, 6), None])

    def test_swipe_is_even_and_on_time(self) -> None:
        steps = g.swipe((0, 100), (100, 0), 0.5, rate=100)
        self.assertEqual(len(steps), 1 + 50 + 1)
        for number, step in enumerate(steps[:-1]):
            self.assertAlmostEqual(step.at, number * 0.01)
            position = step.contacts[0].position
            assert position is not None
            self.assertAlmostEqual(position[0], number * 2)
            self.assertAlmostEqual(position[1], 100 - number * 2)
        self.assertEqual(steps[-1], TouchStep(0.5, (Contact(0, None),)))

    def test_a_path_with_corners_has_one_speed(self) -> None:
        steps = g.paths([[(0, 0), (30, 0), (30, 10)]], 1.0, rate=4)
        self.assertEqual(
            [step.contacts[0].position for step in steps], [(0, 0), (10, 0), (20, 0), (30, 0), (30, 10), None]
        )
        still = g.paths([[(7, 7)], [(1, 1), (1, 1)]], 0.1, rate=10)
        self.assertEqual({c.position for step in still for c in step.contacts}, {(7, 7), (1, 1), None})

    def test_pinch(self) -> None:
        steps = g.pinch((50, 50), 20, 100, 0.2, angle=90, rate=10)
        first, last = steps[0].contacts, steps[-2].contacts
        for contacts, distance in ((first, 20), (last, 100)):
            (a, b) = (contact.position for contact in contacts)
            assert a is not None and b is not None
            self.assertAlmostEqual(math.dist(a, b), distance)
            self.assertAlmostEqual(a[0], 50)
        self.assertTrue(all(len(step.contacts) == 2 for step in steps))

    def test_press_and_typing(self) -> None:
        steps = g.press("CTRL+A", hold=0.5)
        self.assertEqual(
            [(s.at, s.code, s.down) for s in steps],
            [(0, 29, True), (0, 30, True), (0.5, 30, False), (0.5, 29, False)],
        )
        self.assertEqual([s.code for s in g.press("KEY_KPPLUS")], [78, 78])
        self.assertRaises(UnknownName, g.press, "+")
        typed = g.typing("aB", interval=0.1)
        self.assertEqual(
            [(round(s.at, 3), s.code, s.down) for s in typed],
            [
                (0, 30, True),
                (0.05, 30, False),
                (0.1, 42, True),
                (0.1, 48, True),
                (0.15, 48, False),
                (0.15, 42, False),
            ],
        )

    def test_numbers_out_of_range(self) -> None:
        for call in (
            lambda: g.tap((0, 0), hold=-1),
            lambda: g.tap((0, 0), hold=math.nan),
            lambda: g.tap((0, 0), count=0),
            lambda: g.tap((0, 0), hold=30, count=3),
            lambda: g.swipe((0, 0), (1, 1), 61),
            lambda: g.swipe((0, 0), (1, 1), rate=0),
            lambda: g.swipe((0, 0), (1, 1), rate=1001),
            lambda: g.paths([], 1),
            lambda: g.paths([[]], 1),
            lambda: g.paths([[(0, 0)]] * 11, 1),
            lambda: g.pinch((0, 0), -1, 1),
            lambda: g.pinch((0, 0), math.inf, 1),
            lambda: g.typing("ab", interval=50),
        ):
            self.assertRaises(BadValue, call)


class TouchScreenTests(SynchronousTestCase):
    def test_as_the_original(self) -> None:
        screen = TouchScreen()
        self.assertEqual(screen.frame([(0, (1, 2))]), [track(1), *at(1, 2), SYN])
        self.assertEqual(screen.frame([(0, (3, 4))]), [*at(3, 4), SYN])
        self.assertEqual(screen.frame([(1, (5, 6))]), [slot(1), track(2), *at(5, 6), SYN])
        self.assertEqual(
            screen.frame([(0, (7, 8)), (1, (9, 9))]), [slot(0), *at(7, 8), slot(1), *at(9, 9), SYN]
        )
        self.assertEqual(screen.frame([(1, None)]), [track(-1), SYN])
        self.assertEqual(screen.frame([(0, None)]), [slot(0), track(-1), SYN])
        self.assertEqual(screen.frame([(0, None)]), [])

    def test_ten_fingers(self) -> None:
        screen = TouchScreen()
        self.assertEqual(screen.reserve(10), list(range(10)))
        self.assertRaises(BadValue, screen.reserve, 1)
        events = screen.frame([(number, (number, number)) for number in range(10)])
        self.assertEqual([e.value for e in events if e.code == ABS_MT_TRACKING_ID], list(range(1, 11)))
        self.assertEqual(events.count(SYN), 1)
        lifted = screen.release(list(range(10)))
        self.assertEqual([e.value for e in lifted if e.code == ABS_MT_TRACKING_ID], [-1] * 10)
        self.assertEqual(screen.down, ())
        self.assertEqual(screen.reserve(1), [0])

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 9), st.one_of(st.none(), st.tuples(st.integers(0, 99), st.integers(0, 99)))
            ),
            max_size=60,
        )
    )
    def test_a_guest_that_follows_sees_the_same_fingers(self, moves: list[Any]) -> None:
        screen = TouchScreen()
        current, fingers, wanted = 0, dict[int, dict[int, int]](), dict[int, tuple[int, int]]()
        for number, position in moves:
            if position is None:
                wanted.pop(number, None)
            else:
                wanted[number] = position
            for event in screen.frame([(number, position)]):
                if event.code == ABS_MT_SLOT and event.type == EV_ABS:
                    current = event.value
                elif event.code == ABS_MT_TRACKING_ID and event.value == -1:
                    del fingers[current]
                elif event.type == EV_ABS:
                    fingers.setdefault(current, {})[event.code] = event.value
            seen = {n: (axes[ABS_MT_POSITION_X], axes[ABS_MT_POSITION_Y]) for n, axes in fingers.items()}
            self.assertEqual(seen, wanted)


class InjectorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.device = Device(width=1000, height=500)
        self.batches: list[tuple[float, InputDevice, tuple[InputEvent, ...]]] = []
        self.device.input.observe(self.changed)
        self.injector = Injector(self.device, self.clock)

    def changed(self, change: Change) -> None:
        self.batches.append((round(self.clock.seconds(), 6), *change.value))

    def start(self, playing: Any) -> Deferred[None]:
        return ensureDeferred(playing)

    def taken(self) -> list[Any]:
        batches, self.batches = self.batches, []
        return batches

    def test_tap(self) -> None:
        done = self.start(self.injector.tap(10, 20, hold=0.5))
        self.clock.pump([0.1] * 4)
        self.assertNoResult(done)
        self.clock.advance(0.1)
        self.successResultOf(done)
        self.assertEqual(
            self.taken(),
            [
                (0, InputDevice.TOUCH, (track(1), *at(10, 20), SYN)),
                (0.5, InputDevice.TOUCH, (track(-1), SYN)),
            ],
        )

    def test_a_late_step_delays_no_other(self) -> None:
        done = self.start(self.injector.swipe(0, 0, 100, 0, duration=1, rate=10))
        self.clock.advance(0.1)
        self.clock.advance(0.55)  # a busy reactor: the steps of 0.2 to 0.6 are due at once
        times = [when for when, *_ in self.batches]
        self.assertEqual(times, [0, 0.1, 0.65, 0.65, 0.65, 0.65, 0.65])
        self.clock.advance(0.05)
        self.assertEqual(self.batches[-1][0], 0.7)
        self.clock.pump([0.1] * 3)
        self.successResultOf(done)
        self.assertEqual(self.batches[-1], (1.0, InputDevice.TOUCH, (track(-1), SYN)))

    def test_gestures_at_once_have_their_own_fingers(self) -> None:
        one = self.start(self.injector.tap(1, 1, hold=1))
        two = self.start(self.injector.tap(2, 2, hold=0.5))
        self.assertEqual(self.taken()[1][2], (slot(1), track(2), *at(2, 2), SYN))
        self.clock.advance(0.5)
        self.successResultOf(two)
        third = self.start(self.injector.tap(3, 3, hold=0.1))
        self.assertEqual(self.taken()[-1][2], (track(2), *at(3, 3), SYN))
        self.clock.advance(0.1)
        self.clock.advance(0.4)
        for done in (one, third):
            self.successResultOf(done)

    def test_too_many_fingers(self) -> None:
        paths = [[(n, n)] for n in range(9)]
        done = self.start(self.injector.multitouch(paths, duration=1, rate=1))
        self.failureResultOf(self.start(self.injector.pinch(500, 250, 10, 20)), BadValue)
        self.successResultOf(self.start(self.injector.tap(1, 1, hold=0)))
        self.clock.advance(1)
        self.successResultOf(done)
        self.assertEqual(self.injector.touch.down, ())

    def test_a_cancelled_gesture_lets_go(self) -> None:
        pinching = self.start(self.injector.pinch(500, 250, 10, 20, duration=1))
        pressing = self.start(self.injector.press("CTRL+C", hold=5))
        self.taken()
        pinching.cancel()
        self.failureResultOf(pinching, CancelledError)
        self.assertEqual(self.taken()[0][2], (slot(0), track(-1), slot(1), track(-1), SYN))
        pressing.cancel()
        self.failureResultOf(pressing, CancelledError)
        self.assertEqual(
            [batch[2][0] for batch in self.taken()], [InputEvent(1, 46, 0), InputEvent(1, 29, 0)]
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_text(self) -> None:
        done = self.start(self.injector.text("Hi", interval=0.01))
        self.clock.pump([0.005] * 4)
        self.successResultOf(done)
        self.assertTrue(all(batch[2][-1] == SYN and len(batch[2]) == 2 for batch in self.batches))
        self.assertEqual(
            [(batch[2][0].code, batch[2][0].value) for batch in self.batches],
            [(42, 1), (35, 1), (35, 0), (42, 0), (23, 1), (23, 0)],
        )

    def test_the_mouse_is_a_finger(self) -> None:
        injector = self.injector
        injector.mouse_move(5, 5)
        self.assertEqual(self.taken(), [])
        injector.mouse_button("right", True)
        injector.mouse_button("left", True)
        injector.mouse_move(6, 7)
        injector.mouse_button("right", False)
        self.assertEqual([batch[2] for batch in self.taken()], [(track(1), *at(5, 5), SYN), (*at(6, 7), SYN)])
        injector.mouse_button("left", False)
        self.assertEqual([batch[2] for batch in self.taken()], [(track(-1), SYN)])
        injector.wheel(-2)
        self.assertEqual(
            self.taken(),
            [
                (
                    0,
                    InputDevice.POINTER,
                    (InputEvent(EV_ABS, 0, 6), InputEvent(EV_ABS, 1, 7), InputEvent(EV_REL, 8, -2), SYN),
                )
            ],
        )

    def test_the_mouse_as_itself(self) -> None:
        injector = Injector(self.device, self.clock, touch_emulation=False)
        injector.mouse_move(5, 5)
        injector.mouse_button("middle", True)
        injector.mouse_button("middle", True)
        injector.mouse_button("middle", False)
        injector.wheel(0, 3)
        self.assertEqual(
            [batch[2] for batch in self.taken()],
            [
                (
                    InputEvent(EV_ABS, 0, 5),
                    InputEvent(EV_ABS, 1, 5),
                    InputEvent(EV_REL, 0, 5),
                    InputEvent(EV_REL, 1, 5),
                    SYN,
                ),
                (InputEvent(EV_KEY, 0x112, 1), SYN),
                (InputEvent(EV_KEY, 0x112, 0), SYN),
                (InputEvent(EV_REL, 6, 3), SYN),
            ],
        )

    def test_mouse_state_of_the_emulator(self) -> None:
        injector = self.injector
        injector.mouse_state(10, 20, 0, 1)
        injector.mouse_state(11, 21, 0, 1)
        injector.mouse_state(11, 21, 0, 8)
        self.assertEqual(
            [batch[2][:1] for batch in self.taken()],
            [(track(1),), (at(11, 21)[0],), (track(-1),), (InputEvent(EV_ABS, 0, 11),)],
        )
        injector.mouse_state(-3, 4, 1, 16)
        moved, turned = (batch[2] for batch in self.taken())
        self.assertEqual(moved[2:], (InputEvent(EV_REL, 0, -3), InputEvent(EV_REL, 1, 4), SYN))
        self.assertEqual(turned, (InputEvent(EV_REL, 8, -1), SYN))
        for bad in ((1, 1, 2, 0), (1, 1, 0, 32), (1, 1, 0, -1), (5000, 1, 0, 0), (1 << 40, 0, 1, 0)):
            self.assertRaises(BadValue, injector.mouse_state, *bad)

    def test_what_is_not_on_the_screen(self) -> None:
        injector = self.injector
        for bad in ((-1, 0), (1001, 0), (0, 501), (math.nan, 0), (math.inf, 0), ("1", 0), (True, 0)):
            self.assertRaises(BadValue, injector.tap, *bad)
        self.assertRaises(BadValue, injector.pinch, 10, 10, 10, 100)
        self.assertRaises(BadValue, injector.multitouch, [[(1, 2, 3)]])
        self.assertRaises(BadValue, injector.wheel, 101)
        self.assertRaises(BadValue, injector.mouse_button, "fourth", True)
        self.successResultOf(self.start(injector.tap(1000, 500, hold=0)))
        self.assertEqual(self.taken()[0][2], (track(1), *at(999, 499), SYN))

    def test_keys_and_raw_events(self) -> None:
        self.injector.key("SHIFT+A", True)
        self.injector.key("SHIFT+A", False)
        self.assertEqual(
            [(batch[2][0].code, batch[2][0].value) for batch in self.taken()],
            [(42, 1), (30, 1), (30, 0), (42, 0)],
        )
        self.injector.raw(InputDevice.KEYBOARD, [InputEvent(4, 4, 30)])
        self.assertEqual(self.taken(), [(0, InputDevice.KEYBOARD, (InputEvent(4, 4, 30),))])
        self.assertRaises(BadValue, self.injector.raw, InputDevice.TOUCH, [SYN] * 1025)
        self.assertRaises(BadValue, self.injector.raw, InputDevice.TOUCH, [InputEvent(0, 0, 1 << 31)])
