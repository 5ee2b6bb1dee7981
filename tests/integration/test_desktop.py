"""Applications, tasks, launchers and clipboard from the command line, with a real guest in each backend."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from ast import literal_eval
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support import Sandbox, eventually
from tests.session.buses import Bus
from tests.session.test_launchers import png
from tests.support import REPOSITORY, need_root, need_tool


class DesktopCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.box = Sandbox(self)
        bus = Bus(self)
        self.box.environment["DBUS_SESSION_BUS_ADDRESS"] = bus.address
        self.launchers = self.box.data / "applications/anbox"

    def say(self, *arguments: str, code: int = 0) -> str:
        done = self.box.anbox(*arguments)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout if code == 0 else done.stderr

    def on_bus(self, method: str, *arguments: str) -> str:
        """Call a method of the session's object; returns what gdbus prints."""
        where = ["--session", "--dest", "org.anbox", "--object-path", "/org/anbox"]
        done = self.box.run(
            [need_tool("gdbus"), "call", *where, "--method", f"org.anbox.{method}", *arguments]
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def listed(self, *arguments: str) -> Any:
        return json.loads(self.say(*arguments, "--json"))

    def install(self, package: str, name: str) -> None:
        """As a user would: push the application's directory."""
        manifest = json.dumps({"name": name, "exec": ["sleep", "10000"], "icon": "i.png"})
        line = (
            f"mkdir -p /data/app/{package}; python3 -c 'import sys; "
            f'sys.stdout.buffer.write(bytes.fromhex("{png().hex()}"))\' > /data/app/{package}/i.png; '
            f"printf %s {shlex.quote(manifest)} > /data/app/{package}/app.json"
        )
        self.say("shell", line)

    def applications_and_tasks(self) -> str:
        """Launch, list and end a task, and copy both ways; returns the number of the task that has ended."""
        self.install("org.example.notes", "Notes")
        eventually(
            lambda: "org.example.notes" in [app["package"] for app in self.listed("apps")], "it is listed"
        )
        self.on_bus(
            "ApplicationManager.Launch", "{'package': <'org.example.notes'>, 'component': <'.Main'>}", "''"
        )
        (task,) = eventually(lambda: self.listed("tasks", "list"), "it runs")
        self.assertEqual(json.loads(literal_eval(self.on_bus("Device.Call", "tasks.list", "{}"))[0])[0], task)
        self.on_bus("Device.Call", "tasks.remove", json.dumps({"task": task["task"]}))
        eventually(lambda: not self.listed("tasks", "list"), "it has ended")
        self.say("launch", "org.example.notes/.Main", "--stack", "fullscreen", "--bounds", "1,2,3,4")
        (task,) = eventually(lambda: self.listed("tasks", "list"), "it runs")
        self.assertEqual(
            (task["package"], task["title"], task["stack"], task["frame"]),
            ("org.example.notes", "Notes", "freeform", [1, 2, 3, 4]),
        )
        number = str(task["task"])
        self.say("tasks", "focus", number)
        self.say("tasks", "resize", number, "-10", "0", "300", "200")
        eventually(lambda: self.listed("tasks", "list")[0]["frame"] == [-10, 0, 300, 200], "it has moved")
        self.say("tasks", "remove", number)
        eventually(lambda: not self.listed("tasks", "list"), "it has ended")
        text = "from the host: ü\nsecond line"
        self.say("clipboard", "set", text)
        inside = f"PYTHONPATH={REPOSITORY} {sys.executable} -m anbox_tw.guest clipboard"
        self.assertEqual(self.say("shell", f"{inside} && {inside} 'from the guest'"), text + "\n")
        self.assertEqual(self.listed("clipboard", "get"), {"text": "from the guest"})
        return number


class ProcessTests(DesktopCase):
    def test_everything_and_the_launchers(self) -> None:
        validate = need_tool("desktop-file-validate")
        self.box.up("--launchers")
        self.box.booted()
        self.say("wait-ready")
        number = self.applications_and_tasks()
        self.assertIn("No application for 'org.none'", self.say("launch", "org.none", code=1))
        self.assertIn(f"there is no task {number}", self.say("tasks", "focus", number, code=2))
        self.install("org.example.my-notes", "My Notes")
        entry = self.launchers / "anbox-org-example-my+2dnotes.desktop"
        eventually(entry.exists, "the launcher is made")
        icon = self.launchers / "anbox-org-example-my+2dnotes.png"
        self.assertEqual(icon.read_bytes(), png())
        done = subprocess.run(
            [validate, *map(str, self.launchers.glob("*.desktop"))],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        # What a desktop does with it.
        (line,) = [line for line in entry.read_text().splitlines() if line.startswith("Exec=")]
        words = shlex.split(line.removeprefix("Exec="))
        self.assertEqual(words[words.index("launch") :][0], "launch")
        ran = self.box.run(words)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        eventually(lambda: self.listed("tasks", "list"), "the launcher has launched it")
        self.say("shell", "rm -r /data/app/org.example.my-notes")
        eventually(lambda: not entry.exists() and not icon.exists(), "the launcher has gone with it")
        self.say("down")
        self.assertEqual(self.box.leftovers(), [])
        # A click when nothing runs: the instance comes back as it was started, with the same data.
        notes = (self.launchers / "anbox-org-example-notes.desktop").read_text()
        (line,) = [line for line in notes.splitlines() if line.startswith("Exec=")]
        ran = self.box.run(shlex.split(line.removeprefix("Exec=")))
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertIn("starting it", ran.stderr)
        self.assertEqual([task["package"] for task in self.listed("tasks", "list")], ["org.example.notes"])
        self.say("down")
        self.assertEqual(self.box.leftovers(), [])
        self.assertTrue((self.launchers / "anbox-org-example-notes.desktop").exists())


class LxcTests(DesktopCase):
    def test_applications_and_tasks(self) -> None:
        need_root()
        need_tool("lxc-start")
        self.box.up("--backend", "lxc", "--rootfs", "host")
        self.box.booted()
        self.applications_and_tasks()
        self.say("down")
