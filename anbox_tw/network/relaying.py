"""Moving bytes between two connections: backpressure and half-close both ways, limits, counters, and why it ended.

Two strategies stand behind one function. Where both ends are plain sockets of one reactor, the relay takes them over
from their transports (`_relay_sockets`): bytes go from socket to socket with no queue between, in bulk through a pipe
with ``splice(2)``. Everything else (TLS, in-memory transports) is joined as producer and consumer (`_relay_producer`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, IReactorFDSet
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import NetworkError
from anbox_tw.network import _relay_producer, _relay_sockets, shaping
from anbox_tw.network._raw_socket import RawSocket
from anbox_tw.network._relay_ends import Direction, RelayEndpoint
from anbox_tw.network.connections import CLOSE_GRACE_S, Connections, ITrackedConnection, next_connection_id
from anbox_tw.network.tracked import abort_transport, hand_over

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from anbox_tw.network.shaping import Lane

__all__ = [
    "Relay",
    "RelayCounters",
    "RelayEnd",
    "RelayProtocol",
    "RelayResult",
    "RelayStrategy",
    "relay",
]

# What may wait in a RelayProtocol: it pauses its transport at once, so this is one read of a transport that was
# reading already, with room.
MAX_LEFTOVER_BYTES: Final = 1024 * 1024
# how many times within the idle time the counters are looked at: an idle stream ends at most a quarter late
_IDLE_CHECKS: Final = 4

# of `relay`, for relays that are made without it
DEFAULTS: Final[dict[str, Any]] = {
    "idle_timeout": None,
    "max_bytes": None,
    "max_duration": None,
    "close_grace": CLOSE_GRACE_S,
    "on_close": None,
    "half_close": True,
}

RelayStrategy = Literal["auto", "sockets", "producer"]


class RelayEnd(Enum):
    """Why a relay ended."""

    FINISHED = "finished"
    """Both sides ended, or one closed cleanly, and all was delivered."""
    RESET = "reset"
    """One side broke the connection; the other was cut off."""
    IDLE = "idle"
    """No byte moved for the idle time."""
    LIMIT = "limit"
    """The limit of bytes or of time was reached."""
    CLOSED = "closed"
    """`Relay.close` or `Relay.abort` was called, or the registry closed all."""


@frozen
class RelayCounters:
    """Bytes taken from each side so far.

    Attributes:
        a_to_b: bytes.
        b_to_a: bytes.
    """

    a_to_b: int
    b_to_a: int

    @property
    def total(self) -> int:
        """Bytes in both directions."""
        return self.a_to_b + self.b_to_a


@frozen
class RelayResult:
    """How a relay ended.

    Attributes:
        end: the kind of end.
        side: who caused it: ``a``, ``b``, or None for neither.
        reason: one line for a log.
        counters: bytes moved.
        duration: seconds.
    """

    end: RelayEnd
    side: Literal["a", "b"] | None
    reason: str
    counters: RelayCounters
    duration: float


@implementer(IHalfCloseableProtocol)
class RelayProtocol(Protocol):
    """Holds a connection still until a relay takes it: reads nothing, keeps what was read already.

    Attributes:
        leftover: bytes that came before the relay; it delivers them first.
        ended: whether the peer has ended its side already.
        lost: why the connection was lost before a relay took it, or None.
    """

    transport: Any = None

    def __init__(self) -> None:
        self.leftover = b""
        self.ended = False
        self.lost: Failure | None = None
        self._on_lost: Callable[[], None] | None = None

    def connectionMade(self) -> None:
        self.transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        self.leftover += data
        if len(self.leftover) > MAX_LEFTOVER_BYTES:
            abort_transport(self.transport)

    def readConnectionLost(self) -> None:
        """The peer has ended its side; the relay passes that on."""
        self.ended = True

    def writeConnectionLost(self) -> None:
        """Our side was ended."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        if self._on_lost is not None:
            self._on_lost()


@implementer(ITrackedConnection)
class Relay:
    """One running relay; `relay` makes it.

    Attributes:
        id: unique in this process, among connections too.
        name: for lists and logs.
        strategy: ``sockets`` or ``producer``: what was chosen.
        at_once: set by an end while both may be closed within the call.
        limited: whether there is a limit of bytes, so that `allowance` must be asked before each read.
    """

    # a relay is kept small: there may be thousands
    __slots__ = (
        "__weakref__",
        "_clock",
        "_duration_timer",
        "_ended_after",
        "_ends",
        "_grace",
        "_half_close",
        "_idle_timeout",
        "_max_bytes",
        "_max_duration",
        "_on_close",
        "_registries",
        "_result",
        "_seen",
        "_since",
        "_still",
        "_timer",
        "_verdict",
        "_waiters",
        "at_once",
        "id",
        "limited",
        "name",
        "strategy",
    )

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        name: str,
        idle_timeout: float | None,
        max_bytes: int | None,
        max_duration: float | None,
        close_grace: float,
        on_close: Callable[[RelayResult], None] | None,
        registries: tuple[Connections, ...],
        half_close: bool,
    ) -> None:
        """Not for callers: use `relay`."""
        self.id = next_connection_id()
        self.name = name
        self.strategy = "producer"
        self._result: RelayResult | None = None
        self._ended_after = -1.0
        self._clock = clock
        self._idle_timeout = idle_timeout
        self._max_bytes = max_bytes
        self.limited = max_bytes is not None
        self._max_duration = max_duration
        self._grace = close_grace
        self._on_close = on_close
        self._registries = registries
        self.at_once = False
        self._half_close = half_close
        self._ends: tuple[RelayEndpoint, RelayEndpoint]
        self._waiters: list[Deferred[RelayResult]] | None = None
        self._timer: IDelayedCall | None = None
        self._duration_timer: IDelayedCall | None = None
        self._still = 0
        self._seen = 0
        self._since = clock.seconds()
        self._verdict: tuple[RelayEnd, Literal["a", "b"] | None, str | Failure] | None = None

    # -- for callers

    @property
    def result(self) -> RelayResult | None:
        """How it ended, or None while it runs."""
        if self._result is None and self._ended_after >= 0 and self._verdict is not None:
            # made when somebody asks: most are not asked
            end, side, reason = self._verdict
            text = reason if isinstance(reason, str) else f"{side}: {reason.getErrorMessage()}"
            self._result = RelayResult(end, side, text, self.counters, self._ended_after)
        return self._result

    @property
    def counters(self) -> RelayCounters:
        """Bytes taken from each side so far."""
        a, b = self._ends
        return RelayCounters(a.direction.count, b.direction.count)

    def when_done(self) -> Deferred[RelayResult]:
        """A Deferred of the caller's own that fires with the result when both connections are gone; never fails."""
        result = self.result
        if result is not None:
            return succeed(result)
        # one waiter that is cancelled does not end the relay
        if self._waiters is None:
            self._waiters = []
        waiter: Deferred[RelayResult] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def close(self, reason: str) -> None:
        """Read no more, deliver what was read, then close both; cut off what is not read within the grace."""
        self.finish(RelayEnd.CLOSED, None, reason)

    def abort(self, reason: str) -> None:
        """Cut both off at once."""
        self.finish(RelayEnd.CLOSED, None, reason, abort=True)
        for end in self._ends:
            end.abort()

    def describe(self) -> dict[str, Any]:
        """Id, name, strategy, both peers, bytes each way and age in seconds."""
        counters = self.counters
        return {
            "id": self.id,
            "name": self.name,
            "strategy": self.strategy,
            "a": self._ends[0].address(),
            "b": self._ends[1].address(),
            "a_to_b": counters.a_to_b,
            "b_to_a": counters.b_to_a,
            "age": round(self._clock.seconds() - self._since, 3),
        }

    # -- for the ends

    def start(self, a: RelayEndpoint, b: RelayEndpoint) -> None:
        """Take both ends and begin."""
        self._ends = (a, b)
        if self._idle_timeout is not None:
            self._timer = self._clock.callLater(self._idle_timeout / _IDLE_CHECKS, self._check_idle)
        if self._max_duration is not None:
            self._duration_timer = self._clock.callLater(self._max_duration, self._too_long)

    def allowance(self) -> int:
        """How many more bytes may be taken under the limit of bytes."""
        assert self._max_bytes is not None
        return self._max_bytes - self.counters.total

    def limit_reached(self) -> None:
        """As many bytes as are allowed were taken."""
        self.finish(RelayEnd.LIMIT, None, f"the limit of {self._max_bytes} bytes is reached")

    @property
    def ending(self) -> bool:
        """Whether the end has begun: nothing more is taken from either side."""
        return self._verdict is not None

    def input_ended(self, end: RelayEndpoint) -> None:
        """One end has ended its side, and the other cannot be told so without closing it."""
        side: Literal["a", "b"] = "a" if end is self._ends[0] else "b"
        self.finish(RelayEnd.FINISHED, side, f"{side} ended, and the other side cannot be half-closed")

    def direction_ended(self, direction: Direction) -> None:
        """A direction has delivered its last byte and the end, or can deliver no more (``broken``)."""
        a, b = self._ends
        if self._half_close and not (a.direction.ended and b.direction.ended):
            return
        for side, end in (("b", a), ("a", b)):
            if end.direction.broken:
                # what it sent before was delivered; its refusal is to be seen at the other side
                self.finish(RelayEnd.RESET, side, f"{side} takes no more", abort=True)  # type: ignore[arg-type]  # the literals above
                return
        if a.direction.ended and b.direction.ended:
            self.finish(RelayEnd.FINISHED, None, "both sides ended")
        else:
            self.finish(RelayEnd.FINISHED, "a" if a.direction.ended else "b", "its input ended")

    def end_lost(self, end: RelayEndpoint, reason: Failure) -> None:
        """The connection of one end is gone."""
        side: Literal["a", "b"] = "a" if end is self._ends[0] else "b"
        if self._verdict is None:
            # not Failure.check: that compares names, and costs as much as a small send
            if isinstance(reason.value, ConnectionDone):
                self.finish(RelayEnd.FINISHED, side, f"{side} closed")
            else:
                # the reactor is done with the socket that was lost: the other may be closed now
                self.at_once = True
                self.finish(RelayEnd.RESET, side, reason, abort=True)
                self.at_once = False
        if self._ends[0].lost and self._ends[1].lost:
            self._done()

    def finish(
        self, end: RelayEnd, side: Literal["a", "b"] | None, reason: str | Failure, *, abort: bool = False
    ) -> None:
        """Begin the end; the first call decides its cause."""
        if self._verdict is not None:
            return
        self._verdict = (end, side, reason)
        if self._timer is not None or self._duration_timer is not None:
            self._cancel_timers()
        # closing one end may close the other within the call: both are asked all the same
        for each in self._ends:
            if abort:
                each.abort()
            else:
                each.shut()
        if self._ended_after < 0 and not abort:
            self._timer = self._clock.callLater(self._grace, self._grace_over)

    # -- inside

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._duration_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer = self._duration_timer = None

    def _check_idle(self) -> None:
        assert self._idle_timeout is not None
        total = self.counters.total
        self._still = self._still + 1 if total == self._seen else 0
        self._seen = total
        if self._still >= _IDLE_CHECKS:
            self._timer = None
            self.finish(RelayEnd.IDLE, None, f"no byte moved for {self._idle_timeout:g} s")
        else:
            self._timer = self._clock.callLater(self._idle_timeout / _IDLE_CHECKS, self._check_idle)

    def _too_long(self) -> None:
        self._duration_timer = None
        self.finish(RelayEnd.LIMIT, None, f"the limit of {self._max_duration:g} s is reached")

    def _grace_over(self) -> None:
        self._timer = None
        self._log.info("{name} #{id}: cut off a peer that does not read the rest", name=self.name, id=self.id)
        for end in self._ends:
            end.abort()

    def _done(self) -> None:
        if self._ended_after >= 0:
            return
        if self._timer is not None or self._duration_timer is not None:
            self._cancel_timers()
        self._ended_after = self._clock.seconds() - self._since
        for registry in self._registries:
            registry.remove(self)
        if self._on_close is None and self._waiters is None:
            return
        result = self.result
        assert result is not None
        waiters, self._waiters = self._waiters or (), None
        try:
            if self._on_close is not None:
                self._on_close(result)
        except Exception:
            self._log.failure("{name}: on_close failed", name=self.name)
        for waiter in waiters:
            waiter.callback(result)


def relay(
    a: Any,
    b: Any,
    *,
    clock: Any,
    idle_timeout: float | None = None,
    max_bytes: int | None = None,
    max_duration: float | None = None,
    on_close: Callable[[RelayResult], None] | None = None,
    leftover_a: bytes = b"",
    leftover_b: bytes = b"",
    name: str = "relay",
    registry: Connections | tuple[Connections, ...] | None = None,
    close_grace: float = CLOSE_GRACE_S,
    half_close: bool = True,
    strategy: RelayStrategy = "auto",
    shape: tuple[Lane, Lane] | None = None,
) -> Relay:
    """Move bytes between two connections until they end.

    The end of one side's input is passed to the other, whose own input goes on. A reset on one side cuts the other
    off. Memory is bounded: a side that does not read stops the other from being read.

    Args:
        a: a connected ``socket.socket``, which belongs to the relay from then on; or a connected transport; or a
            connected protocol whose ``transport`` is taken, a `RelayProtocol` has waited for this. The protocol that
            had the transport hears nothing more; a listener that tracks it goes on.
        b: likewise.
        clock: the reactor.
        idle_timeout: end the relay when no byte moved for so many seconds (at most a quarter later).
        max_bytes: end it when so many bytes were moved, both directions together.
        max_duration: end it after so many seconds.
        on_close: called with the result when both connections are gone.
        leftover_a: bytes that were read from ``a`` already and belong to ``b``.
        leftover_b: bytes that were read from ``b`` already and belong to ``a``.
        name: for lists and logs.
        registry: where the relay is listed while it runs; one registry or several.
        close_grace: seconds a peer may take to read the rest at the end.
        half_close: whether one side may go on when the other has ended its own; without it the end of either
            side ends the relay, once what it sent is delivered.
        strategy: ``auto`` chooses; the others force one, for tests and measurements.
        shape: makes it slow: the lanes from ``a`` to ``b`` and back; see `anbox_tw.network.shaping`.

    Raises:
        NetworkError: one of them is not connected, the registry is full, or ``strategy="sockets"`` is impossible.
            Both are then as before, and the caller's.
    """
    registries = registry if isinstance(registry, tuple) else () if registry is None else (registry,)
    transports: list[Any] = []
    leftovers = [leftover_a, leftover_b]
    ended = [False, False]
    for index, side in enumerate((a, b)):
        if isinstance(side, RelayProtocol):
            if side.lost is not None:
                raise NetworkError(f"{'ab'[index]} is already lost: {side.lost.getErrorMessage()}")
            leftovers[index] = side.leftover + leftovers[index]
            ended[index] = side.ended
        transport: Any
        if isinstance(side, socket.socket):
            transport = RawSocket(side, _reactor_of(clock, b if side is a else a))
        else:
            transport = getattr(side, "transport", None) if IProtocol.providedBy(side) else side
        if transport is None or getattr(transport, "disconnected", False):
            raise NetworkError(f"{'ab'[index]} is not connected")
        transports.append(transport)
    possible = shape is None and _relay_sockets.possible(*transports)
    if not possible or strategy == "producer":
        if strategy != "sockets":
            transports = [
                each.adopt(RelayProtocol()) if isinstance(each, RawSocket) else each for each in transports
            ]
        possible = False
    if strategy == "sockets" and not possible:
        raise NetworkError(
            "these transports are not plain sockets of one reactor that the relay could take over"
        )
    new = Relay(
        clock,
        name=name,
        idle_timeout=idle_timeout,
        max_bytes=max_bytes,
        max_duration=max_duration,
        close_grace=close_grace,
        on_close=on_close,
        registries=registries,
        half_close=half_close,
    )
    kind: type[RelayEndpoint]
    if possible:
        new.strategy = "sockets"
        kind = _relay_sockets.SocketEndpoint
    else:
        kind = _relay_producer.ProducerEndpoint
    enlist(new, registries)
    ends = (kind(new), kind(new)) if shape is None else shaping.make_ends(new, shape, clock)
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    new.start(*ends)
    for end, transport in zip(ends, transports, strict=True):
        hand_over(transport, end)
    for end, leftover, at_end in zip(ends, leftovers, ended, strict=True):
        end.begin(leftover, at_end)
    return new


def enlist(new: Relay, registries: tuple[Connections, ...]) -> None:
    for number, each in enumerate(registries):
        try:
            each.add(new)
        except NetworkError:
            for added in registries[:number]:
                added.remove(new)
            raise


def _reactor_of(clock: Any, other: Any) -> Any:
    # a test's clock is no reactor: the other side has one then
    for holder in (
        clock,
        getattr(other, "reactor", None),
        getattr(getattr(other, "transport", None), "reactor", None),
    ):
        if IReactorFDSet.providedBy(holder):
            return holder
    raise NetworkError("a socket can only be relayed by a reactor: give it as the clock")
