"""``anbox adb`` as users run it."""

from __future__ import annotations

import filecmp
import json
import os
import sys
from pathlib import Path

from twisted.internet.endpoints import serverFromString

from anbox_tw.adb import AdbKey
from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig
from anbox_tw.adb.daemon.service import AdbdService, PairingService
from tests.adb.real import Command, DaemonTestCase, RealAdb, Result, reactor
from tests.support import REPOSITORY

TIMEOUT_S = 40


class CommandLineTests(DaemonTestCase):
    async def start(self) -> None:
        self.port = await self.serve(DaemonConfig(properties={"ro.a": "b"}))
        self.adb = RealAdb(self, "36")
        await self.adb.run("start-server")
        self.direct = ("--direct", f"localhost:{self.port}")

    async def run_cli(self, *arguments: str, stdin: bytes = b"") -> Result:
        command = Command(stdin)
        argv = [sys.executable, "-m", "anbox_tw.cli", "adb", *arguments]
        environment = {**self.adb.environment, "PYTHONPATH": str(REPOSITORY)}
        reactor.spawnProcess(command, sys.executable, argv, environment)
        return await command.done.addTimeout(TIMEOUT_S, reactor)

    async def test_straight_to_a_device(self) -> None:
        await self.start()
        result = await self.run_cli(*self.direct, "shell", "cat; echo err >&2; exit 7", stdin=b"typed")
        self.assertEqual((result.out, result.err, result.code), (b"typed", b"err\n", 7))
        folder = self.folder()
        Path(folder, "source").write_bytes(os.urandom(300_000))
        result = await self.run_cli(*self.direct, "push", f"{folder}/source", f"{folder}/there")
        self.assertIn("1 file pushed", result.text)
        result = await self.run_cli(*self.direct, "pull", "-a", f"{folder}/there", f"{folder}/back")
        self.assertIn("1 file pulled", result.text)
        self.assertTrue(filecmp.cmp(f"{folder}/source", f"{folder}/back", shallow=False))
        result = await self.run_cli(*self.direct, "ls", "--json", folder)
        self.assertEqual([entry["name"] for entry in json.loads(result.out)], ["back", "source", "there"])
        result = await self.run_cli(*self.direct, "exec-out", "head -c 5 /dev/zero")
        self.assertEqual(result.out, bytes(5))

    async def test_through_a_server(self) -> None:
        await self.start()
        result = await self.run_cli("connect", f"localhost:{self.port}")
        self.assertIn("connected to", result.text)
        result = await self.run_cli("devices", "--json")
        self.assertEqual(json.loads(result.out)[0]["state"], "device")
        result = await self.run_cli("forward", "tcp:0", "tcp:9")
        port = result.out.decode().strip()
        result = await self.run_cli("forward", "--list")
        self.assertEqual(result.out.decode(), f"localhost:{self.port} tcp:{port} tcp:9\n")
        self.assertEqual((await self.run_cli("forward", "--remove-all")).code, 0)
        self.assertEqual((await self.run_cli("shell", "getprop", "ro.a")).out, b"b\n")

    async def test_pair_and_end(self) -> None:
        # The program ends as soon as it is paired: what it told of itself has to be out by then.
        await self.start()
        daemon = AdbDaemon(reactor)
        service = AdbdService(reactor, daemon)
        service.finish()
        endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        pairing = PairingService(reactor, endpoint, daemon, AdbKey.generate("device"), "123456", "adb-guid")
        pairing.setServiceParent(service)
        service.startService()
        self.addCleanup(service.stopService)
        port = pairing._port.getHost().port  # type: ignore[union-attr]
        result = await self.run_cli("pair", f"localhost:{port}", "123456")
        self.assertEqual((result.code, "Successfully paired" in result.text), (0, True), result.text)
        self.assertIsNotNone(await pairing.paired.addTimeout(TIMEOUT_S, reactor))

    async def test_errors_have_their_exit_codes(self) -> None:
        await self.start()
        result = await self.run_cli(*self.direct, "devices")
        self.assertEqual((result.code, "no meaning" in result.text), (2, True))
        result = await self.run_cli(*self.direct, "pull", "/bin/sh", "/proc/none/x")
        self.assertEqual((result.code, "Traceback" in result.text), (1, False))
        result = await self.run_cli("-s", "nowhere", "shell", "true")
        self.assertEqual(result.code, 3)
        self.assertIn("device 'nowhere' not found", result.text)
        self.assertEqual((await self.run_cli("shell", "--nonsense")).code, 3)
        self.assertEqual((await self.run_cli("push", "/nonexistent", "/x")).code, 2)
        self.assertEqual((await self.run_cli("forward", "tcp:1")).code, 2)
        result = await self.run_cli("--direct", "localhost:1", "shell", "true")
        self.assertEqual(result.code, 3)
