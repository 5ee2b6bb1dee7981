"""A bridge of containers through netd's own code, proven by packets."""

from __future__ import annotations

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

    def test_what_cannot_be(self) -> None:
        self.assertRaises(ConfigError, Bridge, reactor, "b0", "ten")
        self.assertRaises(ConfigError, Bridge, reactor, "bad/name", "10.0.0.1/24")
