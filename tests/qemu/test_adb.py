"""The adb pipe service over real sockets."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from anbox_tw.errors import NetworkError
from anbox_tw.interfaces import IPipeService
from anbox_tw.network import PortAllocator, UnixListener
from anbox_tw.qemu import adb
from anbox_tw.qemu.adb import AdbPipeService, _Host
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.qemu.adb_server_link import AdbServerLink
from anbox_tw.qemu.pipe import PipeConnectionCreator
from anbox_tw.qemu.registry import PipeServiceRegistry
from tests.qemu.scripted import unused_port

LIMIT_S = 5.0


class End(Protocol):
    """One end of a connection: waits for bytes or for the loss."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False
        self._waiting: list[tuple[int | None, Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self._check()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self._check()

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def close(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()

    def take(self, size: int) -> Deferred[bytes]:
        """The next ``size`` bytes."""
        return self._wait(size)

    def end(self) -> Deferred[bytes]:
        """Everything to the loss of the connection."""
        return self._wait(None)

    def _wait(self, size: int | None) -> Deferred[bytes]:
        waiter: Deferred[bytes] = Deferred()
        self._waiting.append((size, waiter))
        self._check()
        return waiter.addTimeout(LIMIT_S, reactor)

    def _check(self) -> None:
        while self._waiting:
            size, waiter = self._waiting[0]
            if size is None and self.lost:
                size = len(self.data)
            if size is None or len(self.data) < size:
                return
            del self._waiting[0]
            found, self.data = self.data[:size], self.data[size:]
            waiter.callback(found)


class AdbServiceCase(TestCase):
    """A running service behind a real pipe socket."""

    def setUp(self) -> None:
        self.link = AdbServerLink(reactor, AdbServerAddress(port=unused_port()))
        self.service = AdbPipeService(reactor, PortAllocator(), self.link)
        self.service.startService()
        self.addCleanup(self.service.stopService)
        registry = PipeServiceRegistry()
        registry.register(self.service)
        self.path = self.mktemp()[-60:].replace("/", "_")
        self.listener = UnixListener(reactor, self.path, PipeConnectionCreator(registry, reactor))
        self.listener.startService()
        self.addCleanup(self.listener.stopService)

    async def guest(self, first: bytes = b"accept") -> End:
        end: End = await connectProtocol(UNIXClientEndpoint(reactor, self.path), End())
        end.write(b"pipe:qemud:adb:5555\0" + first)
        return end

    async def host(self) -> End:
        end: End = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.service.port), End())
        return end

    async def waiting_guest(self, first: bytes = b"accept") -> End:
        """A guest whose ``accept`` has arrived."""
        before = self.service.describe()["guests_waiting"]
        guest = await self.guest(first)
        await self.until(lambda: self.service.describe()["guests_waiting"] > before)
        return guest

    async def until(self, condition: Any) -> None:
        for _ in range(int(LIMIT_S / 0.01)):
            if condition():
                return
            await deferLater(reactor, 0.01)
        self.fail("the condition did not come true")


class HandshakeTests(AdbServiceCase):
    def test_interface(self) -> None:
        verifyObject(IPipeService, self.service)

    async def test_accept_ok_start_and_bytes_both_ways(self) -> None:
        guest = await self.waiting_guest()
        host = await self.host()
        self.assertEqual(await guest.take(2), b"ok")
        guest.write(b"start")
        guest.write(b"from the guest")
        self.assertEqual(await host.take(14), b"from the guest")
        host.write(b"from the host")
        self.assertEqual(await guest.take(13), b"from the host")
        self.assertEqual(self.service.joined, 1)

    async def test_nothing_is_lost_at_any_border(self) -> None:
        guest = await self.guest(b"acc")
        guest.write(b"ept")
        await self.until(lambda: self.service.describe()["listening"])
        host = await self.host()
        host.write(b"CNXN of the host")
        self.assertEqual(await guest.take(2), b"ok")
        # What the host sent before start is not given to the guest before start.
        await self.until(lambda: self.service._hosts and next(iter(self.service._hosts)).received)
        self.assertEqual(guest.data, b"")
        guest.write(b"startCNXN of the guest")
        self.assertEqual(await guest.take(16), b"CNXN of the host")
        self.assertEqual(await host.take(17), b"CNXN of the guest")

    async def test_a_host_may_send_more_than_is_kept(self) -> None:
        guest = await self.waiting_guest()
        host = await self.host()
        data = bytes(range(256)) * 4096
        host.write(data)
        self.assertEqual(await guest.take(2), b"ok")
        await self.until(lambda: len(next(iter(self.service._hosts)).received) >= adb.MAX_HOST_BYTES)
        self.assertLess(len(next(iter(self.service._hosts)).received), 4 * adb.MAX_HOST_BYTES)
        guest.write(b"start")
        self.assertEqual(await guest.take(len(data)), data)

    async def test_the_wrong_word_ends_both(self) -> None:
        guest = await self.waiting_guest()
        host = await self.host()
        await guest.take(2)
        guest.write(b"stop!")
        self.assertEqual(await host.end(), b"")
        self.assertEqual(await guest.end(), b"")
        await self.until(lambda: not self.service.describe()["listening"])

    async def test_a_guest_that_says_nothing_is_closed(self) -> None:
        self.patch(adb, "ACCEPT_TIMEOUT_S", 0.1)
        guest = await self.guest(b"acc")
        self.assertEqual(await guest.end(), b"")

    async def test_a_guest_that_does_not_start_is_closed_with_its_host(self) -> None:
        self.patch(adb, "START_TIMEOUT_S", 0.1)
        guest = await self.waiting_guest()
        host = await self.host()
        self.assertEqual(await guest.end(), b"ok")
        self.assertEqual(await host.end(), b"")


class QueueTests(AdbServiceCase):
    async def test_the_second_standing_pipe_serves_the_second_host(self) -> None:
        first = await self.waiting_guest()
        host = await self.host()
        await first.take(2)
        first.write(b"start")
        second = await self.waiting_guest()
        first.write(b"1")
        self.assertEqual(await host.take(1), b"1")
        other = await self.host()
        self.assertEqual(await second.take(2), b"ok")
        second.write(b"start2")
        self.assertEqual(await other.take(1), b"2")
        host.close()
        self.assertEqual(await first.end(), b"")
        second.write(b"3")
        self.assertEqual(await other.take(1), b"3")

    async def test_hosts_wait_for_the_next_pipe_in_turn(self) -> None:
        guests = [await self.waiting_guest()]
        hosts = [await self.host() for _ in range(3)]
        for number, host in enumerate(hosts):
            self.assertEqual(await guests[-1].take(2), b"ok")
            guests[-1].write(b"start%d" % number)
            self.assertEqual(await host.take(1), b"%d" % number)
            guests.append(await self.guest())

    async def test_a_host_without_a_pipe_gives_up(self) -> None:
        self.patch(adb, "HOST_WAIT_S", 0.1)
        guest = await self.waiting_guest()
        first = await self.host()
        await guest.take(2)
        guest.write(b"start")
        second = await self.host()
        self.assertEqual(await second.end(), b"")
        guest.write(b"still")
        self.assertEqual(await first.take(5), b"still")

    async def test_hosts_and_guests_have_limits(self) -> None:
        self.patch(adb, "MAX_WAITING_HOSTS", 1)
        self.patch(adb, "MAX_GUEST_PIPES", 2)
        guest = await self.waiting_guest()
        first = await self.host()
        await guest.take(2)
        guest.write(b"start")
        await self.until(lambda: self.service.joined)
        waits = await self.host()
        await self.until(lambda: self.service.describe()["hosts_waiting"])
        refused = await self.host()
        self.assertEqual(await refused.end(), b"")
        second = await self.guest()
        self.assertEqual(await second.take(2), b"ok")
        third = await self.guest()
        self.assertEqual(await third.end(), b"")
        self.assertFalse(first.lost or waits.lost)

    async def test_a_guest_that_is_being_closed_is_given_no_host(self) -> None:
        bad = await self.waiting_guest()
        [protocol] = self.service._waiting_guests
        good = await self.waiting_guest()
        # Its loss is told in a later turn of the reactor; a host that comes in this one is the next guest's.
        protocol.dataReceived(b"stop!")
        host = _Host(self.service, 99)
        host.makeConnection(StringTransport())
        self.assertIsNotNone(host.guest)
        self.assertIsNot(host.guest, protocol)
        self.assertEqual(await good.take(2), b"ok")
        self.assertEqual(await bad.end(), b"")
        host.connectionLost()
        self.assertEqual(await good.end(), b"")


class EndTests(AdbServiceCase):
    async def joined(self) -> tuple[End, End]:
        guest = await self.waiting_guest()
        host = await self.host()
        await guest.take(2)
        guest.write(b"start")
        await self.until(lambda: self.service.joined)
        return guest, host

    async def test_either_side_ends_both_at_once_with_what_was_sent(self) -> None:
        guest, host = await self.joined()
        host.write(b"x" * 300_000)
        host.close()
        self.assertEqual(len(await guest.end()), 300_000)
        guest, host = await self.joined()
        guest.write(b"y" * 300_000)
        guest.close()
        self.assertEqual(len(await host.end()), 300_000)
        await self.until(lambda: not self.service.joined)

    async def test_a_host_that_leaves_early_frees_its_guest(self) -> None:
        guest = await self.waiting_guest()
        host = await self.host()
        await guest.take(2)
        host.close()
        self.assertEqual(await guest.end(), b"")

    async def test_a_guest_that_leaves_early_frees_its_host(self) -> None:
        guest = await self.waiting_guest()
        host = await self.host()
        await guest.take(2)
        guest.close()
        self.assertEqual(await host.end(), b"")

    async def test_a_waiting_guest_that_leaves_is_forgotten(self) -> None:
        gone = await self.waiting_guest()
        stays = await self.waiting_guest()
        gone.close()
        await self.until(lambda: self.service.describe()["guests_waiting"] == 1)
        await self.host()
        self.assertEqual(await stays.take(2), b"ok")

    async def test_without_a_guest_the_port_is_closed_and_with_the_next_it_is_the_same(self) -> None:
        with self.assertRaises(ConnectionRefusedError):
            await self.host()
        port = self.service.port
        guest = await self.waiting_guest()
        self.assertEqual(self.link.port, port)
        guest.close()
        await self.until(lambda: not self.service.describe()["listening"])
        self.assertIsNone(self.link.port)
        with self.assertRaises(ConnectionRefusedError):
            await self.host()
        await self.waiting_guest()
        self.assertEqual(self.service.port, port)
        await self.host()

    async def test_stopping_closes_everything(self) -> None:
        guest, host = await self.joined()
        waiting = await self.waiting_guest()
        port = self.service.port
        await self.service.stopService()
        self.assertEqual(await waiting.end(), b"ko")
        self.assertEqual(await guest.end(), b"")
        self.assertEqual(await host.end(), b"")
        self.assertEqual(self.service.serial, "")
        refused = await self.guest()
        self.assertEqual(await refused.end(), b"")
        await self.service.stopService()
        # Both ports can be taken again at once.
        PortAllocator().claim(port - 1).release()

    async def test_a_slow_guest_slows_the_host(self) -> None:
        guest, host = await self.joined()
        transport: Any = guest.transport
        transport.pauseProducing()
        chunk = bytes(65536)
        sent = 0

        class Source:
            def resumeProducing(self) -> None:
                nonlocal sent
                host.write(chunk)
                sent += len(chunk)

            def stopProducing(self) -> None:
                pass

        feeder: Any = host.transport
        feeder.registerProducer(Source(), False)
        stalled = -1
        while stalled != sent:
            stalled = sent
            await deferLater(reactor, 0.1)
        # kernel buffers and one buffer of Twisted's for each transport on the way
        self.assertLess(sent, 16 << 20)
        feeder.unregisterProducer()
        transport.resumeProducing()
        await guest.take(sent)


class PortTests(TestCase):
    def make(self, wanted: int | None = None) -> AdbPipeService:
        service = AdbPipeService(
            reactor, PortAllocator(), AdbServerLink(reactor, AdbServerAddress(port=1)), wanted=wanted
        )
        self.addCleanup(service.stopService)
        return service

    async def test_instances_never_share_and_ports_are_odd(self) -> None:
        services = [self.make() for _ in range(3)]
        for service in services:
            service.startService()
        ports = [service.port for service in services]
        self.assertEqual(len(set(ports)), 3)
        self.assertTrue(all(port % 2 and port >= 5555 for port in ports))
        self.assertEqual(services[0].serial, f"emulator-{ports[0] - 1}")

    async def test_a_wanted_pair_is_taken_or_refused(self) -> None:
        first = self.make(5600)
        first.startService()
        self.assertEqual(first.port, 5601)
        second = self.make(5600)
        with self.assertRaises(NetworkError):
            second.startService()

    async def test_an_odd_port_that_is_stolen_moves_the_pair(self) -> None:
        service = self.make()
        service.startService()
        stolen = service.port
        thief: Any = reactor.listenTCP(stolen, ServerFactory(), interface="127.0.0.1")
        self.addCleanup(thief.stopListening)
        guest = service.open("", UNIXAddress("x"))
        assert guest is not None
        transport = StringTransport()
        guest.makeConnection(transport)
        guest.dataReceived(b"accept")
        self.assertNotEqual(service.port, stolen)
        self.assertTrue(service.describe()["listening"])
        self.assertEqual(transport.value(), b"")
        guest.connectionLost(Failure(connectionDone.value))

    async def test_nobody_home_on_the_console_port(self) -> None:
        service = self.make()
        service.startService()
        end: End = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", service.port - 1), End())
        self.assertEqual(await end.end(), b"")
