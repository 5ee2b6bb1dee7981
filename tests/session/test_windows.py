"""Tasks: what the session lists, tells and asks, with a guest played by the test."""

from __future__ import annotations

from typing import Any

from anbox_tw.errors import ExitCode
from anbox_tw.rpc import RemoteError
from anbox_tw.session.client import SessionClient
from anbox_tw.session.windows import stack_name
from tests.session.guest import BridgeGuest, until
from tests.session.test_service import SessionCase


def window(
    task: int, stack: int = 2, surface: bool = True, package: str = "org.a", right: int = 30
) -> dict[str, Any]:
    return {
        "display_id": 0,
        "has_surface": surface,
        "package_name": package,
        "frame_left": 1,
        "frame_top": 2,
        "frame_right": right,
        "frame_bottom": 40,
        "task_id": task,
        "stack_id": stack,
    }


class WindowTests(SessionCase):
    async def begin(self) -> tuple[SessionClient, BridgeGuest]:
        self.session.startService()
        guest = await self.guest()
        guest.booted()
        await until(lambda: self.session.state.levels.booted)
        return await self.client(), guest

    def told(self) -> list[tuple[str, str]]:
        return [(name, detail) for kind, name, detail in self.events if kind == "task"]

    async def test_listing_follows_the_originals_rules(self) -> None:
        client, guest = await self.begin()
        guest.send(application_list_update={"applications": [{"name": "Label", "package": "org.a"}]})
        windows = [
            window(3),
            window(1, surface=False),
            window(2, stack=1, package="org.b"),
            window(9, stack=7),
        ]
        guest.send(window_state_update={"windows": windows})
        await until(lambda: len(self.session.bridge.windows) == 4)
        listed = await client.device("tasks.list")
        self.assertEqual(
            [
                (task["task"], task["title"], task["stack"], task["surface"], task["window"])
                for task in listed
            ],
            [
                (1, "Label", "freeform", False, False),
                (2, "org.b", "fullscreen", True, False),
                (3, "Label", "freeform", True, True),
                (9, "Label", "7", True, False),
            ],
        )
        self.assertEqual(listed[0]["frame"], [1, 2, 30, 40])
        self.assertEqual(stack_name(-1), "-1")

    async def test_changes_are_told_once_each(self) -> None:
        _, guest = await self.begin()
        for update in (
            {"windows": [window(1), window(2)]},
            {"windows": [window(1)]},
            {"windows": [window(1, right=50)]},
            {"removed_windows": [window(2)]},
            # A task that an update both removes and reports stays.
            {"windows": [window(1, right=50)], "removed_windows": [window(1)]},
            {"windows": [window(4, package="org.d")]},
        ):
            guest.send(window_state_update=update)
        await until(lambda: 4 in self.session.bridge.windows)
        self.assertEqual(
            self.told(),
            [
                ("1", "added org.a"),
                ("2", "added org.a"),
                ("1", "changed org.a"),
                ("2", "removed org.a"),
                ("4", "added org.d"),
            ],
        )
        await guest.channel.close()
        await until(lambda: not self.session.bridge.connected)
        self.assertEqual(self.told()[5:], [("1", "removed org.a"), ("4", "removed org.d")])
        self.assertEqual(self.session.windows.listing(), [])

    async def test_what_is_asked_reaches_the_guest(self) -> None:
        client, guest = await self.begin()
        guest.send(window_state_update={"windows": [window(1)]})
        await until(lambda: self.session.bridge.windows)
        await client.device("tasks.focus", task=1)
        await client.device("tasks.resize", task=1, left=-5, top=0, right=10, bottom=20)
        await client.device("tasks.remove", task=1)
        focus, resize, remove = guest.calls
        self.assertEqual((focus[0], focus[1].id), ("set_focused_task", 1))
        self.assertEqual((resize[1].id, resize[1].resize_mode), (1, 3))
        rect = resize[1].rect
        self.assertEqual((rect.left, rect.top, rect.right, rect.bottom), (-5, 0, 10, 20))
        self.assertEqual((remove[0], remove[1].id), ("remove_task", 1))
        guest.calls.clear()
        side = {"left": 0, "top": 0, "right": 10, "bottom": 10}
        for verb, arguments, code in (
            ("tasks.focus", {"task": 2}, "ANBOX-S004"),
            ("tasks.remove", {"task": "x"}, "ANBOX-S004"),
            ("tasks.resize", {"task": 2, **side}, "ANBOX-S004"),
            ("tasks.resize", {"task": 1, **side, "right": 0}, "ANBOX-S003"),
            ("tasks.resize", {"task": 1, **side, "right": 1 << 40}, "ANBOX-S003"),
            ("tasks.resize", {"task": 1, **side, "right": 10.5}, "ANBOX-S003"),
            ("tasks.resize", {"task": 1, **side, "right": True}, "ANBOX-S003"),
            ("tasks.resize", {"task": 1}, "ANBOX-S003"),
        ):
            with self.assertRaises(RemoteError) as caught:
                await client.device(verb, **arguments)
            self.assertEqual((caught.exception.code, caught.exception.exit_code), (code, ExitCode.USAGE))
        self.assertEqual(guest.calls, [])

    async def test_the_stack_is_the_modes(self) -> None:
        client, guest = await self.begin()
        for stack in (0, 1, 2):
            await client.launch(package="org.a", stack=stack, bounds=(1, 2, 3, 4))
        requests = [request for name, request in guest.calls if name == "launch_application"]
        self.assertEqual([request.stack for request in requests], [2, 2, 2])
        self.assertEqual(requests[0].launch_bounds.bottom, 4)
        await self.session.stopService()
        self.session = self.make(single_window=True)
        client, guest = await self.begin()
        for stack in (0, 1, 2):
            await client.launch(package="org.a", stack=stack)
        await until(lambda: len(guest.calls) == 4)  # and the application manager's
        own = [request.stack for _, request in guest.calls if request.intent.package == "org.a"]
        self.assertEqual(own, [0, 1, 2])
        guest.send(window_state_update={"windows": [window(1)]})
        await until(lambda: self.session.bridge.windows)
        self.assertFalse((await client.device("tasks.list"))[0]["window"])

    async def test_applications_are_listed_before_and_after_the_guest(self) -> None:
        await self.session.stopService()
        state = f"{self.runtime}/state"
        self.session = self.make(state_path=state, launchers=f"{self.runtime}/launchers")
        client, guest = await self.begin()
        app = {
            "name": "Label",
            "package": "org.a",
            "icon": b"x",
            "launch_intent": {"action": "m", "component": ".M"},
        }
        guest.send(application_list_update={"applications": [app]})
        await until(lambda: self.session.bridge.applications)
        expected = {"name": "Label", "package": "org.a", "component": ".M", "intent": {"action": "m"}}
        listed = await client.device("apps.list")
        self.assertEqual(listed, [{**expected, "icon_bytes": 1, "reported": True}])
        await self.session.stopService()
        self.session = self.make(state_path=state)
        self.session.startService()
        client = await self.client()
        self.assertEqual(await client.device("apps.list"), [{**expected, "icon_bytes": 0, "reported": False}])
        self.assertEqual([app["package"] for app in await client.applications()], ["org.a"])
        with open(f"{self.runtime}/launchers/anbox-org-a.desktop") as file:
            text = file.read()
        self.assertIn(
            f"launch --start --instance=default --runtime-dir={self.runtime} --action=m --package=org.a", text
        )
