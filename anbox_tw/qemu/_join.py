"""Joins a guest's pipe and a host's connection: what comes in at one leaves at the other, and they end together."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from anbox_tw.network import abort_transport, hand_over

__all__ = ["Joined"]

FLUSH_TIMEOUT_S = 5.0
"""What was sent before one side ended still reaches the other, if that reads within this time."""


class _End(Protocol):
    def __init__(self, joined: Joined) -> None:
        self.joined = joined
        self.peer: _End
        self.real: Any = None
        self.lost = False
        self.received = 0

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        self.peer.real.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self.joined.one_lost(self, reason)


class Joined:
    """Two transports that are one connection.

    Args:
        clock: for the time limit at the end.
        a: a connected transport.
        b: another one.
        from_a: bytes that were already read from ``a``.
        from_b: bytes that were already read from ``b``.
    """

    def __init__(self, clock: IReactorTime, a: Any, b: Any, from_a: bytes, from_b: bytes) -> None:
        self._clock = clock
        self._reason = ""
        self._timeout: IDelayedCall | None = None
        self._waiting: list[Deferred[str]] = []
        self._ends = (_End(self), _End(self))
        for end, peer, transport in ((self._ends[0], self._ends[1], a), (self._ends[1], self._ends[0], b)):
            end.peer, end.real = peer, transport
        for end, transport in zip(self._ends, (a, b), strict=True):
            hand_over(transport, end)
        a.registerProducer(b, True)
        b.registerProducer(a, True)
        for end, data in zip(self._ends, (from_a, from_b), strict=True):
            if data:
                end.dataReceived(data)
            end.real.resumeProducing()

    @property
    def counters(self) -> tuple[int, int]:
        """Bytes from ``a`` and from ``b``."""
        return self._ends[0].received, self._ends[1].received

    def when_done(self) -> Deferred[str]:
        """A Deferred of the caller's own: fires with the reason when both have ended."""
        if all(end.lost for end in self._ends):
            return succeed(self._reason)
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def close(self, reason: str) -> None:
        """End both at once."""
        self._reason = self._reason or reason
        for end in self._ends:
            if not end.lost:
                abort_transport(end.real)

    def one_lost(self, end: _End, reason: Failure) -> None:
        """Told by an end: ADB has no half-open connections, so the other one ends too, with what it still has to send."""
        side = "guest" if end is self._ends[0] else "host"
        self._reason = self._reason or f"the {side} closed: {reason.getErrorMessage()}"
        peer = end.peer
        if not peer.lost:
            peer.real.unregisterProducer()
            peer.real.loseConnection()
            self._timeout = self._clock.callLater(FLUSH_TIMEOUT_S, abort_transport, peer.real)
            return
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(self._reason)
