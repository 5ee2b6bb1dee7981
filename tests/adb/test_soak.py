"""Large and many: a big file, a tree of small files, hundreds of shells; our adbd in a process of its own, whose memory is looked at.

``ANBOX_TW_SOAK=1`` takes 2 GB and 10,000 files; otherwise 50 MB and 500, by the same way.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from anbox_tw.adb.client import Device, connect_device
from tests.adb.real import Command, RealAdb, reactor
from tests.support import REPOSITORY

LARGE = os.environ.get("ANBOX_TW_SOAK") == "1"
SIZE = 2_000_000_000 if LARGE else 50_000_000
FILES = 10_000 if LARGE else 500
SHELLS = 200
GROWTH = 64 << 20
"""Bytes of memory a transfer of any size may cost our adbd: a window of delayed acknowledgements, and buffers."""


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SoakTests(TestCase):
    timeout = 1200 if LARGE else 120

    async def start(self) -> int:
        """An adbd as a program; its port."""
        self.command = Command(None)
        arguments = ["-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "anbox-adbd"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COVERAGE_PROCESS_START": ""}
        process = reactor.spawnProcess(
            self.command,
            sys.executable,
            [sys.executable, *arguments, "--listen", "tcp:0:interface=127.0.0.1"],
            environment,
        )

        async def end() -> None:
            process.signalProcess("TERM")
            await self.command.done

        self.addCleanup(end)
        self.pid = process.pid
        while (found := re.search(rb"starting on (\d+)", self.command.out)) is None:
            await deferLater(reactor, 0.02)
        return int(found[1])

    def memory(self, what: str) -> int:
        """``VmRSS`` or ``VmHWM`` of the adbd, in bytes."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith(what))) * 1024

    async def device(self, port: int) -> Device:
        device = await connect_device(reactor, f"127.0.0.1:{port}", keys=[])
        self.addCleanup(device.close)
        return device

    def folder(self) -> str:
        path: str = os.path.abspath(self.mktemp())
        os.makedirs(path)
        return path

    async def test_a_large_file(self) -> None:
        folder = self.folder()
        with open(f"{folder}/source", "wb") as file:
            block = os.urandom(1_000_000)
            for index in range(SIZE // len(block)):
                file.write(index.to_bytes(4, "big") + block[4:])
        wanted = await deferToThread(digest, f"{folder}/source")
        port = await self.start()
        before = self.memory("VmRSS")
        adb = RealAdb(self, "36")
        await adb.connect(port)
        for verb, source, target in (("push", "source", "there"), ("pull", "there", "back")):
            running = adb.start(verb, "-Z", f"{folder}/{source}", f"{folder}/{target}")
            result = await running.done
            self.assertEqual(result.code, 0, result.text)
            self.assertEqual(await deferToThread(digest, f"{folder}/{target}"), wanted)
        await adb.run("disconnect")
        device = await self.device(port)
        await device.push(f"{folder}/source", f"{folder}/there", compression="none")
        await device.pull(f"{folder}/there", f"{folder}/back")
        self.assertEqual(await deferToThread(digest, f"{folder}/back"), wanted)
        peak = self.memory("VmHWM")
        self.assertLess(peak - before, GROWTH)
        if LARGE:
            sys.stdout.write(f"\nadbd: {before >> 20} MiB before, {peak >> 20} MiB at most\n")

    async def test_many_small_files(self) -> None:
        folder = self.folder()
        for index in range(FILES):
            path = Path(folder, "tree", f"d{index % 100}", f"f{index}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%d\n" % index * (index % 300))
        port = await self.start()
        before = self.memory("VmRSS")
        device = await self.device(port)
        await device.push(f"{folder}/tree", f"{folder}/there")
        await device.pull(f"{folder}/there", f"{folder}/back")
        adb = RealAdb(self, "36")
        await adb.connect(port)
        result = await adb.start("push", f"{folder}/tree/.", f"{folder}/adb").done
        self.assertEqual(result.code, 0, result.text)
        for name in ("there", "back", "adb"):
            found = {str(path.relative_to(f"{folder}/{name}")) for path in Path(folder, name).rglob("f*")}
            self.assertEqual(len(found), FILES)
            for index in range(0, FILES, 37):
                path = Path(folder, name, f"d{index % 100}", f"f{index}")
                self.assertEqual(path.read_bytes(), b"%d\n" % index * (index % 300))
        self.assertLess(self.memory("VmHWM") - before, GROWTH)

    async def test_many_shells_at_once(self) -> None:
        device = await self.device(await self.start())
        running: list[Deferred[Any]] = [
            device.shell(f"echo {number}; exit {number % 100}") for number in range(SHELLS)
        ]
        for number, waiting in enumerate(running):
            result = await waiting
            self.assertEqual((result.stdout, result.exit_code), (b"%d\n" % number, number % 100))
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        while children.read_text().strip():
            await deferLater(reactor, 0.02)
