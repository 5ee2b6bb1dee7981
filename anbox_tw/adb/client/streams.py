"""A byte stream that coroutines read from and write to, with backpressure and timeouts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb._socketio import SocketIO
from anbox_tw.adb._wire import Buffer
from anbox_tw.adb.client._errors import StreamEnded
from anbox_tw.errors import TimedOut

__all__ = ["ByteStream", "deferred", "with_timeout"]

P = ParamSpec("P")
T = TypeVar("T")

STALL_TIMEOUT_S = 60.0
"""How long a stream may stand still while something is expected from it, unless told otherwise."""
SOCKET_READ = 256 * 1024
"""One read from a server's socket."""
HIGH_WATER = 2 * 1024 * 1024
"""Bytes received and not yet read above which nothing more is asked for."""


def deferred(function: Callable[P, Coroutine[Deferred[Any], Any, T]]) -> Callable[P, Deferred[T]]:
    """Make a coroutine function return a Deferred: it starts at once and can be cancelled."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return Deferred.fromCoroutine(function(*args, **kwargs))

    return wrapper


def with_timeout(clock: IReactorTime, waiting: Deferred[T], seconds: float | None, what: str) -> Deferred[T]:
    """``waiting``, which fails with ``TimedOut`` and is cancelled after ``seconds``."""
    if seconds is None:
        return waiting

    def convert(result: Any, _seconds: float) -> Any:
        if isinstance(result, Failure) and not result.check(CancelledError):
            return result
        raise TimedOut(f"{what} did not finish within {seconds:g} s")

    return waiting.addTimeout(seconds, clock, convert)


@implementer(IPushProducer)
class ByteStream(Protocol):
    """Reads and writes for coroutines, over an ADB stream or a socket.

    One reader at a time. After the end, what was received can still be read.

    Args:
        clock: for timeouts.
        stall_timeout: seconds without any byte after which a wait fails; None to wait for ever.

    Attributes:
        ended: nothing more will come.
        reason: why it ended, or None.
    """

    takes_buffers = True
    transport: Any

    def __init__(self, clock: IReactorTime, stall_timeout: float | None = STALL_TIMEOUT_S) -> None:
        self.clock = clock
        self.stall_timeout = stall_timeout
        self.ended = False
        self.reason: Failure | None = None
        self._chunks: deque[Buffer | memoryview] = deque()
        self._size = 0
        self._paused = False
        self._waiter: Deferred[None] | None = None
        self._blocked = False
        self._drain: Deferred[None] | None = None
        self._closed: list[Deferred[None]] = []
        self._io: SocketIO | None = None

    def connectionMade(self) -> None:
        """The stream is there."""
        self.transport.registerProducer(self, True)
        self._io = SocketIO.adopt(self.transport, None)
        if self._io is not None:
            self.transport.bufferSize = SOCKET_READ

    # ------------------------------------------------------------------ reading

    def dataReceived(self, data: bytes) -> None:
        """Keep what comes."""
        if self._io is not None:
            self._io.acknowledge()
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and not self._paused:
            self._paused = True
            self.transport.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        self.ended = True
        self.reason = reason
        self._wake()
        self.resumeProducing()
        closed, self._closed = self._closed, []
        for waiter in closed:
            waiter.callback(None)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    async def _more(self) -> None:
        """Wait for data or the end."""
        if self._size or self.ended:
            return
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
            if self._size or self.ended:
                return

        def cancelled(_: Deferred[None]) -> None:
            self._waiter = None

        self._waiter = Deferred(cancelled)
        await with_timeout(self.clock, self._waiter, self.stall_timeout, "waiting for the other end")

    @property
    def available(self) -> int:
        """Bytes that can be read without waiting."""
        return self._size

    async def read(self, limit: int = 1 << 30) -> Buffer | memoryview:
        """Some bytes, at most ``limit``; empty at the end."""
        await self._more()
        if not self._size:
            return b""
        chunk = self._chunks.popleft()
        if len(chunk) > limit:
            view = memoryview(chunk)
            self._chunks.appendleft(view[limit:])
            chunk = view[:limit]
        self._took(len(chunk))
        return chunk

    async def read_exactly(self, count: int) -> bytes:
        """Just ``count`` bytes.

        Raises:
            StreamEnded: the end comes before.
        """
        parts = []
        left = count
        while left:
            chunk = await self.read(left)
            if not chunk:
                raise StreamEnded(f"the other end closed the stream {left} bytes too early")
            parts.append(chunk)
            left -= len(chunk)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    async def read_all(self, limit: int = 64 << 20) -> bytes:
        """Everything until the end.

        Raises:
            StreamEnded: there are more than ``limit`` bytes.
        """
        parts = []
        size = 0
        while chunk := await self.read():
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                self.abort()
                raise StreamEnded(f"the other end sends more than {limit} bytes")
        return b"".join(parts)

    def _took(self, count: int) -> None:
        self._size -= count
        if self._paused and self._size <= HIGH_WATER // 2:
            self._paused = False
            if not self.ended:
                self.transport.resumeProducing()

    # ------------------------------------------------------------------ writing

    def write(self, data: Buffer | memoryview) -> None:
        """Queue ``data``."""
        if self.ended:
            return
        if self._io is not None:
            self._io.write((data,))
        else:
            self.transport.write(data)

    def drain(self) -> Deferred[None]:
        """Fires when the transport takes more; fails with ``TimedOut`` when it does not for too long."""
        if not self._blocked or self.ended:
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done

        def cancelled(_: Deferred[None]) -> None:
            self._drain = None

        self._drain = Deferred(cancelled)
        return with_timeout(self.clock, self._drain, self.stall_timeout, "sending to the other end")

    def pauseProducing(self) -> None:
        """The transport is full."""
        self._blocked = True

    def resumeProducing(self) -> None:
        """The transport has room."""
        self._blocked = False
        drain, self._drain = self._drain, None
        if drain is not None:
            drain.callback(None)

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` follows."""

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Send what is written, then close."""
        if not self.ended and self.transport is not None:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close now."""
        if not self.ended and self.transport is not None:
            self.transport.abortConnection()

    def when_closed(self) -> Deferred[None]:
        """Fires at the end."""
        waiter: Deferred[None] = Deferred()
        if self.ended:
            waiter.callback(None)
        else:
            self._closed.append(waiter)
        return waiter
