"""Plays gestures on a device: the one way by which console, command line, D-Bus and Python inject input."""

from __future__ import annotations

import math
from collections.abc import Coroutine, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from anbox_tw.device import gestures
from anbox_tw.device.errors import BadValue
from anbox_tw.device.evdev import EV_KEY, MAX_BATCH_EVENTS, SYN
from anbox_tw.device.gestures import BUTTONS, KeyStep, Mouse, Point, Step, TouchScreen, TouchStep
from anbox_tw.device.model import Device
from anbox_tw.device.screen import InputDevice, InputEvent

__all__ = ["Injector"]

Playing = Coroutine[Deferred[Any], Any, None]
"""Ends when the gesture is done; a gesture that is cancelled lifts its fingers and releases its keys."""

MAX_WHEEL = 100
MOUSE_BITS = {"left": 1, "right": 2, "middle": 4}
WHEEL_UP, WHEEL_DOWN = 8, 16


class Injector:
    """Turns what a user means into events of the device's input.

    Steps are played at their times after the gesture's begin, not after one another, so that a late one does not delay
    the rest. Gestures may overlap: each has its own fingers.

    Args:
        device: whose ``input`` gets the events, and whose ``display`` bounds the positions.
        clock: tells the time.
        touch_emulation: whether the mouse is a finger, as in the original.
    """

    def __init__(self, device: Device, clock: IReactorTime, *, touch_emulation: bool = True) -> None:
        self._device = device
        self._clock = clock
        self.touch = TouchScreen()
        self._emulates = touch_emulation
        self._mouse = Mouse(self.touch if touch_emulation else None)
        self._trackball = Mouse(None)

    # -- gestures --

    def tap(self, x: float, y: float, *, hold: float = gestures.TAP_S, count: int = 1) -> Playing:
        """Touch and leave, see `gestures.tap`."""
        return self.play(gestures.tap(self._point(x, y), hold=hold, count=count))

    def swipe(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        *,
        duration: float = 0.3,
        rate: float = gestures.DEFAULT_RATE_HZ,
        hold: float = 0.0,
    ) -> Playing:
        """Touch, move and leave, see `gestures.swipe`."""
        start, end = self._point(x1, y1), self._point(x2, y2)
        return self.play(gestures.swipe(start, end, duration, rate=rate, hold=hold))

    def multitouch(
        self,
        fingers: Sequence[Sequence[Point]],
        *,
        duration: float = 0.3,
        rate: float = gestures.DEFAULT_RATE_HZ,
        hold: float = 0.0,
    ) -> Playing:
        """Several fingers, see `gestures.paths`."""
        checked = []
        for path in fingers:
            if len(path) > MAX_BATCH_EVENTS:
                raise BadValue(f"a path of {len(path)} corners is too long")
            checked.append([self._point(*_pair(point)) for point in path])
        return self.play(gestures.paths(checked, duration, rate=rate, hold=hold))

    def pinch(
        self,
        x: float,
        y: float,
        start: float,
        end: float,
        *,
        duration: float = 0.4,
        angle: float = 0.0,
        rate: float = gestures.DEFAULT_RATE_HZ,
    ) -> Playing:
        """Two fingers together or apart, see `gestures.pinch`; all of it must be on the screen."""
        steps = gestures.pinch(self._point(x, y), start, end, duration, angle=angle, rate=rate)
        for step in steps:
            for contact in step.contacts:
                if contact.position is not None:
                    self._point(*contact.position)
        return self.play(steps)

    def text(self, text: str, *, interval: float = gestures.TYPING_S) -> Playing:
        """Type, see `gestures.typing`."""
        return self.play(gestures.typing(text, interval=interval))

    def press(self, names: str | int, *, hold: float = gestures.KEY_S) -> Playing:
        """Press and release keys, see `gestures.press`."""
        return self.play(gestures.press(names, hold=hold))

    # -- what lasts --

    def key(self, names: str | int, down: bool) -> None:
        """Press keys, or release them.

        Raises:
            UnknownName: no key is called so.
        """
        codes = gestures.keys_of(names)
        for code in codes if down else reversed(codes):
            self._key(code, down)

    def mouse_move(self, x: float, y: float) -> None:
        """Move the mouse.

        Raises:
            BadValue: that is not on the screen.
        """
        self._inject(self._mouse.move(_pixels(self._point(x, y))))

    def mouse_button(self, button: str, down: bool) -> None:
        """Press a mouse button (``left``, ``right``, ``middle``), or release it.

        Raises:
            BadValue: no button is called so.
        """
        self._inject(self._mouse.button(button, down))

    def wheel(self, vertical: int, horizontal: int = 0) -> None:
        """Turn the mouse's wheel: up and right are positive, in clicks.

        Raises:
            BadValue: too far.
        """
        if not all(isinstance(clicks, int) and abs(clicks) <= MAX_WHEEL for clicks in (vertical, horizontal)):
            raise BadValue(f"a wheel turns by {-MAX_WHEEL} to {MAX_WHEEL} clicks")
        self._inject(self._mouse.wheel(vertical, horizontal))

    def mouse_state(self, x: int, y: int, device: int, buttons: int) -> None:
        """What the emulator's ``event mouse`` says: where the mouse is, and which buttons are down.

        Args:
            x: pixels; for a trackball the way to the right, likewise ``y`` down.
            y: pixels.
            device: 0 touch screen, 1 trackball.
            buttons: sum of 1 left, 2 right, 4 middle, 8 wheel up, 16 wheel down.

        Raises:
            BadValue: a number is out of range.
        """
        if device not in (0, 1):
            raise BadValue(f"there is no mouse device {device}", "0 is the touch screen, 1 a trackball")
        if not 0 <= buttons < 2 * WHEEL_DOWN:
            raise BadValue(f"there are no buttons {buttons}", "1 left, 2 right, 4 middle, 8 and 16 wheel")
        mouse = self._mouse if device == 0 else self._trackball
        if device == 0:
            where = _pixels(self._point(x, y))
        else:
            where = (mouse.position[0] + x, mouse.position[1] + y)
            if max(map(abs, where)) > 0x7FFF_FFFF:
                raise BadValue("the trackball rolls too far")
        if where != mouse.position:
            self._inject(mouse.move(where))
        for name, bit in MOUSE_BITS.items():
            self._inject(mouse.button(name, bool(buttons & bit)))
        self._inject(mouse.wheel(bool(buttons & WHEEL_UP) - bool(buttons & WHEEL_DOWN)))

    def raw(self, device: InputDevice, events: Sequence[InputEvent]) -> None:
        """Inject events as they are; the caller gives the SYN_REPORT that he wants.

        Raises:
            BadValue: a number does not fit, or there are too many.
        """
        if len(events) > MAX_BATCH_EVENTS:
            raise BadValue(f"{len(events)} events are too many", f"give at most {MAX_BATCH_EVENTS} at once")
        for event in events:
            fits = 0 <= event.type <= 0xFFFF and 0 <= event.code <= 0xFFFF
            if not fits or not -0x8000_0000 <= event.value <= 0x7FFF_FFFF:
                raise BadValue(
                    f"the event {event.type}:{event.code}:{event.value} does not fit",
                    "type and code have 16 bits, the value 32",
                )
        self._device.input.inject(device, events)

    # -- playing --

    async def play(self, steps: Sequence[Step]) -> None:
        """Play a gesture.

        Raises:
            BadValue: more fingers than the screen has left.
        """
        fingers = sorted(
            {contact.finger for step in steps if isinstance(step, TouchStep) for contact in step.contacts}
        )
        slots = dict(zip(fingers, self.touch.reserve(len(fingers)), strict=True))
        pressed: dict[int, None] = {}
        begin = self._clock.seconds()
        try:
            for step in steps:
                wait = begin + step.at - self._clock.seconds()
                if wait > 0:
                    await deferLater(self._clock, wait)
                if isinstance(step, KeyStep):
                    self._key(step.code, step.down)
                    if step.down:
                        pressed[step.code] = None
                    else:
                        pressed.pop(step.code, None)
                else:
                    frame = [
                        (slots[one.finger], None if one.position is None else _pixels(one.position))
                        for one in step.contacts
                    ]
                    self._inject([(InputDevice.TOUCH, self.touch.frame(frame))])
        finally:
            self._inject([(InputDevice.TOUCH, self.touch.release(list(slots.values())))])
            for code in reversed(pressed):
                self._key(code, False)

    def _key(self, code: int, down: bool) -> None:
        self._device.input.inject(InputDevice.KEYBOARD, [InputEvent(EV_KEY, code, int(down)), SYN])

    def _inject(self, batches: Sequence[tuple[InputDevice, Sequence[InputEvent]]]) -> None:
        for device, events in batches:
            self._device.input.inject(device, events)

    def _point(self, x: float, y: float) -> Point:
        display = self._device.display.state
        for name, value, size in (("x", x, display.width), ("y", y, display.height)):
            good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not good or not 0 <= value <= size:
                raise BadValue(f"{name} = {value!r} is not on the screen", f"it is 0 to {size - 1} pixels")
        return (min(x, display.width - 1), min(y, display.height - 1))


def _pair(point: Any) -> tuple[float, float]:
    if not isinstance(point, list | tuple) or len(point) != 2:
        raise BadValue(f"{point!r} is no position", "give x and y")
    return (point[0], point[1])


def _pixels(point: Point) -> tuple[int, int]:
    return (round(point[0]), round(point[1]))


assert set(MOUSE_BITS) == set(BUTTONS)
