"""Publishing a UNIX socket: stale ones are taken over, live ones never, and nobody gets in too early."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.errors import AlreadyRunning, ConfigError, NetworkError, PermissionRefused
from anbox_tw.network import _published
from anbox_tw.network._published import PublishedSocket, check_path, is_held
from tests.network.helpers import NetworkTestCase
from tests.support import REPOSITORY, need_root

HOLDER = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(1)
print("ready", flush=True)
sys.stdin.read()
"""

RACER = """
import sys
from anbox_tw.errors import AlreadyRunning
from anbox_tw.network._published import PublishedSocket
print("ready", flush=True)
sys.stdin.readline()
try:
    published = PublishedSocket.publish(sys.argv[1])
except AlreadyRunning:
    print("refused", flush=True)
else:
    published.socket.listen(1)
    print("mine", published.owns_path(), flush=True)
sys.stdin.readline()
"""


class PathTests(SynchronousTestCase):
    def test_longest_path(self) -> None:
        self.assertEqual(len(check_path("/" + "x" * 106)), 107)

    def test_too_long_names_cause_and_cure(self) -> None:
        error = self.assertRaises(ConfigError, check_path, "/" + "ä" * 60)
        self.assertIn("121 bytes", error.cause)
        self.assertIn("107", error.cause)
        self.assertIn("XDG_RUNTIME_DIR", error.cure)

    def test_empty_and_nul(self) -> None:
        self.assertRaises(ConfigError, check_path, "")
        self.assertRaises(ConfigError, check_path, "/tmp/a\0b")


class PublishTests(NetworkTestCase):
    def publish(self, **options: int) -> PublishedSocket:
        published = PublishedSocket.publish(self.path(), **options)
        self.addCleanup(published.socket.close)
        return published

    def holder(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, self.path()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdin is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), b"ready\n")
        return process

    def test_what_an_orphan_of_a_killed_owner_holds_is_stale(self) -> None:
        """A child between fork and exec has what its parent had, for a moment; who began to listen is dead."""
        script = (
            "import os, socket, subprocess, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(1);"
            "p = subprocess.Popen(['sleep', '60'], pass_fds=[s.fileno()], stdout=subprocess.DEVNULL);"
            "print(p.pid, flush=True); os._exit(0)"
        )
        done = subprocess.run([sys.executable, "-c", script, self.path()], stdout=subprocess.PIPE, check=True)
        self.addCleanup(os.kill, int(done.stdout), signal.SIGKILL)
        self.assertTrue(is_held(self.path()))
        published = PublishedSocket.publish(self.path())
        self.addCleanup(published.withdraw)
        self.assertEqual(published.path, self.path())

    def test_leaves_only_the_socket(self) -> None:
        published = self.publish()
        self.assertEqual(os.listdir(self.directory), ["socket"])
        self.assertFalse(os.get_inheritable(published.socket.fileno()))
        self.assertTrue(published.withdraw())
        self.assertEqual(os.listdir(self.directory), [])
        self.assertFalse(published.withdraw())

    def test_mode_whatever_the_umask_is(self) -> None:
        for umask in (0, 0o022, 0o077, 0o777):
            for mode in (0o600, 0o660, 0o666, 0o777):
                old = os.umask(umask)
                try:
                    published = self.publish(mode=mode)
                finally:
                    self.assertEqual(os.umask(old), umask, "the umask was not put back")
                self.assertEqual(stat.S_IMODE(os.stat(self.path()).st_mode), mode)
                published.withdraw()

    def test_never_wider_than_asked_and_unreachable_before_listen(self) -> None:
        """After each system call on the way the mode is within the asked one and a connect is refused."""
        seen = []

        def look() -> None:
            try:
                mode = stat.S_IMODE(os.lstat(self.path()).st_mode)
            except FileNotFoundError:
                return
            with socket.socket(socket.AF_UNIX) as probe:
                seen.append((mode, probe.connect_ex(self.path())))

        def watched(real: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                look()
                result = real(*arguments, **options)
                look()
                return result

            return call

        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        for with_thread in (False, True):
            if with_thread:
                thread.start()
                self.addCleanup(thread.join)
                self.addCleanup(stop.set)
            for gid in (-1, os.getegid()):
                seen.clear()
                old = os.umask(0o022)
                try:
                    with mock.patch.multiple(
                        os, chmod=watched(os.chmod), chown=watched(os.chown), umask=watched(os.umask)
                    ):
                        published = self.publish(gid=gid)
                finally:
                    os.umask(old)
                look()
                self.assertTrue(seen)
                for mode, code in seen:
                    self.assertEqual(mode & ~0o660, 0)
                    self.assertIn(code, (errno.ECONNREFUSED, errno.EACCES))
                if not with_thread and gid == -1:
                    self.assertEqual({mode for mode, _ in seen}, {0o660}, "not exact from the first instant")
                self.assertEqual(seen[-1][0], 0o660)
                published.withdraw()
                published.socket.close()

    def test_group(self) -> None:
        need_root()
        self.publish(gid=12345, uid=54321)
        status = os.stat(self.path())
        self.assertEqual((status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)), (54321, 12345, 0o660))

    def test_takes_over_what_a_killed_process_left(self) -> None:
        process = self.holder()
        before = os.stat(self.path()).st_ino
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.assertEqual(os.stat(self.path()).st_ino, before)
        published = self.publish()
        self.assertTrue(published.owns_path())

    def test_never_takes_a_live_one(self) -> None:
        process = self.holder()
        error = self.assertRaises(AlreadyRunning, PublishedSocket.publish, self.path())
        self.assertIn("already running", str(error))
        self.assertIn(f"pid {process.pid}, command {sys.executable} -c", str(error))
        self.assertEqual(os.listdir(self.directory), ["socket"])

    def test_never_takes_one_that_does_not_listen_yet(self) -> None:
        self.publish()
        self.assertTrue(is_held(self.path()))
        self.assertRaises(AlreadyRunning, PublishedSocket.publish, self.path())

    def test_probing_makes_no_connection(self) -> None:
        published = self.publish()
        published.socket.listen(1)
        self.assertTrue(is_held(self.path()))
        self.assertRaises(BlockingIOError, published.socket.accept)

    def test_full_backlog_is_live(self) -> None:
        published = self.publish()
        published.socket.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(self.path())
            error = self.assertRaises(AlreadyRunning, PublishedSocket.publish, self.path())
        self.assertIn("already running", str(error))

    def test_other_files_are_kept(self) -> None:
        for make in (
            lambda: open(self.path(), "w").close(),
            lambda: os.mkdir(self.path()),
            lambda: os.symlink("x", self.path()),
        ):
            make()
            error = self.assertRaises(ConfigError, PublishedSocket.publish, self.path())
            self.assertIn("not a socket", str(error))
            self.assertEqual(os.listdir(self.directory), ["socket"])
            os.rmdir(self.path()) if os.path.isdir(self.path()) else os.unlink(self.path())

    def test_missing_directory(self) -> None:
        error = self.assertRaises(NetworkError, PublishedSocket.publish, self.path("no/socket"))
        self.assertIn("does not exist", error.cause)
        self.assertEqual(error.cure, f"mkdir -p {self.directory}/no")

    def test_directory_is_a_file(self) -> None:
        open(self.path("file"), "w").close()
        self.assertRaises(ConfigError, PublishedSocket.publish, self.path("file/socket"))

    def test_unwritable_directory(self) -> None:
        with mock.patch.object(os, "open", side_effect=PermissionError(errno.EACCES, "Permission denied")):
            error = self.assertRaises(PermissionRefused, PublishedSocket.publish, self.path())
        self.assertIn("Permission denied", error.cause)

    def test_refused_owner_leaves_nothing(self) -> None:
        with mock.patch.object(
            os, "chown", side_effect=PermissionError(errno.EPERM, "Operation not permitted")
        ):
            self.assertRaises(PermissionRefused, PublishedSocket.publish, self.path(), gid=1)
        self.assertEqual(os.listdir(self.directory), [])

    def test_other_failures_of_the_system(self) -> None:
        with mock.patch.object(os, "fchmod", side_effect=OSError(errno.EIO, "Input/output error")):
            error = self.assertRaises(NetworkError, PublishedSocket.publish, self.path())
        self.assertIn("Input/output error", error.cause)

    def test_a_socket_that_may_not_be_probed_is_kept(self) -> None:
        for code, kind in ((errno.EACCES, PermissionRefused), (errno.EMFILE, NetworkError)):
            with mock.patch.object(socket.socket, "connect_ex", return_value=code):
                self.assertRaises(kind, is_held, self.path())

    def test_withdraw_spares_another_ones(self) -> None:
        published = self.publish()
        os.unlink(self.path())
        other = self.publish()
        self.assertFalse(published.owns_path())
        self.assertFalse(published.withdraw())
        self.assertTrue(other.owns_path())

    def test_withdraw_that_fails(self) -> None:
        published = self.publish()
        with mock.patch.object(os, "unlink", side_effect=PermissionError(errno.EPERM, "no")):
            self.assertFalse(published.withdraw())

    def test_a_starter_that_hangs_is_named(self) -> None:
        lock = self.path(".socket.lock")
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with mock.patch.object(_published, "LOCK_TIMEOUT_S", 0.02):
                error = self.assertRaises(AlreadyRunning, PublishedSocket.publish, self.path())
            self.assertIn(lock, str(error))
        # a lock file that a killed starter left is no obstacle, and goes away
        self.publish()
        self.assertEqual(os.listdir(self.directory), ["socket"])

    def test_racing_starters_get_one_winner(self) -> None:
        for _ in range(3):
            stale = socket.socket(socket.AF_UNIX)
            stale.bind(self.path())
            stale.close()
            racers: list[Any] = [
                subprocess.Popen(
                    [sys.executable, "-c", RACER, self.path()],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    cwd=REPOSITORY,
                    text=True,
                )
                for _ in range(4)
            ]
            try:
                for racer in racers:
                    self.assertEqual(racer.stdout.readline(), "ready\n")
                for racer in racers:
                    racer.stdin.write("\n")
                    racer.stdin.flush()
                results = [racer.stdout.readline() for racer in racers]
            finally:
                for racer in racers:
                    racer.communicate("\n")
            self.assertEqual(sorted(results), ["mine True\n"] + ["refused\n"] * 3)
            os.unlink(self.path())
