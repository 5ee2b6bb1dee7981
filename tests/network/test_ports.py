"""Claiming ports without a race, and finding who holds one."""

from __future__ import annotations

import os
import socket
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.errors import NetworkError
from anbox_tw.network import PortAllocator, free_port, holder_of_port


class PortTests(SynchronousTestCase):
    def allocator(self) -> PortAllocator:
        return PortAllocator(43000, 43006)

    def test_free_port(self) -> None:
        for interface in ("127.0.0.1", "::1"):
            port = free_port(interface)
            with socket.create_server(
                (interface, port), family=socket.AF_INET6 if ":" in interface else socket.AF_INET
            ):
                pass

    def test_claims_do_not_meet(self) -> None:
        allocator = self.allocator()
        claims = [allocator.claim() for _ in range(4)]
        for claim in claims:
            self.addCleanup(claim.release)
        self.assertEqual([claim.first for claim in claims], [43000, 43002, 43004, 43006])
        error = self.assertRaises(NetworkError, allocator.claim)
        self.assertIn("43000 to 43007", error.cause)
        self.assertRaises(NetworkError, allocator.claim, 43002)
        claims[1].release()
        again = allocator.claim()
        self.addCleanup(again.release)
        self.assertEqual(again.first, 43002)

    def test_a_group_is_free_as_a_whole(self) -> None:
        with socket.create_server(("127.0.0.1", 43001)):
            claim = self.allocator().claim()
            self.addCleanup(claim.release)
            self.assertEqual(claim.first, 43002)

    def test_lingering_connections_are_no_obstacle(self) -> None:
        with socket.create_server(("127.0.0.1", 43000)) as server:
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
            # who closes first keeps the port in TIME_WAIT
            accepted.close()
            client.recv(1)
            client.close()
        claim = self.allocator().claim()
        self.addCleanup(claim.release)
        self.assertEqual(claim.first, 43000)

    def test_taken_sockets_are_the_callers(self) -> None:
        claim = self.allocator().claim(43004)
        with claim.take(1) as sock:
            self.assertEqual(sock.getsockname()[1], 43005)
            self.assertFalse(os.get_inheritable(sock.fileno()))
            self.assertRaises(NetworkError, claim.take, 1)
            claim.release()
            claim.release()
            socket.create_connection(("127.0.0.1", 43005)).close()
            self.assertRaises(NetworkError, claim.take, 0)

    def test_address_that_is_not_here(self) -> None:
        error = self.assertRaises(NetworkError, PortAllocator(interface="192.0.2.1").claim)
        self.assertIn("192.0.2.1", error.cause)
        self.assertRaises(NetworkError, PortAllocator(70000, 70000).claim)

    def test_holder(self) -> None:
        with socket.create_server(("127.0.0.1", 43010)):
            self.assertEqual(holder_of_port(43010), os.getpid())
        self.assertEqual(holder_of_port(43010), 0)

    def test_holder_that_cannot_be_seen(self) -> None:
        with socket.create_server(("127.0.0.1", 43010)):
            with mock.patch("os.readlink", side_effect=PermissionError):
                self.assertEqual(holder_of_port(43010), 0)
        with mock.patch("builtins.open", side_effect=PermissionError):
            self.assertEqual(holder_of_port(43010), 0)
