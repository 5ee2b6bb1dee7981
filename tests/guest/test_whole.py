"""The whole of it: the real container manager, a session, the guest in a container of the process backend, real adb."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from anbox_tw.network import RuntimePaths
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.session.manager import manager_connector
from anbox_tw.session.service import SessionService, SessionSettings
from tests.qemu.scripted import RealAdb
from tests.session.guest import until
from tests.session.programs import Program, start_twistd
from tests.support import adb_binaries


class WholeCase(TestCase):
    """A manager as a program of its own, a session in the test, real adb."""

    timeout = 120

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="aw-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        os.mkdir(f"{self.home}/run", 0o700)
        os.chmod(self.home, 0o711)
        self.paths = RuntimePaths(f"{self.home}/run")
        self.socket = f"{self.home}/manager"
        self.adb = RealAdb(adb_binaries()["36"], scan=False)
        self.addCleanup(lambda: ensureDeferred(self.adb.stop()))
        self.managers: list[Program] = []

    def start_manager(self) -> Program:
        manager = start_twistd(
            self,
            self.home,
            "anbox-container",
            *("--backend", "process", "--socket", self.socket, "--data-path", f"{self.home}/data"),
            *("--runtime-dir", f"{self.home}/run"),
        )
        self.managers.append(manager)
        return manager

    def start_session(self) -> SessionService:
        settings = SessionSettings(
            paths=self.paths,
            adb_server=AdbServerAddress(port=self.adb.port),
            console_token=f"{self.home}/token",
            backend="process",
            rootfs="host",
        )
        session = SessionService(reactor, settings, manager_connector(reactor, self.socket, self.paths))
        session.startService()
        self.addCleanup(session.stopService)
        return session


class WholeTests(WholeCase):
    async def test_loss_of_container_and_manager(self) -> None:
        manager = self.start_manager()
        session = self.start_session()
        await self.adb.run("start-server")
        ready: Any = lambda: session.state.levels.ready and session.state.levels.booted  # noqa: E731
        try:
            await until(ready, 30)
        except AssertionError:
            self.fail(f"{session.state.waiting_for}\n{manager.output.decode()}")
        self.assertTrue(session.state.first_boot)
        self.assertEqual(session.container_info["state"], "running")
        said, code = await self.adb.run("shell", "echo $ANBOX_INSTANCE; exit 7")
        self.assertEqual((said, code), ("default\n", 7))

        # One store: init's own properties are shown, and what a shell sets is there when setprop has ended.
        self.assertEqual(await self.adb.run("shell", "getprop init.svc.adbd"), ("running\n", 0))
        said, code = await self.adb.run("shell", "setprop debug.foo 'a b' && getprop debug.foo")
        self.assertEqual((said, code), ("a b\n", 0))
        said, code = await self.adb.run(
            "shell", "setprop ro.kernel.qemu 0 2>/dev/null; echo $?; getprop ro.kernel.qemu"
        )
        self.assertEqual((said, code), ("1\n1\n", 0))
        # The shell knows what scripts for Android's mksh use.
        said, code = await self.adb.run(
            "shell", "trap 'echo caught' SIGUSR1; kill -USR1 $$; [[ a == a* ]] && echo matched"
        )
        self.assertEqual((said, code), ("caught\nmatched\n", 0))

        # The container's init is killed: the session says so and has it started again.
        os.kill(session.container_info["pid"], signal.SIGKILL)
        await until(lambda: not session.state.levels.ready)
        await until(lambda: session.failure)
        self.assertIn("the container has ended", session.failure)
        await until(ready, 30)
        self.assertFalse(session.state.first_boot)
        self.assertEqual(await self.adb.run("shell", "echo again"), ("again\n", 0))

        # The manager is killed; the next one cleans up after it.
        manager.kill(signal.SIGKILL)
        await manager.ended
        await until(lambda: not session.state.levels.ready)
        await until(lambda: "manager" in session.failure)
        manager = self.start_manager()
        await until(ready, 30)
        self.assertEqual(await self.adb.run("shell", "echo once more"), ("once more\n", 0))

        await session.stopService()
        began = reactor.seconds()
        while await self.adb.devices():
            self.assertLess(reactor.seconds() - began, 10)
            await deferLater(reactor, 0.1)
        self.assertFalse(os.path.exists(self.paths.sockets))
        manager.kill(signal.SIGTERM)
        await manager.ended
        self.assertNotIn(b"Traceback", manager.output)
