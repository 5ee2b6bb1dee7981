"""``adb pair`` and TLS through our server, by unmodified clients; and devices found by mDNS."""

from __future__ import annotations

import os
import types
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.adb.auth import Authority
from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig
from anbox_tw.adb.daemon.announce import TLS as TLS_LOCAL
from anbox_tw.adb.daemon.announce import AnnouncementService
from anbox_tw.adb.daemon.service import AdbdService, PairingService
from anbox_tw.adb.keys import AdbKey
from anbox_tw.adb.server import AdbServer
from anbox_tw.adb.server._proto import embedded
from anbox_tw.adb.server.discovery import MAX_FOUND, PLAIN, TLS, Found, MdnsDiscovery, auto_connected
from anbox_tw.adb.server.known_hosts import KnownHosts
from anbox_tw.adb.server.pairing import Pairer
from tests.adb.real import RealAdb, reactor
from tests.adb.server.test_real_clients import ask

GUID = "adb-ANBOX0001-abcDEF"
CODE = "123456"


class KnownHostsTests(SynchronousTestCase):
    def hosts(self) -> KnownHosts:
        folder = self.mktemp()
        self.path = os.path.join(folder, "adb_known_hosts.pb")
        return KnownHosts(self.path)

    def test_remembers_each_once_in_adbs_format(self) -> None:
        hosts = self.hosts()
        self.assertEqual(hosts.guids(), [])
        for guid in ("adb-a-1", "adb-b-2", "adb-a-1", "", "x" * 300):
            hosts.add(guid)
        with open(self.path, "rb") as file:
            self.assertEqual(file.read(), b"\x0a\x09\x0a\x07adb-a-1\x0a\x09\x0a\x07adb-b-2")
        self.assertEqual(KnownHosts(self.path).guids(), ["adb-a-1", "adb-b-2"])
        self.assertTrue(hosts.knows("adb-b-2"))
        self.assertFalse(hosts.knows("adb-c"))
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["adb_known_hosts.pb"])

    def test_a_file_that_is_none_is_empty(self) -> None:
        hosts = self.hosts()
        os.makedirs(os.path.dirname(self.path))
        for data in (b"\xff" * 40, b"\x0a\x7f", b"\x0b", b"\x0a\x02\x0a\x00", b"\x08" + b"\x80" * 20):
            with open(self.path, "wb") as file:
                file.write(data)
            self.assertEqual(hosts.guids(), [], data)
        with open(self.path, "wb") as file:
            file.write(b"\x0a" * (1 << 20) + b"\x0a")
        self.assertEqual(hosts.guids(), [])

    def test_other_fields_are_skipped(self) -> None:
        data = b"\x10\x96\x01" + b"\x1d1234" + b"\x1912345678" + b"\x12\x01z" + b"\x0a\x02ab"
        self.assertEqual(list(embedded(data, 1)), [b"ab"])


class WirelessTestCase(TestCase):
    timeout = 60
    version = "36"

    async def device(self) -> None:
        """An adbd with wireless debugging: TLS and a pairing port."""
        key = AdbKey.generate()
        daemon = AdbDaemon(reactor, DaemonConfig(model="Anbox", authority=Authority("refuse")))
        service = AdbdService(reactor, daemon)
        tls = service.listen(serverFromString(reactor, "tcp:0:interface=127.0.0.1"), tls_key=key)
        pairing = PairingService(
            reactor, serverFromString(reactor, "tcp:0:interface=127.0.0.1"), daemon, key, CODE, GUID
        )
        pairing.setServiceParent(service)
        service.finish()
        service.startService()
        self.addCleanup(service.stopService)
        self.tls_port, self.pair_port = (one._port.getHost().port for one in (tls, pairing))  # type: ignore[union-attr]

    async def begin(self) -> RealAdb:
        await self.device()
        adb = RealAdb(self, self.version)
        self.hosts = KnownHosts(os.path.join(adb.home, ".android", "adb_known_hosts.pb"))
        key = AdbKey.generate()
        self.server = AdbServer(
            reactor,
            TCP4ServerEndpoint(reactor, adb.port, interface="127.0.0.1"),
            keys=[key],
            pairing=Pairer(reactor, key, self.hosts),
        )
        self.server.startService()
        self.addCleanup(self.server.stopService)
        return adb


class PairingTests(WirelessTestCase):
    async def test_a_client_pairs_and_connects_by_tls(self) -> None:
        adb = await self.begin()
        where = f"localhost:{self.tls_port}"
        # Unknown, a wrong code, the right one.
        self.assertIn("failed to", (await adb.run("connect", where)).text)
        await adb.run("disconnect")
        said = await adb.run("pair", f"localhost:{self.pair_port}", "654321")
        self.assertNotEqual(said.code, 0)
        self.assertEqual(self.hosts.guids(), [])
        said = await adb.run("pair", f"localhost:{self.pair_port}", CODE)
        self.assertEqual(
            said.text.strip(), f"Successfully paired to localhost:{self.pair_port} [guid={GUID}]"
        )
        self.assertEqual(self.hosts.guids(), [GUID])
        self.assertEqual((await adb.run("connect", where)).text, f"connected to {where}\n")
        adb.serial = where
        said = await adb.run("shell", "echo by tls; exit 7")
        self.assertEqual((said.out, said.code), (b"by tls\n", 7))

    async def test_replies_to_what_fails(self) -> None:
        adb = await self.begin()
        not_started = b"OKAYFAIL0029Failed: Unable to start pairing client."
        for request, answer in (
            (
                f"host:pair:654321:localhost:{self.pair_port}",
                b"OKAYFAIL0031Failed: Wrong password or connection was dropped.",
            ),
            ("host:pair:654321:localhost:1", not_started),
            (
                "host:pair:654321:localhost",
                b"OKAYFAIL0040Failed to parse address for pairing: no port in 'localhost'",
            ),
        ):
            said = await deferToThread(ask, adb.port, request)
            self.assertEqual(said[:8], answer[:8])
            self.assertEqual(said[12:], answer[12:])
            self.assertEqual(int(said[8:12], 16), len(said) - 12)

    async def test_without_keys_nothing_is_paired(self) -> None:
        adb = RealAdb(self, self.version)
        server = AdbServer(reactor, TCP4ServerEndpoint(reactor, adb.port, interface="127.0.0.1"))
        server.startService()
        self.addCleanup(server.stopService)
        said = await deferToThread(ask, adb.port, "host:pair:1:localhost:2")
        self.assertTrue(said.startswith(b"OKAYFAIL"), said)


class DiscoveryTests(TestCase):
    timeout = 30

    def discovery(self) -> MdnsDiscovery:
        self.connected: list[tuple[str, str, int]] = []

        def connect(serial: str, host: str, port: int) -> Deferred[Any]:
            self.connected.append((serial, host, port))
            return succeed("connected")

        self.hosts = KnownHosts(os.path.join(self.mktemp(), "hosts"))
        found = MdnsDiscovery(reactor, self.hosts, connect, library=types.SimpleNamespace())
        found.running = True
        return found

    def test_what_the_environment_says(self) -> None:
        for text, services in (
            ("0", set()),
            ("all", {PLAIN, TLS}),
            ("adb", {PLAIN}),
            ("adb,adb-tls-connect", {PLAIN, TLS}),
            ("adb-tls-pairing,nosuch", set()),
        ):
            self.assertEqual(auto_connected({"ADB_MDNS_AUTO_CONNECT": text}), services)
        self.assertEqual(auto_connected({}), {TLS})

    def test_only_paired_devices_are_connected(self) -> None:
        found = self.discovery()
        found._add(Found(GUID, TLS, "10.0.0.1", 40000))
        found._add(Found("adb-EMULATOR-1", TLS, "10.0.0.2", 40000))
        found._add(Found("plain", PLAIN, "fe80::1", 5555))
        found._add(Found("bad\nline", PLAIN, "10.0.0.3", 5555))
        self.assertEqual(self.connected, [])
        self.assertEqual(
            found.listing(), f"{GUID}\t{TLS}\t10.0.0.1:40000\nadb-EMULATOR-1\t{TLS}\t10.0.0.2:40000\n"
            f"plain\t{PLAIN}\t[fe80::1]:5555\n"
        )  # fmt: skip
        self.hosts.add(GUID)
        found.paired(GUID)
        serial = f"{GUID}.{TLS}"
        self.assertEqual(self.connected, [(serial, "10.0.0.1", 40000)])
        for name in (GUID, serial, f"{serial}.local."):
            self.assertEqual(found.resolve(name), Found(GUID, TLS, "10.0.0.1", 40000))
        self.assertIsNone(found.resolve("localhost:5555"))

    def test_a_flood_of_announcements_is_bounded(self) -> None:
        found = self.discovery()
        for number in range(MAX_FOUND + 10):
            found._add(Found(f"adb-{number}", PLAIN, "10.0.0.1", 5555))
        self.assertEqual(found.listing().count("\n"), MAX_FOUND)


class MdnsTests(WirelessTestCase):
    """A paired device that announces itself is connected by itself."""

    async def test_announced_found_connected(self) -> None:
        adb = await self.begin()
        connecting: Deferred[str] = Deferred()

        def connect(serial: str, host: str, port: int) -> Deferred[Any]:
            done: Deferred[Any] = Deferred.fromCoroutine(
                self.server.links.connect_service(serial, host, port)
            )

            def told(text: str) -> str:
                if not connecting.called:
                    connecting.callback(text)
                return text

            return done.addCallback(told)

        discovery = MdnsDiscovery(reactor, self.hosts, connect, interfaces=["127.0.0.1"])
        self.server.mdns = discovery
        discovery.startService()
        self.addCleanup(discovery.stopService)
        announced = AnnouncementService(
            reactor, GUID, [(TLS_LOCAL, self.tls_port)], "Anbox", addresses=["127.0.0.1"]
        )
        await adb.run("pair", f"localhost:{self.pair_port}", CODE)
        announced.startService()
        self.addCleanup(announced.stopService)
        serial = f"{GUID}.{TLS}"
        self.assertEqual(await connecting.addTimeout(20, reactor), f"connected to {serial}")
        self.assertIn(b"OKAY", await deferToThread(ask, adb.port, "host:mdns:check"))
        self.assertIn("mdns daemon version [zeroconf", (await adb.run("mdns", "check")).text)
        self.assertIn(f"{GUID}\t{TLS}\t127.0.0.1:{self.tls_port}", (await adb.run("mdns", "services")).text)
        self.assertIn(f"{serial}\tdevice", (await adb.run("devices")).text)
        self.assertIn("already connected", (await adb.run("connect", GUID)).text)
        adb.serial = serial
        self.assertEqual((await adb.run("shell", "echo found")).out, b"found\n")
