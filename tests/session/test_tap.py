"""The command line of ``twistd anbox-session``, and the program itself."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.application.service import IServiceMaker
from twisted.internet import reactor
from twisted.plugin import getPlugins
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.console._auth import TOKEN_FILE
from anbox_tw.errors import ConfigError, NotRunning
from anbox_tw.network import RetryPolicy, RuntimePaths
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.session import tap
from anbox_tw.session.client import connect
from anbox_tw.session.manager import manager_connector
from tests.session.guest import until
from tests.session.programs import Program, start_twistd


class OptionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.runtime = tempfile.mkdtemp(prefix="as-")
        self.addCleanup(shutil.rmtree, self.runtime)
        self.environment = {"XDG_RUNTIME_DIR": self.runtime}

    def parse(self, *arguments: str, **environment: str) -> tap.Options:
        options = tap.Options()
        options.environment = {**self.environment, **environment}
        options.parseOptions(list(arguments))
        return options

    def refused(self, *arguments: str, **environment: str) -> str:
        with self.assertRaises(usage.UsageError) as caught:
            self.parse(*arguments, **environment)
        return str(caught.exception)

    def test_defaults(self) -> None:
        settings = self.parse().settings
        self.assertEqual(settings.paths, RuntimePaths(self.runtime))
        self.assertEqual(settings.adb_server, AdbServerAddress())
        self.assertEqual(settings.boot_properties, {"ro.sf.lcd_density": "160"})
        self.assertEqual((settings.backend, settings.console_port, settings.standalone), ("", None, False))

    def test_everything_given(self) -> None:
        other = tempfile.mkdtemp(prefix="as-")
        self.addCleanup(shutil.rmtree, other)
        settings = self.parse(
            *("--instance", "farm1", "--runtime-dir", other, "--adb-server", "host:7000", "--backend", "lxc"),
            *("--rootfs", "host", "--data-path", "/data", "--console-port", "5600", "--standalone"),
            *("--experimental", "--server-side-decoration", "--boot-property", "a=b=c", "--property", "x=1"),
        ).settings
        self.assertEqual(settings.paths, RuntimePaths(other, "farm1"))
        self.assertEqual(settings.adb_server, AdbServerAddress("host", 7000))
        self.assertEqual((settings.backend, settings.rootfs, settings.data_path), ("lxc", "host", "/data"))
        self.assertEqual(settings.console_port, 5600)
        self.assertTrue(settings.standalone)
        self.assertEqual(settings.boot_properties["a"], "b=c")
        self.assertEqual(settings.extra_properties, ("x=1", "ro.anbox.no_decorations=1"))

    def test_hardware(self) -> None:
        hardware = self.parse().settings.hardware
        self.assertEqual(dict(hardware.cameras), {"back": "test-pattern", "front": "none"})
        self.assertEqual((hardware.allowed, hardware.renderer, hardware.boot_icon), ((), "", ""))
        hardware = self.parse(
            *("--camera", "none", "--camera", f"front=image:{os.path.relpath(__file__)}", "--debug-pipes"),
            *("--allow-outward", "tcp:8000", "--allow-outward", "unix:/run/a", "--renderer", "unix:/run/gl"),
            *("--boot-icon", "icon.png"),
        ).settings.hardware
        self.assertEqual(
            dict(hardware.cameras), {"back": "none", "front": f"image:{os.path.abspath(__file__)}"}
        )
        self.assertEqual([each.kind for each in hardware.allowed], ["tcp", "unix"])
        self.assertEqual(
            (hardware.renderer, hardware.boot_icon), ("unix:/run/gl", os.path.abspath("icon.png"))
        )
        self.assertTrue(hardware.debug_pipes)
        self.assertIn("is no camera", self.refused("--camera", "side=test-pattern"))
        self.assertIn("allows nothing", self.refused("--allow-outward", "everything"))

    def test_the_originals_flags_are_taken(self) -> None:
        options = self.parse(
            *("--desktop_file_hint=x", "--single-window", "--window-size=800,600", "--use-system-dbus"),
            *(
                "--software-rendering",
                "--no-touch-emulation",
                "--disabled-sensors=light,pressure",
                "--rootless",
            ),
        )
        self.assertEqual(options.manager, f"{self.runtime}/anbox/anbox-container.socket")
        self.assertTrue(options.settings.single_window)

    def test_the_originals_environment(self) -> None:
        options = self.parse(
            ANBOX_FORCE_SERVER_SIDE_DECORATION="true",
            ANBOX_FORCE_SOFTWARE_RENDERING="true",
            ANBOX_ENABLE_TOUCH_EMULATION="false",
            ANBOX_LOG_LEVEL="loud",
            ANDROID_ADB_SERVER_PORT="7001",
        )
        self.assertEqual(options.settings.extra_properties, ("ro.anbox.no_decorations=1",))
        self.assertTrue(options["software-rendering"] and options["no-touch-emulation"])
        self.assertEqual(options.settings.adb_server.port, 7001)

    def test_what_is_refused_says_why(self) -> None:
        for arguments, words in (
            (["--standalone"], "Experimental features selected, but --experimental flag not set"),
            (["--backend", "docker"], "docker"),
            (["--image", "a", "--rootfs", "b"], "exclude"),
            (["--window-size", "big"], "1024,768"),
            (["--window-size", "0,5"], "1024,768"),
            (["--console-port", "5555"], "even"),
            (["--console-port", "x"], "even"),
            (["--adb-server", "nowhere"], "nowhere"),
            (["--instance", "../x"], "../x"),
            (["--boot-property", "novalue"], "NAME=VALUE"),
            (["--boot-property", "a b=c"], "not allowed"),
            (["--property", "=x"], "NAME=VALUE"),
            (["--nonsense"], "nonsense"),
            (["positional"], ""),
            (["--config", "/nonexistent.toml"], "No such file"),
        ):
            self.assertIn(words, self.refused(*arguments), arguments)
        self.assertIn("ANDROID_ADB_SERVER_PORT", self.refused(ANDROID_ADB_SERVER_PORT="x"))

    def test_a_runtime_directory_is_looked_for_when_the_session_starts(self) -> None:
        options = self.parse("--runtime-dir", "/nonexistent/x")
        with self.assertRaises(ConfigError) as caught:
            tap.makeService(options).prepare()
        self.assertIn("/nonexistent/x", str(caught.exception))

    def config(self, text: str) -> str:
        path = Path(self.mktemp())
        path.write_text(text)
        return str(path)

    def test_a_configuration_file_and_the_command_line_over_it(self) -> None:
        path = self.config(
            'backend = "lxc"\nrootfs = "host"\nconsole_port = 5600\nexperimental = true\nstandalone = true\n'
            'property = ["a.b=1"]\nboot-property = "c=d"\n'
        )
        settings = self.parse("--backend", "process", "--config", path).settings
        self.assertEqual(
            (settings.backend, settings.rootfs, settings.console_port), ("process", "host", 5600)
        )
        self.assertTrue(settings.standalone)
        self.assertEqual(settings.extra_properties, ("a.b=1",))
        self.assertEqual(settings.boot_properties, {"ro.sf.lcd_density": "160", "c": "d"})

    def test_a_bad_configuration_names_its_key(self) -> None:
        for text, words in (
            ("colour = 1", "colour"),
            ("standalone = 'yes'", "standalone is a switch"),
            ("backend = true", "backend takes a text"),
            ("boot_property = 'x'", "NAME=VALUE"),
            ("= nothing", "not TOML"),
        ):
            self.assertIn(words, self.refused("--config", self.config(text)))

    def test_help_is_worth_reading(self) -> None:
        text = str(tap.Options())
        for word in ("--container-manager", "ANDROID_ADB_SERVER_PORT", "--config", "--boot-property"):
            self.assertIn(word, text)

    def test_service(self) -> None:
        options = self.parse("--container-manager", "unix:/x")
        service = tap.makeService(options)
        self.assertEqual(list(service), [])
        service.prepare()
        (session,) = list(service)
        self.assertEqual(session.paths.instance, "default")
        options["container-manager"] = "nonsense:::"
        with self.assertRaises(ConfigError):
            tap.makeService(options).prepare()

    def test_twistd_knows_the_command(self) -> None:
        makers = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "anbox-session"]
        self.assertEqual(len(makers), 1)
        self.assertIs(makers[0].options, tap.Options)
        self.assertEqual(makers[0].makeService, tap.makeService)


class ManagerTests(SynchronousTestCase):
    def test_where_the_manager_is(self) -> None:
        from twisted.internet.testing import MemoryReactorClock

        runtime = tempfile.mkdtemp(prefix="as-")
        self.addCleanup(shutil.rmtree, runtime)
        paths = RuntimePaths(runtime)
        for where, dialled in (
            ("/a/b", "/a/b"),
            ("unix:/c", "/c"),
        ):
            memory: Any = MemoryReactorClock()
            manager_connector(memory, where, paths)().addErrback(lambda failure: failure.trap(NotRunning))
            self.assertEqual(str(memory.unixClients[0][0]), dialled)


class ProgramTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.runtime = tempfile.mkdtemp(prefix="as-")
        self.addCleanup(shutil.rmtree, self.runtime)

    def twistd(self, *arguments: str) -> Program:
        return start_twistd(self, self.runtime, "anbox-session", *arguments)

    async def test_start_a_second_one_and_sigterm(self) -> None:
        paths = RuntimePaths(self.runtime)
        first = self.twistd()
        client = await connect(reactor, paths, RetryPolicy(attempts=200, max_delay=0.2))
        info = await client.info()
        self.assertEqual(info["pid"], first.pid)
        # There is no manager: it says so and goes on.
        self.assertTrue(info["live"])
        await until(lambda: b"no container manager answers" in first.output)
        second = self.twistd()
        self.assertEqual(await second.ended, 1)
        self.assertIn(f"already running, pid {info['pid']}, command ".encode(), second.output)
        self.assertNotIn(b"Traceback", second.output)
        first.kill(signal.SIGTERM)
        # twistd ends by the signal it got, after everything has stopped.
        self.assertEqual(await first.ended, -signal.SIGTERM)
        self.assertNotIn(b"Traceback", first.output)
        self.assertNotIn(b"Unhandled", first.output)
        # HOME is there too
        self.assertEqual(os.listdir(self.runtime), [TOKEN_FILE])

    async def test_stop_by_the_control_socket(self) -> None:
        program = self.twistd("--standalone", "--experimental")
        client = await connect(reactor, RuntimePaths(self.runtime), RetryPolicy(attempts=200, max_delay=0.2))
        await client.stop("test")
        await client.when_lost()
        self.assertEqual(await program.ended, 0)
        # HOME is there too
        self.assertEqual(os.listdir(self.runtime), [TOKEN_FILE])

    async def test_a_taken_port_is_said_and_leaves_nothing(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 5692))
            taken.listen()
            program = self.twistd("--console-port", "5692")
            self.assertEqual(await program.ended, 1)
        self.assertIn(b"5692", program.output)
        self.assertNotIn(b"Traceback", program.output)
        self.assertEqual(os.listdir(self.runtime), [])

    async def test_usage_errors_end_with_their_words(self) -> None:
        program = self.twistd("--standalone")
        self.assertEqual(await program.ended, 2)
        self.assertIn(b"--experimental flag not set", program.output)
