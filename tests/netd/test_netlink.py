"""rtnetlink requests and the manager's edges: refusals, silence, closing, messages that are not the kernel's."""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from anbox_tw.errors import HostLacks, TimedOut
from anbox_tw.netd import manager as manager_module
from anbox_tw.netd import netlink
from anbox_tw.netd._events import Broadcast, UEvent
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.manager import LoggedPacket, NetlinkManager
from anbox_tw.netd.namespace import NamespacedReactor, NetworkNamespace
from anbox_tw.netd.netlink import Datagram, NetlinkSocket, Overrun, RouteClient, messages_of
from tests.netd.test_children import error_of


def message(kind: int, body: bytes = b"", flags: int = 0, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


class WalkTests(TestCase):
    def test_messages_of_a_datagram(self) -> None:
        data = message(16, b"abc") + b"\0" + message(3)
        self.assertEqual([each[:3] for each in messages_of(data)], [(0, 19, 16), (20, 16, 3)])
        for wrong in (
            b"",
            b"\0" * 20,
            struct.pack("=IHHII", 8, 0, 0, 0, 0),
            message(16)[:-1],
            struct.pack("=IHHII", 999, 0, 0, 0, 0),
        ):
            self.assertEqual(list(messages_of(wrong)), [])


class RequestTests(TestCase):
    def setUp(self) -> None:
        self.client = RouteClient(reactor)
        self.addCleanup(self.client.close)

    async def test_a_refusal_in_the_kernels_words(self) -> None:
        build = self.client.build
        error = await error_of(
            self.client.get(18, build("link", {"family": 0}, [("IFLA_IFNAME", "nope0")]), "a link")
        )
        self.assertEqual((error.errno, error.what), (errno.ENODEV, "a link"))
        wrong = build("link", {"family": 0, "index": 1}, [("IFLA_MTU", "many")])
        self.assertEqual((await error_of(self.client.change(16, wrong, "x"))).errno, errno.EINVAL)

    async def test_silence_and_closing(self) -> None:
        self.patch(netlink, "REQUEST_TIMEOUT_S", 0.05)
        self.patch(self.client._socket, "send", lambda data: None)
        build = self.client.build
        self.assertIsInstance(await error_of(self.client.dump(18, build("link", {}), "links")), TimedOut)
        waiting = Deferred.fromCoroutine(self.client.dump(18, build("link", {}), "links"))
        self.client.close()
        self.assertEqual(self.failureResultOf(waiting, KernelRefused).value.errno, errno.ESHUTDOWN)

    async def test_a_socket_that_does_not_take_it(self) -> None:
        def refuse(data: bytes) -> None:
            raise OSError(errno.ENOBUFS, "full")

        self.patch(self.client._socket, "send", refuse)
        error = await error_of(self.client.dump(18, self.client.build("link", {}), "links"))
        self.assertEqual(error.errno, errno.ENOBUFS)

    async def test_answers(self) -> None:
        """What the kernel may say, without the kernel."""
        said: list[Any] = []
        self.patch(self.client._socket, "send", lambda data: None)
        self.patch(self.client._socket, "receive", lambda: said.pop(0)() if said else None)

        def begin() -> Deferred[list[Any]]:
            return Deferred.fromCoroutine(self.client.dump(18, self.client.build("link", {}), "links"))

        def tell(data: bytes, port: int = 0) -> None:
            said.append(lambda: Datagram(data, 0, port, 0))
            self.client._readable()

        work = begin()
        number = self.client._sequence
        tell(message(3, bytes(4), sequence=number), port=99)  # not the kernel
        tell(message(3, bytes(4), sequence=number + 5))  # not asked
        tell(message(1, sequence=number))  # NOOP
        self.assertNoResult(work)
        detail = b"no way\0\0"
        body = (
            struct.pack("=i", -1)
            + struct.pack("=IHHII", 16, 18, 0, number, 0)
            + struct.pack("=HH", 4 + len(detail), 1)
            + detail
        )
        tell(message(2, body, 0x300, number))
        self.assertIn("no way", str(self.failureResultOf(work, KernelRefused).value))
        # a dump that changed while it was made is made again
        work = begin()
        tell(message(3, bytes(4), netlink.NLM_F_DUMP_INTR, self.client._sequence))
        self.assertNoResult(work)
        tell(message(3, bytes(4), 2, self.client._sequence))
        self.assertEqual(self.successResultOf(work), [])
        # answers lost
        work = begin()

        def lost() -> Any:
            raise Overrun

        said.append(lost)
        self.client._readable()
        self.assertEqual(self.failureResultOf(work, KernelRefused).value.errno, errno.ENOBUFS)
        # one that pyroute2 cannot read is left out
        work = begin()
        tell(message(16, b"x", 2, self.client._sequence))
        tell(message(3, bytes(4), 2, self.client._sequence))
        self.successResultOf(work)
        self.flushLoggedErrors()

    def test_a_closed_socket(self) -> None:
        sock = NetlinkSocket(reactor, 0, namespace=NetworkNamespace(), on_readable=lambda: None)
        sock.start()
        sock.connectionLost(None)
        sock.close()
        self.assertEqual(sock.fileno(), -1)
        self.assertIsNone(sock.receive())
        self.assertRaises(OSError, sock.send, b"")
        self.assertEqual(sock.logPrefix(), "netlink")
        # no such family
        self.assertRaises(
            OSError, NetlinkSocket, reactor, 31, namespace=NetworkNamespace(), on_readable=print
        )


class OrderTests(TestCase):
    """How uevents and rtnetlink's events are told in one order."""

    def setUp(self) -> None:
        self.told: list[str] = []
        self.manager = NetlinkManager(reactor, lambda line: self.told.append(line.text))

    def uevent(self, action: str, index: int) -> UEvent:
        return UEvent(action, "/x", "net", 0, {"INTERFACE": f"i{index}", "IFINDEX": str(index)})

    def note(self, index: int, text: str | None, gone: bool = False) -> Any:
        return manager_module._Noted(index, Broadcast(600, text) if text else None, gone)

    def test_added_first_removed_last(self) -> None:
        self.manager._tell_in_order(
            [self.uevent("add", 5), self.uevent("remove", 5), self.uevent("add", 6)],
            [self.note(5, "up 5"), self.note(6, "up 6"), self.note(5, "down 5"), self.note(5, None, True)],
        )
        # 6 was added after 5 was removed: the kernel's order of uevents stands above what is said of one interface
        self.assertEqual(self.told[0], "Iface added i5")
        self.assertLess(self.told.index("Iface added i6"), self.told.index("up 6"))
        self.assertEqual(
            sorted(self.told),
            sorted(["Iface added i5", "up 5", "Iface removed i5", "Iface added i6", "up 6", "down 5"]),
        )

    def test_a_listener_that_fails_does_not_stop_the_others(self) -> None:
        def broken(line: Broadcast) -> None:
            raise ZeroDivisionError

        self.manager._on_event = broken
        self.manager._tell(Broadcast(600, "x"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_the_state_is_read_anew_when_the_full_queue_is_dry(self) -> None:
        # until then the kernel drops all that is new without another word (NETLINK_S_CONGESTED)
        clock = Clock()
        manager = NetlinkManager(clock, lambda line: None)
        queue: list[Any] = [Overrun(), *[Datagram(message(1), 0, 0, 1)] * 3, None]

        class Source:
            def receive(self) -> Any:
                found = queue.pop(0) if queue else None
                if isinstance(found, Overrun):
                    raise found
                return found

        manager._route_events = Source()  # type: ignore[assignment]
        self.patch(manager_module, "MAX_DATAGRAMS_PER_TURN", 1)
        self.patch(manager_module, "DRAIN_ROUNDS", 1)
        while queue:
            self.assertEqual(clock.getDelayedCalls(), [])
            manager._drain()
        self.assertEqual(len(clock.getDelayedCalls()), 1)
        # that it was lost is said once
        manager._resync_timer.cancel()
        manager._drain()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_a_forged_message_is_dropped(self) -> None:
        for forged in (Datagram(b"", 1000, 0, 1), Datagram(b"", 0, 4711, 1)):
            self.assertFalse(self.manager._from_kernel(forged, multicast=True))
        self.assertFalse(self.manager._from_kernel(Datagram(b"", 0, 0, 0), multicast=True))
        self.assertTrue(self.manager._from_kernel(Datagram(b"", 0, 0, 0), multicast=False))

    def test_a_packet_goes_to_whoever_wants_it(self) -> None:
        seen: list[LoggedPacket] = []
        routes: Any = RouteClient(reactor)
        self.addCleanup(routes.close)
        manager = NetlinkManager(reactor, lambda line: None, routes=routes, on_packet=seen.append)

        def attribute(kind: int, data: bytes) -> bytes:
            return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)

        body = (
            struct.pack(">BBH", 2, 0, 20481)
            + attribute(10, b"quota:1:x\0")
            + attribute(11, struct.pack(">I", 10001))
            + attribute(9, b"data")
            + attribute(4, struct.pack(">I", 1))
        )
        manager._packet(message(0x400, body), 0)
        self.assertEqual(seen, [LoggedPacket(20481, "quota:1:x", "lo", 10001, b"data")])
        manager._on_packet = lambda packet: 1 / 0
        manager._packet(message(0x400, body), 0)
        manager._packet(b"\0" * 4, 0)
        self.assertEqual(len(self.flushLoggedErrors()), 2)


class NamespaceTests(TestCase):
    def test_our_own(self) -> None:
        own = NetworkNamespace()
        self.assertEqual(own.interface_name(own.interface_index("lo")), "lo")
        self.assertIsNone(own.interface_name(99999))
        self.assertRaises(OSError, own.interface_index, "nope0")
        own.close()

    def test_one_that_is_gone(self) -> None:
        there = NetworkNamespace(f"/proc/{os.getpid()}/ns/net")
        there.close()
        there.close()

        def enter() -> None:
            with there.entered():
                raise AssertionError("never")

        self.assertRaises(HostLacks, enter)

    def test_a_reactor_of_a_namespace(self) -> None:
        there = NamespacedReactor(reactor, NetworkNamespace())
        self.assertIs(there.callLater.__func__, type(reactor).callLater)
        from twisted.internet.protocol import Factory

        port = there.listenTCP(0, Factory(), interface="127.0.0.1")
        self.assertGreater(port.getHost().port, 0)
        return port.stopListening()  # type: ignore[no-any-return]
