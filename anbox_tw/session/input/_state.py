"""What a device's readers should know of it: keys and fingers that are down, told again to whoever missed it.

The kernel's evdev has ioctls for this (``EVIOCGKEY``, ``EVIOCGMTSLOTS``), and a reader asks after a SYN_DROPPED. A socket
has none, so the state is sent as events: to a reader that comes late, and after a SYN_DROPPED.
"""

from __future__ import annotations

from collections.abc import Iterable

from anbox_tw.device.evdev import (
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    EV_ABS,
    EV_KEY,
    EV_SYN,
    MAX_SLOTS,
    SYN,
    SYN_DROPPED,
)
from anbox_tw.device.screen import InputEvent

__all__ = ["DROPPED", "DeviceState"]

DROPPED = (InputEvent(EV_SYN, SYN_DROPPED, 0), SYN)
"""Tells a reader that it missed events: it forgets what is down, and ignores everything up to the SYN_REPORT."""

_FIRST_MT, _LAST_MT = 0x30, 0x3D
"""ABS_MT_* but the slot: each slot has its own."""


class DeviceState:
    """Follows a device's events."""

    def __init__(self) -> None:
        self._keys: dict[int, int] = {}
        self._slot = 0
        self._slots: dict[int, dict[int, int]] = {}

    def follow(self, events: Iterable[InputEvent]) -> None:
        """Take events that were sent."""
        for event in events:
            if event.type == EV_KEY:
                if event.value:
                    self._keys[event.code] = event.value
                else:
                    self._keys.pop(event.code, None)
            elif event.type == EV_ABS and event.code == ABS_MT_SLOT:
                self._slot = event.value
            elif event.type == EV_ABS and _FIRST_MT <= event.code <= _LAST_MT:
                self._touch(event)

    def _touch(self, event: InputEvent) -> None:
        if not 0 <= self._slot < MAX_SLOTS:
            return
        if event.code == ABS_MT_TRACKING_ID and event.value < 0:
            self._slots.pop(self._slot, None)
        elif event.code == ABS_MT_TRACKING_ID or self._slot in self._slots:
            self._slots.setdefault(self._slot, {})[event.code] = event.value

    def events(self) -> list[InputEvent]:
        """The state as events for a reader that knows nothing; empty when nothing is down."""
        told = [InputEvent(EV_KEY, code, value) for code, value in self._keys.items()]
        slot = 0
        for number, axes in self._slots.items():
            if number != slot:
                told.append(InputEvent(EV_ABS, ABS_MT_SLOT, number))
                slot = number
            told.append(InputEvent(EV_ABS, ABS_MT_TRACKING_ID, axes[ABS_MT_TRACKING_ID]))
            told += [
                InputEvent(EV_ABS, code, value) for code, value in axes.items() if code != ABS_MT_TRACKING_ID
            ]
        if slot != self._slot:
            told.append(InputEvent(EV_ABS, ABS_MT_SLOT, self._slot))
        return [*told, SYN] if told else []
