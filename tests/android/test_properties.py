"""Properties: messages as golden bytes, the rules of names and values, what persists, and the real socket."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor, threads
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.android import getprop, setprop
from anbox_tw.android.errors import InitError, PropertyError
from anbox_tw.android.localsocket import Credentials
from anbox_tw.android.properties import (
    PropertyRefused,
    PropertyService,
    PropertyStore,
    Status,
    client,
    is_legal_name,
    may_set,
)
from anbox_tw.android.properties import service as service_module
from anbox_tw.android.properties._wire import (
    PropertyReader,
    decode_answer,
    encode_answer,
    encode_get,
    encode_list,
    encode_set,
    encode_set2,
)
from anbox_tw.android.properties.store import MAX_PROPERTIES
from anbox_tw.errors import NotRunning, PeerError
from tests.support import REPOSITORY

DOCUMENT = json.loads((REPOSITORY / "protocols/android/vectors/properties.json").read_text())


class WireTests(SynchronousTestCase):
    def encode(self, entry: dict[str, str]) -> bytes:
        return {
            "set": lambda: encode_set(entry["name"], entry["value"]),
            "set2": lambda: encode_set2(entry["name"], entry["value"]),
            "get": lambda: encode_get(entry["name"]),
            "list": encode_list,
        }[entry["kind"]]()

    def test_requests_both_ways_at_every_cut(self) -> None:
        for entry in DOCUMENT["requests"]:
            data = bytes.fromhex(entry["bytes"])
            self.assertEqual(self.encode(entry), data)
            for cut in range(len(data)):
                reader = PropertyReader()
                self.assertIsNone(reader.feed(data[:cut]))
                request = reader.feed(data[cut:] + b"behind")
                assert request is not None
                self.assertEqual((request.name, request.value), (entry["name"], entry["value"]))
                self.assertEqual(request.wants_answer, entry["kind"] != "set")

    def test_answers(self) -> None:
        for entry in DOCUMENT["answers"]:
            data = bytes.fromhex(entry["bytes"])
            self.assertEqual(encode_answer(Status(entry["status"]), *entry["texts"]), data)
            self.assertEqual(decode_answer(data), (entry["status"], entry["texts"]))
        for bad in (b"", b"\0\0\0", b"\0\0\0\0\1", b"\0\0\0\0\2\0\0\0x"):
            self.assertRaises(PeerError, decode_answer, bad)

    def test_what_an_old_client_leaves_behind_the_nul_is_not_read(self) -> None:
        data = struct.pack("<I32s92s", 1, b"a.b\0junk", b"v\0junk")
        request = PropertyReader().feed(data)
        assert request is not None
        self.assertEqual((request.name, request.value), ("a.b", "v"))
        full = PropertyReader().feed(struct.pack("<I32s92s", 1, b"n" * 32, b"v" * 92))
        assert full is not None
        self.assertEqual((len(full.name), len(full.value)), (31, 91))

    def test_refused(self) -> None:
        for data in (
            struct.pack("<I", 99),
            struct.pack("<II", 0x20001, 5000),
            struct.pack("<II", 0x61780001, 0xFFFFFFFF),
        ):
            self.assertRaises(PeerError, PropertyReader().feed, data)
        self.assertRaises(ValueError, encode_set, "n" * 32, "")
        self.assertRaises(ValueError, encode_set, "n", "v" * 92)
        self.assertRaises(ValueError, encode_set, "n\0", "")

    @settings(derandomize=True, deadline=None)
    @given(st.binary(max_size=300))
    def test_no_bytes_break_the_reader(self, data: bytes) -> None:
        with contextlib.suppress(PeerError):
            PropertyReader().feed(data)

    def test_names(self) -> None:
        for good in ("a", "ro.x-y_Z0", "n" * 31):
            self.assertTrue(is_legal_name(good), good)
        for bad in ("", ".a", "a.", "a..b", "a b", "ä", "n" * 32, "a/b", "a\n"):
            self.assertFalse(is_legal_name(bad), bad)


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.changes: list[tuple[str, str]] = []

    def store(self) -> PropertyStore:
        store = PropertyStore(str(self.directory))
        store.changed.append(lambda name, value: self.changes.append((name, value)))
        return store

    def test_the_rules(self) -> None:
        store = self.store()
        store.set("ro.a", "1")
        with self.assertRaises(PropertyRefused) as caught:
            store.set("ro.a", "1")
        self.assertEqual(caught.exception.status, Status.READ_ONLY_PROPERTY)
        for name, value, status in (
            ("a b", "", Status.INVALID_NAME),
            ("a", "ä" * 46, Status.INVALID_VALUE),
            ("a", "\0", Status.INVALID_VALUE),
        ):
            with self.assertRaises(PropertyRefused) as caught:
                store.set(name, value)
            self.assertEqual(caught.exception.status, status)
        store.set("a", "ä" * 45)
        self.assertEqual((store.get("a"), store.get("none"), store.get("none", "d")), ("ä" * 45, "", "d"))
        self.assertTrue("a" in store and len(store) == 2)
        self.assertEqual(self.changes, [("ro.a", "1"), ("a", "ä" * 45)])

    def test_net_change_names_the_last_one_and_tells_only_of_that(self) -> None:
        store = self.store()
        store.set("net.dns1", "1.1.1.1")
        self.assertEqual(store.get("net.change"), "net.dns1")
        self.assertEqual(self.changes, [("net.dns1", "1.1.1.1")])

    def test_what_persists_is_written_after_it_was_loaded_and_read_again(self) -> None:
        store = self.store()
        store.set("persist.early", "default")
        self.assertFalse(self.directory.exists())
        self.assertEqual(store.load_persistent(), 0)
        store.set("persist.a", "wert ä")
        store.set("other", "x")
        path = self.directory / "persist.a"
        self.assertEqual(path.read_bytes(), "wert ä".encode())
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(os.listdir(self.directory), ["persist.a"])
        (self.directory / ".temp.crashed").write_text("half")
        again = self.store()
        self.assertEqual(again.load_persistent(), 1)
        self.assertEqual(again.get("persist.a"), "wert ä")
        self.assertEqual(os.listdir(self.directory), ["persist.a"])

    def test_files_that_are_not_ours_alone_are_left_out(self) -> None:
        self.directory.mkdir()
        for name in ("persist.open", "persist.linked", "persist.long", "persist.good", "notpersist"):
            (self.directory / name).write_text("x")
            (self.directory / name).chmod(0o600)
        (self.directory / "persist.open").chmod(0o604)
        os.link(self.directory / "persist.linked", self.directory / "link")
        os.symlink("persist.good", self.directory / "persist.symlink")
        (self.directory / "persist.dir").mkdir()
        os.mkfifo(self.directory / "persist.fifo", 0o600)
        (self.directory / "persist.long").write_text("y" * 200)
        store = self.store()
        self.assertEqual(store.load_persistent(), 2)
        self.assertEqual([name for name, _ in store.items()], ["persist.good", "persist.long"])
        self.assertEqual(len(store.get("persist.long")), 91)

    def test_a_directory_that_cannot_be_written_keeps_the_value(self) -> None:
        self.directory.write_text("a file is in the way")
        store = self.store()
        store.load_persistent()
        store.set("persist.a", "1")
        self.assertEqual(store.get("persist.a"), "1")
        self.assertEqual(PropertyStore().load_persistent(), 0)

    def test_files_of_defaults(self) -> None:
        self.directory.mkdir()
        main = self.directory / "build.prop"
        main.write_text(
            "# comment\n  spaced.name = value with spaces  \nnoequals\n=nothing\nempty=\nimport /inner.prop ro.*\nimport /build.prop\nro.x=outer\n"
        )
        (self.directory / "inner.prop").write_text("ro.x=inner\nnot.wanted=1\nimport /none.prop\n")
        store = self.store()
        self.assertGreater(store.load_file(str(main), root=str(self.directory)), 2)
        self.assertEqual(
            dict(store.items()), {"spaced.name": "value with spaces", "empty": "", "ro.x": "inner"}
        )
        exact = self.store()
        exact.load_file(str(main), "ro.x")
        self.assertEqual(dict(exact.items()), {"ro.x": "outer"})
        self.assertEqual(store.load_file("/no/such/file"), 0)

    def test_no_more_than_the_limit(self) -> None:
        store = PropertyStore()
        for number in range(MAX_PROPERTIES):
            store.set(f"p{number}", "")
        self.assertFalse(store.try_set("one.more", ""))
        store.set("p0", "still")


class PolicyTests(SynchronousTestCase):
    def test_who_may_set_what(self) -> None:
        def ask(name: str, uid: int) -> bool:
            return may_set(name, "", Credentials(1, uid, uid))

        self.assertTrue(ask("ctl.start", 0) and ask("a", 1000) and ask("a", os.geteuid()))
        self.assertTrue(ask("debug.x", 2000) and ask("log.tag", 2000))
        self.assertFalse(ask("ctl.start", 2000) or ask("sys.powerctl", 2000) or ask("debug.x", 10001))


class ServiceTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="atw")
        self.addCleanup(shutil.rmtree, self.directory)

    def start(self, **options: Any) -> PropertyService:
        service = PropertyService(reactor, PropertyStore(), self.directory, **options)
        service.startService()
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def tool(self, module: Any, *words: str) -> Any:
        def run() -> tuple[int, str, str]:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = module.main(["--socket-dir", self.directory, *words])
            return code, out.getvalue(), err.getvalue()

        return threads.deferToThread(run)

    async def test_tools(self) -> None:
        service = self.start()
        self.assertEqual(os.stat(f"{self.directory}/property_service").st_mode & 0o777, 0o666)
        self.assertEqual(await self.tool(setprop, "a.b", "c d"), (0, "", ""))
        self.assertEqual(await self.tool(setprop, "--old", "ro.x", "1"), (0, "", ""))
        self.assertEqual(await self.tool(getprop, "a.b"), (0, "c d\n", ""))
        self.assertEqual(await self.tool(getprop, "none"), (0, "\n", ""))
        self.assertEqual(await self.tool(getprop, "none", "default"), (0, "default\n", ""))
        self.assertEqual(await self.tool(getprop), (0, "[a.b]: [c d]\n[ro.x]: [1]\n", ""))
        code, _, err = await self.tool(setprop, "ro.x", "2")
        self.assertEqual((code, "read only property" in err), (1, True))
        self.assertEqual((await self.tool(setprop, "--old", "ro.x", "2"))[0], 0)  # nobody tells an old client
        self.assertEqual(service.store.get("ro.x"), "1")
        self.assertEqual((await self.tool(setprop, "--old", "n" * 32, "2"))[0], 1)
        self.assertEqual((await self.tool(setprop, "bad name", "2"))[0], 1)
        await service.stopService()
        self.assertEqual((await self.tool(getprop, "a"))[0], 3)
        with self.assertRaises(NotRunning):
            client.set_property("a", "b", directory=self.directory)

    async def test_a_value_that_is_no_text(self) -> None:
        service = self.start()
        await threads.deferToThread(client.set_property, "a", "\udcff", directory=self.directory)
        self.assertEqual(service.store.get("a"), "\udcff")
        self.assertEqual(
            await threads.deferToThread(client.get_property, "a", directory=self.directory), "\udcff"
        )

        def run() -> bytes:
            command = [sys.executable, "-m", "anbox_tw.android.getprop", "--socket-dir", self.directory, "a"]
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

        self.assertEqual(await threads.deferToThread(run), b"\xff\n")

    async def test_control_and_refusals(self) -> None:
        asked: list[tuple[str, str]] = []

        def control(verb: str, name: str) -> None:
            asked.append((verb, name))
            if name == "ghost":
                raise InitError("no such service 'ghost'")

        service = self.start(control=control)
        await threads.deferToThread(client.set_property, "ctl.start", "adbd", directory=self.directory)
        with self.assertRaises(PropertyError):
            await threads.deferToThread(client.set_property, "ctl.stop", "ghost", directory=self.directory)
        self.assertEqual(asked, [("start", "adbd"), ("stop", "ghost")])
        service.control = None
        self.assertEqual(
            service.handle("ctl.start", "x", Credentials(1, 0, 0)), Status.HANDLE_CONTROL_MESSAGE
        )
        self.assertEqual(service.handle("a", "x", Credentials(1, 12345, 0)), Status.PERMISSION_DENIED)
        self.assertEqual(service.handle(".a", "x", Credentials(1, 0, 0)), Status.INVALID_NAME)

    async def test_an_old_client_sees_the_end_only_when_the_value_is_there(self) -> None:
        service = self.start()

        def exchange() -> tuple[bytes, str]:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(f"{self.directory}/property_service")
                for byte in encode_set("x", "y"):
                    sock.send(bytes([byte]))
                return sock.recv(10), service.store.get("x")

        self.assertEqual(await threads.deferToThread(exchange), (b"", "y"))

    async def test_silence_garbage_and_crowds(self) -> None:
        self.patch(service_module, "REQUEST_TIMEOUT_S", 0.1)
        self.patch(service_module, "MAX_CLIENTS", 3)
        service = self.start()

        def exchange(data: bytes) -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(f"{self.directory}/property_service")
                sock.sendall(data)
                try:
                    return sock.recv(100)
                except ConnectionError:
                    return b"reset"

        self.assertEqual(await threads.deferToThread(exchange, b"\x01\0"), b"")  # too slow
        self.assertEqual(
            await threads.deferToThread(exchange, b"\xff" * 8), encode_answer(Status.INVALID_CMD)
        )
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for sock in crowd:
            sock.connect(f"{self.directory}/property_service")
        while len(service.clients) < 3:
            await deferLater(reactor, 0.001)
        self.assertEqual(await threads.deferToThread(crowd[3].recv, 1), b"")
        await service.stopService()
        self.assertEqual(service.clients, set())
        for sock in crowd:
            sock.close()

    async def test_a_list_longer_than_any_socket_buffer(self) -> None:
        service = self.start()
        for number in range(4000):
            service.store.set(f"long.property.number.{number}", "v" * 91)
        found = await threads.deferToThread(client.list_properties, directory=self.directory)
        self.assertEqual(len(found), 4000)
