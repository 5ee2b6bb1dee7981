"""Making connections as slow as a mobile network: speed in each direction, and latency.

A `Shaper` is what all shaped connections share, as they would share a radio link. Give ``shaper.shape`` to `relay`; a
connection that began while nothing was shaped stays as fast as it is, and one that is shaped follows each change.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from anbox_tw.network._relay_producer import ProducerEndpoint

if TYPE_CHECKING:
    from anbox_tw.network.relaying import Relay

__all__ = ["Lane", "ShapedEndpoint", "Shaper"]

# How much goes at once: pieces of a twentieth of a second look like a slow link and not like a stuttering fast one.
PIECE_S: Final = 0.05
MIN_PIECE_BYTES: Final = 64
# Taken from a source and not passed on yet; then it is not read: what fits into the link and a quarter of a second of
# queue. More would make sources believe that a slow link has taken what it has not.
MIN_HELD_BYTES: Final = 16 * 1024
MAX_HELD_BYTES: Final = 1024 * 1024
QUEUE_S: Final = 0.25


class Lane:
    """One direction of a shaped link.

    Attributes:
        rate: bits per second; 0 is no limit.
        min_delay: seconds that a byte takes at least.
        max_delay: seconds that it takes at most.
        passed: bytes that were passed on.
    """

    def __init__(self, clock: IReactorTime, chance: Callable[[float, float], float]) -> None:
        self.rate = 0
        self.min_delay = self.max_delay = 0.0
        self.passed = 0
        self._clock = clock
        self._chance = chance
        self._free_at = 0.0

    @property
    def active(self) -> bool:
        """Whether it holds anything up."""
        return bool(self.rate or self.max_delay)

    def arrival(self) -> float:
        """When what is sent now arrives, if there was no limit of speed: reactor time."""
        delay = self._chance(self.min_delay, self.max_delay) if self.max_delay else 0.0
        return self._clock.seconds() + delay

    def piece(self, available: int) -> int:
        """How many bytes to send at once."""
        if not self.rate:
            return available
        return min(available, max(MIN_PIECE_BYTES, int(self.rate / 8 * PIECE_S)))

    def take(self, count: int) -> float:
        """Reserve the link for so many bytes; the reactor time at which the last of them has gone."""
        if not self.rate:
            return 0.0
        # a reactor that comes late does not make the link slower
        self._free_at = max(self._clock.seconds() - PIECE_S, self._free_at) + count * 8 / self.rate
        return self._free_at

    @property
    def room(self) -> int:
        """How many bytes may be held for one connection."""
        if not self.rate:
            return MAX_HELD_BYTES
        wanted = int(self.rate / 8 * (self.max_delay + QUEUE_S))
        return min(max(wanted, MIN_HELD_BYTES), MAX_HELD_BYTES)

    def reset(self) -> None:
        """What was reserved at another speed counts no more."""
        self._free_at = 0.0


class Shaper:
    """A link of a limited speed and some latency.

    Args:
        clock: the reactor.
        chance: gives a number between two; by default at random.

    Attributes:
        to_guest: what the guest downloads.
        from_guest: what it uploads.
    """

    def __init__(self, clock: IReactorTime, chance: Callable[[float, float], float] = random.uniform) -> None:
        self.to_guest = Lane(clock, chance)
        self.from_guest = Lane(clock, chance)

    def set(
        self, *, upload: int = 0, download: int = 0, min_delay: float = 0.0, max_delay: float = 0.0
    ) -> None:
        """Change it, also for the connections that are shaped now.

        Args:
            upload: bits per second; 0 is no limit.
            download: likewise.
            min_delay: seconds by which a round trip gets longer at least; each way takes half of it.
            max_delay: at most.
        """
        for lane, rate in ((self.to_guest, download), (self.from_guest, upload)):
            lane.rate = rate
            lane.min_delay, lane.max_delay = min_delay / 2, max_delay / 2
            lane.reset()

    @property
    def active(self) -> bool:
        """Whether it holds anything up."""
        return self.to_guest.active or self.from_guest.active

    @property
    def shape(self) -> tuple[Lane, Lane] | None:
        """For `relay`, where ``b`` is the guest; None while nothing is to be shaped."""
        return (self.to_guest, self.from_guest) if self.active else None


class ShapedEndpoint(ProducerEndpoint):
    """Passes on what comes as fast as its lane allows."""

    __slots__ = ("_at_end", "_clock", "_full", "_held", "_lane", "_paused", "_queue", "_timer")

    def __init__(self, relay: Relay, lane: Lane, clock: IReactorTime) -> None:
        super().__init__(relay)
        self._lane = lane
        self._clock = clock
        self._queue: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._timer: IDelayedCall | None = None
        self._at_end = False
        self._full = False
        self._paused = False

    def pass_on(self, data: bytes) -> None:
        """Send now, or hold until it is time."""
        if not self._queue and not self._lane.active:
            self._send(data)
            return
        # A byte does not overtake the one before.
        due = max(self._lane.arrival(), self._queue[-1][0] if self._queue else 0.0)
        self._queue.append((due, data))
        self._held += len(data)
        if self._held >= self._lane.room:
            self._paused = True
            self.transport.pauseProducing()
        self._schedule()

    def readConnectionLost(self) -> None:
        """The source has ended its side, which is told behind what is held."""
        if self._queue:
            self._at_end = True
        else:
            super().readConnectionLost()

    def pauseProducing(self) -> None:
        """See ``IPushProducer``."""
        self._full = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """See ``IPushProducer``."""
        self._full = False
        if not self._paused:
            super().resumeProducing()

    def shut(self) -> None:
        """See `RelayEndpoint`: what was taken is delivered, now."""
        self._flush()
        self.peer._flush()
        super().shut()

    def release(self) -> None:
        """See `RelayEndpoint`: nothing can be delivered here any more."""
        self.peer._drop()

    def _schedule(self) -> None:
        if self._timer is not None or not self._queue:
            return
        due, data = self._queue[0]
        count = self._lane.piece(len(data))
        due = max(due, self._lane.take(count))
        self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._deliver, count)

    def _deliver(self, count: int) -> None:
        self._timer = None
        due, data = self._queue.popleft()
        if count < len(data):
            self._queue.appendleft((due, data[count:]))
        self._held -= count
        self._send(data[:count])
        if self.lost or self.relay.ending:
            return
        if self._paused and self._held <= self._lane.room // 2:
            self._paused = False
            if not self._full and not self._at_end:
                self.transport.resumeProducing()
        if self._queue:
            self._schedule()
        elif self._at_end:
            self._at_end = False
            super().readConnectionLost()

    def _send(self, data: bytes) -> None:
        self._lane.passed += len(data)
        self.peer.transport.write(data)

    def _flush(self) -> None:
        held = b"".join(data for _, data in self._queue)
        self._drop()
        if held and not self.peer.lost:
            self._send(held)

    def _drop(self) -> None:
        self._queue.clear()
        self._held = 0
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def make_ends(relay: Relay, shape: tuple[Lane, Lane], clock: Any) -> tuple[ShapedEndpoint, ShapedEndpoint]:
    """The two ends of a shaped relay."""
    return ShapedEndpoint(relay, shape[0], clock), ShapedEndpoint(relay, shape[1], clock)
