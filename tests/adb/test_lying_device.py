"""Our client against devices that lie, stop in the middle, or fail."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Protocol

from anbox_tw.adb import _sync
from anbox_tw.adb.client import Device, StreamEnded, SyncFailure, connect_device
from anbox_tw.adb.client.sync import choose_codec
from anbox_tw.adb.daemon import DaemonConfig
from anbox_tw.errors import AdbError, PeerError
from tests.adb.real import DaemonTestCase, reactor

REGULAR = _sync.STAT_V1.pack(_sync.LSTAT_V1, stat.S_IFREG | 0o644, 200_000, 1)
SMALL = _sync.STAT_V1.pack(_sync.LSTAT_V1, stat.S_IFREG | 0o644, 10, 1)
FOLDER = _sync.STAT_V1.pack(_sync.LSTAT_V1, stat.S_IFDIR | 0o755, 10, 1)
DONE_LIST = b"DONE" + bytes(16)


class Says(Protocol):
    """Says its words whatever it hears, then closes."""

    def __init__(self, words: bytes) -> None:
        self._words = words

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(self._words)
        self._words = b""
        self.transport.loseConnection()


def entry(name: bytes, mode: int = stat.S_IFREG | 0o644) -> bytes:
    return _sync.DENT_V1_FIELDS.pack(_sync.DENT_V1, mode, 5, 1, len(name)) + name


class LyingDeviceTests(DaemonTestCase):
    async def device(self, words: bytes) -> Device:
        port = await self.serve(DaemonConfig(features=("sendrecv_v2",)))
        self.daemon.services["sync"] = lambda _argument, _stream: Says(words)
        device = await connect_device(reactor, f"localhost:{port}", keys=[])
        self.addCleanup(device.close)
        return device

    async def test_files(self) -> None:
        for words, kind in (
            (REGULAR + _sync.header(b"DATA", 1 << 20), PeerError),
            (REGULAR + b"NOPE" + bytes(4), PeerError),
            (REGULAR + _sync.header(b"DATA", 100) + b"half", StreamEnded),
            (REGULAR + _sync.header(b"FAIL", 4) + b"text", SyncFailure),
            (SMALL + _sync.header(b"FAIL", 4) + b"text", SyncFailure),
            (SMALL + (_sync.header(b"DATA", 65536) + bytes(65536)) * 70, SyncFailure),
            (b"WHAT" + bytes(12), PeerError),
            (REGULAR[:10], StreamEnded),
            (_sync.STAT_V1.pack(_sync.LSTAT_V1, 0, 0, 0), SyncFailure),
        ):
            folder = self.folder()
            device = await self.device(words)
            pulling: Any = device.pull("/x", f"{folder}/x")
            await self.assertFailure(pulling, kind)
            self.assertEqual(os.listdir(folder), [])

    async def test_no_name_leads_out_of_the_target(self) -> None:
        for name in (b"../evil", b"/evil", b"a/b"):
            folder = self.folder()
            device = await self.device(FOLDER + entry(name) + DONE_LIST)
            pulling: Any = device.pull("/x", f"{folder}/x")
            await self.assertFailure(pulling, PeerError)
            self.assertEqual(os.listdir(folder), [])
        device = await self.device(entry(b"x" * 300) + DONE_LIST)
        await self.assertFailure(device.listdir("/"), PeerError)
        device = await self.device(b"WHAT" + bytes(16))
        await self.assertFailure(device.listdir("/"), PeerError)

    async def test_pushes(self) -> None:
        folder = self.folder()
        Path(folder, "small").write_bytes(b"small")
        Path(folder, "large").write_bytes(os.urandom(3_000_000))
        for name in ("small", "large"):
            for words, kind in (
                (SMALL + _sync.header(b"FAIL", 7) + b"no room", SyncFailure),
                (SMALL + b"WHAT" + bytes(4), PeerError),
                (SMALL + b"OK", StreamEnded),
            ):
                device = await self.device(words)
                pushing: Any = device.push(f"{folder}/{name}", "/x", compression="none")
                await self.assertFailure(pushing, kind)

    async def test_what_cannot_be_copied(self) -> None:
        folder = self.folder()
        os.mkfifo(f"{folder}/pipe")
        port = await self.serve()
        device = await connect_device(reactor, f"localhost:{port}", keys=[])
        self.addCleanup(device.close)
        for attempt in (
            device.push(f"{folder}/pipe", f"{folder}/there"),
            device.push([f"{folder}/pipe", f"{folder}/pipe"], f"{folder}/there"),
            device.pull([folder, folder], f"{folder}/there"),
            device.push(f"{folder}/pipe", "/" + "x" * 2000),
        ):
            copying: Any = attempt
            await self.assertFailure(copying, AdbError)
        Path(folder, "x").write_bytes(b"12345")
        self.assertEqual(await device.read_file(f"{folder}/x"), b"12345")
        await self.assertFailure(device.read_file(f"{folder}/x", limit=3), SyncFailure)
        await self.assertFailure(device.read_file(f"{folder}/missing"), SyncFailure)

    async def test_shells_that_end_early(self) -> None:
        port = await self.serve()
        device = await connect_device(reactor, f"localhost:{port}", keys=[])
        self.addCleanup(device.close)
        session = await device.open_shell("cat", pty=False)
        for transport in list(self.daemon.transports):
            transport.abort()
        await self.assertFailure(_read(session), StreamEnded)
        device = await connect_device(reactor, f"localhost:{port}", keys=[])
        self.addCleanup(device.close)
        await self.assertFailure(_collect(device), StreamEnded)
        seen: list[tuple[int, bytes]] = []
        result = await device.shell(
            "echo a; echo b >&2", on_output=lambda kind, data: seen.append((kind, data))
        )
        self.assertEqual((sorted(seen), result.stdout), ([(1, b"a\n"), (2, b"b\n")], b""))

    def test_codecs(self) -> None:
        features = frozenset({"sendrecv_v2_lz4", "sendrecv_v2_brotli"})
        for wanted, chosen in (("any", "lz4"), ("none", None), ("brotli", "brotli")):
            self.assertEqual(choose_codec(wanted, features, "sendrecv_v2"), chosen)
        self.assertIsNone(choose_codec("any", frozenset(), "sendrecv_v2"))
        for bad in ("zstd", "nonsense"):
            self.assertRaises(AdbError, choose_codec, bad, features, "sendrecv_v2")
        self.assertEqual(struct.calcsize(_sync.STAT_V2_FIELDS.format), 72)


def _read(session: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(session.read())


def _collect(device: Device) -> Any:
    from twisted.internet.defer import Deferred

    async def work() -> None:
        session = await device.open_shell("head -c 100000 /dev/zero", pty=False)
        await session.collect(limit=1000)

    return Deferred.fromCoroutine(work())
