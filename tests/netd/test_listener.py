"""The server side of libsysutils: dispatch, order, locks, slow readers, broadcasts."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.errors import NetworkError
from anbox_tw.interfaces import IConnectionCreator, IFrameworkCommand, IMessageSender
from anbox_tw.netd import listener as module
from anbox_tw.netd.errors import CommandFailed, KernelRefused
from anbox_tw.netd.listener import FairLock, FrameworkCommand, Request
from tests.netd.helpers import joined, new_listener, said


class ListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.listener, self.clock = new_listener()
        self.calls: list[list[str]] = []
        self.waits: list[Deferred[None]] = []

        def echo(request: Request) -> None:
            self.calls.append(request.arguments)
            request.reply(200, " ".join(request.arguments[1:]) or "ok")

        async def wait(request: Request) -> None:
            waiter: Deferred[None] = Deferred()
            self.waits.append(waiter)
            await waiter
            request.reply(200, f"waited {request.arguments[1]}")

        def fail(request: Request) -> None:
            how = request.arguments[1]
            if how == "known":
                raise CommandFailed(501, "Invalid thing")
            if how == "errno":
                raise CommandFailed(400, "Could not", 19)
            if how == "kernel":
                raise KernelRefused(16, "adding a link")
            raise ZeroDivisionError("a defect")

        self.listener.register(FrameworkCommand("echo", echo))
        self.listener.register(FrameworkCommand("wait", wait))
        self.listener.register(FrameworkCommand("free", wait, lock_name=""))
        self.listener.register(FrameworkCommand("fail", fail))
        self.client, self.transport = joined(self.listener, uid=1000)

    def tell(self, data: bytes) -> list[str]:
        self.client.dataReceived(data)
        return said(self.transport)

    def test_provides_its_interfaces(self) -> None:
        verifyObject(IConnectionCreator, self.listener)
        verifyObject(IFrameworkCommand, FrameworkCommand("x"))
        verifyObject(IMessageSender, self.client)

    def test_a_command_is_answered_with_its_number(self) -> None:
        self.assertEqual(self.tell(b"7 echo a\0"), ["200 7 a"])

    def test_a_command_in_pieces_is_put_together(self) -> None:
        self.assertEqual(self.tell(b"7 ec"), [])
        self.assertEqual(self.tell(b"ho a b\x008 echo c"), ["200 7 a b"])
        self.assertEqual(self.tell(b"\0"), ["200 8 c"])

    def test_what_is_not_understood(self) -> None:
        self.assertEqual(self.tell(b"echo\0"), ["200 0 ok"])
        self.assertEqual(self.tell(b"5 nonsense\0"), ["500 5 Command not recognized"])
        self.assertEqual(self.tell(b"what\0"), ["500 5 Command not recognized"])
        self.assertEqual(self.tell(b"x echo\0"), ["500 5 Invalid sequence number"])
        self.assertEqual(self.tell(b'6 echo "a\0'), ["500 6 Unclosed quotes error"])
        self.assertEqual(self.tell(b"9 echo " + b"y" * 5000 + b"\0"), ["500 9 Command too large for buffer"])

    def test_without_sequence_numbers(self) -> None:
        listener, _ = new_listener(with_sequence=False)
        listener.register(FrameworkCommand("echo", lambda request: request.reply(222, "x")))
        client, transport = joined(listener)
        client.dataReceived(b"echo\0nope\0")
        self.assertEqual(said(transport), ["222 x", "500 Command not recognized"])

    def test_failures_become_replies(self) -> None:
        self.assertEqual(self.tell(b"1 fail known\0"), ["501 1 Invalid thing"])
        self.assertEqual(self.tell(b"2 fail errno\0"), ["400 2 Could not (No such device)"])
        self.assertEqual(self.tell(b"3 fail kernel\0"), ["400 3 Operation failed (Device or resource busy)"])
        self.assertEqual(self.tell(b"4 fail defect\0"), ["400 4 Operation failed (Input/output error)"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, KernelRefused)), 2)

    def test_binary_replies(self) -> None:
        def run(request: Request) -> None:
            request.send_code(222)
            request.send_binary(222, b"ab")
            request.send_raw(b"z")

        self.listener.register(FrameworkCommand("bin", run))
        self.client.dataReceived(b"1 bin\0")
        self.assertEqual(self.transport.value(), b"222\x00222\x00\x00\x00\x00\x02abz")

    def test_commands_of_one_client_are_done_in_order(self) -> None:
        self.assertEqual(self.tell(b"1 wait a\x002 echo b\x003 free c\0"), [])
        self.waits.pop().callback(None)
        self.assertEqual(said(self.transport), ["200 1 waited a", "200 2 b"])
        self.waits.pop().callback(None)
        self.assertEqual(said(self.transport), ["200 3 waited c"])

    def test_without_a_lock_they_overlap(self) -> None:
        self.assertEqual(self.tell(b"1 free a\x002 echo b\0"), ["200 2 b"])
        self.waits.pop().callback(None)
        self.assertEqual(said(self.transport), ["200 1 waited a"])

    def test_one_lock_over_all_clients(self) -> None:
        _, second = other = joined(self.listener)
        self.tell(b"1 wait a\0")
        other[0].dataReceived(b"1 echo b\0")
        self.assertEqual(said(second), [])
        self.waits.pop().callback(None)
        self.clock.advance(0)
        self.assertEqual(said(second), ["200 1 b"])

    def test_a_thousand_clients_behind_one_lock_do_not_nest(self) -> None:
        self.tell(b"1 wait a\0")
        others = [joined(self.listener) for _ in range(1000)]
        for client, _ in others:
            client.dataReceived(b"4 echo b\0")
        self.waits.pop().callback(None)
        for _ in range(1001):
            self.clock.advance(0)
        self.assertEqual([said(transport) for _, transport in others], [["200 4 b"]] * 1000)

    def test_a_burst_in_one_read_does_not_nest(self) -> None:
        self.assertEqual(self.tell(b"1 echo b\0" * 7000), ["200 1 b"] * 7000)

    def test_reading_stops_while_commands_wait(self) -> None:
        self.tell(b"1 wait a\0" + b"2 echo b\0" * module.MAX_PENDING_COMMANDS)
        self.assertEqual(self.transport.producerState, "paused")
        self.waits.pop().callback(None)
        self.assertEqual(self.transport.producerState, "producing")

    def test_broadcast_reaches_everybody_without_a_number(self) -> None:
        other = joined(self.listener)
        self.listener.broadcast(600, "Iface added v0")
        self.assertEqual(said(self.transport) + said(other[1]), ["600 Iface added v0"] * 2)
        other[0].connectionLost()
        self.listener.broadcast(600, "Iface removed v0")
        self.assertEqual(said(other[1]), [])

    def test_a_client_that_does_not_read_is_dropped_and_the_others_are_served(self) -> None:
        stuck, stuck_transport = joined(self.listener)
        stuck.pauseProducing()
        text = "x" * 1000
        for _ in range(module.MAX_UNSENT_BYTES // 1000 + 2):
            self.listener.broadcast(600, text)
        self.assertTrue(stuck_transport.aborted)
        self.assertEqual(len(said(self.transport)), module.MAX_UNSENT_BYTES // 1000 + 2)

    def test_a_slow_client_gets_all_in_order(self) -> None:
        self.client.pauseProducing()
        self.listener.broadcast(600, "a")
        self.assertEqual(self.tell(b"1 echo b\0"), [])
        self.client.resumeProducing()
        self.assertEqual(said(self.transport), ["600 a", "200 1 b"])
        self.client.pauseProducing()
        self.listener.broadcast(600, "c")
        self.client.stopProducing()
        self.client.resumeProducing()
        self.assertEqual(said(self.transport), [])

    def test_close_waits_for_the_running_command(self) -> None:
        self.tell(b"1 wait a\x002 echo b\0")
        self.client.close("stopping")
        self.assertFalse(self.transport.disconnecting)
        self.waits.pop().callback(None)
        self.assertEqual(said(self.transport), ["200 1 waited a"])
        self.assertTrue(self.transport.disconnecting)

    def test_close_sends_what_waits(self) -> None:
        self.client.pauseProducing()
        self.listener.broadcast(600, "a")
        self.client.close("stopping")
        self.assertEqual(said(self.transport), ["600 a"])
        self.client.connectionLost()
        self.client.close("again")
        self.client.write(b"late")
        self.assertEqual(said(self.transport), [])

    def test_close_of_a_client_that_is_far_behind(self) -> None:
        # as Twisted's own: it pauses its producer inside a write that fills it
        write = self.transport.write

        def full(data: bytes) -> None:
            write(data)
            if self.transport.producer is not None:
                self.transport.producer.pauseProducing()

        self.client.pauseProducing()
        self.listener.broadcast(600, "a")
        self.listener.broadcast(600, "b")
        self.transport.write = full  # type: ignore[method-assign]
        self.client.close("stopping")
        self.assertEqual(said(self.transport), ["600 a", "600 b"])
        self.assertTrue(self.transport.disconnecting)

    def test_work_goes_on_when_its_client_is_gone_and_can_be_cancelled(self) -> None:
        self.tell(b"1 wait a\0")
        idle = Deferred.fromCoroutine(self.listener.when_idle())
        self.client.connectionLost()
        self.assertNoResult(idle)
        _, other = second = joined(self.listener)
        second[0].dataReceived(b"2 echo x\0")
        self.listener.cancel_work()
        self.clock.advance(0)
        self.successResultOf(idle)
        self.assertEqual(said(other), ["400 2 Operation cancelled"])

    def test_a_peer_without_credentials_is_nobody(self) -> None:
        def refuse(transport: Any) -> Any:
            raise NetworkError("no UNIX socket")

        self.patch(module, "peer_credentials", refuse)
        client, _ = joined(self.listener)
        self.assertEqual(client.credentials.uid, -1)
        self.assertIn("uid -1", repr(client))

    def test_the_credentials_reach_the_command(self) -> None:
        seen: list[int] = []
        self.listener.register(FrameworkCommand("who", lambda request: seen.append(request.credentials.uid)))
        self.tell(b"1 who\0")
        self.assertEqual(seen, [1000])

    def test_a_command_needs_a_handler(self) -> None:
        self.listener.register(FrameworkCommand("none"))
        self.assertEqual(self.tell(b"1 none\0"), ["400 1 Operation failed (Input/output error)"])
        self.assertEqual(len(self.flushLoggedErrors(NotImplementedError)), 1)


class FairLockTests(SynchronousTestCase):
    def test_a_waiter_that_gave_up_is_passed_over(self) -> None:
        from twisted.internet.defer import CancelledError
        from twisted.internet.task import Clock

        clock = Clock()
        lock = FairLock(clock)
        self.successResultOf(lock.acquire())
        first, second = lock.acquire(), lock.acquire()
        lock.release()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        clock.advance(0)
        self.successResultOf(second)
        third = lock.acquire()
        lock.release()
        third.cancel()
        self.failureResultOf(third, CancelledError)
        clock.advance(0)
        self.successResultOf(lock.acquire())
