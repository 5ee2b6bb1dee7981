"""``anbox launch``, ``apps``, ``tasks``, ``clipboard`` and ``wait-ready`` against a session whose guest the test plays."""

from __future__ import annotations

import json
from typing import Any

from anbox_tw.errors import NetworkError
from tests.cli.sessions import CommandCase
from tests.session.guest import until
from tests.session.test_windows import window


class LaunchTests(CommandCase):
    async def test_every_option_reaches_the_guest(self) -> None:
        guest = await self.boot()
        await self.anbox(
            *(
                "launch",
                "--action",
                "a",
                "--type",
                "t/x",
                "--uri",
                "u:1",
                "--package",
                "p.q",
                "--component",
                ".C",
            ),
            *("--category", "c1", "--category", "c2", "--bounds", "-1,2,3,4", "--stack", "freeform"),
            "--use-system-dbus",
        )
        intent = guest.calls[-1][1].intent
        self.assertEqual(
            (
                intent.action,
                intent.type,
                intent.uri,
                intent.package,
                intent.component,
                list(intent.categories),
            ),
            ("a", "t/x", "u:1", "p.q", ".C", ["c1", "c2"]),
        )
        self.assertEqual(guest.calls[-1][1].launch_bounds.left, -1)
        await self.anbox("launch", "p.q/.C", "--component=.C")
        self.assertEqual(guest.calls[-1][1].intent.component, ".C")
        self.assertFalse(guest.calls[-1][1].HasField("launch_bounds"))

        def refuse(request: Any) -> None:
            raise NetworkError("Failed to execute process")

        guest.answer = refuse
        self.assertIn("Failed to execute process", await self.anbox("launch", "p.q", code=1))

    def test_wrong_usage(self) -> None:
        for arguments in (
            ["launch"],
            ["launch", "a/.B", "--package", "b"],
            ["launch", "a/.B", "--component", ".C"],
            ["launch", "a", "--bounds", "1,2,3"],
            ["launch", "a", "--bounds", "3,2,1,4"],
            ["launch", "a", "--stack", "top"],
            ["tasks", "focus", "x"],
        ):
            self.wrong_usage(*arguments)

    async def test_it_waits_for_the_boot(self) -> None:
        self.session.startService()
        guest = await self.guest()
        self.assertIn("not booted within", await self.anbox("launch", "a.b", "--timeout", "0", code=4))
        self.assertIn("not booted within", await self.anbox("wait-ready", "--timeout", "0", code=4))
        program = self.start("launch", "a.b")
        await until(lambda: len(self.session.control._watchers) == 1)
        guest.booted()
        self.assertEqual(await program.ended, 0, program.err)
        self.assertEqual(guest.calls[-1][1].intent.package, "a.b")
        await self.anbox("wait-ready")

    async def test_nothing_runs(self) -> None:
        for arguments in (
            ["apps"],
            ["tasks", "list"],
            ["clipboard", "get"],
            ["launch", "org.x", "-i", "two"],
        ):
            self.assertIn("start it with 'anbox up", await self.anbox(*arguments, code=3))


class ListTests(CommandCase):
    async def test_applications(self) -> None:
        guest = await self.boot()
        self.assertEqual(await self.json("apps"), [])
        apps = [{"name": "B\x1b[2J[bold]", "package": "b", "icon": b"x"}, {"name": "A", "package": "a"}]
        guest.send(application_list_update={"applications": apps})
        await until(lambda: self.session.bridge.applications)
        self.assertEqual([app["package"] for app in await self.json("apps")], ["a", "b"])
        self.session.bridge.reset()
        text = await self.anbox("apps")
        # What the guest says is neither markup nor a command to the terminal.
        self.assertIn("B\N{REPLACEMENT CHARACTER}[2J[bold]", text)
        self.assertIn("not yet", text)
        self.assertEqual(await self.json("apps", "--running"), [])

    async def test_tasks(self) -> None:
        guest = await self.boot()
        watcher = self.start("tasks", "watch", "--json", "--count", "2")
        words = self.start("tasks", "watch", "--count", "1")
        await until(lambda: len(self.session.control._watchers) == 2)
        guest.send(window_state_update={"windows": [window(7), window(8, stack=1)]})
        self.assertEqual(await watcher.ended, 0)
        self.assertEqual(
            [json.loads(line) for line in watcher.out.splitlines()],
            [{"task": number, "change": "added", "package": "org.a"} for number in (7, 8)],
        )
        self.assertEqual((await words.ended, words.out), (0, "added 7 org.a\n"))
        self.assertEqual([task["task"] for task in await self.json("tasks", "list")], [7, 8])
        self.assertIn("1,2,30,40", await self.anbox("tasks", "list"))
        await self.anbox("tasks", "resize", "7", "-10", "-20", "5", "6", "--instance", "default")
        rect = guest.calls[-1][1].rect
        self.assertEqual((rect.left, rect.top, rect.right, rect.bottom), (-10, -20, 5, 6))
        self.assertIn("there are: 7, 8", await self.anbox("tasks", "remove", "9", code=2))

    async def test_a_watcher_hears_of_the_sessions_end(self) -> None:
        await self.boot()
        watchers = [self.start("tasks", "watch"), self.start("clipboard", "watch")]
        await until(lambda: len(self.session.control._watchers) == 2 and watchers[1].out)
        await self.session.stopService()
        for watcher in watchers:
            self.assertEqual(await watcher.ended, 3)
            self.assertIn("the session has ended", watcher.err)


class ClipboardTests(CommandCase):
    async def test_get_and_set(self) -> None:
        await self.boot()
        await self.anbox("clipboard", "set", "ü\nx")
        self.assertEqual(await self.anbox("clipboard", "get"), "ü\nx")
        await self.anbox("clipboard", "set", stdin="from standard input\n")
        self.assertEqual(await self.json("clipboard", "get"), {"text": "from standard input\n"})
        await self.anbox("clipboard", "set", "-", stdin="")
        self.assertEqual(await self.anbox("clipboard", "get"), "")
        self.assertIn("more than", await self.anbox("clipboard", "set", stdin="x" * (1 << 20) + "y", code=2))

    async def test_watch(self) -> None:
        guest = await self.boot()
        watcher = self.start("clipboard", "watch", "--count", "3")
        await until(lambda: watcher.out == "\n")
        await self.session.clipboard.set_text("host")
        await until(lambda: watcher.out == "\nhost\n")
        from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb
        from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void

        await guest.channel.call("set_clipboard_data", pb.ClipboardData(text="guest"), Void)
        self.assertEqual((await watcher.ended, watcher.out), (0, "\nhost\nguest\n"))
