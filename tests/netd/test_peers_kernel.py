"""Peers written in C, as Android's are, against the daemon: the wire forms by the C compiler's own idea of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from twisted.internet.threads import deferToThread

from tests.netd.test_dns_kernel import DnsCase
from tests.support import need_tool

NO_DATA = 7
"""EAI_NODATA of bionic's netdb.h."""


class PeersTests(DnsCase):
    def setUp(self) -> None:
        super().setUp()
        self.program = os.path.join(self.directory, "peers")
        source = Path(__file__).with_name("peers.c")
        subprocess.run(
            [need_tool("gcc"), "-Wall", "-Werror", "-O1", "-o", self.program, str(source)], check=True
        )

    async def peer(self, what: str, name: str, *words: str) -> list[str]:
        path = os.path.join(self.directory, "s", name)
        done = await deferToThread(
            subprocess.run, [self.program, what, path, *words], capture_output=True, text=True, timeout=60
        )
        self.assertEqual(done.returncode, 0, (words, done.stdout, done.stderr))
        return [line for line in done.stdout.splitlines() if not line.startswith("6")]

    async def test_ndc(self) -> None:
        self.ns.run("ip link add b0 type bridge")
        await self.start()
        for words, replies in (
            ("interface list", ["110 0 lo", "110 0 b0", "200 0 Interface list completed"]),
            ("17 interface getmtu b0", ["224 17 MTU = 1500"]),
            ("what", ["500 0 Command not recognized"]),
            ("0x11 ipfwd status", ["211 17 Forwarding disabled"]),
        ):
            self.assertEqual(await self.peer("ndc", "netd", *words.split()), replies)
        setting = ["resolver", "setnetdns", "100", "a.org b.org", "9.9.9.9"]
        self.assertEqual(await self.peer("ndc", "netd", *setting), ["200 0 Resolver command succeeded"])
        assert self.netd.controllers is not None
        self.assertEqual(self.netd.controllers.resolver.domains(100), ["a.org", "b.org"])
        self.assertEqual(await self.peer("ndc", "mdns", "mdnssd", "what"), ["500 0 Unknown mdnssd cmd"])

    async def test_ndc_monitor(self) -> None:
        await self.start()
        words = [self.program, "ndc", os.path.join(self.directory, "s", "netd"), "monitor"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as monitor:
            try:
                # the connector is a client, too
                await self.until(lambda: len(self.netd.commands.clients) == 2, "the monitor is here")
                self.ns.run("ip link add b7 type bridge")
                assert monitor.stdout is not None
                lines = [await deferToThread(monitor.stdout.readline) for _ in range(2)]
            finally:
                monitor.kill()
        self.assertEqual(lines, ["600 Iface added b7\n", "600 Iface linkstate b7 down\n"])

    async def test_bionic(self) -> None:
        await self.up()
        found = await self.peer("getaddrinfo", "dnsproxyd", "host.example.org", "100")
        self.assertEqual(
            sorted(found), ["10.50.0.1 80 1 6", "10.50.0.2 80 1 6", "2001:db8::50 80 1 6"], found
        )
        self.assertEqual(
            await self.peer("getaddrinfo", "dnsproxyd", "none.example.org", "100"), [f"401 {NO_DATA}"]
        )
        self.assertEqual(
            await self.peer("gethostbyname", "dnsproxyd", "www.example.org", "100"),
            [
                "name v4.example.org",
                "alias www.example.org",
                "alias alias.example.org",
                "family 1",
                "length 4",
                "16 10.50.0.4",
            ],
        )

    async def test_libnetd_client(self) -> None:
        await self.start()
        await self.expect("network create 100", "200 success")
        # SELECT_NETWORK: the network, explicit, protected, and the permissions of root
        self.assertEqual(await self.peer("mark", "fwmarkd", "2", "100"), ["0 0xf0064"])
        self.assertEqual(await self.peer("mark", "fwmarkd", "2", "555"), ["-64 0"])
        self.assertEqual(await self.peer("mark", "fwmarkd", "9", "0"), ["-71 0"])
