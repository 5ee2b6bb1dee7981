"""Which commands run, and in what order; nothing here runs one.

Source: ``init/action.cpp`` at android-7.0.0_r1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import frozen

from anbox_tw.android.rc.model import Action, Command

__all__ = ["MAX_QUEUED_TRIGGERS", "ActionQueue", "Builtin"]

MAX_QUEUED_TRIGGERS = 10000
"""Triggers that may wait; an action that sets the property it waits for must not eat the memory."""


@frozen
class _Event:
    name: str


@frozen
class _Property:
    """A change of one property; an empty name stands for all at once."""

    name: str
    value: str


@frozen
class Builtin:
    """Work of init's own that takes its turn in the queue."""

    name: str
    function: Callable[[], None]


class ActionQueue:
    """Triggers in order, and the actions each of them sets off, one command at a time.

    Attributes:
        actions: all actions, in order of definition; may grow at any time.
        dropped: triggers that found the queue full.
    """

    def __init__(self, get: Callable[[str], str]) -> None:
        """An empty queue.

        Args:
            get: gives a property's value.
        """
        self.actions: list[Action] = []
        self._get = get
        self._triggers: deque[_Event | _Property | Builtin] = deque()
        self._executing: deque[Action] = deque()
        self._next_command = 0
        self.dropped = 0

    def queue_event(self, name: str) -> None:
        """An event has happened."""
        self._add(_Event(name))

    def queue_property(self, name: str, value: str) -> None:
        """A property has changed."""
        self._add(_Property(name, value))

    def queue_all_properties(self) -> None:
        """Judge each property action by the values of now, as at the end of booting."""
        self._add(_Property("", ""))

    def queue_builtin(self, name: str, function: Callable[[], None]) -> None:
        """Run ``function`` when its turn comes."""
        self._add(Builtin(name, function))

    def _add(self, trigger: _Event | _Property | Builtin) -> None:
        if len(self._triggers) >= MAX_QUEUED_TRIGGERS:
            self.dropped += 1
        else:
            self._triggers.append(trigger)

    @property
    def busy(self) -> bool:
        """There is something to do."""
        self._leave_finished()
        return bool(self._executing or self._triggers)

    def _leave_finished(self) -> None:
        # looked at only now: the last command itself may have read a file that adds commands to its action
        while self._executing and self._next_command >= len(self._executing[0].commands):
            self._executing.popleft()
            self._next_command = 0

    def next(self) -> tuple[Action, Command] | Builtin | None:
        """The next command to run, or work of init's own, or ``None`` when there is nothing."""
        self._leave_finished()
        while not self._executing and self._triggers:
            trigger = self._triggers.popleft()
            if isinstance(trigger, Builtin):
                return trigger
            for action in self.actions:
                if self._matches(action, trigger):
                    self._executing.append(action)
        if not self._executing:
            return None
        action = self._executing[0]
        command = action.commands[self._next_command]
        self._next_command += 1
        return action, command

    def _matches(self, action: Action, trigger: _Event | _Property) -> bool:
        if isinstance(trigger, _Event):
            return action.trigger.event == trigger.name and self._properties_hold(action, "", "")
        if action.trigger.event is not None:
            return False
        return self._properties_hold(action, trigger.name, trigger.value)

    def _properties_hold(self, action: Action, name: str, value: str) -> bool:
        """All properties have the values wanted; the one that changed, if any, must be among them."""
        found = not name
        for wanted_name, wanted in action.trigger.properties:
            if wanted_name == name:
                if wanted not in ("*", value):
                    return False
                found = True
            else:
                current = self._get(wanted_name)
                if not current or wanted not in ("*", current):
                    return False
        return found
