"""What a reviewer would try: clients that behave badly, children that die, and somebody else at the kernel's state."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from anbox_tw.netd import children
from anbox_tw.netd.daemon import Netd
from anbox_tw.netd.namespace import NetworkNamespace
from tests.netd.daemon_case import DaemonTestCase
from tests.support import need_tool

OK_NAT = "200 Nat operation succeeded"
OK_FW = "200 Firewall command succeeded"


class ClientTests(DaemonTestCase):
    def path(self, name: str = "netd") -> str:
        return os.path.join(self.directory, "s", name)

    async def said(self, data: bytes, name: str = "netd") -> bytes:
        """All that comes back when data is sent and the sending side is closed, as ``socat`` does."""

        def talk() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(self.path(name))
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                found = b""
                while piece := client.recv(65536):
                    found += piece
                return found

        return await deferToThread(talk)

    async def test_a_client_that_says_no_more_is_answered(self) -> None:
        await self.start()
        self.assertEqual(await self.said(b"4 ipfwd status\0"), b"211 4 Forwarding disabled\0")
        self.assertEqual(
            await self.said(b"1 interface list\0002 nat enable a0 b0 0\0003 tether status\0"),
            b"110 1 lo\0"
            b"200 1 Interface list completed\0"
            b"200 2 Nat operation succeeded\0"
            b"210 3 Tethering services stopped\0",
        )
        # half a command is none
        self.assertEqual(await self.said(b"1 interface list"), b"")
        self.assertEqual(await self.said(b""), b"")
        self.assertEqual(await self.said(b"9 mdnssd what\0", "mdns"), b"500 9 Unknown mdnssd cmd\0")
        self.assertEqual((await self.said(b"getaddrinfo 1.2.3.4 ^ 4 2 1 0 0\0", "dnsproxyd"))[:4], b"222\0")
        await self.until(lambda: len(self.netd.commands.clients) == 1, "they are gone")

    async def test_megabytes_without_an_end(self) -> None:
        await self.start()
        found = await self.said(b"x" * 4_000_000 + b"\0" + b"3 ipfwd status\0")
        self.assertEqual(found, b"500 0 Command too large for buffer\0" + b"211 3 Forwarding disabled\0")

    async def test_clients_that_ask_and_never_read(self) -> None:
        await self.start()
        silent = []
        for _ in range(20):
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.connect(self.path())
            client.setblocking(False)
            silent.append(client)
            try:
                for number in range(20_000):
                    client.send(b"%d interface list\0" % number)
            except BlockingIOError:
                pass
        # whoever reads is served meanwhile
        await self.expect("ipfwd status", "211 Forwarding disabled")
        for served in self.netd.commands.clients:
            self.assertLessEqual(served._unsent_bytes, 1024 * 1024)
            self.assertLessEqual(len(served._commands), 5000)


class SomebodyElseTests(DaemonTestCase):
    async def test_a_flushed_ruleset_is_made_anew(self) -> None:
        before = await self.settled(self.ns)
        await self.start()
        await self.expect("nat enable v0 w0 0", OK_NAT)
        await self.expect("bandwidth setiquota v0 5000", "200 Bandwidth command succeeeded")
        wanted = self.ns.nft()
        self.ns.run("nft flush ruleset")
        self.assertEqual(self.ns.nft(), [])
        # a question is enough
        await self.expect("bandwidth gts v0 w0", "221 v0 w0 0 0 0 0")

        def shape(ruleset: list[dict[str, Any]]) -> list[Any]:
            return sorted(
                (kind, what.get("name", ""), what.get("chain", ""), str(what.get("expr")))
                for each in ruleset
                for kind, what in each.items()
            )

        self.assertEqual(shape(self.ns.nft()), shape(wanted))
        self.ns.run("nft delete table inet anbox_netd")
        await self.expect("firewall enable whitelist", OK_FW)
        self.assertLess(set(shape(wanted)), set(shape(self.ns.nft())))
        self.assertEqual([line for line in await self.tell("bandwidth giq v0")], ["220 5000"])
        await self.stop()
        self.assertEqual(self.ns.state(), before)

    async def test_an_orphan_of_a_killed_netd_is_waited_for(self) -> None:
        """A child between fork and exec has what its parent had, the namespace's name too, for a moment."""
        self.ns.python(
            """
            import os, socket, subprocess
            s = socket.socket(socket.AF_UNIX)
            s.bind("\\0anbox-netd/anbox_netd")
            s.listen(1)
            subprocess.Popen(["sleep", "0.3"], pass_fds=[s.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            os._exit(0)
            """
        )
        await self.start()
        await self.expect("ipfwd status", "211 Forwarding disabled")

    async def test_forged_netlink_messages(self) -> None:
        """Root of the namespace sends what looks like the kernel's to every netlink socket of ours."""
        await self.start()
        forger = """
            import socket, struct, sys
            name = b"evil0\\0\\0\\0"
            link = struct.pack("=BBHiII", 0, 0, 1, 9999, 0x11043, 0xffffffff) + struct.pack("=HH", 10, 3) + name
            message = struct.pack("=IHHII", 16 + len(link), 16, 0, 0, 0) + link
            uevent = b"add@/devices/virtual/net/evil0\\0ACTION=add\\0SUBSYSTEM=net\\0INTERFACE=evil0\\0SEQNUM=1\\0"
            sent = 0
            for line in open("/proc/net/netlink").read().splitlines()[1:]:
                protocol, port = int(line.split()[1]), int(line.split()[2])
                if not port or protocol not in (0, 5, 12, 15):
                    continue
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as s:
                    for data in (uevent, message, b"", b"\\xff" * 100, message[:20], message * 40):
                        for groups in (0, 1, 0xffffffff):
                            try:
                                sent += bool(s.sendto(data, (port, groups)))
                            except OSError:
                                pass
            print(sent)
        """
        sent = int(await deferToThread(self.ns.python, forger))
        self.assertGreater(sent, 0)
        self.ns.run("ip link add b0 type bridge")
        await self.until(lambda: "600 Iface added b0" in self.heard(), "the kernel's own")
        await self.expect("interface list", "110 lo", "110 b0", "200 Interface list completed")
        self.assertEqual([line for line in self.heard() if "evil" in line], [])

    async def test_nft_that_fails_or_is_missing(self) -> None:
        await self.start()
        real = children.find_tool
        broken: dict[str, Callable[[str], str | None]] = {
            "Invalid argument": lambda name: real("false") if name == "nft" else real(name),
            "No such file or directory": lambda name: None if name == "nft" else real(name),
        }
        for why, find in broken.items():
            patched = self.patch(children, "find_tool", find)
            await self.expect("nat enable v0 w0 0", f"400 Nat operation failed ({why})")
            await self.expect("firewall enable whitelist", "400 Firewall command failed")
            await self.expect("bandwidth setiquota v0 100", "400 Bandwidth command failed")
            await self.expect("idletimer add v0 1 1", "400 Failed to add interface")
            await self.expect("bandwidth enable", "400 Bandwidth command failed")
            await self.expect("strict enable", "400 Strict command failed")
            # the original's text
            await self.expect("idletimer enable", "500 Missing argument")
            await self.expect("interface setcfg lo up", "200 Interface configuration set")
            patched.restore()
        self.assertEqual(self.ns.nft(), [])
        await self.expect("nat enable v0 w0 0", OK_NAT)

    async def test_a_daemon_of_ours_is_killed(self) -> None:
        need_tool("dnsmasq")
        self.cable()
        await self.start()
        await self.expect("tether interface add v0", "200 Tether operation succeeded")
        for _ in range(2):
            await self.expect("tether start 10.9.0.50 10.9.0.60", "200 Tether operation succeeded")
            await self.expect("tether status", "210 Tethering services started")
            assert self.netd.controllers is not None
            daemon = self.netd.controllers.tether._daemon
            assert daemon is not None and daemon.pid is not None
            os.kill(daemon.pid, signal.SIGKILL)
            await self.until(lambda daemon=daemon: daemon.pid is None, "it is gone")  # type: ignore[misc]
            await self.expect("tether status", "210 Tethering services stopped")
            await self.expect("tether dns set 0 9.9.9.9", "200 Tether operation succeeded")

    async def test_an_interface_that_goes_while_it_is_in_use(self) -> None:
        before = await self.settled(self.ns)
        self.ns.run("ip link add b0 type bridge")
        self.ns.run("ip link set b0 up")
        await self.start()
        for line in (
            "network create 100",
            "network interface add 100 b0",
            "network route add 100 b0 10.3.0.0/16",
            "network default set 100",
        ):
            await self.expect(line, "200 success")
        await self.expect("interface setmtu b0 1400", "200 MTU changed")
        await self.expect("nat enable b0 lo 0", OK_NAT)
        self.ns.run("ip link del b0")
        await self.until(lambda: "600 Iface removed b0" in self.heard(), "it is gone")
        await self.expect("network destroy 100", "200 success")
        await self.expect("network create 100", "200 success")
        await self.expect("nat disable b0 lo 0", OK_NAT)
        await self.stop()
        self.assertEqual(self.ns.state(), before)

    async def test_the_namespaces_name_is_deleted(self) -> None:
        """``ip netns del`` takes the name; the namespace lives while the daemon serves it, and no longer."""
        name = f"anboxnd{os.getpid()}"
        if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
            self.fail("no namespace could be named")
        self.addCleanup(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        netd = Netd(reactor, socket_dir=os.path.join(self.directory, "s"), namespace=NetworkNamespace(name))
        netd.startService()
        self.addCleanup(netd.stopService)
        await netd.when_ready()
        subprocess.run(["ip", "netns", "del", name], check=True)
        await self.expect("interface setcfg lo up", "200 Interface configuration set")
        await self.expect("nat enable a0 b0 0", OK_NAT)
        await self.expect("network create 100", "200 success")
        await netd.stopService()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertFalse(os.path.exists(os.path.join(self.directory, "s")))
