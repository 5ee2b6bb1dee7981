"""Two RPC channels and the wire between them, in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.network import Credentials
from anbox_tw.rpc import Channel

__all__ = ["RpcLink"]


@implementer(ITransport)
class _End:
    """The transport of one of the two."""

    def __init__(self, link: RpcLink, credentials: Credentials | None, groups: frozenset[int]) -> None:
        self.peer_credentials = credentials
        self.peer_groups = groups
        self.protocol: Any = None
        self.other: _End
        self.closed = False
        self._link = link

    def write(self, data: bytes) -> None:
        if not self.closed:
            self._link._later(lambda: self.other._deliver(data))

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        if not self.closed:
            self._link._later(self._lost)
            self._link._later(self.other._lost)

    abortConnection = loseConnection

    def _deliver(self, data: bytes) -> None:
        if not self.closed:
            self.protocol.dataReceived(data)

    def _lost(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def getPeer(self) -> Any:
        return UNIXAddress("in memory")

    def getHost(self) -> Any:
        return UNIXAddress("in memory")

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """The memory is never full."""

    def unregisterProducer(self) -> None:
        """Nothing was registered."""


class RpcLink:
    """Connects two channels; what one writes is at the other when the write returns.

    Args:
        left: for example a client.
        right: for example a server's channel.
        credentials: who ``left`` is, for ``right``.
        groups: its supplementary groups.
    """

    def __init__(
        self,
        left: Channel,
        right: Channel,
        *,
        credentials: Credentials | None = None,
        groups: frozenset[int] = frozenset(),
    ) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self._running = False
        ends = _End(self, None, frozenset()), _End(self, credentials, groups)
        for end, other, channel in ((ends[0], ends[1], left), (ends[1], ends[0], right)):
            end.other = other
            end.protocol = channel
        self._left = ends[0]
        left.makeConnection(ends[0])
        right.makeConnection(ends[1])

    def cut(self) -> None:
        """End the connection, as when the process of ``left`` dies."""
        self._left.loseConnection()

    def _later(self, step: Callable[[], None]) -> None:
        self._queue.append(step)
        if not self._running:
            self._running = True
            try:
                while self._queue:
                    self._queue.popleft()()
            finally:
                self._running = False
