"""``lxc-start`` in the foreground, as our child: its start and its end are events, nothing is polled.

LXC tells that all is set up through a hook that writes init's pid into a FIFO. When the manager is killed, the
kernel kills lxc-start (``PR_SET_PDEATHSIG``, by setpriv), and with it the container's init (LXC sets the same).
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["LxcProcess", "StartedFifo", "clean_path", "handles_signal"]

MAX_OUTPUT_BYTES = 64 * 1024  # of lxc-start's own complaints; they are in its log as well


def clean_path(directories: Sequence[str] = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")) -> str:
    """A ``PATH`` for lxc-start without shadow's newuidmap.

    Where LXC finds that tool, even root may map only ids that ``/etc/subuid`` gives to root, and on no
    distribution does it give any. Without the tool root writes the map itself, as Anbox did.
    """
    return (
        ":".join(
            each
            for each in directories
            if not os.path.exists(f"{each}/newuidmap") and not os.path.islink(each)
        )
        or "/nonexistent"
    )


@implementer(IReadDescriptor)
class StartedFifo:
    """A FIFO that LXC's hook writes the container's init's pid to."""

    def __init__(self, reactor: Any, path: str) -> None:
        """Args:
        reactor: watches it.
        path: where it is made.
        """
        self._reactor = reactor
        os.mkfifo(path, 0o600)
        # Read and write: without a writer it would be at its end all the time.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise OSError(f"{path} is not a FIFO")
        self._data = b""
        self.pid: Deferred[int] = Deferred(lambda _: self.close())
        reactor.addReader(self)

    def fileno(self) -> int:
        """For the reactor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For the reactor."""
        return "LXC hook"

    def doRead(self) -> None:
        """The hook wrote."""
        try:
            self._data += os.read(self._descriptor, 64)
        except BlockingIOError:
            return
        line, newline, _ = self._data.partition(b"\n")
        if newline or len(self._data) > 64:
            self.close()
            if not self.pid.called:
                self.pid.callback(int(line) if line.strip().isdigit() else 0)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
        self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1


def handles_signal(pid: int, number: int, proc: str = "/proc") -> bool:
    """A process catches a signal or takes it from a signalfd; otherwise the first one of a namespace ignores it."""
    try:
        with open(f"{proc}/{pid}/status", encoding="ascii", errors="replace") as file:
            masks = {
                key: int(value, 16)
                for key, _, value in (line.partition(":") for line in file)
                if key in ("SigCgt", "SigBlk")
            }
    except (OSError, ValueError):
        return False
    return any(mask >> (number - 1) & 1 for mask in masks.values())


class LxcProcess(ProcessProtocol):
    """The running lxc-start.

    Attributes:
        exited: how it ended, once it has; empty before.
    """

    _log = Logger()
    transport: Any  # set before connectionMade

    def __init__(self) -> None:
        self.exited = ""
        self.output = bytearray()
        self.init_pid = 0
        self._init = -1
        self._waiters: list[Deferred[str]] = []

    def spawn(self, reactor: Any, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Begin.

        Raises:
            OSError: it cannot be run.
        """
        reactor.spawnProcess(self, argv[0], list(argv), env=dict(environment), path="/")

    def connectionMade(self) -> None:
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output += data[: MAX_OUTPUT_BYTES - len(self.output)]

    def processExited(self, reason: Failure) -> None:
        # Not processEnded: whatever inherited its pipes may live longer.
        self.transport.loseConnection()
        if reason.check(ProcessDone):
            self.exited = "init has ended"
        else:
            error: Any = reason.value
            self.exited = (
                f"lxc-start was killed by signal {error.signal}"
                if error.signal is not None
                else f"lxc-start ended with status {error.exitCode}"
            )
        self._close_init()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(self.exited)

    def when_exited(self) -> Deferred[str]:
        """A Deferred of the caller's own."""
        waiter: Deferred[str] = Deferred(self._forget)
        if self.exited:
            waiter.callback(self.exited)
        else:
            self._waiters.append(waiter)
        return waiter

    def _forget(self, waiter: Deferred[str]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def watch_init(self, pid: int) -> None:
        """Remember the container's init by a descriptor, for its pid may be somebody else's later."""
        if self.exited:
            return
        self.init_pid = pid
        try:
            self._init = os.pidfd_open(pid)
        except OSError as error:
            self._log.debug("init {pid}: {error}", pid=pid, error=error)

    def _close_init(self) -> None:
        if self._init >= 0:
            os.close(self._init)
            self._init = -1

    def signal_init(self, number: int) -> bool:
        """Send a signal to the container's init; False if it is not known or gone."""
        if self._init < 0:
            return False
        try:
            signal.pidfd_send_signal(self._init, number)
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Kill lxc-start; the kernel then kills init."""
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass
