"""The registry of live connections: it counts, limits, lists and closes them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from zope.interface import Attribute, Interface

from anbox_tw.errors import NetworkError

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["CLOSE_GRACE_S", "DEFAULT_CONNECTION_LIMIT", "Connections", "ITrackedConnection"]

# A device farm's session has some hundred streams; the default limit of open files of a process is 1024, and the
# listener that reaches that first can accept nothing any more. Relays and servers that need more say so.
DEFAULT_CONNECTION_LIMIT: Final = 512
# how long a peer may take to read what was already written to it when we close
CLOSE_GRACE_S: Final = 5.0
# after an abort the transport tells the loss in the next turn of the reactor; more than this is a defect
_ABORT_WAIT_S: Final = 2.0

_ids = count(1)


def next_connection_id() -> int:
    """A number that no other connection of this process has."""
    return next(_ids)


class ITrackedConnection(Interface):
    """What a `Connections` registry can hold."""

    id = Attribute("``int``: unique in this process.")
    name = Attribute("``str``: what the connection is for, for lists and logs.")

    def describe() -> dict[str, Any]:
        """What is known about it; JSON-able, with at least ``id`` and ``name``."""

    def close(reason: str) -> None:
        """Flush, then close."""

    def abort(reason: str) -> None:
        """Close at once; what is queued is lost."""


class Connections:
    """The live connections of one or more listeners, connectors or relays.

    Attributes:
        limit: how many may be open at once; can be changed at any time.
        name: for messages.
        refused: how many did not get in because of the limit.
    """

    _log = Logger()

    def __init__(
        self,
        limit: int = DEFAULT_CONNECTION_LIMIT,
        *,
        name: str = "connections",
        clock: IReactorTime | None = None,
    ) -> None:
        """Make an empty registry.

        Args:
            limit: how many may be open at once.
            name: for messages.
            clock: for the grace of `close_all`; the global reactor when it is None.
        """
        self.limit = limit
        self.name = name
        self.refused = 0
        self._clock = clock
        self._members: dict[int, Any] = {}
        self._closing: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, connection: Any) -> bool:
        return self._members.get(connection.id) is connection

    @property
    def full(self) -> bool:
        """Whether the next `add` would be refused."""
        return len(self._members) >= self.limit or bool(self._closing)

    def get(self, connection_id: int) -> Any | None:
        """The connection with that id, or None."""
        return self._members.get(connection_id)

    def add(self, connection: Any) -> None:
        """Take a connection in.

        Raises:
            NetworkError: there is no room, or the registry is just closing all.
        """
        if self._closing:
            self.refused += 1
            raise NetworkError(f"{self.name} is closing")
        if len(self._members) >= self.limit:
            self.refused += 1
            raise NetworkError(
                f"{self.name} has {len(self._members)} connections, and its limit is {self.limit}",
                "close some, or raise the limit",
            )
        self._members[connection.id] = connection

    def remove(self, connection: Any) -> None:
        """Let a connection go; one that is not in is ignored."""
        if self._members.pop(connection.id, None) is not None and not self._members:
            self._finish_closing()

    def describe(self) -> list[dict[str, Any]]:
        """Every connection's own description, oldest first."""
        return [connection.describe() for connection in self]

    def close_all(self, reason: str = "shutting down", *, grace: float = CLOSE_GRACE_S) -> Deferred[None]:
        """Close every connection, and abort those that are not gone after ``grace`` seconds.

        Returns:
            A Deferred of the caller's own that fires when all are really closed. It always fires: a connection that
            does not even end by an abort is logged as a defect and dropped.
        """
        if not self._members:
            return succeed(None)
        done: Deferred[None] = Deferred()
        first = not self._closing
        self._closing.append(done)
        if first:
            self._timer = self._get_clock().callLater(grace, self._abort_all, reason)
            for connection in self:
                connection.close(reason)
        return done

    def _abort_all(self, reason: str) -> None:
        self._timer = self._get_clock().callLater(_ABORT_WAIT_S, self._drop_all)
        for connection in self:
            self._log.info(
                "aborting {name} #{id}: it did not close in time", name=connection.name, id=connection.id
            )
            connection.abort(reason)

    def _drop_all(self) -> None:
        self._timer = None
        for connection in self:
            self._log.error("{name} #{id} did not end by an abort", name=connection.name, id=connection.id)
        self._members.clear()
        self._finish_closing()

    def _finish_closing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._closing = self._closing, []
        for done in waiting:
            done.callback(None)

    def _get_clock(self) -> IReactorTime:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = reactor
        return self._clock
