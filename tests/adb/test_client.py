"""Our client: straight to our adbd, through our server, and through adb 36's server."""

from __future__ import annotations

import filecmp
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from anbox_tw.adb import AdbKey, Authority
from anbox_tw.adb.client import (
    AdbClient,
    Device,
    DeviceNotFound,
    DeviceOffline,
    DeviceUnauthorized,
    InstallFailed,
    Progress,
    RemoteFailure,
    ServerNotRunning,
    SyncFailure,
    connect_device,
    pair_device,
)
from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig
from anbox_tw.adb.daemon.logs import LogBuffer
from anbox_tw.adb.daemon.service import AdbdService, PairingService
from anbox_tw.adb.server.server import AdbServer
from anbox_tw.errors import AdbError, TimedOut
from anbox_tw.testing.adb import Collector
from tests.adb.real import DaemonTestCase, RealAdb, free_port, reactor
from tests.support import need_root


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data.upper())


async def ask(port: int, data: bytes) -> bytes:
    class Asking(Collector):
        def connectionMade(self) -> None:
            self.transport.write(data)

        def dataReceived(self, more: bytes) -> None:
            super().dataReceived(more)
            if len(self.data) >= len(data):
                self.transport.loseConnection()

    asking: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(Factory.forProtocol(Asking))
    answer: bytes = await asking.finished.addTimeout(20, reactor)
    return answer


class DirectTests(DaemonTestCase):
    """Without a server."""

    async def device(self, config: DaemonConfig | None = None) -> Device:
        port = await self.serve(config)
        device = await connect_device(reactor, f"localhost:{port}", keys=[])
        self.addCleanup(device.close)
        return device

    async def test_shell(self) -> None:
        device = await self.device()
        result = await device.shell("echo out; echo err >&2; exit 7")
        self.assertEqual((result.stdout, result.stderr, result.exit_code), (b"out\n", b"err\n", 7))
        data = os.urandom(3_000_000)
        result = await device.shell("cat", stdin=data)
        self.assertEqual(result.stdout, data)
        result = await device.shell(["printf", "%s", "it's; $HOME"])
        self.assertEqual(result.text, "it's; $HOME")
        failure = await self.assertFailure(device.shell("sleep 100", timeout=0.3), TimedOut)
        self.assertIn("sleep 100", str(failure))
        self.assertEqual(await device.state(), "device")

    async def test_shell_without_v2(self) -> None:
        device = await self.device(DaemonConfig(features=("cmd",)))
        result = await device.shell("echo out; echo err >&2; exit 7")
        self.assertEqual((result.stdout, result.exit_code), (b"out\nerr\n", None))

    async def test_interactive_shell(self) -> None:
        device = await self.device()
        session = await device.open_shell(term="xterm", stall_timeout=20)
        session.resize(50, 132)
        session.write(b"stty size; exit 3\n")
        seen = b""
        async for _, data in session:
            seen += data
        self.assertIn(b"50 132", seen)
        self.assertEqual(session.exit_code, 3)

    async def test_signal_reaches_the_job_in_front(self) -> None:
        device = await self.device()
        session = await device.open_shell(
            "trap 'echo caught; exit 9' INT; echo ready; read x", pty=True, stall_timeout=20
        )
        seen = b""
        async for _, data in session:
            seen += data
            if b"ready" in seen and b"^C" not in seen and b"caught" not in seen:
                session.write(b"\x03")
        self.assertIn(b"caught", seen)
        self.assertEqual(session.exit_code, 9)

    async def test_cancel_ends_the_command(self) -> None:
        device = await self.device()
        running = device.shell("sleep 1000", timeout=None)
        while not await self.children():
            await deferLater(reactor, 0.01)
        running.cancel()
        await self.assertFailure(running, CancelledError)
        while await self.children():
            await deferLater(reactor, 0.01)

    async def children(self) -> int:
        return len(self.daemon.children)

    async def test_exec(self) -> None:
        device = await self.device()
        self.assertEqual(await device.exec_out("printf '\\r\\n\\0'"), b"\r\n\0")
        target = f"{self.folder()}/in"
        await device.exec_in(f"cat > {target}", b"z" * 3_000_000)
        while not os.path.exists(target) or os.path.getsize(target) < 3_000_000:
            await deferLater(reactor, 0.01)

    async def test_files(self) -> None:
        device = await self.device()
        folder = self.folder()
        Path(folder, "source").write_bytes(os.urandom(5_000_000) + b"text" * 500_000)
        os.utime(f"{folder}/source", (1_600_000_000, 1_600_000_000))
        for codec in ("none", "any", "brotli", "lz4", "zstd"):
            seen: list[Progress] = []
            await device.push(
                f"{folder}/source", f"{folder}/{codec}", compression=codec, progress=seen.append
            )
            self.assertTrue(filecmp.cmp(f"{folder}/source", f"{folder}/{codec}", shallow=False), codec)
            self.assertEqual((seen[-1].done, seen[-1].total), (7_000_000, 7_000_000))
            await device.pull(f"{folder}/{codec}", f"{folder}/back-{codec}", compression=codec)
            self.assertTrue(filecmp.cmp(f"{folder}/source", f"{folder}/back-{codec}", shallow=False), codec)
        self.assertEqual(await device.push(f"{folder}/source", f"{folder}/dry", dry_run=True), 1)
        self.assertFalse(os.path.exists(f"{folder}/dry"))
        status = await device.stat(f"{folder}/any")
        self.assertEqual((status.size, status.mtime, status.is_dir), (7_000_000, 1_600_000_000, False))
        self.assertFalse((await device.stat(f"{folder}/missing")).exists)
        names = {entry.name for entry in await device.listdir(folder)}
        self.assertIn("source", names)
        self.assertEqual(await device.listdir(f"{folder}/missing"), [])
        failure = await self.assertFailure(device.push(f"{folder}/source", "/proc/nothing"), SyncFailure)
        self.assertIn("couldn't create file", str(failure))
        await self.assertFailure(device.pull(f"{folder}/missing", f"{folder}/x"), SyncFailure)
        self.assertEqual([name for name in os.listdir(folder) if "part" in name], [])

    async def test_a_device_node_is_written_to_and_not_replaced(self) -> None:
        need_root()
        device = await self.device()
        folder = self.folder()
        node = f"{folder}/null"
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        for name, size in (("small", 10), ("large", 300_000)):
            Path(folder, name).write_bytes(os.urandom(size))
            await device.pull(f"{folder}/{name}", node)
            self.assertTrue(stat.S_ISCHR(os.stat(node).st_mode), name)

    async def test_trees(self) -> None:
        device = await self.device()
        folder = self.folder()
        for index in range(200):
            path = Path(folder, "tree", f"d{index % 5}", f"f{index}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"y" * (index * 700))
        Path(folder, "tree", "link").symlink_to("d0/f0")
        self.assertEqual(await device.push(f"{folder}/tree", f"{folder}/there"), 201)
        self.assertEqual(await device.push(f"{folder}/tree/", f"{folder}/there2", resume=True), 201)
        Path(folder, "tree", "d1", "f1").write_bytes(b"changed")
        self.assertEqual(await device.push(f"{folder}/tree/.", f"{folder}/there", resume=True), 2)
        self.assertEqual(Path(folder, "there", "d1", "f1").read_bytes(), b"changed")
        self.assertEqual(await device.pull(f"{folder}/there", f"{folder}/back"), 201)
        self.assertEqual(await device.pull(f"{folder}/there/.", f"{folder}/back", resume=True), 0)
        compared = filecmp.dircmp(f"{folder}/tree", f"{folder}/back")
        self.assertEqual((compared.left_only, compared.right_only, compared.diff_files), ([], [], []))

    async def test_old_device(self) -> None:
        device = await self.device(DaemonConfig(features=(), max_payload=4096))
        folder = self.folder()
        Path(folder, "source").write_bytes(os.urandom(300_000))
        await device.push(f"{folder}/source", f"{folder}/there")
        await device.pull(f"{folder}/there", f"{folder}/back")
        self.assertTrue(filecmp.cmp(f"{folder}/source", f"{folder}/back", shallow=False))
        self.assertTrue((await device.stat(folder)).is_dir)
        self.assertEqual(len(await device.listdir(folder)), 3)

    async def echo_port(self) -> int:
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(
            Factory.forProtocol(Echo)
        )
        self.addCleanup(listening.stopListening)
        return int(listening.getHost().port)

    async def test_forwards(self) -> None:
        device = await self.device()
        remote = f"tcp:{await self.echo_port()}"
        port = await device.forward("tcp:0", remote)
        assert port is not None
        self.assertEqual(await ask(port, b"f" * 100_000), b"F" * 100_000)
        self.assertEqual([item[1:] for item in await device.list_forwards()], [(f"tcp:{port}", remote)])
        await self.assertFailure(device.forward(f"tcp:{port}", remote, rebind=False), AdbError)
        await device.remove_forward(f"tcp:{port}")
        await self.assertFailure(device.remove_forward(f"tcp:{port}"), AdbError)
        port = await device.reverse("tcp:0", remote)
        assert port is not None
        self.assertEqual(await ask(port, b"r" * 100_000), b"R" * 100_000)
        self.assertEqual([item[1:] for item in await device.list_reverses()], [(f"tcp:{port}", remote)])
        await device.remove_reverse()
        self.assertEqual(await device.list_reverses(), [])
        await device.forward("tcp:0", remote)
        await device.remove_forward()

    async def test_packages_log_and_control(self) -> None:
        folder = self.folder()
        logs = LogBuffer()
        logs.write("a line")
        device = await self.device(
            DaemonConfig(packages=f"{folder}/packages", logs=logs, properties={"ro.x": "y"})
        )
        with zipfile.ZipFile(f"{folder}/x.apk", "w") as apk:
            apk.writestr("AndroidManifest.xml", '<manifest package="org.example.x"/>')
            apk.writestr("padding", os.urandom(2_500_000))
        await device.install(f"{folder}/x.apk")
        await device.install([f"{folder}/x.apk", f"{folder}/x.apk"])
        self.assertEqual(await device.packages(), ["org.example.x"])
        await device.uninstall("org.example.x")
        await self.assertFailure(device.uninstall("org.example.x"), InstallFailed)
        Path(folder, "bad.apk").write_bytes(b"nothing")
        installing: Deferred[Any] = device.install(f"{folder}/bad.apk")
        failure = await self.assertFailure(installing, InstallFailed)
        self.assertIn("NOT_APK", str(failure))
        self.assertEqual(await device.getprop("ro.x"), "y")
        log = await device.logcat("-d")
        self.assertIn(b"a line", await log.read_all())
        following = await device.logcat()
        while b"a line" not in await following.read():
            pass
        logs.write("and another")
        self.assertIn(b"and another", await following.read())
        following.close()
        self.assertIn("failed", await device.reboot())
        self.assertIn("root", await device.root())
        self.assertEqual(await device.jdwp(), [])
        await self.assertFailure(device.open("nothing:"), AdbError)


class ThroughServer(DaemonTestCase):
    """Puts a server in between."""

    client: AdbClient

    async def start_server(self) -> AdbClient:
        port = free_port()
        server = AdbServer(
            reactor, serverFromString(reactor, f"tcp:{port}:interface=127.0.0.1"), keys=[AdbKey.generate("x")]
        )
        server.startService()
        self.addCleanup(server.stopService)
        return AdbClient(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", port))

    async def device(self, config: DaemonConfig | None = None) -> Device:
        port = await self.serve(config)
        self.client = await self.start_server()
        await self.client.connect(f"localhost:{port}")
        self.name = f"localhost:{port}"
        return self.client.device(self.name)


class ServerRequestTests(ThroughServer):
    """Our own server."""

    async def test_server_requests(self) -> None:
        device = await self.device()
        self.assertEqual(await self.client.version(), 41)
        (info,) = await self.client.devices()
        self.assertEqual((info.serial, info.state, info.properties["model"]), (self.name, "device", "Anbox"))
        self.assertEqual(await device.serial(), self.name)
        await device.wait_for("device", timeout=5)
        by_id = self.client.device(transport_id=int(info.properties["transport_id"]))
        self.assertEqual((await by_id.shell("echo id")).stdout, b"id\n")
        tracking = self.client.track_devices()
        self.assertEqual([one.serial for one in await anext(tracking)], [self.name])
        await self.client.disconnect(self.name)
        while await anext(tracking):
            pass
        await tracking.aclose()
        await self.assertFailure(device.shell("true"), DeviceNotFound)
        await self.assertFailure(self.client.device().shell("true"), DeviceNotFound)
        await self.assertFailure(self.client.connect("localhost:1"), DeviceOffline)
        await self.assertFailure(self.client.query("host:nonsense"), RemoteFailure)
        await self.assertFailure(self.client.device("x").wait_for("device", timeout=0.2), TimedOut)


class OurServerTests(ThroughServer, DirectTests):
    """Everything that goes straight to a device, through our server."""


class Google36(ThroughServer):
    """adb 36's own server."""

    version = "36"

    async def start_server(self) -> AdbClient:
        adb = RealAdb(self, self.version)
        await adb.run("start-server")
        return AdbClient(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", adb.port))


class Google36Tests(Google36, DirectTests):
    """Everything, through adb 36's server."""


class Google36ServerRequestTests(Google36, ServerRequestTests):
    """The server's own requests, of adb 36's server."""


class Google29ServerRequestTests(Google36, ServerRequestTests):
    """The server's own requests, of adb 29's server."""

    version = "29"


class AccessTests(DaemonTestCase):
    async def test_no_server(self) -> None:
        client = AdbClient(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", free_port()))
        await self.assertFailure(client.devices(), ServerNotRunning)

    async def test_no_device(self) -> None:
        await self.assertFailure(connect_device(reactor, f"localhost:{free_port()}", keys=[]), DeviceOffline)

    async def test_unknown_key(self) -> None:
        port = await self.serve(DaemonConfig(authority=Authority("refuse")))
        key = AdbKey.generate("x")
        connecting = connect_device(reactor, f"localhost:{port}", keys=[key], timeout=0.5)
        await self.assertFailure(connecting, DeviceUnauthorized)
        self.daemon.config.authority.allow(key.public)
        device = await connect_device(reactor, f"localhost:{port}", keys=[AdbKey.generate("y"), key])
        self.assertEqual((await device.shell("echo in")).stdout, b"in\n")
        await device.close()

    async def test_pair_and_tls(self) -> None:
        authority = Authority("refuse")
        daemon = AdbDaemon(reactor, DaemonConfig(authority=authority))
        device_key, key = AdbKey.generate("device"), AdbKey.generate("me@here")
        service = AdbdService(reactor, daemon)
        endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        listener = service.listen(endpoint, tls_key=device_key)
        pairing = PairingService(reactor, endpoint, daemon, device_key, "123456", "adb-guid")
        pairing.setServiceParent(service)
        service.finish()
        service.startService()
        self.addCleanup(service.stopService)
        port, pair_port = (one._port.getHost().port for one in (listener, pairing))  # type: ignore[union-attr]
        await self.assertFailure(connect_device(reactor, f"localhost:{port}", keys=[key]), DeviceOffline)
        await self.assertFailure(pair_device(reactor, f"localhost:{pair_port}", "000000", key=key), AdbError)
        self.assertEqual(await pair_device(reactor, f"localhost:{pair_port}", "123456", key=key), "adb-guid")
        self.assertEqual(await pairing.paired, key.public)
        device = await connect_device(reactor, f"localhost:{port}", keys=[key])
        self.assertEqual((await device.shell("head -c 3000000 /dev/zero")).stdout, bytes(3000000))
        daemon.revoke(key.public)
        await self.assertFailure(device.shell("true"), AdbError)
        await device.close()
        await self.assertFailure(connect_device(reactor, f"localhost:{port}", keys=[key]), DeviceOffline)
