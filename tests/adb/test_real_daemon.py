"""Our adbd with adb 29 and adb 36 as client and server."""

from __future__ import annotations

import filecmp
import hashlib
import os
import socket
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from anbox_tw.adb import AdbKey, Authority, PublicKey
from anbox_tw.adb._jdwp import ProcessInfo
from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig
from anbox_tw.adb.daemon.control import DeviceControl
from anbox_tw.adb.daemon.logs import LogBuffer
from anbox_tw.adb.daemon.service import AdbdService, PairingService
from anbox_tw.testing.adb import Collector
from tests.adb.real import DaemonTestCase, RealAdb, reactor


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data.upper())


class RealTestCase(DaemonTestCase):
    version = "36"

    async def attach(self, config: DaemonConfig | None = None, **environment: str) -> RealAdb:
        port = await self.serve(config)
        adb = RealAdb(self, self.version, **environment)
        result = await adb.connect(port)
        self.assertIn("connected to", result.text)
        return adb

    async def pause(self) -> None:
        await deferLater(reactor, 0.01)

    async def ask(self, port: int, data: bytes) -> bytes:
        class Asking(Collector):
            def connectionMade(self) -> None:
                self.transport.write(data)

            def dataReceived(self, more: bytes) -> None:
                super().dataReceived(more)
                if len(self.data) >= len(data):
                    self.transport.loseConnection()

        asking: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(
            Factory.forProtocol(Asking)
        )
        answer: bytes = await asking.finished.addTimeout(20, reactor)
        return answer


class Adb36Tests(RealTestCase):
    async def test_devices(self) -> None:
        adb = await self.attach(DaemonConfig(product="p", model="A model", device="d"))
        result = await adb.run("devices", "-l")
        self.assertIn("device product:p model:A_model device:d", result.text)

    async def test_shell(self) -> None:
        adb = await self.attach()
        result = await adb.run("shell", "echo out; echo err >&2; exit 7")
        self.assertEqual((result.out, result.err, result.code), (b"out\n", b"err\n", 7))
        result = await adb.run("shell", "cat", stdin=b"typed\n" * 50000)
        self.assertEqual((result.out, result.code), (b"typed\n" * 50000, 0))
        result = await adb.run("shell", "kill -TERM $$")
        self.assertEqual(result.code, 143)
        result = await adb.run("shell", "-x", "echo old; echo err >&2")
        self.assertEqual(result.out, b"old\nerr\n")
        result = await adb.run("shell", "-tt", "test -t 0 && tty && exit 3")
        self.assertEqual(result.code, 3)
        self.assertIn(b"/dev/pts/", result.out)
        result = await adb.run("shell", stdin=b"echo $((6*7))\nexit 5\n")
        self.assertEqual((result.out, result.code), (b"42\n", 5))
        result = await adb.run("shell", "echo $TERM $HOME $0 $TMPDIR; pwd")
        self.assertIn(b"xterm", result.out)
        self.assertEqual(len(self.daemon.children), 0)

    async def test_exec(self) -> None:
        adb = await self.attach()
        result = await adb.run("exec-out", "head -c 3000000 /dev/zero; printf '\\r\\n\\0'")
        self.assertEqual(result.out, bytes(3000000) + b"\r\n\0")
        target = os.path.join(self.folder(), "in")
        result = await adb.run("exec-in", f"cat > {target}", stdin=b"\0\r\n" * 500000)
        while len(self.daemon.children):
            await self.pause()
        self.assertEqual(Path(target).read_bytes(), b"\0\r\n" * 500000)

    async def test_files(self) -> None:
        adb = await self.attach()
        folder = self.folder()
        source, there, back = (os.path.join(folder, name) for name in ("source", "new/dir/there", "back"))
        data = os.urandom(1 << 20) * 12 + b"tail"
        Path(source).write_bytes(data)
        os.utime(source, (1600000000, 1600000000))
        os.chmod(source, 0o640)
        result = await adb.run("push", source, there)
        self.assertEqual(result.code, 0, result.text)
        status = os.stat(there)
        self.assertEqual((int(status.st_mtime), stat.S_IMODE(status.st_mode)), (1600000000, 0o666))
        self.assertEqual(hashlib.sha256(Path(there).read_bytes()).digest(), hashlib.sha256(data).digest())
        result = await adb.run("pull", "-a", there, back)
        self.assertEqual(result.code, 0, result.text)
        self.assertTrue(filecmp.cmp(source, back, shallow=False))
        result = await adb.run("push", source, "/proc/nonsense")
        self.assertEqual(result.code, 1)
        self.assertIn("couldn't create file", result.text)
        result = await adb.run("pull", f"{folder}/missing", back)
        self.assertIn("No such file or directory", result.text)
        result = await adb.run("ls", folder)
        self.assertIn(" source\n", result.text)
        self.assertEqual(self.daemon.sync_threads.running, 0)

    async def test_trees(self) -> None:
        adb = await self.attach()
        folder = self.folder()
        tree = Path(folder, "tree")
        for index in range(300):
            path = tree / f"d{index % 7}" / f"f{index}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * (index * 41))
        (tree / "empty").write_bytes(b"")
        (tree / "link").symlink_to("empty")
        (tree / "dangling").symlink_to("nowhere")
        result = await adb.run("push", str(tree), f"{folder}/there")
        self.assertEqual(result.code, 0, result.text)
        self.assert_same_tree(str(tree), f"{folder}/there")
        self.assertEqual(os.readlink(f"{folder}/there/dangling"), "nowhere")
        result = await adb.run("push", str(tree) + "/.", f"{folder}/there")
        self.assertEqual(result.code, 0, result.text)
        os.unlink(tree / "dangling")
        os.unlink(f"{folder}/there/dangling")
        result = await adb.run("pull", f"{folder}/there", f"{folder}/back")
        self.assertEqual(result.code, 0, result.text)
        self.assert_same_tree(str(tree), f"{folder}/back")

    def assert_same_tree(self, one: str, other: str) -> None:
        compared = filecmp.dircmp(one, other)
        self.assertEqual((compared.left_only, compared.right_only, compared.diff_files), ([], [], []))
        for name in compared.subdirs:
            self.assert_same_tree(f"{one}/{name}", f"{other}/{name}")

    async def test_forward(self) -> None:
        adb = await self.attach()
        factory = Factory.forProtocol(Echo)
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(listening.stopListening)
        name = f"/tmp/anbox-tw-test-{os.getpid()}.sock"
        local = await serverFromString(reactor, f"unix:{name}:lockfile=0").listen(factory)
        self.addCleanup(local.stopListening)
        for remote in (f"tcp:{listening.getHost().port}", f"localfilesystem:{name}"):
            result = await adb.run("forward", "tcp:0", remote)
            port = int(result.out)
            self.assertEqual(await self.ask(port, b"x" * 200000), b"X" * 200000)
            await adb.run("forward", "--remove", f"tcp:{port}")
        result = await adb.run("forward", "tcp:0", "tcp:1")
        self.assertEqual(await self.ask(int(result.out), b"nobody"), b"")

    async def test_reverse(self) -> None:
        adb = await self.attach()
        factory = Factory.forProtocol(Echo)
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(listening.stopListening)
        remote = f"tcp:{listening.getHost().port}"
        port = int((await adb.run("reverse", "tcp:0", remote)).out)
        listed = await adb.run("reverse", "--list")
        self.assertIn(f"tcp:{port} {remote}\n".encode(), listed.out)
        self.assertEqual(await self.ask(port, b"y" * 300000), b"Y" * 300000)
        again = await adb.run("reverse", "--no-rebind", f"tcp:{port}", remote)
        self.assertIn("cannot rebind existing socket", again.text)
        self.assertEqual((await adb.run("reverse", "--remove", f"tcp:{port}")).code, 0)
        self.assertIn("not found", (await adb.run("reverse", "--remove", f"tcp:{port}")).text)
        name = f"localabstract:anbox-tw-{os.getpid()}"
        self.assertEqual((await adb.run("reverse", name, remote)).code, 0)
        self.assertEqual((await adb.run("reverse", "--remove-all")).code, 0)
        self.assertEqual((await adb.run("reverse", "--list")).out.strip(), b"")

    async def test_control_words(self) -> None:
        restarted: list[object] = []
        refusing = await self.attach()
        already = b"already running as root" if os.geteuid() == 0 else b"cannot run as root in production"
        self.assertIn(already, (await refusing.run("root")).out)
        self.assertIn("invalid port", (await refusing.run("tcpip", "99999")).text)
        self.assertIn("closed", (await refusing.run("usb")).text)
        control = DeviceControl(
            reboot=restarted.append, tcpip=restarted.append, usb=lambda: restarted.append("usb")
        )
        adb = await self.attach(DaemonConfig(control=control))
        await adb.run("reboot", "recovery")
        self.assertIn("restarting in TCP mode port: 5556", (await adb.run("tcpip", "5556")).text)
        self.assertIn("restarting in USB mode", (await adb.run("usb")).text)
        self.assertEqual(restarted, ["recovery", 5556, "usb"])

    async def test_packages_and_properties_and_log(self) -> None:
        folder = self.folder()
        logs = LogBuffer()
        logs.write("first line", tag="test")
        adb = await self.attach(
            DaemonConfig(packages=f"{folder}/packages", properties={"ro.product.model": "Model T"}, logs=logs)
        )
        with zipfile.ZipFile(f"{folder}/x.apk", "w") as apk:
            apk.writestr("AndroidManifest.xml", '<manifest package="org.example.x"/>')
            apk.writestr("padding", os.urandom(2_500_000))
        result = await adb.run("install", f"{folder}/x.apk")
        self.assertIn("Success", result.text)
        self.assertTrue(filecmp.cmp(f"{folder}/x.apk", f"{folder}/packages/org.example.x/base.apk"))
        self.assertEqual((await adb.run("shell", "pm list packages")).out, b"package:org.example.x\n")
        Path(folder, "bad.apk").write_bytes(b"not an apk")
        result = await adb.run("install", f"{folder}/bad.apk")
        self.assertIn("INSTALL_PARSE_FAILED_NOT_APK", result.text)
        result = await adb.run("install-multiple", f"{folder}/x.apk", f"{folder}/x.apk")
        self.assertIn("Success", result.text)
        self.assertEqual(sorted(os.listdir(f"{folder}/packages/org.example.x")), ["base.apk", "split_1.apk"])
        self.assertIn("Success", (await adb.run("uninstall", "org.example.x")).text)
        self.assertIn("Failure", (await adb.run("uninstall", "org.example.x")).text)
        self.assertEqual(os.listdir(f"{folder}/packages"), [])
        self.assertEqual((await adb.run("shell", "getprop ro.product.model")).out, b"Model T\n")
        self.assertIn(b"test    : first line\n", (await adb.run("logcat", "-d")).out)
        following = adb.start("logcat")
        await following.said(b"first line")
        logs.write("second line")
        await following.said(b"second line")
        following.process.signalProcess("KILL")  # type: ignore[attr-defined]
        await following.done

    async def test_debugger(self) -> None:
        name = f"\0anbox-tw-jdwp-{os.getpid()}"
        adb = await self.attach(DaemonConfig(jdwp=name))
        tracker = adb.start("track-jdwp")
        await tracker.said(b"0000")
        vms = []
        for pid, kind, hello in (
            (1001, socket.SOCK_STREAM, b"03e9"),
            (1002, socket.SOCK_SEQPACKET, b"03ea"),
            (1003, socket.SOCK_SEQPACKET, (1003).to_bytes(4, "little")),
            (1004, socket.SOCK_SEQPACKET, struct.pack("<QBB2xi16s", 1004, 1, 0, 5, b"arm64")),
            (1005, socket.SOCK_SEQPACKET, ProcessInfo(1005, process_name="com.app").encode()),
        ):
            vm = socket.socket(socket.AF_UNIX, kind)
            self.addCleanup(vm.close)
            vm.connect(name)
            vm.send(hello)
            vms.append(vm)
            await tracker.said(b"%d\n" % pid)
        listed = adb.start("jdwp")
        await listed.said(b"1001\n1002\n1003\n1004\n1005\n")
        for vm, pid in zip(vms, range(1001, 1006), strict=True):
            port = int((await adb.run("forward", "tcp:0", f"jdwp:{pid}")).out)
            asking = Deferred.fromCoroutine(self.ask(port, b"JDWP-Handshake"))
            data, fds, _, _ = await deferToThread(socket.recv_fds, vm, 1, 1)
            self.assertEqual(data, b"!" if pid < 1004 else b"\0")
            with socket.socket(fileno=fds[0]) as debugger:
                debugger.setblocking(True)
                answering = deferToThread(self.echo_once, debugger)
                self.assertEqual(await asking, b"JDWP-Handshake")
                await answering
        vms[0].close()
        await tracker.said(b"0014")
        for command in (tracker, listed):
            if not command.done.called:
                command.process.signalProcess("KILL")  # type: ignore[attr-defined]
            await command.done

    @staticmethod
    def echo_once(one: socket.socket) -> None:
        one.sendall(one.recv(14))

    async def test_keys(self) -> None:
        store = os.path.join(self.folder(), "adb_keys")
        authority = Authority("refuse", store=store)
        port = await self.serve(DaemonConfig(authority=authority))
        adb = RealAdb(self, self.version)
        self.assertIn("failed to authenticate", (await adb.connect(port)).text)
        self.assertIn("unauthorized", (await adb.run("shell", "true")).text)
        with open(os.path.join(adb.home, ".android", "adbkey.pub")) as key:
            authority.allow(PublicKey.from_text(key.read()))
        serial, adb.serial = adb.serial, ""
        await adb.run("disconnect", serial)
        self.assertIn("connected to", (await adb.connect(port)).text)
        self.assertEqual((await adb.run("shell", "echo in")).out, b"in\n")
        with open(store) as kept:
            self.assertEqual(len(kept.readlines()), 1)

    async def test_client_killed_in_the_middle_leaves_nothing(self) -> None:
        adb = await self.attach()
        folder = self.folder()
        with open(f"{folder}/huge", "wb") as file:
            file.truncate(6 << 30)
        pushing = adb.start("push", f"{folder}/huge", f"{folder}/there")
        while not os.path.exists(f"{folder}/there"):
            await self.pause()
        pushing.process.signalProcess("KILL")  # type: ignore[attr-defined]
        await pushing.done
        shell = adb.start("shell", "echo started; exec sleep 1000")
        await shell.said(b"started")
        self.assertEqual(len(self.daemon.children), 1)
        shell.process.signalProcess("KILL")  # type: ignore[attr-defined]
        await shell.done
        while self.daemon.sync_threads.running or len(self.daemon.children):
            await self.pause()
        self.assertFalse(os.path.exists(f"{folder}/there"))

    async def test_many_shells(self) -> None:
        adb = await self.attach()
        running = [adb.start("shell", f"echo {index}; exit {index}") for index in range(60)]
        for index, command in enumerate(running):
            result = await command.done
            self.assertEqual((result.out, result.code), (b"%d\n" % index, index))


class BurstModeTests(Adb36Tests):
    """adb 36 with delayed acknowledgements."""

    async def attach(self, config: DaemonConfig | None = None, **environment: str) -> RealAdb:
        adb = await super().attach(config, ADB_BURST_MODE="1", **environment)
        (transport,) = [one for one in self.daemon.transports]
        self.assertTrue(transport.connection.delayed_ack)
        return adb


class OnlyIn36Tests(RealTestCase):
    """What adb 29 does not know."""

    async def test_compression(self) -> None:
        adb = await self.attach()
        folder = self.folder()
        data = (b"compressible " * 1000 + os.urandom(1000)) * 200
        Path(folder, "source").write_bytes(data)
        for name in ("any", "none", "brotli", "lz4", "zstd"):
            result = await adb.run("push", "-z", name, f"{folder}/source", f"{folder}/there-{name}")
            self.assertEqual(result.code, 0, result.text)
            self.assertEqual(Path(folder, f"there-{name}").read_bytes(), data)
            result = await adb.run("pull", "-z", name, f"{folder}/there-{name}", f"{folder}/back-{name}")
            self.assertEqual(result.code, 0, result.text)
            self.assertEqual(Path(folder, f"back-{name}").read_bytes(), data)
        result = await adb.run("push", "-n", f"{folder}/source", f"{folder}/dry")
        self.assertEqual(result.code, 0, result.text)
        self.assertFalse(os.path.exists(f"{folder}/dry"))

    async def test_pairing_and_tls(self) -> None:
        authority = Authority("refuse")
        daemon = AdbDaemon(reactor, DaemonConfig(authority=authority))
        key = AdbKey.generate("device")
        service = AdbdService(reactor, daemon)
        endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        listener = service.listen(endpoint, tls_key=key)
        pairing = PairingService(reactor, endpoint, daemon, key, "123456", "adb-test-abcdef")
        pairing.setServiceParent(service)
        service.finish()
        service.startService()
        self.addCleanup(service.stopService)
        port, pair_port = (one._port.getHost().port for one in (listener, pairing))  # type: ignore[union-attr]
        adb = RealAdb(self, "36")
        self.assertIn("failed to connect", (await adb.connect(port)).text)
        serial, adb.serial = adb.serial, ""
        await adb.run("disconnect", serial)
        self.assertNotIn("Successfully", (await adb.run("pair", f"localhost:{pair_port}", "654321")).text)
        result = await adb.run("pair", f"localhost:{pair_port}", "123456")
        self.assertIn(f"Successfully paired to localhost:{pair_port} [guid=adb-test-abcdef]", result.text)
        self.assertIsNotNone(await pairing.paired)
        self.assertIn("connected to", (await adb.connect(port)).text)
        result = await adb.run("shell", "head -c 5000000 /dev/zero | wc -c; exit 9")
        self.assertEqual((result.out.strip(), result.code), (b"5000000", 9))
        (transport,) = daemon.transports
        self.assertIn(transport.peer_public_key, authority.keys())


class Adb29Tests(Adb36Tests):
    version = "29"
