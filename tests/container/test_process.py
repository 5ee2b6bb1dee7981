"""The process backend for real: as root and as an ordinary user, with namespaces and without."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from anbox_tw.container import _landlock
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.idmap import BASE_ID
from anbox_tw.container.process import ProcessBackend
from anbox_tw.errors import ConfigError, PermissionRefused
from anbox_tw.interfaces import IContainer, IContainerBackend
from tests.container.doubles import a_journal, a_spec
from tests.container.nobody import NOBODY
from tests.support import REPOSITORY, missing, need_root, need_tool

WAIT_S = 90.0  # for anything a manager does; on a loaded machine a Python takes seconds to start
MARK = "ANBOX_TEST_MARK"


def marked(mark: str) -> list[int]:
    """All processes that were started with the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                continue
    return found


class Manager:
    """A manager process and what it has said so far."""

    def __init__(self, case: RealCase, options: dict[str, Any]) -> None:
        options = {
            "data_path": f"{case.directory}/data-path",
            "run_path": f"{case.directory}/run/instance",
            "environment": {MARK: case.mark},
            **options,
        }
        command = [sys.executable, "-m", "tests.container.manager", json.dumps(options)]
        if case.user:
            command = [sys.executable, "-m", "tests.container.nobody", case.directory, *command]
        self.process = subprocess.Popen(
            [*case.wrapper, *command],
            cwd=REPOSITORY,
            env={**os.environ, MARK: case.mark, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, Any]] = []
        self.errors = ""
        self.data = options["data_path"]
        # A reader that never comes is a hang: one timer for the whole life of the manager.
        self.timer = threading.Timer(WAIT_S, self.process.kill)
        self.timer.start()
        case.addCleanup(self.end)

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))
            yield self.said[-1]

    def until(self, key: str) -> Any:
        """Read on until something with this key is said; its value."""
        for said in self.lines():
            if key in said:
                return said[key]
        raise AssertionError(f"it ended without {key!r}: {self.said} {self.read_errors()}")

    def read_errors(self) -> str:
        assert self.process.stderr is not None
        self.errors += self.process.stderr.read()
        return self.errors

    def order(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        self.order("stop")
        self.until("over")
        self.process.wait()

    def end(self) -> None:
        self.timer.cancel()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass

    def log(self) -> str:
        try:
            with open(f"{self.data}/logs/console.log") as file:
                return file.read()
        except FileNotFoundError:
            return ""


class RealCase(SynchronousTestCase):
    """A directory of the user's own, and at the end a look that nothing is left."""

    user = False  # run the manager as nobody
    wrapper: list[str] = []  # runs the manager

    def setUp(self) -> None:
        if self.user:
            need_root()
        self.mark = uuid.uuid4().hex
        self.directory = tempfile.mkdtemp(prefix="anbox-tw-test-", dir="/var/tmp")
        if self.user:
            os.chown(self.directory, NOBODY, NOBODY)
        self.addCleanup(shutil.rmtree, self.directory)
        self.mounts = self.mount_table()

    def tearDown(self) -> None:
        self.assert_nothing_runs()
        self.assertEqual(self.mount_table(), self.mounts)
        self.assertFalse(os.path.exists(f"{self.directory}/run"), "the run directory is left")
        self.assertEqual(os.listdir(f"{self.directory}/data-path/state") if self.has_state() else [], [])

    @property
    def host_uid(self) -> int:
        """The host's uid of the container's root."""
        return NOBODY if self.user else os.geteuid() or BASE_ID

    def has_state(self) -> bool:
        return os.path.exists(f"{self.directory}/data-path/state")

    def mount_table(self) -> list[str]:
        with open("/proc/self/mountinfo") as file:
            return sorted(line.split(" - ")[0] for line in file)

    def assert_nothing_runs(self) -> None:
        until = time.monotonic() + 10
        while left := marked(self.mark):
            if time.monotonic() > until:
                raise AssertionError(f"processes are left: {left}")
            time.sleep(0.01)

    def manage(self, script: str = "", **options: Any) -> Manager:
        if script:
            options["init"] = ["/bin/sh", "-c", script]
        return Manager(self, options)

    def run_script(self, script: str, **options: Any) -> tuple[dict[str, Any], str]:
        """Run a container whose init is ``script``, until the script says it is done; info and output."""
        manager = self.manage(f"({script}) 2>&1; echo THE-END; exec sleep 1000", **options)
        info = manager.until("info")
        self.finish(manager)
        return info, manager.log()

    def finish(self, manager: Manager) -> None:
        """Stop the container when its init has said that it is done."""
        until = time.monotonic() + WAIT_S
        while "THE-END" not in manager.log():
            self.assertLess(time.monotonic(), until, manager.log())
            time.sleep(0.01)
        manager.stop()


class NamespacedTests(RealCase):
    """Run by root here; the subclass below runs all of them as nobody."""

    def test_it_is_isolated_and_says_how(self) -> None:
        info, log = self.run_script(
            "id -u; id -g; hostname; echo pids: $(ls /proc | grep -c '^[0-9]'); ip -o addr show dev lo | grep -c inet; "
            "ls /home; ls /run; echo $$; readlink /proc/self/ns/net; grep NoNewPrivs /proc/self/status"
        )
        lines = log.splitlines()
        self.assertEqual(info["isolation"], "namespaces", info)
        self.assertTrue({"user", "mount", "pid", "net", "ipc", "uts"} <= set(info["namespaces"]))
        self.assertEqual(lines[:3], ["0", "0", "default"])
        self.assertLess(int(lines[3].split()[1]), 10)
        self.assertEqual(lines[4], "2", "lo is up with its two addresses")
        self.assertIn("/home", lines[5])
        self.assertNotEqual(lines[7], os.readlink("/proc/self/ns/net"))
        self.assertIn("NoNewPrivs:\t1", log)

    def test_the_host_cannot_be_written(self) -> None:
        _, log = self.run_script(
            "for f in /usr/x /etc/x /usr/bin/sh /etc/passwd $(dirname $(dirname $(command -v python3)))/x; do "
            "touch $f && echo WROTE $f; done; "
            "mount -o remount,rw /usr && echo REMOUNTED; mount -o remount,bind,rw /etc && echo REMOUNTED; "
            "unshare -Urm sh -c 'mount -o remount,bind,rw /usr && touch /usr/x' && echo ESCAPED; "
            "mount -t tmpfs none /mnt && echo MOUNTED; "
            "echo 1 > /proc/sys/kernel/panic && echo SYSCTL; echo b > /proc/sysrq-trigger && echo SYSRQ; "
            "cat /etc/shadow | head -1; kill -9 1; mknod /tmp/sda b 8 0 && echo MKNOD"
        )
        for word in ("WROTE", "REMOUNTED", "ESCAPED", "SYSCTL", "SYSRQ", "root:", "MKNOD", "MOUNTED"):
            self.assertNotIn(word, log)

    def test_its_data_is_kept_in_the_data_directory(self) -> None:
        self.run_script(
            "echo one > /data/local/tmp/a; echo two > /sdcard/b; echo three > /cache/c; echo four > /tmp/d"
        )
        data = f"{self.directory}/data-path"
        for path, text in (("data/local/tmp/a", "one"), ("data/media/0/b", "two"), ("cache/c", "three")):
            with open(f"{data}/{path}") as file:
                self.assertEqual(file.read(), f"{text}\n")
            self.assertEqual(os.stat(f"{data}/{path}").st_uid, self.host_uid)
        _, log = self.run_script("cat /data/local/tmp/a /sdcard/b /cache/c; cat /tmp/d")
        self.assertIn("one\ntwo\nthree\n", log)
        self.assertNotIn("four", log)

    def test_it_runs_the_same_python_and_package(self) -> None:
        script = "python -c 'import sys, anbox_tw, twisted; print(anbox_tw.__file__, sys.version_info[:3], twisted)'"
        _, log = self.run_script(script)
        self.assertIn(f"{REPOSITORY}/anbox_tw/__init__.py {tuple(sys.version_info[:3])}", log)

    def test_sockets_are_bound_into_dev_and_talk(self) -> None:
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        path = f"{self.directory}/qemu_pipe"
        server.bind(path)
        os.chmod(path, 0o660)
        if self.user:
            os.chown(path, NOBODY, NOBODY)
        server.listen()
        server.settimeout(WAIT_S)
        manager = self.manage(
            "exec python -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/dev/qemu_pipe'); "
            "s.sendall(b'hello'); s.recv(1)\"",
            bind_mounts=[[path, "dev/qemu_pipe"]],
        )
        manager.until("info")
        peer, _ = server.accept()
        self.addCleanup(peer.close)
        self.assertEqual(peer.recv(5), b"hello")
        manager.stop()


class UnprivilegedTests(NamespacedTests):
    user = True


class DetailTests(RealCase):
    """What does not depend on who runs the manager."""

    def test_bind_mounts_are_writable_unless_said_otherwise(self) -> None:
        shared = f"{self.directory}/shared"
        os.mkdir(shared)
        os.chmod(shared, 0o777)
        _, log = self.run_script(
            "touch /mnt/rw/a && echo MADE; touch /mnt/ro/b || echo REFUSED; touch /dev/input/c",
            bind_mounts=[[shared, "mnt/rw"], [shared, "/mnt/ro", True], [shared, "dev/input"]],
        )
        self.assertIn("MADE", log)
        self.assertIn("REFUSED", log)
        self.assertEqual(sorted(os.listdir(shared)), ["a", "c"])

    def test_a_source_that_cannot_be_used_is_told(self) -> None:
        secret = f"{self.directory}/secret"
        with open(secret, "w"):
            pass
        os.chmod(secret, 0)
        for source, target, why in (
            (f"{self.directory}/missing", "mnt/x", "No such file"),
            (secret, "mnt/x", "denied"),
            ("/etc/hostname", "usr/nowhere/x", "usr/nowhere/x"),
            ("/etc/hostname", "bin/x", "ANBOX-C008"),
            ("/usr", "etc/hostname", "ANBOX-C008"),
        ):
            manager = self.manage("exec sleep 1000", bind_mounts=[[source, target]])
            failed = manager.until("failed")
            self.assertEqual(failed["code"], "ANBOX-C008", failed)
            self.assertIn(why, json.dumps(failed))
            manager.process.wait()

    def test_it_has_terminals_of_its_own(self) -> None:
        _, log = self.run_script("python -c 'import pty; pty.spawn([\"tty\"])'")
        self.assertIn("/dev/pts/0", log)

    def test_the_network_can_be_shared(self) -> None:
        info, log = self.run_script("readlink /proc/self/ns/net", network="host")
        self.assertNotIn("net", info["namespaces"])
        self.assertIn(os.readlink("/proc/self/ns/net"), log)

    def test_properties_are_in_default_prop(self) -> None:
        _, log = self.run_script("cat /default.prop", extra_properties=["ro.boot.fake_battery=1", "a.b=c d"])
        self.assertIn("ro.boot.fake_battery=1\na.b=c d\n", log)

    def test_a_directory_can_be_the_rootfs(self) -> None:
        root = f"{self.directory}/rootfs"
        for name in ("etc", "opt/thing", "proc"):
            os.makedirs(f"{root}/{name}")
        os.chmod(root, 0o755)
        with open(f"{root}/etc/mine", "w") as file:
            file.write("a file of the rootfs\n")
        for name in ("bin", "lib", "lib64", "usr"):
            if os.path.islink(f"/{name}"):
                os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        os.mkdir(f"{root}/usr/") if not os.path.exists(f"{root}/usr") else None
        _, log = self.run_script(
            "cat /etc/mine; ls /opt /run/anbox-tw/python; touch /opt/x; touch /data/y && ls /data",
            rootfs=root,
            bind_mounts=[["/usr", "usr", True]],
        )
        self.assertIn("a file of the rootfs\n", log)
        self.assertIn("thing", log)
        self.assertIn("anbox_tw", log)
        self.assertIn("Read-only file system", log)

    def test_init_that_cannot_be_executed(self) -> None:
        for init, why in ((["/no/such/init"], "No such file"), (["/etc/passwd"], "denied")):
            manager = self.manage(init=init)
            failed = manager.until("failed")
            self.assertEqual(failed["code"], "ANBOX-C013")
            self.assertIn(why, failed["why"])
            self.assertIn(init[0], failed["what"])
            manager.process.wait()

    def test_init_that_ends_is_told_with_its_last_words(self) -> None:
        for script, how in (
            ("echo last words; exit 3", "init ended with status 3"),
            ("echo last words; kill -SEGV $$", "init was killed by SIGSEGV"),
        ):
            manager = self.manage(f"sleep 0.2; {script}")
            manager.until("info")
            for event in manager.lines():
                if event.get("state") == "failed":
                    break
            self.assertEqual(event["error"]["code"], "ANBOX-C014")
            self.assertEqual(event["error"]["why"], how)
            self.assertEqual(event["error"]["log_tail"][-1], "last words")
            manager.stop()

    def test_init_is_asked_before_it_is_killed(self) -> None:
        manager = self.manage("trap 'echo asked; exit 0' TERM; echo THE-END; while :; do sleep 0.05; done")
        manager.until("info")
        self.finish(manager)
        self.assertIn("asked", manager.log())

    def test_orphans_are_reaped_and_die_with_the_container(self) -> None:
        _, log = self.run_script(
            "(setsid sleep 0.01 &) ; sleep 0.3; (setsid sleep 900 &); ps -o stat= -A | grep -c Z"
        )
        self.assertIn("0\nTHE-END", log)

    def test_a_container_is_found_out_about(self) -> None:
        manager = self.manage("exec sleep 1000")
        info = manager.until("info")
        self.assertEqual(info["backend"], "process")
        self.assertEqual(info["uid"], self.host_uid)
        self.assertTrue(os.path.exists(f"/proc/{info['pid']}"))
        self.assertTrue(os.path.exists(f"/proc/{info['supervisor_pid']}"))
        self.assertEqual(info["log_files"], [f"{self.directory}/data-path/logs/console.log"])
        manager.stop()

    def test_it_dies_with_its_launcher(self) -> None:
        manager = self.manage("exec sleep 1000")
        info = manager.until("info")
        os.kill(info["supervisor_pid"], signal.SIGKILL)
        for event in manager.lines():
            if event.get("state") == "failed":
                break
        self.assertEqual(event["error"]["why"], "its launcher was killed")
        manager.stop()

    def test_the_log_has_a_limit(self) -> None:
        manager = self.manage(
            "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo tail; exec sleep 1000", log_limit=50000
        )
        manager.until("info")
        until = time.monotonic() + WAIT_S
        while not manager.log().endswith("tail\n"):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        manager.stop()
        logs = f"{self.directory}/data-path/logs"
        self.assertEqual(sorted(os.listdir(logs)), ["console.log", "console.log.1"])
        self.assertLess(sum(os.path.getsize(f"{logs}/{name}") for name in os.listdir(logs)), 200000)

    def test_a_link_in_the_data_tree_leads_nowhere(self) -> None:
        victim = f"{self.directory}/victim"
        os.mkdir(victim)
        os.chmod(victim, 0o777)
        for place in ("logs", "data/local", "data/media/0", "cache"):
            path = f"{self.directory}/data-path/{place}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(victim, path)
            if self.user:
                for top, directories, _ in os.walk(self.directory):
                    for name in directories:
                        os.chown(f"{top}/{name}", NOBODY, NOBODY, follow_symlinks=False)
            manager = self.manage("exec sleep 1000")
            failed = manager.until("failed")
            self.assertEqual(failed["code"], "ANBOX-C004")
            self.assertIn(path, failed["what"])
            manager.process.wait()
            os.unlink(path)
        self.assertEqual(os.listdir(victim), [])

    def test_data_of_the_lxc_backend_can_be_used(self) -> None:
        need_root()
        for name, uid, mode in (
            ("data", 0, 0o771),
            ("data/local", 0, 0o751),
            ("data/local/tmp", 2000, 0o771),
            ("data/media", 1015, 0o770),
            ("data/media/0", 1015, 0o770),
            ("cache", 0, 0o770),
        ):
            path = f"{self.directory}/data-path/{name}"
            os.makedirs(path)
            os.chown(path, BASE_ID + uid, BASE_ID + uid)
            os.chmod(path, mode)
        _, log = self.run_script(
            "touch /data/local/tmp/a /sdcard/b /cache/c /data/d; ls -ln /data/local | tail -1"
        )
        self.assertNotIn("denied", log)
        self.assertIn(" 2000 2000 ", log)
        for name in ("data/local/tmp/a", "data/media/0/b", "cache/c", "data/d"):
            self.assertEqual(os.stat(f"{self.directory}/data-path/{name}").st_uid, BASE_ID)

    def test_a_data_path_that_only_its_owner_reaches(self) -> None:
        os.chmod(self.directory, 0o700)
        self.run_script("touch /data/x /sdcard/y")
        self.assertTrue(os.path.exists(f"{self.directory}/data-path/data/media/0/y"))


class NetworkTests(RealCase):
    """slirp4netns, in a network namespace where the outside is one address on lo."""

    OUTSIDE = "198.18.0.1"
    SCRIPT = (
        "ip link set lo up; ip addr add {0}/32 dev lo; "
        "socat TCP-LISTEN:7777,bind={0} SYSTEM:'echo outside' & "
        'exec "$@"'
    )

    def test_the_outside_can_be_reached_and_the_hosts_loopback_not(self) -> None:
        need_root()
        for tool in ("slirp4netns", "socat", "ip"):
            need_tool(tool)
        self.wrapper = ["unshare", "--net", "sh", "-c", self.SCRIPT.format(self.OUTSIDE), "sh"]
        connect = (
            "python -c 'import socket, sys; print(socket.create_connection((sys.argv[1], 7777), 5).recv(99))'"
        )
        info, log = self.run_script(f"{connect} 10.0.2.2; {connect} {self.OUTSIDE}; cat /etc/resolv.conf")
        self.assertEqual(info["address"], "10.0.2.100")
        self.assertIn("outside", log)
        self.assertEqual(log.count("b'outside"), 1)
        self.assertIn("nameserver 10.0.2.3", log)

    def test_the_hosts_loopback_where_it_is_asked_for(self) -> None:
        need_root()
        for tool in ("slirp4netns", "socat", "ip"):
            need_tool(tool)
        self.wrapper = ["unshare", "--net", "sh", "-c", self.SCRIPT.format("127.0.0.1"), "sh"]
        _, log = self.run_script(
            "python -c 'import socket; print(socket.create_connection((\"10.0.2.2\", 7777), 5).recv(99))'",
            host_loopback=True,
        )
        self.assertIn("b'outside", log)

    def test_a_slirp_that_fails_is_told(self) -> None:
        need_root()
        directory = f"{self.directory}/bin"
        os.mkdir(directory)
        os.symlink("/bin/false", f"{directory}/slirp4netns")
        self.wrapper = ["env", f"PATH={directory}:{os.environ['PATH']}"]
        info, _ = self.run_script("true")
        self.assertIsNone(info["address"])
        self.assertIn("slirp4netns failed", info["notes"][-1])

    def test_none_wanted(self) -> None:
        info, log = self.run_script("ip -o link | wc -l", network="none")
        self.assertIsNone(info["address"])
        self.assertIn("1\n", log)


class PlainCase(RealCase):
    """Without namespaces."""

    isolation = "plain"

    def manage(self, script: str = "", **options: Any) -> Manager:
        return super().manage(script, isolation=self.isolation, **options)


class PlainTests(PlainCase):
    """The same life, no isolation, and it says so."""

    def test_it_says_that_there_is_no_isolation(self) -> None:
        info, log = self.run_script("echo $ANBOX_DEV $ANBOX_ROOT; id -u; grep NoNewPrivs /proc/self/status")
        self.assertEqual((info["isolation"], info["namespaces"]), ("plain", []))
        self.assertIn("no isolation", info["notes"][0])
        root = f"{self.directory}/run/instance/container-root"
        self.assertIn(f"{root}/dev {root}\n", log)
        self.assertIn(str(NOBODY if self.user else os.getuid()), log)
        self.assertIn("NoNewPrivs:\t1", log)

    def test_landlock_lets_it_write_only_where_it_may(self) -> None:
        shared, read_only = f"{self.directory}/shared", f"{self.directory}/read-only"
        for path in (shared, read_only):
            os.mkdir(path)
            os.chmod(path, 0o777)
        outside = f"{self.directory}/outside"
        os.mkdir(outside)
        os.chmod(outside, 0o777)
        victim = subprocess.Popen(["sleep", "1000"], user=NOBODY if self.user else None)
        self.addCleanup(victim.wait)
        self.addCleanup(victim.kill)
        info, log = self.run_script(
            f"for d in {outside} {read_only} $ANBOX_ROOT /var/tmp; do touch $d/x && echo WROTE; done; "
            f"touch {shared}/a $ANBOX_ROOT/data/b $TMPDIR/c && mv $TMPDIR/c {shared}/c && echo MAY; "
            f"kill {victim.pid} && echo KILLED; echo > /dev/null && python -c 'import os; os.openpty()' && echo PTY",
            bind_mounts=[[shared, "mnt/a"], [read_only, "mnt/b", True]],
        )
        version = _landlock.abi()
        if not version:
            missing("Landlock")
        self.assertIn(f"Landlock {version}", info["notes"][-1])
        self.assertIn("MAY\n", log)
        self.assertIn("PTY\n", log)
        self.assertNotIn("WROTE", log)
        if version >= 6:
            self.assertNotIn("KILLED", log)
            self.assertIsNone(victim.poll())


class UnprivilegedPlainTests(PlainTests):
    user = True


class PlainDetailTests(PlainCase):
    def test_data_and_sockets_are_linked(self) -> None:
        path = f"{self.directory}/qemu_pipe"
        with open(path, "w") as file:
            file.write("pipe\n")
        _, log = self.run_script(
            "cat $ANBOX_DEV/qemu_pipe; echo one > $ANBOX_ROOT/data/local/tmp/a; echo two > $ANBOX_ROOT/sdcard/b",
            bind_mounts=[[path, "dev/qemu_pipe"]],
        )
        self.assertIn("pipe\n", log)
        for place in ("data/local/tmp/a", "data/media/0/b"):
            self.assertTrue(os.path.exists(f"{self.directory}/data-path/{place}"))
        self.assertTrue(os.path.exists(path))

    def test_detached_processes_die_with_it(self) -> None:
        self.run_script("(setsid setsid sleep 900 &) ; (setsid sh -c 'trap \"\" TERM; sleep 900' &)")

    def test_detached_processes_die_with_a_killed_manager(self) -> None:
        manager = self.manage("(setsid setsid sleep 900 &) ; exec sleep 1000")
        manager.until("info")
        manager.process.kill()
        self.assert_nothing_runs()
        again = self.manage("exec sleep 1000")
        again.until("info")
        again.stop()

    def test_init_that_cannot_be_executed(self) -> None:
        manager = self.manage(init=["/no/such/init"])
        self.assertEqual(manager.until("failed")["code"], "ANBOX-C013")
        manager.process.wait()

    def test_a_source_that_is_not_there(self) -> None:
        manager = self.manage("exec sleep 1000", bind_mounts=[[f"{self.directory}/missing", "dev/x"]])
        self.assertEqual(manager.until("failed")["code"], "ANBOX-C008")
        manager.process.wait()

    def test_init_that_ends_is_told(self) -> None:
        manager = self.manage("echo last words; exit 3")
        for event in manager.lines():
            if event.get("state") == "failed":
                break
        self.assertIn(event["error"]["code"], "ANBOX-C014")
        self.assertEqual(event["error"]["why"], "init ended with status 3")
        manager.stop()


class RefusingKernelTests(RealCase):
    """A kernel that refuses user namespaces; this one does it below a user namespace without a right to more."""

    wrapper = [
        *("unshare", "--user", "--map-root-user", "sh", "-c"),
        'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"',
        "sh",
    ]

    def test_it_falls_back_and_says_so(self) -> None:
        info, _ = self.run_script("true")
        self.assertEqual(info["isolation"], "plain")
        why = "user, mount and pid namespaces: the limits in /proc/sys/user allow no more"
        self.assertEqual(info["refused"]["all"], why)
        self.assertIn(why, " ".join(info["notes"]))

    def test_it_fails_where_namespaces_are_demanded(self) -> None:
        manager = self.manage("exec sleep 1000", isolation="namespaces")
        failed = manager.until("failed")
        self.assertEqual(failed["code"], "ANBOX-C010")
        self.assertIn("/proc/sys/user", failed["why"])
        manager.process.wait()


class KillTests(RealCase):
    """kill -9 of the manager at each of its events, one after the other in the same directories."""

    isolation = "namespaces"
    step = 1

    def test_nothing_outlives_a_killed_manager(self) -> None:
        wholly = self.manage("exec sleep 1000", isolation=self.isolation)
        wholly.until("info")
        wholly.stop()
        events = sum("phase" in said for said in wholly.said)
        self.assertGreater(events, 8)
        for number in range(1, events + 1, self.step):
            manager = self.manage("exec sleep 1000", isolation=self.isolation, die_at=number)
            for said in manager.lines():
                if "info" in said:
                    manager.order("stop")
            self.assertEqual(manager.process.wait(), -signal.SIGKILL)
            self.assert_nothing_runs()
        last = self.manage("exec sleep 1000", isolation=self.isolation)
        last.until("info")
        last.stop()


class KillPlainTests(KillTests):
    isolation = "plain"
    user = True
    step = 3  # in other ways it is the same


class BackendTests(TestCase):
    """The backend in this process."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.directory = os.path.abspath(self.mktemp())

    def test_interfaces(self) -> None:
        backend = ProcessBackend(self.reactor)
        self.assertTrue(verifyObject(IContainerBackend, backend))
        journal = a_journal(self.reactor, f"{self.directory}/journal")
        self.addCleanup(journal.close)
        container = backend.create(a_spec(self.directory), journal)
        self.assertTrue(verifyObject(IContainer, container))
        self.assertRaises(RuntimeError, container.start)
        self.assertEqual(container.info()["isolation"], "")
        self.successResultOf(container.stop(1))

    def test_bad_wishes(self) -> None:
        self.assertRaises(ConfigError, ProcessBackend, self.reactor, isolation="much")
        backend = ProcessBackend(self.reactor)
        journal = a_journal(self.reactor, f"{self.directory}/journal")
        self.addCleanup(journal.close)
        spec = a_spec(self.directory, rootfs="", image="/android.img")
        self.assertRaises(ConfigError, backend.create, spec, journal)
        container = backend.create(a_spec(self.directory, rootfs="/no/such/rootfs"), journal)
        error = self.failureResultOf(container.prepare(), DiagnosedError).value
        self.assertEqual(error.code, "ANBOX-C002")

    def test_ids(self) -> None:
        spec = a_spec(self.directory, owner_uid=1000, owner_gid=1001)
        self.patch(os, "geteuid", lambda: 0)
        self.assertEqual(ProcessBackend.host_ids(spec), (1000, 1001))
        of_root = a_spec(self.directory, owner_uid=0, owner_gid=7)
        self.assertEqual(ProcessBackend.host_ids(of_root), (BASE_ID, 7))
        self.assertEqual(
            ProcessBackend.host_ids(a_spec(self.directory, owner_uid=0, owner_gid=7, privileged=True)), (0, 7)
        )
        uid_map = self.mktemp()
        os.makedirs(f"{uid_map}/self")
        for text, uid in (
            ("0 1000 1\n", 0),
            ("0 1000 1\n1 165536 65536\n", 0),
            ("0 0 4294967295\n", BASE_ID),
        ):
            with open(f"{uid_map}/self/uid_map", "w") as file:
                file.write(text)
            self.assertEqual(ProcessBackend.host_ids(of_root, uid_map), (uid, 7))
        self.assertEqual(ProcessBackend.host_ids(of_root, "/nonexistent"), (BASE_ID, 7))
        self.patch(os, "geteuid", lambda: 1000)
        self.patch(os, "getegid", lambda: 1001)
        self.assertEqual(ProcessBackend.host_ids(spec), (1000, 1001))
        self.assertRaises(PermissionRefused, ProcessBackend.host_ids, of_root)

    def test_a_start_can_be_stopped_at_once(self) -> Deferred[None]:
        backend = ProcessBackend(self.reactor)
        journal = a_journal(self.reactor, f"{self.directory}/journal")
        self.addCleanup(journal.close)
        container = backend.create(a_spec(self.directory, init=("/bin/sleep", "1000")), journal)
        self.successResultOf(container.prepare())
        started = container.start()
        started.cancel()
        self.failureResultOf(started)

        def check(_: None) -> Deferred[None]:
            self.assertIsNone(container.info()["pid"])
            self.assertIsNone(container.info()["supervisor_pid"])
            return journal.undo_all()

        return container.stop(30).addCallback(check)

    def test_waiters_are_each_their_own(self) -> None:
        backend = ProcessBackend(self.reactor)
        journal = a_journal(self.reactor, f"{self.directory}/journal")
        self.addCleanup(journal.close)
        container = backend.create(a_spec(self.directory, init=("/bin/sh", "-c", "exit 4")), journal)
        self.successResultOf(container.prepare())
        first, second = container.when_exited(), container.when_exited()
        second.cancel()
        self.failureResultOf(second)

        def check(how: str) -> Deferred[None]:
            self.assertEqual(how, "init ended with status 4")
            self.assertEqual(self.successResultOf(container.when_exited()), how)
            self.assertIsNone(container.info()["pid"])
            return journal.undo_all()

        return container.start().addCallback(lambda _: first).addCallback(check)  # type: ignore[return-value]
