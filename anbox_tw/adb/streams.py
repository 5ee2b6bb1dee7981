"""One ADB stream as a Twisted transport."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IProducer,
    IProtocol,
    IPushProducer,
    ITransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb._wire import Buffer

if TYPE_CHECKING:
    from anbox_tw.adb.transport import AdbTransport

__all__ = ["AdbAddress", "AdbStream"]

MAX_QUEUED = 64 * 1024 * 1024
"""What a writer that ignores ``pauseProducing`` may queue in one stream, in bytes, before it is cut off."""


@implementer(IAddress)
class AdbAddress:
    """Where a stream leads: a service on the other end of a transport."""

    def __init__(self, peer: object, service: str) -> None:
        self.peer = peer
        self.service = service

    def __repr__(self) -> str:
        return f"<AdbAddress {self.service!r} at {self.peer}>"


@implementer(ITransport, IConsumer, IPushProducer)
class AdbStream:
    """A stream, with the face of a Twisted transport.

    Give it a protocol with ``start``; until then what arrives is held and not acknowledged.
    ``pauseProducing`` holds back the acknowledgement, so the peer stops after what is on its way.
    ``write`` never blocks; register a producer to be told when to stop.

    A protocol with the attribute ``takes_buffers = True`` gets large payloads as the ``bytearray`` they
    were received into and may keep it; others get ``bytes``.

    There is no half-close in ADB: ``loseConnection`` sends what is queued, then ends both directions.

    Attributes:
        transport: the connection that carries it.
        local: our id of it.
        service: the name it was opened with.
        protocol: what data goes to, or None.
        bytes_in: payload bytes received.
        bytes_out: payload bytes sent.
    """

    _log = Logger()
    disconnecting = False

    def __init__(self, transport: AdbTransport, local: int, service: str) -> None:
        self.transport = transport
        self.local = local
        self.service = service
        self.protocol: IProtocol | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.connected = True
        self._takes_buffers = False
        self._queue: deque[Buffer | memoryview] = deque()
        self._queued = 0
        self._held: deque[Buffer] = deque()
        self._owed: list[int] = []
        self._paused = False
        self._delivering = False
        self._end: Failure | None = None
        self._producer: IPushProducer | None = None
        self._streaming = True
        self._producer_paused = False
        self._flushing = False
        self._started = False

    def __repr__(self) -> str:
        return f"<AdbStream {self.local} {self.service!r}>"

    # ---------------------------------------------------------------- reading

    def start(self, protocol: IProtocol) -> None:
        """Connect ``protocol``; what came in before is delivered now."""
        if self._started:
            raise RuntimeError(f"{self} has a protocol already")
        self._started = True
        self.protocol = protocol
        self._takes_buffers = bool(getattr(protocol, "takes_buffers", False))
        protocol.makeConnection(self)
        if self.connected:
            self._drain()
        if self._end is not None and not self._held and self.protocol is not None:
            self._lost(self._end)

    def pauseProducing(self) -> None:
        """Hold back what arrives, and its acknowledgement."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Deliver what was held, and acknowledge."""
        if not self._paused:
            return
        self._paused = False
        if not self._delivering:
            self._pay()
            self._drain()

    def stopProducing(self) -> None:
        """The consumer does not want more: end the stream."""
        self.loseConnection()

    def _received(self, data: Buffer) -> None:
        self.bytes_in += len(data)
        self._held.append(data)
        if not self._delivering:
            self._drain()

    def _drain(self) -> None:
        protocol = self.protocol
        if protocol is None:
            return
        held = self._held
        failed = None
        self._delivering = True
        while held and not self._paused and self.connected:
            data = held.popleft()
            size = len(data)
            try:
                if not self._takes_buffers or isinstance(data, bytes):
                    protocol.dataReceived(bytes(data))
                else:
                    protocol.dataReceived(cast(bytes, data))
            except Exception as error:
                self._log.failure("{stream} failed in its protocol", stream=self)
                failed = Failure(error)
                break
            if self._paused:
                self._owed.append(size)
            else:
                self._pay()
                self.transport._acknowledge(self, size)
        self._delivering = False
        if failed is not None:
            self.transport._close_stream(self, failed)
        elif self._end is not None and (not held or not self.connected):
            self._lost(self._end)

    def _pay(self) -> None:
        for size in self._owed:
            self.transport._acknowledge(self, size)
        self._owed.clear()

    # ---------------------------------------------------------------- writing

    def write(self, data: Buffer | memoryview) -> None:
        """Queue ``data``, which must not be changed afterwards. After the end it is dropped."""
        if not data or not self.connected or self.disconnecting:
            return
        self._queue.append(data)
        self._queued += len(data)
        self._flush()
        if self._queued > MAX_QUEUED:
            self._log.error(
                "{stream} was written {size} bytes that the peer does not take",
                stream=self,
                size=self._queued,
            )
            self.abortConnection()
        elif (
            self._producer is not None
            and not self._producer_paused
            and self._queued >= self.transport.high_water
        ):
            self._producer_paused = True
            if self._streaming:
                self._producer.pauseProducing()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Queue several pieces."""
        self.write(b"".join(iovec))

    @property
    def queued(self) -> int:
        """Bytes written here and not yet sent."""
        return self._queued

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Tell ``producer`` when to pause and to go on."""
        if self._producer is not None:
            raise RuntimeError(f"{self} has a producer already")
        if not self.connected:
            producer.stopProducing()
            return
        self._producer = cast(IPushProducer, producer)
        self._streaming = streaming
        self._producer_paused = False
        if not streaming:
            self._producer.resumeProducing()
        elif self._queued >= self.transport.high_water:
            self._producer_paused = True
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The producer has no more to say."""
        self._producer = None
        self._producer_paused = False
        if self.disconnecting:
            self._flush()

    def loseConnection(self) -> None:
        """Send what is queued, then close; with a producer, once it has unregistered."""
        if not self.connected or self.disconnecting:
            return
        self.disconnecting = True
        self._flush()

    def abortConnection(self) -> None:
        """Close now and forget what is queued."""
        if self.connected:
            self._queue.clear()
            self._queued = 0
            self.transport._close_stream(self, Failure(ConnectionAborted()))

    def getPeer(self) -> AdbAddress:
        """The service behind this stream."""
        return AdbAddress(self.transport.peer_address(), self.service)

    def getHost(self) -> AdbAddress:
        """Our end of this stream."""
        return AdbAddress("local", self.service)

    def _flush(self) -> None:
        """Send as much as the peer and the transport take, and ask the producer for more."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while (
                self._flush_queue() and self._producer is not None and self._wake_producer() and self._queue
            ):
                pass
        finally:
            self._flushing = False
        if (
            self.disconnecting
            and not self._queue
            and self._producer is None
            and self.connected
            and not self._end
        ):
            self.transport._close_stream(self, Failure(ConnectionDone()))

    def _flush_queue(self) -> bool:
        """Whether all that was queued has been sent."""
        transport = self.transport
        queue = self._queue
        while queue:
            limit = transport._sendable(self)
            if not limit:
                return False
            data = self._next_payload(limit)
            self._queued -= len(data)
            self.bytes_out += len(data)
            transport._send_data(self, data)
        return True

    def _wake_producer(self) -> bool:
        """Whether the producer was asked for more."""
        if self._producer is None or (self._streaming and not self._producer_paused):
            return False
        self._producer_paused = False
        self._producer.resumeProducing()
        return True

    def _next_payload(self, limit: int) -> Buffer | memoryview:
        queue = self._queue
        head = queue.popleft()
        size = len(head)
        if size > limit:
            view = memoryview(head)
            queue.appendleft(view[limit:])
            return view[:limit]
        if not queue or size + len(queue[0]) > limit:
            return head
        pieces = [head]
        while queue and size + len(queue[0]) <= limit:
            piece = queue.popleft()
            size += len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    # ---------------------------------------------------------------- the end

    def _closed_by_peer(self, reason: Failure) -> None:
        """The peer has ended it: what is held is still delivered."""
        self._queue.clear()
        self._queued = 0
        self._end = reason
        self.disconnecting = True
        if not self._delivering:
            if self._held:
                self._drain()
            else:
                self._lost(reason)

    def _finish(self, reason: Failure) -> None:
        """It is over, by us or with the transport; what is held is dropped."""
        self._queue.clear()
        self._queued = 0
        self._held.clear()
        if self._delivering:
            # The protocol is in the middle of dataReceived; it hears of the end when that returns.
            self._end = reason
            self.connected = False
        else:
            self._lost(reason)

    def _lost(self, reason: Failure) -> None:
        self.connected = False
        self.disconnecting = True
        producer, self._producer = self._producer, None
        protocol, self.protocol = self.protocol, None
        # Without a protocol the reason waits for the one that start() brings.
        self._end = reason if protocol is None and not self._started else None
        if producer is not None:
            producer.stopProducing()
        if protocol is not None:
            protocol.connectionLost(reason)
