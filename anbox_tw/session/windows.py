"""The guest's tasks as the host's windows: which there are, what happens to them, what can be asked of them.

The rules are the original's (``src/anbox/wm/multi_window_manager.cpp``): beside whole Android in one window there is the
multi-window mode, in which each task of the freeform stack that has a surface is a window of its own. Nothing here draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from anbox_tw.session.bridge import Bridge, Rect, Window
from anbox_tw.session.errors import BadRequest, UnknownTask

__all__ = ["FREEFORM", "STACKS", "Windows", "stack_name"]

STACKS = {"default": 0, "fullscreen": 1, "freeform": 2}
"""By the names that D-Bus and the command line use; -1 is invalid."""

FREEFORM = STACKS["freeform"]

MAX_COORDINATE = 1 << 20
"""Pixels; far beyond any display, and far from what an int32 would wrap at."""


def stack_name(number: int) -> str:
    """The name of a stack, or its number where it has none."""
    return next((name for name, known in STACKS.items() if known == number), str(number))


class Windows:
    """Follows the guest's tasks.

    Args:
        bridge: reports them and does what is asked.
        title_of: the label of a package.
        tell: called with ``added``, ``changed`` or ``removed``, the task and its package.
        single_window: whole Android is one window, so no task has one of its own.
    """

    def __init__(
        self,
        bridge: Bridge,
        title_of: Callable[[str], str],
        tell: Callable[[str, int, str], object],
        *,
        single_window: bool = False,
    ) -> None:
        self._bridge = bridge
        self._title_of = title_of
        self._tell = tell
        self._single_window = single_window
        self._known: dict[int, Window] = {}
        bridge.observe(self._bridge_changed)

    def stack_for(self, wanted: int) -> int:
        """The stack that a launch goes to: with a window for each task it must be the freeform one, as in the original."""
        return wanted if self._single_window else FREEFORM

    def listing(self) -> list[dict[str, Any]]:
        """All tasks by number, JSON-able. ``window`` says whether the task is a window of the host by the rules."""
        return [self._describe(window) for _, window in sorted(self._bridge.windows.items())]

    def focus(self, task: int) -> Deferred[None]:
        """Give a task the focus.

        Raises:
            UnknownTask: there is none of this number.
        """
        self._check(task)
        return self._bridge.set_focused_task(task)

    def remove(self, task: int) -> Deferred[None]:
        """End a task.

        Raises:
            UnknownTask: there is none of this number.
        """
        self._check(task)
        return self._bridge.remove_task(task)

    def resize(self, task: int, left: int, top: int, right: int, bottom: int) -> Deferred[None]:
        """Move and resize a task's window; right and bottom are the first pixels outside.

        Raises:
            UnknownTask: there is none of this number.
            BadRequest: the rectangle is none.
        """
        self._check(task)
        sides = (left, top, right, bottom)
        if not all(type(side) is int and -MAX_COORDINATE <= side <= MAX_COORDINATE for side in sides):
            raise BadRequest(f"the sides of a window are whole numbers up to {MAX_COORDINATE}, not {sides}")
        if left >= right or top >= bottom:
            raise BadRequest(
                f"{left},{top},{right},{bottom} is no rectangle",
                "give left, top, right and bottom; left must be less than right, and top less than bottom",
            )
        return self._bridge.resize_task(task, Rect(left, top, right, bottom))

    def _check(self, task: int) -> None:
        if task not in self._bridge.windows:
            there = ", ".join(str(number) for number in sorted(self._bridge.windows)[:20]) or "none"
            raise UnknownTask(f"there is no task {task}", f"there are: {there}; see 'anbox tasks list'")

    def _describe(self, window: Window) -> dict[str, Any]:
        frame = window.frame
        return {
            "task": window.task,
            "package": window.package,
            "title": self._title_of(window.package) or window.package,
            "stack": stack_name(window.stack),
            "display": window.display,
            "surface": window.has_surface,
            "window": not self._single_window and window.stack == FREEFORM and window.has_surface,
            "frame": [frame.left, frame.top, frame.right, frame.bottom],
        }

    def _bridge_changed(self, kind: str, value: Any) -> None:
        if kind == "disconnected":
            gone, self._known = self._known, {}
            for task, last in gone.items():
                self._tell("removed", task, last.package)
        elif kind == "windows":
            changed, removed = value
            for task in removed:
                left = self._known.pop(task, None)
                if left is not None:
                    self._tell("removed", task, left.package)
            for task in changed:
                window = self._bridge.windows[task]
                before = self._known.get(task)
                self._known[task] = window
                if before is None:
                    self._tell("added", task, window.package)
                elif before != window:
                    self._tell("changed", task, window.package)
