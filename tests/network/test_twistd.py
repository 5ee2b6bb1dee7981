from __future__ import annotations

import io
import os
import socket
import sys
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import Options, UsageError
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.errors import AlreadyRunning, ConfigError, HostLacks
from anbox_tw.network.systemd import notify
from anbox_tw.network.twistd import CommandOptions, CommandService, options_from_file


class Plain(CommandOptions):
    optParameters = [["name", "n", None, "A name."], ["port", "p", "1", "A port."]]
    optFlags = [["quick", "q", "Be quick."]]


class Parent(Options):
    """What twistd gives its commands."""

    subCommand = "anbox-plain"

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.update(nodaemon=True, pidfile="", logfile=None, **more)


class FileTests(SynchronousTestCase):
    KNOWN = {"name": True, "quick": False, "two-words": True}

    def file(self, text: str | bytes) -> str:
        path = str(self.mktemp())
        with open(path, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        return path

    def test_values(self) -> None:
        path = self.file("two_words = [1, 'b c']\nquick = true\nname = ''\n")
        self.assertEqual(
            options_from_file(path, self.KNOWN), ["--two-words=1", "--two-words=b c", "--quick", "--name="]
        )
        self.assertEqual(options_from_file(self.file("quick = false"), self.KNOWN), [])

    def test_mistakes(self) -> None:
        for words, text in (
            ("no option 'nam'", "nam = 'x'"),
            ("is a switch", "quick = 'yes'"),
            ("takes a text", "name = true"),
            ("takes a text", "name = {a = 1}"),
            ("not TOML", "name = "),
            ("not TOML", b"\xff"),
            ("is over", "#" * (1 << 20) + "\n"),
        ):
            error = self.assertRaises(ConfigError, options_from_file, self.file(text), self.KNOWN)
            self.assertIn(words, str(error))
        self.assertRaises(ConfigError, options_from_file, "/nonexistent", self.KNOWN)
        self.assertRaises(ConfigError, options_from_file, "/", self.KNOWN)


class OptionsTests(FileTests):
    def test_command_line_has_the_last_word(self) -> None:
        path = self.file("name = 'file'\nport = 7\n")
        for given in (["--config", path], [f"--config={path}"], ["-c", path]):
            options = Plain()
            options.parseOptions([*given, "--name", "line"])
            self.assertEqual((options["name"], options["port"]), ("line", "7"))

    def test_a_config_cannot_name_another(self) -> None:
        options = Plain()
        self.assertRaises(UsageError, options.parseOptions, ["--config", self.file("config = '/x'")])

    def test_what_follows_two_dashes_is_no_option(self) -> None:
        options = Plain()
        self.assertRaises(UsageError, options.parseOptions, ["--", "--config", "/nonexistent"])

    def test_without_twistd_a_mistake_is_raised(self) -> None:
        self.assertRaises(UsageError, Plain().parseOptions, ["--bogus"])

    def test_under_twistd_it_ends_with_status_2(self) -> None:
        told = io.StringIO()
        self.patch(sys, "stderr", told)
        options = Plain()
        options.parent = Parent()
        ended = self.assertRaises(SystemExit, options.parseOptions, ["--config", "/nonexistent"])
        self.assertEqual(ended.code, 2)
        self.assertIn("anbox-plain: the configuration file /nonexistent cannot be read", told.getvalue())
        self.assertIn("try: twistd anbox-plain --help", told.getvalue())


class Failing(Service):
    def __init__(self, error: Exception, *, privileged: bool = False) -> None:
        self.error = error
        self.privileged = privileged

    def privilegedStartService(self) -> None:
        if self.privileged:
            raise self.error

    def startService(self) -> None:
        raise self.error


class ServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.told = io.StringIO()
        self.patch(sys, "__stderr__", self.told)
        self.reactor: Any = MemoryReactorClock()
        self.options = Plain()
        self.options.parent = Parent()

    def make(self, *children: Service, **more: Any) -> CommandService:
        service = CommandService("anbox-plain", self.options, self.reactor, **more)
        for child in children:
            child.setServiceParent(service)
        return service

    def test_failing_start_ends_in_words_and_with_its_code(self) -> None:
        pidfile = self.mktemp()
        for privileged in (False, True):
            with open(pidfile, "w"):
                pass
            parent: Any = self.options.parent
            parent["pidfile"] = pidfile
            service = self.make(
                Failing(HostLacks("no tool", "install it", code="ANBOX-C025"), privileged=privileged)
            )
            ended = self.assertRaises(
                SystemExit, service.privilegedStartService if privileged else service.startService
            )
            self.assertEqual(ended.code, 6)
            self.assertIn("anbox-plain: ANBOX-C025: no tool\n  cure: install it", self.told.getvalue())
            self.assertFalse(os.path.exists(pidfile))

    def test_daemon_hands_the_error_to_its_parent(self) -> None:
        parent: Any = self.options.parent
        parent["nodaemon"] = False
        self.assertRaises(AlreadyRunning, self.make(Failing(AlreadyRunning("x"))).startService)

    def test_other_errors_are_defects(self) -> None:
        self.assertRaises(ZeroDivisionError, self.make(Failing(ZeroDivisionError())).startService)

    def test_log_file_gets_it_too(self) -> None:
        parent: Any = self.options.parent
        parent.update(logfile="x", pidfile="/nonexistent/pid")
        self.assertRaises(SystemExit, self.make(Failing(ConfigError("bad"))).startService)
        self.options.parent = None
        self.assertRaises(SystemExit, self.make(Failing(ConfigError("bad"))).startService)

    def notified(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        name = f"\0anbox-tw-notify-{os.getpid()}-{id(self)}"
        sock.bind(name)
        sock.setblocking(False)
        self.patch(os, "environ", os.environ)
        old = os.environ.get("NOTIFY_SOCKET")
        os.environ["NOTIFY_SOCKET"] = "@" + name[1:]
        self.addCleanup(lambda: os.environ.pop("NOTIFY_SOCKET") if old is None else None)
        return sock

    def test_systemd_is_told_when_it_is_ready(self) -> None:
        sock = self.notified()
        ready: Deferred[None] = Deferred()
        prepared: list[str] = []
        service = self.make(when_ready=lambda: ready)
        self.patch(service, "prepare", lambda: prepared.append("once"))
        service.privilegedStartService()
        service.startService()
        self.assertEqual(prepared, ["once"])
        self.reactor.run()
        self.assertRaises(BlockingIOError, sock.recv, 100)
        ready.callback(None)
        self.assertEqual(sock.recv(100), b"READY=1\nMAINPID=%d" % os.getpid())
        self.successResultOf(service.stopService())
        self.assertEqual(sock.recv(100), b"STOPPING=1")

    def test_not_when_it_never_gets_ready_or_has_stopped(self) -> None:
        sock = self.notified()
        service = self.make(when_ready=lambda: fail(ZeroDivisionError()))
        service.startService()
        self.reactor.run()
        self.assertRaises(BlockingIOError, sock.recv, 100)
        self.reactor = MemoryReactorClock()
        service = self.make()
        service.startService()
        self.successResultOf(service.stopService())
        self.assertEqual(sock.recv(100), b"STOPPING=1")
        self.reactor.run()
        self.assertRaises(BlockingIOError, sock.recv, 100)

    def test_nobody_to_notify(self) -> None:
        self.assertFalse(notify("READY=1", {}))
        self.assertFalse(notify("READY=1", {"NOTIFY_SOCKET": "relative"}))
        self.assertFalse(notify("READY=1", {"NOTIFY_SOCKET": "/nonexistent"}))
