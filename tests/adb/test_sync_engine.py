"""The sync engine by itself: golden exchanges at every cut, a root that cannot be left, failures, codecs."""

from __future__ import annotations

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import _sync
from anbox_tw.adb.daemon import compression
from anbox_tw.adb.daemon._syncengine import BULK_SIZE, PipeClosed, SyncEngine
from anbox_tw.adb.daemon.files import FileTree, RootedTree
from tests.support import REPOSITORY

QUIT = _sync.header(_sync.QUIT, 0)


class MemoryPipe:
    """A pipe whose input is known from the start."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.out = b""

    def read(self) -> bytes:
        if not self._pieces:
            raise PipeClosed
        return self._pieces.pop(0)

    def write(self, data: Any) -> None:
        self.out += bytes(data)

    def take_buffer(self) -> bytearray:
        return bytearray(BULK_SIZE)


def request(kind: bytes, path: str | bytes, rest: bytes = b"") -> bytes:
    data = path.encode() if isinstance(path, str) else path
    return _sync.header(kind, len(data)) + data + rest


def content(data: bytes, mtime: int = 1_600_000_000) -> bytes:
    chunks = [data[start : start + 65536] for start in range(0, len(data), 65536)]
    return b"".join(_sync.header(_sync.DATA, len(one)) + one for one in chunks) + _sync.header(
        _sync.DONE, mtime
    )


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = os.path.abspath(self.mktemp())
        os.makedirs(f"{self.root}/tmp")
        self.tree: FileTree = RootedTree(self.root)

    def talk(self, *data: bytes, cut: int = 1 << 30) -> bytes:
        whole = b"".join(data)
        pipe = MemoryPipe([whole[start : start + cut] for start in range(0, len(whole), cut)])
        SyncEngine(pipe, self.tree).run()
        return pipe.out

    def path(self, name: str) -> Path:
        return Path(self.root, name)


class GoldenTests(Base):
    def test_exchanges_at_any_cut(self) -> None:
        vectors = json.loads((REPOSITORY / "protocols" / "adb" / "vectors" / "sync.json").read_text())
        for cut in (1, 3, 8, 1000):
            for item in vectors["exchanges"]:
                answer = self.talk(bytes.fromhex(item["request"]), QUIT, cut=cut)
                self.assertEqual(answer.hex(), item["reply"], f"{item['name']} cut at {cut}")
        status = os.stat(self.path("tmp/q"))
        self.assertEqual((status.st_mtime, stat.S_IMODE(status.st_mode)), (1600000000, 0o666))

    @settings(derandomize=True, deadline=None, max_examples=30)
    @given(st.lists(st.binary(max_size=70_000), max_size=4), st.integers(1, 100_000))
    def test_what_is_sent_comes_back(self, files: list[bytes], cut: int) -> None:
        # hypothesis runs this many times on one test object
        requests = [request(_sync.SEND_V1, f"/h/{i},33188", content(data)) for i, data in enumerate(files)]
        self.assertEqual(self.talk(*requests, QUIT, cut=cut), _sync.header(_sync.OKAY, 0) * len(files))
        for index, data in enumerate(files):
            answer = self.talk(request(_sync.RECV_V1, f"/h/{index}"), QUIT)
            self.assertEqual(answer, content(data, 0))

    def test_large_files_come_in_full_packets(self) -> None:
        data = os.urandom(3_000_000)
        self.path("big").write_bytes(data)
        self.assertEqual(self.talk(request(_sync.RECV_V1, "big"), QUIT), content(data, 0))
        self.path("even").write_bytes(data[: 15 * 65536])
        self.assertEqual(self.talk(request(_sync.RECV_V1, "even"), QUIT), content(data[: 15 * 65536], 0))

    def test_files_without_a_size_are_read_to_their_end(self) -> None:
        self.tree = FileTree()
        answer = self.talk(request(_sync.RECV_V1, "/proc/self/status"), QUIT)
        self.assertIn(b"Name:", answer)
        self.assertTrue(answer.endswith(_sync.header(_sync.DONE, 0)))

    def test_lists(self) -> None:
        self.path("tmp/file").write_bytes(b"12345")
        answer = self.talk(request(_sync.LIST_V1, "/tmp"), QUIT)
        names = []
        while answer[:4] != b"DONE":
            _, _mode, _size, _mtime, length = _sync.DENT_V1_FIELDS.unpack_from(answer)
            names.append(answer[20 : 20 + length])
            answer = answer[20 + length :]
        self.assertEqual((sorted(names), len(answer)), ([b".", b"..", b"file"], 20))
        answer = self.talk(request(_sync.LIST_V2, "/tmp"), QUIT)
        self.assertEqual(answer[-76:], b"DONE" + bytes(72))

    def test_stat_follows_and_lstat_does_not(self) -> None:
        self.path("tmp/file").write_bytes(b"12345")
        self.path("tmp/link").symlink_to("/tmp/file")
        followed = _sync.STAT_V2_FIELDS.unpack(self.talk(request(_sync.STAT_V2, "/tmp/link"), QUIT))
        self.assertEqual((followed[1], stat.S_ISREG(followed[4]), followed[8]), (0, True, 5))
        itself = _sync.STAT_V2_FIELDS.unpack(self.talk(request(_sync.LSTAT_V2, "/tmp/link"), QUIT))
        self.assertTrue(stat.S_ISLNK(itself[4]))


class RootTests(Base):
    def setUp(self) -> None:
        super().setUp()
        self.outside = f"{self.root}-outside"
        os.makedirs(self.outside)
        Path(self.outside, "secret").write_bytes(b"secret")
        self.path("up").symlink_to("../../../../../../../../etc")
        self.path("absolute").symlink_to(self.outside)
        self.path("relative").symlink_to(f"../{os.path.basename(self.outside)}")
        self.path("loop").symlink_to("loop")
        self.path("file").symlink_to(f"{self.outside}/secret")

    def test_nothing_outside_can_be_read(self) -> None:
        name = os.path.basename(self.outside)
        for path in (
            f"../{name}/secret",
            f"/../{name}/secret",
            f"/tmp/../../{name}/secret",
            "/absolute/secret",
            "/relative/secret",
            "/file",
            "/up/passwd",
            "/loop",
            f"{self.outside}/secret",
        ):
            self.assertNotIn(
                b"secret", self.talk(request(_sync.RECV_V1, path), QUIT).replace(b"/secret", b""), path
            )
            answer = self.talk(request(_sync.STAT_V2, path), QUIT)
            self.assertNotEqual(struct.unpack_from("<I", answer, 4)[0], 0, path)
            self.assertEqual(len(self.talk(request(_sync.LIST_V1, os.path.dirname(path)), QUIT)) % 1, 0)

    def test_nothing_outside_can_be_written(self) -> None:
        for path in ("/absolute/new", "/relative/new", f"../{os.path.basename(self.outside)}/new", "/file"):
            self.talk(request(_sync.SEND_V1, f"{path},33188", content(b"evil")), QUIT)
        self.assertEqual(os.listdir(self.outside), ["secret"])
        self.assertEqual(Path(self.outside, "secret").read_bytes(), b"secret")
        self.assertFalse(self.path("file").is_symlink())

    def test_symlinks_see_the_root_as_theirs(self) -> None:
        self.path("tmp/inner").write_bytes(b"inner")
        self.path("link").symlink_to("/tmp")
        self.assertIn(b"inner", self.talk(request(_sync.RECV_V1, "/link/inner"), QUIT))
        self.assertIn(b"inner", self.talk(request(_sync.RECV_V1, "/../../link/../tmp/./inner"), QUIT))
        self.talk(request(_sync.SEND_V1, "/link/new/deep,33188", content(b"x")), QUIT)
        self.assertEqual(self.path("tmp/new/deep").read_bytes(), b"x")

    def test_parents_of_many_kinds(self) -> None:
        self.path("plain").write_bytes(b"")
        answer = self.talk(request(_sync.SEND_V1, "/plain/below,33188", content(b"x")), QUIT)
        self.assertIn(b"couldn't create file: Not a directory", answer)
        answer = self.talk(request(_sync.SEND_V1, "/tmp,33188", content(b"x")), QUIT)
        self.assertIn(b"couldn't create file: Is a directory", answer)


class FailureTests(Base):
    def send(self, *parts: bytes) -> bytes:
        return self.talk(*parts, QUIT)

    def test_failure_reads_on_to_done_then_ends(self) -> None:
        bad = request(_sync.SEND_V1, "/tmp,33188", content(bytes(200_000)))
        answer = self.send(bad, request(_sync.LSTAT_V1, "/tmp"))
        self.assertEqual(answer.count(b"FAIL"), 1)
        self.assertNotIn(b"STAT", answer)

    def test_broken_data(self) -> None:
        name = request(_sync.SEND_V1, "/tmp/x,33188")
        self.assertIn(b"oversize data message", self.send(name, _sync.header(_sync.DATA, 65537)))
        self.assertIn(b"invalid data message", self.send(name, _sync.header(b"WHAT", 1)))
        self.assertEqual(os.listdir(self.path("tmp")), [])

    def test_a_stream_that_ends_in_the_middle_leaves_nothing(self) -> None:
        self.talk(request(_sync.SEND_V1, "/tmp/x,33188"), _sync.header(_sync.DATA, 100), b"half")
        self.assertEqual(os.listdir(self.path("tmp")), [])

    def test_modes(self) -> None:
        # What the owner may, all may.
        for text, mode in (
            ("33188", 0o666),
            ("0x8120", 0o444),
            ("0100500", 0o555),
            ("+33152", 0o666),
            ("0", 0),
        ):
            file = request(_sync.SEND_V1, f"/tmp/{text},{text}", content(b"x"))
            self.assertEqual(self.send(file), _sync.header(_sync.OKAY, 0))
            self.assertEqual(stat.S_IMODE(os.stat(self.path(f"tmp/{text}")).st_mode), mode, text)
        # strtoul wraps what is negative: every bit is set, those of a symlink too.
        wrapped = request(_sync.SEND_V1, "/tmp/negative,-1", content(b"x"))
        self.assertEqual(self.send(wrapped), _sync.header(_sync.OKAY, 0))
        for text in ("", "x", "1_0", "09", "0x", "\u0663", "1 ", "9" * 30):
            answer = self.send(request(_sync.SEND_V1, f"/tmp/bad,{text}", content(b"x")))
            self.assertIn(b"bad mode", answer, text)

    def test_nul_in_a_path(self) -> None:
        self.assertIn(b"FAIL", self.send(request(_sync.RECV_V1, "/tmp\0x")))

    def test_directories_cannot_be_received(self) -> None:
        self.assertIn(b"read failed: Is a directory", self.send(request(_sync.RECV_V1, "/tmp")))

    def test_symlinks(self) -> None:
        link = request(_sync.SEND_V1, f"/tmp/l,{stat.S_IFLNK | 0o777}", content(b"target\0"))
        self.assertEqual(self.send(link, link), _sync.header(_sync.OKAY, 0) * 2)
        self.assertEqual(os.readlink(self.path("tmp/l")), "target")
        too_long = request(_sync.SEND_V1, f"/tmp/m,{stat.S_IFLNK}", content(b"x" * 5000))
        self.assertIn(b"symlink failed", self.send(too_long))
        deep = request(_sync.SEND_V1, f"/a/b/l,{stat.S_IFLNK}", content(b"t\0"))
        self.assertEqual(self.send(deep), _sync.header(_sync.OKAY, 0))

    def test_devices_are_written_to_and_not_replaced(self) -> None:
        self.tree = FileTree()
        answer = self.send(request(_sync.SEND_V1, "/dev/null,33188", content(b"gone")))
        self.assertEqual(answer, _sync.header(_sync.OKAY, 0))
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/null").st_mode))

    def test_named_pipes_do_not_hang(self) -> None:
        os.mkfifo(self.path("tmp/pipe"))
        self.assertIn(b"DONE", self.send(request(_sync.RECV_V1, "/tmp/pipe")))
        self.assertIn(
            b"couldn't create file", self.send(request(_sync.SEND_V1, "/tmp/pipe,33188", content(b"x")))
        )


class CodecTests(Base):
    DATA = (b"compressible " * 500 + os.urandom(700)) * 300

    def test_both_ways(self) -> None:
        self.assertEqual(set(compression.available()), {"brotli", "lz4", "zstd"})
        for name in compression.available():
            flag = compression.FLAGS[name].to_bytes(4, "little")
            worker = compression.compressor(name)
            packed = worker.compress(self.DATA) + worker.flush()
            second = b"SND2" + (0o100644).to_bytes(4, "little") + flag
            answer = self.talk(request(_sync.SEND_V2, f"/{name}", second + content(packed)), QUIT, cut=50_001)
            self.assertEqual(answer, _sync.header(_sync.OKAY, 0), name)
            self.assertEqual(self.path(name).read_bytes(), self.DATA)
            answer = self.talk(request(_sync.RECV_V2, f"/{name}", b"RCV2" + flag), QUIT)
            unpacked, unpacker = b"", compression.decompressor(name)
            while answer[:4] == b"DATA":
                size = int.from_bytes(answer[4:8], "little")
                unpacked += b"".join(unpacker.decompress(memoryview(answer[8 : 8 + size])))
                answer = answer[8 + size :]
            self.assertEqual((unpacked, answer), (self.DATA, _sync.header(_sync.DONE, 0)))

    def test_damaged_data(self) -> None:
        for name in compression.available():
            flag = compression.FLAGS[name].to_bytes(4, "little")
            worker = compression.compressor(name)
            packed = worker.compress(self.DATA) + worker.flush()
            second = b"SND2" + (0o100644).to_bytes(4, "little") + flag
            for bad in (packed[:-5], b"\xff" * 100, packed + b"more after the end"):
                answer = self.talk(request(_sync.SEND_V2, "/bad", second + content(bad)), QUIT)
                self.assertIn(b"decompress failed", answer, (name, len(bad)))
                self.assertFalse(self.path("bad").exists())

    def test_bombs_come_out_in_bounded_pieces(self) -> None:
        for name in compression.available():
            worker = compression.compressor(name)
            packed = worker.compress(bytes(64 << 20)) + worker.flush()
            unpacker = compression.decompressor(name)
            total = largest = 0
            for start in range(0, len(packed), 65536):
                for piece in unpacker.decompress(memoryview(packed)[start : start + 65536]):
                    total += len(piece)
                    largest = max(largest, len(piece))
            self.assertEqual((total, unpacker.finished()), (64 << 20, True), name)
            self.assertLessEqual(largest, 128 << 20 if name == "zstd" else 2 << 20, name)

    def test_dry_run_writes_nothing(self) -> None:
        second = b"SND2" + (0o100644).to_bytes(4, "little") + (0x80000000).to_bytes(4, "little")
        answer = self.talk(request(_sync.SEND_V2, "/dry", second + content(b"x" * 100)), QUIT)
        self.assertEqual(answer, _sync.header(_sync.OKAY, 0))
        link = b"SND2" + stat.S_IFLNK.to_bytes(4, "little") + (0x80000000).to_bytes(4, "little")
        self.talk(request(_sync.SEND_V2, "/dry", link + content(b"x\0")), QUIT)
        self.assertFalse(self.path("dry").exists())
