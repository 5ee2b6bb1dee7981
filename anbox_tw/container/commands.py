"""Runs system tools as child processes: with a time limit, capped output, and never by a shell.

`Commands` remembers what it has begun. Cancelling the Deferred of a run kills the tool but fires
at once, as cancelling always does; `Commands.settle` is what tells that the tool is really gone.
Whoever stops a container in the middle of its start waits for that before undoing anything.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.container.diagnosis import DiagnosedError

__all__ = ["Commands", "Completed", "find_tool"]

DEFAULT_TIMEOUT_S = 30.0  # mount, ip, nft and their like take milliseconds; a sick disk takes seconds
MAX_OUTPUT_BYTES = 1024 * 1024  # of stdout and of stderr each; `nft -j list ruleset` is the longest we read
PIPE_GRACE_S = 1.0  # a tool that ended but left its pipes to a daemon of its own is not waited for longer
SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")

PACKAGES = {
    "ip": "iproute2",
    "losetup": "mount",
    "lxc-start": "lxc",
    "mount": "mount",
    "newgidmap": "uidmap",
    "newuidmap": "uidmap",
    "nft": "nftables",
    "slirp4netns": "slirp4netns",
    "squashfuse": "squashfuse",
    "umount": "mount",
}
"""Debian's package of a tool, where it is not named as the tool."""


def find_tool(name: str, path: str | None = None) -> str | None:
    """Absolute path of a system tool, or ``None``.

    Unlike the shell of a plain user it also looks where administrators' tools are.
    """
    searched = os.environ.get("PATH", "") if path is None else path
    return shutil.which(name, path=os.pathsep.join((searched, *SYSTEM_DIRECTORIES)))


@attrs.frozen
class Completed:
    """A tool that has ended.

    Attributes:
        argv: what was run.
        status: exit status, or minus the signal that ended it.
        stdout: its output, at most `MAX_OUTPUT_BYTES`.
        stderr: its errors, at most `MAX_OUTPUT_BYTES`.
        truncated: it wrote more than is kept.
    """

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """It ended with status 0."""
        return self.status == 0

    @property
    def error_text(self) -> str:
        """What it complained about, in one line of at most 400 characters."""
        text = " ".join(self.stderr.decode("utf-8", "replace").split()) or " ".join(
            self.stdout.decode("utf-8", "replace").split()
        )
        if not text:
            text = f"signal {-self.status}" if self.status < 0 else f"status {self.status}"
        return "".join(c if c.isprintable() else "?" for c in text)[:400]

    def require(self, code: str, what: str, cure: str = "") -> Completed:
        """Give itself back if it is ok.

        Raises:
            DiagnosedError: it is not; with the tool's own words as the reason.
        """
        if self.ok:
            return self
        raise DiagnosedError.of(code, what, f"{shlex.join(self.argv)}: {self.error_text}", cure)


class _Run(ProcessProtocol):
    """One child process."""

    transport: Any  # set before connectionMade

    def __init__(self, reactor: Any, argv: tuple[str, ...], data: bytes) -> None:
        self.reactor = reactor
        self.argv = argv
        self.data = data
        self.output: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self.truncated = False
        self.result: Deferred[Completed] = Deferred(lambda _: self.kill())
        self.ended: Deferred[None] = Deferred()
        self._grace: Any = None

    def connectionMade(self) -> None:
        if self.data:
            self.transport.write(self.data)
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        kept = self.output[childFD]
        room = MAX_OUTPUT_BYTES - len(kept)
        kept += data[:room]
        self.truncated = self.truncated or len(data) > room

    def kill(self) -> None:
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def processExited(self, reason: Failure) -> None:
        self._grace = self.reactor.callLater(PIPE_GRACE_S, self.transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        if self._grace is not None and self._grace.active():
            self._grace.cancel()
        if reason.check(ProcessDone):
            status = 0
        else:
            error: Any = reason.value
            status = -error.signal if error.signal is not None else error.exitCode
        completed = Completed(self.argv, status, bytes(self.output[1]), bytes(self.output[2]), self.truncated)
        ended, result = self.ended, self.result
        ended.callback(None)
        if not result.called:
            result.callback(completed)


class Commands:
    """Runs tools on one reactor, and knows which still run."""

    _log = Logger()

    def __init__(self, reactor: Any, environment: Mapping[str, str] | None = None) -> None:
        """Set it up; nothing runs yet.

        Args:
            reactor: runs the children and gives the time.
            environment: of the tools; the default has ``PATH`` and ``LC_ALL=C`` alone, so that
                what they print is what we parse.
        """
        self._reactor = reactor
        path = os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM_DIRECTORIES))
        self._environment = dict(environment or {"PATH": path, "LC_ALL": "C"})
        self._running: set[_Run] = set()

    def run(
        self, argv: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT_S, data: bytes = b""
    ) -> Deferred[Completed]:
        """Run a tool to its end.

        Args:
            argv: the tool, looked up with `find_tool`, and its arguments.
            timeout: seconds until it is killed.
            data: written to its standard input, which is then closed.

        Returns:
            What it said, also when its status is not 0; see `Completed.require`. Fails with
            `DiagnosedError` when the tool is missing and when it took too long.
            Cancelling kills the tool.

        Raises:
            DiagnosedError: the tool is missing (``ANBOX-C025``).
        """
        tool = argv[0] if argv[0].startswith("/") else find_tool(argv[0], self._environment.get("PATH"))
        if tool is None:
            package = PACKAGES.get(argv[0], argv[0])
            raise DiagnosedError.of(
                "ANBOX-C025",
                f"the tool {argv[0]} is missing",
                "",
                f"install it, for example `apt install {package}`",
            )
        run = _Run(self._reactor, tuple(argv), data)
        self._log.debug("running {argv}", argv=shlex.join(argv))
        try:
            self._reactor.spawnProcess(run, tool, list(argv), env=self._environment, path=None)
        except OSError as error:
            raise DiagnosedError.of("ANBOX-C012", f"{argv[0]} could not be run", str(error)) from error
        self._running.add(run)
        run.ended.addCallback(lambda _: self._running.discard(run))
        timer = self._reactor.callLater(timeout, self._expire, run, timeout)

        def forget_timer(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return run.result.addBoth(forget_timer)

    def _expire(self, run: _Run, timeout: float) -> None:
        run.kill()
        if not run.result.called:
            run.result.errback(
                DiagnosedError.of(
                    "ANBOX-C015", f"{run.argv[0]} took too long", f"{shlex.join(run.argv)} had {timeout:g} s"
                )
            )

    def settle(self) -> Deferred[None]:
        """Kill what still runs; fires when all of it is gone."""
        waiting = []
        for run in list(self._running):
            run.kill()
            gone: Deferred[None] = Deferred()
            run.ended.addCallback(_tell(gone))
            waiting.append(gone)
        if not waiting:
            return succeed(None)
        return DeferredList(waiting).addCallback(lambda _: None)


def _tell(waiter: Deferred[None]) -> Any:
    def tell(result: None) -> None:
        waiter.callback(None)

    return tell
