"""installd over its real socket: the golden conversation, cut at every place; limits; several clients; no way out."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import stat
import struct
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer, endpoints, reactor, threads
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.android import installd_tap
from anbox_tw.android._wire import Namespace
from anbox_tw.android.endpoints import AndroidClientEndpoint, AndroidServerEndpoint
from anbox_tw.android.errors import InstalldError
from anbox_tw.android.installd import RELEASES, InstalldService, InstallerConnection, Tree
from anbox_tw.android.installd import service as service_module
from anbox_tw.android.installd._commands import BadArgument, parse_arguments
from anbox_tw.android.installd._framing import (
    MAX_TEXT_BYTES,
    MessageReader,
    encode_message,
    format_reply,
    split_command,
)
from anbox_tw.android.localsocket import LocalAddress
from anbox_tw.errors import PeerError, TimedOut
from tests.support import REPOSITORY, need_root

DOCUMENT = json.loads((REPOSITORY / "protocols/android/vectors/installd.json").read_text())
CONVERSATION = [
    (bytes.fromhex(entry["request"]), bytes.fromhex(entry["reply"])) for entry in DOCUMENT["conversation"]
]

FUZZ_REQUESTS = int(os.environ.get("ANBOX_TW_INSTALLD_FUZZ", "3000"))
"""How many requests the fuzz test sends; 100000 by hand."""


class FramingTests(SynchronousTestCase):
    def test_messages_at_every_cut(self) -> None:
        stream = b"".join(request for request, _ in CONVERSATION[:6])
        whole = self.feed([stream])
        self.assertEqual(len(whole), 6)
        self.assertEqual(self.feed([stream[i : i + 1] for i in range(len(stream))]), whole)
        for cut in range(len(stream)):
            self.assertEqual(self.feed([stream[:cut], stream[cut:]]), whole)

    def feed(self, chunks: list[bytes]) -> list[bytes]:
        reader = MessageReader()
        found = []
        for chunk in chunks:
            reader.feed(chunk)
            while (text := reader.next()) is not None:
                found.append(text)
        self.assertEqual(reader.pending, 0)
        return found

    @settings(derandomize=True, deadline=None)
    @given(st.lists(st.binary(min_size=1, max_size=MAX_TEXT_BYTES), max_size=5), st.integers(1, 7))
    def test_any_texts(self, texts: list[bytes], step: int) -> None:
        stream = b"".join(encode_message(text) for text in texts)
        self.assertEqual(self.feed([stream[i : i + step] for i in range(0, len(stream), step)]), texts)

    def test_bad_lengths(self) -> None:
        for data in (b"\0\0", b"\0\4", b"\xff\xff"):
            reader = MessageReader()
            reader.feed(data)
            self.assertRaises(PeerError, reader.next)
        for text in (b"", b"x" * 1024):
            self.assertRaises(ValueError, encode_message, text)

    def test_splitting(self) -> None:
        self.assertEqual(split_command(b"a b\tc\nd"), ("a", ["b", "c", "d"]))
        self.assertEqual(split_command(b"a  b"), ("a", ["", "b"]))
        self.assertEqual(split_command(b"a "), ("a", [""]))
        self.assertEqual(split_command(b"a\0 b"), ("a", []))
        self.assertEqual(split_command(b"a" + b" x" * 15), ("a", ["x"] * 15))
        self.assertIsNone(split_command(b"a" + b" x" * 16))
        self.assertEqual(format_reply(-1), b"-1")
        self.assertEqual(format_reply(0, "true"), b"0 true")

    def test_counts_of_each_release(self) -> None:
        self.assertEqual(
            {name: len(table) for name, table in RELEASES.items()},
            {"5.1": 24, "6.0": 27, "7.0": 25, "7.1": 26},
        )
        counts = {
            "5.1": "ping 0 install 4 dexopt 6 markbootcomplete 1 movedex 3 rmdex 2 remove 2 rename 2 fixuid 3 freecache 1 rmcache 2 rmcodecache 2 getsize 7 rmuserdata 2 movefiles 0 linklib 3 mkuserdata 4 mkuserconfig 1 rmuser 1 restorecondata 3 patchoat 5 idmap 6 aapt 6 aapt_with_common 7",
            "6.0": "ping 0 install 5 dexopt 10 markbootcomplete 1 movedex 3 rmdex 2 remove 3 rename 2 fixuid 4 freecache 2 rmcache 3 rmcodecache 3 getsize 8 rmuserdata 3 cpcompleteapp 6 movefiles 0 linklib 4 mkuserdata 5 mkuserconfig 1 rmuser 2 idmap 6 aapt 7 aapt_with_common 8 restorecondata 4 createoatdir 2 rmpackagedir 1 linkfile 3",
            "7.0": "ping 0 create_app_data 7 restorecon_app_data 6 migrate_app_data 4 clear_app_data 5 destroy_app_data 5 move_complete_app 7 get_app_size 6 get_app_data_inode 4 create_user_data 4 destroy_user_data 3 dexopt 10 markbootcomplete 1 rmdex 2 freecache 2 linklib 4 idmap 3 createoatdir 2 rmpackagedir 1 clear_app_profiles 1 destroy_app_profiles 1 linkfile 3 move_ab 3 merge_profiles 2 dump_profiles 3",
        }
        for release, text in counts.items():
            parts = text.split()
            self.assertEqual(
                {name: len(spec) for name, spec in RELEASES[release].items()},
                dict(zip(parts[::2], map(int, parts[1::2]), strict=True)),
            )

    def test_numbers_are_numbers(self) -> None:
        spec = RELEASES["7.0"]["create_user_data"]
        self.assertEqual(
            parse_arguments(spec, ["!", "10", "-1", "3"]),
            {"uuid": None, "userid": 10, "user_serial": -1, "flags": 3},
        )
        for bad in ("", "x", "1x", "+1", "-", "--1", "9" * 20, "١"):
            self.assertRaises(BadArgument, parse_arguments, spec, ["!", bad, "0", "0"])


class ServiceCase(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="atw"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.data = self.directory / "data"
        self.expand = self.directory / "expand"
        self.data.mkdir()
        self.expand.mkdir()
        self.address = LocalAddress("installd", Namespace.RESERVED, str(self.directory))

    def start(self, **options: Any) -> InstalldService:
        options.setdefault("owners", os.geteuid() == 0)
        tree = Tree(
            {"/data": str(self.data), "/mnt/expand": str(self.expand)}, keep_owners=options.pop("owners")
        )
        service = InstalldService(
            reactor, tree, AndroidServerEndpoint(reactor, self.address, mode=0o600), **options
        )
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def client(self) -> InstallerConnection:
        client = InstallerConnection(reactor, AndroidClientEndpoint(reactor, self.address), timeout=30)
        self.addCleanup(client.close)
        return client

    async def ask(self, service: InstalldService, text: str) -> str:
        return (await service.execute(text.encode())).decode()

    def blocking(self, work: Any) -> Deferred[Any]:
        def run() -> Any:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(self.address.path)
                return work(sock)

        return threads.deferToThread(run)


def read_reply(sock: socket.socket) -> bytes:
    head = sock.recv(2, socket.MSG_WAITALL)
    if len(head) < 2:
        return b""
    return head + sock.recv(struct.unpack("<H", head)[0], socket.MSG_WAITALL)


class ConversationTests(ServiceCase):
    async def test_the_golden_conversation_byte_for_byte(self) -> None:
        def one_by_one(sock: socket.socket) -> list[bytes]:
            replies = []
            for request, _ in CONVERSATION:
                sock.sendall(request)
                replies.append(read_reply(sock))
            return replies

        def at_once(sock: socket.socket) -> list[bytes]:
            sock.sendall(b"".join(request for request, _ in CONVERSATION))
            return [read_reply(sock) for _ in CONVERSATION]

        def in_bytes(sock: socket.socket) -> list[bytes]:
            for request, _ in CONVERSATION:
                for position in range(len(request)):
                    sock.send(request[position : position + 1])
            return [read_reply(sock) for _ in CONVERSATION]

        for way in (one_by_one, at_once, in_bytes):
            service = self.start()
            replies = await self.blocking(way)
            for (request, expected), got in zip(CONVERSATION, replies, strict=True):
                self.assertEqual(got, expected, (way.__name__, request))
            await service.stopService()
            shutil.rmtree(self.data)
            self.data.mkdir()

    async def test_a_broken_length_ends_the_connection_without_a_reply(self) -> None:
        self.start()
        for entry in DOCUMENT["closed"]:

            def work(sock: socket.socket, data: bytes = bytes.fromhex(entry["bytes"])) -> bytes:
                sock.sendall(encode_message(b"ping") + data)
                return read_reply(sock) + sock.recv(10)

            try:
                self.assertEqual(await self.blocking(work), b"\x01\x000", entry["why"])
            except ConnectionResetError:
                pass  # what we sent behind the length was thrown away

    async def test_the_longest_request(self) -> None:
        self.start()

        def work(sock: socket.socket) -> bytes:
            sock.sendall(encode_message(b"x" * 1023))
            return read_reply(sock)

        self.assertEqual(await self.blocking(work), b"\x02\x00-1")

    async def test_a_message_that_does_not_end_is_not_waited_for(self) -> None:
        self.patch(service_module, "MESSAGE_TIMEOUT_S", 0.05)
        self.start()
        self.assertEqual(
            await self.blocking(lambda sock: (sock.sendall(b"\x04\x00pi"), sock.recv(10))[1]), b""
        )

    async def test_fuzz_random_cuts_and_garbage(self) -> None:
        """Every request gets exactly one reply or ends its connection; nothing outside the data appears or changes."""
        service = self.start()
        outside = self.directory / "outside"
        outside.mkdir()
        (outside / "precious").write_text("x")
        before = sorted(os.listdir(self.directory))
        random_ = random.Random(7)
        names = [name for name in RELEASES["7.0"]] + ["nosuch", ""]
        words = ["!", "com.a", "com.b", "..", "../../outside", "/data/app/x", "/data/app/../../outside", "0", "10", "3", "259", "10001", "-1", "arm",
                 "x" * 200, "\xff\xfe", "", "9" * 30, "/", "/data", "/mnt/expand/../outside", str(self.directory / "outside")]  # fmt: skip
        names.remove("freecache")  # it may delete for long

        def text() -> bytes:
            kind = random_.random()
            if kind < 0.1:
                return bytes(random_.randrange(256) for _ in range(random_.randrange(1, 60)))
            name = random_.choice(names)
            spec = RELEASES["7.0"].get(name, ())
            count = len(spec) if random_.random() < 0.8 else random_.randrange(18)
            return " ".join([name, *random_.choices(words, k=count)]).encode("latin-1")[:1023] or b"x"

        def work(sock: socket.socket) -> int:
            answered = 0
            for _ in range(FUZZ_REQUESTS // 50):
                texts = [text() for _ in range(10)]
                stream = b"".join(encode_message(item) for item in texts)
                while stream:
                    cut = random_.randrange(1, 200)
                    sock.sendall(stream[:cut])
                    stream = stream[cut:]
                for _ in texts:
                    reply = read_reply(sock)
                    size = struct.unpack("<H", reply[:2])[0]
                    assert 1 <= size <= 1023 and size == len(reply) - 2
                    number, *_ = reply[2:].split(b" ")
                    assert -200 < int(number) <= 0
                    answered += 1
            return answered

        answers = await defer.gatherResults([self.blocking(work) for _ in range(5)])
        self.assertEqual(sum(answers), FUZZ_REQUESTS // 50 * 50)
        self.assertEqual(sorted(os.listdir(self.directory)), before)
        self.assertEqual(os.listdir(outside), ["precious"])
        # garbage that is no message at all
        for _ in range(20):
            junk = random_.randbytes(random_.randrange(1, 3000))

            def throw(sock: socket.socket, junk: bytes = junk) -> None:
                try:
                    sock.sendall(junk)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass
                except ConnectionError:
                    pass

            await self.blocking(throw)
        self.assertEqual(await self.ask(service, "ping"), "0")
        self.assertEqual(len(service._locks), 0)


class TreeTests(ServiceCase):
    async def test_an_applications_life(self) -> None:
        need_root()
        service = self.start(jit_profiles=True)
        ask = lambda text: self.ask(service, text)  # noqa: E731
        self.assertEqual(await ask("create_user_data ! 10 10 3"), "0")
        self.assertEqual(await ask("create_app_data ! com.x 10 3 10005 default 24"), "0")
        home = self.data / "user/10/com.x"
        for path, mode, uid, gid in (
            (home, 0o700, 1010005, 1010005),
            (self.data / "user_de/10/com.x", 0o700, 1010005, 1010005),
            (self.data / "misc/profiles/cur/10/com.x", 0o700, 1010005, 1010005),
            (self.data / "misc/profiles/cur/10/com.x/primary.prof", 0o600, 1010005, 1010005),
            (self.data / "misc/profiles/ref/com.x", 0o700, 50005, 50005),
            (self.data / "misc/user/10", 0o750, 1001000, 1009997),
            (self.data / "user", 0o711, 1000, 1000),
        ):
            found = path.stat()
            self.assertEqual(
                (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid), (mode, uid, gid), path
            )
        self.assertEqual(await ask("create_app_data ! com.x 10 2 10006 default 24"), "-1")  # another owner
        inode = home.stat().st_ino
        self.assertEqual(await ask("get_app_data_inode ! com.x 10 2"), f"0 {inode}")
        (home / "cache").mkdir()
        (home / "cache/f").write_bytes(b"x" * 10000)
        (home / "files/deep").mkdir(parents=True)
        (home / "files/deep/f").write_bytes(b"x" * 5000)
        os.symlink("/data/app-lib/x", home / "lib")
        code = self.data / "app/com.x-1"
        code.mkdir()
        (code / "base.apk").write_bytes(b"x" * 20000)
        blocks = lambda path: path.lstat().st_blocks * 512  # noqa: E731
        data = sum(
            map(
                blocks,
                [
                    home,
                    home / "..",
                    home / "cache",
                    home / "files",
                    home / "files/deep",
                    home / "files/deep/f",
                ],
            )
        )
        self.assertEqual(
            await ask("get_app_size ! com.x 10 2 0 /data/app/com.x-1"),
            f"0 {blocks(code / 'base.apk') + blocks(home / 'lib')} {data} {blocks(home / 'cache/f')} 0",
        )
        self.assertEqual(await ask("clear_app_data ! com.x 10 258 0"), "0")
        self.assertEqual((os.listdir(home / "cache"), (home / "files/deep/f").exists()), ([], True))
        # by its inode, even under another name
        os.rename(home, home.with_name("com.renamed"))
        self.assertEqual(await ask(f"clear_app_data ! com.x 10 2 {inode}"), "0")
        self.assertEqual(os.listdir(home.with_name("com.renamed")), [])
        os.rename(home.with_name("com.renamed"), home)
        (self.data / "misc/profiles/cur/10/com.x/primary.prof").write_text("profile")
        self.assertEqual(await ask("clear_app_profiles com.x"), "0")
        self.assertEqual((self.data / "misc/profiles/cur/10/com.x/primary.prof").stat().st_size, 0)
        self.assertEqual(await ask("createoatdir /data/app/com.x-1/oat arm64"), "0")
        (code / "oat/arm64/base.odex").write_text("a")
        (code / "oat/arm64/base.odex.b").write_text("b")
        self.assertEqual(await ask("move_ab /data/app/com.x-1/base.apk arm64 /data/app/com.x-1/oat"), "0")
        self.assertEqual((code / "oat/arm64/base.odex").read_text(), "b")
        (self.data / "app/com.y-1").mkdir()
        self.assertEqual(await ask("linkfile base.apk /data/app/com.x-1 /data/app/com.y-1"), "0")
        self.assertEqual((code / "base.apk").stat().st_nlink, 2)
        (self.data / "dalvik-cache/arm").mkdir()
        (self.data / "dalvik-cache/arm/.booting").touch()
        (self.data / "dalvik-cache/arm/system@app@A@A.apk@classes.dex").touch()
        self.assertEqual(await ask("markbootcomplete arm"), "0")
        self.assertEqual(await ask("rmdex /system/app/A/A.apk arm"), "0")
        self.assertEqual(await ask("rmpackagedir /data/app/com.x-1"), "0")
        self.assertEqual(await ask("destroy_app_data ! com.x 10 3 0"), "0")
        self.assertFalse(home.exists() or (self.data / "misc/profiles/ref/com.x").exists())
        self.assertEqual(await ask("destroy_user_data ! 10 3"), "0")
        self.assertEqual(os.listdir(self.data / "user"), [])

    async def test_moving_an_application_to_another_volume_and_back_out_of_a_failure(self) -> None:
        service = self.start()
        ask = lambda text: self.ask(service, text)  # noqa: E731
        for directory in ("app", "user/0", "user_de/0"):
            (self.expand / "v1" / directory).mkdir(parents=True)
        await ask("create_app_data ! com.x 0 3 10005 default 24")
        app = self.data / "app/com.x-1"
        (app / "lib").mkdir(parents=True)
        (app / "base.apk").write_text("code")
        os.symlink("base.apk", app / "link")
        os.chmod(app / "base.apk", 0o604)
        os.utime(app / "base.apk", (1, 2))
        (self.data / "data/com.x/f").write_text("private")
        self.assertEqual(await ask("move_complete_app ! v1 com.x com.x-1 10005 default 24"), "0")
        moved = self.expand / "v1"
        self.assertEqual((moved / "user/0/com.x/f").read_text(), "private")
        self.assertEqual(
            (os.readlink(moved / "app/com.x-1/link"), (moved / "app/com.x-1/base.apk").stat().st_mtime),
            ("base.apk", 2),
        )
        self.assertEqual(stat.S_IMODE((moved / "app/com.x-1/base.apk").stat().st_mode), 0o604)
        self.assertTrue((self.data / "data/com.x/f").exists())  # the framework deletes it
        (self.expand / "v2/app").mkdir(parents=True)
        self.assertEqual(await ask("move_complete_app ! v2 com.x com.x-1 10005 default 24"), "-1")
        self.assertEqual(os.listdir(self.expand / "v2/app"), [])

    async def test_migration_between_storages(self) -> None:
        service = self.start()
        ask = lambda text: self.ask(service, text)  # noqa: E731
        await ask("create_app_data ! com.x 0 3 10005 default 24")
        home = self.data / "data/com.x"
        (home / "f").write_text("x")
        try:
            os.setxattr(self.data, "user.probe", b"")
        except OSError:
            return  # no attributes on this file system: migrate cannot work, and says -1
        self.assertEqual(await ask("migrate_app_data ! com.x 0 1"), "0")
        self.assertEqual((self.data / "user_de/0/com.x/f").read_text(), "x")
        self.assertEqual(await ask("migrate_app_data ! com.x 0 1"), "0")

    async def test_free_cache_deletes_the_oldest_first_until_there_is_enough(self) -> None:
        service = self.start()
        for name, age in (("a", 30), ("b", 20), ("c", 10)):
            await self.ask(service, f"create_app_data ! com.{name} 0 3 10005 default 24")
            cache = self.data / f"data/com.{name}/cache/inner"
            cache.mkdir(parents=True)
            for index in range(20):
                path = cache / str(index)
                path.touch()
                os.utime(path, (1000 - age, 1000 - age))
        free = iter([0, 0, 100, 100])
        self.patch(service.operations.tree, "free_bytes", lambda place: next(free))
        self.assertEqual(await self.ask(service, "freecache ! 100"), "0")
        # looked at after every sixteenth: two rounds of them were needed
        left = [len(os.listdir(self.data / f"data/com.{name}/cache/inner")) for name in "abc"]
        self.assertEqual(left, [0, 8, 20])

    async def test_symlinks_lead_nowhere(self) -> None:
        service = self.start()
        ask = lambda text: self.ask(service, text)  # noqa: E731
        outside = self.directory / "outside"
        (outside / "cache").mkdir(parents=True)
        (outside / "cache/precious").write_text("x")
        home = self.data / "data/com.x"
        os.symlink(outside, home)
        for text in (
            "clear_app_data ! com.x 0 3 0",
            "clear_app_data ! com.x 0 259 0",
            "destroy_app_data ! com.x 0 3 0",
            "create_app_data ! com.x 0 2 10005 default 24",
            "linklib ! com.x /x 0",
            "freecache ! 9223372036854775807",
            "get_app_size ! com.x 0 2 0 /data/data/com.x",
        ):
            await ask(text)
        home.unlink()
        await ask("create_app_data ! com.x 0 3 10005 default 24")
        os.symlink(outside / "cache", home / "cache")
        os.symlink(outside, self.data / "app/evil")
        os.symlink(outside, self.expand / "evilvolume")
        for text in (
            "clear_app_data ! com.x 0 258 0",
            "rmpackagedir /data/app/evil",
            "rmpackagedir /data/app/evil/cache",
            "createoatdir /data/app/evil/oat arm",
            "linkfile precious /data/app/evil/cache /data/app/evil",
            "create_app_data evilvolume com.x 0 3 10005 default 24",
            "move_complete_app ! evilvolume com.x com.x-1 10005 default 24",
            "destroy_user_data evilvolume 0 3",
            "clear_app_data ! com.x 0 2 0",
        ):
            await ask(text)
        self.assertEqual(sorted(path.name for path in outside.rglob("*")), ["cache", "precious"])

    async def test_all_applications_of_a_volume_are_no_package(self) -> None:
        service = self.start()
        package = self.expand / "volume/app/com.x-1"
        package.mkdir(parents=True)
        for path in ("volume", "volume/", "volume/app", "volume/app/", "volume/app//", "volume/app/."):
            self.assertEqual(await self.ask(service, f"rmpackagedir /mnt/expand/{path}"), "-1", path)
            self.assertTrue(package.is_dir(), path)
        self.assertEqual(await self.ask(service, "rmpackagedir /mnt/expand/volume/app/com.x-1"), "0")
        self.assertFalse(package.exists())

    async def test_a_tree_deeper_than_descriptors_allow_is_deleted(self) -> None:
        service = self.start()
        await self.ask(service, "create_app_data ! com.x 0 3 10005 default 24")
        descriptor = os.open(self.data / "data/com.x", os.O_RDONLY)
        for _ in range(300):
            os.mkdir("d" * 100, dir_fd=descriptor)
            inner = os.open("d" * 100, os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        os.close(descriptor)
        self.assertEqual(await self.ask(service, "get_app_size ! com.x 0 2 0 !") != "", True)
        self.assertEqual(await self.ask(service, "destroy_app_data ! com.x 0 3 0"), "0")
        self.assertEqual(os.listdir(self.data / "data"), [])

    async def test_without_the_right_to_owners_all_files_stay_ours(self) -> None:
        service = self.start(owners=False)
        self.assertEqual(await self.ask(service, "create_app_data ! com.x 0 3 10005 default 24"), "0")
        self.assertEqual((self.data / "data/com.x").stat().st_uid, os.geteuid())
        self.assertEqual(await self.ask(service, "create_app_data ! com.x 0 3 10006 default 24"), "0")


class OlderTests(ServiceCase):
    async def conversation(self, service: InstalldService, lines: str) -> None:
        for line in lines.strip().splitlines():
            request, _, expected = line.strip().partition(" -> ")
            self.assertEqual(await self.ask(service, request), expected, request)

    async def test_6_0(self) -> None:
        service = self.start(release="6.0")
        await self.conversation(
            service,
            """
            install ! com.x 10001 10001 default -> 0
            install ! com.x 10001 10001 default -> -1
            install ! com.y 0 0 default -> -1
            create_app_data ! com.x 0 3 10001 default 24 -> -1
            mkuserconfig 10 -> 0
            mkuserdata ! com.x 1010001 10 default -> 0
            mkuserdata ! com.x 1010001 10 default -> -17
            rmcache ! com.x 0 -> -2
            rmcodecache ! com.x 0 -> 0
            rmuserdata ! com.x 10 -> 0
            rename com.x com.z -> 0
            rename com.x com.z -> -2
            remove ! com.z 0 -> 0
            remove ! com.z 0 -> -2
            remove ! com.x 10 -> 0
            restorecondata ! com.x default 10001 -> 0
            fixuid ! com.x 10001 10001 -> -1
            getsize ! com.x -1 ! ! ! ! arm -> 0 0 0 0 0
            getsize ! com.x 0 /data/app/none.apk /data/app-lib/none ! /mnt/asec/x arm -> 0 0 0 0 0
            movefiles -> 0
            movedex /data/app/a.apk /data/app/b.apk arm -> -1
            movedex /etc/a.apk /data/app/b.apk arm -> -1
            rmuser ! 10 -> -1
            cpcompleteapp ! v com.x com.x-1 10001 default -> -1
            aapt /a /b /c 1 2 3 /d -> -1
            dexopt /data/app/a.apk 1 1 com.x arm 1 0 0 ! 0 -> -1
            """,
        )

    async def test_5_1_has_no_volumes(self) -> None:
        service = self.start(release="5.1")
        await self.conversation(
            service,
            """
            install com.x 10001 10001 default -> 0
            install ! com.x 10001 10001 default -> -1
            freecache 1 -> 0
            linklib com.x /data/app-lib/x 0 -> 0
            getsize com.none 0 ! ! ! ! arm -> 0 0 0 0 0
            rmcodecache com.x 0 -> 0
            remove com.x 0 -> 0
            patchoat /data/app/a.apk 1 1 com.x arm -> -1
            """,
        )

    async def test_7_1_deletes_compiled_code(self) -> None:
        service = self.start(release="7.1")
        (self.data / "app/com.x-1/oat/arm").mkdir(parents=True)
        (self.data / "app/com.x-1/oat/arm/base.odex").touch()
        (self.expand / "v/app/x").mkdir(parents=True)
        self.assertEqual(await self.ask(service, "rmpackagedir /mnt/expand/v"), "-1")
        self.assertEqual(await self.ask(service, "rmpackagedir /mnt/expand/v/app"), "-1")
        self.assertEqual(await self.ask(service, "rmpackagedir /mnt/expand/v/app/x"), "0")
        await self.conversation(
            service,
            """
            delete_odex /data/app/com.x-1/base.apk arm /data/app/com.x-1/oat -> 0
            delete_odex /data/app/com.x-1/base.apk arm /data/app/com.x-1/oat -> -1
            delete_odex /data/app/com.x-1/base.apk arm ! -> -1
            """,
        )


class ToolTests(ServiceCase):
    def tool(self, body: str) -> str:
        path = self.directory / "tool"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    async def test_dexopt_gets_its_arguments(self) -> None:
        tool = self.tool(f'echo "$@" >> {self.directory}/ran; [ "$3" = com.ok ]')
        service = self.start(tools={"dexopt": tool})
        good = "dexopt /data/app/a.apk 10001 com.ok arm 1 ! {flags} speed ! libs"
        self.assertEqual(await self.ask(service, good.format(flags=0)), "0")
        self.assertEqual(await self.ask(service, good.format(flags=64)), "0")
        self.assertEqual(await self.ask(service, good.format(flags=0).replace("com.ok", "com.bad")), "-1")
        self.assertEqual(
            await self.ask(service, good.format(flags=0).replace("/data/app/a.apk", "/etc/passwd")), "-1"
        )
        lines = (self.directory / "ran").read_text().splitlines()
        self.assertEqual(lines[0], "/data/app/a.apk 10001 com.ok arm 1 ! 0 speed ! libs")
        self.assertEqual(lines[1], "/data/app/a.apk 10001 com.ok arm 1 ! 64 speed !")
        self.assertEqual(len(lines), 3)

    async def test_idmap_writes_through_a_descriptor(self) -> None:
        tool = self.tool('[ "$1" = --fd ] && echo "$2 $3" >&$4')
        service = self.start(tools={"idmap": tool})
        self.assertEqual(
            await self.ask(service, "idmap /system/framework/a.apk /vendor/overlay/o.apk 1000"), "0"
        )
        self.assertEqual(
            (self.data / "resource-cache/vendor@overlay@o.apk@idmap").read_text(),
            "/system/framework/a.apk /vendor/overlay/o.apk\n",
        )
        self.tool("exit 3")
        self.assertEqual(await self.ask(service, "idmap /a /vendor/overlay/o.apk 1000"), "-1")
        self.assertEqual(os.listdir(self.data / "resource-cache"), [])

    async def test_profman(self) -> None:
        service = self.start(
            tools={
                "profman": self.tool('case "$1" in --profile-file=*primary.prof) exit 0;; *) exit 1;; esac')
            },
            jit_profiles=True,
        )
        await self.ask(service, "create_app_data ! com.x 0 3 10005 default 24")
        self.assertEqual(await self.ask(service, "merge_profiles 10005 com.x"), "0 false")
        (self.data / "misc/profiles/cur/0/com.x/primary.prof").write_text("x")
        self.assertEqual(await self.ask(service, "merge_profiles 10005 com.x"), "0 true")
        self.assertEqual(await self.ask(service, "dump_profiles 10005 com.x /data/app/a.apk"), "0 true")

    async def test_a_tool_that_hangs_does_not_keep_others_or_the_end(self) -> None:
        service = self.start(tools={"dexopt": self.tool("exec sleep 100")})
        slow = service.execute(b"dexopt /data/app/a.apk 1 com.x arm 1 ! 0 speed ! !")
        began = time.monotonic()
        client = self.client()
        await client.ping()
        await client.create_app_data(None, "com.other", 0, 3, 10001, "default", 24)
        waiting = service.execute(b"clear_app_data ! com.x 0 3 0")  # the same package: in its turn
        await deferLater(reactor, 0.05)
        self.assertFalse(waiting.called)
        await service.stopService()
        self.assertEqual([await slow, await waiting], [b"-1", b"-1"])
        self.assertLess(time.monotonic() - began, 20)

    async def test_what_waits_for_its_turn_does_not_begin_in_a_service_that_stops(self) -> None:
        service = self.start(tools={"dexopt": self.tool("exec sleep 100")})
        slow = service.execute(b"dexopt /data/app/a.apk 1 com.x arm 1 ! 0 speed ! !")
        waiting = service.execute(b"create_app_data ! com.x 0 3 10001 default 24")
        # A client that keeps the stop from going on until the killed tool has given way to the waiting command.
        lingering = Mock(gone=Deferred())
        waiting.addBoth(lambda result: (lingering.gone.callback(None), result)[1])
        service.clients.add(lingering)
        await service.stopService()
        self.assertEqual([await slow, await waiting], [b"-1", b"-1"])
        self.assertFalse((self.data / "user/0/com.x").exists())
        self.assertFalse((self.data / "data/com.x").exists())

    async def test_a_tool_that_cannot_run_and_one_that_never_ends(self) -> None:
        self.patch(service_module, "TOOL_TIMEOUT_S", 0.1)
        service = self.start(tools={"dexopt": self.tool("exec sleep 100"), "aapt": "/no/such"})
        self.assertEqual(await self.ask(service, "dexopt /data/app/a.apk 1 com.x arm 1 ! 0 speed ! !"), "-1")


class ClientTests(ServiceCase):
    async def test_typed_calls(self) -> None:
        self.start()
        client = self.client()
        await client.wait_for_connection()
        await client.create_app_data(None, "com.x", 0, 3, 10005, "", 24)
        self.assertEqual(
            await client.get_app_data_inode(None, "com.x", 0, 2), (self.data / "data/com.x").stat().st_ino
        )
        size = await client.get_app_size(None, "com.x", 0, 2, 0, "/data/app/none")
        self.assertEqual((size.code, size.cache), (0, 0))
        self.assertGreaterEqual(size.data, 0)
        self.assertEqual(await client.execute_boolean("merge_profiles", 10005, "com.x"), False)
        await client.clear_app_data(None, "com.x", 0, 3)
        await client.destroy_app_data(None, "com.x", 0, 3)
        with self.assertRaises(InstalldError) as caught:
            await client.destroy_app_data(None, "com.x", 0, 3)
        self.assertEqual(caught.exception.result, -2)
        for bad in ("a b", "!", "a\0", "a\tb"):
            with self.assertRaises(InstalldError):
                await client.execute("ping", bad)
        with self.assertRaises(InstalldError):
            await client.execute("x" * 1024)
        with self.assertRaises(InstalldError):
            await client.execute_boolean("ping")

    async def test_many_at_once_keep_their_order(self) -> None:
        service = self.start()
        client = self.client()
        await defer.gatherResults([client.ping() for _ in range(100)])
        self.assertEqual(service.counts["ping"], 100)
        self.assertEqual(len(service.clients), 1)

    async def test_it_connects_again_after_the_daemon_was_restarted(self) -> None:
        service = self.start()
        client = self.client()
        await client.ping()
        await service.stopService()
        with self.assertRaises(InstalldError):
            await client.ping()
        self.start()
        await client.ping()

    async def test_waiting_for_one_that_comes_up_and_one_that_does_not(self) -> None:
        self.patch(__import__("anbox_tw.android.installd.client", fromlist=["x"]), "PING_PAUSE_S", 0.02)
        client = self.client()
        with self.assertRaises(TimedOut):
            await client.wait_for_connection(timeout=0.1)
        waiting = client.wait_for_connection()
        await deferLater(reactor, 0.05)
        self.start()
        await waiting

    async def against(self, *replies: bytes) -> tuple[InstallerConnection, Any]:
        """A client whose daemon answers with ``replies``, one for each connection."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(self.address.path)
        server.listen(5)
        server.settimeout(10)

        def serve() -> None:
            with server:
                for reply in replies:
                    connection, _ = server.accept()
                    connection.settimeout(10)
                    with connection:
                        if reply != b"nothing":
                            connection.recv(2000)
                        connection.sendall(b"" if reply == b"nothing" else reply)
                        if reply == b"\x01\x000":
                            connection.recv(2000)

        done = threads.deferToThread(serve)
        return self.client(), done

    async def test_a_write_that_fails_is_tried_once_more_and_a_read_is_not(self) -> None:
        # the first connection answers and is then closed by the daemon: the next command finds a dead link
        client, done = await self.against(b"\x02\x00-1", b"\x01\x000")
        with self.assertRaises(InstalldError):
            await client.ping()
        await deferLater(reactor, 0.05)
        await client.ping()
        await client.close()
        await done
        os.unlink(self.address.path)
        client, done = await self.against(b"")
        with self.assertRaisesRegex(InstalldError, "lost"):
            await client.ping()
        await done

    async def test_bad_replies(self) -> None:
        for reply in (b"\0\0", b"\xff\xff", b"\x01\x00x", b"\x05\x00true0"):
            client, done = await self.against(reply)
            with self.assertRaises(InstalldError):
                await client.ping()
            await client.close()
            await done
            os.unlink(self.address.path)

    async def test_no_answer_in_time(self) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.bind(self.address.path)
        server.listen(5)
        client = InstallerConnection(reactor, AndroidClientEndpoint(reactor, self.address), timeout=0.05)
        with self.assertRaises(TimedOut):
            await client.ping()
        await client.close()
        server.close()


class LimitTests(ServiceCase):
    async def test_no_more_clients_than_the_limit(self) -> None:
        self.patch(service_module, "MAX_CLIENTS", 2)
        service = self.start()
        clients = [self.client() for _ in range(3)]
        await clients[0].ping()
        await clients[1].ping()
        with self.assertRaises(InstalldError):
            await clients[2].ping()
        await clients[0].close()
        while len(service.clients) > 1:
            await deferLater(reactor, 0.01)
        await clients[2].ping()

    async def test_a_client_that_sends_ahead_is_not_read_without_end(self) -> None:
        self.start(tools={})

        def work(sock: socket.socket) -> int:
            sock.settimeout(20)
            count = 20000
            stream = encode_message(b"ping") * count
            import threading

            sender = threading.Thread(target=sock.sendall, args=(stream,))
            sender.start()
            received = 0
            while received < count * 3:
                received += len(sock.recv(65536))
            sender.join()
            return received

        self.assertEqual(await self.blocking(work), 60000)

    async def test_a_client_that_reads_no_replies_is_not_read_without_end(self) -> None:
        service = self.start()
        request, reply, most = encode_message(b"ping"), encode_message(b"0"), 400_000

        def work(sock: socket.socket) -> int:
            sock.settimeout(3)
            block = request * 1000
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < most * len(request):
                    sent += sock.send(block[sent % len(request) :])
            count = sent // len(request)
            self.assertLess(count, most)
            left = count * len(reply)
            while left:
                data = sock.recv(min(left, 65536))
                self.assertTrue(data)
                left -= len(data)
            # the rest of the message that was cut, and it goes on as before
            sock.sendall((request * 2)[sent % len(request) :])
            self.assertEqual(read_reply(sock), reply)
            self.assertEqual(read_reply(sock), reply)
            sock.sendall(b"\0\0")
            self.assertEqual(sock.recv(1), b"")
            return count

        self.assertGreater(await self.blocking(work), 1000)
        self.assertEqual(service.clients, set())

    async def test_a_broken_length_behind_replies_that_wait_ends_the_connection(self) -> None:
        service = self.start()

        def work(sock: socket.socket) -> int:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(encode_message(b"ping") * 30000 + b"\0\0")
            received = 0
            while data := sock.recv(65536):
                received += len(data)
            return received

        self.assertEqual(await self.blocking(work), 90000)
        self.assertEqual(service.clients, set())


class TapTests(ServiceCase):
    def parse(self, *words: str) -> installd_tap.Options:
        options = installd_tap.Options()
        options.parseOptions(list(words))
        return options

    async def test_from_options_to_an_answer(self) -> None:
        data = self.directory / "new/data"
        listen = f"android:installd:namespace=reserved:socketDir={self.directory}:mode=600"
        service = installd_tap.build(
            self.parse("--data", str(data), "--listen", listen, "--owners", "ignore", "--system", "/usr"),
            reactor,
        )
        service.startService()
        self.addCleanup(service.stopService)
        await self.client().ping()
        self.assertTrue((data / "user_de/0").is_dir())
        self.assertEqual((data / ".layout_version").read_text(), "3")
        self.assertEqual(stat.S_IMODE(os.stat(self.address.path).st_mode), 0o600)
        service.startService()
        await service.stopService()
        self.assertFalse(os.path.exists(self.address.path))

    def test_our_inits_socket_needs_no_plugin(self) -> None:
        """The container of a checkout sees the package alone, without the plugin file beside it."""
        self.patch(endpoints, "getPlugins", lambda interface: iter(()))
        options = self.parse("--data", "/x")
        self.assertEqual(options["listen"], "android-control:installd:backlog=5")

    def test_bad_options(self) -> None:
        for words in (
            [],
            ["--data", "/x", "--release", "4.4"],
            ["--data", "/x", "--owners", "mine"],
            ["--data", "/x", "--listen", "nosuch:thing"],
            ["--data", "/x", "--tool", "dexopt"],
            ["--data", "/x", "--tool", "nosuch=/bin/true"],
            ["--data", "/x", "--tool", "dexopt=/no/such"],
        ):
            self.assertRaises(usage.UsageError, self.parse, *words)
        self.assertEqual(
            self.parse("--data", "/x", "--tool", "dexopt=/bin/true")["tool"], {"dexopt": "/bin/true"}
        )

    async def test_a_socket_that_cannot_be_made_is_told_at_once(self) -> None:
        service = installd_tap.build(self.parse("--data", str(self.data)), reactor)
        with self.assertRaisesRegex(Exception, "ANDROID_SOCKET_installd"):
            service.startService()
        await service.stopService()
