"""What the ends of a relay have in common, whatever moves the bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol, ILoggingContext, IProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.network.connections import ITrackedConnection
from anbox_tw.network.tracked import abort_transport

if TYPE_CHECKING:
    from anbox_tw.network.relaying import Relay

__all__ = ["Direction", "RelayEndpoint"]


class Direction:
    """What flows from one end to the other.

    Attributes:
        count: bytes taken from the source.
        eof: the source has ended its side.
        ended: the target has got the end too, or can get nothing more.
        broken: the target takes nothing more.
    """

    __slots__ = ("broken", "count", "ended", "eof")

    def __init__(self) -> None:
        self.count = 0
        self.eof = False
        self.ended = False
        self.broken = False


@implementer(IProtocol, IHalfCloseableProtocol, ITrackedConnection, ILoggingContext)
class RelayEndpoint:
    """One end of a relay: the protocol of its transport while the relay runs. Base of the two strategies.

    Attributes:
        relay: whose end it is.
        peer: the other end.
        transport: the connection.
        direction: what flows from here to the peer.
        lost: whether the connection is gone.
    """

    __slots__ = ("__weakref__", "direction", "factory", "lost", "peer", "relay", "transport")

    peer: Any

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.transport: Any = None
        self.factory = None
        self.direction = Direction()
        self.lost = False

    @property
    def id(self) -> int:
        """The relay's."""
        return self.relay.id

    @property
    def name(self) -> str:
        """The relay's."""
        return self.relay.name

    def makeConnection(self, transport: Any) -> None:
        """See ``IProtocol``."""
        self.transport = transport

    def connectionMade(self) -> None:
        """See ``IProtocol``."""

    def connectionLost(self, reason: Failure) -> None:
        """See ``IProtocol``."""
        if self.lost:
            return
        self.lost = True
        self.release()
        self.relay.end_lost(self, reason)

    def dataReceived(self, data: bytes) -> None:
        """See ``IProtocol``."""
        raise NotImplementedError

    def readConnectionLost(self) -> None:
        """See ``IHalfCloseableProtocol``."""
        raise NotImplementedError

    def writeConnectionLost(self) -> None:
        """See ``IHalfCloseableProtocol``."""

    def logPrefix(self) -> str:
        """See ``ILoggingContext``."""
        return self.relay.name

    def describe(self) -> dict[str, Any]:
        """The relay's."""
        return self.relay.describe()

    def address(self) -> str:
        """The peer's address as text."""
        try:
            return str(self.transport.getPeer())
        except (AttributeError, OSError):
            return "closed"

    def close(self, reason: str) -> None:
        """Close the whole relay: what a registry of connections that holds this end asks for."""
        self.relay.close(reason)

    def abort(self, reason: str = "") -> None:
        """Cut this end off at once."""
        if not self.lost and self.transport is not None:
            abort_transport(self.transport)

    # -- what a strategy says

    def begin(self, leftover: bytes, ended: bool) -> None:
        """Send ``leftover`` to the peer, then what comes; ``ended``: nothing comes."""
        raise NotImplementedError

    def shut(self) -> None:
        """Read no more; flush what was taken for this end, then close it."""
        raise NotImplementedError

    def release(self) -> None:
        """The connection is gone: give back what was held for it."""
