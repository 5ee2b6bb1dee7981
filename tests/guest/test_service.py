"""The guest against a real session and the real adb 29 and 36; nothing is played by the test but the container."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from anbox_tw.errors import NotRunning
from anbox_tw.guest import bridge as bridge_module
from anbox_tw.guest import service as service_module
from anbox_tw.guest.__main__ import main
from anbox_tw.guest.control import clipboard
from anbox_tw.guest.service import GuestService
from anbox_tw.network import RuntimePaths
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.rpc import RemoteError
from anbox_tw.session.bridge import Rect
from anbox_tw.session.service import SessionService, SessionSettings
from tests.qemu.scripted import RealAdb
from tests.qemu.test_adb import End
from tests.session.guest import until
from tests.support import adb_binaries


class GuestCase(TestCase):
    timeout = 90
    version = "36"

    async def start(self) -> None:
        self.home = tempfile.mkdtemp(prefix="ag-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.root = f"{self.home}/root"
        os.makedirs(f"{self.root}/dev")
        os.mkdir(f"{self.home}/run", 0o700)
        self.adb = RealAdb(adb_binaries()[self.version], scan=False)
        self.addCleanup(lambda: ensureDeferred(self.adb.stop()))
        self.guest = self.make_guest()
        self.session = self.make_session()
        self.session.startService()

    def make_guest(self) -> GuestService:
        guest = GuestService(reactor, f"{self.root}/dev", self.root)
        self.addCleanup(guest.stopService)
        return guest

    def make_session(self) -> SessionService:
        settings = SessionSettings(
            paths=RuntimePaths(f"{self.home}/run"),
            adb_server=AdbServerAddress(port=self.adb.port),
            console_token=f"{self.home}/token",
            standalone=True,
        )
        session = SessionService(reactor, settings, Deferred)
        self.addCleanup(session.stopService)
        for name, path in session.guest_sockets().items():
            link = f"{self.root}/dev/{name}"
            if not os.path.islink(link):
                os.symlink(path, link)
        return session

    async def ready(self) -> None:
        await self.adb.run("start-server")
        await until(lambda: self.session.state.levels.ready)

    def install(self, package: str, *command: str) -> None:
        directory = Path(self.root) / "data/app" / package
        directory.mkdir(parents=True)
        (directory / "app.json").write_text(json.dumps({"name": package.upper(), "exec": command}))

    async def shell(self, command: str) -> tuple[str, int]:
        return await self.adb.run("-s", self.session.adb.serial, "shell", command)


class Adb36Tests(GuestCase):
    async def test_shell_and_files(self) -> None:
        await self.start()
        self.guest.startService()
        await self.ready()
        self.assertEqual(await self.shell("echo hi; exit 7"), ("hi\n", 7))
        self.assertEqual(await self.shell("echo $ANDROID_DATA"), (f"{self.root}/data\n", 0))
        data = os.urandom(3_000_000)
        local = Path(self.home) / "local"
        local.write_bytes(data)
        said, code = await self.adb.run("push", str(local), "/data/local/tmp/pushed")
        self.assertEqual(code, 0, said)
        pushed = Path(self.root) / "data/local/tmp/pushed"
        self.assertEqual(hashlib.sha256(pushed.read_bytes()).digest(), hashlib.sha256(data).digest())
        said, code = await self.adb.run("pull", "/data/local/tmp/pushed", str(local) + "2")
        self.assertEqual(code, 0, said)
        self.assertEqual(Path(str(local) + "2").read_bytes(), data)

    async def test_two_servers_at_once_and_one_that_comes_back(self) -> None:
        await self.start()
        self.guest.startService()
        await self.ready()
        other = RealAdb(adb_binaries()["29"], scan=False)
        self.addCleanup(lambda: ensureDeferred(other.stop()))
        await other.run("start-server")
        # As the session tells its server; this one is told by the test.
        end: Any = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", other.port), End())
        end.write(b"0012host:emulator:%d" % self.session.adb.port)
        serial = self.session.adb.serial
        began = reactor.seconds()
        while (await other.devices()).get(serial) != "device":
            self.assertLess(reactor.seconds() - began, 5)
        self.assertEqual(await self.shell("echo first"), ("first\n", 0))
        self.assertEqual(await other.run("-s", serial, "shell", "echo second"), ("second\n", 0))
        await self.adb.run("kill-server")
        self.assertEqual(await other.run("-s", serial, "shell", "echo still"), ("still\n", 0))
        await self.ready()
        self.assertEqual(await self.shell("echo again"), ("again\n", 0))

    async def test_the_session_restarts_and_the_guest_finds_it_again(self) -> None:
        await self.start()
        self.guest.startService()
        await self.ready()
        await until(lambda: self.session.state.levels.booted)
        self.assertTrue(self.session.state.first_boot)
        await self.session.stopService()
        await until(lambda: not self.guest.bridge.connected)
        self.session.startService()
        await until(lambda: self.session.state.levels.ready and self.session.state.levels.booted)
        self.assertEqual(await self.shell("echo again"), ("again\n", 0))

    async def test_the_guest_restarts_and_its_boot_is_no_first_one(self) -> None:
        await self.start()
        self.guest.startService()
        await self.ready()
        await until(lambda: self.session.state.levels.booted)
        await self.guest.stopService()
        await until(lambda: not self.session.state.levels.ready)
        self.session.bridge.reset()
        self.guest = self.make_guest()
        self.guest.startService()
        self.guest.startService()
        await until(lambda: self.session.state.levels.ready)
        await until(lambda: not self.session.state.first_boot)
        await self.guest.stopService()
        await self.guest.stopService()

    async def test_a_guest_without_a_pipe_boots_all_the_same(self) -> None:
        self.patch(service_module, "BOOT_TIMEOUT_S", 0.2)
        await self.start()
        os.unlink(f"{self.root}/dev/qemu_pipe")
        self.guest.startService()
        await until(lambda: self.session.state.levels.booted)
        self.assertFalse(self.session.state.levels.ready)
        os.symlink(self.session.paths.qemu_pipe, f"{self.root}/dev/qemu_pipe")
        await self.ready()

    async def test_properties_logs_packages_and_reboot(self) -> None:
        await self.start()
        reboots: list[bool] = []
        Path(f"{self.root}/default.prop").write_text("# Properties added by Anbox\nro.boot.fake_battery=1\n")
        self.guest = GuestService(
            reactor, f"{self.root}/dev", self.root, on_reboot=lambda: reboots.append(True)
        )
        self.addCleanup(self.guest.stopService)
        self.guest.startService()
        await self.ready()
        # What every script waits for, asked for in both ways that they do.
        loop = 'while [ -z "$(getprop sys.boot_completed)" ]; do sleep 0.1; done; getprop sys.boot_completed'
        self.assertEqual(await self.shell(loop), ("1\n", 0))
        self.assertEqual(await self.shell("getprop sys.boot_completed"), ("1\n", 0))
        self.assertEqual(await self.shell("getprop ro.boot.fake_battery"), ("1\n", 0))
        # From the session, through the pipe service of its own.
        await until(lambda: "ro.sf.lcd_density" in self.guest.properties)
        self.assertEqual(await self.shell("echo $(getprop ro.sf.lcd_density)"), ("160\n", 0))
        self.assertEqual(await self.shell("echo $(getprop no.such.thing default)"), ("default\n", 0))
        said, _ = await self.shell("getprop | grep -F ro.kernel.qemu; true")
        self.assertEqual(said, "[ro.kernel.qemu]: [1]\n")
        said, code = await self.adb.run("logcat", "-d")
        self.assertEqual(code, 0)
        self.assertIn("Boot is finished", said)
        self.install("org.example.listed", "true")
        said, _ = await self.shell("pm list packages")
        self.assertIn("package:org.example.listed", said)
        await self.adb.run("reboot")
        await until(lambda: reboots)


class Adb29Tests(GuestCase):
    version = "29"

    async def test_shell_and_kill_server(self) -> None:
        await self.start()
        self.guest.startService()
        for _ in range(2):
            await self.ready()
            self.assertEqual(await self.shell("echo hi; exit 7"), ("hi\n", 7))
            await self.adb.run("kill-server")
            await until(lambda: not self.session.state.levels.ready)


class BridgeTests(GuestCase):
    async def test_applications_are_listed_launched_and_removed(self) -> None:
        self.patch(bridge_module, "LOOK_S", 0.1)
        await self.start()
        self.install("org.sleep", "sleep", "1000")
        self.guest.startService()
        session = self.session.bridge
        await until(lambda: "org.sleep" in session.applications)
        self.assertEqual(session.applications["org.sleep"].name, "ORG.SLEEP")
        self.install("org.later", "sh", "-c", "echo $ANDROID_ROOT > out")
        await until(lambda: "org.later" in session.applications)
        await session.launch_application(package="org.sleep", stack=2)
        await until(lambda: session.windows)
        (window,) = session.windows.values()
        self.assertEqual((window.package, window.stack, window.has_surface), ("org.sleep", 2, False))
        await session.set_focused_task(window.task)
        await session.resize_task(window.task, Rect(1, 2, 3, 4))
        await until(lambda: session.windows[window.task].frame.right == 3)
        await session.launch_application(package="org.later")
        out = Path(self.root) / "data/app/org.later/out"
        await until(lambda: out.exists() and out.read_text() == "/system\n")
        await session.remove_task(window.task)
        await until(lambda: not session.windows)
        shutil.rmtree(Path(self.root) / "data/app/org.later")
        await until(lambda: "org.later" not in session.applications)
        for call in (
            session.launch_application(package="org.none"),
            session.launch_application(component=".Main"),
            session.remove_task(99),
            session.set_focused_task(99),
        ):
            await self.assertFailure(call, RemoteError)

    async def test_am_from_a_shell(self) -> None:
        await self.start()
        self.guest.startService()
        await self.ready()
        self.install("org.sleep", "sleep", "1000")
        said, code = await self.shell("am start -n org.sleep/.Main")
        self.assertEqual((said, code), ("Starting: Intent { pkg=org.sleep cmp=.Main }\n", 0))
        await until(lambda: self.session.bridge.windows)
        self.assertEqual(await self.shell("am force-stop org.sleep"), ("", 0))
        await until(lambda: not self.session.bridge.windows)
        said, code = await self.shell("am start -n org.none/.Main")
        self.assertEqual(code, 1)
        self.assertIn("Error: No application for 'org.none' is installed", said)

    async def test_an_application_installed_a_moment_ago_can_be_launched(self) -> None:
        await self.start()
        self.guest.startService()
        await until(lambda: self.session.bridge.connected)
        self.install("org.new", "true")
        await self.session.bridge.launch_application(package="org.new")

    async def test_the_clipboard_from_inside(self) -> None:
        await self.start()
        self.guest.startService()
        path = f"{self.root}/dev/anbox_guest"
        await until(lambda: self.guest.bridge.connected)
        self.assertEqual(await clipboard(reactor, path, None), "")
        self.assertEqual(await clipboard(reactor, path, "ü from the guest"), "ü from the guest")
        self.assertEqual(await self.session.clipboard.get_text(), "ü from the guest")
        await self.session.clipboard.set_text("from the host")
        command = ["-m", "anbox_tw.guest", "--dev", f"{self.root}/dev", "clipboard"]
        out, error, code = await getProcessOutputAndValue(
            sys.executable, command, env={**os.environ}, reactor=reactor
        )
        self.assertEqual((out, code), (b"from the host\n", 0), error)
        await self.session.stopService()
        await until(lambda: not self.guest.bridge.connected)
        with self.assertRaises(RemoteError):
            await clipboard(reactor, path, None)
        await self.guest.stopService()
        with self.assertRaises(NotRunning):
            await clipboard(reactor, path, None)

    def test_usage(self) -> None:
        with self.assertRaises(SystemExit) as caught, contextlib.redirect_stderr(io.StringIO()):
            main(["--nonsense"])
        self.assertEqual(caught.exception.code, 2)
