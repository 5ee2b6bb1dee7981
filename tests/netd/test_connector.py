"""The framework's client: over memory with a fake clock, and over a real socket with our own listener."""

from __future__ import annotations

import os
import shutil
import tempfile

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.errors import NotRunning, TimedOut
from anbox_tw.netd import connector as module
from anbox_tw.netd._framing import Message
from anbox_tw.netd.connector import NativeDaemonConnector
from anbox_tw.netd.errors import DaemonFailed, RequestRefused
from anbox_tw.netd.listener import FrameworkCommand, FrameworkListener
from anbox_tw.network import UnixListener


class MemoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.events: list[Message] = []
        self.connects = 0

        def connected() -> None:
            self.connects += 1

        self.connector = NativeDaemonConnector(
            self.reactor, "/netd", on_event=self.events.append, on_connected=connected
        )
        self.connector.startService()
        self.accept()

    def accept(self) -> None:
        factory = self.reactor.unixClients[-1][1]
        self.link = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.link.makeConnection(self.transport)

    def lose(self, why: Exception) -> None:
        self.link.connectionLost(Failure(why))

    def sent(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def test_numbers_begin_at_one_and_replies_find_their_command(self) -> None:
        first = self.connector.execute("interface", "getcfg", "eth0")
        second = self.connector.execute("ipfwd", "status")
        self.assertEqual(self.sent(), b"1 interface getcfg eth0\x002 ipfwd status\0")
        self.link.dataReceived(b"211 2 Forwarding disabled\x00213 1 00:00:00:00:00:00 0.0.0.0 0 down\0")
        self.assertEqual(self.successResultOf(second).text, "Forwarding disabled")
        self.assertEqual(self.successResultOf(first).code, 213)

    def test_a_list_ends_with_the_first_reply_that_is_not_1xx(self) -> None:
        done = self.connector.execute_for_list("interface", "list")
        self.link.dataReceived(b"110 1 lo\x00110 1 eth0\0")
        self.assertNoResult(done)
        self.link.dataReceived(b"200 1 Interface list completed\0")
        self.assertEqual(
            [m.text for m in self.successResultOf(done)], ["lo", "eth0", "Interface list completed"]
        )

    def test_one_reply_is_expected(self) -> None:
        done = self.connector.execute("interface", "list")
        self.link.dataReceived(b"110 1 lo\x00200 1 done\0")
        self.failureResultOf(done, DaemonFailed)

    def test_4xx_and_5xx_are_told_apart(self) -> None:
        failed, refused = self.connector.execute("a"), self.connector.execute("b")
        self.link.dataReceived(b"400 1 no\x00501 2 bad\0")
        self.assertEqual(self.failureResultOf(failed, DaemonFailed).value.reply_code, 400)
        self.assertEqual(self.failureResultOf(refused, RequestRefused).value.reply_code, 501)

    def test_each_1xx_starts_the_time_anew(self) -> None:
        done = self.connector.execute_for_list("interface", "list", timeout=10)
        self.reactor.advance(9)
        self.link.dataReceived(b"110 1 lo\0")
        self.reactor.advance(9)
        self.assertNoResult(done)
        self.reactor.advance(2)
        self.failureResultOf(done, TimedOut)
        self.link.dataReceived(b"200 1 late\0")
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_cancel_forgets(self) -> None:
        done = self.connector.execute("a")
        done.addErrback(lambda _: None)
        done.cancel()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_events_go_to_the_callback_whatever_it_does(self) -> None:
        def broken(message: Message) -> None:
            self.events.append(message)
            raise ZeroDivisionError

        self.connector._on_event = broken
        self.link.dataReceived(b"600 Iface added v0\x00nonsense\x00600 Iface removed v0\0")
        self.assertEqual(
            [m.arguments for m in self.events], [["Iface", "added", "v0"], ["Iface", "removed", "v0"]]
        )
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_reconnects_at_once_after_an_orderly_end_and_later_after_an_error(self) -> None:
        waiting = self.connector.execute("a")
        self.lose(ConnectionDone())
        self.failureResultOf(waiting, NotRunning)
        self.assertRaises(NotRunning, self.connector.execute, "a")
        self.reactor.advance(module.QUICK_RECONNECT_S)
        self.accept()
        self.assertEqual(self.connects, 2)
        self.connector.execute("b").addErrback(lambda _: None)
        self.assertEqual(self.sent(), b"2 b\0")
        self.lose(ConnectionLost())
        tries = len(self.reactor.unixClients)
        self.reactor.advance(module.RECONNECT_DELAY_S - 0.1)
        self.assertEqual(len(self.reactor.unixClients), tries)
        self.reactor.advance(0.1)
        self.assertEqual(len(self.reactor.unixClients), tries + 1)
        waiter = self.connector.when_connected(timeout=3)
        self.reactor.unixClients[-1][1].clientConnectionFailed(None, Failure(OSError("refused")))
        self.reactor.advance(3)
        self.assertIn("refused", str(self.failureResultOf(waiter, TimedOut).value))
        self.successResultOf(self.connector.stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_ends_everything(self) -> None:
        waiting = self.connector.execute("a")
        stopped = self.connector.stopService()
        self.failureResultOf(waiting, NotRunning)
        self.assertNoResult(stopped)
        self.lose(ConnectionDone())
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_while_connecting(self) -> None:
        connector = NativeDaemonConnector(self.reactor, "/other")
        connector.startService()
        waiter = connector.when_connected()
        self.successResultOf(connector.stopService())
        self.failureResultOf(waiter, NotRunning)

    def test_limits(self) -> None:
        self.patch(module, "MAX_PENDING", 2)
        self.patch(module, "MAX_REPLIES", 3)
        many = self.connector.execute("a")
        self.connector.execute("b").addErrback(lambda _: None)
        self.assertRaises(DaemonFailed, self.connector.execute, "c")
        self.link.dataReceived(b"110 1 x\0" * 3)
        self.failureResultOf(many, DaemonFailed)
        self.assertRaises(ValueError, self.connector.execute, "two words")

    def test_a_failing_on_connected_does_not_hurt(self) -> None:
        def broken() -> None:
            raise ZeroDivisionError

        self.connector._on_connected = broken
        self.lose(ConnectionDone())
        self.reactor.advance(1)
        self.accept()
        self.assertTrue(self.connector.connected)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_test_names_are_abstract(self) -> None:
        self.assertEqual(module.abstract_or_path("__test__netd"), "\0__test__netd")
        self.assertEqual(module.abstract_or_path("/dev/socket/netd"), "/dev/socket/netd")


class SocketTests(TestCase):
    """Both of our ends over a real UNIX socket."""

    async def start(self) -> None:
        directory = tempfile.mkdtemp(prefix="anbox-netd-")
        self.addCleanup(shutil.rmtree, directory)
        self.path = os.path.join(directory, "netd")
        self.listener = FrameworkListener("netd", clock=reactor)
        self.listener.register(FrameworkCommand("echo", lambda r: r.reply(200, r.arguments[1])))
        self.service = UnixListener(reactor, self.path, self.listener)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    async def test_five_hundred_clients(self) -> None:
        await self.start()
        heard: list[Message] = []
        all_heard: Deferred[None] = Deferred()

        def event(message: Message) -> None:
            heard.append(message)
            if len(heard) == 500:
                all_heard.callback(None)

        connectors = [
            NativeDaemonConnector(reactor, self.path, on_event=event, reconnect_delay=0.05)
            for _ in range(500)
        ]
        for connector in connectors:
            connector.startService()
            self.addCleanup(connector.stopService)
        for connector in connectors:
            await connector.when_connected()
        waits = [connector.execute("echo", f"number {n}") for n, connector in enumerate(connectors)]
        for n, wait in enumerate(waits):
            self.assertEqual((await wait).text, f"number {n}")
        self.listener.broadcast(600, "Iface added v0")
        await all_heard.addTimeout(20, reactor)
