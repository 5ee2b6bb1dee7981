"""The embedded default, from the command line: no root is used, no image, no adb program needed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support import Sandbox, eventually
from tests.support import need_root


class OneInstanceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.box = Sandbox(self)

    def assert_all_gone(self) -> None:
        eventually(lambda: not self.box.processes(), f"no process left: {self.box.processes()}")
        self.assertEqual(self.box.leftovers(), [])

    def test_up_wait_ps_shell_and_interrupt(self) -> None:
        process = self.box.up()
        told = self.box.booted()
        self.assertTrue(told["live"] and told["booted"])
        listed = json.loads(self.box.anbox("ps", "--json").stdout)
        self.assertEqual([(entry["instance"], entry["level"]) for entry in listed], [("default", "booted")])
        said = self.box.anbox("shell", "--", "sh", "-c", "echo hi; echo there >&2; exit 7")
        self.assertEqual((said.stdout, said.stderr, said.returncode), ("hi\n", "there\n", 7))
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(40), 0, self.box.up_output())
        self.assert_all_gone()

    def test_the_shells_standard_streams(self) -> None:
        """Any file may be one, or none."""
        self.box.up()
        told = self.box.booted()
        anbox = f"{sys.executable} -m anbox_tw.cli"

        def shell(line: str) -> tuple[int, str, str]:
            done = self.box.run(["bash", "-c", line.replace("anbox ", f"{anbox} ")])
            return done.returncode, done.stdout, done.stderr

        big = self.box.directory / "big"
        big.write_bytes(os.urandom(1 << 20) * 5)
        digest = hashlib.sha256(big.read_bytes()).hexdigest()
        for line in (f"anbox shell sha256sum < {big}", f"cat {big} | anbox shell sha256sum"):
            self.assertEqual(shell(line), (0, f"{digest}  -\n", ""))
        self.assertEqual(shell(f"anbox shell cat < {big} | sha256sum"), (0, f"{digest}  -\n", ""))
        self.assertEqual(shell("anbox shell 'cat; echo end' <&-"), (0, "end\n", ""))
        self.assertEqual(shell("anbox shell 'echo lost; exit 3' >&- 2>&-"), (3, "", ""))
        code, _, said = shell("anbox shell echo lost > /dev/full")
        self.assertEqual(code, 1)
        self.assertIn("cannot write to standard output: No space left on device", said)
        self.assertNotIn("Traceback", said)
        # the checkout's container sees the package alone: its installd must do with it
        self.assertEqual(told["level"], "booted")
        listed = "cat /proc/net/unix; ls /data/user_de 2>&1"
        eventually(lambda: "installd" in shell(f"anbox shell '{listed}'")[1], "installd listens")
        eventually(lambda: shell("anbox shell 'ls -d /data/user_de/0'")[0] == 0, "installd made its tree")

    def test_a_manager_that_is_not_there_is_told_once(self) -> None:
        process = self.box.up("--manager", str(self.box.directory / "nobody"))
        eventually(lambda: "no container manager answers" in self.box.up_output(), "up says so")
        self.assertRaises(subprocess.TimeoutExpired, process.wait, 5)
        self.assertEqual(self.box.up_output().count("no container manager answers"), 1)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(20), 0)

    def test_the_data_outlives_the_container(self) -> None:
        for command, expected in (
            ("echo kept > /data/local/tmp/note", ""),
            ("cat /data/local/tmp/note", "kept\n"),
        ):
            started = self.box.anbox("up", "--detach", "--data-path", self.box.data_path())
            self.assertEqual(started.returncode, 0, started.stdout + started.stderr)
            self.assertEqual(self.box.anbox("shell", "--", command).stdout, expected)
            stopped = self.box.anbox("down")
            self.assertEqual(stopped.returncode, 0, stopped.stdout + stopped.stderr)
            self.assert_all_gone()

    def test_a_second_up_names_the_first(self) -> None:
        process = self.box.up()
        self.box.booted()
        second = self.box.anbox("up")
        self.assertEqual(second.returncode, 1)
        self.assertIn("already running", second.stderr)
        self.assertIn(f"pid {process.pid}", second.stderr)
        self.assertEqual(self.box.anbox("down").returncode, 0)

    def test_the_session_survives_the_loss_of_its_manager(self) -> None:
        self.box.up()
        self.box.booted()
        managers = [line for line in self.box.processes() if " anbox-container " in line]
        self.assertEqual(len(managers), 1)
        os.kill(int(managers[0].split()[0]), signal.SIGKILL)
        eventually(lambda: "starting it again" in self.box.up_output(), "the loss is told")
        eventually(
            lambda: self.box.anbox("shell", "--", "echo", "back").stdout == "back\n",
            "the container comes back",
            60,
        )
        self.assertEqual(self.box.anbox("down").returncode, 0)
        self.assert_all_gone()

    def test_a_killed_up_leaves_nothing_behind(self) -> None:
        process = self.box.up()
        self.box.booted()
        process.kill()
        process.wait()
        eventually(lambda: not self.box.processes(), "all processes end")
        self.box.up()
        self.box.booted()
        self.assertEqual(self.box.anbox("down").returncode, 0)
        self.assert_all_gone()

    def test_a_killed_session_ends_all_and_leaves_nothing_behind(self) -> None:
        process = self.box.up()
        self.box.booted()
        (session,) = (line for line in self.box.processes() if " anbox-session " in line)
        os.kill(int(session.split()[0]), signal.SIGKILL)
        self.assertEqual(process.wait(40), 1)
        self.assertIn("was ended by SIGKILL", self.box.up_output())
        self.assert_all_gone()

    def test_what_a_killed_up_has_left_is_gone_after_down(self) -> None:
        process = self.box.up()
        self.box.booted()
        process.kill()
        process.wait()
        eventually(lambda: not self.box.processes(), "all processes end")
        self.assertEqual(self.box.anbox("down").returncode, 3)
        self.assert_all_gone()

    def test_garbage_on_each_socket_disturbs_nobody(self) -> None:
        self.box.up()
        told = self.box.booted()
        for path in told["sockets"].values():
            for garbage in (b"", b"\x00" * 64, os.urandom(4096), b"pipe:no-such-service\0", b"\xff" * 70000):
                with socket.socket(socket.AF_UNIX) as link:
                    link.settimeout(10)
                    link.connect(path)
                    try:
                        link.sendall(garbage)
                        link.shutdown(socket.SHUT_WR)
                        while link.recv(65536):
                            pass
                    except OSError:
                        continue  # closed while we wrote: refused, as it should be
        self.assertEqual(self.box.anbox("shell", "--", "echo", "well").stdout, "well\n")
        self.assertEqual(self.box.anbox("down").returncode, 0)


class TwoInstancesTests(SynchronousTestCase):
    def test_both_answer_and_share_nothing(self) -> None:
        box = Sandbox(self)
        box.up()
        box.up("--instance", "second")
        first, second = box.booted(), box.booted("--instance", "second")
        self.assertNotEqual(first["adb_port"], second["adb_port"])
        self.assertFalse(set(first["sockets"].values()) & set(second["sockets"].values()))
        for option, name in (([], "one"), (["--instance", "second"], "two")):
            self.assertEqual(
                box.anbox("shell", *option, "--", f"echo {name} > /data/local/tmp/me").returncode, 0
            )
        for option, name in (([], "one\n"), (["--instance", "second"], "two\n")):
            self.assertEqual(box.anbox("shell", *option, "--", "cat", "/data/local/tmp/me").stdout, name)
        for version in ("29", "36"):
            eventually(
                lambda version=version: (
                    set(box.device_states(version).items())  # type: ignore[misc]
                    >= {(first["serial"], "device"), (second["serial"], "device")}
                ),
                f"adb {version} sees both",
            )
        # each has a netd; what it may do is what its user may
        for option in ([], ["--instance", "second"]):
            listed = box.anbox("ndc", *option, "interface", "list")
            self.assertIn("110 0 lo\n", listed.stdout, listed.stderr)
            self.assertIn("200 0 Interface list completed\n", listed.stdout)
        self.assertEqual(box.anbox("down").returncode, 0)
        listed = box.anbox("ndc", "--instance", "second", "interface", "list")
        self.assertEqual(listed.returncode, 0, listed.stderr)
        absent = box.anbox("ndc", "--instance", "third", "interface", "list")
        self.assertEqual(absent.returncode, 3, absent.stdout)
        self.assertIn("these have one: second", absent.stderr)
        self.assertEqual(box.anbox("down", "--all").returncode, 0)
        eventually(lambda: not box.processes(), "no process left")
        self.assertEqual(box.leftovers(), [])


class StockAdbTests(SynchronousTestCase):
    version = "29"

    def setUp(self) -> None:
        self.box = Sandbox(self)
        self.box.up()
        self.serial = self.box.booted()["serial"]
        self.adb("start-server")
        self.wait_for_device()

    def adb(self, *arguments: str, limit_s: float = 90) -> str:
        done = self.box.adb(self.version, *arguments, limit_s=limit_s)
        self.assertEqual(done.returncode, 0, f"adb {arguments}: {done.stdout}{done.stderr}")
        return done.stdout

    def wait_for_device(self, limit_s: float = 10) -> None:
        eventually(
            lambda: self.box.device_states(self.version).get(self.serial) == "device",
            "adb sees the device",
            limit_s,
        )

    def test_everyday_use(self) -> None:
        self.assertRegex(self.serial, r"^emulator-\d+$")
        self.assertEqual(self.adb("-s", self.serial, "shell", "echo", "hi"), "hi\n")
        self.assertEqual(self.box.adb(self.version, "-s", self.serial, "shell", "exit 7").returncode, 7)
        self.assertEqual(self.adb("wait-for-device"), "")
        # 50 MB there and back
        there, back = self.box.directory / "there", self.box.directory / "back"
        there.write_bytes(os.urandom(1 << 20) * 50)
        self.adb("-s", self.serial, "push", str(there), "/data/local/tmp/big")
        self.adb("-s", self.serial, "pull", "/data/local/tmp/big", str(back))
        digest = hashlib.sha256(there.read_bytes()).hexdigest()
        self.assertEqual(hashlib.sha256(back.read_bytes()).hexdigest(), digest)
        self.assertIn(digest, self.adb("-s", self.serial, "shell", "sha256sum", "/data/local/tmp/big"))
        # a forward to a port of the guest: adbd's own service answers there
        (self.box.directory / "server.py").write_text(ECHO)
        self.adb(
            "-s", self.serial, "push", str(self.box.directory / "server.py"), "/data/local/tmp/server.py"
        )
        self.adb(
            "-s",
            self.serial,
            "shell",
            "cd /data/local/tmp && rm -f port && (python3 server.py >/dev/null 2>&1 &)",
        )
        port = eventually(
            lambda: self.box.adb(
                self.version, "-s", self.serial, "shell", "cat", "/data/local/tmp/port"
            ).stdout.strip(),
            "the guest's server listens",
        )
        forwarded = int(self.adb("-s", self.serial, "forward", "tcp:0", f"tcp:{port}"))
        with socket.create_connection(("127.0.0.1", forwarded), timeout=10) as link:
            link.sendall(b"through the pipe")
            self.assertEqual(link.recv(64), b"through the pipe")
        self.adb("-s", self.serial, "forward", "--remove-all")

    def test_a_new_adb_server_sees_the_device_at_once(self) -> None:
        for _ in range(2):
            self.adb("kill-server")
            self.box.device_states(self.version)  # starts a new server
            self.wait_for_device(10)
        self.assertEqual(self.adb("-s", self.serial, "shell", "echo", "again"), "again\n")


class StockAdb36Tests(StockAdbTests):
    version = "36"


ECHO = """
import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(1)
open("port", "w").write(str(s.getsockname()[1]))
c = s.accept()[0]
while (d := c.recv(65536)): c.sendall(d)
"""


class BadInputTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.box = Sandbox(self)

    def refused(self, code: int, *words: str, arguments: tuple[str, ...]) -> None:
        done = self.box.anbox(*arguments)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        for word in words:
            self.assertIn(word, done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stdout + done.stderr)
        self.assertEqual([line for line in self.box.leftovers() if "." not in line], [])

    def test_nothing_runs(self) -> None:
        self.refused(3, "not running", "anbox up", arguments=("shell", "--", "true"))
        self.refused(3, "not running", arguments=("down",))
        self.refused(4, "in time", arguments=("wait", "--timeout", "0.2"))
        self.assertEqual(json.loads(self.box.anbox("ps", "--json").stdout), [])

    def test_usage(self) -> None:
        self.refused(2, "no such command", arguments=("upp",))
        self.refused(2, "--no-such", arguments=("up", "--no-such"))
        self.refused(2, "instance", arguments=("up", "--instance", "a/b"))

    def test_missing_image(self) -> None:
        self.refused(1, "image", "ANBOX-C002", arguments=("up", "--image", "no-such.img"))

    def test_an_image_that_is_none(self) -> None:
        need_root()  # images are for the lxc backend
        path = self.box.directory / "android.img"
        path.write_bytes(os.urandom(8192))
        self.refused(1, "image", "ANBOX-C0", arguments=("up", "--image", str(path)))

    def test_missing_rootfs(self) -> None:
        self.refused(1, "no-such-dir", arguments=("up", "--rootfs", "no-such-dir"))

    def test_runtime_directory_that_is_a_file(self) -> None:
        path = self.box.directory / "file"
        path.write_text("")
        self.refused(2, str(path), arguments=("up", "--runtime-dir", str(path)))

    def test_data_path_that_cannot_be_made(self) -> None:
        self.refused(2, "/proc/nowhere", "--data-path", arguments=("up", "--data-path", "/proc/nowhere"))


class BareShellTests(SynchronousTestCase):
    def test_without_a_runtime_directory_a_private_one_is_made(self) -> None:
        box = Sandbox(self)
        del box.environment["XDG_RUNTIME_DIR"]
        process = box.up()
        told = box.booted()
        directory = Path(told["sockets"]["control"]).parent.parent.parent
        self.assertEqual(directory.stat().st_mode & 0o777, 0o700)
        self.assertIn(str(directory), box.up_output())
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(40), 0)
        self.assertFalse(directory.exists())
