"""The relay: the same behaviour from both strategies over real sockets, and the core on a fake clock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import hashlib
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport, StringTransportWithDisconnection
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.errors import NetworkError
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.network import (
    Connections,
    DelegateCreator,
    ForwardCreator,
    ITrackedConnection,
    PortAllocator,
    Relay,
    RelayEnd,
    RelayProtocol,
    RelayResult,
    RetryPolicy,
    TcpConnector,
    TcpListener,
    UnixConnector,
    UnixListener,
    _relay_sockets,
    free_port,
    relay,
)
from tests.network.helpers import NetworkTestCase, Recorder, wait_until


class Pair:
    """A relay between a TCP connection (a) and a UNIX one (b), with our hands on the far ends as blocking sockets."""

    relay: Relay
    a: socket.socket
    b: socket.socket


class RelayTestCase(NetworkTestCase):
    strategy: Any = "producer"
    kinds = ("tcp", "unix")
    raw = False

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(_relay_sockets.pipes.clear)

    def socketpair(self, kind: str) -> tuple[socket.socket, socket.socket]:
        if kind == "unix":
            return socket.socketpair()
        with socket.create_server(("127.0.0.1", 0)) as server:
            far = socket.create_connection(server.getsockname())
            near, _ = server.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return near, far

    def adopt(self, near: socket.socket) -> RelayProtocol:
        made = []

        class Adopt(Factory):
            noisy = False

            def buildProtocol(self, addr: object) -> RelayProtocol:
                made.append(RelayProtocol())
                return made[-1]

        near.setblocking(False)
        self.reactor.adoptStreamConnection(near.fileno(), near.family, Adopt())
        near.close()
        return made[0]

    def make(self, **options: Any) -> Pair:
        pair = Pair()
        (near_a, pair.a), (near_b, pair.b) = (self.socketpair(kind) for kind in self.kinds)
        for far in (pair.a, pair.b):
            far.settimeout(10)
            self.addCleanup(far.close)
        options.setdefault("clock", self.reactor)
        if self.raw:
            # a socket needs the reactor; where the clock is a fake one, the other side's transport knows it
            fake = options["clock"] is not self.reactor
            a: Any = near_a
            b: Any = self.adopt(near_b) if fake else near_b
        else:
            a, b = self.adopt(near_a), self.adopt(near_b)
        pair.relay = relay(a, b, strategy=self.strategy, **options)
        self.assertEqual(pair.relay.strategy, self.strategy)
        self.addCleanup(self.finish, pair.relay)
        return pair

    def finish(self, running: Relay) -> Deferred[RelayResult]:
        running.abort("test is over")
        return running.when_done()


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            break
        data += part
    return bytes(data)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Behaviour:
    """What holds for each strategy and each pair of kinds."""

    async def test_small_messages_both_ways(self: Any) -> None:
        pair = self.make()
        for text in (b"a", b"hello", b"x" * 5000):
            pair.a.sendall(text)
            self.assertEqual(await deferToThread(read_exactly, pair.b, len(text)), text)
            pair.b.sendall(text[::-1])
            self.assertEqual(await deferToThread(read_exactly, pair.a, len(text)), text[::-1])
        self.assertEqual(pair.relay.counters.a_to_b, 5006)
        self.assertEqual(pair.relay.counters.total, 10012)
        described = pair.relay.describe()
        self.assertEqual(
            (described["a_to_b"], described["b_to_a"], described["strategy"]), (5006, 5006, self.strategy)
        )
        self.assertTrue(verifyObject(ITrackedConnection, pair.relay))

    async def test_bulk_both_ways_at_once(self: Any) -> None:
        pair = self.make()
        sizes = {"a": 24_000_001, "b": 17_000_003}
        payload = {side: os.urandom(1 << 20) for side in sizes}

        def send(sock: socket.socket, side: str) -> str:
            digest = hashlib.sha256()
            left = sizes[side]
            while left:
                part = payload[side][: min(left, 1 << 20)]
                sock.sendall(part)
                digest.update(part)
                left -= len(part)
            sock.shutdown(socket.SHUT_WR)
            return digest.hexdigest()

        def receive(sock: socket.socket) -> str:
            digest = hashlib.sha256()
            while data := sock.recv(1 << 18):
                digest.update(data)
            return digest.hexdigest()

        sent_a, sent_b, got_b, got_a = await gatherResults(
            [
                deferToThread(send, pair.a, "a"),
                deferToThread(send, pair.b, "b"),
                deferToThread(receive, pair.b),
                deferToThread(receive, pair.a),
            ]
        )
        self.assertEqual((sent_a, sent_b), (got_b, got_a))
        result = await pair.relay.when_done()
        self.assertEqual(result.end, RelayEnd.FINISHED)
        self.assertEqual((result.counters.a_to_b, result.counters.b_to_a), (24_000_001, 17_000_003))

    async def test_half_close_each_way(self: Any) -> None:
        for first, second in (("a", "b"), ("b", "a")):
            pair = self.make()
            ender, other = getattr(pair, first), getattr(pair, second)
            ender.sendall(b"request")
            ender.shutdown(socket.SHUT_WR)
            self.assertEqual(await deferToThread(read_all, other), b"request")
            self.assertIsNone(pair.relay.result)
            sending = deferToThread(other.sendall, b"answer" * 50_000)
            self.assertEqual(await deferToThread(read_exactly, ender, 300_000), b"answer" * 50_000)
            await sending
            other.close()
            result = await pair.relay.when_done()
            self.assertEqual((result.end, result.side), (RelayEnd.FINISHED, None))

    async def test_without_half_close_the_end_of_one_side_is_the_end_of_both(self: Any) -> None:
        for first, second in (("a", "b"), ("b", "a")):
            pair = self.make(half_close=False)
            ender, other = getattr(pair, first), getattr(pair, second)
            ender.sendall(b"last words" * 5_000)
            ender.shutdown(socket.SHUT_WR)
            self.assertEqual(await deferToThread(read_all, other), b"last words" * 5_000)
            # The other one does not close, and need not.
            result = await pair.relay.when_done()
            self.assertEqual((result.end, result.side), (RelayEnd.FINISHED, first))
            self.assertEqual(await deferToThread(read_all, ender), b"")

    async def test_close_travels_at_once(self: Any) -> None:
        pair = self.make()
        pair.a.sendall(b"last")
        pair.a.close()
        self.assertEqual(await deferToThread(read_all, pair.b), b"last")
        pair.b.close()
        result = await pair.relay.when_done()
        self.assertEqual(result.end, RelayEnd.FINISHED)
        self.assertGreaterEqual(result.duration, 0)

    async def test_reset_travels(self: Any) -> None:
        for first, second in (("a", "b"), ("b", "a")):
            pair = self.make()
            pair.a.sendall(b"x")
            pair.b.sendall(b"x")
            if self.kinds[("a", "b").index(first)] == "tcp":
                reset(getattr(pair, first))
            else:
                # a UNIX socket resets by closing with unread data
                await wait_until(lambda: pair.relay.counters.total == 2)
                await deferLater(self.reactor, 0.01)
                getattr(pair, first).close()
            result = await pair.relay.when_done()
            other = getattr(pair, second)
            if self.kinds[("a", "b").index(first)] == "tcp":
                self.assertEqual((result.end, result.side), (RelayEnd.RESET, first))
            try:
                await deferToThread(read_all, other)
            except ConnectionResetError:
                pass
            else:
                # a UNIX socket cannot tell a reset from an end
                self.assertEqual(self.kinds[("a", "b").index(second)], "unix")

    async def test_target_that_takes_no_more(self: Any) -> None:
        """It closes while we send: the sender is told, and gets what the target had sent before."""
        for first, second in (("a", "b"), ("b", "a")):
            pair = self.make()
            sender, closer = getattr(pair, first), getattr(pair, second)
            closer.sendall(b"refused, too large")
            closer.close()

            def send(sock: socket.socket) -> None:
                with self.assertRaises((BrokenPipeError, ConnectionResetError)):
                    for _ in range(2000):
                        sock.sendall(b"x" * 65536)

            self.assertEqual(await deferToThread(read_exactly, sender, 18), b"refused, too large")
            await deferToThread(send, sender)
            result = await pair.relay.when_done()
            self.assertEqual((result.end, result.side), (RelayEnd.RESET, second))

    async def test_slow_reader_stops_the_writer(self: Any) -> None:
        for first, second in (("a", "b"), ("b", "a")):
            pair = self.make()
            writer, reader = getattr(pair, first), getattr(pair, second)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            writer.setblocking(False)
            sent = stuck = 0
            while stuck < 30:
                try:
                    sent += writer.send(b"y" * 65536)
                    stuck = 0
                except BlockingIOError:
                    stuck += 1
                    await deferLater(self.reactor, 0.01)
                self.assertLess(sent, 40_000_000, "nothing stops the writer")
            taken = pair.relay.counters.total
            await deferLater(self.reactor, 0.02)
            self.assertEqual(pair.relay.counters.total, taken, "it is still read from")
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            self.assertLess(grown, 8 * 1024, "KiB held for one slow reader")
            writer.shutdown(socket.SHUT_WR)
            self.assertEqual(len(await deferToThread(read_all, reader)), sent)

    async def test_idle(self: Any) -> None:
        clock = Clock()
        pair = self.make(clock=clock, idle_timeout=8)
        clock.pump([2, 2, 2])
        pair.a.sendall(b"x")
        await wait_until(lambda: pair.relay.counters.total == 1)
        clock.pump([2, 2, 2, 2])
        self.assertFalse(pair.relay.ending)
        clock.advance(2)
        result = await pair.relay.when_done()
        self.assertEqual((result.end, result.side), (RelayEnd.IDLE, None))
        self.assertEqual(clock.getDelayedCalls(), [])

    async def test_limit_of_bytes_is_exact(self: Any) -> None:
        pair = self.make(max_bytes=100_000)
        pair.a.sendall(b"x" * 99_000)
        self.assertEqual(len(await deferToThread(read_exactly, pair.b, 99_000)), 99_000)
        pair.b.sendall(b"y" * 5000)
        self.assertEqual(await deferToThread(read_exactly, pair.a, 1000), b"y" * 1000)
        result = await pair.relay.when_done()
        self.assertEqual((result.end, result.counters.total), (RelayEnd.LIMIT, 100_000))

    async def test_limit_counts_what_was_left_over(self: Any) -> None:
        pair = self.make(max_bytes=4, leftover_a=b"abcdef")
        self.assertEqual(await deferToThread(read_all, pair.b), b"abcd")
        self.assertEqual((await pair.relay.when_done()).end, RelayEnd.LIMIT)

    async def test_limit_of_time(self: Any) -> None:
        clock = Clock()
        pair = self.make(clock=clock, max_duration=60)
        clock.advance(60)
        self.assertEqual((await pair.relay.when_done()).end, RelayEnd.LIMIT)
        self.assertEqual(clock.getDelayedCalls(), [])

    async def test_close_delivers_what_was_taken(self: Any) -> None:
        pair = self.make(leftover_a=b"first ", leftover_b=b"other way")
        pair.relay.close("enough")
        pair.relay.close("again")
        self.assertEqual(await deferToThread(read_all, pair.b), b"first ")
        self.assertEqual(await deferToThread(read_all, pair.a), b"other way")
        result = await pair.relay.when_done()
        self.assertEqual((result.end, result.reason), (RelayEnd.CLOSED, "enough"))

    async def test_close_cuts_off_who_does_not_read(self: Any) -> None:
        pair = self.make(close_grace=0.05)
        pair.a.setblocking(False)
        stuck = 0
        while stuck < 3:
            try:
                pair.a.send(b"z" * 65536)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                await deferLater(self.reactor, 0.005)
        pair.relay.close("enough")
        result = await pair.relay.when_done()
        self.assertEqual(result.end, RelayEnd.CLOSED)
        self.assertLess(result.duration, 5)

    async def test_what_was_written_before_goes_first(self: Any) -> None:
        (near_a, far_a), (near_b, far_b) = (self.socketpair(kind) for kind in self.kinds)
        self.addCleanup(far_a.close)
        self.addCleanup(far_b.close)
        a, b = self.adopt(near_a), self.adopt(near_b)
        a.transport.write(b"ok")
        b.transport.write(b"hello ")
        b.transport.write(b"there ")
        far_a.sendall(b"and data")
        running = relay(a, b, clock=self.reactor, leftover_a=b"left ", strategy=self.strategy)
        self.addCleanup(self.finish, running)
        expected = b"hello there left and data"
        self.assertEqual(await deferToThread(read_exactly, far_b, len(expected)), expected)
        self.assertEqual(await deferToThread(read_exactly, far_a, 2), b"ok")

    async def test_end_that_came_before(self: Any) -> None:
        (near_a, far_a), (near_b, far_b) = (self.socketpair(kind) for kind in self.kinds)
        self.addCleanup(far_a.close)
        self.addCleanup(far_b.close)
        a, b = self.adopt(near_a), self.adopt(near_b)
        far_a.sendall(b"bye")
        far_a.shutdown(socket.SHUT_WR)
        a.transport.resumeProducing()
        await wait_until(lambda: a.ended)
        running = relay(a, b, clock=self.reactor, strategy=self.strategy)
        self.assertEqual(await deferToThread(read_all, far_b), b"bye")
        far_b.sendall(b"so long")
        far_b.close()
        self.assertEqual(await deferToThread(read_all, far_a), b"so long")
        self.assertEqual((await running.when_done()).end, RelayEnd.FINISHED)

    async def test_registry_lists_and_closes(self: Any) -> None:
        registry = Connections(1, clock=self.reactor)
        pair = self.make(registry=registry)
        self.assertEqual(list(registry), [pair.relay])
        error = self.assertRaises(NetworkError, self.make, registry=registry)
        self.assertIn("limit is 1", error.cause)
        await registry.close_all("shutting down")
        self.assertEqual((await pair.relay.when_done()).reason, "shutting down")

    async def test_done_waiters_are_their_own(self: Any) -> None:
        seen: list[RelayResult] = []
        pair = self.make(on_close=seen.append)
        first, second, third = (pair.relay.when_done() for _ in range(3))
        first.addErrback(lambda _: None)
        first.cancel()
        second.addCallback(lambda _: "mine")
        pair.relay.abort("now")
        result = await third
        self.assertEqual(seen, [result])
        self.assertEqual(await second, "mine")
        self.assertIs(await pair.relay.when_done(), result)

    async def test_on_close_that_raises(self: Any) -> None:
        pair = self.make(on_close=lambda result: 1 // 0)
        pair.relay.abort("now")
        await pair.relay.when_done()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_descriptors_are_given_back(self: Any) -> None:
        async def once() -> None:
            pair = self.make()
            pair.a.sendall(b"x")
            await deferToThread(read_exactly, pair.b, 1)
            pair.a.close()
            pair.b.close()
            await pair.relay.when_done()

        await once()
        _relay_sockets.pipes.clear()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await once()
        _relay_sockets.pipes.clear()
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(_relay_sockets.pipes.in_use, 0)

    async def test_killed_peer(self: Any) -> None:
        code = "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.setblocking(True); s.sendall(b'here'); s.recv(1)"
        for index, first in enumerate(("a", "b")):
            pair = self.make()
            victim, other = getattr(pair, first), (pair.b, pair.a)[index]
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(victim.fileno())], pass_fds=[victim.fileno()]
            )
            victim.close()
            self.assertEqual(await deferToThread(read_exactly, other, 4), b"here")
            process.send_signal(signal.SIGKILL)
            process.wait()
            try:
                self.assertEqual(await deferToThread(read_all, other), b"")
            except ConnectionResetError:
                pass
            other.close()
            await pair.relay.when_done()


class ProducerTcpUnixTests(Behaviour, RelayTestCase):
    pass


class SocketsTcpUnixTests(Behaviour, RelayTestCase):
    strategy = "sockets"

    async def test_bulk_goes_through_a_pipe_that_is_given_back(self) -> None:
        pair = self.make()
        used: list[int] = []

        def send() -> None:
            for _ in range(400):
                pair.a.sendall(b"b" * 65536)
                used.append(_relay_sockets.pipes.in_use)
            pair.a.shutdown(socket.SHUT_WR)

        sending, got = deferToThread(send), deferToThread(read_all, pair.b)
        self.assertEqual(len(await got), 400 * 65536)
        await sending
        self.assertEqual(max(used), 1)
        await wait_until(lambda: _relay_sockets.pipes.in_use == 0)

    async def test_bulk_that_becomes_small_gives_the_pipe_back(self) -> None:
        pair = self.make()

        def exchange() -> int:
            seen = 0
            for _ in range(64):
                pair.a.sendall(b"b" * 1_000_000)
                seen = max(seen, _relay_sockets.pipes.in_use)
                read_exactly(pair.b, 1_000_000)
            for _ in range(40):
                pair.a.sendall(b"s")
                read_exactly(pair.b, 1)
            return seen

        self.assertEqual(await deferToThread(exchange), 1)
        self.assertEqual(_relay_sockets.pipes.in_use, 0)

    async def test_without_pipes_bulk_is_copied(self) -> None:
        self.patch(_relay_sockets, "MAX_PIPES", 0)
        pair = self.make()
        sending = deferToThread(pair.a.sendall, b"b" * 10_000_000)
        self.assertEqual(await deferToThread(read_exactly, pair.b, 10_000_000), b"b" * 10_000_000)
        await sending

    async def test_pipe_that_cannot_be_had(self) -> None:
        _relay_sockets.pipes.clear()

        def refuse(flags: int) -> None:
            raise OSError(24, "Too many open files")

        self.patch(os, "pipe2", refuse)
        refused = _relay_sockets.pipes.refused
        self.assertIsNone(_relay_sockets.pipes.take())
        self.assertEqual(_relay_sockets.pipes.refused, refused + 1)

    async def test_small_pipe_is_not_taken(self) -> None:
        """A user over the quota of pipe pages cannot enlarge them."""
        _relay_sockets.pipes.clear()

        def refuse(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(fcntl, "fcntl", refuse)
        before = len(os.listdir("/proc/self/fd"))
        self.assertIsNone(_relay_sockets.pipes.take())
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    async def test_reset_after_the_end_is_noticed(self) -> None:
        """A caller that has ended its side and then dies: the target that still works for it is cut off."""
        pairs = [self.make() for _ in range(3)]
        for pair in pairs:
            pair.a.sendall(b"request")
            pair.a.shutdown(socket.SHUT_WR)
            self.assertEqual(await deferToThread(read_all, pair.b), b"request")
        for pair in pairs:
            reset(pair.a)
            result = await pair.relay.when_done()
            self.assertEqual((result.end, result.side), (RelayEnd.RESET, "a"))
            with self.assertRaises(BrokenPipeError):
                pair.b.sendall(b"too late")
        self.assertEqual(_relay_sockets._watches, {})

    async def start_bulk(self, pair: Pair) -> Deferred[Any]:
        """Send until something ends it, and return when it goes through a pipe; the Deferred fires with the error."""

        def send() -> Exception | None:
            try:
                for _ in range(20_000):
                    pair.a.sendall(b"b" * 65536)
            except OSError as error:
                return error
            return None

        def drain() -> None:
            while _relay_sockets.pipes.in_use == 0:
                read_exactly(pair.b, 200_000)

        sending: Deferred[Any] = deferToThread(send)
        await deferToThread(drain)
        return sending

    async def test_source_is_reset_in_bulk(self) -> None:
        pair = self.make()
        sending = await self.start_bulk(pair)
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # the thread may be in a send: a shutdown ends that, and then the close resets
        pair.a.shutdown(socket.SHUT_RDWR)
        await sending
        reset(pair.a)
        draining = deferToThread(self.drain_to_the_end, pair.b)
        await pair.relay.when_done()
        await draining
        self.assertEqual(_relay_sockets.pipes.in_use, 0)

    @staticmethod
    def drain_to_the_end(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.recv(1 << 20):
                pass
        # whether the relay saw the end or the reset first is the kernel's choice; after an end it waits for ours
        sock.close()

    async def test_target_dies_in_bulk(self) -> None:
        for stuck in (False, True):
            pair = self.make()
            sending = await self.start_bulk(pair)
            if stuck:
                # the pipe is full and waits for the target
                taken = -1
                while taken != pair.relay.counters.total:
                    taken = pair.relay.counters.total
                    await deferLater(self.reactor, 0.05)
            pair.b.close()
            self.assertIsInstance(await sending, (BrokenPipeError, ConnectionResetError))
            result = await pair.relay.when_done()
            self.assertEqual((result.end, result.side), (RelayEnd.RESET, "b"))
            self.assertEqual(_relay_sockets.pipes.in_use, 0)

    async def test_target_dies_with_a_dose_pending(self) -> None:
        """From UNIX to TCP nothing is spliced; the dose that the target did not take goes with it."""
        pair = self.make()

        def send() -> Exception | None:
            try:
                for _ in range(2000):
                    pair.b.sendall(b"b" * 65536)
            except OSError as error:
                return error
            return None

        sending = deferToThread(send)
        taken = -1
        while taken != pair.relay.counters.total:
            taken = pair.relay.counters.total
            await deferLater(self.reactor, 0.05)
        reset(pair.a)
        self.assertIsInstance(await sending, (BrokenPipeError, ConnectionResetError))
        result = await pair.relay.when_done()
        self.assertEqual((result.end, result.side), (RelayEnd.RESET, "a"))

    async def test_aborted_in_bulk(self) -> None:
        """What a lost target did not take never reaches another stream."""
        pair = self.make()
        pair.a.setblocking(False)
        stuck = 0
        while stuck < 5:
            try:
                pair.a.send(b"old" * 30_000)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                await deferLater(self.reactor, 0.005)
        pair.b.close()
        pair.a.close()
        await pair.relay.when_done()
        self.assertEqual(_relay_sockets.pipes.in_use, 0)
        again = self.make()
        sending = deferToThread(again.a.sendall, b"n" * 8_000_000)
        self.assertEqual(await deferToThread(read_exactly, again.b, 8_000_000), b"n" * 8_000_000)
        await sending


class RawTcpUnixTests(Behaviour, RelayTestCase):
    strategy = "sockets"
    raw = True


class RawUnixTcpTests(Behaviour, RelayTestCase):
    strategy = "sockets"
    raw = True
    kinds = ("unix", "tcp")


class RawProducerTests(Behaviour, RelayTestCase):
    """Sockets are given transports where the relay cannot use them as they are."""

    raw = True


class HalfCloseTests(RelayTestCase):
    """``half_close=False``: the end of one side is the end of both, once what it sent is delivered."""

    async def test_end_of_either_side(self) -> None:
        for self.strategy in ("producer", "sockets"):
            for first, second in (("a", "b"), ("b", "a")):
                pair = self.make(half_close=False)
                ender, other = getattr(pair, first), getattr(pair, second)
                ender.sendall(b"the last word" * 1000)
                ender.shutdown(socket.SHUT_WR)
                self.assertEqual(await deferToThread(read_all, other), b"the last word" * 1000)
                result = await pair.relay.when_done()
                self.assertEqual((result.end, result.side), (RelayEnd.FINISHED, first))


class ManyStreamsTests(RelayTestCase):
    """Random sizes and half-closes, many at once. ``ANBOX_TW_STREAMS`` says how many; 1,000 are run by hand."""

    strategy = "sockets"

    async def test_streams(self) -> None:
        count = int(os.environ.get("ANBOX_TW_STREAMS", "80"))
        dice = random.Random(4)
        swappers = Connections(2 * count, clock=self.reactor)
        self.start(
            UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: Swapper()), registry=swappers)
        )
        creator = ForwardCreator(UnixConnector(self.reactor, self.path()), clock=self.reactor)
        registry = Connections(2 * count, clock=self.reactor)
        service = self.start(TcpListener(self.reactor, 0, creator, registry=registry))
        plans = [(dice.randrange(1, 200_000), dice.random() < 0.5) for _ in range(count)]

        def run(part: list[tuple[int, bool]]) -> list[bool]:
            good = []
            streams = [socket.create_connection(("127.0.0.1", service.get_port()), timeout=30) for _ in part]
            for stream, (size, _) in zip(streams, part, strict=True):
                stream.sendall(struct.pack("!I", size) + b"\x5a" * min(size, 20_000))
            for stream, (size, half) in zip(streams, part, strict=True):
                writer = threading.Thread(target=finish_sending, args=(stream, size, half))
                writer.start()
                got = read_exactly(stream, size) if not half else read_all(stream)
                writer.join()
                good.append(got == b"\xa5" * size)
                stream.close()
            return good

        parts = [plans[number::4] for number in range(4)]
        results = await gatherResults([deferToThread(run, part) for part in parts])
        self.assertEqual([all(part) for part in results], [True] * 4)
        await wait_until(lambda: len(service.connections) == 0)
        self.assertEqual(_relay_sockets.pipes.in_use, 0)


def finish_sending(stream: socket.socket, size: int, half: bool) -> None:
    stream.sendall(b"\x5a" * max(0, size - 20_000))
    if half:
        stream.shutdown(socket.SHUT_WR)


class Swapper(Recorder):
    """Sends the complement of each byte back behind a length, and ends where its peer ends."""

    def __init__(self) -> None:
        super().__init__()
        self.head = b""

    def dataReceived(self, data: bytes) -> None:
        if len(self.head) < 4:
            missing = 4 - len(self.head)
            self.head, data = self.head + data[:missing], data[missing:]
        self.transport.write(
            bytes(byte ^ 0xFF for byte in data) if len(set(data)) > 1 else b"\xa5" * len(data)
        )

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()


class SocketsTcpTcpTests(Behaviour, RelayTestCase):
    strategy = "sockets"
    kinds = ("tcp", "tcp")


class SocketsUnixUnixTests(Behaviour, RelayTestCase):
    strategy = "sockets"
    kinds = ("unix", "unix")


class ProducerTcpTcpTests(Behaviour, RelayTestCase):
    kinds = ("tcp", "tcp")


class MemoryTests(SynchronousTestCase):
    """The core, and transports that are no sockets."""

    def setUp(self) -> None:
        self.clock = Clock()

    def end(self) -> StringTransportWithDisconnection:
        transport = StringTransportWithDisconnection()
        transport.protocol = Recorder()
        transport.protocol.makeConnection(transport)
        return transport

    def relay(self, **options: Any) -> tuple[Relay, Any, Any]:
        a, b = self.end(), self.end()
        options.setdefault("clock", self.clock)
        return relay(a, b, **options), a, b

    def test_ends_are_protocols(self) -> None:
        running, a, _ = self.relay()
        self.assertTrue(verifyObject(IProtocol, a.protocol))
        self.assertTrue(verifyObject(IHalfCloseableProtocol, a.protocol))
        self.assertTrue(verifyObject(ITrackedConnection, a.protocol))
        self.assertEqual(a.protocol.logPrefix(), "relay")
        self.assertEqual(a.protocol.describe()["name"], "relay")
        self.assertEqual(running.strategy, "producer")

    def test_bytes(self) -> None:
        running, a, b = self.relay()
        a.protocol.dataReceived(b"to b")
        b.protocol.dataReceived(b"to a")
        self.assertEqual((a.value(), b.value()), (b"to a", b"to b"))

    def test_backpressure(self) -> None:
        _, a, b = self.relay()
        self.assertIs(b.producer, a.protocol)
        self.assertIs(a.producer, b.protocol)
        self.assertTrue(b.streaming)

    def test_clean_loss_closes_the_other(self) -> None:
        running, a, b = self.relay()
        a.protocol.dataReceived(b"last")
        a.loseConnection()
        self.assertFalse(b.connected)
        result = self.successResultOf(running.when_done())
        self.assertEqual((result.end, result.side, b.value()), (RelayEnd.FINISHED, "a", b"last"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_dirty_loss_resets_the_other(self) -> None:
        running, a, b = self.relay()
        a.connected = False
        a.protocol.connectionLost(Failure(ConnectionLost("boom")))
        result = self.successResultOf(running.when_done())
        self.assertEqual((result.end, result.side), (RelayEnd.RESET, "a"))
        self.assertFalse(b.connected)
        b.protocol.connectionLost(Failure(ConnectionDone()))

    def test_end_of_one_side_where_the_other_cannot_be_half_closed(self) -> None:
        running, a, b = self.relay()
        a.protocol.readConnectionLost()
        result = self.successResultOf(running.when_done())
        self.assertEqual((result.end, result.side), (RelayEnd.FINISHED, "a"))
        self.assertIn("half-closed", result.reason)
        a.protocol.dataReceived(b"late")
        a.protocol.readConnectionLost()
        a.protocol.writeConnectionLost()
        self.assertEqual(b.value(), b"")

    def test_abort(self) -> None:
        running, a, b = self.relay()
        a.protocol.abort()
        self.assertFalse(a.connected or b.connected)
        self.successResultOf(running.when_done())

    def test_close_by_its_end(self) -> None:
        running, a, _ = self.relay()
        a.protocol.close("by the listener")
        self.assertEqual(self.successResultOf(running.when_done()).reason, "by the listener")

    def test_address_of_a_closed_one(self) -> None:
        running, a, _ = self.relay()
        a.protocol.transport = None
        self.assertEqual(a.protocol.address(), "closed")

    def test_sockets_cannot_be_forced(self) -> None:
        self.assertRaises(NetworkError, self.relay, strategy="sockets")

    def test_not_connected(self) -> None:
        self.assertRaises(NetworkError, relay, Recorder(), self.end(), clock=self.clock)
        lost = RelayProtocol()
        lost.makeConnection(StringTransport())
        lost.connectionLost(Failure(ConnectionLost("early")))
        error = self.assertRaises(NetworkError, relay, self.end(), lost, clock=self.clock)
        self.assertIn("b is already lost", error.cause)
        closed = self.end()
        closed.disconnected = True
        self.assertRaises(NetworkError, relay, closed, self.end(), clock=self.clock)

    def test_waiting_protocol(self) -> None:
        waiting, transport = RelayProtocol(), StringTransportWithDisconnection()
        transport.protocol = waiting
        waiting.makeConnection(transport)
        self.assertEqual(transport.producerState, "paused")
        waiting.dataReceived(b"early")
        other = self.end()
        relay(waiting, other, clock=self.clock, leftover_a=b" bird")
        self.assertEqual(other.value(), b"early bird")
        self.assertEqual(transport.producerState, "producing")

    def test_waiting_protocol_is_bounded(self) -> None:
        waiting, transport = RelayProtocol(), StringTransportWithDisconnection()
        transport.protocol = waiting
        waiting.makeConnection(transport)
        waiting.writeConnectionLost()
        waiting.dataReceived(b"x" * (1024 * 1024))
        self.assertTrue(transport.connected)
        waiting.dataReceived(b"x")
        self.assertFalse(transport.connected)


class ForwardTests(NetworkTestCase):
    async def start_forward(self, target: Any, **options: Any) -> tuple[Any, socket.socket]:
        creator = ForwardCreator(target, clock=self.reactor, registry=self.registry, **options)
        self.assertTrue(verifyObject(IConnectionCreator, creator))
        service = self.start(TcpListener(self.reactor, 0, creator))
        client = socket.create_connection(("127.0.0.1", service.get_port()), timeout=10)
        self.addCleanup(client.close)
        return service, client

    async def test_forward(self) -> None:
        self.start(
            UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: Recorder(lambda data: data)))
        )
        service, client = await self.start_forward(UnixConnector(self.reactor, self.path()), name="to echo")
        client.sendall(b"hello")
        self.assertEqual(await deferToThread(read_exactly, client, 5), b"hello")
        (running,) = self.registry
        self.assertEqual((running.name, running.strategy), ("to echo", "sockets"))
        near = running._ends[0].transport.socket
        self.assertTrue(near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertEqual((near.family, near.type, near.gettimeout()), (socket.AF_INET, socket.SOCK_STREAM, 0))
        self.assertFalse(os.get_inheritable(near.fileno()))
        self.assertEqual(len(service.connections), 1)
        await service.stopService()
        await wait_until(lambda: len(self.registry) == 0)
        self.assertEqual(await deferToThread(read_all, client), b"")

    async def test_unix_to_unix_without_transports(self) -> None:
        self.start(
            UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: Recorder(lambda data: data)))
        )
        creator = ForwardCreator(
            UnixConnector(self.reactor, self.path()), clock=self.reactor, strategy="auto"
        )
        service = self.start(UnixListener(self.reactor, self.path("front"), creator))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.path("front"))
            client.sendall(b"hello")
            self.assertEqual(await deferToThread(read_exactly, client, 5), b"hello")
            (running,) = service.connections
            self.assertIsInstance(running, Relay)
            self.assertIn("UNIXAddress", running.describe()["b"])
            await service.stopService()
            self.assertEqual(await deferToThread(read_all, client), b"")
        self.assertEqual(os.listdir(self.directory), ["socket"])

    async def test_target_that_comes_later(self) -> None:
        """Nobody is there yet: the retry policy of the connector goes on as it does without the quick way."""
        _, client = await self.start_forward(
            UnixConnector(self.reactor, self.path(), retry=RetryPolicy(first_delay=0.01, max_delay=0.02))
        )
        client.sendall(b"patience")
        await deferLater(self.reactor, 0.05)
        self.start(
            UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: Recorder(lambda data: data)))
        )
        self.assertEqual(await deferToThread(read_exactly, client, 8), b"patience")

    async def test_listener_limit(self) -> None:
        self.start(UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: Recorder())))
        creator = ForwardCreator(UnixConnector(self.reactor, self.path()), clock=self.reactor)
        limited = Connections(1, clock=self.reactor)
        service = self.start(TcpListener(self.reactor, 0, creator, registry=limited))
        first = socket.create_connection(("127.0.0.1", service.get_port()), timeout=10)
        self.addCleanup(first.close)
        await wait_until(lambda: len(limited) == 1)
        second = socket.create_connection(("127.0.0.1", service.get_port()), timeout=10)
        self.addCleanup(second.close)
        self.assertEqual(await deferToThread(read_all, second), b"")
        self.assertEqual(limited.refused, 1)
        reset(first)
        await wait_until(lambda: len(limited) == 0)

    async def test_no_descriptors_left(self) -> None:
        """Accepting pauses, the connection waits in the backlog, and is served when there is room again."""
        self.start(
            UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: Recorder(lambda data: data)))
        )
        creator = ForwardCreator(UnixConnector(self.reactor, self.path()), clock=self.reactor)
        service = self.start(TcpListener(self.reactor, 0, creator))
        port: Any = service._port
        real, failures = port.socket, [errno.EMFILE, errno.ECONNABORTED]

        class Full:
            fileno = real.fileno

            def _accept(self) -> Any:
                if failures:
                    raise OSError(failures.pop(0), "no")
                return real._accept()

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        port.socket = Full()
        client = socket.create_connection(("127.0.0.1", service.get_port()), timeout=10)
        self.addCleanup(client.close)
        client.sendall(b"x")
        self.assertEqual(await deferToThread(read_exactly, client, 1), b"x")
        self.assertEqual(failures, [])

    async def start_echo(self) -> tuple[ForwardCreator, Any]:
        self.start(
            UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: Recorder(lambda data: data)))
        )
        creator = ForwardCreator(UnixConnector(self.reactor, self.path()), clock=self.reactor)
        return creator, self.start(TcpListener(self.reactor, 0, creator))

    async def test_no_descriptor_left_for_the_target(self) -> None:
        """The last one went to the accepted socket: it is kept, and served when there is room again."""
        creator, service = await self.start_echo()
        real, failures = creator.forward_socket, [errno.EMFILE, errno.ENFILE]

        def forward(*arguments: Any) -> bool:
            if failures:
                raise OSError(failures.pop(0), "no")
            return real(*arguments)

        self.patch(creator, "forward_socket", forward)
        client = socket.create_connection(("127.0.0.1", service.get_port()), timeout=10)
        self.addCleanup(client.close)
        client.sendall(b"x")
        self.assertEqual(await deferToThread(read_exactly, client, 1), b"x")
        self.assertEqual(failures, [])

    async def test_stopped_while_a_socket_waits_for_room(self) -> None:
        creator, service = await self.start_echo()

        def forward(*arguments: Any) -> bool:
            raise OSError(errno.EMFILE, "no")

        self.patch(creator, "forward_socket", forward)
        client = socket.create_connection(("127.0.0.1", service.get_port()), timeout=10)
        self.addCleanup(client.close)
        await wait_until(lambda: service._port._held is not None)
        await service.stopService()
        self.assertEqual(await deferToThread(read_all, client), b"")

    async def test_creator_that_fails(self) -> None:
        creator = ForwardCreator(UnixConnector(self.reactor, self.path()), clock=self.reactor)
        service = self.start(TcpListener(self.reactor, 0, creator))

        def fail(*arguments: object) -> bool:
            raise ZeroDivisionError

        self.patch(creator, "forward_socket", fail)
        client = socket.create_connection(("127.0.0.1", service.get_port()), timeout=10)
        self.addCleanup(client.close)
        self.assertEqual(await deferToThread(read_all, client), b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_claimed_port(self) -> None:
        self.start(
            UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: Recorder(lambda data: data)))
        )
        claim = PortAllocator(44000, 44100).claim()
        self.addCleanup(claim.release)
        creator = ForwardCreator(UnixConnector(self.reactor, self.path()), clock=self.reactor)
        self.start(TcpListener(self.reactor, claim.take(), creator))
        with socket.create_connection(("127.0.0.1", claim.first), timeout=10) as client:
            client.sendall(b"x")
            self.assertEqual(await deferToThread(read_exactly, client, 1), b"x")

    def test_sockets_need_a_reactor(self) -> None:
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        self.assertRaises(NetworkError, relay, near, far, clock=Clock())

    def test_registries_are_all_or_none(self) -> None:
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        room, full = Connections(5, clock=self.reactor), Connections(0, clock=self.reactor)
        self.assertRaises(NetworkError, relay, near, far, clock=self.reactor, registry=(room, full))
        self.assertEqual(len(room), 0)

    async def test_refused_target_resets_the_caller(self) -> None:
        target = TcpConnector(self.reactor, "127.0.0.1", free_port(), retry=RetryPolicy.once())
        _, client = await self.start_forward(target)
        with self.assertRaises(ConnectionResetError):
            await deferToThread(read_all, client)

    async def test_full_registry_closes_both(self) -> None:
        recorder = Recorder()
        self.start(UnixListener(self.reactor, self.path(), DelegateCreator(lambda a: recorder)))
        self.registry.limit = 0
        _, client = await self.start_forward(UnixConnector(self.reactor, self.path()))
        with self.assertRaises(ConnectionResetError):
            await deferToThread(read_all, client)
        await recorder.when_ended()

    async def test_caller_that_leaves_while_we_try(self) -> None:
        service, client = await self.start_forward(UnixConnector(self.reactor, self.path()))
        await wait_until(lambda: len(service.connections) == 1)
        (connection,) = service.connections
        connection.abort("leaving")
        await wait_until(lambda: len(service.connections) == 0)
        self.assertIsNone(connection.protocol.attempt)
