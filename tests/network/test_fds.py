"""Passing file descriptors: never inheritable, limited, and closed on every path."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from typing import Any
from unittest import mock

from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.errors import NetworkError, PeerError
from anbox_tw.network import DelegateCreator, FdReceiver, UnixListener, close_fds, receive_fds, send_fds
from tests.network.helpers import NetworkTestCase, Recorder, wait_until


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Receiver(FdReceiver, Recorder):
    pass


class Bare(FdReceiver, Protocol):
    max_pending_fds = 2


class SocketTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.before = open_fds()
        self.near, self.far = socket.socketpair()

    def tearDown(self) -> None:
        self.near.close()
        self.far.close()
        self.assertEqual(open_fds(), self.before)

    def test_round_trip(self) -> None:
        read, write = os.pipe()
        send_fds(self.near, b"two", [read, write])
        close_fds([read, write])
        data, fds = receive_fds(self.far)
        self.assertEqual((data, len(fds)), (b"two", 2))
        self.assertEqual([os.get_inheritable(fd) for fd in fds], [False, False])
        os.write(fds[1], b"through")
        self.assertEqual(os.read(fds[0], 10), b"through")
        close_fds(fds)

    def test_plain_data_and_end(self) -> None:
        self.near.send(b"x")
        self.assertEqual(receive_fds(self.far), (b"x", []))
        self.near.close()
        self.assertEqual(receive_fds(self.far), (b"", []))

    def test_more_than_wanted_closes_all(self) -> None:
        for count in (2, 3, 16):
            send_fds(self.near, b"x" * count, [0] * count)
            before = open_fds()
            self.assertRaises(PeerError, receive_fds, self.far, 100, 1)
            self.assertEqual(open_fds(), before)
            self.assertEqual(receive_fds(self.far, 100, 16)[1] if count == 0 else [], [])
            self.near.close()
            self.far.close()
            self.near, self.far = socket.socketpair()

    def test_bad_arguments(self) -> None:
        self.assertRaises(NetworkError, send_fds, self.near, b"x" * 20, [0] * 17)
        self.assertRaises(NetworkError, send_fds, self.near, b"", [])
        self.assertRaises(NetworkError, send_fds, self.near, b"x", [0, 1])
        self.assertRaises(NetworkError, send_fds, StringTransport(), b"x", [0])

    def test_closed_socket(self) -> None:
        self.far.close()
        self.assertRaises(NetworkError, send_fds, self.near, b"x", [0])

    def test_long_data_after_a_partial_send(self) -> None:
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with mock.patch.object(socket, "send_fds", side_effect=lambda s, b, f: s.sendmsg([b[0][:1]])):
            send_fds(self.near, b"abc", [0])
        self.assertEqual(self.far.recv(10), b"abc")

    def test_closing_twice(self) -> None:
        fd = os.dup(0)
        close_fds([fd, fd])


class TransportTests(NetworkTestCase):
    async def start_pair(self, kind: type = Receiver) -> tuple[Any, Any]:
        made: list[Any] = []

        def build(address: object) -> Any:
            made.append(kind())
            return made[-1]

        self.start(UnixListener(self.reactor, self.path(), DelegateCreator(build)))
        client: Any = await connectProtocol(UNIXClientEndpoint(self.reactor, self.path()), Recorder())
        await wait_until(lambda: made)
        self.addCleanup(lambda: client.transport and client.transport.abortConnection())
        return client, made[0]

    async def test_queued_and_given_back(self) -> None:
        client, server = await self.start_pair()
        self.assertTrue(verifyObject(IFileDescriptorReceiver, server))
        before = open_fds()
        for number in range(20):
            with open(self.path(f"file{number}"), "w") as file:
                client.transport.write(b"data before ")
                send_fds(client.transport, b"fd", [file.fileno()])
        await server.when_received(14 * 20)
        fds = server.take_fds(20)
        self.assertEqual(
            [os.readlink(f"/proc/self/fd/{fd}") for fd in fds],
            [self.path(f"file{number}") for number in range(20)],
        )
        self.assertEqual({os.get_inheritable(fd) for fd in fds}, {False})
        close_fds(fds)
        self.assertEqual(server.pending_fds, 0)
        self.assertEqual(open_fds(), before)

    async def test_closed_with_the_connection(self) -> None:
        client, server = await self.start_pair()
        before = open_fds()
        send_fds(client.transport, b"xx", [0, 1])
        await server.when_received(2)
        self.assertEqual(server.pending_fds, 2)
        self.assertRaises(PeerError, server.take_fds, 3)
        client.transport.abortConnection()
        await server.when_ended()
        server.transport and server.transport.abortConnection()
        await server.when_lost()
        self.assertLess(open_fds(), before)
        self.assertEqual(server.pending_fds, 0)

    async def test_never_sent_ones_are_closed_too(self) -> None:
        client, _ = await self.start_pair()

        def copies() -> int:
            gc.collect()
            found = 0
            for fd in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    found += os.readlink(f"/proc/self/fd/{fd}") == self.path("file")
            return found

        with open(self.path("file"), "w") as file:
            send_fds(client.transport, b"x", [file.fileno()])
        self.assertEqual(copies(), 1)
        client.transport.abortConnection()
        await client.when_lost()
        client.transport = None
        await wait_until(lambda: copies() == 0)

    async def test_bad_descriptor(self) -> None:
        client, _ = await self.start_pair()
        before = open_fds()
        self.assertRaises(NetworkError, send_fds, client.transport, b"xx", [0, 9999])
        self.assertEqual(open_fds(), before)

    async def test_flood_closes_the_connection(self) -> None:
        client, server = await self.start_pair(Bare)
        for _ in range(4):
            send_fds(client.transport, b"x", [0])
        await client.when_ended()
        self.assertEqual(server.pending_fds, 0)

    async def test_who_takes_none_gets_none(self) -> None:
        """A protocol without the mix-in: Twisted closes what comes, and nothing leaks."""
        client, server = await self.start_pair(Recorder)
        before = open_fds()
        send_fds(client.transport, b"x", [0])
        await server.when_received(1)
        self.assertEqual(open_fds(), before)
