"""Child processes of ``anbox up``: the two managers, each with its log file."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

__all__ = ["Child", "tail", "twistd_command"]

KILL_AFTER_S = 20.0
"""How long a manager has to end after SIGTERM: its own container gets 10 s, plus undoing the mounts."""

TAIL_BYTES = 16384
"""How much of a log's end is looked at for an error message."""


def twistd_command(name: str, *options: str) -> list[str]:
    """The command line that runs ``twistd -n NAME OPTIONS`` with this Python, on our reactor."""
    script = Path(sys.executable).parent / "twistd"
    start = [sys.executable, str(script)] if script.exists() else [sys.executable, "-c", RUN_TWISTD]
    return [*start, "-n", "--pidfile=", "--reactor=anbox-epoll", name, *options]


RUN_TWISTD = "from twisted.scripts.twistd import run; run()"

LEASH = (
    "import ctypes, os, signal, sys\n"
    "os.setsid()\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)\n"  # PR_SET_PDEATHSIG, linux/prctl.h
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
"""Runs before each child. A session of its own: Ctrl-C in a terminal goes to the whole foreground group, but
the children must hear of the end from us, in order. And SIGTERM when we are gone: a killed ``anbox up`` leaves
no manager behind."""


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines of a log; fewer, or none, where there are not so many."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


LOOSE = "import os, sys; os.setsid(); os.execv(sys.argv[2], sys.argv[2:])"
"""The same for a child that outlives us."""


class Child(ProcessProtocol):
    """One child process whose output goes to a file.

    Attributes:
        name: what users call it.
        log_path: where its output goes.
        pid: its process id, or ``None`` when it does not run.
        exit_description: how it ended, once it has.
    """

    def __init__(self, reactor: Any, name: str, command: list[str], log_path: Path) -> None:
        self._reactor = reactor
        self.name = name
        self.command = command
        self.log_path = log_path
        self.pid: int | None = None
        self.exit_code: int | None = None
        self.exit_description = ""
        self._waiting: list[Deferred[str]] = []
        self._began_at = 0

    def start(self, *, leash: bool = True) -> None:
        """Start the process.

        Args:
            leash: it hears SIGTERM when we end; otherwise it outlives us.

        Raises:
            OSError: the log cannot be written or the process not made.
        """
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._began_at = os.fstat(log).st_size
            environment = dict(os.environ)
            # A checkout that is not installed must be found by the children, too.
            root = str(Path(__file__).resolve().parents[2])
            environment["PYTHONPATH"] = os.pathsep.join(
                filter(None, [root, environment.get("PYTHONPATH", "")])
            )
            leashed = [sys.executable, "-S", "-c", LEASH if leash else LOOSE, str(os.getpid()), *self.command]
            descriptors = {0: nothing, 1: log, 2: log}
            process = self._reactor.spawnProcess(
                self, sys.executable, leashed, env=environment, childFDs=descriptors
            )
        finally:
            os.close(log)
            os.close(nothing)
        self.pid = process.pid

    def processEnded(self, reason: Failure) -> None:
        """The process is gone."""
        self.pid = None
        if reason.check(ProcessDone):
            self.exit_code, self.exit_description = 0, "ended"
        else:
            value: Any = reason.value
            self.exit_code = value.exitCode
            self.exit_description = (
                f"was ended by {signal.Signals(value.signal).name}"
                if value.signal
                else f"exited with {value.exitCode}"
            )
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(self.exit_description)

    def when_ended(self) -> Deferred[str]:
        """Fires with a description of the end; at once when it does not run."""
        deferred: Deferred[str] = Deferred(lambda d: self._waiting.remove(d) if d in self._waiting else None)
        if self.pid is None:
            deferred.callback(self.exit_description)
        else:
            self._waiting.append(deferred)
        return deferred

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when the process is gone."""
        if self.pid is not None and self.transport is not None:
            try:
                self.transport.signalProcess(number)
            except ProcessExitedAlready:
                pass

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when it does not end within ``KILL_AFTER_S``; returns when it is gone."""
        if self.pid is None:
            return
        self.signal(signal.SIGTERM)
        kill = self._reactor.callLater(KILL_AFTER_S, self.signal, signal.SIGKILL)
        # Shielded: a second Ctrl-C does not leave the child behind.
        await DeferredList([self.when_ended()])
        if kill.active():
            kill.cancel()

    def output(self, lines: int) -> list[str]:
        """The last lines that this run of the process has logged."""
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._began_at, size - TAIL_BYTES))
                return log.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []
