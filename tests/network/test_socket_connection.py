"""SocketConnection and the Connections registry: bounded, and every end told exactly once."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from anbox_tw.errors import NetworkError, PeerError
from anbox_tw.interfaces import IMessageProcessor, IMessageSender
from anbox_tw.network import (
    Connections,
    IEndOfInput,
    ITrackedConnection,
    ProcessorCreator,
    SocketConnection,
    UnixListener,
)
from tests.network.helpers import NetworkTestCase, wait_until


@implementer(IMessageProcessor)
class Echo:
    def __init__(self, sender: SocketConnection) -> None:
        self.sender = sender
        self.data = b""
        self.reasons: list[Failure] = []

    def process_data(self, data: bytes) -> None:
        self.data += data
        if data == b"bad":
            raise PeerError("bad data")
        if data == b"crash":
            raise ZeroDivisionError("crash")
        if data == b"quit":
            self.sender.send(b"bye")
            self.sender.close("asked to")
        else:
            self.sender.send(data)

    def connection_lost(self, reason: Failure) -> None:
        self.reasons.append(reason)
        if self.data == b"die at the end":
            raise ZeroDivisionError("at the loss")


@implementer(IEndOfInput)
class Ender(Echo):
    ended = False

    def end_of_input(self) -> None:
        self.ended = True
        self.sender.send(b"last words")
        if self.data == b"die at the end":
            raise ZeroDivisionError("at the end")


class Transport(StringTransportWithDisconnection):
    """With an explicit abort and the buffer accounting that Twisted's transports do."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.producer = None
        self.loseConnection()

    def loseConnection(self) -> None:
        if self.producer is None:
            super().loseConnection()


class SocketConnectionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = Connections(clock=self.clock)
        self.made: list[Any] = []

    def connect(self, kind: Any = Echo, **options: Any) -> tuple[SocketConnection, Any, Transport]:
        def build(sender: SocketConnection) -> Any:
            self.made.append(kind(sender))
            return self.made[-1]

        options.setdefault("clock", self.clock)
        connection = SocketConnection(build, "test", self.registry, **options)
        transport = Transport()
        transport.protocol = connection
        connection.makeConnection(transport)
        return connection, (self.made[-1] if self.made else None), transport

    def test_interfaces(self) -> None:
        connection, processor, _ = self.connect()
        for interface in (IMessageSender, IHalfCloseableProtocol, IPushProducer, ITrackedConnection):
            self.assertTrue(verifyObject(interface, connection))
        self.assertTrue(verifyObject(IMessageProcessor, processor))

    def test_bytes_and_counters(self) -> None:
        connection, processor, transport = self.connect()
        connection.dataReceived(b"hello")
        connection.send(b"")
        self.assertEqual(transport.value(), b"hello")
        described = connection.describe()
        self.assertEqual((described["bytes_in"], described["bytes_out"], described["queued"]), (5, 5, 0))
        self.assertIn(connection, self.registry)
        self.assertIs(self.registry.get(connection.id), connection)

    def test_close_flushes_and_says_why(self) -> None:
        connection, processor, transport = self.connect()
        connection.dataReceived(b"quit")
        self.assertEqual(transport.value(), b"bye")
        self.assertFalse(transport.connected)
        self.assertEqual([str(r.value) for r in processor.reasons], [str(ConnectionDone("asked to"))])
        self.assertEqual(len(self.registry), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        connection.send(b"ignored")
        connection.close("again")
        connection.abort("again")
        connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(len(processor.reasons), 1)

    def test_broken_protocol_is_the_reason(self) -> None:
        connection, processor, transport = self.connect()
        connection.dataReceived(b"bad")
        connection.dataReceived(b"more")
        self.assertFalse(transport.connected)
        self.assertIsInstance(processor.reasons[0].value, PeerError)

    def test_crash_is_logged_and_closes(self) -> None:
        _, processor, transport = self.connect()
        transport.protocol.dataReceived(b"crash")
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(processor.reasons[0].value, ZeroDivisionError)

    def test_factory_that_raises(self) -> None:
        def refuse(sender: object) -> Any:
            raise ZeroDivisionError

        _, _, transport = self.connect(refuse)
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.registry), 0)

    def test_processor_that_raises_at_the_loss(self) -> None:
        connection, _, transport = self.connect()
        connection.dataReceived(b"die at the end")
        transport.loseConnection()
        connection.close("x")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.registry), 0)

    def test_slow_reader_is_not_read_from(self) -> None:
        connection, _, transport = self.connect()
        connection.pauseProducing()
        connection.pauseProducing()
        self.assertEqual(transport.producerState, "paused")
        connection.send(b"a")
        connection.send(b"b")
        self.assertEqual((transport.value(), connection.queued, connection.congested), (b"", 2, True))
        connection.resumeProducing()
        self.assertEqual((transport.value(), connection.queued, connection.congested), (b"ab", 0, False))
        self.assertEqual(transport.producerState, "producing")
        connection.stopProducing()

    def test_queue_stops_where_the_transport_is_full_again(self) -> None:
        connection, _, transport = self.connect()
        connection.pauseProducing()
        connection.send(b"a")
        connection.send(b"b")
        real = transport.write

        def write(data: bytes) -> None:
            real(data)
            connection.pauseProducing()

        self.patch(transport, "write", write)
        connection.resumeProducing()
        self.assertEqual((transport.value(), connection.queued), (b"a", 1))
        self.assertEqual(transport.producerState, "paused")

    def test_queue_limit_aborts(self) -> None:
        connection, processor, transport = self.connect(max_queue=10)
        connection.pauseProducing()
        connection.send(b"x" * 10)
        self.assertTrue(transport.connected)
        connection.send(b"y")
        self.assertTrue(transport.aborted)
        self.assertIsInstance(processor.reasons[0].value, NetworkError)
        self.assertEqual(connection.queued, 0)

    def test_close_waits_for_the_queue(self) -> None:
        connection, processor, transport = self.connect()
        connection.pauseProducing()
        connection.send(b"x")
        connection.close("done")
        self.assertTrue(transport.connected)
        connection.resumeProducing()
        self.assertEqual(transport.value(), b"x")
        self.assertFalse(transport.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close_does_not_wait_for_ever(self) -> None:
        connection, processor, transport = self.connect(close_grace=3)
        connection.pauseProducing()
        connection.send(b"x")
        connection.close("done")
        self.clock.advance(2.9)
        self.assertTrue(transport.connected)
        self.clock.advance(0.2)
        self.assertTrue(transport.aborted)
        self.assertIn("done", str(processor.reasons[0].value))

    def test_without_a_clock(self) -> None:
        connection, _, transport = self.connect(clock=None)
        connection.close("x")
        self.assertFalse(transport.connected)

    def test_end_of_input(self) -> None:
        connection, processor, transport = self.connect(Ender)
        connection.readConnectionLost()
        connection.writeConnectionLost()
        self.assertTrue(processor.ended)
        self.assertEqual(transport.value(), b"last words")
        self.assertTrue(transport.connected)

    def test_end_of_input_closes_who_does_not_care(self) -> None:
        connection, processor, transport = self.connect()
        connection.readConnectionLost()
        self.assertFalse(transport.connected)
        self.assertTrue(processor.reasons[0].check(ConnectionDone))

    def test_end_of_input_that_raises(self) -> None:
        connection, processor, transport = self.connect(Ender)
        connection.dataReceived(b"die at the end")
        connection.readConnectionLost()
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_full_registry_refuses(self) -> None:
        self.registry.limit = 0
        _, processor, transport = self.connect()
        self.assertTrue(transport.aborted)
        self.assertEqual(len(self.made), 0)

    def test_reason_of_the_transport(self) -> None:
        connection, processor, transport = self.connect()
        connection.connectionLost(Failure(ConnectionLost("reset")))
        self.assertTrue(processor.reasons[0].check(ConnectionLost))


class Member:
    name = "member"

    def __init__(
        self, registry: Connections, number: int, *, closes: bool = False, aborts: bool = True
    ) -> None:
        self.id = number
        self.registry = registry
        self.log: list[str] = []
        self._closes, self._aborts = closes, aborts

    def describe(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name}

    def close(self, reason: str) -> None:
        self.log.append(f"close {reason}")
        if self._closes:
            self.registry.remove(self)

    def abort(self, reason: str) -> None:
        self.log.append("abort")
        if self._aborts:
            self.registry.remove(self)


class ConnectionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = Connections(3, name="pipes", clock=self.clock)

    def test_counts_limits_and_lists(self) -> None:
        members = [Member(self.registry, number) for number in range(4)]
        for member in members[:3]:
            self.registry.add(member)
        error = self.assertRaises(NetworkError, self.registry.add, members[3])
        self.assertIn("pipes has 3 connections, and its limit is 3", error.cause)
        self.assertEqual(self.registry.refused, 1)
        self.assertEqual(list(self.registry), members[:3])
        self.assertNotIn(members[3], self.registry)
        self.assertEqual(self.registry.describe(), [{"id": n, "name": "member"} for n in range(3)])
        self.registry.remove(members[3])
        self.registry.remove(members[0])
        self.assertFalse(self.registry.full)
        self.assertEqual(len(self.registry), 2)

    def test_close_all(self) -> None:
        member = Member(self.registry, 1)
        self.registry.add(member)
        first, second = self.registry.close_all("bye"), self.registry.close_all()
        self.assertTrue(self.registry.full)
        self.assertRaises(NetworkError, self.registry.add, Member(self.registry, 2))
        self.assertNoResult(first)
        self.registry.remove(member)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(member.log, ["close bye"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.registry.add(member)

    def test_close_all_of_none(self) -> None:
        self.successResultOf(self.registry.close_all())

    def test_close_all_at_once(self) -> None:
        for number in range(3):
            self.registry.add(Member(self.registry, number, closes=True))
        self.successResultOf(self.registry.close_all())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_abort_after_the_grace(self) -> None:
        member = Member(self.registry, 1)
        self.registry.add(member)
        done = self.registry.close_all(grace=2)
        self.clock.advance(1.9)
        self.assertNoResult(done)
        self.clock.advance(0.2)
        self.successResultOf(done)
        self.assertEqual(member.log[-1], "abort")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_always_fires(self) -> None:
        member = Member(self.registry, 1, aborts=False)
        self.registry.add(member)
        done = self.registry.close_all(grace=2)
        self.clock.pump([2, 2.1])
        self.successResultOf(done)
        self.assertEqual(len(self.registry), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RealSocketTests(NetworkTestCase):
    async def test_flood_from_a_peer_that_does_not_read_stays_bounded(self) -> None:
        """An echo to a peer that only writes: we stop reading from it, and hold little."""
        service = self.start(
            UnixListener(
                self.reactor,
                self.path(),
                ProcessorCreator(Echo, "echo", self.registry),
                registry=self.registry,
            )
        )
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.path())
            client.setblocking(False)
            sent = 0
            idle = 0
            while idle < 20:
                try:
                    sent += client.send(b"x" * 65536)
                    idle = 0
                except BlockingIOError:
                    idle += 1
                    await wait_until(lambda: True)
                    from twisted.internet.task import deferLater

                    await deferLater(self.reactor, 0.005)
            (connection,) = service.connections
            self.assertTrue(connection.congested)
            self.assertLess(sent, 3_000_000)
            self.assertLess(connection.bytes_in, 2_000_000)
            client.setblocking(True)
            client.shutdown(socket.SHUT_WR)
            from twisted.internet.threads import deferToThread

            def drain() -> int:
                total = 0
                while data := client.recv(65536):
                    total += len(data)
                return total

            self.assertEqual(await deferToThread(drain), sent)
        await wait_until(lambda: len(self.registry) == 0)
