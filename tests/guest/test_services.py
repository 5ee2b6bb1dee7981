"""A container whose process 1 is our init: adbd, installd and a netd as its services, each killed and back again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.android.installd._framing import encode_message
from anbox_tw.android.properties import client
from anbox_tw.android.rc import lint, parse
from anbox_tw.errors import AnboxError
from anbox_tw.guest import services, under_init
from tests.support import REPOSITORY, need_root, need_tool

NETD_RC = """\
on property:sys.boot_completed=1
    start netd
service netd {python} {stub} --stub
    class late_start
    disabled
    socket netd stream 0660 root system
    socket dnsproxyd stream 0660 root inet
    socket mdns stream 0660 root system
    socket fwmarkd stream 0660 root inet
"""


class RcTests(SynchronousTestCase):
    def test_the_guests_own_file_is_without_fault(self) -> None:
        config = parse(services.guest_rc("/usr/bin/my python", "/dev", "/"))
        self.assertEqual(config.problems + lint(config, whole=True), [])
        self.assertEqual(config.services["adbd"].path, "/usr/bin/my python")
        self.assertEqual(list(config.services), ["adbd", "installd"])

    def test_a_directory_too_deep_for_sockets(self) -> None:
        self.assertTrue(services.fits("/dev"))
        self.assertFalse(services.fits("/" + "d" * 90))


class ContainerTests(SynchronousTestCase):
    def setUp(self) -> None:
        need_root()
        self.root = Path(tempfile.mkdtemp(prefix="atw"))
        self.addCleanup(shutil.rmtree, self.root)
        self.dev = self.root / "dev"
        self.dev.mkdir()
        self.sockets = str(self.dev / "socket")
        extra = self.root / services.EXTRA_FILES
        extra.mkdir(parents=True)
        stub = REPOSITORY / "tests/guest/netd_stub.py"
        (extra / "netd.rc").write_text(NETD_RC.format(python=sys.executable, stub=stub))
        (extra / "netd.rc").chmod(0o644)
        (self.root / "default.prop").write_text("ro.test.given=yes\n")
        self.pipe = socket.socket(socket.AF_UNIX)
        self.pipe.bind(str(self.dev / "qemu_pipe"))
        self.pipe.listen(8)
        self.pipe.settimeout(30)
        self.addCleanup(self.pipe.close)

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [need_tool("unshare"), "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", sys.executable,
             "-m", "anbox_tw.guest", "--dev", str(self.dev), "--root", str(self.root)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def until(self, what: str, condition: Callable[[], Any], limit: float = 60) -> Any:
        deadline = time.monotonic() + limit
        while True:
            try:
                value = condition()
            except (OSError, AnboxError):
                value = None
            if value:
                return value
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.02)

    def state(self) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(f"{self.sockets}/init_status")
            with sock.makefile() as file:
                return json.loads(file.readline())  # type: ignore[no-any-return]

    def installd_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(f"{self.sockets}/installd")
            sock.sendall(encode_message(b"ping"))
            return sock.recv(10) == b"\x01\x000"

    def netd_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(f"{self.sockets}/netd")
            sock.sendall(b"7 stub\0")
            return sock.recv(100).startswith(b"200 7 alive in")

    def adbd_answers(self) -> bool:
        connection, _ = self.pipe.accept()
        with connection:
            connection.settimeout(10)
            return connection.recv(100).startswith(b"pipe:qemud:adb:5555")

    def test_each_service_survives_kill_9(self) -> None:
        process = self.start()
        self.until("adbd", self.adbd_answers)
        answers = {"adbd": self.adbd_answers, "installd": self.installd_answers, "netd": self.netd_answers}
        self.until("installd", self.installd_answers)
        self.until("netd", self.netd_answers)
        self.assertEqual(client.get_property("ro.test.given", directory=self.sockets), "yes")
        first = self.state()["services"]
        (init,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        children = Path(f"/proc/{init}/task/{init}/children")
        self.assertEqual(
            {name: entry["state"] for name, entry in first.items()}, dict.fromkeys(answers, "running")
        )
        # the pids that init tells are those of its own namespace; the host sees the same three children
        outside = {}
        for pid in map(int, children.read_text().split()):
            inside = int(
                Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].splitlines()[0].split()[-1]
            )
            outside[inside] = pid
        self.assertEqual(set(outside), {entry["pid"] for entry in first.values()})
        for entry in first.values():
            os.kill(outside[entry["pid"]], signal.SIGKILL)
        for name, answer in answers.items():
            self.until(f"{name} again", answer)
        self.until(
            "all running", lambda: {e["state"] for e in self.state()["services"].values()} == {"running"}
        )
        second = self.state()["services"]
        for name in answers:
            self.assertEqual(second[name]["starts"], 2)
            self.assertIn("SIGKILL", second[name]["last_exit"])
            self.assertNotEqual(second[name]["pid"], first[name]["pid"])
        self.assertEqual(client.get_property("ro.hardware", directory=self.sockets), "goldfish")
        os.kill(init, signal.SIGTERM)
        self.assertEqual(process.wait(40), 0)
        self.assertFalse(os.path.exists(self.sockets))

    def test_a_reboot_ends_the_whole_container(self) -> None:
        process = self.start()
        self.until("adbd", self.adbd_answers)
        self.until("booted", lambda: client.get_property("sys.boot_completed", directory=self.sockets))
        os.environ["ANBOX_SOCKET_DIR"] = self.sockets
        os.environ[under_init.MARK] = "adbd"
        self.addCleanup(os.environ.pop, under_init.MARK)
        self.addCleanup(os.environ.pop, "ANBOX_SOCKET_DIR")
        under_init.reboot(self.fail)
        self.assertEqual(process.wait(40), 0)
        stopped: list[bool] = []
        under_init.reboot(lambda: stopped.append(True))
        self.assertEqual(stopped, [True])

    def test_a_guest_that_cannot_start_ends_the_container_with_its_code(self) -> None:
        (self.root / "data/local/tmp").symlink_to("/proc/nothing/here")
        process = self.start()
        self.assertEqual(process.wait(40), 2)
        assert process.stderr is not None and process.stdout is not None
        self.assertIn("the guest's tree cannot be made", process.stderr.read() + process.stdout.read())
