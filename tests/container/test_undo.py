"""Each kind of change, really made and undone: in a network and mount namespace of its own where root is needed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import TestCase

from anbox_tw.container import undo
from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import Journal, UndoFailed
from tests.container.doubles import a_journal
from tests.support import need_root, need_tool


def run(*argv: str, ok: bool = True) -> str:
    result = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    if ok and result.returncode:
        raise AssertionError(f"{argv}: {result.stderr}")
    return result.stdout.strip()


class UndoCase(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.directory = os.path.abspath(self.mktemp())
        os.makedirs(self.directory)
        self.journal: Journal = a_journal(reactor, f"{self.directory}/journal")
        self.addCleanup(self.journal.close)
        self.context = self.journal.context

    def path(self, name: str = "x") -> str:
        return f"{self.directory}/{name}"

    def twice(self, kind: str, gone: Callable[[], bool], **args: Any) -> Deferred[Any]:
        """Undo an entry, see that it is gone, and undo one like it again: that must succeed, too."""
        self.journal.record(kind, **args)

        def again(_: Any) -> Deferred[None]:
            self.assertTrue(gone(), "it is still there")
            self.journal.record(kind, **args)
            return self.journal.undo_all()

        return self.journal.undo_all().addCallback(again).addCallback(lambda _: self.assertTrue(gone()))


class FileTests(UndoCase):
    def gone(self) -> bool:
        return not os.path.lexists(self.path())

    def test_a_directory(self) -> Deferred[Any]:
        os.mkdir(self.path())
        return self.twice("directory", self.gone, path=self.path())

    @inlineCallbacks
    def test_a_directory_with_somebody_elses_file_stays(self) -> Any:
        os.mkdir(self.path())
        open(self.path("x/y"), "w").close()
        self.journal.record("directory", path=self.path())
        yield self.journal.undo_all()
        self.assertTrue(os.path.exists(self.path("x/y")))

    def test_a_tree(self) -> Deferred[Any]:
        os.makedirs(self.path("x/y/z"))
        os.symlink("/etc", self.path("x/etc"))
        return self.twice("directory", self.gone, path=self.path(), recursive=True).addCallback(
            lambda _: self.assertTrue(os.path.exists("/etc/passwd"))
        )

    @inlineCallbacks
    def test_a_tree_that_became_a_link_is_not_followed(self) -> Any:
        os.makedirs(self.path("other/y"))
        os.symlink(self.path("other"), self.path())
        self.journal.record("directory", path=self.path(), recursive=True)
        yield self.journal.undo_all()
        self.assertTrue(os.path.exists(self.path("other/y")))

    def test_a_file_and_a_link(self) -> Deferred[Any]:
        open(self.path(), "w").close()
        return self.twice("file", self.gone, path=self.path())

    def test_a_socket(self) -> Deferred[Any]:
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        directory = os.getcwd()
        os.chdir(self.directory)  # a socket's path is short
        server.bind("x")
        os.chdir(directory)
        return self.twice("socket", self.gone, path=self.path())

    @inlineCallbacks
    def test_only_what_it_says_is_deleted(self) -> Any:
        open(self.path(), "w").close()
        os.mkdir(self.path("d"))
        for kind in ("socket", "node"):
            self.journal.record(kind, path=self.path())
        self.journal.record("file", path=self.path("d"))
        self.journal.record("directory", path=self.path())
        self.journal.record("file", path=f"{self.path()}/below/a/file")
        yield self.journal.undo_all()
        self.assertTrue(os.path.exists(self.path()))
        self.assertTrue(os.path.exists(self.path("d")))

    @inlineCallbacks
    def test_paths_that_are_not_ours_are_refused(self) -> Any:
        for path in ("/", "relative", "/a/../etc", "", "a\0b", 5, None):
            for kind in ("directory", "file", "mount", "cgroup"):
                self.journal.record(kind, path=path)
                error = yield self.assertFailure(self.journal.undo_all(), UndoFailed)
                self.assertEqual(len(error.failures), 1)
                self.journal.done(self.journal.pending[0])

    @inlineCallbacks
    def test_a_shared_directory_that_is_not_ours_stays(self) -> Any:
        """As ``/run/user/1000`` does for its user: a mount point in a directory of root's."""
        for shared in ("/proc", "/sys"):
            self.journal.record("directory", path=shared, shared=True)
        yield self.journal.undo_all()
        self.journal.record("directory", path="/proc")
        yield self.assertFailure(self.journal.undo_all(), UndoFailed)
        self.journal.done(self.journal.pending[0])
        os.mkdir(self.path("run"))
        undo.make_directories(self.journal, self.path("run/one"), shared=self.path("run"))
        yield self.journal.undo_all()
        self.assertFalse(os.path.exists(self.path("run")))

    def test_a_directory_that_another_instance_makes_at_the_same_moment(self) -> None:
        def later(journal: Journal, path: str, mode: int = 0o700) -> Any:
            os.mkdir(path)
            # as if it had not been there when we looked
            raise FileExistsError(path)

        self.patch(undo, "make_directory", later)
        undo.make_directories(self.journal, self.path("run/one"))
        self.assertTrue(os.path.isdir(self.path("run/one")))

    @inlineCallbacks
    def test_making_directories(self) -> Any:
        undo.make_directories(self.journal, self.path("a/b/c"), 0o711)
        self.assertEqual(os.stat(self.path("a/b/c")).st_mode & 0o777, 0o711)
        self.assertIsNone(undo.make_directory(self.journal, self.path("a")))
        yield self.journal.undo_all()
        self.assertFalse(os.path.exists(self.path("a")))
        open(self.path("file"), "w").close()
        error = self.assertRaises(DiagnosedError, undo.make_directories, self.journal, self.path("file/x"))
        self.assertEqual(error.code, "ANBOX-C005")
        yield self.journal.undo_all()
        self.assertTrue(os.path.exists(self.path("file")))


class MountTests(UndoCase):
    def setUp(self) -> None:
        super().setUp()
        need_root()
        self.target = self.path("mount point\twith\nodd \\ characters")
        os.mkdir(self.target)
        self.addCleanup(run, "umount", "--recursive", self.target, ok=False)

    def mounted(self) -> int:
        return undo.mounts_at(self.target, self.context)

    def test_a_mount(self) -> Deferred[Any]:
        run("mount", "-t", "tmpfs", "none", self.target)
        self.assertEqual(self.mounted(), 1)
        return self.twice("mount", lambda: not self.mounted(), path=self.target)

    @inlineCallbacks
    def test_only_what_lies_above_what_was_there_is_unmounted(self) -> Any:
        run("mount", "-t", "tmpfs", "theirs", self.target)
        undo.record_mount(self.journal, self.target)
        run("mount", "-t", "tmpfs", "ours", self.target)
        run("mount", "-t", "tmpfs", "ours too", self.target)
        yield self.journal.undo_all()
        self.assertEqual(self.mounted(), 1)
        self.assertIn("theirs", run("findmnt", "-no", "SOURCE", self.target))

    @inlineCallbacks
    def test_a_busy_mount_is_detached_in_the_end(self) -> Any:
        self.patch(undo, "BUSY_TRIES", 2)
        self.patch(undo, "BUSY_WAIT_S", 0.01)
        run("mount", "-t", "tmpfs", "none", self.target)
        descriptor = os.open(self.target, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        self.journal.record("mount", path=self.target)
        yield self.journal.undo_all()
        self.assertEqual(self.mounted(), 0)

    @inlineCallbacks
    def test_a_tree_with_a_mount_in_it_is_not_deleted(self) -> Any:
        run("mount", "-t", "tmpfs", "none", self.target)
        self.journal.record("directory", path=self.directory, recursive=True)
        error = yield self.assertFailure(self.journal.undo_all(), UndoFailed)
        self.assertIn("still mounted", error.diagnosis.why)

    @inlineCallbacks
    def test_a_fuse_mount(self) -> Any:
        squashfuse, mksquashfs = need_tool("squashfuse"), need_tool("mksquashfs")
        image = self.path("image")
        os.makedirs(self.path("tree/inside"))
        run(mksquashfs, self.path("tree"), image, "-quiet", "-no-progress")
        target = self.path("fuse")
        os.mkdir(target)
        self.journal.record("mount", path=target)
        run(squashfuse, image, target)
        self.assertTrue(os.path.exists(f"{target}/inside"))
        yield self.journal.undo_all()
        self.assertEqual(undo.mounts_at(target, self.context), 0)


class LoopTests(UndoCase):
    def setUp(self) -> None:
        super().setUp()
        need_root()
        need_tool("losetup")
        self.image = self.path("image")
        with open(self.image, "wb") as file:
            file.truncate(1024 * 1024)
        self.device = run("losetup", "--find", "--show", self.image)
        self.addCleanup(run, "losetup", "--detach", self.device, ok=False)

    def free(self) -> bool:
        return self.image not in run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")

    def test_a_loop_device(self) -> Deferred[Any]:
        return self.twice("loop", self.free, device=self.device, backing_file=self.image)

    @inlineCallbacks
    def test_another_ones_loop_device_stays(self) -> Any:
        self.journal.record("loop", device=self.device, backing_file="/another/image")
        yield self.journal.undo_all()
        self.assertFalse(self.free())
        self.journal.record("loop", device="/dev/sda", backing_file=self.image)
        yield self.assertFailure(self.journal.undo_all(), UndoFailed)

    @inlineCallbacks
    def test_one_whose_file_was_deleted(self) -> Any:
        os.unlink(self.image)
        self.journal.record("loop", device=self.device, backing_file=self.image)
        yield self.journal.undo_all()
        self.assertTrue(self.free())

    @inlineCallbacks
    def test_one_in_use_is_told(self) -> Any:
        self.patch(undo, "BUSY_TRIES", 2)
        descriptor = os.open(self.device, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        self.journal.record("loop", device=self.device, backing_file=self.image)
        error = yield self.assertFailure(self.journal.undo_all(), UndoFailed)
        self.assertIn(f"losetup -d {self.device}", error.diagnosis.cure)


class NetworkTests(UndoCase):
    def setUp(self) -> None:
        super().setUp()
        need_root()
        for tool in ("ip", "nft"):
            need_tool(tool)
        self.name = f"t{uuid.uuid4().hex[:8]}"
        self.addCleanup(run, "ip", "link", "delete", self.name, ok=False)
        if os.path.realpath(f"/sys/class/net/{self.name}") and not self.sysfs_is_ours():
            # /sys shows the network namespace that mounted it.
            own = self.path("sys")
            os.mkdir(own)
            run("mount", "-t", "sysfs", "sysfs", own)
            self.addCleanup(run, "umount", own)
            self.context = type(self.context)(self.reactor, self.context.commands, sys=own)
            self.journal.context = self.context

    def sysfs_is_ours(self) -> bool:
        here = {line.split(":")[1].strip().split("@")[0] for line in run("ip", "-o", "link").splitlines()}
        return here == set(os.listdir("/sys/class/net"))

    def gone(self) -> bool:
        return self.name not in run("ip", "-o", "link")

    def test_a_link(self) -> Deferred[Any]:
        run("ip", "link", "add", self.name, "type", "veth", "peer", "name", f"{self.name}q")
        return self.twice("link", self.gone, name=self.name)

    @inlineCallbacks
    def test_a_bridge_goes_with_its_last_port(self) -> Any:
        port = f"{self.name}p"
        run("ip", "link", "add", self.name, "type", "bridge")
        run("ip", "link", "add", port, "type", "veth", "peer", "name", f"{self.name}q")
        self.addCleanup(run, "ip", "link", "delete", port, ok=False)
        run("ip", "link", "set", port, "master", self.name)
        self.journal.record("link", name=self.name, only_if_unused=True)
        yield self.journal.undo_all()
        self.assertFalse(self.gone())
        run("ip", "link", "delete", port)
        self.journal.record("link", name=self.name, only_if_unused=True)
        yield self.journal.undo_all()
        self.assertTrue(self.gone())
        # What is no bridge is never "unused".
        self.journal.record("link", name="lo", only_if_unused=True)
        yield self.journal.undo_all()
        self.assertIn("lo", run("ip", "-o", "link"))

    @inlineCallbacks
    def test_a_link_that_cannot_be_deleted_is_told(self) -> Any:
        self.journal.record("link", name="lo")
        error = yield self.assertFailure(self.journal.undo_all(), UndoFailed)
        self.assertIn("ip link delete lo", error.diagnosis.cure)

    @inlineCallbacks
    def test_names_that_are_not_ours_are_refused(self) -> Any:
        for name in ("-x", "../x", "a b", "x" * 16, ".."):
            self.journal.record("link", name=name)
            self.journal.record("nft_table", family="inet", name=name)
            self.journal.record("nft_table", family=name, name="x")
            error = yield self.assertFailure(self.journal.undo_all(), UndoFailed)
            self.assertGreaterEqual(len(error.failures), 2)
            for entry in self.journal.pending:
                self.journal.done(entry)

    def test_an_nft_table(self) -> Deferred[Any]:
        run("nft", "add", "table", "inet", self.name)
        self.addCleanup(run, "nft", "delete", "table", "inet", self.name, ok=False)
        return self.twice(
            "nft_table", lambda: self.name not in run("nft", "list", "tables"), family="inet", name=self.name
        )


class CgroupTests(UndoCase):
    def test_a_control_group_with_processes(self) -> Deferred[Any]:
        need_root()
        base = "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.procs") else "/sys/fs/cgroup/unified"
        group = f"{base}/anbox-tw-test-{uuid.uuid4().hex}"
        os.makedirs(f"{group}/inner")
        for path in (group, f"{group}/inner"):
            self.addCleanup(run, "rmdir", path, ok=False)
        child = subprocess.Popen(["sleep", "1000"])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        with open(f"{group}/inner/cgroup.procs", "w") as file:
            file.write(str(child.pid))
        return self.twice("cgroup", lambda: not os.path.exists(group), path=group)


class ProcessTests(UndoCase):
    def spawn(self, script: str = "exec sleep 1000", **environment: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(["/bin/sh", "-c", script], env={**os.environ, **environment})
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        return child

    def entry(self, child: subprocess.Popen[bytes], **more: Any) -> dict[str, Any]:
        return {
            "pid": child.pid,
            "start_time": undo.process_start_time(child.pid, self.context),
            "boot_id": undo.boot_id(self.context),
            **more,
        }

    def test_a_process_by_pid_and_start_time(self) -> Deferred[Any]:
        child = self.spawn("trap '' TERM; while :; do sleep 0.1; done")
        return self.twice("process", lambda: child.poll() is not None, **self.entry(child))

    @inlineCallbacks
    def test_a_process_that_only_has_the_pid_is_spared(self) -> Any:
        child = self.spawn()
        for entry in (
            self.entry(child, start_time=12345),
            self.entry(child, boot_id="another boot"),
            self.entry(child, start_time=None),
            self.entry(child, pid=str(child.pid)),
            {"pid": 1, "start_time": undo.process_start_time(1, self.context)},
            {"pid": 2**22 + 5, "start_time": 1},
            {"token": ""},
            {},
        ):
            self.journal.record("process", **entry)
        yield self.journal.undo_all()
        self.assertIsNone(child.poll())

    @inlineCallbacks
    def test_all_with_the_token_and_no_other(self) -> Any:
        token = uuid.uuid4().hex
        other = self.spawn(**{undo.TOKEN_VARIABLE: token + "x"})
        mine = [
            self.spawn("sleep 1000 & setsid sleep 1000 & wait", **{undo.TOKEN_VARIABLE: token})
            for _ in range(2)
        ]
        until = time.monotonic() + 10
        while len(list(undo.processes_with_token(token, self.context))) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        self.journal.record("process", token=token)
        yield self.journal.undo_all()
        self.assertNotIn(None, [child.poll() for child in mine])
        self.assertEqual(list(undo.processes_with_token(token, self.context)), [])
        self.assertIsNone(other.poll())

    @inlineCallbacks
    def test_one_that_does_not_die_is_told(self) -> Any:
        child = self.spawn()
        self.patch(undo, "_kill", lambda pid, context: None)
        self.patch(undo, "DEATH_WAIT_S", 0.05)
        self.journal.record("process", **self.entry(child))
        error = yield self.assertFailure(self.journal.undo_all(), UndoFailed)
        self.assertIn(f"kill -9 {child.pid}", error.diagnosis.cure)

    def test_killing_what_is_gone_or_reused(self) -> None:
        child = self.spawn()
        child.kill()
        child.wait()
        undo._kill(child.pid, self.context)
        self.assertIsNone(undo.process_start_time(child.pid, self.context))
        nowhere = type(self.context)(self.reactor, self.context.commands, proc=self.path())
        self.assertEqual(undo.boot_id(nowhere), "")
        sparing = self.spawn()
        undo._kill(sparing.pid, nowhere)
        self.assertIsNone(sparing.poll())


class CommandTests(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor

        self.commands = Commands(reactor)

    @inlineCallbacks
    def test_a_tool_runs_to_its_end(self) -> Any:
        result = yield self.commands.run(["sh", "-c", "cat; echo err >&2; exit 3"], data=b"in")
        self.assertEqual(
            (result.status, result.stdout, result.stderr, result.ok), (3, b"in", b"err\n", False)
        )
        error = self.assertRaises(DiagnosedError, result.require, "ANBOX-C011", "it failed")
        self.assertIn("err", error.diagnosis.why)
        good = yield self.commands.run(["true"])
        self.assertIs(good.require("ANBOX-C011", "x"), good)
        killed = yield self.commands.run(["sh", "-c", "kill -9 $$"])
        self.assertEqual((killed.status, killed.error_text), (-9, "signal 9"))
        silent = yield self.commands.run(["false"])
        self.assertEqual(silent.error_text, "status 1")
        only_stdout = yield self.commands.run(["sh", "-c", "printf 'a\\033b'; exit 1"])
        self.assertEqual(only_stdout.error_text, "a?b")

    def test_a_missing_tool_is_told_with_its_package(self) -> None:
        self.patch(os, "environ", {"PATH": "/nonexistent"})
        self.patch(shutil, "which", lambda *args, **kw: None)
        error = self.assertRaises(DiagnosedError, self.commands.run, ["newuidmap"])
        self.assertEqual(error.code, "ANBOX-C025")
        self.assertIn("apt install uidmap", error.cure)

    def test_a_tool_that_cannot_be_executed(self) -> Any:
        # It depends on how the reactor spawns whether this is an error at once or a status.
        try:
            result = self.commands.run(["/etc/passwd"])
        except DiagnosedError as error:
            self.assertEqual(error.code, "ANBOX-C012")
            return None
        return result.addCallback(lambda completed: self.assertFalse(completed.ok))

    @inlineCallbacks
    def test_a_tool_that_takes_too_long_is_killed(self) -> Any:
        error = yield self.assertFailure(self.commands.run(["sleep", "1000"], timeout=0.05), DiagnosedError)
        self.assertEqual(error.code, "ANBOX-C015")
        yield self.commands.settle()
        self.assertEqual(self.commands._running, set())

    @inlineCallbacks
    def test_cancelling_kills_and_settle_waits(self) -> Any:
        marker = self.mktemp()
        running = self.commands.run(["sh", "-c", f"echo > {marker}; exec sleep 1000"])
        other = self.commands.run(["sleep", "1000"])
        running.cancel()
        self.failureResultOf(running)
        yield self.commands.settle()
        result = yield other
        self.assertEqual(result.status, -9)
        yield self.commands.settle()

    @inlineCallbacks
    def test_output_has_a_limit(self) -> Any:
        result = yield self.commands.run([sys.executable, "-c", "print('x' * 3000000)"])
        self.assertTrue(result.truncated)
        self.assertEqual(len(result.stdout), 1024 * 1024)

    @inlineCallbacks
    def test_a_daemon_that_keeps_the_pipes_is_not_waited_for(self) -> Any:
        result = yield self.commands.run(["sh", "-c", "sleep 30 & echo $!"])
        self.assertTrue(result.ok)
        os.kill(int(result.stdout), 9)
