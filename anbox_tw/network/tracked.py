"""Following a connection whatever protocol serves it, and handing a transport from one protocol to the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from anbox_tw.interfaces import IMessageSender
from anbox_tw.network.connections import ITrackedConnection, next_connection_id

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, ITransport

__all__ = ["TrackedProtocol", "abort_transport", "hand_over"]


def abort_transport(transport: Any) -> None:
    """Close a transport at once, by ``abortConnection`` where it has one."""
    abort = getattr(transport, "abortConnection", None)
    (abort if abort is not None else transport.loseConnection)()


@implementer(ITrackedConnection)
class TrackedProtocol(Protocol):
    """Stands between a transport and the protocol that serves it, to know when the connection ends.

    It provides what the inner protocol provides (half-close, file descriptors, ...) and adds one call to each
    delivery. The inner protocol's ``transport`` is the real one.

    Attributes:
        id: unique in this process.
        name: what the connection is for.
        protocol: who serves it now.
        address: the peer's, as the listener got it.
    """

    _log = Logger()

    def __init__(
        self, protocol: IProtocol, *, name: str = "connection", address: IAddress | None = None
    ) -> None:
        self.id = next_connection_id()
        self.name = name
        self.address = address
        self.accepted_at = time.time()
        self.close_reason: str | None = None
        self._on_made: list[Callable[[TrackedProtocol], None]] = []
        self._on_lost: list[Callable[[TrackedProtocol], None]] = []
        self.protocol: Any = None
        self._take(protocol)

    def _take(self, protocol: Any) -> None:
        self.protocol = protocol
        directlyProvides(self, providedBy(protocol))

    def on_made(self, callback: Callable[[TrackedProtocol], None]) -> None:
        """Have ``callback`` called with this object before the inner protocol gets its transport."""
        self._on_made.append(callback)

    def on_lost(self, callback: Callable[[TrackedProtocol], None]) -> None:
        """Have ``callback`` called with this object after the inner protocol was told of the loss."""
        self._on_lost.append(callback)

    def replace(self, protocol: IProtocol) -> None:
        """Let another protocol serve the connection from now on; the former one hears nothing more."""
        self._take(protocol)
        if self.transport is not None:
            protocol.makeConnection(self.transport)

    def __getattr__(self, name: str) -> Any:
        # what the inner protocol's further interfaces need: readConnectionLost, fileDescriptorReceived, ...
        if name == "protocol":
            raise AttributeError(name)
        return getattr(self.protocol, name)

    def makeConnection(self, transport: ITransport) -> None:
        self.connected = 1
        self.transport = transport
        for callback in self._on_made:
            callback(self)
        if self.transport is not None:
            self.protocol.makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connected = 0
        try:
            self.protocol.connectionLost(reason)
        finally:
            self.transport = None
            for callback in self._on_lost:
                callback(self)

    def logPrefix(self) -> str:
        return self.name

    def describe(self) -> dict[str, Any]:
        """Id, name, peer, kind of protocol and age in seconds."""
        return {
            "id": self.id,
            "name": self.name,
            "peer": str(self.address),
            "protocol": type(self.protocol).__name__,
            "age": round(time.time() - self.accepted_at, 3),
        }

    def close(self, reason: str) -> None:
        """Flush, then close; a protocol that knows how, an `IMessageSender` or a relay, is asked with ``reason``."""
        if self.transport is None:
            return
        self.close_reason = reason
        if IMessageSender.providedBy(self.protocol) or ITrackedConnection.providedBy(self.protocol):
            self.protocol.close(reason)
        else:
            self.transport.loseConnection()

    def abort(self, reason: str) -> None:
        """Close at once; what is queued is lost."""
        if self.transport is None:
            return
        self.close_reason = reason
        abort_transport(self.transport)


def hand_over(transport: Any, protocol: IProtocol, data: bytes = b"") -> None:
    """Let ``protocol`` serve a connected ``transport`` from now on.

    The protocol that had it hears nothing more, not even the loss. A listener that tracks the connection keeps
    doing so, which it would not if ``transport.protocol`` were simply set.

    Args:
        transport: connected; the reactor reads from it or it is paused, both are all right.
        protocol: gets ``makeConnection`` and, when there is any, ``data``.
        data: what was already read from the transport and belongs to the new protocol.
    """
    holder = transport.protocol
    if isinstance(holder, TrackedProtocol):
        holder.replace(protocol)
    else:
        transport.protocol = protocol
        protocol.makeConnection(transport)
    if data:
        protocol.dataReceived(data)
