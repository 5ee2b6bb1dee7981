"""Stream forwards: what happens with an accepted connection."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress, IProtocol
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.errors import NetworkError
from anbox_tw.network import Connections, ISocketCreator, ITrackedConnection, relay
from anbox_tw.network.connections import next_connection_id
from anbox_tw.session.forwards.guest import GuestSockets

if TYPE_CHECKING:
    from anbox_tw.session.forwards.registry import Forward, Forwards

__all__ = ["StreamCreator", "reset"]

# struct linger: on, 0 seconds
_LINGER_NONE = b"\1\0\0\0\0\0\0\0"


def reset(sock: socket.socket) -> None:
    """Close a socket so that its peer sees a reset: the nearest to a refusal once a connection was accepted."""
    if sock.family != socket.AF_UNIX:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        except OSError:
            pass
    sock.close()


@implementer(ITrackedConnection)
class _Waiting:
    """An accepted connection whose target is being connected to."""

    def __init__(self, sock: socket.socket, registry: Connections, name: str) -> None:
        self.id = next_connection_id()
        self.name = name
        self.socket: socket.socket | None = sock
        self._registry = registry
        registry.add(self)

    def describe(self) -> dict[str, Any]:
        """See ``ITrackedConnection``."""
        return {"id": self.id, "name": self.name, "waits": True}

    def take(self) -> socket.socket | None:
        """The socket, for whoever goes on with it; None if it was closed meanwhile."""
        sock, self.socket = self.socket, None
        self._registry.remove(self)
        return sock

    def close(self, reason: str) -> None:
        """See ``ITrackedConnection``."""
        self.abort(reason)

    def abort(self, reason: str) -> None:
        """See ``ITrackedConnection``."""
        sock = self.take()
        if sock is not None:
            reset(sock)


@implementer(ISocketCreator)
class StreamCreator:
    """Forwards accepted connections.

    Args:
        reactor: an fd reactor.
        guest: opens sockets in the container.
        forward: whose connections these are; it counts.
        forwards: knows the ways.
    """

    _log = Logger()

    def __init__(self, reactor: Any, guest: GuestSockets, forward: Forward, forwards: Forwards) -> None:
        self._reactor = reactor
        self._guest = guest
        self._forward = forward
        self._forwards = forwards

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """See `IConnectionCreator`: only what is too much comes here."""
        return None

    def forward_socket(self, sock: socket.socket, registry: Connections) -> bool:
        """See `ISocketCreator`."""
        forward = self._forward
        forward.accepted += 1
        if forward.relays.full:
            forward.failure(f"{len(forward.relays)} connections are open, which is the limit")
            reset(sock)
            return True
        way = self._forwards.way(forward.via, forward.target)
        if not way:
            forward.failure(self._forwards.problem(forward.via))
            reset(sock)
            return True
        if way == "adb":
            assert self._forwards.adb is not None
            self._forwards.adb.serve(sock, forward)
            return True
        waiting = _Waiting(sock, registry, forward.relays.name)

        def connected(number: int, target: socket.socket | None) -> None:
            self._connected(waiting, number, target)

        self._guest.connect(forward.target, connected)
        return True

    def _connected(self, waiting: _Waiting, number: int, target: socket.socket | None) -> None:
        sock = waiting.take()
        forward = self._forward
        if target is None:
            forward.failure(self._guest.explain(number))
            if number != errno.ECONNREFUSED:
                self._log.info("{name}: {error}", name=forward.relays.name, error=forward.last_error)
            if sock is not None:
                reset(sock)
            return
        if sock is None:
            target.close()
            return
        try:
            relay(
                sock,
                target,
                clock=self._reactor,
                name=forward.relays.name,
                registry=forward.relays,
                on_close=forward.ended,
                shape=self._forwards.shaper.shape,
            )
        except NetworkError as error:
            forward.failure(str(error))
            reset(sock)
            target.close()
