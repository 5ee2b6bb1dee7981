"""Every command against the real kernel: the reply to the byte, the effect by ``ip -j`` and ``nft -j``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.netd.daemon_case import DaemonTestCase


class InterfaceTests(DaemonTestCase):
    async def test_interface(self) -> None:
        before = None
        self.ns.run("ip link add b0 type bridge")
        self.ns.run("ip link set b0 address 02:00:00:00:00:AB")
        before = await self.settled(self.ns)
        await self.start()
        await self.expect("interface", "500 Missing argument")
        await self.expect("interface bogus", "500 Missing argument")
        await self.expect("interface bogus b0", "500 Unknown interface cmd")
        await self.expect("interface list", "110 lo", "110 b0", "200 Interface list completed")
        await self.expect("interface getcfg lo", "213 00:00:00:00:00:00 127.0.0.1 8 up loopback running")
        await self.expect("interface getcfg b0", "213 02:00:00:00:00:ab 0.0.0.0 0 down broadcast multicast")
        await self.expect("interface getcfg nope0", "400 Interface not found (No such device)")
        await self.expect("interface getcfg ../../etc", "400 Interface not found (No such device)")
        await self.expect("interface setcfg b0 10.1.2.3 24 up multicast", "200 Interface configuration set")
        link = self.ns.ip("addr show b0")[0]
        self.assertIn("UP", link["flags"])
        self.assertEqual(
            [(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["family"] == "inet"],
            [("10.1.2.3", 24)],
        )
        await self.expect("interface getcfg b0", "213 02:00:00:00:00:ab 10.1.2.3 24 up broadcast multicast")
        await self.expect("interface setcfg b0 10.1.2.4 24", "200 Interface configuration set")
        addresses = [a["local"] for a in self.ns.ip("-4 addr show b0")[0]["addr_info"]]
        self.assertEqual(addresses, ["10.1.2.4"])
        await self.expect("interface setcfg b0 0.0.0.0 0 down", "200 Interface configuration set")
        self.assertEqual(self.ns.ip("-4 addr show b0"), [])
        self.assertNotIn("UP", self.ns.ip("link show b0")[0]["flags"])
        await self.expect("interface setcfg b0", "500 Missing argument")
        await self.expect("interface setcfg b0 10.0.0.1", "500 Missing argument")
        await self.expect("interface setcfg b0 sideways", "501 Flag unsupported")
        await self.expect(
            "interface setcfg nope0 10.0.0.1 24", "400 Failed to clear address (No such device)"
        )
        await self.expect("interface setcfg b0 10.0.0.1 99", "400 Failed to set address (Invalid argument)")
        await self.expect("interface setcfg nope0 up", "400 Failed to up interface (No such device)")
        await self.expect("interface setcfg nope0 down", "400 Failed to down interface (No such device)")
        await self.expect("interface setmtu b0 1400", "200 MTU changed")
        self.assertEqual(self.ns.ip("link show b0")[0]["mtu"], 1400)
        await self.expect("interface getmtu b0", "224 MTU = 1400")
        await self.expect("interface setmtu b0", "500 Usage: interface setmtu <interface> <val>")
        await self.expect("interface setmtu b0 x", "400 Failed to set MTU (Invalid argument)")
        await self.expect("interface setmtu b0 1", "400 Failed to set MTU (Invalid argument)")
        await self.expect("interface setmtu nope0 1400", "400 Failed to set MTU (No such file or directory)")
        self.ns.run("ip addr add 10.7.0.1/16 dev b0")
        self.ns.run("ip -6 addr add 2001:db8::7/64 dev b0")
        await self.expect("interface clearaddrs b0", "200 Interface IP addresses cleared")
        self.assertEqual(self.ns.ip("addr show b0")[0]["addr_info"], [])
        await self.expect("interface clearaddrs nope0", "200 Interface IP addresses cleared")
        for command, name, on, off, good, bad in (
            (
                "ipv6privacyextensions",
                "use_tempaddr",
                "2",
                "0",
                "IPv6 privacy extensions changed",
                "Failed to set ipv6 privacy extensions",
            ),
            ("ipv6", "disable_ipv6", "0", "1", "IPv6 state changed", "Failed to change IPv6 state"),
        ):
            path = f"/proc/sys/net/ipv6/conf/b0/{name}"
            await self.expect(f"interface {command} b0 disable", f"200 {good}")
            self.assertEqual(self.ns.namespace.read_file(path).strip(), off)
            await self.expect(f"interface {command} b0 enable", f"200 {good}")
            self.assertEqual(self.ns.namespace.read_file(path).strip(), on)
            await self.expect(f"interface {command} b0 enabled", f"200 {good}")
            self.assertEqual(self.ns.namespace.read_file(path).strip(), off)
            await self.expect(
                f"interface {command} b0", f"500 Usage: interface {command} <interface> <enable|disable>"
            )
            await self.expect(f"interface {command} nope0 enable", f"400 {bad} (No such file or directory)")
            await self.expect(f"interface {command} ../all enable", f"400 {bad} (No such file or directory)")
        await self.expect("interface ipv6ndoffload b0 enable", "200 IPv6 ND offload changed")
        await self.expect(
            "interface ipv6ndoffload b0", "500 Usage: interface ipv6ndoffload <interface> <enable|disable>"
        )
        self.ns.run("ip addr del 10.7.0.1/16 dev b0", check=False)
        await self.stop()
        self.assertEqual(self.ns.state(), before)

    async def test_an_interface_that_was_in_use_is_brought_back(self) -> None:
        other = self.cable()
        self.ns.run("ip route add 10.20.0.0/16 via 10.9.0.2")
        self.ns.run("ip -6 addr add 2001:db8::1/64 dev v0 nodad")
        self.ns.run("ip route add 10.30.0.0/16 via 10.9.0.2 table 77")
        before = await self.settled(self.ns)
        await self.start()
        await self.expect("interface clearaddrs v0", "200 Interface IP addresses cleared")
        await self.expect("interface setcfg v0 192.168.5.1 24 down", "200 Interface configuration set")
        await self.expect("interface setmtu v0 1300", "200 MTU changed")
        await self.expect("interface ipv6 v0 disable", "200 IPv6 state changed")
        self.assertNotEqual(self.ns.state(), before)
        await self.stop()
        # the link-local address comes back with the link
        await self.until(lambda: self.ns.state()["addresses"] == before["addresses"], "addresses")
        await self.until(lambda: self.ns.state()["links"] == before["links"], "link")
        after = self.ns.state()
        self.assertEqual(sorted(after.pop("routes6")), sorted(before.pop("routes6")))
        self.assertEqual(after, before)
        other.run("ip link show")


class ServicesTests(DaemonTestCase):
    async def test_ipfwd(self) -> None:
        await self.start()
        read = self.ns.namespace.read_file
        for path in ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"):
            self.assertEqual(read(path), "0\n")
        await self.expect("ipfwd status", "211 Forwarding disabled")
        await self.expect("ipfwd enable tethering", "200 ipfwd operation succeeded")
        await self.expect("ipfwd enable tethering", "200 ipfwd operation succeeded")
        await self.expect("ipfwd enable other", "200 ipfwd operation succeeded")
        await self.expect("ipfwd status", "211 Forwarding enabled")
        for path in ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"):
            self.assertEqual(read(path), "1\n")
        await self.expect("ipfwd disable tethering", "200 ipfwd operation succeeded")
        await self.expect("ipfwd status", "211 Forwarding enabled")
        await self.expect("ipfwd disable other", "200 ipfwd operation succeeded")
        await self.expect("ipfwd status", "211 Forwarding disabled")
        self.assertEqual(read("/proc/sys/net/ipv4/ip_forward"), "0\n")
        for line in ("ipfwd", "ipfwd status x", "ipfwd add a", "ipfwd what ever", "ipfwd a b c d"):
            await self.expect(line, "500 Unknown ipfwd cmd")
        await self.expect("ipfwd add lo nope0", "400 ipfwd operation failed (No such process)")
        self.ns.run("ip link add b0 type bridge")
        index = self.ns.ip("link show b0")[0]["ifindex"]
        await self.expect("ipfwd add lo b0", "200 ipfwd operation succeeded")
        rule = [r for r in self.ns.ip("rule") if r["priority"] == 18000]
        self.assertEqual([(r["iif"], r["table"]) for r in rule], [("lo", str(1000 + index))])
        await self.expect("ipfwd remove lo b0", "200 ipfwd operation succeeded")
        self.assertEqual([r for r in self.ns.ip("rule") if r["priority"] == 18000], [])
        await self.expect("ipfwd remove lo b0", "400 ipfwd operation failed (No such file or directory)")

    async def test_tether(self) -> None:
        self.ns.run("ip link add b0 type bridge")
        self.ns.run("ip link set b0 up")
        before = await self.settled(self.ns)
        await self.start()
        await self.expect("tether", "500 Missing argument")
        await self.expect("tether status", "210 Tethering services stopped")
        await self.expect("tether stop", "200 Tether operation succeeded")
        await self.expect("tether x", "500 Missing argument")
        await self.expect("tether x y", "200 Tether operation succeeded")
        await self.expect("tether x y z", "500 Unknown tether cmd")
        await self.expect("tether interface list", "200 Tether operation succeeded")
        await self.expect(
            "tether interface add nope0", "400 Tether operation failed (No such file or directory)"
        )
        await self.expect("tether interface what b0", "501 Unknown tether interface operation")
        await self.expect("tether dns what b0", "501 Unknown tether interface operation")
        await self.expect("tether interface add b0", "200 Tether operation succeeded")
        self.assertEqual(self.ns.namespace.read_file("/proc/sys/net/ipv6/conf/b0/accept_ra"), "0\n")
        await self.expect("tether interface list", "111 b0", "200 Tether operation succeeded")
        await self.expect("tether dns list", "115 0", "200 Tether operation succeeded")
        await self.expect("tether dns set 100", "500 Missing argument")
        await self.expect("tether dns set 100 9.9.9.9 2620:fe::fe", "200 Tether operation succeeded")
        await self.expect(
            "tether dns list", "115 100", "112 9.9.9.9", "112 2620:fe::fe", "200 Tether operation succeeded"
        )
        await self.expect("tether dns set 100 nine", "400 Tether operation failed (Invalid argument)")
        await self.expect("tether dns list", "115 100", "200 Tether operation succeeded")
        await self.expect("tether start 10.5.0.2 10.5.0.9 10.6.0.2", "500 Bad number of arguments")
        await self.expect("tether start 10.5.0.2 ten", "501 Invalid address")
        # three words that it does not know are a success of the original, and of ours
        await self.expect("tether start 10.5.0.2", "200 Tether operation succeeded")
        await self.expect("tether interface remove b0", "200 Tether operation succeeded")
        await self.expect(
            "tether interface remove b0", "400 Tether operation failed (No such file or directory)"
        )
        await self.stop()
        self.assertEqual(self.ns.state()["rules"], before["rules"])
        self.assertEqual(self.ns.namespace.read_file("/proc/sys/net/ipv6/conf/b0/disable_ipv6"), "0\n")

    async def test_tether_serves_addresses_with_dnsmasq(self) -> None:
        from tests.support import need_tool

        need_tool("dnsmasq")
        self.cable()
        await self.start()
        await self.expect("tether interface add v0", "200 Tether operation succeeded")
        await self.expect("tether start 10.9.0.50 10.9.0.60", "200 Tether operation succeeded")
        await self.expect(
            "tether start 10.9.0.50 10.9.0.60", "400 Tether operation failed (Device or resource busy)"
        )
        await self.expect("tether status", "210 Tethering services started")
        assert self.netd.controllers is not None
        daemon = self.netd.controllers.tether._daemon
        assert daemon is not None
        assert daemon.pid is not None
        words = Path(f"/proc/{daemon.pid}/cmdline").read_text().split("\0")
        self.assertIn("--dhcp-range=10.9.0.50,10.9.0.60,1h", words)
        self.assertIn("--interface=v0", words)
        self.assertEqual(os.readlink(f"/proc/{daemon.pid}/ns/net"), os.readlink(self.ns.path))
        self.assertIn(":67 ", self.ns.run("ss -ulnH"))
        # other servers: the daemon is started anew with them
        await self.expect("tether dns set 100 9.9.9.9", "200 Tether operation succeeded")
        second = self.netd.controllers.tether._daemon
        assert second is not None
        self.assertIn("--server=9.9.9.9", Path(f"/proc/{second.pid}/cmdline").read_text().split("\0"))
        pid = second.pid
        await self.expect("tether stop", "200 Tether operation succeeded")
        self.assertFalse(os.path.exists(f"/proc/{pid}"))
        await self.expect("tether status", "210 Tethering services stopped")

    async def test_nat_replies_and_rules(self) -> None:
        before = await self.settled(self.ns)
        await self.start()
        await self.expect("nat", "500 Missing argument")
        await self.expect("nat enable v0 v1", "500 Missing argument")
        await self.expect("nat what v0 v1 0", "500 Unknown nat cmd")
        await self.expect("nat enable v0 v0 0", "400 Nat operation failed (Invalid argument)")
        await self.expect("nat enable v0 bad/name 0", "400 Nat operation failed (No such device)")
        await self.expect("nat disable v0 v1 0", "400 Nat operation failed (No such device)")
        await self.expect("bandwidth gettetherstats", "200 Tethering stats list completed")
        await self.expect("nat enable v0 v1 1 10.0.0.0/8", "200 Nat operation succeeded")
        chains = {each["chain"]["name"] for each in self.ns.nft() if "chain" in each}
        self.assertEqual(chains, {"nat_forward", "nat_postrouting"})
        await self.expect(
            "bandwidth gettetherstats", "114 v0 v1 0 0 0 0", "200 Tethering stats list completed"
        )
        await self.expect("bandwidth gts v0", "114 v0 v1 0 0 0 0", "200 Tethering stats list completed")
        await self.expect("bandwidth gts v0 v1", "221 v0 v1 0 0 0 0")
        await self.expect("bandwidth gts v9", "200 Tethering stats list completed")
        await self.expect("bandwidth gts v0 v9", "400 Failed to get tethering stats.\n")
        await self.expect("nat disable v0 v1 0", "200 Nat operation succeeded")
        self.assertEqual([e for e in self.ns.nft() if "rule" in e], [])
        await self.expect("bandwidth gts v0 v1", "221 v0 v1 0 0 0 0")
        await self.stop()
        self.assertEqual(self.ns.state(), before)

    async def test_daemons_that_are_not_installed(self) -> None:
        from anbox_tw.netd import children

        real = children.find_tool
        self.patch(
            children,
            "find_tool",
            lambda name: None if name in ("pppd", "hostapd", "clatd", "dnsmasq") else real(name),
        )
        self.ns.run("ip link add b0 type bridge")
        await self.start()
        listed = await self.tell("list_ttys")
        self.assertEqual(listed[-1], "200 Ttys listed.")
        self.assertTrue(all(line.startswith("113 tty") for line in listed[:-1]), listed)
        await self.expect("pppd attach", "500 Missing argument")
        await self.expect("pppd what ttyS0", "500 Unknown pppd cmd")
        args = "10.0.0.1 10.0.0.2 8.8.8.8 8.8.4.4"
        for position, what in enumerate(("local", "remote", "dns1", "dns2")):
            words = args.split()
            words[position] = "x"
            await self.expect(f"pppd attach ttyS0 {' '.join(words)}", f"501 Invalid {what} address")
        await self.expect("pppd attach ttyS0 10.0.0.1", "501 Invalid remote address")
        await self.expect(
            f"pppd attach ttyS0 {args}", "400 Pppd operation failed (No such file or directory)"
        )
        await self.expect(f"pppd attach ../x {args}", "400 Pppd operation failed (Invalid argument)")
        await self.expect("pppd detach ttyS0", "400 Pppd operation failed (No such device)")
        await self.expect("softap", "500 Missing argument in a SoftAP command")
        await self.expect("softap what", "500 Unrecognized SoftAP command")
        await self.expect("softap status", "214 Softap service is not running")
        await self.expect("softap stopap", "214 Ok")
        await self.expect("softap fwreload wlan0", "500 SoftAP command has failed")
        await self.expect("softap fwreload wlan0 XX", "501 SoftAP command has failed")
        await self.expect("softap fwreload wlan0 AP", "214 Ok")
        await self.expect("softap set wlan0", "402 SoftAP command has failed")
        await self.expect("softap set wlan0 net broadcast 0 open", "214 Ok")
        self.assertEqual(
            await self.tell("softap", "set", "wlan0", "a\nwpa=0", "hidden", "1", "open"),
            ["501 SoftAP command has failed"],
        )
        await self.expect("softap startap", "402 SoftAP command has failed")
        await self.expect("clatd start", "500 Missing argument")
        await self.expect("clatd what b0", "500 Unknown clatd cmd")
        await self.expect("clatd status b0", "223 Clatd status: stopped")
        await self.expect("clatd stop b0", "400 Clatd operation failed")
        await self.expect("clatd start b0", "400 Clatd operation failed")
        await self.expect(
            "tether start 10.0.0.1 10.0.0.9", "400 Tether operation failed (No such file or directory)"
        )
        await self.expect("tether status", "210 Tethering services stopped")


class OlderFormsTests(DaemonTestCase):
    async def test_android_5(self) -> None:
        await self.start(android=5)
        failed = "400 Firewall command failed"
        for line, reply in (
            ("firewall is_enabled", "200 Firewall command succeeded"),
            ("firewall enable", "200 Firewall command succeeded"),
            ("firewall is_enabled", failed),
            ("firewall set_uid_rule 10001 allow", "200 Firewall command succeeded"),
            ("firewall disable", "200 Firewall command succeeded"),
            ("clatd status", "223 Clatd status: stopped"),
            ("clatd stop", "400 Clatd operation failed"),
            ("clatd start", "500 Missing argument"),
            ("ipfwd enable", "200 ipfwd operation succeeded"),
            ("ipfwd status", "211 Forwarding enabled"),
            ("ipfwd disable", "200 ipfwd operation succeeded"),
            ("network create 100 android.permission.CHANGE_NETWORK_STATE", "200 success"),
            ("network permission user set android.permission.CONNECTIVITY_INTERNAL 10001", "200 success"),
            ("resolver setnetdns 100 lan 9.9.9.9", "200 Resolver command succeeded"),
            ("resolver flushnet 100", "200 Resolver command succeeded"),
            ("resolver clearnetdns 100", "200 Resolver command succeeded"),
        ):
            await self.expect(line, reply)

    async def test_android_7_wants_the_arguments(self) -> None:
        await self.start()
        await self.expect("firewall enable", "500 Usage: firewall enable <whitelist|blacklist>")
        await self.expect("clatd status", "500 Missing argument")


class NetworkTests(DaemonTestCase):
    def rules(self) -> list[tuple[Any, ...]]:
        return [
            (
                r["priority"],
                r.get("fwmark"),
                r.get("fwmask"),
                r.get("iif"),
                r.get("oif"),
                r.get("uid_start"),
                r["table"],
            )
            for r in self.ns.ip("rule")
            if 10000 <= r["priority"] < 32000
        ]

    async def test_network(self) -> None:
        self.cable()
        before = await self.settled(self.ns)
        await self.start()
        for line in ("network", "network create", "network default", "network interface add 100"):
            await self.expect(line, "500 Missing argument")
        await self.expect("network what", "500 Unknown argument")
        await self.expect("network create 99999999", "400 createPhysicalNetwork() failed (Invalid argument)")
        await self.expect("network create 60", "400 createPhysicalNetwork() failed (Invalid argument)")
        await self.expect("network create 100 WHAT", "500 Unknown permission")
        await self.expect("network create 100 NETWORK x", "500 Unknown trailing argument(s)")
        await self.expect("network create 100", "200 success")
        await self.expect("network create 100", "400 createPhysicalNetwork() failed (File exists)")
        await self.expect("network create oem1 SYSTEM", "200 success")
        await self.expect("network create 0x65 vpn 1 0", "200 success")
        await self.expect(
            "network interface add 555 v0",
            "400 addInterfaceToNetwork() failed (Machine is not on the network)",
        )
        await self.expect(
            "network interface add 100 nope0", "400 addInterfaceToNetwork() failed (No such process)"
        )
        await self.expect("network interface add 100 v0", "200 success")
        await self.expect(
            "network interface add oem1 v0", "400 addInterfaceToNetwork() failed (Device or resource busy)"
        )
        await self.expect("network interface what 100 v0", "500 Unknown argument")
        index = self.ns.ip("link show v0")[0]["ifindex"]
        table = str(1000 + index)
        rules = self.rules()
        self.assertIn((13000, "0x10064", "0x1ffff", None, None, None, table), rules)
        self.assertIn((14000, None, None, None, "v0", None, table), rules)
        self.assertIn((19000, "0x64", "0x1ffff", None, None, None, table), rules)
        await self.expect("network route add 100 v0 0.0.0.0/0 10.9.0.2", "200 success")
        await self.expect("network route add 100 v0 0.0.0.0/0 10.9.0.2", "200 success")
        await self.expect("network route add 100 v0 10.9.0.0/24", "200 success")
        await self.expect("network route add 100 v0 10.66.0.0/16 unreachable", "200 success")
        await self.expect("network route add 100 v0 10.67.0.0/16 throw", "200 success")
        await self.expect("network route add 100 v0 2001:db8:9::/64", "200 success")
        found = {r["dst"]: r for r in self.ns.ip(f"route show table {table}")}
        self.assertEqual(found["default"]["gateway"], "10.9.0.2")
        self.assertEqual(found["10.66.0.0/16"]["type"], "unreachable")
        self.assertEqual(found["10.67.0.0/16"]["type"], "throw")
        self.assertEqual(found["10.9.0.0/24"]["dev"], "v0")
        self.assertIn("2001:db8:9::/64", [r["dst"] for r in self.ns.ip(f"-6 route show table {table}")])
        # a marked question takes the network's table
        self.assertEqual(self.ns.ip("route get 8.8.8.8 mark 0x10064")[0]["gateway"], "10.9.0.2")
        await self.expect("network route remove 100 v0 10.66.0.0/16 unreachable", "200 success")
        await self.expect(
            "network route remove 100 v0 10.66.0.0/16 unreachable",
            "400 removeRoute() failed (No such process)",
        )
        await self.expect(
            "network route add 100 v0 10.1.0.0/16 nonsense", "400 addRoute() failed (Invalid argument)"
        )
        await self.expect("network route add 100 v0 nonsense", "400 addRoute() failed (Invalid argument)")
        await self.expect("network route add 100 lo 10.1.0.0/16", "400 addRoute() failed (No such device)")
        await self.expect(
            "network route add oem1 v0 10.1.0.0/16", "400 addRoute() failed (No such file or directory)"
        )
        await self.expect(
            "network route add 777 v0 10.1.0.0/16", "400 addRoute() failed (Machine is not on the network)"
        )
        await self.expect("network route what 100 v0 10.1.0.0/16", "500 Unknown argument")
        await self.expect("network route add 100 v0", "500 Incorrect number of arguments")
        await self.expect("network route legacy 1000 add 100 v0 10.44.0.0/16", "200 success")
        await self.expect("network route legacy 10001 add 100 v0 10.45.0.0/16", "200 success")
        self.assertEqual([r["dst"] for r in self.ns.ip("route show table 99")], ["10.44.0.0/16"])
        self.assertEqual([r["dst"] for r in self.ns.ip("route show table 98")], ["10.45.0.0/16"])
        await self.expect("network default set", "500 Missing netId")
        await self.expect("network default what", "500 Unknown argument")
        await self.expect("network default set 101", "400 setDefaultNetwork() failed (Invalid argument)")
        await self.expect(
            "network default set 777", "400 setDefaultNetwork() failed (Machine is not on the network)"
        )
        await self.expect("network default set 100", "200 success")
        self.assertIn(
            (22000, "0", "0xffff", None, None, None, table),
            [(*r[:1], r[1] or "0", *r[2:]) for r in self.rules()],
        )
        self.assertIn(21000, [r[0] for r in self.rules()])
        await self.expect("network permission network set SYSTEM 100", "200 success")
        self.assertIn((13000, "0xd0064", "0xdffff", None, None, None, table), self.rules())
        self.assertNotIn((13000, "0x10064", "0x1ffff", None, None, None, table), self.rules())
        await self.expect("network permission network clear 100", "200 success")
        await self.expect(
            "network permission network set SYSTEM 101",
            "400 setPermissionForNetworks() failed (Invalid argument)",
        )
        await self.expect("network permission user set NETWORK 10001", "200 success")
        await self.expect("network permission user clear 10001", "200 success")
        await self.expect("network permission user set NETWORK", "500 Missing id")
        await self.expect("network permission user set NETWORK x", "500 Invalid id")
        await self.expect("network permission user clear", "500 Missing argument")
        await self.expect("network permission user set WHAT 1", "500 Unknown permission")
        await self.expect("network permission user what 1", "500 Unknown argument")
        await self.expect("network permission what clear 1", "500 Unknown argument")
        await self.expect("network users add 101 10001-10010 10020", "200 success")
        await self.expect("network users add 100 10001", "400 addUsersToNetwork() failed (Invalid argument)")
        await self.expect("network users add 101 x", "500 Invalid UIDs")
        await self.expect("network users what 101 1", "500 Unknown argument")
        self.ns.run("ip link add b9 type bridge")
        await self.expect("network interface add 101 b9", "200 success")
        vpn = str(1000 + self.ns.ip("link show b9")[0]["ifindex"])
        uids = {
            (r["priority"], r.get("uid_start"), r.get("uid_end"))
            for r in self.ns.ip("rule")
            if r["table"] == vpn
        }
        self.assertIn((20000, 10001, 10010), uids)
        self.assertIn((13000, 10020, 10020), uids)
        await self.expect("network users remove 101 10001-10010", "200 success")
        await self.expect(
            "network users remove 101 10001-10010",
            "400 removeUsersFromNetwork() failed (No such file or directory)",
        )
        await self.expect("network protect allow 10001", "200 success")
        await self.expect("network protect deny 10001", "200 success")
        await self.expect("network protect what 10001", "500 Unknown argument")
        await self.expect("network protect allow", "500 Missing argument")
        await self.expect("network destroy local", "400 destroyNetwork() failed (Invalid argument)")
        await self.expect(
            "network destroy 777", "400 destroyNetwork() failed (Machine is not on the network)"
        )
        await self.expect("network destroy", "500 Incorrect number of arguments")
        await self.expect("network interface remove 101 b9", "200 success")
        await self.expect("network destroy 101", "200 success")
        await self.expect("network destroy 100", "200 success")
        self.assertEqual(self.ns.ip(f"route show table {table}"), [])
        await self.expect("network interface add local v0", "200 success")
        await self.expect("network route add local v0 10.9.0.0/24", "200 success")
        self.assertEqual([r["dst"] for r in self.ns.ip("route show table 97")], ["10.9.0.0/24"])
        self.ns.run("ip link del b9")
        await self.stop()
        self.assertEqual(self.ns.state(), before)

    async def test_resolver_replies(self) -> None:
        await self.start()
        wrong = "500 Wrong number of or invalid arguments to resolver setnetdns"
        await self.expect("resolver", "500 Resolver missing arguments")
        await self.expect("resolver setnetdns", "500 Resolver missing arguments")
        await self.expect("resolver what 100", "500 Resolver unknown command")
        await self.expect("resolver setnetdns 100 lan", wrong)
        await self.expect("resolver setnetdns 100 lan nine", wrong)
        await self.expect("resolver setnetdns 100 lan 9.9.9.9", "200 Resolver command succeeded")
        self.assertEqual(
            await self.tell(
                "resolver", "setnetdns", "100", "a.b c.d", "9.9.9.9", "::1", "--params", "60 50 2 4"
            ),
            ["200 Resolver command succeeded"],
        )
        assert self.netd.controllers is not None
        self.assertEqual(self.netd.controllers.resolver.domains(100), ["a.b", "c.d"])
        self.assertEqual(self.netd.controllers.resolver.servers(100), ["9.9.9.9", "::1"])
        self.assertEqual(
            await self.tell("resolver", "setnetdns", "100", "", "9.9.9.9", "::1", "--params", "60 50"),
            [wrong],
        )
        await self.expect("resolver flushnet 100", "200 Resolver command succeeded")
        await self.expect("resolver flushnet 100 x", "500 Wrong number of arguments to resolver flushnet")
        await self.expect(
            "resolver clearnetdns 100 x", "500 Wrong number of arguments to resolver clearnetdns"
        )
        await self.expect("resolver clearnetdns 100", "200 Resolver command succeeded")
        self.assertEqual(self.netd.controllers.resolver.servers(100), [])
