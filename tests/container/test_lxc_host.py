"""What is found out about the host, with files that stand for it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import tempfile
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.container import lxc_host, lxc_process, lxc_staging
from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.idmap import IdMap, idmap_for
from anbox_tw.container.journal import UndoContext
from anbox_tw.container.lxc_data import is_trusted, read_bindtab
from anbox_tw.container.lxc_host import cgroup_directories, cgroup_layout, look_at_host, parse_lxc_version
from anbox_tw.container.lxc_probes import probe_host
from anbox_tw.container.lxc_process import LxcProcess, StartedFifo, clean_path, handles_signal
from anbox_tw.container.lxc_rootfs import NeededPath, host_masks, needed_paths, resolve_in_root
from anbox_tw.container.lxc_staging import (
    Staging,
    has_mount_point,
    is_open_to_all,
    make_mount_point,
    open_beneath,
    staging_path,
    write_beneath,
)
from anbox_tw.container.lxc_undo import add_lxc_kinds
from anbox_tw.container.network import host_name_servers
from anbox_tw.container.undo import default_kinds
from tests.container.doubles import a_journal
from tests.container.lxc_support import default_reactor, read
from tests.support import need_root

V1 = "29 23 0:26 / /sys/fs/cgroup/{0} rw,relatime - cgroup cgroup rw,{0}\n"
V2 = "30 23 0:27 / /sys/fs/cgroup{0} rw,relatime - cgroup2 cgroup2 rw\n"


class ProcCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.proc = os.path.abspath(self.mktemp())
        os.makedirs(f"{self.proc}/self")
        os.makedirs(f"{self.proc}/1")

    def put(self, name: str, text: str) -> None:
        os.makedirs(os.path.dirname(f"{self.proc}/{name}"), exist_ok=True)
        with open(f"{self.proc}/{name}", "w") as file:
            file.write(text)


class CgroupTests(ProcCase):
    def test_layouts(self) -> None:
        self.assertEqual(cgroup_layout(self.proc), "")
        for text, layout in (
            (V1.format("devices") + V2.format("/unified"), "v1"),
            (V2.format(""), "v2"),
            (V1.format("memory") + V2.format("/unified"), ""),
            ("garbage\n" + V2.format(""), "v2"),
            ("", ""),
        ):
            self.put("self/mountinfo", text)
            self.assertEqual(cgroup_layout(self.proc), layout, text)

    def test_groups_are_found_wherever_lxc_may_have_put_them(self) -> None:
        top = os.path.abspath(self.mktemp()) + "/a b"
        self.put(
            "self/mountinfo", f"30 23 0:27 / {top.replace(' ', chr(92) + '040')} rw - cgroup2 cgroup2 rw\n"
        )
        self.put("1/cgroup", "0::/init.scope\n")
        self.put("self/cgroup", "0::/system.slice/anbox.service\n")
        wanted = [f"{top}/group", f"{top}/system.slice/anbox.service/group"]
        for path in (*wanted, f"{top}/elsewhere/group"):
            os.makedirs(path)
        self.assertEqual(cgroup_directories("group", self.proc), wanted)

    def test_facts(self) -> None:
        self.put("self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
        self.put("filesystems", "nodev\toverlay\n\text4\n\n")
        found = look_at_host(self.proc, find=lambda name: f"/bin/{name}", seccomp="/missing")
        self.assertTrue(found.has(lxc_host.CAP_SYS_RESOURCE) and found.nice_limit and found.overlay)
        self.assertEqual((found.lxc_start, found.seccomp_profile), ("/bin/lxc-start", ""))
        self.put("self/status", "CapEff:\tgarbage\n")
        os.unlink(f"{self.proc}/filesystems")
        found = look_at_host(self.proc)
        self.assertEqual((found.capabilities, found.overlay), (0, False))

    def test_versions(self) -> None:
        for text, version in (
            ("5.0.2\n", (5, 0, 2)),
            ("4.0", (4, 0, 0)),
            ("6.0.1-devel", (6, 0, 1)),
            ("?", None),
        ):
            self.assertEqual(parse_lxc_version(text), version)


class ProbeTests(TestCase):
    async def probes(self, version: str, **facts: Any) -> dict[str, Any]:
        tool = os.path.abspath(self.mktemp())
        with open(tool, "w") as file:
            file.write(f"#!/bin/sh\n{version}\n")
        os.chmod(tool, 0o755)
        given: dict[str, Any] = {
            "euid": 0,
            "capabilities": (1 << 41) - 1,
            "layout": "v2",
            "nice_limit": True,
            "seccomp_profile": "",
            "lxc_start": tool,
            "overlay": True,
            **facts,
        }
        found = await probe_host(Commands(default_reactor), lxc_host.HostFacts(**given), dev=self.mktemp())
        return {probe.name: probe for probe in found}

    async def test_a_good_host(self) -> None:
        probes = await self.probes("echo 5.0.2")
        self.assertTrue(
            all(probes[name].ok for name in ("root", "capabilities", "LXC", "overlayfs", "control groups"))
        )
        self.assertEqual(probes["loop devices"].verdict, "degraded")

    async def test_each_lack_has_its_cure(self) -> None:
        probes = await self.probes(
            "echo 3.1.0", euid=5, capabilities=0, layout="", nice_limit=False, overlay=False
        )
        for name in (
            "root",
            "capabilities",
            "LXC",
            "overlayfs",
            "control groups",
            "nice limit",
            "loop devices",
        ):
            self.assertFalse(probes[name].ok, name)
            self.assertTrue(probes[name].cure, name)
        self.assertIn("CAP_SYS_ADMIN, CAP_NET_ADMIN", probes["capabilities"].detail)
        self.assertEqual(probes["root"].verdict, "missing")

    async def test_an_lxc_that_does_not_answer(self) -> None:
        self.assertIn("install LXC again", (await self.probes("echo nonsense"))["LXC"].cure)
        self.assertFalse((await self.probes("", lxc_start="/missing/lxc-start"))["LXC"].ok)
        self.assertIn("apt install lxc", (await self.probes("", lxc_start=None))["LXC"].cure)


class ProcessTests(ProcCase):
    def test_the_path_of_lxc_start_has_no_newuidmap(self) -> None:
        one, two, link = (os.path.abspath(self.mktemp()) for _ in range(3))
        os.mkdir(one)
        os.mkdir(two)
        os.symlink(two, link)
        with open(f"{two}/newuidmap", "w"):
            pass
        self.assertEqual(clean_path((one, two, link)), one)
        self.assertEqual(clean_path((two,)), "/nonexistent")

    def test_who_takes_a_signal(self) -> None:
        for text, handled in (
            ("SigBlk:\t0000000000000000\nSigCgt:\t0000000000004000\n", True),
            ("SigBlk:\t0000000000004000\nSigCgt:\t0000000000000000\n", True),
            ("SigBlk:\t0000000000000000\nSigCgt:\t0000000000002000\n", False),
            ("SigCgt:\tgarbage\n", False),
        ):
            self.put("7/status", text)
            self.assertEqual(handles_signal(7, signal.SIGTERM, self.proc), handled)
        self.assertFalse(handles_signal(8, signal.SIGTERM, self.proc))

    def test_a_signal_to_an_init_that_is_gone(self) -> None:
        process = LxcProcess()
        self.assertFalse(process.signal_init(signal.SIGTERM))
        child = os.fork()
        if child == 0:
            os._exit(0)
        process.watch_init(child)
        os.waitpid(child, 0)
        self.assertFalse(process.signal_init(signal.SIGTERM))
        process.watch_init(2**22 + 1)
        self.assertFalse(process.signal_init(signal.SIGTERM))

    def test_those_who_wait_for_the_end(self) -> None:
        process = LxcProcess()

        class Transport:
            def loseConnection(self) -> None:
                pass

        process.transport = Transport()
        forgotten, told = process.when_exited(), process.when_exited()
        forgotten.addErrback(lambda failure: None)
        forgotten.cancel()
        from twisted.internet.error import ProcessTerminated

        process.processExited(Failure(ProcessTerminated(5, None, None)))
        self.assertEqual(self.successResultOf(told), "lxc-start ended with status 5")
        self.assertEqual(self.successResultOf(process.when_exited()), "lxc-start ended with status 5")
        process.watch_init(1)
        self.assertEqual(process.init_pid, 0)

    def test_what_lxc_start_prints_is_kept_up_to_a_limit(self) -> None:
        process = LxcProcess()
        for _ in range(3):
            process.childDataReceived(2, b"x" * 40000)
        self.assertEqual(len(process.output), lxc_process.MAX_OUTPUT_BYTES)


class Reactor:
    def __init__(self) -> None:
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)


class FifoTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.path = os.path.abspath(self.mktemp())
        self.fifo = StartedFifo(self.reactor, self.path)
        self.addCleanup(self.fifo.close)

    def write(self, data: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(descriptor, data)
        os.close(descriptor)

    def test_the_pid_in_pieces(self) -> None:
        self.fifo.doRead()  # nothing is there: no harm
        self.write(b"12")
        self.fifo.doRead()
        self.assertNoResult(self.fifo.pid)
        self.write(b"34\n")
        self.fifo.doRead()
        self.assertEqual(self.successResultOf(self.fifo.pid), 1234)
        self.assertEqual(self.reactor.readers, [])

    def test_garbage_is_no_pid(self) -> None:
        self.write(b"x" * 65)
        self.fifo.doRead()
        self.fifo.doRead()
        self.assertEqual(self.successResultOf(self.fifo.pid), 0)

    def test_the_end_of_the_reactor(self) -> None:
        self.assertEqual((self.fifo.logPrefix(), self.fifo.fileno() >= 0), ("LXC hook", True))
        self.fifo.connectionLost(Failure(RuntimeError()))
        self.assertEqual(self.reactor.readers, [])

    def test_cancelling_forgets_it(self) -> None:
        self.fifo.pid.addErrback(lambda failure: None)
        self.fifo.pid.cancel()
        self.assertEqual(self.reactor.readers, [])

    def test_an_existing_file_is_not_taken_for_it(self) -> None:
        self.assertRaises(OSError, StartedFifo, self.reactor, self.path)


class PathTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)

    def test_directories_on_the_way(self) -> None:
        self.assertTrue(is_open_to_all("/usr/bin/missing/too"))
        os.mkdir(f"{self.directory}/closed", 0o700)
        self.assertFalse(is_open_to_all(f"{self.directory}/closed/x/y"))
        with open(f"{self.directory}/file", "w"):
            pass
        self.assertFalse(is_open_to_all(f"{self.directory}/file/x"))

    def test_a_directory_that_is_open_to_a_group(self) -> None:
        # Not in trial's own directory, which may be in a closed one.
        directory = tempfile.mkdtemp(prefix="anbox-lxc-test")
        self.addCleanup(os.rmdir, directory)
        group = os.stat(directory).st_gid
        for mode, everybody, members in ((0o700, False, False), (0o710, False, True), (0o711, True, True)):
            os.chmod(directory, mode)
            self.assertEqual(
                (is_open_to_all(directory), is_open_to_all(directory, group)), (everybody, members)
            )
        os.chmod(directory, 0o701)
        self.assertFalse(is_open_to_all(directory, group))

    def test_where_to_stage(self) -> None:
        self.assertEqual(staging_path("/run/anbox/one", "key"), "/run/anbox/one/lxc")
        self.assertEqual(staging_path("/run/a,b", "key"), "/run/anbox-tw/key")
        self.assertEqual(staging_path("/run/" + "x" * 200, "key"), "/run/anbox-tw/key")

    def test_links_are_not_followed_below_a_root(self) -> None:
        os.symlink("/etc", f"{self.directory}/link")
        os.makedirs(f"{self.directory}/a/b")
        with open(f"{self.directory}/file", "w"):
            pass
        for path, error in (("link/x", errno.ELOOP), ("link", errno.ELOOP), ("a/../a", errno.EINVAL)):
            with self.assertRaises(OSError) as caught, open_beneath(self.directory, path):
                pass
            self.assertEqual(caught.exception.errno, error, path)
        with self.assertRaises(NotADirectoryError), open_beneath(self.directory, "file"):
            pass
        with open_beneath(self.directory, "a/./b") as descriptor:
            with open_beneath(descriptor, "new/dir", create=True, mode=0o711) as made:
                self.assertEqual(stat.S_IMODE(os.fstat(made).st_mode), 0o711)

    def test_mount_points(self) -> None:
        root = self.directory
        make_mount_point(root, "x/dir", directory=True)
        make_mount_point(root, "x/dir", directory=True)
        make_mount_point(root, "file", directory=False)
        os.symlink("x", f"{root}/link")
        self.assertTrue(has_mount_point(["/nonexistent", root], "x/dir", directory=True))
        self.assertFalse(has_mount_point([root], "x/dir", directory=False))
        self.assertFalse(has_mount_point([root], "x/missing", directory=False))
        self.assertFalse(has_mount_point([root], "link", directory=True))
        for target, directory, error in (
            ("link", True, errno.ELOOP),
            ("link/y", True, errno.ELOOP),
            ("x/dir", False, errno.EISDIR),
            ("file", True, errno.ENOTDIR),
        ):
            with self.assertRaises(OSError) as caught:
                make_mount_point(root, target, directory=directory)
            self.assertEqual(caught.exception.errno, error)

    def test_a_file_is_replaced_and_never_written_through(self) -> None:
        owner = (os.geteuid(), os.getegid())
        victim = f"{self.directory}/victim"
        with open(victim, "w") as file:
            file.write("untouched")
        os.makedirs(f"{self.directory}/tree/d")
        for name in ("f", ".f.anbox-tw"):
            os.symlink(victim, f"{self.directory}/tree/d/{name}")
        write_beneath(f"{self.directory}/tree", "d/f", b"new", owner)
        self.assertEqual((read(victim), read(f"{self.directory}/tree/d/f")), ("untouched", "new"))

    def test_a_path_of_the_container_is_resolved_as_inside(self) -> None:
        os.makedirs(f"{self.directory}/a/b")
        os.symlink("/a", f"{self.directory}/absolute")
        os.symlink("../../..", f"{self.directory}/a/b/up")
        os.symlink("circle", f"{self.directory}/circle")
        self.assertEqual(resolve_in_root(self.directory, "/absolute/b"), f"{self.directory}/a/b")
        self.assertEqual(resolve_in_root(self.directory, "a/b/up/a"), f"{self.directory}/a")
        with self.assertRaises(OSError) as caught:
            resolve_in_root(self.directory, "circle")
        self.assertEqual(caught.exception.errno, errno.ELOOP)

    def test_a_path_that_only_root_controls(self) -> None:
        need_root()
        self.assertTrue(is_trusted("/usr/bin"))
        self.assertFalse(is_trusted("/tmp"))
        os.symlink("/usr", f"{self.directory}/link")
        self.assertFalse(is_trusted(f"{self.directory}/link"))
        self.assertTrue(is_trusted(f"{self.directory}/missing"))
        os.mkdir(f"{self.directory}/theirs")
        os.chown(f"{self.directory}/theirs", 12345, 12345)
        self.assertFalse(is_trusted(f"{self.directory}/theirs/below"))

    def test_a_bindtab_that_cannot_be_one(self) -> None:
        self.assertEqual(read_bindtab(self.directory), ([], []))
        os.symlink("/etc/fstab", f"{self.directory}/bindtab")
        lines, notes = read_bindtab(self.directory)
        self.assertEqual((lines, len(notes)), ([], 1))

    def test_name_servers_of_a_host_without_files(self) -> None:
        self.assertEqual(host_name_servers(()), ("8.8.8.8",))


class NeededPathTests(SynchronousTestCase):
    def status(self, path: str) -> os.stat_result:
        modes = {
            "/root": 0o40700,
            "/root/venv": 0o40755,
            "/root/venv/python": 0o100755,
            "/srv/secret": 0o100600,
        }
        mode = modes.get(path, 0o40755)
        return os.stat_result((mode, 0, 0, 1, 0, 0, 0, 0, 0, 0))

    def needed(
        self, *paths: str, idmap: IdMap = idmap_for(0, 0), mounts: tuple[str, ...] = ()
    ) -> list[NeededPath]:
        return needed_paths(paths, idmap, ("/", "/proc", *mounts), status=self.status)

    def test_what_the_overlay_shows_is_not_needed(self) -> None:
        self.assertEqual(self.needed("/usr/lib/python3"), [])

    def test_other_mounts_and_private_directories(self) -> None:
        self.assertEqual(
            self.needed("/opt/py", "/tmp/x", mounts=("/opt",)),
            [NeededPath("/opt/py", True), NeededPath("/tmp/x", True)],
        )

    def test_below_a_closed_directory(self) -> None:
        self.assertEqual(
            self.needed("/root/venv/python", "/root/venv"), [NeededPath("/root/venv", True, "/root")]
        )
        self.assertEqual(self.needed("/root/venv", idmap=IdMap()), [])
        masks = host_masks(self.needed("/root/venv"))
        self.assertEqual([mask.target for mask in masks], ["root", "run", "tmp"])

    def test_what_only_root_can_read(self) -> None:
        error = self.assertRaises(DiagnosedError, self.needed, "/srv/secret")
        self.assertIn("--privileged", error.cure)


class UndoTests(TestCase):
    def context(self) -> UndoContext:
        return UndoContext(default_reactor, Commands(default_reactor))

    async def test_entries_that_make_no_sense_are_refused(self) -> None:
        kinds = add_lxc_kinds(add_lxc_kinds(default_kinds()))
        for kind, args in (
            ("veth", {"name": "../x"}),
            ("lxc_cgroups", {"names": "x"}),
            ("lxc_cgroups", {"names": ["/"]}),
            ("lxc_cgroups", {"names": ["anbox.payload.x/../../y"]}),
            ("lxc_lock_file", {"lxcpath": "/a/../../etc", "name": "x"}),
            ("lxc_lock_file", {}),
            ("network", {}),
            ("network", {"directory": "relative", "key": "x"}),
        ):
            found = kinds.get(kind)
            assert found is not None
            self.assertTrue(found.describe(args))
            with self.assertRaises(DiagnosedError):
                await found.undo(args, self.context())

    async def test_what_is_not_there_is_undone(self) -> None:
        need_root()
        kinds = add_lxc_kinds(default_kinds())
        for kind, args in (
            ("veth", {"name": "anboxmissing0"}),
            ("lxc_cgroups", {"names": ["anbox.payload.missing"]}),
            ("lxc_lock_file", {"lxcpath": "/missing", "name": "x"}),
            ("network", {"directory": "/run/anbox-missing/1", "key": "x"}),
        ):
            found = kinds.get(kind)
            assert found is not None
            await found.undo(args, self.context())

    async def test_a_network_of_another_namespace_is_left_alone(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.makedirs(f"{directory}/leases")
        found = add_lxc_kinds(default_kinds()).get("network")
        assert found is not None
        await found.undo({"directory": directory, "key": "x", "bridge": "lo"}, self.context())
        self.assertEqual(os.listdir(directory), ["leases"])


class StagingTests(SynchronousTestCase):
    def test_a_run_directory_that_cannot_be_made(self) -> None:
        directory = os.path.abspath(self.mktemp())
        with open(directory, "w"):
            pass
        journal = a_journal(Clock(), self.mktemp())
        self.addCleanup(journal.close)
        staging = Staging(f"{directory}/run", journal, Commands(Clock()), IdMap())
        error = self.assertRaises(DiagnosedError, staging.open)
        self.assertEqual(error.code, "ANBOX-C005")

    def test_a_base_that_another_instance_takes_away_just_now(self) -> None:
        base = os.path.abspath(self.mktemp())
        self.patch(lxc_staging, "FALLBACK_BASE", base)
        journal = a_journal(Clock(), self.mktemp())
        self.addCleanup(journal.close)
        real = os.mkdir
        taken: list[str] = []

        def mkdir(path: str, mode: int = 0o777) -> None:
            if path == f"{base}/mine" and not taken:
                taken.append(path)
                os.rmdir(base)
            real(path, mode)

        self.patch(os, "mkdir", mkdir)
        Staging(f"{base}/mine", journal, Commands(Clock()), IdMap()).open()
        self.assertEqual(taken, [f"{base}/mine"])
        self.assertTrue(os.path.isdir(f"{base}/mine"))

    def test_a_source_that_is_gone(self) -> None:
        journal = a_journal(Clock(), self.mktemp())
        self.addCleanup(journal.close)
        staging = Staging(os.path.abspath(self.mktemp()), journal, Commands(Clock()), IdMap())
        binding = Deferred.fromCoroutine(staging.bind_path("/missing/source", "the thing"))
        failure = self.failureResultOf(binding, DiagnosedError)
        self.assertEqual(failure.value.code, "ANBOX-C008")
