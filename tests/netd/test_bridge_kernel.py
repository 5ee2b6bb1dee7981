"""A bridge of containers through netd's own code, proven by packets."""

from __future__ import annotations

import os
import socket

from twisted.internet import reactor

from anbox_tw.errors import ConfigError
from anbox_tw.netd.bridge import Bridge
from anbox_tw.netd.errors import KernelRefused
from tests.netd.test_packets_kernel import PacketCase


class BridgeTests(PacketCase):
    async def test_a_container_reaches_beyond_the_host(self) -> None:
        guest, outer = self.space(), self.space()
        self.veth(self.ns, "out0", outer, "o0")
        self.ns.run("ip addr add 10.2.0.1/24 dev out0")
        outer.run("ip addr add 10.2.0.2/24 dev o0")
        self.serve(outer)
        self.veth(guest, "eth0", self.ns, "tap0")
        before = await self.settled(self.ns)
        bridge = Bridge(reactor, "test0", "10.77.0.1/24", namespace=self.ns.namespace)
        await bridge.make()
        self.ns.run("ip link set tap0 master test0")
        guest.run("ip addr add 10.77.0.2/24 dev eth0")
        guest.run("ip route add default via 10.77.0.1")
        self.assertEqual(self.ns.ip("-d link show test0")[0]["linkinfo"]["info_data"]["forward_delay"], 0)
        self.assertEqual(await self.tcp(guest, "10.2.0.2"), "10.2.0.1")
        with self.assertRaises(KernelRefused):
            await Bridge(reactor, "test0", "10.78.0.1/24", namespace=self.ns.namespace).make()
        with self.assertRaises(KernelRefused):
            await Bridge(reactor, "out0", "10.78.0.1/24", namespace=self.ns.namespace).make()
        self.assertEqual(await self.tcp(guest, "10.2.0.2"), "10.2.0.1")
        self.ns.run("ip link set tap0 nomaster")
        await bridge.unmake()
        await bridge.unmake()
        self.assertEqual(self.ns.state(), before)

    async def test_forwarding_is_shared(self) -> None:
        """Whoever switches forwarding on does not switch it off while another needs it; the last one does."""
        path = "/proc/sys/net/ipv4/ip_forward"
        before = await self.settled(self.ns)
        await self.start()

        def switch() -> str:
            return self.ns.namespace.read_file(path).strip()

        def bridge(number: int) -> Bridge:
            return Bridge(reactor, f"test{number}", f"10.7{number}.0.1/24", namespace=self.ns.namespace)

        on, off = "ipfwd enable x", "ipfwd disable x"
        # netd first, and first to leave
        await self.expect(on, "200 ipfwd operation succeeded")
        one, two = bridge(1), bridge(2)
        await one.make()
        await two.make()
        await self.expect(off, "200 ipfwd operation succeeded")
        self.assertEqual(switch(), "1")
        await one.unmake()
        self.assertEqual(switch(), "1")
        await two.unmake()
        self.assertEqual(switch(), "0")
        # a bridge first, and first to leave
        await one.make()
        await self.expect(on, "200 ipfwd operation succeeded")
        await one.unmake()
        self.assertEqual(switch(), "1")
        await self.expect(off, "200 ipfwd operation succeeded")
        self.assertEqual(switch(), "0")
        # what the host's administrator has switched on stays
        self.ns.namespace.write_file(path, "1")
        await self.expect(on, "200 ipfwd operation succeeded")
        await one.make()
        await self.expect(off, "200 ipfwd operation succeeded")
        await one.unmake()
        self.assertEqual(switch(), "1")
        await self.stop()
        self.assertEqual(switch(), "1")
        self.ns.namespace.write_file(path, "0")
        self.assertEqual(self.ns.state(), before)

    async def test_names_in_the_way_of_claims(self) -> None:
        """Anybody may take an abstract name; nonsense in it harms nobody."""
        for name in (
            "anbox-forwarding/4/9/1.2.x",
            "anbox-forwarding/4",
            "anbox-forwarding/4/1/y",
            "anbox-forwarding/4/1x/1.2.y",
            # a child of one that was killed, which holds it for a moment
            f"anbox-forwarding/4/1/{os.readlink('/proc/self/ns/pid')[5:-1]}.4194305.z",
        ):
            taken = self.ns.namespace.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.addCleanup(taken.close)
            taken.bind("\0" + name)
        bridge = Bridge(reactor, "test0", "10.77.0.1/24", namespace=self.ns.namespace)
        before = await self.settled(self.ns)
        await bridge.make()
        await bridge.unmake()
        self.assertEqual(self.ns.state(), before)

    def test_what_cannot_be(self) -> None:
        self.assertRaises(ConfigError, Bridge, reactor, "b0", "ten")
        self.assertRaises(ConfigError, Bridge, reactor, "bad/name", "10.0.0.1/24")
