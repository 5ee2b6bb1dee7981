"""The manager's end of one container's helper."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import NotRunning
from anbox_tw.interfaces import IGuestGate

__all__ = ["GuestGate", "HelperProcess"]

READY_TIMEOUT_S = 10.0
"""A Python that starts on a loaded machine; forked by the launcher it takes a millisecond."""

KILL_WAIT_S = 5.0
"""A helper ends when its control socket does; one that a guest's file system holds up is killed."""

MAX_MESSAGE_BYTES = 512
MAX_ERROR_BYTES = 2000


@implementer(IReadDescriptor, IGuestGate)
class GuestGate:
    """Hands clients to the helper of one container.

    Attributes:
        failure: why there is no helper, or an empty string.
        ready: the helper serves.
    """

    _log = Logger()

    def __init__(self, reactor: Any, name: str) -> None:
        """Make both ends of the control socket.

        Args:
            reactor: watches ours.
            name: of the instance, for the log.
        """
        self._reactor = reactor
        self._name = name
        self.ready = False
        self.failure = ""
        self._waiting: list[Deferred[bool]] = []
        self._socket, self._theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        )
        self._socket.setblocking(False)
        self._open = True
        reactor.addReader(self)

    @property
    def child_fd(self) -> int:
        """The helper's end; `started` closes our copy of it."""
        return self._theirs.fileno()

    def started(self) -> None:
        """The child that has the other end was started, or could not be."""
        self._theirs.close()

    def tell(self, data: bytes) -> None:
        """Send the helper a message of ours; one that is gone is not told."""
        if self._open:
            try:
                self._socket.send(data)
            except OSError:
                pass

    def when_ready(self) -> Deferred[bool]:
        """A Deferred of the caller's own: fires with whether the helper serves, within a few seconds."""
        if self.ready or not self._open:
            return succeed(self.ready)
        waiter: Deferred[bool] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        timer = self._reactor.callLater(READY_TIMEOUT_S, self.close, "it did not say that it is ready")

        def settled(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return waiter.addBoth(settled)

    def check(self) -> None:
        """Raises `NotRunning` unless the helper serves."""
        if not self.ready:
            raise NotRunning(
                f"sockets inside the container {self._name!r} cannot be opened",
                self.failure or "its helper does not run",
            )

    def hand_over(self, client: socket.socket) -> None:
        """Let the helper serve a client; the socket stays the caller's, who may close it then.

        Raises:
            NotRunning: there is no helper, or it does not answer.
        """
        self.check()
        try:
            socket.send_fds(self._socket, [b"c"], [client.fileno()])
        except OSError as error:
            raise NotRunning(
                f"sockets inside the container {self._name!r} cannot be opened now: {error.strerror}"
            ) from error

    def close(self, why: str = "the container ends") -> None:
        """Close the control socket, at which the helper ends."""
        if self._open:
            self._open = self.ready = False
            self.failure = self.failure or why
            self._reactor.removeReader(self)
            self._socket.close()
            self._theirs.close()
            self._settle(False)

    # -- for the reactor --

    def fileno(self) -> int:
        """See ``IReadDescriptor``."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See ``IReadDescriptor``."""
        return "guest sockets"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
        self.close()

    def doRead(self) -> None:
        """The helper says something, or has ended."""
        try:
            data = self._socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data == b"ready":
            self.ready = True
            self._settle(True)
        elif data.startswith(b"failed: "):
            self.failure = data[8:].decode("utf-8", "replace")
            self._log.warn(
                "{name}: there will be no direct forwards: {why}", name=self._name, why=self.failure
            )
            self.close()
        else:
            self.close("its helper has ended")

    def _settle(self, ready: bool) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(ready)


class HelperProcess(ProcessProtocol):
    """The helper as a child of the manager; without a launcher to fork it."""

    _log = Logger()
    transport: Any  # set before connectionMade

    def __init__(self, reactor: Any, gate: GuestGate) -> None:
        self._reactor = reactor
        self.gate = gate
        self._errors = b""
        self._running = False
        self._waiting: list[Deferred[None]] = []

    def spawn(self, argv: list[str], environment: Mapping[str, str]) -> None:
        """Begin; it waits for the container's init. What cannot be run is told by the gate."""
        try:
            self._reactor.spawnProcess(
                self,
                argv[0],
                argv,
                env=dict(environment),
                path="/",
                childFDs={0: "w", 1: "r", 2: "r", 3: self.gate.child_fd},
            )
            self._running = True
        except OSError as error:
            self.gate.close(f"the helper cannot be run: {error}")
        finally:
            self.gate.started()

    def enter(self, pid: int) -> Deferred[bool]:
        """Tell it the container's init; fires with whether it serves."""
        self.gate.tell(b"%d" % pid)
        return self.gate.when_ready()

    def stop(self) -> Deferred[None]:
        """Have it end; fires when it has. What a guest holds up is killed."""
        self.gate.close()
        if not self._running:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._waiting.append(ended)
        timer = self._reactor.callLater(KILL_WAIT_S, self._kill)

        def over(_: None) -> None:
            if timer.active():
                timer.cancel()

        return ended.addCallback(over)

    def _kill(self) -> None:
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def connectionMade(self) -> None:
        self.transport.closeStdin()

    def errReceived(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-MAX_ERROR_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        self._running = False
        if self._errors:
            self._log.warn("the helper for sockets: {errors}", errors=self._errors.decode("utf-8", "replace"))
        self.gate.close("its helper has ended")
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)
