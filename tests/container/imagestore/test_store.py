"""The store itself: versions, locks, archives and directories, and what a name means."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.imagestore import ImageStore, Installer, default_store, resolve_image
from anbox_tw.container.imagestore._wire import checksum_urls, content_range, find_checksum, strong_validator
from anbox_tw.container.imagestore.fetch import FetchFailed
from anbox_tw.container.imagestore.install import name_of_source
from anbox_tw.container.imagestore.store import in_use
from anbox_tw.errors import AlreadyRunning, ConfigError, PermissionRefused
from tests.container.imagestore.server import Server, digest, squashfs, stall
from tests.session.guest import until
from tests.support import REPOSITORY, need_root, need_tool


class WireTests(SynchronousTestCase):
    def test_checksum_files(self) -> None:
        one, two = "a" * 64, "B" * 64
        self.assertEqual(find_checksum(f"{one}\n", "x"), one)
        self.assertEqual(find_checksum(f"{one}  y\n{two} *x\n", "x"), two.lower())
        self.assertEqual(find_checksum(f"# sums\n{one}  dir/x\n", "x"), one)
        self.assertEqual(find_checksum(f"SHA256 (x) = {two}\n{one}  y", "x"), two.lower())
        for bad in ("", "x", f"{one}  y", f"{one[:-1]}  x", "<html></html>", f"{one}\n{two}"):
            self.assertIsNone(find_checksum(bad, "x"))

    def test_where_checksums_are(self) -> None:
        self.assertEqual(
            checksum_urls("http://h/a/b.img?c=d#e"), ["http://h/a/b.img.sha256", "http://h/a/SHA256SUMS"]
        )

    def test_headers(self) -> None:
        self.assertEqual(content_range(b"bytes 5-9/10"), (5, 10))
        self.assertEqual(content_range(b"bytes 5-9/*"), (5, None))
        self.assertEqual(content_range(b"bytes */10"), (None, 10))
        for bad in (None, b"", b"bytes", b"items 1-2/3", b"bytes -1-2/3", b"bytes 1-2/3 x"):
            self.assertEqual(content_range(bad), (None, None))
        self.assertEqual(strong_validator(b'"x"', b"then"), b'"x"')
        self.assertEqual(strong_validator(b'W/"x"', b"then"), b"then")
        self.assertIsNone(strong_validator(b'W/"x"', None))

    @given(st.text(max_size=300), st.binary(max_size=60))
    def test_anything_can_be_read(self, text: str, header: bytes) -> None:
        find_checksum(text, "x")
        content_range(header)

    def test_names(self) -> None:
        for source, name in (
            ("http://h/android_amd64.img", "android_amd64"),
            ("http://h/x/system.img.xz?a=b", "system"),
            ("/tmp/root.tar.gz", "root"),
            ("/srv/rootfs/", "rootfs"),
            ("android-7.1.sfs", "android-7.1"),
            ("http://h/.img", ".img"),
        ):
            self.assertEqual(name_of_source(source), name)


class StoreCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="at-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.store = ImageStore(str(self.directory / "store"))
        self.installer = Installer(reactor, self.store)

    def file(self, data: bytes, name: str = "android.img") -> str:
        (self.directory / name).write_bytes(data)
        return str(self.directory / name)

    async def add(self, **options: Any) -> str:
        """A new version; returns its name."""
        version, _ = await self.installer.import_path("android", self.file(squashfs(1000)), **options)
        return version.version


class ImportTests(StoreCase):
    async def test_an_image(self) -> None:
        data = squashfs()
        version, new = await self.installer.import_path(
            "android", self.file(data), sha256=digest(data).upper()
        )
        self.assertTrue(new)
        self.assertEqual(Path(version.path).read_bytes(), data)
        self.assertEqual(os.stat(version.path).st_mode & 0o777, 0o644)
        again, new = await self.installer.import_path("android", self.file(data))
        self.assertEqual((again, new), (version, False))

    async def test_a_real_one(self) -> None:
        need_tool("mksquashfs")
        root = self.directory / "root"
        (root / "system").mkdir(parents=True)
        image = str(self.directory / "real.squashfs")
        subprocess.run(["mksquashfs", str(root), image, "-quiet"], check=True, stdout=subprocess.DEVNULL)
        version, _ = await self.installer.import_path("real", image)
        self.assertEqual(version.kind, "squashfs")

    async def test_a_directory_and_an_archive(self) -> None:
        root = self.directory / "root"
        (root / "system").mkdir(parents=True)
        (root / "system/build.prop").write_text("x=y\n")
        os.symlink("/system", root / "bin")
        os.chmod(root / "system/build.prop", 0o640)
        version, _ = await self.installer.import_path("dir", str(root))
        self.assertEqual((version.kind, version.size, version.sha256), ("directory", 4, ""))
        for flag, ending in (("", "tar"), ("--gzip", "tar.gz"), ("--xz", "tar.xz"), ("--bzip2", "tar.bz2")):
            archive = str(self.directory / f"root.{ending}")
            if ending == "tar.bz2" and shutil.which("bzip2") is None:
                continue
            command = ["tar", "--create", *([flag] if flag else []), "--file", archive, "-C", str(root), "."]
            subprocess.run(command, check=True)
            version, _ = await self.installer.import_path(ending.replace(".", "-"), archive)
            self.assertEqual(version.kind, "directory")
        for name in self.store.names():
            path = Path(self.store.current(name).path)
            self.assertEqual((path / "system/build.prop").read_text(), "x=y\n")
            self.assertEqual(os.stat(path / "system/build.prop").st_mode & 0o777, 0o640)
            self.assertEqual(os.readlink(path / "bin"), "/system")
        self.assertEqual(
            resolve_image("dir", str(self.store.root)), ("rootfs", self.store.current("dir").path)
        )

    async def test_what_is_refused_leaves_nothing(self) -> None:
        import gzip

        (self.directory / "empty").mkdir()
        good = self.file(squashfs())
        cases: tuple[tuple[str, dict[str, Any], type[Exception]], ...] = (
            (str(self.directory / "none"), {}, ConfigError),
            ("/dev/zero", {}, ConfigError),
            (str(self.directory / "empty"), {}, ConfigError),
            (str(self.directory), {"sha256": "0" * 64}, ConfigError),
            (good, {"sha256": "0" * 64}, ConfigError),
            (self.file(b"text", "text"), {}, DiagnosedError),
            (self.file(gzip.compress(squashfs()), "i.gz"), {}, DiagnosedError),
            (self.file(b"\x1f\x8bnot really", "j.gz"), {}, DiagnosedError),
            (self.file(bytes(0x101) + b"ustar" + bytes(1000), "x.tar"), {}, FetchFailed),
            (self.file(b"\x28\xb5\x2f\xfd" + bytes(1000), "x.zst"), {}, FetchFailed),
        )
        for path, options, error in cases:
            with self.assertRaises(error):
                await self.installer.import_path("android", path, **options)
            left = os.listdir(self.store.root) if self.store.root.exists() else []
            self.assertEqual(left, [], path)

    async def test_a_tar_does_not_write_elsewhere(self) -> None:
        import io
        import tarfile

        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name in ("init", "../../../escaped", "/tmp/at-escaped"):
                member = tarfile.TarInfo(name)
                member.size = 1
                tar.addfile(member, io.BytesIO(b"x"))
        with self.assertRaises(FetchFailed):
            await self.installer.import_path("evil", self.file(archive.getvalue(), "evil.tar"))
        self.assertFalse((self.directory / "escaped").exists())
        self.assertFalse(os.path.exists("/tmp/at-escaped"))
        self.assertEqual(self.store.names(), [])


class VersionTests(StoreCase):
    async def test_old_versions_go(self) -> None:
        names = [await self.add() for _ in range(5)]
        self.assertEqual([v.version for v in self.store.versions("android")], names[2:])
        self.store.rollback("android", names[2])
        last = await self.add(keep=1)
        self.assertEqual([v.version for v in self.store.versions("android")], [last])
        self.assertTrue(names[0].startswith("0001-"))

    async def test_back_and_forth(self) -> None:
        names = [await self.add() for _ in range(3)]
        self.assertEqual(self.store.rollback("android").version, names[1])
        self.assertEqual(self.store.rollback("android").version, names[0])
        error = self.assertRaises(ConfigError, self.store.rollback, "android")
        self.assertIn("no earlier version", str(error))
        self.assertEqual(self.store.rollback("android", names[2]).version, names[2])
        self.assertRaises(ConfigError, self.store.rollback, "android", "0009-000000000000")
        self.assertRaises(ConfigError, self.store.rollback, "other")
        self.assertRaises(ConfigError, self.store.rollback, "../x")

    async def test_removing(self) -> None:
        first, second = await self.add(), await self.add()
        self.assertRaises(ConfigError, self.store.remove, "android", second)
        self.assertRaises(ConfigError, self.store.remove, "android", "0009-000000000000")
        self.assertEqual([v.version for v in self.store.remove("android", first)], [first])
        self.assertEqual([v.version for v in self.store.remove("android")], [second])
        self.assertEqual(os.listdir(self.store.root), [])
        self.assertRaises(ConfigError, self.store.remove, "android")

    async def test_one_changes_it_at_a_time(self) -> None:
        await self.add()
        with self.store.lock("android"):
            for change in (
                lambda: self.store.rollback("android", self.store.current("android").version),
                lambda: self.store.remove("android"),
            ):
                error = self.assertRaises(AlreadyRunning, change)
                self.assertIn(str(os.getpid()), str(error))
            with self.assertRaises(AlreadyRunning):
                await self.add()
        await self.add()

    async def test_what_a_killed_one_has_left_goes(self) -> None:
        await self.add()
        directory = self.store.root / "android"
        (directory / "staging-0123/rootfs").mkdir(parents=True)
        os.symlink("versions/none", directory / "current.new")
        (directory / "versions/0002-aaaaaaaaaaaa").mkdir()  # killed before it had anything: no version
        self.assertEqual(len(self.store.versions("android")), 1)
        await self.add(keep=5)
        self.assertEqual(len(self.store.versions("android")), 2)
        self.assertEqual(sorted(os.listdir(directory)), ["current", "lock", "versions"])

    async def test_a_version_in_use_stays(self) -> None:
        need_root()
        root = self.directory / "root"
        (root / "system").mkdir(parents=True)
        version, _ = await self.installer.import_path("dir", str(root))
        self.assertFalse(in_use(version.path))
        target = self.directory / "mounted"
        target.mkdir()
        subprocess.run(["mount", "--bind", version.path, str(target)], check=True)
        try:
            self.assertTrue(in_use(version.path))
            self.assertRaises(ConfigError, self.store.remove, "dir")
            await self.installer.import_path("dir", str(root), keep=1)
            self.assertEqual(len(self.store.versions("dir")), 2)
        finally:
            subprocess.run(["umount", str(target)], check=True)
        await self.installer.import_path("dir", str(root), keep=1)
        self.assertEqual(len(self.store.versions("dir")), 1)

    def test_a_store_that_cannot_be_written(self) -> None:
        store = ImageStore("/proc/self/none")
        with self.assertRaises(PermissionRefused), store.lock("x"):
            pass
        self.assertEqual(store.names(), [])

    async def test_what_a_name_means(self) -> None:
        await self.add()
        root = str(self.store.root)
        self.assertEqual(resolve_image("android", root), ("image", self.store.current("android").path))
        self.assertEqual(resolve_image("./android", root), ("image", os.path.abspath("android")))
        self.assertEqual(resolve_image("/x/y.img", root), ("image", "/x/y.img"))
        error = self.assertRaises(ConfigError, resolve_image, "windows", root)
        self.assertIn("there is android", str(error))

    def test_where_the_store_is(self) -> None:
        self.assertEqual(default_store({"ANBOX_IMAGES": "/x"}), "/x")
        self.patch(os, "geteuid", lambda: 0)
        self.assertEqual(default_store({"HOME": "/h"}), "/var/lib/anbox/images")
        self.patch(os, "geteuid", lambda: 1000)
        self.assertEqual(default_store({"HOME": "/h"}), "/h/.local/share/anbox/images")


class CommandTests(StoreCase):
    async def anbox(self, *arguments: str, code: int = 0) -> str:
        from twisted.internet.utils import getProcessOutputAndValue

        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ANBOX_IMAGES": str(self.store.root)}
        command = ["-m", "anbox_tw.cli", "image", *arguments]
        out, err, found = await getProcessOutputAndValue(sys.executable, command, env=environment)
        self.assertEqual(found, code, (out + err).decode())
        text: str = (out if code == 0 else err).decode()
        return text

    async def test_a_killed_fetch_is_continued_and_two_at_once_are_not(self) -> None:
        server = Server(self)
        data = squashfs()
        served = server.put_image("android.img", data)
        served.faults = [stall(100_000)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ANBOX_IMAGES": str(self.store.root)}
        command = [sys.executable, "-m", "anbox_tw.cli", "image", "fetch", server.url("android.img")]
        first = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            partial = self.store.root / "android/partial/file"
            await until(lambda: partial.exists() and partial.stat().st_size == 100_000, 60)
            words = await self.anbox("fetch", server.url("android.img"), code=1)
            self.assertIn(f"by process {first.pid}", words)
        finally:
            first.kill()
            first.wait()
        self.assertEqual(self.store.names(), [])
        await self.anbox("fetch", server.url("android.img"))
        self.assertEqual(served.asked, [None, "bytes=100000-"])
        self.assertEqual(self.store.current("android").sha256, digest(data))

    async def test_all_of_them(self) -> None:
        server = Server(self)
        first, second = squashfs(), squashfs()
        server.put_image("android.img", first)
        self.assertIn("squashfs", await self.anbox("fetch", server.url("android.img")))
        path = self.file(second)
        await self.anbox("import", path, "--sha256", digest(second))
        listed = json.loads(await self.anbox("list", "--json"))
        self.assertEqual([v["current"] for v in listed], [False, True])
        self.assertIn("android", await self.anbox("list"))
        self.assertIn(listed[0]["version"], await self.anbox("rollback", "android"))
        self.assertIn(listed[1]["version"], await self.anbox("rm", "android", listed[1]["version"]))
        words = await self.anbox(
            "fetch", server.url("none.img"), "--retries", "0", "--sha256", "0" * 64, code=1
        )
        self.assertIn("404", words)
        self.assertIn("64 hexadecimal", await self.anbox("fetch", server.url("x"), "--sha256", "no", code=2))
        await self.anbox("rm", "android")
        self.assertEqual(json.loads(await self.anbox("list", "--json")), [])
        await self.anbox("rm", "android", code=2)
