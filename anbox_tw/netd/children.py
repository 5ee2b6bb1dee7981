"""Child processes: tools that answer once, and daemons that stay.

Nothing here waits for a child with the reactor stopped, and every child has a limit: of time for a tool, of
patience between SIGTERM and SIGKILL for a daemon, of bytes for what either says.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import Any, Final

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import TimedOut
from anbox_tw.netd.errors import KernelRefused

__all__ = ["Completed", "DaemonChild", "find_tool", "run_tool"]

TOOL_TIMEOUT_S: Final = 20.0
# `nft -j list table` of some hundred rules is about 200 KiB
MAX_OUTPUT_BYTES: Final = 8 * 1024 * 1024
# of a daemon's last words, for a message
TAIL_BYTES: Final = 4096
KILL_AFTER_S: Final = 2.0
# how long a daemon must live for its start to count; the original forks and hopes
SETTLE_S: Final = 0.25

_SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_tool(name: str) -> str | None:
    """The path of a system tool, or None. The directories of root's tools are searched too."""
    if "/" in name:
        return name if os.access(name, os.X_OK) else None
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + _SEARCH)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "") + ":" + _SEARCH, "LC_ALL": "C"}


@frozen
class Completed:
    """What became of a tool."""

    exit_code: int
    output: str
    error: str


class _Tool(ProcessProtocol):
    def __init__(self, stdin: bytes) -> None:
        self._stdin = stdin
        self._parts: dict[int, list[bytes]] = {1: [], 2: []}
        self._size = 0
        self.too_much = False
        # whoever gives up waiting wants no tool that goes on
        self.done: Deferred[Completed] = Deferred(lambda _: _kill(self.transport, signal.SIGKILL))

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._stdin)
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._size += len(data)
        if self._size <= MAX_OUTPUT_BYTES:
            self._parts[childFD].append(data)
        elif not self.too_much:
            self.too_much = True
            _kill(self.transport, signal.SIGKILL)

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        code = 0 if reason.check(ProcessDone) else value.exitCode
        if code is None:
            code = -(value.signal or 0) or -1
        texts = [b"".join(self._parts[fd]).decode(errors="replace") for fd in (1, 2)]
        if not self.done.called:
            self.done.callback(Completed(code, texts[0], texts[1]))


def _kill(transport: Any, number: int) -> None:
    if transport is None:
        return
    try:
        transport.signalProcess(number)
    except ProcessExitedAlready:
        pass


async def run_tool(
    reactor: Any, words: Sequence[str], *, stdin: str = "", timeout: float = TOOL_TIMEOUT_S
) -> Completed:
    """Run a tool to its end.

    Args:
        reactor: an IReactorProcess; a `NamespacedReactor` runs it in that namespace.
        words: the tool and its arguments.
        stdin: what it reads.
        timeout: seconds until it is killed.

    Raises:
        KernelRefused: the tool is not there (ENOENT).
        TimedOut: it did not end.
    """
    path = find_tool(words[0])
    if path is None:
        raise KernelRefused(errno.ENOENT, f"running {words[0]}", "it is not installed")
    protocol = _Tool(stdin.encode())
    late: list[bool] = []
    try:
        process = reactor.spawnProcess(protocol, path, list(words), env=_environment())
    except OSError as error:
        raise KernelRefused(error.errno or errno.EIO, f"running {words[0]}") from error

    def kill() -> None:
        late.append(True)
        _kill(process, signal.SIGKILL)

    timer = reactor.callLater(timeout, kill)
    try:
        completed = await protocol.done
    finally:
        if timer.active():
            timer.cancel()
    if late:
        raise TimedOut(f"{words[0]} did not end within {timeout:g} s")
    if protocol.too_much:
        raise KernelRefused(errno.EMSGSIZE, f"running {words[0]}")
    return completed


class DaemonChild(ProcessProtocol):
    """A daemon that runs as our child until it is stopped or dies.

    Attributes:
        name: for messages.
        words: its command line.
        pid: None when it does not run.
        tail: the last it said.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        name: str,
        words: Sequence[str],
        *,
        on_exit: Callable[[DaemonChild], object] | None = None,
    ) -> None:
        self._reactor = reactor
        self.name = name
        self.words = list(words)
        self._on_exit = on_exit
        self._stopping = False
        self._ended: list[Deferred[None]] = []
        self.pid: int | None = None
        self.tail = b""

    async def start(self, settle: float = SETTLE_S) -> None:
        """Start it, and see that it lives.

        Args:
            settle: seconds after which it counts as started.

        Raises:
            KernelRefused: it is not installed (ENOENT), or it ended at once (EREMOTEIO).
        """
        path = find_tool(self.words[0])
        if path is None:
            raise KernelRefused(errno.ENOENT, f"starting {self.name}", f"{self.words[0]} is not installed")
        words = self.words
        with_death = find_tool("setpriv")
        if with_death is not None:
            # A daemon that outlives us when we are killed holds its port (dnsmasq that of DHCP), and nobody stops it.
            # setpriv(1) becomes the daemon, so the pid is the daemon's.
            path, words = with_death, ["setpriv", "--pdeathsig", "TERM", "--", path, *words[1:]]
        try:
            process = self._reactor.spawnProcess(self, path, words, env=_environment())
        except OSError as error:
            raise KernelRefused(error.errno or errno.EIO, f"starting {self.name}") from error
        self.pid = process.pid
        early: Deferred[bool] = Deferred()
        timer = self._reactor.callLater(settle, early.callback, True)
        waiter: Deferred[None] = Deferred()
        self._ended.append(waiter)

        def ended(_result: object) -> None:
            if timer.active():
                timer.cancel()
                early.callback(False)

        waiter.addCallback(ended)
        if not await early:
            said = self.tail.decode(errors="replace").strip().splitlines()
            raise KernelRefused(
                errno.EREMOTEIO, f"starting {self.name}", said[-1] if said else "it ended at once"
            )
        if waiter in self._ended:
            self._ended.remove(waiter)

    def write(self, data: bytes) -> None:
        """Write to its standard input."""
        if self.pid is not None and self.transport is not None:
            self.transport.write(data)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.tail = (self.tail + data)[-TAIL_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        self.pid = None
        if not self._stopping:
            self._log.warn(
                "{name} ended: {why}; {tail}", name=self.name, why=reason.getErrorMessage(), tail=self.tail
            )
        if self._on_exit is not None:
            self._on_exit(self)
        ended, self._ended = self._ended, []
        for waiter in ended:
            waiter.callback(None)

    def stop(self) -> Deferred[None]:
        """SIGTERM, then SIGKILL; fires when it is gone."""
        if self.pid is None:
            return succeed(None)
        self._stopping = True
        done: Deferred[None] = Deferred()
        self._ended.append(done)
        _kill(self.transport, signal.SIGTERM)
        timer = self._reactor.callLater(KILL_AFTER_S, _kill, self.transport, signal.SIGKILL)

        def ended(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return done.addBoth(ended)
