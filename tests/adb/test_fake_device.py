"""The device for tests: scripts, files, latency, faults, transcripts, and the pytest fixture."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from anbox_tw.adb import StreamRefused
from anbox_tw.adb.client import Device, connect_device
from anbox_tw.errors import AdbError, TimedOut
from anbox_tw.testing.adb_device import FakeDevice, ShellReply, load_transcript
from tests.adb.real import DaemonTestCase, RealAdb, reactor
from tests.support import REPOSITORY


class FakeDeviceTests(DaemonTestCase):
    async def start(self, **settings: Any) -> tuple[FakeDevice, Device]:
        fake = FakeDevice(reactor, **settings)
        self.addCleanup(fake.stop)
        await fake.start()
        device = await fake.connect()
        self.addCleanup(device.close)
        return fake, device

    async def test_scripts_and_files(self) -> None:
        fake, device = await self.start(
            properties={"ro.product.model": "Model T"},
            files={"/sdcard/a/b": b"content"},
            shell={
                "id": "uid=0(root)\n",
                "fail": ShellReply("out", "err", 3),
                "echo it": lambda line: line.upper(),
            },
            strict=True,
        )
        self.assertEqual((await device.shell("id")).text, "uid=0(root)\n")
        result = await device.shell("fail")
        self.assertEqual((result.stdout, result.stderr, result.exit_code), (b"out", b"err", 3))
        self.assertEqual((await device.shell("echo it")).text, "ECHO IT")
        self.assertEqual((await device.shell("unknown command")).exit_code, 127)
        self.assertEqual(await device.getprop("ro.product.model"), "Model T")
        self.assertEqual(await device.read_file("/sdcard/a/b"), b"content")
        folder = self.folder()
        Path(folder, "x").write_bytes(b"pushed")
        await device.push(f"{folder}/x", "/data/local/tmp/x")
        self.assertEqual(Path(fake.root, "data/local/tmp/x").read_bytes(), b"pushed")
        self.assertIn("sync:", fake.requests)

    async def test_real_adb_sees_it(self) -> None:
        fake, _ = await self.start(shell={"id": "uid=0(root)\n"})
        adb = RealAdb(self, "36")
        await adb.connect(fake.port)
        self.assertEqual((await adb.run("shell", "id")).out, b"uid=0(root)\n")

    async def test_faults(self) -> None:
        fake, device = await self.start(shell={"id": "x"})
        fake.refuse("shell", times=1)
        await self.assertFailure(device.shell("id"), StreamRefused)
        self.assertEqual((await device.shell("id")).text, "x")
        fake.ignore("shell")
        await self.assertFailure(device.shell("id", timeout=0.2), TimedOut)
        fake.drop("shell")
        await self.assertFailure(device.shell("id"), AdbError)
        device = await fake.connect()
        folder = self.folder()
        Path(folder, "big").write_bytes(os.urandom(5_000_000))
        fake.cut("sync:", after=2_000_000)
        await self.assertFailure(device.push(f"{folder}/big", "/sdcard/big"), AdbError)
        device = await fake.connect()
        await device.push(f"{folder}/big", "/sdcard/big")
        fake.disconnect()
        await self.assertFailure(device.shell("id"), AdbError)
        fake.refuse("shell")
        fake.heal()
        device = await fake.connect()
        self.assertEqual((await device.shell("id")).text, "x")
        await device.close()

    async def test_latency(self) -> None:
        fake, device = await self.start(shell={"id": "x"}, latency=0.2)
        began = time.monotonic()
        self.assertEqual((await device.shell("id")).text, "x")
        self.assertGreaterEqual(time.monotonic() - began, 0.2)
        fake.shell["slow"] = ShellReply("y", delay=0.1)
        self.assertEqual((await device.shell("slow")).text, "y")
        await self.assertFailure(device.open("nothing"), StreamRefused)

    async def test_record_and_replay(self) -> None:
        fake, device = await self.start(files={"/sdcard/f": os.urandom(200_000)}, shell={"id": "x"})
        content = await device.read_file("/sdcard/f")
        listed = await device.listdir("/sdcard")
        text = (await device.shell("id")).text
        await self.assertFailure(device.open("nothing"), StreamRefused)
        path = f"{self.folder()}/transcript.json"
        fake.save_transcript(path)
        other, again = await self.start()
        other.replay(load_transcript(path))
        self.assertEqual(await again.read_file("/sdcard/f"), content)
        self.assertEqual(await again.listdir("/sdcard"), listed)
        self.assertEqual((await again.shell("id")).text, text)
        await self.assertFailure(again.open("nothing"), StreamRefused)
        await self.assertFailure(again.shell("id"), StreamRefused)

    async def test_it_leaves_nothing(self) -> None:
        fake = FakeDevice(reactor)
        await fake.start()
        await fake.stop()
        self.assertFalse(os.path.exists(fake.root))
        await self.assertFailure(connect_device(reactor, fake.serial, keys=[]), AdbError)

    async def test_pytest_fixture(self) -> None:
        folder = self.folder()
        Path(folder, "test_it.py").write_text(
            "import subprocess, sys\n"
            'pytest_plugins = ["anbox_tw.testing.pytest_plugin"]\n'
            "def test_it(adb_device):\n"
            '    device = adb_device(shell={"id": "uid=0"}, files={"/sdcard/f": "text"})\n'
            "    from adb_shell.adb_device import AdbDeviceTcp\n"
            '    client = AdbDeviceTcp("127.0.0.1", device.port, 10)\n'
            "    client.connect()\n"
            '    assert client.shell("id") == "uid=0"\n'
            '    assert client.stat("/sdcard/f")[1] == 4\n'
            "    client.close()\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=folder
            )

        done = await deferToThread(run)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
