"""The console over an in-memory transport: transcripts, cuts, guards, the token, clients that flood or do not read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.console import Console
from anbox_tw.console._auth import AuthToken
from anbox_tw.console._lines import MAX_LINE_BYTES, LineDecoder, forbidden
from anbox_tw.console._session import ALL, BEFORE_AUTH, MAX_FAILURES
from anbox_tw.console._text import c_integer, unescape
from anbox_tw.console._tree import Command, Ko, short_help
from anbox_tw.console.service import CLOSE_GRACE_S
from anbox_tw.device import InputDevice
from anbox_tw.errors import PermissionRefused
from anbox_tw.interfaces import IConnectionCreator, IConsoleHost
from tests.console.hosts import FakeHost
from tests.support import REPOSITORY

TRANSCRIPTS = json.loads((REPOSITORY / "protocols/console/vectors/transcripts.json").read_text())[
    "transcripts"
]


class Transport(StringTransport):
    """Tells its protocol when it is closed."""

    protocol: Any
    reactor: Any
    closing = False

    def loseConnection(self) -> None:
        super().loseConnection()
        self.closing = True

    def abortConnection(self) -> None:
        super().abortConnection()
        self.closing = True


class Client:
    """One client of a console."""

    def __init__(self, console: Console, clock: Clock) -> None:
        protocol: Any = console.create_connection_for(IPv4Address("TCP", "127.0.0.1", 1))
        self.protocol = protocol
        self.transport: Any = Transport()
        self.transport.reactor = clock
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)

    def hear(self) -> list[str]:
        """The lines since the last time; each must have ended in CR LF."""
        text: str = self.transport.value().decode()
        self.transport.clear()
        *lines, rest = text.split("\r\n")
        assert rest == "", rest
        assert not any("\n" in line or "\r" in line for line in lines), lines
        return lines

    def say(self, line: str) -> list[str]:
        self.protocol.dataReceived(line.encode("utf-8", "surrogateescape") + b"\n")
        return self.hear()

    @property
    def closed(self) -> bool:
        return bool(self.transport.closing)

    def leave(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


class ConsoleCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="ac-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.path = f"{self.home}/token"
        self.make()

    def make(self, token: str = "") -> None:
        with open(self.path, "w") as file:
            file.write(token)
        self.host = FakeHost(disabled=["pressure"])
        self.console = Console(self.host.clock, self.host, self.path)

    def client(self) -> Client:
        client = Client(self.console, self.host.clock)
        self.addCleanup(client.leave)
        return client


class TranscriptTests(ConsoleCase):
    def play(self, transcript: dict[str, Any], size: int) -> None:
        self.make("secret" if transcript["name"] == "authentication" else "")
        client = self.client()
        self.assertEqual([line.replace(self.path, "PATH") for line in client.hear()], transcript["greeting"])
        for said, *heard in transcript["steps"]:
            if said.startswith("DIAL "):
                self.host.device.calls.dial(said[5:])
                continue
            if said.startswith("ADVANCE "):
                self.host.clock.advance(float(said[8:]))
                continue
            data = said.replace("TOKEN", "secret").encode("utf-8", "surrogateescape") + b"\r\n"
            for start in range(0, len(data), size):
                client.protocol.dataReceived(data[start : start + size])
            self.assertEqual(client.hear() + ["(end)"] * client.closed, heard, said)

    def test_transcripts(self) -> None:
        verifyObject(IConnectionCreator, self.console)
        verifyObject(IConsoleHost, self.host)
        for transcript in TRANSCRIPTS:
            self.play(transcript, 4096)

    def test_transcripts_at_every_cut(self) -> None:
        for transcript in TRANSCRIPTS:
            self.play(transcript, 1)

    def test_all_commands_in_one_write(self) -> None:
        client = self.client()
        client.hear()
        self.assertEqual(
            client.say("ping\nping\ngsm status\nquit\nping"),
            ["I am alive!", "OK"] * 2 + ["gsm voice state: home", "gsm data state:  home", "OK"],
        )
        self.assertTrue(client.closed)

    def test_help_is_short_enough_for_android_studio(self) -> None:
        self.assertLess(sum(len(line) + 2 for line in short_help(ALL)) + 4, 1024)

    def test_every_command_has_help(self) -> None:
        def lines(command: Command) -> None:
            self.assertTrue(command.abstract, command.names)
            for line in command.description:
                self.assertTrue(line.isascii() and len(line) < 130, line)

        for command in (*ALL, *BEFORE_AUTH):
            lines(command)
            for sub in command.commands:
                lines(sub)
                self.assertEqual(sub.handler is None, bool(sub.commands), sub.names)
                self.assertTrue(sub.description, sub.names)


class EffectTests(ConsoleCase):
    def test_what_commands_do_to_the_device(self) -> None:
        client, device = self.client(), self.host.device
        injected: list[Any] = []
        device.input.observe(lambda change: injected.append(change.value))
        for line in (
            "geo fix 13.4 52.5 120 8 10",
            "sensor set light 42",
            "power capacity 7",
            "network speed edge",
            "finger touch 3",
            "rotate",
            "gsm voice roaming",
            "cdma ssource nv",
            "sms send +491 a\\u00e4\\ud83d\\ude00",
            "event send EV_REL:REL_X:5 EV_SYN:0:0 EV_KEY:KEY_A:1 EV_SYN:0:0 EV_ABS:ABS_X:9 oops",
        ):
            client.say(line)
        fix = device.location.state
        self.assertEqual((fix.longitude, fix.latitude, fix.altitude, fix.satellites), (13.4, 52.5, 120, 8))
        self.assertAlmostEqual(fix.speed, 5.1444, 3)
        self.assertEqual(device.sensors.get("light"), (42.0,))
        self.assertEqual(device.battery.state.capacity, 7)
        self.assertEqual(device.phone.state.network_type, "edge")
        self.assertEqual(device.fingerprint.state.finger, 3)
        self.assertEqual(device.display.state.rotation, 1)
        self.assertEqual(device.phone.state.voice.value, "roaming")
        self.assertEqual(device.phone.state.subscription, 0)
        self.assertEqual(device.messages.state.incoming[0].text, "aä😀")
        self.assertEqual(
            [(where, [(e.type, e.code, e.value) for e in events]) for where, events in injected],
            [
                (InputDevice.POINTER, [(2, 0, 5), (0, 0, 0)]),
                (InputDevice.KEYBOARD, [(1, 30, 1), (0, 0, 0)]),
                (InputDevice.TOUCH, [(3, 0, 9)]),
            ],
        )

    def test_clients_see_one_device(self) -> None:
        one, two = self.client(), self.client()
        one.say("gsm call 123")
        two.hear()
        self.assertEqual(two.say("gsm list"), ["inbound from 123        : incoming", "OK"])

    def test_a_text_is_typed_before_the_next_command(self) -> None:
        client = self.client()
        client.hear()
        keys: list[int] = []
        self.host.device.input.observe(lambda change: keys.append(len(change.value[1])))
        self.assertEqual(client.say("event text ab日\nping\nquit"), [])
        self.assertEqual(client.transport.producerState, "paused")
        for _ in range(100):
            self.host.clock.advance(0.01)
        self.assertEqual(client.hear(), ["OK", "I am alive!", "OK"])
        self.assertTrue(client.closed and keys)

    def test_a_client_that_leaves_ends_its_text(self) -> None:
        client = self.client()
        client.say("event text abcdef")
        client.leave()
        self.assertEqual(self.host.clock.getDelayedCalls(), [])

    def test_kill(self) -> None:
        client = self.client()
        client.say("kill")
        self.assertEqual(self.host.stopped, ["killed by the console"])

    def test_a_device_that_cannot_be_paused(self) -> None:
        client = self.client()
        client.hear()
        self.host.pausable = False
        self.assertEqual(client.say("avd stop"), ["KO: it cannot be stopped"])

    def test_without_a_network_there_are_no_redirections(self) -> None:
        client = self.client()
        client.hear()
        self.host.redirections = None
        self.assertEqual(client.say("redir list"), ["no active redirections", "OK"])
        self.assertEqual(client.say("redir add tcp:1:2"), ["KO: network emulation disabled"])

    def test_a_command_that_breaks_is_told_and_logged(self) -> None:
        client = self.client()
        client.hear()
        self.host.device = None  # type: ignore[assignment]
        self.assertEqual(client.say("gsm list"), ["KO: internal error"])
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
        self.assertEqual(client.say("ping"), ["I am alive!", "OK"])


class TokenTests(ConsoleCase):
    def test_it_is_made_once_and_for_the_owner_only(self) -> None:
        os.unlink(self.path)
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.console.ensure_token()
        token = AuthToken(self.path).load()
        self.assertRegex(token, r"\A[A-Za-z0-9+/]{16}\Z")
        with open(self.path) as file:
            self.assertEqual(file.read(), token)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.assertEqual(AuthToken(self.path).load(), token)

    def test_white_space_around_it_does_not_count(self) -> None:
        self.make(" \n abc \n")
        client = self.client()
        self.assertIn("OK", client.say("auth abc"))

    def test_it_is_read_anew(self) -> None:
        self.make("one")
        client = self.client()
        with open(self.path, "w") as file:
            file.write("two")
        client.hear()
        self.assertTrue(client.say("auth one")[0].startswith("KO"))
        self.assertEqual(client.say("auth two")[-1], "OK")
        os.unlink(self.path)
        os.mkdir(self.path)
        other = self.client()
        self.assertEqual((other.hear(), other.closed), ([], True))

    def test_a_file_that_cannot_be_read_while_a_client_is_there(self) -> None:
        self.make("one")
        client = self.client()
        client.hear()
        os.unlink(self.path)
        os.mkfifo(self.path)
        self.assertEqual(client.say("auth one"), ["KO: unable to read ~/.emulator_console_auth_token"])

    def test_what_is_no_token(self) -> None:
        for data in (b"\xff\xfe", b"x" * 5000):
            with open(self.path, "wb") as file:
                file.write(data)
            self.assertRaises(PermissionRefused, AuthToken(self.path).load)
        self.assertRaises(PermissionRefused, AuthToken(f"{self.home}/nowhere/token").load)

    def test_guessing_ends(self) -> None:
        self.make("secret")
        client = self.client()
        for _ in range(MAX_FAILURES - 1):
            client.say("auth guess")
        self.assertFalse(client.closed)
        client.say("auth guess")
        self.assertTrue(client.closed)

    def test_parts_and_prefixes_do_not_match(self) -> None:
        self.make("secret")
        token = AuthToken(self.path)
        for wrong in ("", "secre", "secrets", "SECRET", "secrét"):
            self.assertFalse(token.matches(wrong), wrong)
        self.assertTrue(token.matches("secret"))


class LineTests(SynchronousTestCase):
    def test_the_buffer_begins_anew(self) -> None:
        for size in (1, 7, 5000):
            decoder = LineDecoder()
            data = b"a" * (MAX_LINE_BYTES - 1) + b"ping\n" + b"b" * (MAX_LINE_BYTES - 1) + b"\nc\n"
            lines = []
            for start in range(0, len(data), size):
                lines += decoder.receive_data(data[start : start + size])
            self.assertEqual(lines, [b"ping", b"b" * (MAX_LINE_BYTES - 1), b"c"])

    @given(st.binary(max_size=300).map(lambda data: data * 30), st.integers(1, 5000))
    def test_any_cut_is_as_the_emulators_byte_by_byte(self, data: bytes, size: int) -> None:
        expected, buffer = [], bytearray()
        for octet in data:
            if octet == 0x0A:
                expected.append(bytes(buffer))
                buffer.clear()
            elif octet != 0x0D:
                if len(buffer) >= MAX_LINE_BYTES - 1:
                    buffer.clear()
                buffer.append(octet)
        decoder, lines = LineDecoder(), []
        for start in range(0, len(data), size):
            lines += decoder.receive_data(data[start : start + size])
        assert lines == expected

    def test_what_is_forbidden(self) -> None:
        for line in (b"GET / HTTP/1.1", b"POST /x HTTP/1.0", b"OPTIONS * HTTP/1.1"):
            self.assertEqual(forbidden(line), "Forbidden HTTP request")
        for line in (b"\xff", b"ping \xc3", b"\xed\xa0\x80"):
            self.assertEqual(forbidden(line), "Forbidden binary request")
        for line in (b"", b"ping", "sms send 1 ä".encode(), b"GETX", b"get x"):
            self.assertEqual(forbidden(line), "")

    def test_escapes(self) -> None:
        for text, expected in (
            ("A two line\\ntext message", "A two line\ntext message"),
            ("My \\x41 \\u0042 Cs", "My A B Cs"),
            ("5 \\xe2\\x82\\u00aC each", "5 \xe2\x82\xac each"),
            ("\\\\n", "\\n"),
            ("plain", "plain"),
        ):
            self.assertEqual(unescape(text), expected)
        for text in ("\\", "\\q", "\\x4", "\\u12", "\\ud800", "\\udc00\\ud800"):
            self.assertRaises(Ko, unescape, text)

    def test_integers_as_c_reads_them(self) -> None:
        for text, expected in (
            ("7", 7),
            ("0x1F", 31),
            ("010", 8),
            ("-3", -3),
            ("5x", 5),
            ("x", None),
            ("", None),
        ):
            self.assertEqual(c_integer(text), expected)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_answered_or_end_that_client(self, data: bytes) -> None:
        path = tempfile.mktemp(prefix="ac-")
        with open(path, "w"):
            pass
        try:
            host = FakeHost()
            client = Client(Console(host.clock, host, path), host.clock)
            client.hear()
            client.protocol.dataReceived(data + b"\n")
            client.hear()
            client.leave()
        finally:
            os.unlink(path)


class LoadTests(ConsoleCase):
    def test_a_client_that_does_not_read_is_not_answered_further(self) -> None:
        client = self.client()
        client.hear()
        client.protocol.pauseProducing()  # its transport's buffer is full
        client.protocol.dataReceived(b"help-verbose\n" * 5000)
        self.assertLess(client.protocol.queued, 16 * 1024)
        self.assertEqual(client.transport.producerState, "paused")
        self.assertFalse(client.closed)
        client.protocol.resumeProducing()
        self.assertEqual(client.hear().count("OK"), 5000)

    def test_what_was_asked_before_the_end_is_answered(self) -> None:
        client = self.client()
        client.hear()
        client.protocol.dataReceived(b"ping\nevent text a\nping\n")
        self.assertTrue(IHalfCloseableProtocol.providedBy(client.protocol))
        client.protocol.readConnectionLost()
        self.assertFalse(client.closed)
        for _ in range(20):
            self.host.clock.advance(0.01)
        self.assertEqual(client.hear(), ["I am alive!", "OK", "OK", "I am alive!", "OK"])
        self.assertTrue(client.closed)

    def test_garbage_ends_one_client(self) -> None:
        bad, good = self.client(), self.client()
        good.hear()
        bad.hear()
        self.assertEqual(bad.say("\udcff\udcfe"), ["KO: Forbidden binary request. Aborting"])
        self.assertTrue(bad.closed)
        self.assertEqual(good.say("ping"), ["I am alive!", "OK"])
        self.assertGreater(CLOSE_GRACE_S, 0)
