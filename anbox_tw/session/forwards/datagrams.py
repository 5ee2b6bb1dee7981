"""Datagram forwards: for each peer of the host a socket in the guest, so that answers find their way back."""

from __future__ import annotations

import errno
import os
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import AlreadyRunning, ConfigError, NetworkError, PermissionRefused
from anbox_tw.network import ITrackedConnection, RelayCounters
from anbox_tw.network.connections import next_connection_id
from anbox_tw.session.forwards.guest import GuestSockets

if TYPE_CHECKING:
    from anbox_tw.session.forwards.registry import Forward

__all__ = ["DatagramListener"]

MAX_FLOWS = 256
"""Peers of one forward at once; a new one takes the place of that which has been silent for longest."""

IDLE_S = 60.0
"""A peer that has been silent for so long, both ways, is forgotten; RFC 4787 asks NATs for two minutes at least where
they cannot know, but here the next datagram makes a new flow, and the guest sees another port."""

MAX_WAITING = 16
"""Datagrams of a new peer that wait for its socket, which takes a millisecond."""

READS_AT_ONCE = 64
"""Before the other descriptors get their turn."""

MAX_DATAGRAM = 65536
BUFFER_BYTES = 1 << 20
"""Of the listening socket: a burst of large datagrams while the reactor is busy."""


@implementer(IReadDescriptor, ITrackedConnection)
class _Flow:
    """One peer."""

    def __init__(self, owner: DatagramListener, peer: Any) -> None:
        self.id = next_connection_id()
        self.name = owner.forward.relays.name
        self.peer = peer
        self.used = owner.reactor.seconds()
        self.to_guest = self.from_guest = 0
        self._owner = owner
        self._socket: socket.socket | None = None
        self._waiting: list[bytes] = []
        self.open = True
        owner.forward.relays.add(self)
        owner.guest.connect(owner.forward.target, self._connected)

    @property
    def counters(self) -> RelayCounters:
        """Bytes to the guest and from it."""
        return RelayCounters(self.to_guest, self.from_guest)

    def describe(self) -> dict[str, Any]:
        """See ``ITrackedConnection``."""
        return {"id": self.id, "name": self.name, "peer": str(self.peer[:2])}

    def send(self, data: bytes) -> None:
        """To the guest; what it does not take is lost, as datagrams are."""
        self.used = self._owner.reactor.seconds()
        if self._socket is None:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(data)
            return
        try:
            self._socket.send(data)
            self.to_guest += len(data)
        except OSError as error:
            self._failed(error)

    def close(self, reason: str) -> None:
        """See ``ITrackedConnection``."""
        if not self.open:
            return
        self.open = False
        if self._socket is not None:
            self._owner.reactor.removeReader(self)
            self._socket.close()
        self._owner.ended(self)

    abort = close

    def fileno(self) -> int:
        """For the reactor."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """For the reactor."""
        return self.name

    def connectionLost(self, reason: Failure) -> None:
        """The reactor takes an error that waits (nobody listens in the guest) for the end; or it stops."""
        assert self._socket is not None
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self.open else 0
        if number:
            self._failed(OSError(number, os.strerror(number)))
            self._owner.reactor.addReader(self)
        else:
            self.close("the reactor stops")

    def doRead(self) -> None:
        """The guest answers."""
        assert self._socket is not None
        self.used = self._owner.reactor.seconds()
        for _ in range(READS_AT_ONCE):
            try:
                data = self._socket.recv(MAX_DATAGRAM)
            except OSError as error:
                self._failed(error)
                return
            self.from_guest += len(data)
            self._owner.answer(data, self.peer)

    def _connected(self, number: int, sock: socket.socket | None) -> None:
        if sock is None:
            self._owner.forward.failure(self._owner.guest.explain(number))
            self.close("its target was not reached")
            return
        if not self.open:
            sock.close()
            return
        self._socket = sock
        self._owner.reactor.addReader(self)
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self.send(data)

    def _failed(self, error: OSError) -> None:
        # Nobody listens in the guest now: the flow stays, for somebody may when the next datagram comes.
        if error.errno not in (errno.EAGAIN, errno.EINTR):
            self._owner.forward.last_error = self._owner.guest.explain(error.errno or 0)


@implementer(IReadDescriptor)
class DatagramListener(Service):
    """Listens on a UDP port of the host.

    Args:
        reactor: an fd reactor.
        guest: opens sockets in the container.
        forward: what this listens for; it counts.
    """

    _log = Logger()

    def __init__(self, reactor: Any, guest: GuestSockets, forward: Forward) -> None:
        self.reactor = reactor
        self.guest = guest
        self.forward = forward
        self._socket: socket.socket | None = None
        self._flows: OrderedDict[Any, _Flow] = OrderedDict()
        self._timer: IDelayedCall | None = None

    def startService(self) -> None:
        """Listen.

        Raises:
            AlreadyRunning: the port is taken.
            AnboxError: it cannot be bound.
        """
        listen = self.forward.listen
        family = socket.AF_INET6 if ":" in listen.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            sock.bind((listen.address, listen.port))
        except OSError as error:
            sock.close()
            raise _explain(error, f"UDP port {listen.port} of {listen.address}") from error
        self._socket = sock
        self.reactor.addReader(self)
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Forget all peers and close; nothing is left when this returns."""
        super().stopService()
        sock, self._socket = self._socket, None
        if sock is not None:
            self.reactor.removeReader(self)
            sock.close()
        for flow in list(self._flows.values()):
            flow.close("the forward is removed")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return succeed(None)

    def get_port(self) -> int:
        """The port that is really bound."""
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    def answer(self, data: bytes, peer: Any) -> None:
        """Send what the guest says to a peer."""
        if self._socket is not None:
            try:
                self._socket.sendto(data, peer)
            except OSError:
                pass  # a full buffer, or a peer that is gone: lost, as datagrams are

    def ended(self, flow: _Flow) -> None:
        """A flow is closed."""
        self._flows.pop(flow.peer, None)
        self.forward.relays.remove(flow)
        self.forward.to_guest += flow.to_guest
        self.forward.from_guest += flow.from_guest

    # -- for the reactor --

    def fileno(self) -> int:
        """See ``IReadDescriptor``."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """See ``IReadDescriptor``."""
        return str(self.forward.relays.name)

    def connectionLost(self, reason: Failure) -> None:
        """As that of a flow: an error that waits is not the end."""
        if self._socket is not None and self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.reactor.addReader(self)

    def doRead(self) -> None:
        """Peers say something."""
        for _ in range(READS_AT_ONCE):
            if self._socket is None:
                return
            try:
                data, peer = self._socket.recvfrom(MAX_DATAGRAM)
            except OSError:
                return  # nothing more, or the kernel tells of an answer that did not arrive
            flow = self._flows.get(peer) or self._new_flow(peer)
            if flow is not None:
                self._flows.move_to_end(peer)
                flow.send(data)

    def _new_flow(self, peer: Any) -> _Flow | None:
        forward = self.forward
        forward.accepted += 1
        if not self.guest.available:
            forward.failure(self.guest.problem)
            return None
        if len(self._flows) >= MAX_FLOWS:
            next(iter(self._flows.values())).close("another peer needs its place")
        flow = _Flow(self, peer)
        if not flow.open:
            return None
        self._flows[peer] = flow
        if self._timer is None:
            self._timer = self.reactor.callLater(IDLE_S, self._forget_silent)
        return flow

    def _forget_silent(self) -> None:
        self._timer = None
        before = self.reactor.seconds() - IDLE_S
        for flow in list(self._flows.values()):
            if flow.used <= before:
                flow.close("it is silent")
        if self._flows:
            first = min(flow.used for flow in self._flows.values())
            self._timer = self.reactor.callLater(first - before, self._forget_silent)


def _explain(error: OSError, where: str) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return AlreadyRunning(f"{where} is taken", "stop what has it, or choose another port")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionRefused(f"{where}: not permitted", "choose a port of 1024 or above")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"{where} cannot be bound", "choose an address that this host has")
    return NetworkError(f"cannot listen on {where}: {os.strerror(error.errno or 0)}")
