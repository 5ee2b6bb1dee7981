"""Our adbd with adb 29 and adb 36 as client and server."""

from __future__ import annotations

import filecmp
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol

from anbox_tw.adb.daemon import DaemonConfig
from tests.adb.real import DaemonTestCase, RealAdb, reactor


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data.upper())


class Adb36Tests(DaemonTestCase):
    version = "36"

    async def attach(self, config: DaemonConfig | None = None, **environment: str) -> RealAdb:
        port = await self.serve(config)
        adb = RealAdb(self, self.version, **environment)
        result = await adb.connect(port)
        self.assertIn("connected to", result.text)
        return adb

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

    async def pause(self) -> None:
        from twisted.internet.task import deferLater

        await deferLater(reactor, 0.01)

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

    async def ask(self, port: int, data: bytes) -> bytes:
        from twisted.internet.endpoints import TCP4ClientEndpoint

        from anbox_tw.testing.adb import Collector

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


class Adb29Tests(Adb36Tests):
    version = "29"
