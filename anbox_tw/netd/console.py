"""One conversation with a daemon, message by message: what ``anbox ndc`` is made of."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from anbox_tw.errors import NotRunning, PeerError, TimedOut
from anbox_tw.netd._framing import Message, MessageDecoder, MessageError, encode_command

__all__ = ["Conversation"]

# messages that were read and not yet asked for; reading stops there
MAX_WAITING = 1000


class Conversation(Protocol):
    """A connection whose messages are taken one at a time."""

    transport: Any

    def __init__(self, reactor: Any, *, with_sequence: bool = True) -> None:
        self._reactor = reactor
        self._decoder = MessageDecoder(with_sequence=with_sequence)
        self._messages: deque[Message | MessageError] = deque()
        self._waiter: Deferred[Message] | None = None
        self._end: str | None = None
        self._closed: list[Deferred[None]] = []

    @classmethod
    def connect(cls, reactor: Any, path: str, *, with_sequence: bool = True) -> Deferred[Conversation]:
        """Connect to the daemon's socket at ``path`` (one that starts with a NUL is abstract)."""
        connected: Deferred[Conversation] = connectProtocol(
            UNIXClientEndpoint(reactor, path, timeout=10), cls(reactor, with_sequence=with_sequence)
        )
        return connected

    def send(self, sequence: int | None, words: list[str]) -> None:
        """Send a command.

        Raises:
            ValueError: the words cannot be one.
        """
        self.transport.write(encode_command(sequence, words))

    def next(self, timeout: float | None = None) -> Deferred[Message]:
        """The next message.

        Args:
            timeout: seconds to wait, or None for ever.

        Raises:
            TimedOut: none came.
            NotRunning: the daemon has gone.
            PeerError: what came is no message.
        """
        if self._messages:
            message = self._messages.popleft()
            if self.transport is not None and self._end is None and len(self._messages) < MAX_WAITING:
                self.transport.resumeProducing()
            if isinstance(message, MessageError):
                return fail(PeerError(str(message)))
            return succeed(message)
        if self._end is not None:
            return fail(NotRunning(f"the daemon closed the connection: {self._end}"))
        waiter: Deferred[Message] = Deferred(lambda _d: setattr(self, "_waiter", None))
        self._waiter = waiter
        if timeout is not None:

            def late(_result: object, _timeout: float) -> None:
                raise TimedOut(f"no reply within {timeout:g} s")

            waiter.addTimeout(timeout, self._reactor, onTimeoutCancel=late)
        return waiter

    def close(self) -> Deferred[None]:
        """Close; fires when the connection is gone."""
        if self._end is not None or self.transport is None:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._closed.append(done)
        self.transport.abortConnection()
        return done

    def dataReceived(self, data: bytes) -> None:
        self._messages.extend(self._decoder.feed(data))
        if len(self._messages) >= MAX_WAITING and self.transport is not None:
            self.transport.pauseProducing()
        self._give()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end = reason.getErrorMessage()
        self._give()
        closed, self._closed = self._closed, []
        for done in closed:
            done.callback(None)

    def _give(self) -> None:
        if self._waiter is None or not (self._messages or self._end is not None):
            return
        waiter, self._waiter = self._waiter, None
        self.next().chainDeferred(waiter)
