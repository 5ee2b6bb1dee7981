"""Connections as slow as a mobile network: the lanes by a clock of the test's, the relay for real."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.network import Relay, Shaper
from anbox_tw.network.shaping import MAX_HELD_BYTES, MIN_HELD_BYTES, ShapedEndpoint
from tests.network.helpers import WAIT_S
from tests.network.test_relay import Behaviour, Pair, RelayTestCase


class ShaperTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.shaper = Shaper(self.clock, lambda low, high: high)

    def test_nothing_is_shaped_at_first(self) -> None:
        self.assertFalse(self.shaper.active)
        self.assertIsNone(self.shaper.shape)
        self.assertEqual((self.shaper.to_guest.take(10**9), self.shaper.to_guest.piece(10**6)), (0.0, 10**6))

    def test_a_link_is_shared(self) -> None:
        self.shaper.set(download=8000, upload=80_000)
        lane = self.shaper.to_guest
        # 1000 bytes a second, in pieces of a twentieth
        self.assertEqual((lane.piece(10_000), lane.piece(10)), (64, 10))
        self.assertEqual(self.shaper.from_guest.piece(10_000), 500)
        self.assertEqual([lane.take(500), lane.take(500)], [0.5, 1.0])
        self.clock.advance(3)
        self.assertAlmostEqual(lane.take(500), 3.45)

    def test_latency_is_that_of_a_round_trip(self) -> None:
        self.shaper.set(min_delay=0.1, max_delay=0.4)
        both = self.shaper.to_guest, self.shaper.from_guest
        self.assertEqual(sum(lane.arrival() for lane in both), 0.4)
        self.shaper.set()
        self.assertFalse(self.shaper.active)
        self.assertEqual(both[0].arrival(), 0.0)

    def test_room(self) -> None:
        for rate, delay, expected in (
            (0, 1.0, MAX_HELD_BYTES),
            (8000, 0.0, MIN_HELD_BYTES),
            (8_000_000, 0.5, 500_000),
        ):
            self.shaper.set(download=rate, max_delay=delay)
            self.assertEqual(self.shaper.to_guest.room, expected)


class FakeTransport:
    def __init__(self) -> None:
        self.written = b""
        self.ended = False
        self.paused = False
        self.lost = False

    def write(self, data: bytes) -> None:
        self.written += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        pass

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def loseConnection(self) -> None:
        self.lost = True


class EndpointTests(SynchronousTestCase):
    """One direction of a relay, second by second."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.shaper = Shaper(self.clock, lambda low, high: high)
        self.shaper.set(download=8000)
        relay = Relay(
            self.clock,
            name="test",
            idle_timeout=None,
            max_bytes=None,
            max_duration=None,
            close_grace=1,
            on_close=None,
            registries=(),
            half_close=True,
        )
        lanes = self.shaper.to_guest, self.shaper.from_guest
        self.ends = [ShapedEndpoint(relay, lane, self.clock) for lane in lanes]
        self.ends[0].peer, self.ends[1].peer = self.ends[1], self.ends[0]
        relay.start(self.ends[0], self.ends[1])
        self.transports = [FakeTransport(), FakeTransport()]
        for end, transport in zip(self.ends, self.transports, strict=True):
            end.makeConnection(transport)
        for end in self.ends:
            end.begin(b"", False)

    def tick(self, seconds: float) -> int:
        """Let time go by; how much has come."""
        for _ in range(round(seconds * 100)):
            self.clock.advance(0.01)
        return len(self.transports[1].written)

    def test_speed(self) -> None:
        self.ends[0].dataReceived(b"x" * 5000)
        self.assertEqual(len(self.transports[1].written), 0)
        for second in range(1, 5):
            self.assertLess(abs(self.tick(1) - second * 1000), 70)
        self.assertEqual(self.tick(2), 5000)
        self.assertEqual(self.shaper.to_guest.passed, 5000)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_latency_keeps_the_order(self) -> None:
        delays = iter([0.4, 0.0])
        self.shaper.to_guest._chance = lambda low, high: next(delays)
        self.shaper.set(max_delay=1)
        self.ends[0].dataReceived(b"first ")
        self.ends[0].dataReceived(b"second")
        self.assertEqual(self.tick(0.3), 0)
        self.tick(0.2)
        self.assertEqual(self.transports[1].written, b"first second")

    def test_the_source_waits_while_too_much_is_held(self) -> None:
        self.ends[0].dataReceived(b"x" * MIN_HELD_BYTES)
        self.assertTrue(self.transports[0].paused)
        # a target that is full and has room again does not change that
        self.ends[0].pauseProducing()
        self.ends[0].resumeProducing()
        self.assertTrue(self.transports[0].paused)
        self.tick(MIN_HELD_BYTES / 2000 + 0.2)
        self.assertFalse(self.transports[0].paused)

    def test_it_gets_faster_at_once(self) -> None:
        self.ends[0].dataReceived(b"x" * MIN_HELD_BYTES)
        self.tick(0.1)
        self.shaper.set()
        self.assertEqual(self.tick(0.2), MIN_HELD_BYTES)
        self.assertFalse(self.transports[0].paused)
        self.ends[0].dataReceived(b"now")
        self.assertTrue(self.transports[1].written.endswith(b"now"))

    def test_an_end_that_is_shut_delivers_what_it_took(self) -> None:
        self.ends[0].dataReceived(b"x" * 5000)
        self.ends[0].relay.close("enough")
        self.assertEqual(len(self.transports[1].written), 5000)
        self.assertTrue(self.transports[1].lost)

    def test_nothing_is_written_to_what_is_gone(self) -> None:
        self.ends[0].dataReceived(b"x" * 5000)
        self.ends[1].lost = True
        self.ends[1].release()
        self.assertEqual(self.tick(1), 0)


class ShapedTests(Behaviour, RelayTestCase):
    """All that a relay does, on a link with a little latency."""

    def make(self, **options: Any) -> Pair:
        shaper = Shaper(options.get("clock", self.reactor))
        shaper.set(upload=10**10, download=10**10, min_delay=0.001, max_delay=0.002)
        return super().make(shape=shaper.shape, **options)

    async def test_a_slow_link_is_slow(self) -> None:
        shaper = Shaper(self.reactor)
        # 100 kB/s
        shaper.set(download=800_000)
        pair = super().make(shape=shaper.shape)
        start = self.reactor.seconds()
        pair.a.sendall(b"x" * 30_000)
        pair.a.shutdown(socket.SHUT_WR)

        def read() -> int:
            pair.b.settimeout(WAIT_S)
            got = 0
            while data := pair.b.recv(65536):
                got += len(data)
            return got

        self.assertEqual(await deferToThread(read), 30_000)
        # less a twentieth of a second that it may catch up; a loaded machine may take longer
        self.assertGreater(self.reactor.seconds() - start, 0.2)
