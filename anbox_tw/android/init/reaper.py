"""Hears of the end of child processes through pid descriptors: no signal handler, nobody else's children touched."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet import process
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Reaper", "describe_exit"]

_PR_SET_CHILD_SUBREAPER = 36

POLL_S = 0.05
"""How often to look where the kernel does not tell."""

MAX_ORPHANS_PER_TURN = 1000
"""Ended orphans reaped in one go."""


def describe_exit(status: int) -> str:
    """A wait status in the words init logs."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"killed by signal {number}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"


@implementer(IReadDescriptor)
class _PidDescriptor:
    """Readable once its process has ended."""

    def __init__(self, reaper: Reaper, pid: int, callback: Callable[[int, int], None]) -> None:
        self._reaper = reaper
        self._pid = pid
        self._callback = callback
        self._descriptor = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return f"pid {self._pid}"

    def doRead(self) -> None:
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            # somebody else's waitpid(-1) took it
            pid, status = self._pid, 0
        if pid == 0:
            return
        self.close()
        self._reaper.ended(self._pid)
        self._callback(self._pid, status)

    def connectionLost(self, reason: Failure) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            self._reaper.reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1


class _Poller:
    """Stands in for a pid descriptor where the kernel gives none (before Linux 5.3, or forbidden)."""

    def __init__(self, reaper: Reaper, pid: int, callback: Callable[[int, int], None]) -> None:
        self._reaper = reaper
        self._pid = pid
        self._callback = callback
        self._call: Any = reaper.reactor.callLater(POLL_S, self._look)

    def _look(self) -> None:
        self._call = None
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self._pid, 0
        if pid == 0:
            self._call = self._reaper.reactor.callLater(POLL_S, self._look)
            return
        self._reaper.ended(self._pid)
        self._callback(self._pid, status)

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None


class Reaper:
    """Watches our children; as pid 1 or subreaper also reaps and ends those whose parents are gone.

    Attributes:
        reactor: an ``IReactorFDSet``.
        adopts: processes without a parent become ours.
        orphans_reaped: how many of them have ended.
    """

    log = Logger()

    def __init__(self, reactor: Any, *, adopt_orphans: bool = False) -> None:
        """Prepare.

        Args:
            reactor: an ``IReactorFDSet`` and ``IReactorTime``.
            adopt_orphans: become a subreaper (pid 1 is one anyway). Only for a process that is ours as a
                whole: every orphan below it is then reaped here.
        """
        self.reactor = reactor
        self._watched: dict[int, _PidDescriptor | _Poller] = {}
        self.orphans_reaped = 0
        self._previous: Any = None
        self.adopts = False
        if adopt_orphans:
            libc = ctypes.CDLL(None, use_errno=True)
            self.adopts = os.getpid() == 1 or libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    def start(self) -> None:
        """Begin to hear of orphans; the reactor's own handler of SIGCHLD is kept and called first."""
        if not self.adopts or self._previous is not None:
            return
        self._previous = signal.getsignal(signal.SIGCHLD)

        def on_child(number: int, frame: Any) -> None:
            if callable(self._previous):
                self._previous(number, frame)
            self.reactor.callFromThread(self.reap_orphans)

        signal.signal(signal.SIGCHLD, on_child)
        signal.siginterrupt(signal.SIGCHLD, False)
        self.reap_orphans()

    def stop(self) -> None:
        """Give the handler of SIGCHLD back and forget every process."""
        if self._previous is not None:
            signal.signal(signal.SIGCHLD, self._previous)
            self._previous = None
        for watched in list(self._watched.values()):
            watched.close()
        self._watched.clear()

    def watch(self, pid: int, callback: Callable[[int, int], None]) -> None:
        """Call ``callback(pid, status)`` once our child ``pid`` has ended; it is reaped by then."""
        try:
            descriptor = _PidDescriptor(self, pid, callback)
        except OSError:
            self._watched[pid] = _Poller(self, pid, callback)
            return
        self._watched[pid] = descriptor
        self.reactor.addReader(descriptor)

    def ended(self, pid: int) -> None:
        """A watched process was reaped."""
        self._watched.pop(pid, None)

    def _foreign(self, pid: int) -> bool:
        """Neither ours nor one of Twisted's own children."""
        return pid not in self._watched and pid not in process.reapProcessHandlers

    def reap_orphans(self) -> None:
        """Reap ended processes that nobody else waits for."""
        for pid in self._children():
            if self._foreign(pid):
                with contextlib.suppress(ChildProcessError):
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        self.orphans_reaped += 1
                        self.log.debug("untracked pid {pid} {how}", pid=pid, how=describe_exit(status))

    def _children(self) -> list[int]:
        found: list[int] = []
        readable = False
        with contextlib.suppress(OSError):
            for task in os.listdir("/proc/self/task"):
                with contextlib.suppress(OSError, ValueError):
                    with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                        found += [int(word) for word in file.read().split()]
                        readable = True
        if not readable:
            # no /proc, or a kernel without that file: at least the next one that has ended can be asked for
            with contextlib.suppress(ChildProcessError):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is not None:
                    found.append(ended.si_pid)
        return found[:MAX_ORPHANS_PER_TURN]

    def kill_orphans(self) -> int:
        """Send SIGKILL to every orphan that lives; how many there were."""
        if not self.adopts:
            return 0
        self.reap_orphans()
        count = 0
        for pid in self._children():
            if self._foreign(pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                    count += 1
        return count
