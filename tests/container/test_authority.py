"""Opening sources as their caller, with real processes, and binding what was opened."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import attrs
from twisted.internet import reactor as _reactor
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from anbox_tw.container import _opener
from anbox_tw.container.authority import Caller, GuardedBackend, OpenedSource, SourceOpener, bind, user_name
from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.spec import BindMount, ContainerSpec
from anbox_tw.container.undo import default_kinds
from anbox_tw.interfaces import IContainerBackend
from anbox_tw.testing.container import FakeBackend
from tests.support import need_root

reactor: Any = _reactor

STRANGER = Caller(4001, 4001, frozenset({4005}))


def identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


class OpenReadableTests(TestCase):
    """The opener's own function, as ourselves."""

    def test_kinds(self) -> None:
        base = self.mktemp()
        os.mkdir(base)
        with open(f"{base}/file", "w"):
            pass
        with socket.socket(socket.AF_UNIX) as listening:
            here = os.getcwd()
            os.chdir(base)
            listening.bind("socket")
            os.chdir(here)
        for path, is_directory in ((base, True), (f"{base}/file", False), (f"{base}/socket", False)):
            descriptor, directory = _opener.open_readable(path)
            self.addCleanup(os.close, descriptor)
            self.assertEqual(directory, is_directory)
            self.assertEqual(os.stat(path).st_ino, os.fstat(descriptor).st_ino)

    def test_what_is_not_there(self) -> None:
        self.assertRaises(FileNotFoundError, _opener.open_readable, "/nonexistent")


class SourceOpenerTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        need_root()
        self.base = os.path.abspath(self.mktemp())
        os.makedirs(self.base)
        self.opener = SourceOpener(reactor)
        # The trial directory may be closed to others: work where everybody may pass.
        self.place = f"/tmp/anbox-tw-authority-{os.getpid()}"
        os.mkdir(self.place, 0o755)
        self.addCleanup(self.clean, self.place)

    def clean(self, place: str) -> None:
        for name in os.listdir(place):
            full = f"{place}/{name}"
            if os.path.isdir(full) and not os.path.islink(full):
                os.rmdir(full)
            else:
                os.unlink(full)
        os.rmdir(place)

    def file(self, name: str, uid: int, gid: int, mode: int) -> BindMount:
        path = f"{self.place}/{name}"
        with open(path, "w") as file:
            file.write(name)
        os.chown(path, uid, gid)
        os.chmod(path, mode)
        return BindMount(path, name)

    async def opened(self, *mounts: BindMount, caller: Caller = STRANGER) -> list[OpenedSource]:
        sources = await self.opener.open(caller, mounts)
        for source in sources:
            self.addCleanup(os.close, source.descriptor)
        return sources

    async def refused(self, *mounts: BindMount) -> str:
        # The reactor itself opens descriptors with its first child.
        await Commands(reactor).run(["/bin/true"])
        before = len(os.listdir("/proc/self/fd"))
        with self.assertRaises(DiagnosedError) as caught:
            await self.opener.open(STRANGER, mounts)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(caught.exception.code, "ANBOX-C008")
        return str(caught.exception)

    async def test_what_the_caller_may_read(self) -> None:
        mounts = [
            self.file("own", 4001, 4001, 0o400),
            self.file("group", 0, 4001, 0o040),
            self.file("supplementary", 0, 4005, 0o040),
            self.file("everybodys", 0, 0, 0o444),
            BindMount("/usr", "usr"),
        ]
        sources = await self.opened(*mounts)
        self.assertEqual([source.mount for source in sources], mounts)
        self.assertEqual([source.directory for source in sources], [False] * 4 + [True])
        for source in sources:
            status = os.stat(source.mount.source)
            self.assertEqual(identity(source.descriptor), (status.st_dev, status.st_ino))
            self.assertFalse(os.get_inheritable(source.descriptor))

    async def test_what_the_caller_may_not_read(self) -> None:
        good = self.file("good", 0, 0, 0o444)
        cases = [
            self.file("roots", 0, 0, 0o600),
            self.file("others", 4002, 4002, 0o400),
            self.file("not-even-its-own", 4001, 4001, 0o000),
            BindMount("/root/.bashrc-or-anything", "x"),
            BindMount(f"{self.place}/missing", "y"),
        ]
        for mount in cases:
            self.assertIn(mount.source, await self.refused(good, mount))

    async def test_link_to_what_it_may_not_read(self) -> None:
        secret = self.file("secret", 0, 0, 0o600)
        os.symlink(secret.source, f"{self.place}/link")
        self.assertIn("Permission denied", await self.refused(BindMount(f"{self.place}/link", "x")))

    async def test_more_than_one_message(self) -> None:
        mounts = [self.file(f"f{number}", 4001, 4001, 0o600) for number in range(2 * _opener.BATCH + 3)]
        sources = await self.opened(*mounts)
        for source, mount in zip(sources, mounts):
            self.assertEqual(os.fstat(source.descriptor).st_ino, os.stat(mount.source).st_ino)

    async def test_nothing_to_open_starts_nothing(self) -> None:
        self.opener = SourceOpener(None)
        self.assertEqual(await self.opened(), [])

    async def test_opener_that_cannot_run(self) -> None:
        for python in ("/nonexistent/python", "/bin/false"):
            self.opener = SourceOpener(reactor, python=python)
            self.assertIn(
                "could not be opened", await self.refused(self.file(python[-5:].strip("/"), 0, 0, 0o444))
            )

    async def test_opener_that_hangs_is_killed(self) -> None:
        script = f"{self.place}/hang"
        with open(script, "w") as file:
            file.write("#!/bin/sh\nexec sleep 60\n")
        os.chmod(script, 0o755)
        self.opener = SourceOpener(reactor, python=script, timeout=0.3)
        self.assertIn("could not be opened", await self.refused(self.file("x", 0, 0, 0o444)))

    async def test_opened_is_what_it_was_whatever_the_path_becomes(self) -> None:
        [source] = await self.opened(self.file("mine", 4001, 4001, 0o600))
        was = identity(source.descriptor)
        secret = self.file("secret", 0, 0, 0o600)
        os.rename(source.mount.source, f"{self.place}/moved")
        os.rename(secret.source, source.mount.source)
        backend = FakeBackend("lxc")
        guarded = GuardedBackend(backend, [attrs.evolve(source, descriptor=os.dup(source.descriptor))])
        self.assertTrue(verifyObject(IContainerBackend, guarded))
        journal, spec = self.journal(), self.spec(source.mount)
        journal.open()
        try:
            container: Any = guarded.create(spec, journal)
            [mount] = container.spec.bind_mounts
            self.assertEqual(mount.target, source.mount.target)
            status = os.stat(mount.source)
            self.assertEqual((status.st_dev, status.st_ino), was)
            self.assertEqual(os.stat(os.path.dirname(mount.source)).st_mode & 0o777, 0o700)
        finally:
            await journal.undo_all()
        self.assertFalse(os.path.exists(spec.run_path))
        with open("/proc/self/mountinfo") as mounts:
            self.assertNotIn(spec.run_path, mounts.read())
        journal.close()

    def spec(self, *mounts: BindMount) -> ContainerSpec:
        return ContainerSpec(
            data_path=f"{self.base}/data", run_path=f"{self.base}/run", backend="lxc", bind_mounts=mounts
        )

    def journal(self) -> Journal:
        return Journal(
            f"{self.base}/data/state/undo.journal", UndoContext(reactor, Commands(reactor)), default_kinds()
        )

    async def test_directories_files_and_a_failing_mount(self) -> None:
        mounts = [self.file("file", 4001, 4001, 0o600), BindMount("/usr", "usr")]
        sources = await self.opener.open(STRANGER, mounts)
        journal, spec = self.journal(), self.spec(*mounts)
        journal.open()
        guarded = GuardedBackend(FakeBackend("lxc"), sources)
        self.assertEqual((guarded.name, await guarded.probe()), ("lxc", []))
        container: Any = guarded.create(spec, journal)
        self.assertTrue(os.path.isdir(f"{container.spec.bind_mounts[1].source}/bin"))
        guarded.close()
        await journal.undo_all()
        broken = [OpenedSource(mounts[0], os.open("/proc/self", os.O_PATH), False)]
        with self.assertRaises(DiagnosedError):
            GuardedBackend(FakeBackend("lxc"), broken).create(spec, journal)
        await journal.undo_all()
        self.assertFalse(os.path.exists(f"{spec.run_path}/sources"))
        self.assertRaises(OSError, bind, 9999, "/nonexistent")
        journal.close()

    def test_opener_imports_little_and_refuses_nonsense(self) -> None:
        done = subprocess.run(
            [sys.executable, "-I", "-S", _opener.__file__], input=b"{}", capture_output=True, check=False
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"KeyError", done.stderr)


class NameTests(TestCase):
    def test_users_are_named_where_they_have_a_name(self) -> None:
        self.assertEqual(user_name(0), "user root (uid 0)")
        self.assertEqual(user_name(3999999), "uid 3999999")
        self.assertEqual(str(Caller(3999999, 1)), "uid 3999999")
