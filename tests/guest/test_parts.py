"""The guest's parts alone: handshake, tree, applications, tasks, process 1."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.errors import ConfigError
from anbox_tw.guest import apps, tasks
from anbox_tw.guest._state import HostCame, PipeHandshake, PipeRefused
from anbox_tw.guest.am import parse
from anbox_tw.guest.apps import GuestApplication, find_applications, fingerprint
from anbox_tw.guest.properties import BIN, PropertyTable
from anbox_tw.guest.tasks import LaunchFailed, Task, TaskTable, UnknownTask
from anbox_tw.guest.tree import mark_initialized, prepare_tree
from tests.session.guest import until
from tests.support import REPOSITORY, need_root, need_tool


class HandshakeTests(SynchronousTestCase):
    def test_ok_at_any_cut(self) -> None:
        for cut in range(5):
            handshake = PipeHandshake()
            data = b"okCN"
            came = handshake.receive_data(data[:cut])
            rest = b""
            if came is None:
                came = handshake.receive_data(data[cut:])
            else:
                rest = data[cut:]
            assert isinstance(came, HostCame)
            self.assertEqual(came.rest + rest, b"CN")

    def test_anything_else_is_a_refusal(self) -> None:
        for data in (b"ko", b"x", b"oK", b"\0"):
            with self.assertRaises(PipeRefused):
                PipeHandshake().receive_data(data)


class Rooted(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = tempfile.mkdtemp(prefix="ag-")
        self.addCleanup(shutil.rmtree, self.root)

    def write(self, path: str, data: str | bytes) -> Path:
        full = Path(self.root) / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(data.encode() if isinstance(data, str) else data)
        return full


class TreeTests(Rooted):
    def test_a_first_and_a_second_boot(self) -> None:
        self.assertTrue(prepare_tree(self.root))
        for path, mode in (("data/local/tmp", 0o771), ("data/app", 0o771), ("data/media/0", 0o770)):
            self.assertEqual(stat.S_IMODE(os.stat(f"{self.root}/{path}").st_mode), mode)
        self.write("sdcard/file", "x")
        self.assertEqual(Path(f"{self.root}/data/media/0/file").read_text(), "x")
        mark_initialized(self.root)
        self.assertFalse(prepare_tree(self.root))

    def test_what_is_there_stays(self) -> None:
        os.mkdir(f"{self.root}/sdcard")
        os.mkdir(f"{self.root}/data", 0o700)
        prepare_tree(self.root)
        self.assertFalse(os.path.islink(f"{self.root}/sdcard"))
        self.assertEqual(stat.S_IMODE(os.stat(f"{self.root}/data").st_mode), 0o700)

    def test_a_tree_that_cannot_be_made_is_said(self) -> None:
        self.write("data", "a file")
        with self.assertRaises(ConfigError):
            prepare_tree(self.root)


class PropertyTests(Rooted):
    def getprop(self, *arguments: str) -> str:
        script = f"{self.root}/{BIN}/getprop"
        return subprocess.run([script, *arguments], capture_output=True, text=True, check=True).stdout

    def test_shells_see_what_is_published(self) -> None:
        self.write("default.prop", "a.b=c=d \n # x=y\nnothing\n")
        table = PropertyTable(self.root, "/dev")
        table["weird"] = "it's [x] \\n %s"
        table.publish()
        self.assertEqual(self.getprop("a.b"), "c=d\n")
        self.assertEqual(self.getprop("aXb", "none"), "none\n")
        self.assertEqual(self.getprop("a.b.c"), "\n")
        self.assertEqual(self.getprop("weird"), "it's [x] \\n %s\n")
        self.assertIn("[a.b]: [c=d]\n", self.getprop())
        self.assertNotIn("x", table)
        table["a.b"] = "changed"
        table.publish()
        self.assertEqual(self.getprop("a.b"), "changed\n")
        self.assertEqual(sorted(os.listdir(f"{self.root}/data/local/anbox")), ["bin", "properties"])


class AmTests(SynchronousTestCase):
    def test_what_scripts_write(self) -> None:
        for line, package, component, uri in (
            ("start -n org.a/.Main", "org.a", ".Main", ""),
            ("start -W -S -a android.intent.action.VIEW -d http://x org.a", "org.a", "", "http://x"),
            ("start org.a/org.a.Main", "org.a", "org.a.Main", ""),
            ("start-activity --stack 2 http://x", "", "", "http://x"),
            ("start -p org.a -c one -c two -t text/plain", "org.a", "", ""),
        ):
            options = parse(line.split())
            self.assertEqual(
                (options.package, options.component, options.uri), (package, component, uri), line
            )
        self.assertEqual(parse(["force-stop", "org.a"]).package, "org.a")
        for wrong in ([], ["nonsense"], ["start", "--stack", "9"], ["force-stop"]):
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                parse(wrong)


class ApplicationTests(Rooted):
    def test_a_manifest(self) -> None:
        self.write("data/app/org.example.app/run", "")
        self.write("data/app/org.example.app/icon.png", b"png")
        manifest = {"name": "Example", "exec": ["run", "-v", "%u"], "icon": "icon.png", "component": ".A"}
        self.write("data/app/org.example.app/app.json", json.dumps(manifest))
        app = find_applications(self.root)["org.example.app"]
        directory = f"{self.root}/data/app/org.example.app"
        self.assertEqual(
            app,
            GuestApplication(
                "org.example.app", "Example", (f"{directory}/run", "-v", "%u"), ".A", directory, b"png"
            ),
        )
        self.assertEqual(app.command_for(""), [f"{directory}/run", "-v"])
        self.assertEqual(app.command_for("http://x y"), [f"{directory}/run", "-v", "http://x y"])

    def test_a_desktop_entry(self) -> None:
        entry = (
            "[Desktop Entry]\nType=Application\nName=Clock\nName[de]=Uhr\nExec=clock '--face=a b' %U --x%%\n"
        )
        self.write("usr/share/applications/org.example.Clock.desktop", entry)
        self.write("usr/share/applications/plain.desktop", "[Desktop Entry]\nType=Application\nExec=plain\n")
        found = find_applications(self.root)
        self.assertEqual(sorted(found), ["desktop.plain", "org.example.Clock"])
        self.assertEqual(found["org.example.Clock"].name, "Clock")
        self.assertEqual(found["org.example.Clock"].command_for(""), ["clock", "--face=a b", "--x%%"])
        self.assertEqual(found["desktop.plain"].name, "plain")

    def test_an_installed_application_wins_over_a_desktop_entry(self) -> None:
        self.write("usr/share/applications/org.a.desktop", "[Desktop Entry]\nType=Application\nExec=a\n")
        self.write("data/app/org.a/app.json", '{"exec": ["b"]}')
        self.assertEqual(find_applications(self.root)["org.a"].command, ("b",))

    def test_changes_are_seen_without_parsing(self) -> None:
        seen = [fingerprint(self.root)]
        for change in (
            lambda: self.write("data/app/org.a/app.json", "{}"),
            lambda: self.write("data/app/org.a/app.json", '{"exec": ["b"]}'),
            lambda: self.write("usr/share/applications/a.desktop", ""),
            lambda: shutil.rmtree(f"{self.root}/data/app/org.a"),
        ):
            change()
            self.assertEqual(fingerprint(self.root), fingerprint(self.root))
            self.assertNotIn(fingerprint(self.root), seen)
            seen.append(fingerprint(self.root))

    def test_what_cannot_be_used_is_left_out(self) -> None:
        self.patch(apps, "MAX_MANIFEST_BYTES", 300)
        for package, manifest in (
            ("org.a", "{"),
            ("org.b", "[]"),
            ("org.c", '{"exec": []}'),
            ("org.d", '{"exec": [1]}'),
            ("org.e", '{"exec": ["x"], "icon": "missing.png"}'),
            ("org.f", " " * 301),
            ("nodots", '{"exec": ["x"]}'),
        ):
            self.write(f"data/app/{package}/app.json", manifest)
        os.mkdir(f"{self.root}/data/app/org.g")
        head = "[Desktop Entry]\nType=Application\nExec=x\n"
        for name, entry in (
            ("a.desktop", head + "NoDisplay=true\n"),
            ("b.desktop", head + "Hidden=true\n"),
            ("c.desktop", "[Desktop Entry]\nType=Link\n"),
            ("d.desktop", "no section"),
            ("e.desktop", "[Other]\nType=Application\n"),
            ("f.desktop", b"\xff\xfe"),
            ("g.desktop", "[Desktop Entry]\nType=Application\nExec='unclosed\n"),
            ("h.txt", head),
        ):
            self.write(f"usr/share/applications/{name}", entry)
        self.assertEqual(find_applications(self.root), {})


class TaskTests(TestCase):
    def setUp(self) -> None:
        self.root = tempfile.mkdtemp(prefix="ag-")
        self.addCleanup(shutil.rmtree, self.root)
        self.changes: list[tuple[list[int], list[int]]] = []
        self.table = TaskTable(reactor, self.root, dict(os.environ), self.changed)
        self.addCleanup(lambda: self.table.stop())

    def changed(self, changed: list[Task], removed: list[Task]) -> None:
        self.changes.append(([task.id for task in changed], [task.id for task in removed]))

    def app(self, *command: str, package: str = "org.a") -> GuestApplication:
        return GuestApplication(package, "A", command)

    async def test_an_application_runs_and_ends(self) -> None:
        task = self.table.launch(self.app("sh", "-c", "echo $0 > out; exit 3", "%u"), "uri", 0, None)
        self.assertEqual((task.id, task.stack, self.table.focused), (1, tasks.DEFAULT_STACK, 1))
        await task.ended
        self.assertEqual(Path(f"{self.root}/out").read_text(), "uri\n")
        self.assertEqual((self.table.tasks, self.table.focused), ({}, 0))
        self.assertEqual(self.changes, [([1], []), ([], [1])])

    async def test_a_running_one_comes_to_the_front(self) -> None:
        first = self.table.launch(self.app("sleep", "100"), "", 2, (1, 2, 3, 4))
        self.table.launch(self.app("sleep", "100", package="org.b"), "", 0, None)
        self.assertIs(self.table.launch(self.app("sleep", "100"), "", 0, None), first)
        self.assertEqual(self.table.focused, first.id)
        self.table.focus(2)
        self.table.resize(1, (5, 6, 7, 8))
        self.assertEqual((self.table.focused, first.frame, first.stack), (2, (5, 6, 7, 8), 2))

    async def test_removing_ends_the_whole_group(self) -> None:
        self.patch(tasks, "STOP_GRACE_S", 0.1)
        command = "trap '' TERM; sleep 1000 & echo $! > child; wait; wait"
        task = self.table.launch(self.app("sh", "-c", command), "", 0, None)
        child = await until(
            lambda: (Path(self.root) / "child").exists() and (Path(self.root) / "child").read_text()
        )
        await self.table.remove(task.id)
        await until(lambda: _state(int(child)) in ("", "Z"))

    async def test_unknown_tasks(self) -> None:
        for call in (
            self.table.focus,
            self.table.remove,
            lambda number: self.table.resize(number, (0, 0, 0, 0)),
        ):
            with self.assertRaises(UnknownTask):
                call(9)

    async def test_what_cannot_be_started_is_said(self) -> None:
        with self.assertRaises(LaunchFailed) as caught:
            self.table.launch(self.app("/nonexistent/program"), "", 0, None)
        self.assertIn("Failed to execute process /nonexistent/program", str(caught.exception))
        self.patch(tasks, "MAX_TASKS", 0)
        with self.assertRaises(LaunchFailed):
            self.table.launch(self.app("true"), "", 0, None)
        self.assertEqual(self.changes, [])


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class InitTests(TestCase):
    """Process 1 of a pid namespace of its own."""

    timeout = 60

    async def test_orphans_are_reaped_and_stop_signals_stop(self) -> None:
        need_root()
        need_tool("unshare")
        for number in (signal.SIGTERM, signal.SIGPWR):
            await self.run_once(number)

    async def run_once(self, number: int) -> None:
        root = tempfile.mkdtemp(prefix="ag-")
        self.addCleanup(shutil.rmtree, root)
        os.makedirs(f"{root}/dev")
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "anbox_tw.guest"]
        guest = subprocess.Popen(
            [*command, "--dev", f"{root}/dev", "--root", root],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.addCleanup(self.end, guest)
        init = int(await until(lambda: _children(guest.pid)))
        await until(lambda: os.path.exists(f"{root}/dev/anbox_guest"))
        # Enter the namespace and leave an orphan there.
        orphan = "(sleep 0.1; exit 3) & exit 0"
        enter = ["nsenter", "--target", str(init), "--pid", "--mount", "sh", "-c", orphan]
        await deferToThread(subprocess.run, enter, check=True)
        zombies = "ps -A -o stat= | grep -c ^Z"
        await deferToThread(subprocess.run, ["sleep", "0.3"], check=True)
        seen = await deferToThread(
            subprocess.run,
            ["nsenter", "--target", str(init), "--pid", "--mount", "sh", "-c", zombies],
            capture_output=True,
        )
        self.assertEqual(seen.stdout.strip(), b"0")
        os.kill(init, number)
        output, _ = await deferToThread(guest.communicate, None, 20)
        self.assertEqual(guest.returncode, 0, output)
        self.assertIn(b"Main loop terminated", output)
        self.assertFalse(os.path.exists(f"{root}/dev/anbox_guest"))

    def end(self, guest: Any) -> None:
        if guest.poll() is None:
            guest.kill()
            guest.wait()
        guest.stdout.close()


def _children(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
    except OSError:
        return ""
