"""ADB without sockets: two transports joined in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IConsumer, IProducer, IProtocol, IPushProducer, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Collector", "MemoryLink", "MemoryTransport"]


@implementer(ITransport, IConsumer, IPushProducer)
class MemoryTransport:
    """One end of a ``MemoryLink``; buffers until the link is pumped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.out: deque[bytes] = deque()
        self.connected = True
        self.disconnecting = False
        self.aborted = False
        self.reading = True
        self.producer: Any = None

    def write(self, data: bytes) -> None:
        """Queue ``data`` for the other end."""
        if self.connected and not self.disconnecting and data:
            self.out.append(bytes(data))

    def writeSequence(self, iovec: Any) -> None:
        """Queue several pieces."""
        for piece in iovec:
            self.write(piece)

    def loseConnection(self) -> None:
        """Close after what is queued."""
        self.disconnecting = True

    def abortConnection(self) -> None:
        """Close at once."""
        self.aborted = True
        self.disconnecting = True
        self.out.clear()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Remember the producer; the link has room always."""
        self.producer = producer

    def unregisterProducer(self) -> None:
        """Forget it."""
        self.producer = None

    def pauseProducing(self) -> None:
        """Deliver nothing to this end."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Deliver again."""
        self.reading = True

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    def getPeer(self) -> Any:
        """The other end's name."""
        return f"memory:{self.name}"

    def getHost(self) -> Any:
        """This end's name."""
        return f"memory:{self.name}"


class MemoryLink:
    """Joins two protocols.

    Args:
        one: a protocol, usually the host's.
        other: a protocol, usually the device's.
        cut: how the bytes that are on the way are cut for delivery; whole by default.
        clock: advanced by nothing in each round, so that what is due at once happens (TLS needs it).

    Attributes:
        log: what was delivered: (``"one"`` or ``"other"`` for the sender, bytes).
    """

    def __init__(
        self,
        one: IProtocol,
        other: IProtocol,
        cut: Callable[[bytes], list[bytes]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.protocols = (one, other)
        self.transports = (MemoryTransport("one"), MemoryTransport("other"))
        self.log: list[tuple[str, bytes]] = []
        self._cut = cut or (lambda data: [data])
        self._lost = [False, False]
        self._clock = clock
        other.makeConnection(self.transports[1])
        one.makeConnection(self.transports[0])

    def pump(self, rounds: int = 100_000) -> None:
        """Deliver until nothing is on the way, at most ``rounds`` times in each direction."""
        for _ in range(rounds):
            if self._clock is not None:
                self._clock.advance(0)
            if not (self._move(0) | self._move(1)) and not self._due():
                return
        raise AssertionError("the two ends never come to rest")

    def _due(self) -> bool:
        clock = self._clock
        return clock is not None and any(
            call.getTime() <= clock.seconds() for call in clock.getDelayedCalls()
        )

    def _move(self, source: int) -> bool:
        transport, target = self.transports[source], 1 - source
        moved = False
        if transport.out and self.transports[target].reading and not self._lost[target]:
            data = b"".join(transport.out)
            transport.out.clear()
            self.log.append((transport.name, data))
            for piece in self._cut(data):
                if not self._lost[target]:
                    self.protocols[target].dataReceived(piece)
            moved = True
        if transport.disconnecting and not transport.out and transport.connected:
            self.lose(Failure(ConnectionAborted()) if transport.aborted else Failure(ConnectionDone()))
            moved = True
        return moved

    def lose(self, reason: Failure | None = None) -> None:
        """End the link, for both ends."""
        for index, protocol in enumerate(self.protocols):
            self.transports[index].connected = False
            if not self._lost[index]:
                self._lost[index] = True
                protocol.connectionLost(reason or Failure(ConnectionDone()))


class Collector(Protocol):
    """A protocol that keeps what it hears; ``finished`` fires with all of it at the end.

    Attributes:
        data: all that came in.
        chunks: the size of each ``dataReceived``.
        reason: why it ended, or None.
        finished: fires with ``data`` at the end.
    """

    takes_buffers = True
    transport: Any

    def __init__(self) -> None:
        self.data = bytearray()
        self.chunks: list[int] = []
        self.reason: Failure | None = None
        self.finished: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """Keep ``data``."""
        self.data += data
        self.chunks.append(len(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        self.reason = reason
        self.finished.callback(bytes(self.data))
