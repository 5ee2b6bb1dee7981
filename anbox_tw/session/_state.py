"""The life of a session's container as the session sees it, and the three levels derived from it.

Rules: all phases and what leads from one to the next are in this file, and it knows neither sockets nor time.
Who sends each input:

* ``START`` and ``STOP``: the service, when it is started and stopped;
* ``CONNECTED``, ``LOST``: the connection to the container manager;
* ``STARTED``, ``FAILED``, ``ENDED``: the manager's answers and events;
* ``RETRY``: the timer that the ``WAITING`` phase owns.

Levels are not phases: ``live`` (the process answers), ``ready`` (the container runs and the host's ADB server
sees its device), ``booted`` (the guest said so since its container was started). A guest may have booted
while no ADB server runs, so none includes another, but each needs a container but the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

__all__ = ["ADB_ONLINE", "TRANSITIONS", "Input", "Levels", "Phase", "SessionState", "WrongInput"]

ADB_ONLINE = "device"
"""The state in which an ADB server lists a device that can be used."""


class Phase(Enum):
    """Where the session stands with its container."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"


class Input(Enum):
    """What moves a session on."""

    START = "start"
    CONNECTED = "connected"
    STARTED = "started"
    FAILED = "failed"
    ENDED = "ended"
    LOST = "lost"
    RETRY = "retry"
    STOP = "stop"
    GONE = "gone"


TRANSITIONS: dict[tuple[Phase, Input], Phase] = {
    (Phase.STOPPED, Input.START): Phase.CONNECTING,
    # the manager cannot be reached, refuses, or leaves
    (Phase.CONNECTING, Input.CONNECTED): Phase.STARTING,
    (Phase.CONNECTING, Input.LOST): Phase.WAITING,
    (Phase.STARTING, Input.STARTED): Phase.RUNNING,
    (Phase.STARTING, Input.FAILED): Phase.WAITING,
    (Phase.STARTING, Input.LOST): Phase.WAITING,
    (Phase.RUNNING, Input.ENDED): Phase.WAITING,
    (Phase.RUNNING, Input.LOST): Phase.WAITING,
    (Phase.WAITING, Input.RETRY): Phase.CONNECTING,
    # a stop is possible at any time, and ends when the container is gone
    (Phase.CONNECTING, Input.STOP): Phase.STOPPING,
    (Phase.STARTING, Input.STOP): Phase.STOPPING,
    (Phase.RUNNING, Input.STOP): Phase.STOPPING,
    (Phase.WAITING, Input.STOP): Phase.STOPPING,
    (Phase.STOPPING, Input.GONE): Phase.STOPPED,
}


class WrongInput(Exception):
    """An input that the phase does not know: a defect of ours, never a peer's doing."""


@dataclass(frozen=True, slots=True)
class Levels:
    """How far a session is."""

    live: bool = False
    ready: bool = False
    booted: bool = False

    def reached(self, name: str) -> bool:
        """Whether the level called ``name`` (live, ready, booted) is there."""
        return {"live": self.live, "ready": self.ready, "booted": self.booted}[name]


class SessionState:
    """Phase, guest and ADB server together.

    Args:
        on_change: called after each change with what changed: ``phase``, ``adb`` or ``booted``.
    """

    def __init__(self, on_change: Callable[[str], object]) -> None:
        self._on_change = on_change
        self.phase = Phase.STOPPED
        self.detail = ""
        self.adb = "no server"
        self.booted = False
        self.first_boot = False
        self.starts = 0

    @property
    def levels(self) -> Levels:
        """The levels reached now."""
        runs = self.phase is Phase.RUNNING
        return Levels(
            live=self.phase is not Phase.STOPPED,
            ready=runs and self.adb == ADB_ONLINE,
            booted=runs and self.booted,
        )

    @property
    def waiting_for(self) -> str:
        """What keeps the session from the next level, in words; empty when all are reached."""
        if self.phase is not Phase.RUNNING:
            what = {
                Phase.CONNECTING: "the container manager",
                Phase.STARTING: "the container to start",
                Phase.WAITING: "the next attempt",
                Phase.STOPPING: "the container to stop",
                Phase.STOPPED: "a start",
            }[self.phase]
            return f"{what}: {self.detail}" if self.detail else what
        if not self.booted:
            return "the guest to say that it has booted"
        if self.adb != ADB_ONLINE:
            return f"the ADB server to see the device ({self.adb})"
        return ""

    def feed(self, event: Input, detail: str = "") -> Phase:
        """Take an input.

        Args:
            event: what happened.
            detail: in words, for people.

        Raises:
            WrongInput: the phase has no transition for it.
        """
        try:
            phase = TRANSITIONS[self.phase, event]
        except KeyError:
            raise WrongInput(f"{event.value} in phase {self.phase.value}") from None
        if phase is Phase.RUNNING:
            self.starts += 1
        if phase is not Phase.RUNNING:
            # What the guest said was said in a container that is not there any more.
            self.booted = self.first_boot = False
        self.phase, self.detail = phase, detail
        self._on_change("phase")
        return phase

    def boot_finished(self, first_boot: bool) -> None:
        """The guest says that it has booted, for the first time in its data directory or not."""
        self.booted, self.first_boot = True, first_boot
        self._on_change("booted")

    def adb_changed(self, state: str) -> None:
        """How the ADB server sees the device now."""
        self.adb = state
        self._on_change("adb")
