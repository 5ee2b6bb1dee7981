"""A whole session over real sockets: guest, manager and callers are played by the test, adb is real."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from anbox_tw.errors import AlreadyRunning, ExitCode, NetworkError, NotRunning, PermissionRefused
from anbox_tw.interfaces import IClipboard, IConnectionCreator
from anbox_tw.network import RuntimePaths, free_port
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.rpc import RemoteError
from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb
from anbox_tw.rpc._pb import anbox_session_pb2 as session_pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void
from anbox_tw.session import bridge as bridge_module
from anbox_tw.session.client import SessionClient, connect
from anbox_tw.session.errors import GuestNotConnected
from anbox_tw.session.service import SessionService, SessionSettings
from tests.qemu.scripted import RealAdb
from tests.qemu.test_adb import End
from tests.session.fakes import FakeManagers
from tests.session.guest import BridgeGuest, PipeGuest, until
from tests.support import adb_binaries


def _stop(adb: RealAdb) -> Deferred[None]:
    return ensureDeferred(adb.stop())


class SessionCase(TestCase):
    """One session in a runtime directory of its own."""

    def setUp(self) -> None:
        self.runtime = tempfile.mkdtemp(prefix="as-")
        self.addCleanup(shutil.rmtree, self.runtime, ignore_errors=True)
        home = tempfile.mkdtemp(prefix="as-")
        self.addCleanup(shutil.rmtree, home, ignore_errors=True)
        self.token = f"{home}/token"
        self.managers = FakeManagers(answer=True)
        self.events: list[tuple[str, str, str]] = []
        self.stops: list[str] = []
        self.session = self.make()

    def make(self, **settings: Any) -> SessionService:
        settings.setdefault("paths", RuntimePaths(self.runtime))
        settings.setdefault("adb_server", AdbServerAddress(port=free_port()))
        settings.setdefault("console_token", self.token)
        session = SessionService(
            reactor, SessionSettings(**settings), self.managers.connect, stop=self.stops.append
        )
        session.observe(lambda *event: self.events.append(event))
        self.addCleanup(session.stopService)
        return session

    async def client(self, session: SessionService | None = None) -> SessionClient:
        client = await connect(reactor, (session or self.session).paths)
        self.addCleanup(client.close)
        return client

    async def guest(self) -> BridgeGuest:
        guest = await BridgeGuest().connect(self.session.paths.anbox_bridge)
        self.addCleanup(guest.channel.close)
        await until(lambda: self.session.bridge.connected)
        return guest


class LifeTests(SessionCase):
    async def test_sockets_and_request(self) -> None:
        self.session.startService()
        self.session.startService()
        for name, path in self.session.sockets().items():
            mode = os.stat(path).st_mode
            self.assertTrue(stat.S_ISSOCK(mode), name)
            expected = {"control": 0o600, "anbox_audio": 0o666}.get(name.partition("/")[0], 0o660)
            if name.startswith("input/"):
                expected = 0o666
            self.assertEqual(stat.S_IMODE(mode), expected)
        (request,) = self.managers.made[0].requests
        self.assertEqual(request.instance, "default")
        self.assertEqual(
            dict(request.bind_mounts),
            {
                self.session.paths.qemu_pipe: "dev/qemu_pipe",
                self.session.paths.anbox_bridge: "dev/anbox_bridge",
                self.session.paths.anbox_audio: "dev/anbox_audio",
                self.session.paths.input: "dev/input",
            },
        )
        self.assertEqual(request.read_only, ("dev/input",))
        self.assertEqual(request.devices, (("/dev/fuse", 0o666),))
        self.assertIn("ro.boot.fake_battery=1", request.extra_properties)
        await self.session.stopService()
        self.assertEqual(self.managers.made[0].stops, 1)
        self.assertEqual(os.listdir(self.runtime), [])
        self.session.startService()
        await self.session.stopService()
        self.assertEqual(len(self.managers.made), 2)

    async def test_directories_of_others_stay(self) -> None:
        other = self.make(paths=RuntimePaths(self.runtime, "second"))
        os.mkdir(f"{self.runtime}/anbox", 0o750)
        self.session.startService()
        other.startService()
        with open(f"{self.session.paths.base}/kept", "w"):
            pass
        await other.stopService()
        self.assertEqual(sorted(os.listdir(f"{self.runtime}/anbox")), ["input", "kept", "sockets"])
        await self.session.stopService()
        self.assertEqual(os.listdir(f"{self.runtime}/anbox"), ["kept"])

    async def test_levels_one_by_one_with_both_adbs(self) -> None:
        for version in ("29", "36"):
            adb = RealAdb(adb_binaries()[version], scan=False)
            self.addCleanup(_stop, adb)
            session = self.session = self.make(adb_server=AdbServerAddress(port=adb.port))
            session.startService()
            client = await self.client()
            info = await client.info()
            self.assertEqual((info["live"], info["ready"], info["booted"]), (True, False, False))
            self.assertEqual(info["serial"], f"emulator-{info['console_port']}")
            self.assertEqual(info["adb_port"], info["console_port"] + 1)
            seen: list[dict[str, Any]] = []
            await client.watch(seen.append)
            pipe_guest = PipeGuest(session.paths.qemu_pipe)
            pipe_guest.open()
            await adb.run("start-server")
            await until(lambda: session.state.levels.ready)
            self.assertEqual(await adb.devices(), {info["serial"]: "device"})
            guest = await self.guest()
            guest.booted()
            await until(lambda: session.state.levels.booted)
            info = await client.info()
            self.assertEqual((info["live"], info["ready"], info["booted"]), (True, True, True))
            self.assertEqual(info["waiting_for"], "")
            self.assertTrue(info["details"]["first_boot"])
            self.assertEqual(info["container"]["pid"], 4711)
            self.assertEqual(info["container"]["details"], {"isolation": "full"})
            await until(lambda: any(event["name"] == "booted" for event in seen if event["kind"] == "level"))
            # Gone with the server and back with the next, which nobody but adb itself starts.
            await adb.run("kill-server")
            await until(lambda: not session.state.levels.ready)
            self.assertTrue(session.state.levels.booted)
            await adb.run("start-server")
            await until(lambda: session.state.levels.ready, 3.0)
            pipe_guest.stop()
            await session.stopService()
            await until(lambda: not client.channel.peer.connected)

    async def test_the_manager_is_lost_and_comes_back(self) -> None:
        self.session.startService()
        guest = await self.guest()
        guest.booted()
        guest.send(application_list_update={"applications": [{"name": "A", "package": "a"}]})
        await until(lambda: self.session.bridge.applications)
        self.managers.answer = False
        self.managers.made[0].lose("killed")
        # Level and reports go with the container, and so does the guest's connection.
        self.assertFalse(self.session.state.levels.booted)
        self.assertEqual(self.session.bridge.applications, {})
        await guest.channel.when_closed()
        client = await self.client()
        info = await client.info()
        self.assertIn("killed", info["container"]["failure"])
        self.assertIn("killed", info["waiting_for"])
        self.managers.answer = True
        await until(lambda: len(self.managers.dialled) == 2)
        await until(lambda: self.session.state.phase.value == "running")
        self.assertEqual((await client.info())["container"].get("failure", ""), "")
        names = [name for kind, name, _ in self.events if kind == "phase"]
        self.assertEqual(
            names,
            ["connecting", "starting", "running", "waiting", "connecting", "starting", "running"],
        )

    async def test_standalone_needs_no_manager(self) -> None:
        session = self.session = self.make(standalone=True)
        session.startService()
        guest = await self.guest()
        guest.booted(first=False)
        await until(lambda: session.state.levels.booted)
        self.assertEqual(self.managers.dialled, [])
        await session.stopService()
        self.assertFalse(session.state.levels.live)

    async def test_single_window_shows_the_application_manager(self) -> None:
        self.session = self.make(standalone=True, single_window=True)
        self.session.startService()
        guest = await self.guest()
        guest.booted()
        await until(lambda: guest.calls)
        ((name, request),) = guest.calls
        self.assertEqual(name, "launch_application")
        self.assertEqual(request.intent.package, "org.anbox.appmgr")
        self.assertEqual(request.intent.component, "org.anbox.appmgr.AppViewActivity")

    async def test_two_instances_side_by_side(self) -> None:
        other = self.make(paths=RuntimePaths(self.runtime, "second"))
        self.session.startService()
        other.startService()
        self.assertNotEqual(self.session.adb.port, other.adb.port)
        self.assertEqual((await (await self.client(other)).info())["instance"], "second")
        await other.stopService()
        self.assertEqual((await (await self.client()).info())["instance"], "default")


class RefusalTests(SessionCase):
    async def test_a_second_session_of_the_instance(self) -> None:
        self.session.startService()
        second = self.make()
        with self.assertRaises(AlreadyRunning) as caught:
            second.startService()
        self.assertIn(f"already running, pid {os.getpid()}, command ", str(caught.exception))
        self.assertEqual(caught.exception.exit_code, ExitCode.FAILED)
        # The first one is as it was.
        self.assertTrue((await (await self.client()).info())["live"])
        for path in (*self.session.sockets().values(), self.session.paths.input):
            self.assertTrue(os.path.exists(path))

    async def test_a_start_that_fails_leaves_nothing(self) -> None:
        taken = socket.socket()
        self.addCleanup(taken.close)
        taken.bind(("127.0.0.1", 5690))
        taken.listen()
        session = self.make(console_port=5690)
        with self.assertRaises(NetworkError) as caught:
            session.startService()
        self.assertIn("5690", str(caught.exception))
        # At once: the process may end before the reactor's next turn.
        self.assertEqual(os.listdir(self.runtime), [])
        self.assertEqual(self.managers.dialled, [])

    async def test_an_unwritable_runtime_path(self) -> None:
        blocked = f"{self.runtime}/file"
        with open(blocked, "w"):
            pass
        session = self.make(paths=RuntimePaths(blocked))
        with self.assertRaises(PermissionRefused) as caught:
            session.startService()
        self.assertIn(blocked, str(caught.exception))

    async def test_garbage_on_each_socket_ends_that_connection_alone(self) -> None:
        self.session.startService()
        client = await self.client()
        for name, path in self.session.sockets().items():
            garbage: End = await connectProtocol(UNIXClientEndpoint(reactor, path), End())
            garbage.write(os.urandom(3) + b"\xff" + os.urandom(2000))
            try:
                await garbage.end()
            except Exception as error:
                self.fail(f"{name}: {error!r}")
        self.assertTrue((await client.info())["live"])
        guest = await self.guest()
        guest.booted()
        await until(lambda: self.session.state.levels.booted)

    async def test_no_session_is_said(self) -> None:
        with self.assertRaises(NotRunning) as caught:
            await connect(reactor, self.session.paths)
        self.assertIn("anbox up", str(caught.exception))
        other = RuntimePaths(self.runtime, "other")
        with self.assertRaises(NotRunning) as caught:
            await connect(reactor, other)
        self.assertIn("--instance other", str(caught.exception))


class ControlTests(SessionCase):
    async def booted(self) -> tuple[SessionClient, BridgeGuest]:
        self.session.startService()
        guest = await self.guest()
        guest.booted()
        await until(lambda: self.session.state.levels.booted)
        return await self.client(), guest

    async def test_launch_reaches_the_guest_and_its_answer_the_caller(self) -> None:
        client, guest = await self.booted()
        await client.launch(package="org.a", component=".Main", categories=("c",), stack=2, uri="u")
        name, request = guest.calls.pop()
        self.assertEqual(name, "launch_application")
        self.assertEqual((request.intent.package, request.intent.component), ("org.a", ".Main"))
        self.assertEqual(
            (request.intent.uri, list(request.intent.categories), request.stack), ("u", ["c"], 2)
        )
        self.assertFalse(request.HasField("launch_bounds"))
        self.assertFalse(request.intent.HasField("action"))

        def refuse(request: Any) -> None:
            raise NetworkError("Failed to execute process")

        guest.answer = refuse
        with self.assertRaises(RemoteError) as caught:
            await client.launch(package="org.a")
        self.assertIn("Failed to execute process", str(caught.exception))

    async def test_launch_is_checked_before_the_guest_hears_of_it(self) -> None:
        self.session.startService()
        client = await self.client()
        with self.assertRaises(RemoteError) as caught:
            await client.launch(package="a")
        self.assertEqual(caught.exception.code, "ANBOX-S002")
        self.assertEqual(caught.exception.exit_code, ExitCode.NOT_RUNNING)
        for wrong in ({}, {"package": "a", "stack": 3}):
            with self.assertRaises(RemoteError) as caught:
                await client.launch(**wrong)  # type: ignore[arg-type]
            self.assertEqual(caught.exception.code, "ANBOX-S003")

    async def test_applications_and_clipboard(self) -> None:
        client, guest = await self.booted()
        apps = [
            {"name": "B", "package": "b"},
            {"name": "A", "package": "a", "launch_intent": {"component": ".M"}},
        ]
        guest.send(application_list_update={"applications": apps})
        await until(lambda: self.session.bridge.applications)
        self.assertEqual(
            await client.applications(),
            [
                {"name": "A", "package": "a", "component": ".M"},
                {"name": "B", "package": "b", "component": ""},
            ],
        )
        self.assertEqual(await client.get_clipboard(), "")
        await client.set_clipboard("ü")
        self.assertEqual(await client.get_clipboard(), "ü")

    async def test_the_device_is_read_and_changed(self) -> None:
        self.session.startService()
        client = await self.client()
        self.assertEqual((await client.device("get", part="battery"))["capacity"], 100)
        state = await client.device("set", part="battery", values={"capacity": "5", "ac": "off"})
        self.assertEqual((state["capacity"], state["ac"]), (5, False))
        self.assertEqual(self.session.device.battery.state.capacity, 5)
        self.session.verbs.register("later", lambda word: deferLater(reactor, 0, lambda: [word]))
        self.assertEqual(await client.device("later", word="x"), ["x"])
        for verb, arguments, part_of_cause in (
            ("warp", {}, "knows no 'warp'"),
            ("get", {"part": "wings"}, "no 'wings'"),
            ("get", {"piece": "battery"}, "piece"),
            ("set", {"part": "battery", "values": {"capacity": 101}}, "0 to 100"),
            ("set", {"part": "battery", "values": []}, "object"),
        ):
            with self.assertRaises(RemoteError) as caught:
                await client.device(verb, **arguments)
            self.assertIn(part_of_cause, str(caught.exception))
        with self.assertRaises(RemoteError):
            await client.channel.call("device", session_pb.DeviceRequest(verb="get", arguments="["), Void)
        with self.assertRaises(ValueError):
            self.session.verbs.register("get", dict)

    async def test_stop_is_answered_and_then_done(self) -> None:
        client, _ = await self.booted()
        await client.stop("enough")
        await until(lambda: self.stops)
        self.assertIn(f"pid {os.getpid()}: enough", self.stops[0])

    async def test_a_session_without_a_program_stops_itself(self) -> None:
        settings = SessionSettings(
            paths=RuntimePaths(self.runtime, "alone"), standalone=True, console_token=self.token
        )
        session = SessionService(reactor, settings, self.managers.connect)
        session.startService()
        client = await self.client(session)
        await client.stop()
        await client.when_lost()
        await until(lambda: not session.running and not os.path.exists(session.paths.base))

    async def test_other_users_are_refused(self) -> None:
        self.session.startService()
        self.session.control._allowed_uids = {12345}
        client = await self.client()
        with self.assertRaises(RemoteError) as caught:
            await client.info()
        self.assertEqual(caught.exception.exit_code, ExitCode.REFUSED)

    async def test_a_watcher_that_leaves_is_forgotten(self) -> None:
        self.session.startService()
        client = await self.client()
        await client.watch(lambda event: None)
        await client.watch(lambda event: None)
        self.assertEqual(len(self.session.control._watchers), 1)
        await client.close()
        await until(lambda: not self.session.control._watchers)


class BridgeTests(SessionCase):
    def test_interfaces(self) -> None:
        verifyObject(IConnectionCreator, self.session.bridge)
        verifyObject(IClipboard, self.session.clipboard)

    async def test_the_guest_shares_the_clipboard(self) -> None:
        self.session.startService()
        guest = await self.guest()
        empty = await guest.channel.call("get_clipboard_data", Void(), pb.ClipboardData)
        self.assertFalse(empty.HasField("text"))
        await guest.channel.call("set_clipboard_data", pb.ClipboardData(text="from Android"), Void)
        self.assertEqual(await self.session.clipboard.get_text(), "from Android")
        answer = await guest.channel.call("get_clipboard_data", Void(), pb.ClipboardData)
        self.assertEqual(answer.text, "from Android")

    async def test_tasks(self) -> None:
        self.session.startService()
        guest = await self.guest()
        bridge = self.session.bridge
        await bridge.set_focused_task(3)
        await bridge.remove_task(4)
        await bridge.resize_task(5, bridge_module.Rect(1, 2, 3, 4))
        names = [name for name, _ in guest.calls]
        self.assertEqual(names, ["set_focused_task", "remove_task", "resize_task"])
        self.assertEqual(guest.calls[2][1].resize_mode, 3)
        self.assertEqual(guest.calls[2][1].rect.bottom, 4)
        await bridge.launch_application(package="a", bounds=bridge_module.Rect(1, 2, 3, 4))
        self.assertEqual(guest.calls[3][1].launch_bounds.right, 3)

    async def test_each_call_has_a_result_of_its_own(self) -> None:
        self.session.startService()
        guest = await self.guest()
        pending: list[Deferred[Any]] = []

        def later(request: Any) -> Deferred[Any]:
            pending.append(Deferred())
            return pending[-1]

        guest.answer = later
        first = self.session.bridge.remove_task(1)
        second = self.session.bridge.remove_task(2)
        await until(lambda: len(pending) == 2)
        pending[1].errback(NetworkError("no such task"))
        await self.assertFailure(second, RemoteError)
        self.assertNoResult(first)
        pending[0].callback(None)
        await first

    async def test_without_a_guest_calls_fail_at_once(self) -> None:
        self.session.startService()
        with self.assertRaises(GuestNotConnected):
            await self.session.bridge.remove_task(1)

    async def test_a_second_client_is_refused_while_the_first_lives(self) -> None:
        self.session.startService()
        first = await self.guest()
        second = await BridgeGuest().connect(self.session.paths.anbox_bridge)
        await second.channel.when_closed()
        first.booted()
        await until(lambda: self.session.state.booted)

    async def test_a_dead_client_is_replaced(self) -> None:
        self.session.startService()
        first = await self.guest()
        # It does not answer: silent for a call's whole time.
        self.patch(bridge_module, "CALL_TIMEOUT_S", 0.1)
        first.answer = lambda request: Deferred()
        with self.assertRaises(Exception):
            await self.session.bridge.remove_task(1)
        second = await BridgeGuest().connect(self.session.paths.anbox_bridge)
        self.addCleanup(second.channel.close)
        await first.channel.when_closed()
        second.booted()
        await until(lambda: self.session.state.booted)
        self.assertEqual(
            [name for kind, name, _ in self.events if kind == "bridge"],
            ["connected", "disconnected", "connected", "boot_finished"],
        )

    async def test_a_client_whose_process_is_gone_is_replaced(self) -> None:
        self.session.startService()
        first = await self.guest()
        self.patch(os, "kill", self._no_such_process)
        second = await BridgeGuest().connect(self.session.paths.anbox_bridge)
        self.addCleanup(second.channel.close)
        await first.channel.when_closed()
        second.booted()
        await until(lambda: self.session.state.booted)

    @staticmethod
    def _no_such_process(pid: int, signal: int) -> None:
        raise ProcessLookupError

    async def test_windows_and_applications_come_and_go(self) -> None:
        self.session.startService()
        guest = await self.guest()

        def window(task: int) -> dict[str, Any]:
            return {
                "display_id": 0,
                "has_surface": True,
                "package_name": "a",
                "frame_left": 1,
                "frame_top": 2,
                "frame_right": 3,
                "frame_bottom": 4,
                "task_id": task,
                "stack_id": 2,
            }

        bridge = self.session.bridge
        told: list[tuple[str, Any]] = []
        leave = bridge.observe(lambda kind, value: told.append((kind, value)))
        guest.send(window_state_update={"windows": [window(1), window(2)]})
        guest.send(window_state_update={"windows": [window(2)], "removed_windows": [window(1), window(2)]})
        guest.send(application_list_update={"applications": [{"name": "", "package": ""}]})
        guest.send(
            application_list_update={
                "applications": [
                    {
                        "name": "A",
                        "package": "a",
                        "icon": b"png",
                        "launch_intent": {"action": "m", "categories": ["c"]},
                    }
                ]
            }
        )
        gone = [{"name": "unknown", "package": "a"}, {"name": "unknown", "package": "never"}]
        guest.send(application_list_update={"removed_applications": gone})
        await until(lambda: len(told) == 4)
        leave()
        leave()
        self.assertEqual(
            told,
            [
                ("windows", ([1, 2], [])),
                ("windows", ([2], [1])),
                ("applications", (["a"], [])),
                ("applications", ([], ["a", "never"])),
            ],
        )
        self.assertEqual(list(bridge.windows), [2])
        self.assertEqual(bridge.windows[2].frame, bridge_module.Rect(1, 2, 3, 4))

    async def test_a_hostile_guest_fills_nothing(self) -> None:
        self.patch(bridge_module, "MAX_APPLICATIONS", 2)
        self.patch(bridge_module, "MAX_WINDOWS", 0)
        self.patch(bridge_module, "MAX_ICON_BYTES", 2)
        self.session.startService()
        guest = await self.guest()
        apps = [{"name": "n" * 5000, "package": f"p{n}", "icon": b"icon"} for n in range(5)]
        guest.send(application_list_update={"applications": apps})
        guest.channel.send_event(b"\xff\xff")
        guest.booted()
        await until(lambda: self.session.state.booted)
        self.assertEqual(list(self.session.bridge.applications), ["p0", "p1"])
        app = self.session.bridge.applications["p0"]
        self.assertEqual((len(app.name), app.icon), (bridge_module.MAX_TEXT_CHARS, b""))

    async def test_all_icons_together_have_a_limit(self) -> None:
        self.patch(bridge_module, "MAX_ICONS_BYTES", 10)
        self.session.startService()
        guest = await self.guest()
        bridge = self.session.bridge

        def icons() -> dict[str, bytes]:
            return {package: app.icon for package, app in bridge.applications.items()}

        def app(package: str, icon: bytes) -> dict[str, Any]:
            return {"name": package, "package": package, "icon": icon}

        guest.send(application_list_update={"applications": [app("a", b"12345"), app("b", b"123456")]})
        await until(lambda: len(bridge.applications) == 2)
        self.assertEqual(icons(), {"a": b"12345", "b": b""})
        # What is replaced or removed makes room.
        guest.send(application_list_update={"applications": [app("a", b"1234"), app("b", b"123456")]})
        await until(lambda: icons() == {"a": b"1234", "b": b"123456"})
        guest.send(application_list_update={"removed_applications": [{"name": "unknown", "package": "b"}]})
        guest.send(application_list_update={"applications": [app("c", b"654321")]})
        await until(lambda: icons() == {"a": b"1234", "c": b"654321"})
        bridge.reset()
        self.assertEqual((bridge._icons_bytes, icons()), (0, {}))
