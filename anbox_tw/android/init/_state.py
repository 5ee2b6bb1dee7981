"""One service's life, by init's rules; nothing here forks, kills or knows a reactor.

Source: ``init/service.cpp`` at android-7.0.0_r1. The rules live in flags, as there, because they combine
freely (a service can be running, critical and about to be restarted by hand at one time), and the words of
``init.svc.*`` are four views of them:

* ``running``: the process was made; ``stopping``: it was sent a signal and has not ended;
* ``stopped``: it ended and stays so; ``restarting``: it ended and waits for its next start.

Who calls what: ``start``, ``stop``, ``reset``, ``restart``, ``enable`` come from commands and ``ctl.*``;
``reap`` from the supervisor when the process ended; ``restart_if_due`` from its turn.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Protocol

from anbox_tw.android.rc.model import RcService

__all__ = [
    "CRITICAL_THRESHOLD",
    "CRITICAL_WINDOW_S",
    "RESTART_INTERVAL_S",
    "Flag",
    "ServiceHost",
    "ServiceState",
]

RESTART_INTERVAL_S = 5.0
"""Shortest time between two starts, counted from start to start (``RestartIfNeeded``)."""

CRITICAL_THRESHOLD = 4
"""A critical service that ends more often than this within the window sends the system to recovery."""

CRITICAL_WINDOW_S = 240.0
"""``CRITICAL_CRASH_WINDOW``."""

SIGKILL = 9
SIGTERM = 15


class Flag(IntFlag):
    """``SVC_*`` of ``init/service.h``."""

    DISABLED = 0x001
    ONESHOT = 0x002
    RUNNING = 0x004
    RESTARTING = 0x008
    CONSOLE = 0x010
    CRITICAL = 0x020
    RESET = 0x040
    RC_DISABLED = 0x080
    RESTART = 0x100
    DISABLED_START = 0x200
    EXEC = 0x400


class ServiceHost(Protocol):
    """What a service needs from whoever runs it."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""

    def check(self, service: ServiceState) -> str | None:
        """Why the service cannot be started at all (program missing, no console), or ``None``."""

    def spawn(self, service: ServiceState) -> int | None:
        """Make the process; its pid, or ``None`` when that failed (which was logged)."""

    def kill_group(self, service: ServiceState, number: int) -> None:
        """Send a signal to the process group."""

    def remove_sockets(self, service: ServiceState) -> None:
        """Unlink the sockets that were made for the process that ended."""

    def notify(self, service: ServiceState, state: str) -> None:
        """The service's state has changed to one of the four words."""

    def run_onrestart(self, service: ServiceState) -> None:
        """Run the ``onrestart`` commands."""

    def critical(self, service: ServiceState) -> None:
        """A critical service ended too often."""

    def refused(self, service: ServiceState, reason: str) -> None:
        """The service was not started; it is disabled now."""


class ServiceState:
    """One service.

    Attributes:
        spec: what the rc file says.
        flags: see the module's description.
        pid: of the process, also its group, or 0.
        time_started: of the last start; ``None`` lets the next restart happen at once.
        state: the last word told.
        crashes: ends within the current critical window.
    """

    def __init__(self, spec: RcService, host: ServiceHost, *, exec_command: bool = False) -> None:
        """A service that was never started.

        Args:
            spec: what the rc file says.
            host: does the effects.
            exec_command: made for an ``exec`` command: it has no property.
        """
        self.spec = spec
        self.host = host
        self.pid = 0
        self.time_started: float | None = None
        self.window_start: float | None = None
        self.crashes = 0
        self.starts = 0
        self.state = "" if exec_command else "stopped"
        self.last_exit = ""
        self.grants: list[str] = []
        self.flags = Flag(0)
        for set_, flag in (
            (spec.disabled, Flag.DISABLED | Flag.RC_DISABLED),
            (spec.oneshot or exec_command, Flag.ONESHOT),
            (spec.console, Flag.CONSOLE),
            (spec.critical, Flag.CRITICAL),
            (exec_command, Flag.EXEC),
        ):
            if set_:
                self.flags |= flag

    @property
    def name(self) -> str:
        """The service's name."""
        return self.spec.name

    @property
    def running(self) -> bool:
        """There is a process."""
        return bool(self.flags & Flag.RUNNING)

    def _notify(self, state: str) -> None:
        if not self.flags & Flag.EXEC:
            self.state = state
            self.host.notify(self, state)

    def start(self) -> bool:
        """Start it unless it runs.

        A service that is being stopped is not started twice: the flags that would keep it from coming back are
        taken away, so it comes back as soon as it has ended.

        Returns:
            Whether a process was made.
        """
        self.flags &= ~(Flag.DISABLED | Flag.RESTARTING | Flag.RESET | Flag.RESTART | Flag.DISABLED_START)
        self.time_started = None
        if self.running:
            return False
        reason = self.host.check(self)
        if reason is not None:
            self.flags |= Flag.DISABLED
            self.host.refused(self, reason)
            return False
        self.grants = []
        pid = self.host.spawn(self)
        if pid is None:
            self.pid = 0
            return False
        self.time_started = self.host.now()
        self.pid = pid
        self.starts += 1
        self.flags |= Flag.RUNNING
        self._notify("running")
        return True

    def start_if_not_disabled(self) -> bool:
        """What ``class_start`` does: a disabled service only remembers that it was wanted."""
        if not self.flags & Flag.DISABLED:
            return self.start()
        self.flags |= Flag.DISABLED_START
        return True

    def enable(self) -> bool:
        """As if ``disabled`` did not stand in the file; starts it if its class was started meanwhile."""
        self.flags &= ~(Flag.DISABLED | Flag.RC_DISABLED)
        if self.flags & Flag.DISABLED_START:
            return self.start()
        return True

    def stop(self) -> None:
        """Kill it; it stays down until it is started by name."""
        self._stop_or_reset(Flag.DISABLED)

    def reset(self) -> None:
        """Kill it; it comes back with its class."""
        self._stop_or_reset(Flag.RESET)

    def restart(self) -> None:
        """Kill and start it, or start it; this does not count as a crash."""
        if self.running:
            self._stop_or_reset(Flag.RESTART)
        elif not self.flags & Flag.RESTARTING:
            self.start()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM); it stays down."""
        self.flags &= ~(Flag.RESTARTING | Flag.DISABLED_START)
        self.flags |= Flag.DISABLED
        if self.pid:
            self.host.kill_group(self, SIGTERM)
            self._notify("stopping")

    def _stop_or_reset(self, how: Flag) -> None:
        self.flags &= ~(Flag.RESTARTING | Flag.DISABLED_START)
        if how == Flag.RESET:
            # a service that the file disables does not come back with its class either
            self.flags |= Flag.DISABLED if self.flags & Flag.RC_DISABLED else Flag.RESET
        else:
            self.flags |= how
        if self.pid:
            self.host.kill_group(self, SIGKILL)
            self._notify("stopping")
        else:
            self._notify("stopped")

    def reap(self) -> bool:
        """The process has ended.

        Returns:
            Whether it was an ``exec`` command's, which is now done with.
        """
        if not self.flags & Flag.ONESHOT or self.flags & Flag.RESTART:
            self.host.kill_group(self, SIGKILL)
        self.host.remove_sockets(self)
        self.pid = 0
        self.flags &= ~Flag.RUNNING
        if self.flags & Flag.EXEC:
            return True
        if self.flags & Flag.ONESHOT and not self.flags & Flag.RESTART:
            self.flags |= Flag.DISABLED
        if self.flags & (Flag.DISABLED | Flag.RESET):
            self._notify("stopped")
            return False
        if self.flags & Flag.CRITICAL and not self.flags & Flag.RESTART and self._crashed():
            self.host.critical(self)
            return False
        self.flags &= ~Flag.RESTART
        self.flags |= Flag.RESTARTING
        self.host.run_onrestart(self)
        self._notify("restarting")
        return False

    def _crashed(self) -> bool:
        """Count one end; whether it was one too many."""
        now = self.host.now()
        if self.window_start is not None and self.window_start + CRITICAL_WINDOW_S >= now:
            self.crashes += 1
            return self.crashes > CRITICAL_THRESHOLD
        self.window_start = now
        self.crashes = 1
        return False

    def restart_if_due(self) -> float | None:
        """Start it again if it waits for that and 5 s have passed since its last start.

        Returns:
            When it will be due, on the host's clock, or ``None`` when there is nothing to wait for.
        """
        if not self.flags & Flag.RESTARTING:
            return None
        if self.time_started is not None:
            due = self.time_started + RESTART_INTERVAL_S
            if due > self.host.now():
                return due
        self.flags &= ~Flag.RESTARTING
        self.start()
        return None
