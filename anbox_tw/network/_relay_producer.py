"""The relay over any Twisted transports: each is the other's producer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableDescriptor, IPushProducer
from zope.interface import implementer

from anbox_tw.network._relay_ends import RelayEndpoint

if TYPE_CHECKING:
    from anbox_tw.network.relaying import Relay

__all__ = ["ProducerEndpoint"]


@implementer(IPushProducer)
class ProducerEndpoint(RelayEndpoint):
    """Writes what comes to the peer's transport, which pauses ours while its buffer is full."""

    __slots__ = ("_feeding",)

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay)
        self._feeding = False

    def begin(self, leftover: bytes, ended: bool) -> None:
        """See `RelayEndpoint`."""
        if self.lost or self.peer.lost or self.relay.ending:
            return
        target = self.peer.transport
        target.registerProducer(self, True)
        self._feeding = True
        if leftover:
            self.dataReceived(leftover)
        if ended:
            self.readConnectionLost()
        elif self._feeding and not getattr(target, "producerPaused", False):
            self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """See ``IProtocol``."""
        relay = self.relay
        if not self._feeding:
            return
        over = False
        if relay.limited:
            allowed = relay.allowance()
            over = len(data) >= allowed
            data = data[:allowed]
        self.direction.count += len(data)
        self.pass_on(data)
        if over:
            relay.limit_reached()

    def pass_on(self, data: bytes) -> None:
        """Give the target what was taken for it."""
        self.peer.transport.write(data)

    def readConnectionLost(self) -> None:
        """The source has ended its side: end ours towards the target, behind what is still to be written."""
        if not self._feeding:
            return
        self._stop_feeding()
        direction = self.direction
        direction.eof = direction.ended = True
        target: Any = self.peer.transport
        if IHalfCloseableDescriptor.providedBy(target):
            target.loseWriteConnection()  # type: ignore[attr-defined]  # mypy-zope narrows to an interface without it
            self.relay.direction_ended(direction)
        else:
            # TLS as Twisted does it, and pipes in memory, cannot end one direction: ending all is what is left
            self.relay.input_ended(self)

    # What the target's transport asks of us. It would ask the source's transport as well, but for ``stopProducing``:
    # a transport takes that for loseConnection, and the cause of the end would be lost.

    def pauseProducing(self) -> None:
        """See ``IPushProducer``."""
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """See ``IPushProducer``."""
        if not self.lost:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """See ``IPushProducer``; the loss of the target follows and says why."""

    def shut(self) -> None:
        """See `RelayEndpoint`."""
        self._stop_feeding()
        if not self.lost:
            self.peer._stop_feeding()
            self.transport.loseConnection()

    def _stop_feeding(self) -> None:
        if self._feeding:
            self._feeding = False
            if not self.peer.lost:
                self.peer.transport.unregisterProducer()
