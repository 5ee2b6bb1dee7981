"""The Twisted protocol that feeds a message processor and carries its answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from anbox_tw.errors import AnboxError, NetworkError
from anbox_tw.interfaces import IMessageSender
from anbox_tw.network.connections import CLOSE_GRACE_S, Connections, ITrackedConnection, next_connection_id
from anbox_tw.network.tracked import abort_transport

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from anbox_tw.interfaces import IMessageProcessor

__all__ = ["MAX_QUEUE_BYTES", "IEndOfInput", "SocketConnection"]

# What one peer that does not read may cost us. The largest message of the RPC and pipe protocols is far below.
MAX_QUEUE_BYTES: Final = 4 * 1024 * 1024


class IEndOfInput(Interface):
    """A message processor that wants to go on sending after its peer has ended its side."""

    def end_of_input() -> None:
        """The peer will send no more. Without this method the connection is flushed and closed then."""


@implementer(IMessageSender, IHalfCloseableProtocol, IPushProducer, ITrackedConnection)
class SocketConnection(Protocol):
    """Joins a transport and a message processor: bytes in, answers out through a bounded queue.

    A peer that does not read stops being read, so that what it asks for cannot pile up here; what is sent to it
    without being asked is queued, up to ``max_queue`` bytes, then the connection is aborted.

    Attributes:
        id: unique in this process.
        name: what the connection is for.
        processor: the message processor, None until connected.
        registry: where the connection is listed while it is open, or None.
        bytes_in: how many bytes came.
        bytes_out: how many bytes were given to the transport.
    """

    _log = Logger()
    transport: Any = None

    def __init__(
        self,
        processor_factory: Callable[[SocketConnection], IMessageProcessor],
        name: str,
        registry: Connections | None = None,
        *,
        clock: IReactorTime | None = None,
        max_queue: int = MAX_QUEUE_BYTES,
        close_grace: float = CLOSE_GRACE_S,
    ) -> None:
        """Make a connection that is not connected yet.

        Args:
            processor_factory: called with this connection (an `IMessageSender` with ``transport``) once connected.
            name: for lists and logs.
            registry: where the connection is listed while it is open.
            clock: for the grace at close; the transport's reactor when it is None.
            max_queue: bytes that may wait for the peer to read, beside the transport's own buffer.
            close_grace: seconds the peer may take to read what is queued at `close`.
        """
        self.id = next_connection_id()
        self.name = name
        self.processor: IMessageProcessor | None = None
        self.registry = registry
        self.bytes_in = 0
        self.bytes_out = 0
        self._factory = processor_factory
        self._clock = clock
        self._max_queue = max_queue
        self._close_grace = close_grace
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._congested = False
        self._reading_paused = False
        self._closing = False
        self._lost = False
        self._reason: Failure | None = None
        self._timer: IDelayedCall | None = None
        self._since = time.time()

    # -- what the transport calls

    def connectionMade(self) -> None:
        if self.registry is not None:
            try:
                self.registry.add(self)
            except NetworkError as error:
                self._log.warn(
                    "{name}: refused {peer}: {error}", name=self.name, peer=self._peer(), error=error
                )
                self.registry = None
                self._end(Failure(error))
                return
        self.transport.registerProducer(self, True)
        try:
            self.processor = self._factory(self)
        except Exception:
            self._fail(Failure(), "{name}: making its processor failed")

    def dataReceived(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self.processor is None or self._closing:
            return
        try:
            self.processor.process_data(data)
        except AnboxError as error:
            self._log.info("{name} #{id}: closing: {error}", name=self.name, id=self.id, error=error)
            self._begin_close(Failure(error))
        except Exception:
            self._fail(Failure(), "{name}: its processor failed")

    def readConnectionLost(self) -> None:
        """The peer has ended its side; what is queued is still delivered."""
        if IEndOfInput.providedBy(self.processor) and not self._closing:
            try:
                self.processor.end_of_input()
            except Exception:
                self._fail(Failure(), "{name}: its processor failed at the end of input")
        else:
            self._begin_close(Failure(ConnectionDone("the peer closed")))

    def writeConnectionLost(self) -> None:
        """Our side was ended."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._queue.clear()
        self._queued = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        processor, self.processor = self.processor, None
        try:
            if processor is not None:
                processor.connection_lost(self._reason or reason)
        except Exception:
            self._log.failure("{name}: its processor failed at the loss", name=self.name)
        finally:
            if self.registry is not None:
                self.registry.remove(self)

    # -- the transport's view of us as the producer of what it sends

    def pauseProducing(self) -> None:
        """The transport's buffer is full: queue here from now on, and read no more from this peer."""
        self._congested = True
        if not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty again."""
        self._congested = False
        while self._queue and not self._congested and self.transport is not None:
            data = self._queue.popleft()
            self._queued -= len(data)
            self._write(data)
        if self._congested or self.transport is None:
            return
        if self._closing:
            self._finish_close()
        elif self._reading_paused:
            self._reading_paused = False
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The transport is closing; `connectionLost` follows."""

    # -- what the processor calls

    def send(self, data: bytes) -> None:
        """See `IMessageSender`. More than ``max_queue`` unread bytes abort the connection."""
        if self._closing or self.transport is None or not data:
            return
        if not self._congested:
            self._write(data)
            return
        if self._queued + len(data) > self._max_queue:
            self._fail(
                Failure(NetworkError(f"the peer does not read: {self._queued} bytes wait for it")),
                None,
            )
            return
        self._queue.append(data)
        self._queued += len(data)

    def close(self, reason: str) -> None:
        """See `IMessageSender`. A peer that does not read the rest within ``close_grace`` seconds is cut off."""
        self._begin_close(Failure(ConnectionDone(reason)))

    def abort(self, reason: str) -> None:
        """Close at once; what is queued is lost. ``reason`` is given to the processor."""
        self._end(Failure(ConnectionDone(reason)))

    @property
    def queued(self) -> int:
        """Bytes that wait for the peer to read, beside the transport's own buffer."""
        return self._queued

    @property
    def congested(self) -> bool:
        """Whether the peer is slower than what is sent to it."""
        return self._congested

    def describe(self) -> dict[str, Any]:
        """Id, name, peer, bytes each way, bytes queued and age in seconds."""
        return {
            "id": self.id,
            "name": self.name,
            "peer": self._peer(),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "queued": self._queued,
            "age": round(time.time() - self._since, 3),
        }

    # -- inside

    def _peer(self) -> str:
        try:
            return str(self.transport.getPeer()) if self.transport is not None else ""
        except (AttributeError, OSError):
            return ""

    def _write(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self.transport.write(data)

    def _begin_close(self, reason: Failure) -> None:
        if self._closing or self.transport is None:
            return
        self._closing = True
        self._reason = reason
        clock = self._clock or getattr(self.transport, "reactor", None)
        if clock is not None:
            self._timer = clock.callLater(self._close_grace, self._grace_over)
        if not self._queue:
            self._finish_close()

    def _finish_close(self) -> None:
        # a transport does not close while a producer is registered
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _grace_over(self) -> None:
        self._timer = None
        self._log.info("{name} #{id}: cut off a peer that does not read", name=self.name, id=self.id)
        if self.transport is not None:
            abort_transport(self.transport)

    def _fail(self, reason: Failure, message: str | None) -> None:
        if message is not None:
            self._log.failure(message, reason, name=self.name)
        else:
            self._log.warn("{name} #{id}: {error}", name=self.name, id=self.id, error=reason.value)
        self._end(reason)

    def _end(self, reason: Failure) -> None:
        if self._lost or self.transport is None:
            return
        if self._reason is None or not self._closing:
            self._reason = reason
        self._closing = True
        self._queue.clear()
        self._queued = 0
        abort_transport(self.transport)
