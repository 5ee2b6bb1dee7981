"""Gestures as events with times: taps, swipes, pinches, keystrokes, mouse. No I/O and no clock.

A gesture is a list of `Step`: what happens so many seconds after its begin. `anbox_tw.device.injector` plays it.
A touch step has all fingers of that moment, so that the guest sees them move together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import attrs

from anbox_tw.device.errors import BadValue
from anbox_tw.device.evdev import (
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    ABS_X,
    ABS_Y,
    BTN_LEFT,
    BTN_MIDDLE,
    BTN_RIGHT,
    EV_ABS,
    EV_KEY,
    EV_REL,
    MAX_SLOTS,
    REL_HWHEEL,
    REL_WHEEL,
    REL_X,
    REL_Y,
    SYN,
)
from anbox_tw.device.keys import LEFT_SHIFT, key_code, keystrokes
from anbox_tw.device.screen import InputDevice, InputEvent

__all__ = [
    "BUTTONS",
    "Contact",
    "KeyStep",
    "Mouse",
    "Step",
    "TouchScreen",
    "TouchStep",
    "keys_of",
    "paths",
    "pinch",
    "press",
    "swipe",
    "tap",
    "typing",
]

Point = tuple[float, float]

MAX_GESTURE_S = 60.0
"""A gesture that takes longer is none."""

MAX_RATE_HZ = 1000.0
"""Touch screens report 60 to 240 times a second; games' ones 1,000."""

DEFAULT_RATE_HZ = 120.0

TAP_S = 0.05
"""Between down and up of a tap; Android takes anything below 0.4 s for one."""

KEY_S = 0.02
"""Between down and up of a key."""

TYPING_S = 0.01
"""Between the keystrokes of a text."""

MAX_TAPS = 100

BUTTONS: Mapping[str, int] = {"left": BTN_LEFT, "right": BTN_RIGHT, "middle": BTN_MIDDLE}
"""Mouse buttons by name."""


@attrs.frozen
class Contact:
    """One finger at one moment.

    Attributes:
        finger: number within the gesture, from 0.
        position: x and y in pixels; ``None`` lifts the finger.
    """

    finger: int
    position: Point | None


@attrs.frozen
class TouchStep:
    """All fingers that change at one moment.

    Attributes:
        at: seconds after the gesture's begin.
        contacts: each finger once.
    """

    at: float
    contacts: tuple[Contact, ...]


@attrs.frozen
class KeyStep:
    """A key goes down or up.

    Attributes:
        at: seconds after the begin.
        code: Linux code.
        down: or up.
    """

    at: float
    code: int
    down: bool


Step = TouchStep | KeyStep
"""What happens at one moment of a gesture."""


def _seconds(name: str, value: float) -> float:
    if not 0 <= value <= MAX_GESTURE_S:  # also refuses what is not a number
        raise BadValue(f"{name} must be 0 to {MAX_GESTURE_S:g} seconds, not {value!r}")
    return value


def _rate(value: float) -> float:
    if not 1 <= value <= MAX_RATE_HZ:
        raise BadValue(f"a rate is 1 to {MAX_RATE_HZ:g} a second, not {value!r}")
    return value


def _along(path: Sequence[Point], part: float) -> Point:
    """The point at ``part`` (0 to 1) of the path's length."""
    lengths = [math.dist(a, b) for a, b in itertools.pairwise(path)]
    left = part * sum(lengths)
    for (a, b), length in zip(itertools.pairwise(path), lengths, strict=True):
        if left <= length and length:
            return (a[0] + (b[0] - a[0]) * left / length, a[1] + (b[1] - a[1]) * left / length)
        left -= length
    return path[-1]


def tap(position: Point, *, hold: float = TAP_S, count: int = 1, interval: float = 0.1) -> list[TouchStep]:
    """A finger touches and leaves.

    Args:
        position: where, pixels.
        hold: seconds between; 0.5 and more is a long press.
        count: 2 is a double tap.
        interval: seconds from leaving to the next touch.

    Raises:
        BadValue: a number is out of range.
    """
    if not 1 <= count <= MAX_TAPS:
        raise BadValue(f"{count} taps; there are 1 to {MAX_TAPS}")
    period = _seconds("the hold", hold) + _seconds("the interval", interval)
    _seconds("the whole", period * count)
    steps = []
    for number in range(count):
        steps.append(TouchStep(number * period, (Contact(0, position),)))
        steps.append(TouchStep(number * period + hold, (Contact(0, None),)))
    return steps


def paths(
    fingers: Sequence[Sequence[Point]],
    duration: float,
    *,
    rate: float = DEFAULT_RATE_HZ,
    hold: float = 0.0,
) -> list[TouchStep]:
    """Several fingers touch at once, each follows its own path at an even speed, and all leave together.

    Args:
        fingers: of each finger the corners of its path; one point is a finger that stays.
        duration: seconds of the movement.
        rate: reports a second.
        hold: seconds that the fingers stay before they move.

    Raises:
        BadValue: a number is out of range, or there are too many fingers.
    """
    if not 1 <= len(fingers) <= MAX_SLOTS:
        raise BadValue(f"{len(fingers)} fingers; the screen knows 1 to {MAX_SLOTS}")
    if not all(fingers):
        raise BadValue("a finger has no position")
    _seconds("the whole", _seconds("the duration", duration) + _seconds("the hold", hold))
    moves = max(1, round(duration * _rate(rate)))
    steps = [TouchStep(0.0, tuple(Contact(n, path[0]) for n, path in enumerate(fingers)))]
    for move in range(1, moves + 1):
        contacts = tuple(Contact(n, _along(path, move / moves)) for n, path in enumerate(fingers))
        steps.append(TouchStep(hold + duration * move / moves, contacts))
    steps.append(TouchStep(hold + duration, tuple(Contact(n, None) for n in range(len(fingers)))))
    return steps


def swipe(
    start: Point, end: Point, duration: float = 0.3, *, rate: float = DEFAULT_RATE_HZ, hold: float = 0.0
) -> list[TouchStep]:
    """One finger from ``start`` to ``end``; with ``hold`` it drags what it holds. Arguments as `paths`."""
    return paths([[start, end]], duration, rate=rate, hold=hold)


def pinch(
    centre: Point,
    start: float,
    end: float,
    duration: float = 0.4,
    *,
    angle: float = 0.0,
    rate: float = DEFAULT_RATE_HZ,
) -> list[TouchStep]:
    """Two fingers on opposite sides of ``centre`` move together or apart.

    Args:
        centre: pixels.
        start: distance of the fingers at first, pixels.
        end: distance at last; larger zooms in.
        duration: seconds.
        angle: of the line between them, degrees from the x axis.
        rate: reports a second.

    Raises:
        BadValue: a number is out of range.
    """
    if min(start, end) < 0 or not math.isfinite(start + end + angle):
        raise BadValue("the fingers' distances must be 0 or more pixels")
    x, y = math.cos(math.radians(angle)) / 2, math.sin(math.radians(angle)) / 2
    fingers = [
        [(centre[0] + side * x * distance, centre[1] + side * y * distance) for distance in (start, end)]
        for side in (-1, 1)
    ]
    return paths(fingers, duration, rate=rate)


def keys_of(names: str | int) -> list[int]:
    """The codes of a key, or of keys pressed together: ``CTRL+ALT+DEL``.

    Raises:
        UnknownName: no key is called so.
    """
    text = str(names)
    parts = text.split("+") if isinstance(names, str) and text.strip("+ ") else [names]
    return list(dict.fromkeys(key_code(part) for part in parts))


def press(names: str | int, *, hold: float = KEY_S) -> list[KeyStep]:
    """Keys go down in their order, and up in the reverse one after ``hold`` seconds.

    Raises:
        UnknownName: no key is called so.
        BadValue: the time is out of range.
    """
    codes = keys_of(names)
    _seconds("the hold", hold)
    return [
        *(KeyStep(0.0, code, True) for code in codes),
        *(KeyStep(hold, code, False) for code in reversed(codes)),
    ]


def typing(text: str, *, interval: float = TYPING_S) -> list[KeyStep]:
    """Text as keystrokes of a US keyboard.

    Args:
        text: ASCII, tabs and line ends.
        interval: seconds from one keystroke to the next.

    Raises:
        BadValue: a character cannot be typed, or it takes too long.
    """
    strokes = keystrokes(text)
    _seconds("the interval", interval)
    _seconds("the whole", interval * len(strokes))
    steps = []
    for place, (code, shift) in enumerate(strokes):
        at = place * interval
        codes = [LEFT_SHIFT, code] if shift else [code]
        steps += [KeyStep(at, one, True) for one in codes]
        steps += [KeyStep(at + interval / 2, one, False) for one in reversed(codes)]
    return steps


class TouchScreen:
    """The multi-touch protocol (type B) as the original speaks it: slots, tracking ids, a SYN_REPORT per moment."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[int, int]] = {}
        self._reserved: set[int] = set()
        self._current = 0

    @property
    def down(self) -> tuple[int, ...]:
        """Slots whose fingers touch."""
        return tuple(self._slots)

    def reserve(self, count: int) -> list[int]:
        """Take so many slots, the lowest that nobody has, for a gesture; `release` gives them back.

        Raises:
            BadValue: there are not so many.
        """
        found = [slot for slot in range(MAX_SLOTS) if slot not in self._reserved]
        if len(found) < count:
            raise BadValue(
                f"{count} fingers are to touch, and {len(self._reserved)} of {MAX_SLOTS} do already",
                "wait for the other gestures",
            )
        self._reserved.update(found[:count])
        return found[:count]

    def release(self, slots: Sequence[int]) -> list[InputEvent]:
        """Give slots back; returns the events that lift those fingers that still touch."""
        self._reserved.difference_update(slots)
        return self.frame([(slot, None) for slot in slots if slot in self._slots])

    def frame(self, contacts: Sequence[tuple[int, tuple[int, int] | None]]) -> list[InputEvent]:
        """The events of one moment.

        Args:
            contacts: slot and position in pixels, or ``None`` for a finger that leaves. A finger that does not touch
                yet comes down; one that leaves without touching is nothing.

        Returns:
            The events with a SYN_REPORT, or nothing when nothing changes.
        """
        events: list[InputEvent] = []
        for slot, position in contacts:
            known = self._slots.get(slot)
            if known == position:
                continue
            if slot != self._current:
                events.append(InputEvent(EV_ABS, ABS_MT_SLOT, slot))
                self._current = slot
            if position is None:
                events.append(InputEvent(EV_ABS, ABS_MT_TRACKING_ID, -1))
                del self._slots[slot]
                continue
            if known is None:
                events.append(InputEvent(EV_ABS, ABS_MT_TRACKING_ID, slot % MAX_SLOTS + 1))
            events.append(InputEvent(EV_ABS, ABS_MT_POSITION_X, position[0]))
            events.append(InputEvent(EV_ABS, ABS_MT_POSITION_Y, position[1]))
            self._slots[slot] = position
        return [*events, SYN] if events else []


class Mouse:
    """A mouse: as itself, or as the finger that the original makes of it.

    Args:
        touch: the screen that it touches, with the first free finger as the original does with its first, or ``None``
            when the mouse is a mouse.

    Attributes:
        position: x and y in pixels.
        buttons: those that are down.
    """

    def __init__(self, touch: TouchScreen | None) -> None:
        self._touch = touch
        self._slots: list[int] = []
        self.position = (0, 0)
        self.buttons: set[str] = set()

    def move(self, position: tuple[int, int]) -> list[tuple[InputDevice, list[InputEvent]]]:
        """Go to a position."""
        (x, y), self.position = self.position, position
        if self._touch is not None:
            return self._finger(self._touch.frame([(slot, position) for slot in self._slots]))
        return [
            (
                InputDevice.POINTER,
                [
                    *self._absolute(),
                    InputEvent(EV_REL, REL_X, position[0] - x),
                    InputEvent(EV_REL, REL_Y, position[1] - y),
                    SYN,
                ],
            )
        ]

    def button(self, name: str, down: bool) -> list[tuple[InputDevice, list[InputEvent]]]:
        """Press or release a button; as a finger, any button touches, as in the original.

        Raises:
            BadValue: no button is called so, or ten fingers touch already.
        """
        if name not in BUTTONS:
            raise BadValue(f"no button is called {name!r}", f"there are {', '.join(BUTTONS)}")
        if down == (name in self.buttons):
            return []
        first = down and not self.buttons
        if self._touch is not None and first:
            self._slots = self._touch.reserve(1)
        (self.buttons.add if down else self.buttons.remove)(name)
        if self._touch is None:
            return [(InputDevice.POINTER, [InputEvent(EV_KEY, BUTTONS[name], int(down)), SYN])]
        if first:
            return self._finger(self._touch.frame([(self._slots[0], self.position)]))
        if self.buttons:
            return []
        slots, self._slots = self._slots, []
        return self._finger(self._touch.release(slots))

    def wheel(self, vertical: int, horizontal: int = 0) -> list[tuple[InputDevice, list[InputEvent]]]:
        """Turn the wheel: up and right are positive."""
        turned = [
            InputEvent(EV_REL, code, clicks)
            for code, clicks in ((REL_WHEEL, vertical), (REL_HWHEEL, horizontal))
            if clicks
        ]
        if not turned:
            return []
        # A pointer that only scrolls has to be where the scrolling is meant.
        where = self._absolute() if self._touch is not None else []
        return [(InputDevice.POINTER, [*where, *turned, SYN])]

    @staticmethod
    def _finger(events: list[InputEvent]) -> list[tuple[InputDevice, list[InputEvent]]]:
        return [(InputDevice.TOUCH, events)] if events else []

    def _absolute(self) -> list[InputEvent]:
        x, y = self.position
        return [InputEvent(EV_ABS, ABS_X, x), InputEvent(EV_ABS, ABS_Y, y)]
