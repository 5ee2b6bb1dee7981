"""Being known to the ADB server of the host: scripted servers with a fake clock, and the real adb 29 and 36."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.errors import ConfigError
from anbox_tw.network import DelegateCreator, TcpListener
from anbox_tw.qemu import adb_server_link
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.qemu.adb_server_link import ABSENT, NO_SERVER, AdbServerLink, serial_of
from tests.qemu.scripted import RealAdb, ScriptedAdbd
from tests.support import adb_binaries


class AddressTests(SynchronousTestCase):
    def test_notations(self) -> None:
        for text, address in (
            ("5038", AdbServerAddress(port=5038)),
            ("tcp:5038", AdbServerAddress(port=5038)),
            ("tcp:farm:5038", AdbServerAddress("farm", 5038)),
            ("farm:5038", AdbServerAddress("farm", 5038)),
            ("tcp:[::1]:5038", AdbServerAddress("::1", 5038)),
            ("localfilesystem:/run/adb", AdbServerAddress("", 0, "/run/adb")),
            ("unix:/run/adb", AdbServerAddress("", 0, "/run/adb")),
            ("localabstract:adb", AdbServerAddress("", 0, "\0adb")),
        ):
            self.assertEqual(AdbServerAddress.parse(text), address, text)
            self.assertEqual(AdbServerAddress.parse(str(address)), address)

    def test_what_is_no_address(self) -> None:
        for text in ("", "tcp:", "farm", "farm:", "farm:0", "farm:65536", "tcp:x:y", "localabstract:", "1٣"):
            with self.assertRaises(ConfigError):
                AdbServerAddress.parse(text)

    def test_environment(self) -> None:
        read = AdbServerAddress.from_environment
        self.assertEqual(read({}), AdbServerAddress("127.0.0.1", 5037))
        self.assertEqual(read({"ANDROID_ADB_SERVER_PORT": "7000"}), AdbServerAddress("127.0.0.1", 7000))
        both = {"ANDROID_ADB_SERVER_PORT": "7000", "ANDROID_ADB_SERVER_ADDRESS": "farm"}
        self.assertEqual(read(both), AdbServerAddress("farm", 7000))
        self.assertEqual(read({**both, "ADB_SERVER_SOCKET": "tcp:1"}), AdbServerAddress("127.0.0.1", 1))
        for name in ("ADB_SERVER_SOCKET", "ANDROID_ADB_SERVER_PORT"):
            with self.assertRaises(ConfigError) as caught:
                read({name: "nonsense"})
            self.assertIn(name, str(caught.exception))
        self.assertIsInstance(AdbServerAddress.from_environment(), AdbServerAddress)

    def test_endpoints(self) -> None:
        memory = MemoryReactorClock()
        self.assertIsInstance(AdbServerAddress().endpoint(memory), TCP4ClientEndpoint)
        self.assertIsInstance(AdbServerAddress("farm", 1).endpoint(reactor), HostnameEndpoint)
        self.assertIsInstance(AdbServerAddress("", 0, "/x").endpoint(memory), UNIXClientEndpoint)


class Transport(StringTransport):
    protocol: Any

    def abortConnection(self) -> None:
        if not self.disconnected:
            self.disconnected = True
            self.protocol.connectionLost(Failure(connectionDone.value))


class ScriptedServerTests(SynchronousTestCase):
    """The server is played by the test, time by the clock."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.link = AdbServerLink(self.reactor, AdbServerAddress(port=7000))
        self.states: list[str] = []
        self.link.observe(self.states.append)
        self.addCleanup(self.link.stopService)
        self.served = 0

    def serve(self) -> Transport:
        """Accept the oldest connection attempt."""
        self.assertLess(self.served, len(self.reactor.tcpClients), "nobody connects")
        factory = self.reactor.tcpClients[self.served][2]
        self.served += 1
        transport = Transport(IPv4Address("TCP", "127.0.0.1", 7000))
        transport.protocol = factory.buildProtocol(transport.getPeer())
        transport.protocol.makeConnection(transport)
        return transport

    def refuse(self) -> None:
        host, port, factory, _, _ = self.reactor.tcpClients[self.served]
        self.served += 1
        factory.clientConnectionFailed(
            self.reactor.connectors[self.served - 1], Failure(ConnectionRefusedError())
        )

    @property
    def attempts(self) -> int:
        return len(self.reactor.tcpClients) - self.served

    def tracker(self, devices: bytes = b"") -> Transport:
        server = self.serve()
        self.assertEqual(server.value(), b"0012host:track-devices")
        server.protocol.dataReceived(b"OKAY%04x" % len(devices) + devices)
        return server

    def advance(self, seconds: float) -> None:
        # a little more than asked for: the sum of many floats is a little less
        self.reactor.pump([0.05] * round(seconds / 0.05) + [0.001])

    def test_a_server_that_does_not_know_the_device_is_told(self) -> None:
        self.link.register(5555)
        self.link.startService()
        server = self.tracker()
        self.assertEqual(self.states, [ABSENT])
        self.advance(0.2)
        announcement = self.serve()
        self.assertEqual(announcement.value(), b"0012host:emulator:5555")
        announcement.abortConnection()
        server.protocol.dataReceived(b"0016emulator-5554\toffline\n")
        server.protocol.dataReceived(b"0015emulator-5554\tdevice\n")
        self.assertEqual(self.states, [ABSENT, "offline", "device"])
        self.advance(30)
        self.assertEqual(self.attempts, 0)
        self.successResultOf(self.link.stopService())
        self.assertTrue(server.disconnected)
        self.assertEqual(self.states[-1], NO_SERVER)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_server_that_scans_by_itself_is_not_told(self) -> None:
        self.link.register(5555)
        self.link.startService()
        server = self.tracker()
        self.advance(0.1)
        server.protocol.dataReceived(b"0015emulator-5554\tdevice\n")
        self.advance(30)
        self.assertEqual(self.attempts, 0)

    def test_a_server_that_forgets_is_told_again_and_ever_less_often(self) -> None:
        self.link.register(5557)
        self.link.startService()
        self.tracker(b"emulator-5554\tdevice\n")
        times = []
        for _ in range(6):
            began = self.reactor.seconds()
            while not self.attempts:
                self.advance(0.05)
            times.append(round(self.reactor.seconds() - began, 1))
            self.serve().abortConnection()
        self.assertEqual(times, [0.2, 1.0, 2.0, 4.0, 8.0, 8.0])

    def test_an_announcement_that_hangs_or_fails_is_made_again(self) -> None:
        self.link.register(5555)
        self.link.startService()
        self.tracker()
        self.advance(0.2)
        hung = self.serve()
        self.advance(5.0)
        self.assertTrue(hung.disconnected)
        self.advance(1.0)
        self.refuse()
        self.advance(2.0)
        self.assertEqual(self.serve().value(), b"0012host:emulator:5555")

    def test_a_lost_server_is_looked_for_with_short_waits(self) -> None:
        self.link.register(5555)
        self.link.startService()
        self.tracker(b"emulator-5554\tdevice\n").abortConnection()
        self.assertEqual(self.states, ["device", NO_SERVER])
        began = self.reactor.seconds()
        for _ in range(10):
            while not self.attempts:
                self.advance(0.05)
            self.refuse()
        self.assertLess(self.reactor.seconds() - began, 3.0)
        self.advance(0.3)
        self.tracker(b"emulator-5554\tdevice\n")
        self.assertEqual(self.states[-1], "device")

    def test_servers_that_say_nonsense_or_nothing_are_left(self) -> None:
        self.link.startService()
        for said in (b"FAIL0004nope", b"OKAYzzzz", b"HTTP/1.1"):
            server = self.serve()
            server.protocol.dataReceived(said)
            self.assertTrue(server.disconnected)
            self.advance(0.3)
        silent = self.serve()
        self.advance(adb_server_link.FIRST_FRAME_TIMEOUT_S)
        self.assertTrue(silent.disconnected)
        self.advance(0.3)
        self.assertEqual(self.attempts, 1)
        self.assertEqual(self.states, [])

    def test_a_frame_may_come_in_pieces(self) -> None:
        self.link.register(5555)
        self.link.startService()
        server = self.serve()
        for byte in b"OKAY0015emulator-5554\tdevice\n":
            server.protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.states, ["device"])

    def test_unregistering_ends_the_announcements(self) -> None:
        self.link.register(5555)
        self.link.startService()
        self.tracker()
        self.link.unregister()
        self.advance(10)
        self.assertEqual(self.attempts, 0)
        self.assertIsNone(self.link.port)
        self.link.register(5559)
        self.advance(0.2)
        self.assertEqual(self.serve().value(), b"0012host:emulator:5559")

    def test_a_connection_with_ourselves_is_no_server(self) -> None:
        self.link.startService()
        factory = self.reactor.tcpClients[0][2]
        here = IPv4Address("TCP", "127.0.0.1", 7000)
        transport = Transport(here, here)
        transport.protocol = factory.buildProtocol(here)
        transport.protocol.makeConnection(transport)
        self.assertTrue(transport.disconnected)

    def test_stopping_in_each_state(self) -> None:
        def announcing() -> None:
            self.link.register(5555)
            self.tracker()
            self.advance(0.2)

        def announced() -> None:
            announcing()
            self.serve()

        steps: list[Callable[[], object]] = [
            lambda: None,
            self.refuse,
            self.serve,
            self.tracker,
            announcing,
            announced,
        ]
        for prepare in steps:
            self.setUp()
            self.link.startService()
            self.link.startService()
            prepare()
            self.successResultOf(self.link.stopService())
            self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_an_observer_may_leave(self) -> None:
        seen: list[str] = []
        leave = self.link.observe(seen.append)
        leave()
        leave()
        self.link.startService()
        self.tracker()
        self.assertEqual(seen, [])
        self.assertEqual(self.states, [ABSENT])


class RealServerTests(TestCase):
    """A device must be back within 3 s of a new server, found by its own scan or not."""

    timeout = 60

    async def comes_back(self, version: str, port: int, *, scan: bool) -> None:
        server = RealAdb(adb_binaries()[version], scan=scan)
        self.addCleanup(lambda: ensureDeferred(server.stop()))
        device = TcpListener(reactor, port, DelegateCreator(lambda address: ScriptedAdbd()), name="device")
        device.startService()
        self.addCleanup(device.stopService)
        link = AdbServerLink(reactor, AdbServerAddress(port=server.port))
        link.register(port)
        link.startService()
        self.addCleanup(link.stopService)
        # The session never starts a server: only these calls do.
        for _ in range(3):
            began = reactor.seconds()
            while (await server.devices()).get(serial_of(port)) != "device":
                self.assertLess(reactor.seconds() - began, 3.0, "the device did not come back")
                await deferLater(reactor, 0.05)
            while link.state != "device":
                self.assertLess(reactor.seconds() - began, 3.0, "the link did not see it")
                await deferLater(reactor, 0.01)
            await server.run("kill-server")
        while link.state != NO_SERVER:
            await deferLater(reactor, 0.01)

    async def test_adb_29_scanning(self) -> None:
        await self.comes_back("29", 5575, scan=True)

    async def test_adb_36_scanning(self) -> None:
        await self.comes_back("36", 5577, scan=True)

    async def test_adb_29_told(self) -> None:
        await self.comes_back("29", 5601, scan=False)

    async def test_adb_36_told(self) -> None:
        await self.comes_back("36", 5603, scan=False)
