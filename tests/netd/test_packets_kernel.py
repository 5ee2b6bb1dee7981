"""NAT, firewall, quotas, idle timers and cleartext policies, proven by packets through namespaces."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.netd.daemon_case import DaemonTestCase
from tests.netd.kernel import PYTHON, Space

OK_BW = "200 Bandwidth command succeeeded"
OK_FW = "200 Firewall command succeeded"

ECHO = """
    import socket, sys, threading
    port = int(sys.argv[1])
    s = socket.create_server(("0.0.0.0", port))
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("0.0.0.0", port))
    print("ready", flush=True)
    def udp():
        while True:
            d, a = u.recvfrom(65536)
            u.sendto(a[0].encode() + b" " + d[:20], a)
    threading.Thread(target=udp, daemon=True).start()
    while True:
        c, a = s.accept()
        with c:
            d = c.recv(65536)
            c.sendall(a[0].encode())
"""

TCP = """
    import socket, sys
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as c:
            c.sendall(sys.argv[4].encode() if len(sys.argv) > 4 else b"hello")
            print(c.recv(100).decode() or "closed")
    except OSError as e:
        print("failed")
"""

UDP = """
    import socket, sys
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(float(sys.argv[3]))
    s.connect((sys.argv[1], int(sys.argv[2])))
    got = 0
    for _ in range(int(sys.argv[4])):
        try:
            s.send(b"x" * int(sys.argv[5])); s.recv(100); got += 1
        except OSError:
            pass
    print(got)
"""


class PacketCase(DaemonTestCase):
    def serve(self, space: Space, port: int = 7000) -> None:
        """An echo over TCP and UDP that tells whom it saw."""
        import subprocess
        import textwrap

        words = space.command(PYTHON, "-c", textwrap.dedent(ECHO), str(port))
        server = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert server.stdout is not None
        self.assertEqual(server.stdout.readline(), b"ready\n")

        def end() -> None:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()

        self.addCleanup(end)

    def in_thread(self, space: Space, code: str, *arguments: str, user: int | None = None) -> Deferred[str]:
        # the daemon is on this reactor: it must run while the packets do
        return deferToThread(space.python, code, *arguments, user=user)

    async def tcp(self, space: Space, address: str, *, user: int | None = None, data: str = "hello") -> str:
        return await self.in_thread(space, TCP, address, "7000", "1.0", data, user=user)

    async def udp(self, space: Space, address: str, count: int, size: int, user: int | None = None) -> int:
        return int(await self.in_thread(space, UDP, address, "7000", "0.3", str(count), str(size), user=user))

    def chains(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {e["chain"]["name"]: [] for e in self.ns.nft() if "chain" in e}
        for each in self.ns.nft():
            if "rule" in each:
                found[each["rule"]["chain"]].append(each["rule"]["expr"])
        return found


class NatTests(PacketCase):
    async def test_nat_through_three_namespaces(self) -> None:
        inner, outer = self.space(), self.space()
        self.veth(inner, "i0", self.ns, "in0")
        self.veth(self.ns, "out0", outer, "o0")
        inner.run("ip addr add 10.1.0.2/24 dev i0")
        self.ns.run("ip addr add 10.1.0.1/24 dev in0")
        self.ns.run("ip addr add 10.2.0.1/24 dev out0")
        outer.run("ip addr add 10.2.0.2/24 dev o0")
        inner.run("ip route add default via 10.1.0.1")
        self.serve(outer)
        before = await self.settled(self.ns)
        await self.start()
        # the outer side has no way back to 10.1.0.0/24: without NAT nothing comes
        self.assertEqual(await self.tcp(inner, "10.2.0.2"), "failed")
        await self.expect("ipfwd enable test", "200 ipfwd operation succeeded")
        self.assertEqual(await self.tcp(inner, "10.2.0.2"), "failed")
        await self.expect("nat enable in0 out0 0", "200 Nat operation succeeded")
        self.assertEqual(await self.tcp(inner, "10.2.0.2"), "10.2.0.1")
        self.assertEqual(await self.udp(inner, "10.2.0.2", 3, 100), 3)
        (stats,) = await self.tell("bandwidth gettetherstats in0 out0")
        found = re.fullmatch(r"221 in0 out0 (\d+) (\d+) (\d+) (\d+)", stats)
        assert found is not None, stats
        rx_bytes, rx_packets, tx_bytes, tx_packets = map(int, found.groups())
        self.assertGreaterEqual(rx_packets, 5)
        self.assertGreaterEqual(tx_packets, 6)
        # 3 datagrams of 100 bytes with 28 of headers went out
        self.assertGreater(tx_bytes, 3 * 128)
        self.assertGreater(rx_bytes, 0)
        # from outside nothing begins
        self.serve(inner)
        outer.run("ip route add 10.1.0.0/24 via 10.2.0.1")
        self.assertEqual(await self.tcp(outer, "10.1.0.2"), "failed")
        await self.expect("nat disable in0 out0 0", "200 Nat operation succeeded")
        outer.run("ip route del 10.1.0.0/24 via 10.2.0.1")
        self.assertEqual(await self.tcp(inner, "10.2.0.2"), "failed")
        await self.expect("ipfwd disable test", "200 ipfwd operation succeeded")
        await self.stop()
        self.assertEqual(self.ns.state(), before)


class FirewallTests(PacketCase):
    async def test_replies(self) -> None:
        await self.start()
        for line, reply in (
            ("firewall", "500 Missing command"),
            ("firewall what", "500 Unknown command"),
            ("firewall enable", "500 Usage: firewall enable <whitelist|blacklist>"),
            ("firewall is_enabled", OK_FW),
            (
                "firewall set_interface_rule v0",
                "500 Usage: firewall set_interface_rule <rmnet0> <allow|deny>",
            ),
            ("firewall set_interface_rule v0 allow", "400 Firewall command failed"),
            (
                "firewall set_egress_source_rule 1.2.3.4",
                "500 Usage: firewall set_egress_source_rule <192.168.0.1> <allow|deny>",
            ),
            ("firewall set_egress_source_rule 1.2.3.4 allow", "400 Firewall command failed"),
            (
                "firewall set_egress_dest_rule 1.2.3.4 80",
                "500 Usage: firewall set_egress_dest_rule <192.168.0.1> <80> <allow|deny>",
            ),
            ("firewall set_egress_dest_rule 1.2.3.4 80 allow", "400 Firewall command failed"),
            (
                "firewall set_uid_rule",
                "500 Usage: firewall set_uid_rule <dozable|standby|none> <1000> <allow|deny>",
            ),
            (
                "firewall set_uid_rule what 1 deny",
                "500 Invalid chain name. Valid names are: <dozable|standby|none>",
            ),
            ("firewall set_uid_rule none 10001 allow", "400 Firewall command failed"),
            ("firewall set_uid_rule none 10001 deny", OK_FW),
            ("firewall set_uid_rule none 10001 allow", OK_FW),
            ("firewall set_uid_rule 10001 deny", OK_FW),
            ("firewall set_uid_rule 10001 allow", OK_FW),
            ("firewall enable_chain", "500 Usage: firewall enable_chain <dozable|standby>"),
            ("firewall disable_chain", "500 Usage: firewall disable_chain <dozable|standby>"),
            ("firewall disable_chain dozable", "400 Firewall command failed"),
            ("firewall enable_chain nothing", OK_FW),
            ("firewall enable whitelist", OK_FW),
            ("firewall is_enabled", "400 Firewall command failed"),
            ("firewall set_interface_rule bad/name allow", "400 Firewall command failed"),
            ("firewall set_interface_rule v0 deny", "400 Firewall command failed"),
            ("firewall set_interface_rule v0 allow", OK_FW),
            ("firewall set_interface_rule v0 deny", OK_FW),
            ("firewall set_egress_source_rule nonsense allow", "400 Firewall command failed"),
            ("firewall set_egress_source_rule 2001:db8::1 allow", OK_FW),
            ("firewall set_egress_dest_rule 10.0.0.0/8 99999 allow", "400 Firewall command failed"),
            ("firewall set_egress_dest_rule 10.0.0.0/8 80 allow", OK_FW),
            ("firewall set_uid_rule powersave 10001 allow", OK_FW),
            ("firewall disable", OK_FW),
        ):
            await self.expect(line, reply)

    async def test_whitelist(self) -> None:
        other = self.cable()
        self.serve(other)
        await self.start()
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "10.9.0.1")
        await self.expect("firewall enable whitelist", OK_FW)
        chains = self.chains()
        self.assertEqual(chains["fw_input"][-1], [{"drop": None}])
        self.assertIn("reject", chains["fw_output"][-1][0])
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "failed")
        await self.expect("firewall set_interface_rule v0 allow", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "10.9.0.1")
        await self.expect("firewall set_interface_rule v0 deny", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "failed")
        await self.expect("firewall set_egress_dest_rule 10.9.0.2 7000 allow", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "10.9.0.1")
        await self.expect("firewall set_egress_dest_rule 10.9.0.2 7000 deny", OK_FW)
        await self.expect("firewall set_egress_source_rule 10.9.0.1 allow", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "10.9.0.1")
        await self.expect("firewall set_egress_source_rule 10.9.0.1 deny", OK_FW)
        await self.expect("firewall set_uid_rule none 10001 allow", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "10.9.0.1")
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "failed")
        await self.expect("firewall disable", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "10.9.0.1")
        # what is allowed while it is disabled is allowed when it filters again
        await self.expect("firewall set_uid_rule none 10001 allow", OK_FW)
        await self.expect("firewall enable whitelist", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "failed")
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "10.9.0.1")
        await self.expect("firewall enable whitelist", OK_FW)
        await self.expect("firewall disable", OK_FW)

    async def test_blacklist_and_chains(self) -> None:
        other = self.cable()
        self.serve(other)
        await self.start()
        await self.expect("firewall enable blacklist", OK_FW)
        await self.expect("firewall set_uid_rule none 10001 deny", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "failed")
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "10.9.0.1")
        await self.expect("firewall set_uid_rule none 10001 allow", OK_FW)
        await self.expect("firewall set_uid_rule standby 10002 deny", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "10.9.0.1")
        await self.expect("firewall enable_chain standby", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "failed")
        await self.expect("firewall disable_chain standby", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "10.9.0.1")
        # dozing: only those on the list, and the system
        await self.expect("firewall set_uid_rule dozable 10001 allow", OK_FW)
        await self.expect("firewall enable_chain dozable", OK_FW)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001), "10.9.0.1")
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "failed")
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=1000), "10.9.0.1")


class BandwidthTests(PacketCase):
    async def test_replies(self) -> None:
        await self.start()
        failed = "400 Bandwidth command failed"
        for line, reply in (
            ("bandwidth", "500 Usage: bandwidth <cmds> <args...>"),
            ("bandwidth what", "500 Unknown bandwidth cmd"),
            ("bandwidth enable", OK_BW),
            ("bandwidth setquota v0", "500 Usage: bandwidth setquota <interface> <bytes>"),
            ("bandwidth sq v0 0", failed),
            ("bandwidth getquota", "400 Failed to get quota"),
            ("bandwidth gq x", "500 Usage: bandwidth getquota"),
            ("bandwidth sq v0 5000", OK_BW),
            ("bandwidth gq", "220 5000"),
            ("bandwidth ssa 1000", OK_BW),
            ("bandwidth rsa", OK_BW),
            ("bandwidth rsa", failed),
            ("bandwidth rq v9", failed),
            ("bandwidth rq v0", OK_BW),
            ("bandwidth ssa 1000", failed),
            ("bandwidth setquotas 7000", "500 Usage: bandwidth setquotas <bytes> <interface> ..."),
            ("bandwidth setquotas 7000 v0 bad/name", "400 bandwidth setquotas 7000 bad/name failed"),
            ("bandwidth sqs 7000 v0 v2", OK_BW),
            ("bandwidth rqs v0 v9", "400 bandwidth removequotas v9 failed"),
            ("bandwidth rqs v2", OK_BW),
            ("bandwidth giq v0", "400 Failed to get quota"),
            ("bandwidth giq", "500 Usage: bandwidth getiquota <iface>"),
            ("bandwidth sia v0 10", failed),
            ("bandwidth siq v0 123456789012", OK_BW),
            ("bandwidth giq v0", "220 123456789012"),
            ("bandwidth sia v0 10", OK_BW),
            ("bandwidth sia v0 0", failed),
            ("bandwidth ria v0", OK_BW),
            ("bandwidth ria v0", failed),
            ("bandwidth siq v0 -1", OK_BW),
            ("bandwidth riq v0", failed),
            ("bandwidth sga 1000", OK_BW),
            ("bandwidth rga", OK_BW),
            ("bandwidth rga", failed),
            ("bandwidth dstga a b", OK_BW),
            ("bandwidth drtga a b", OK_BW),
            ("bandwidth drtga a b", failed),
            ("bandwidth ana 10001 10002", OK_BW),
            ("bandwidth rna 10001 10009", failed),
            ("bandwidth rna 10001", OK_BW),
            ("bandwidth aha -5", failed),
            ("bandwidth aha 10005", OK_BW),
            ("bandwidth rha 10005", OK_BW),
            ("bandwidth gts a b c", "500 Usage: bandwidth gettetherstats [<intInterface> <extInterface>]"),
            ("bandwidth disable", OK_BW),
        ):
            await self.expect(line, reply)
        self.assertEqual([each for each in self.ns.nft() if "rule" in each], [])

    async def test_names_that_nft_would_not_write_bare(self) -> None:
        before = self.ns.state()
        await self.start()
        for line, reply in (
            ("bandwidth setiquota eth0.5 1000", OK_BW),
            ("bandwidth setinterfacealert eth0.5 10", OK_BW),
            ("bandwidth setiquota 4a-b:c_d 2000", OK_BW),
            ("bandwidth getiquota eth0.5", "220 1000"),
            ("bandwidth getiquota 4a-b:c_d", "220 2000"),
            ("nat enable eth0.5 4a-b:c_d 0", "200 Nat operation succeeded"),
            ("bandwidth gts eth0.5 4a-b:c_d", "221 eth0.5 4a-b:c_d 0 0 0 0"),
            ("idletimer add eth0.5 5 1", "200 Add success"),
            ("firewall enable whitelist", OK_FW),
            ("firewall set_interface_rule 4a-b:c_d allow", OK_FW),
            ("bandwidth removeiquota eth0.5", OK_BW),
        ):
            await self.expect(line, reply)
        await self.stop()
        self.assertEqual(self.ns.state(), before)

    async def test_alerts_and_quotas_by_traffic(self) -> None:
        other = self.cable(quiet=True)
        self.serve(other)
        before = self.ns.state()
        await self.start()
        await self.expect("bandwidth setiquota v0 20000", OK_BW)
        await self.expect("bandwidth setinterfacealert v0 2000", OK_BW)
        await self.expect("bandwidth setglobalalert 3000", OK_BW)
        self.assertEqual(await self.udp(self.ns, "10.9.0.2", 3, 1000), 3)
        await self.until(lambda: "601 limit alert v0Alert v0" in self.heard(), "the interface's alert")
        await self.until(lambda: "601 limit alert globalAlert v0" in self.heard(), "the global alert")
        (left,) = await self.tell("bandwidth getiquota v0")
        self.assertLess(int(left.split()[1]), 20000 - 3000)
        self.assertGreater(int(left.split()[1]), 10000)
        # beyond the quota nothing passes, and it is told once
        self.assertLess(await self.udp(self.ns, "10.9.0.2", 25, 1000), 20)
        await self.until(lambda: "601 limit alert v0 v0" in self.heard(), "the quota")
        await self.expect("bandwidth getiquota v0", "220 0")
        self.assertEqual(await self.udp(self.ns, "10.9.0.2", 2, 10), 0)
        alerts = [line for line in self.heard() if line.startswith("601")]
        self.assertEqual(sorted(alerts), sorted(set(alerts)))
        # set anew, it counts anew; other rules do not disturb what was counted
        await self.expect("bandwidth setiquota v0 20000", OK_BW)
        self.assertEqual(await self.udp(self.ns, "10.9.0.2", 1, 1000), 1)
        (first,) = await self.tell("bandwidth getiquota v0")
        await self.expect("bandwidth addnaughtyapps 10001", OK_BW)
        await self.expect("bandwidth getiquota v0", first)
        # a naughty app may not use a costly interface
        self.assertEqual(await self.udp(self.ns, "10.9.0.2", 1, 10, user=10001), 0)
        self.assertEqual(await self.udp(self.ns, "10.9.0.2", 1, 10, user=10002), 1)
        await self.expect("bandwidth setquota v0 500", OK_BW)
        await self.expect("bandwidth removeiquota v0", OK_BW)
        await self.udp(self.ns, "10.9.0.2", 2, 1000)
        await self.until(lambda: "601 limit alert shared v0" in self.heard(), "the shared quota")
        await self.stop()
        self.assertEqual(self.ns.state(), before)


class IdleTests(PacketCase):
    async def test_idle_and_active(self) -> None:
        other = self.cable(quiet=True)
        self.serve(other)
        await self.start()
        for line, reply in (
            ("idletimer", "500 Missing argument"),
            ("idletimer what", "500 Unknown idletimer cmd"),
            ("idletimer enable", "200 Enable success"),
            ("idletimer add v0 1", "500 Missing argument"),
            ("idletimer add v0 0 1", "400 Failed to add interface"),
            ("idletimer add bad/name 1 1", "400 Failed to add interface"),
            ("idletimer remove v0 1 1", "400 Failed to remove interface"),
            ("idletimer add v0 1 1", "200 Add success"),
        ):
            await self.expect(line, reply)
        idle, active = r"613 IfaceClass idle 1 \d+", r"613 IfaceClass active 1 \d+ 10001"
        await self.until(lambda: [x for x in self.heard() if re.fullmatch(idle, x)], "idle")
        self.assertEqual(await self.udp(self.ns, "10.9.0.2", 1, 10, user=10001), 1)
        await self.until(lambda: [x for x in self.heard() if re.fullmatch(active, x)], "active with the uid")
        # a cable pulled while in use: the state first, then idle
        count = len(self.events)
        other.run("ip link set v1 down")
        await self.until(lambda: [x for x in self.heard()[count:] if re.fullmatch(idle, x)], "idle again")
        lines = self.heard()[count:]
        self.assertEqual(lines[0], "600 Iface linkstate v0 down")
        self.assertRegex(lines[-1], idle)
        await self.expect("idletimer remove v0 1 1", "200 Remove success")
        await self.expect("idletimer add v0 1 2", "200 Add success")
        await self.expect("idletimer disable", "200 Disable success")
        self.assertEqual([each for each in self.ns.nft() if "rule" in each or "set" in each], [])


class StrictTests(PacketCase):
    async def test_cleartext(self) -> None:
        other = self.cable()
        self.serve(other)
        await self.start()
        ok = "200 Strict command succeeded"
        for line, reply in (
            ("strict", "500 Missing command"),
            ("strict what", "500 Unknown command"),
            ("strict enable", ok),
            (
                "strict set_uid_cleartext_policy 1",
                "500 Usage: strict set_uid_cleartext_policy <uid> <accept|log|reject>",
            ),
            ("strict set_uid_cleartext_policy x log", "500 Invalid UID"),
            ("strict set_uid_cleartext_policy 4294967295 log", "500 Invalid UID"),
            ("strict set_uid_cleartext_policy 10001 what", "500 Invalid penalty argument"),
            ("strict set_uid_cleartext_policy 10001 log", ok),
            ("strict set_uid_cleartext_policy 0x2712 reject", ok),
        ):
            await self.expect(line, reply)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10001, data="GET / HTTP/1.0"), "10.9.0.1")
        hexed = b"GET / HTTP/1.0".hex()
        await self.until(
            lambda: [x for x in self.heard() if x.startswith("617 10001 45") and hexed in x], "told"
        )
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "failed")
        await self.until(lambda: [x for x in self.heard() if x.startswith("617 10002 ")], "told")
        # what looks like TLS passes, and nobody hears of it
        count = len(self.events)
        self.assertEqual(
            await self.tcp(self.ns, "10.9.0.2", user=10002, data="\x16\x03\x01 hello"), "10.9.0.1"
        )
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10003), "10.9.0.1")
        self.assertEqual(self.heard()[count:], [])
        await self.expect("strict set_uid_cleartext_policy 10002 accept", ok)
        self.assertEqual(await self.tcp(self.ns, "10.9.0.2", user=10002), "10.9.0.1")
        await self.expect("strict disable", ok)
        self.assertEqual([each for each in self.ns.nft() if "rule" in each], [])
