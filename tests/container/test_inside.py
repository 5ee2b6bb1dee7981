"""The container's side of the launcher, step by step, where its effects can still be looked at."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container import _landlock
from anbox_tw.container import _syscalls as sys_
from anbox_tw.container._launch import _children
from anbox_tw.container._logfile import LogFile
from tests.support import REPOSITORY, missing, need_root


def inside(*arguments: str) -> Any:
    result = subprocess.run(
        [sys.executable, "-m", "tests.container.inside", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if result.returncode:
        raise AssertionError(result.stderr)
    return json.loads(result.stdout)


class BuildTests(SynchronousTestCase):
    def setUp(self) -> None:
        need_root()
        self.directory = os.path.abspath(self.mktemp())
        os.makedirs(f"{self.directory}/data/media")
        os.makedirs(f"{self.directory}/shared/sub")
        for name in ("file", "shared/one"):
            with open(f"{self.directory}/{name}", "w"):
                pass
        self.plan: dict[str, Any] = {
            "owner_is_launcher": True,
            "hostname": "within",
            "guard_proc": True,
            "binds": [
                {"source": "/etc", "target": "etc"},
                {"source": "/nonexistent", "target": "x", "optional": True},
            ],
            "data_path": self.directory,
            "data_binds": [{"source": f"{self.directory}/data/media", "target": "sdcard", "writable": True}],
            "caller_binds": [
                {"source": f"{self.directory}/shared", "target": "mnt/shared", "writable": True},
                {"source": f"{self.directory}/file", "target": "mnt/ro"},
                {"source": f"{self.directory}/file", "target": "mnt/shared/sub/deep", "writable": True},
            ],
            "devices": [{"source": "/dev/null", "target": "dev/other", "optional": True}],
            "directories": [[name, 0o755] for name in ("proc", "sys", "dev/pts", "dev/shm", "mnt", "run")],
            "links": [["bin", "usr/bin"]],
            "files": [["run/hosts", "127.0.0.1 here\n", "etc/hosts"], ["default.prop", "a=b\n", ""]],
            "look": [
                *("mnt/shared", "mnt/ro", "mnt/shared/sub/deep", "etc/hosts", "default.prop"),
                *("proc/sys/kernel/panic", "sdcard", "dev"),
            ],
        }

    def build(self, **changes: Any) -> Any:
        return inside("build", json.dumps({**self.plan, **changes}))

    def test_what_is_asked_for_is_there_and_no_more_can_be_written(self) -> None:
        before = os.listdir("/etc")
        seen = self.build()
        self.assertEqual(
            {name: seen["found"][name] for name in self.plan["look"] if name != "dev"},
            {
                "mnt/shared": ["one", "sub"],
                "mnt/ro": "Read-only file system",
                "mnt/shared/sub/deep": "writable",
                "etc/hosts": "Read-only file system",
                "default.prop": "writable",
                "proc/sys/kernel/panic": "Read-only file system",
                "sdcard": [],
            },
        )
        self.assertTrue({"null", "tty", "pts", "shm", "ptmx", "fd", "other"} <= set(seen["found"]["dev"]))
        self.assertEqual(seen["hostname"], "within")
        self.assertNotEqual(socket.gethostname(), "within")
        self.assertEqual(os.listdir("/etc"), before)

    def test_what_cannot_be_bound_is_told(self) -> None:
        os.symlink("/etc", f"{self.directory}/link")
        os.symlink("/etc", f"{self.directory}/data/link")
        source = f"{self.directory}/file"
        for changes, what in (
            ({"binds": [{"source": "/nonexistent", "target": "x"}]}, "/nonexistent cannot be bound to /x"),
            ({"data_path": "/nonexistent"}, "/nonexistent cannot be used"),
            ({"data_binds": [{"source": f"{self.directory}/data/link", "target": "x"}]}, "data/link cannot"),
            ({"data_binds": [{"source": f"{self.directory}/data/none", "target": "x"}]}, "data/none cannot"),
            ({"caller_binds": [{"source": source, "target": "bin/x"}]}, "cannot be bound to /bin/x"),
            ({"caller_binds": [{"source": source, "target": "mnt"}]}, "cannot be bound to /mnt"),
            (
                {"caller_binds": [{"source": source, "target": "etc/nothing/x"}]},
                "cannot be bound to /etc/nothing",
            ),
            ({"files": [["etc/passwd", "x", ""]]}, "/etc/passwd cannot be written"),
        ):
            seen = self.build(**changes)
            self.assertIn("failed", seen, changes)
            self.assertIn(what, seen["failed"][1])
        # What is optional is left out instead.
        seen = self.build(caller_binds=[{"source": source, "target": "etc/nothing/x", "optional": True}])
        self.assertIn("found", seen)

    def test_the_others_rights(self) -> None:
        seen = self.build(owner_is_launcher=False)
        self.assertIn("found", seen)


class StepTests(SynchronousTestCase):
    def test_landlock(self) -> None:
        if not _landlock.abi():
            missing("Landlock")
        first, second = os.path.abspath(self.mktemp()), os.path.abspath(self.mktemp())
        for path in (first, second):
            os.makedirs(path)
        found = inside("landlock", first, second)
        self.assertEqual([found[first], found[second], found["/var/tmp"]], [True, True, False])

    def test_a_kernel_without_landlock(self) -> None:
        def refuse(*arguments: Any) -> int:
            raise OSError(38, "Function not implemented")

        self.patch(sys_, "syscall", refuse)
        self.assertEqual(_landlock.abi(), 0)

    def test_older_versions_of_landlock_are_asked_for_what_they_know(self) -> None:
        asked: list[tuple[Any, ...]] = []

        def record(what: str, number: int, *arguments: Any) -> int:
            asked.append((what, *arguments))
            return os.open("/dev/null", os.O_RDONLY)

        self.patch(sys_, "syscall", record)
        for version, size in ((1, 8), (2, 8), (3, 8), (4, 16), (5, 16), (6, 24), (9, 24)):
            asked.clear()
            _landlock.restrict_writes(version, ["/nonexistent"])
            self.assertEqual(asked[0][2].value, size)

    def test_privileges(self) -> None:
        need_root()
        found = inside("privileges")
        self.assertEqual(found["NoNewPrivs"], "1")
        self.assertEqual(int(found["CapEff"], 16) & 1 << 21, 0, "CAP_SYS_ADMIN")
        self.assertEqual(found["CapEff"], found["CapBnd"])

    def test_namespaces_one_by_one(self) -> None:
        need_root()
        got, refused = inside("enter", "all")
        self.assertEqual(set(got), {"user", "mount", "pid", "ipc", "uts", "cgroup", "net"})
        self.assertNotIn("net", inside("enter", "host network")[0])
        got, refused = inside("enter", "required")
        self.assertEqual(got, ["mount", "pid", "user"])
        self.assertEqual(set(refused), {"ipc", "uts", "cgroup", "net"})
        self.assertIn("not permitted", inside("enter", "nothing"))

    def test_init(self) -> None:
        self.assertEqual(inside("init", "/bin/sh", "-c", "echo out; exit 5"), [{"status": 5}, "out\n"])
        self.assertEqual(inside("init", "/bin/sh", "-c", "kill -9 $$")[0], {"signal": 9})
        self.assertEqual(inside("init", "/nonexistent"), ["ANBOX-C013", "No such file or directory"])

    def test_children(self) -> None:
        child = subprocess.Popen(["sleep", "1000"])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.assertIn(child.pid, _children(os.getpid()))
        self.assertEqual(_children(child.pid), [])


class LightTests(SynchronousTestCase):
    def test_the_launcher_imports_nothing_but_the_standard_library_and_itself(self) -> None:
        """It lives as long as the container, beside every container, and starts before each."""
        script = "import sys; import anbox_tw.container._launch; print(*sys.modules)"
        result = subprocess.run(
            [sys.executable, "-c", script],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        roots = {name.partition(".")[0] for name in result.stdout.split()}
        self.assertIn("anbox_tw", roots)
        ours = sorted(name for name in result.stdout.split() if name.startswith("anbox_tw"))
        for name in ("twisted", "zope", "attr", "attrs", "automat"):
            self.assertNotIn(name, roots)
        self.assertEqual(
            ours,
            ["anbox_tw", *(f"anbox_tw.{n}" for n in ("_version", "container"))]
            + [
                f"anbox_tw.container.{n}"
                for n in ("_landlock", "_launch", "_logfile", "_namespaces", "_syscalls", "guest_sockets")
            ]
            + [f"anbox_tw.container.guest_sockets.{n}" for n in ("_helper", "_wire")],
        )


class LogFileTests(SynchronousTestCase):
    def test_it_is_begun_anew_and_rotated(self) -> None:
        path = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write("of the run before")
        log = LogFile(path, 10)
        self.assertTrue(log.write(b"12345678"))
        with open(f"{path}.1") as file:
            self.assertEqual(file.read(), "of the run before")
        self.assertTrue(log.write(b"abcdefgh"))
        self.assertFalse(log.write(b""))
        log.close()
        log.close()
        for name, text in ((path, "abcdefgh"), (f"{path}.1", "12345678")):
            with open(name) as file:
                self.assertEqual(file.read(), text)

    def test_what_cannot_be_written_is_dropped(self) -> None:
        log = LogFile("/dev/full", 10)
        self.assertTrue(log.write(b"x"))
        log.close()
        self.assertRaises(OSError, LogFile, "/nonexistent/x", 10)
