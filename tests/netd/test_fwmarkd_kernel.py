"""fwmarkd: descriptors over a UNIX socket, marks read back from the kernel, and traffic that follows them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

from twisted.internet.threads import deferToThread

from anbox_tw.netd._wire import FwmarkRequest, decode_fwmark_request, encode_fwmark_request
from anbox_tw.netd.fwmarkd import FwmarkCommand, FwmarkServer
from anbox_tw.netd.networks import INVALID_UID, NETWORK, SYSTEM, Fwmark
from tests.netd.daemon_case import DaemonTestCase

SO_MARK = 36


class FwmarkTests(DaemonTestCase):
    def exchange(self, data: bytes, fds: list[int], half_close: bool = False) -> int | None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(10)
            client.connect(os.path.join(self.directory, "s", "fwmarkd"))
            if fds:
                socket.send_fds(client, [data], fds)
            elif data:
                client.sendall(data)
            if half_close:
                client.shutdown(socket.SHUT_WR)
            answer = client.recv(100)
            rest = client.recv(1)
        self.assertEqual(rest, b"")
        return int(struct.unpack("=i", answer)[0]) if answer else None

    async def ask(
        self, command: int, net_id: int = 0, uid: int = 0, sock: socket.socket | None = None
    ) -> int | None:
        request = encode_fwmark_request(FwmarkRequest(command, net_id, uid))
        return await deferToThread(self.exchange, request, [sock.fileno()] if sock is not None else [])

    def new_socket(self) -> socket.socket:
        made = self.ns.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(made.close)
        return made

    def mark(self, sock: socket.socket) -> Fwmark:
        return Fwmark.from_int(sock.getsockopt(socket.SOL_SOCKET, SO_MARK))

    async def test_marks(self) -> None:
        self.ns.run("ip link add b0 type bridge")
        await self.start()
        for line in (
            "network create 100",
            "network create 101 SYSTEM",
            "network create 102 vpn 1 0",
            "network default set 100",
        ):
            await self.expect(line, "200 success")
        sock = self.new_socket()
        self.assertEqual(await self.ask(FwmarkCommand.ON_CONNECT, sock=sock), 0)
        self.assertEqual(self.mark(sock), Fwmark(100, permission=SYSTEM))
        self.assertEqual(await self.ask(FwmarkCommand.SELECT_NETWORK, 101, sock=sock), 0)
        self.assertEqual(self.mark(sock), Fwmark(101, True, True, SYSTEM))
        self.assertEqual(await self.ask(FwmarkCommand.ON_CONNECT, sock=sock), 0)
        self.assertEqual(self.mark(sock).net_id, 101)
        self.assertEqual(await self.ask(FwmarkCommand.SELECT_NETWORK, 555, sock=sock), -errno.ENONET)
        self.assertEqual(await self.ask(FwmarkCommand.SELECT_NETWORK, 0, sock=sock), 0)
        self.assertEqual(self.mark(sock), Fwmark())
        self.assertEqual(await self.ask(FwmarkCommand.SELECT_FOR_USER, uid=10001, sock=sock), 0)
        self.assertEqual(self.mark(sock), Fwmark(100, False, True, SYSTEM))
        self.assertEqual(await self.ask(FwmarkCommand.ON_CONNECT, sock=sock), 0)
        self.assertEqual(self.mark(sock), Fwmark(100, False, True, SYSTEM))
        # a VPN of one's own is used until the socket is protected from it
        await self.expect("network users add 102 0-0", "200 success")
        vpn = self.new_socket()
        self.assertEqual(await self.ask(FwmarkCommand.ON_CONNECT, sock=vpn), 0)
        self.assertEqual(self.mark(vpn), Fwmark(102, permission=SYSTEM))
        self.assertEqual(await self.ask(FwmarkCommand.PROTECT_FROM_VPN, sock=vpn), 0)
        self.assertEqual(self.mark(vpn), Fwmark(100, False, True, SYSTEM))
        fresh = self.new_socket()
        self.assertEqual(await self.ask(FwmarkCommand.ON_ACCEPT, sock=fresh), 0)
        self.assertEqual(self.mark(fresh), Fwmark(0, permission=SYSTEM))
        self.assertEqual(await self.ask(FwmarkCommand.QUERY_USER_ACCESS, 100, 10001), 0)
        self.assertEqual(await self.ask(FwmarkCommand.QUERY_USER_ACCESS, 101, 10001), -errno.EACCES)
        self.assertEqual(await self.ask(FwmarkCommand.QUERY_USER_ACCESS, 102, 10001), -errno.EPERM)
        self.assertEqual(await self.ask(FwmarkCommand.QUERY_USER_ACCESS, 102, INVALID_UID), -errno.EREMOTEIO)

    async def test_wrong_requests(self) -> None:
        await self.start()
        sock = self.new_socket()
        self.assertEqual(await self.ask(99, sock=sock), -errno.EPROTO)
        self.assertEqual(await self.ask(FwmarkCommand.ON_CONNECT), -errno.EBADF)
        good = encode_fwmark_request(FwmarkRequest(FwmarkCommand.ON_CONNECT, 0, 0))
        other = self.new_socket()
        self.assertEqual(
            await deferToThread(self.exchange, good, [sock.fileno(), other.fileno()]), -errno.EBADF
        )
        self.assertEqual(await deferToThread(self.exchange, good + b"x", [sock.fileno()]), -errno.EBADMSG)
        self.assertEqual(await deferToThread(self.exchange, good[:5], [], True), -errno.EBADMSG)
        self.assertEqual(await deferToThread(self.exchange, good[:5], []), -errno.EBADMSG)
        null = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, null)
        self.assertEqual(await deferToThread(self.exchange, good, [null]), -errno.ENOTSOCK)
        # a flood of descriptors ends the connection, and none of them stays open here
        before = len(os.listdir("/proc/self/fd"))
        self.assertIsNone(await deferToThread(self.flood, sock.fileno()))
        await self.until(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors closed")

    def flood(self, fd: int) -> bytes | None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(10)
            client.connect(os.path.join(self.directory, "s", "fwmarkd"))
            try:
                for _ in range(20):
                    socket.send_fds(client, [b"x"], [fd])
                return client.recv(100) or None
            except (ConnectionError, BrokenPipeError):
                return None

    async def test_traffic_follows_the_mark(self) -> None:
        """Two cables with the same addresses behind them: the mark alone chooses."""
        ends = {}
        await self.start()
        for net_id, name in ((100, "a"), (200, "b")):
            end = self.space()
            self.veth(self.ns, f"{name}0", end, f"{name}1")
            self.ns.run(f"ip addr add 10.9.0.1/24 dev {name}0")
            end.run(f"ip addr add 10.9.0.2/24 dev {name}1")
            for line in (
                f"network create {net_id}",
                f"network interface add {net_id} {name}0",
                f"network route add {net_id} {name}0 10.9.0.0/24",
            ):
                await self.expect(line, "200 success")
            receiver = end.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.bind(("10.9.0.2", 9000))
            self.addCleanup(receiver.close)
            ends[net_id] = receiver
        for net_id in (200, 100):
            sock = self.new_socket()
            self.assertEqual(await self.ask(FwmarkCommand.SELECT_NETWORK, net_id, sock=sock), 0)
            sock.sendto(b"for %d" % net_id, ("10.9.0.2", 9000))

            def arrived(receiver: Any = ends[net_id]) -> bytes | None:
                try:
                    return bytes(receiver.recv(100))
                except BlockingIOError:
                    return None

            self.assertEqual(await self.until(arrived, f"a datagram in {net_id}"), b"for %d" % net_id)

    async def test_apps_are_not_the_system(self) -> None:
        await self.start()
        assert self.netd.controllers is not None
        networks = self.netd.controllers.networks
        await self.expect("network create 101 NETWORK", "200 success")
        server = FwmarkServer(networks)
        sock = self.new_socket()
        app = 10001

        def ask(command: int, net_id: int = 0, uid: int = 0) -> int:
            return server.handle(FwmarkRequest(command, net_id, uid), sock.fileno(), app)

        self.assertEqual(ask(FwmarkCommand.SELECT_NETWORK, 101), -errno.EACCES)
        self.assertEqual(ask(FwmarkCommand.SELECT_FOR_USER), -errno.EPERM)
        self.assertEqual(ask(FwmarkCommand.PROTECT_FROM_VPN), -errno.EPERM)
        self.assertEqual(ask(FwmarkCommand.QUERY_USER_ACCESS), -errno.EPERM)
        networks.set_protect([app], allow=True)
        self.assertEqual(ask(FwmarkCommand.PROTECT_FROM_VPN), 0)
        networks.set_user_permission([app], NETWORK)
        self.assertEqual(ask(FwmarkCommand.SELECT_NETWORK, 101), 0)
        self.assertEqual(self.mark(sock), Fwmark(101, True, True, NETWORK))

    def test_the_request_on_the_wire(self) -> None:
        request = FwmarkRequest(2, 100, 10001)
        data = encode_fwmark_request(request)
        self.assertEqual(data, struct.pack("=iII", 2, 100, 10001))
        self.assertEqual(decode_fwmark_request(data), request)
        self.assertIsNone(decode_fwmark_request(data + b"\0"))
        self.assertEqual(Fwmark(100, True, True, SYSTEM).to_int(), 0xF0064)
        self.assertEqual(Fwmark.from_int(0xFFFF0064), Fwmark(100, True, True, 3))
