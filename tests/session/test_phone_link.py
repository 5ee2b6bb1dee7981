"""Two sessions that call each other, and write, through their consoles."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from anbox_tw.console._auth import AuthToken
from anbox_tw.console.client import send_commands
from anbox_tw.device import CallState, Device
from anbox_tw.errors import NetworkError, NotRunning
from anbox_tw.network import RuntimePaths, free_port, owner_of_port
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.session.phone_link import PhoneLink
from anbox_tw.session.service import SessionService, SessionSettings
from tests.session.guest import until


def states(session: SessionService) -> list[tuple[str, str]]:
    """Number and state of each call."""
    return [(call.number, call.state.value) for call in session.device.calls]


class LinkTests(TestCase):
    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="al-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.one, self.two = self.make("one"), self.make("two")
        for session in (self.one, self.two):
            session.startService()
            session.device.calls.update(alert_after=0.01, answer_after=0.01)
        self.first, self.second = (s.device.phone.state.number for s in (self.one, self.two))

    def make(self, name: str) -> SessionService:
        session = SessionService(
            reactor,
            SessionSettings(
                paths=RuntimePaths(self.home, name),
                adb_server=AdbServerAddress(port=free_port()),
                standalone=True,
                console_token=f"{self.home}/token",
            ),
            Deferred,
        )
        self.addCleanup(session.stopService)
        return session

    async def both(self, one: str, two: str) -> None:
        """Wait until each has one call, to the other, in these states; empty is none."""
        await until(lambda: states(self.one) == ([(self.second, one)] if one else []), 30)
        await until(lambda: states(self.two) == ([(self.first, two)] if two else []), 30)

    async def test_a_call_through_all_states(self) -> None:
        self.one.device.calls.dial(self.second[-4:])
        await self.both("alerting", "incoming")
        self.two.device.calls.answer()
        await self.both("active", "active")
        self.one.device.calls.swap()
        await self.both("held", "held")
        self.one.device.calls.swap()
        await self.both("active", "active")
        self.two.device.calls.hang_up()
        await self.both("", "")

    async def test_a_call_that_is_refused_and_one_that_is_given_up(self) -> None:
        self.two.device.calls.dial(f"+{self.first}")
        await until(lambda: states(self.one) == [(self.second, "incoming")], 30)
        self.one.device.calls.hang_up()
        await until(lambda: not states(self.two), 30)
        self.one.device.calls.dial(self.second)
        await self.both("alerting", "incoming")
        self.one.device.calls.hang_up()
        await self.both("", "")

    async def test_nobody_is_there(self) -> None:
        await self.two.stopService()
        self.one.device.calls.dial(self.second)
        await until(lambda: not states(self.one), 30)
        self.one.device.calls.dial("5551234")  # the network's own subscribers still answer
        await until(lambda: states(self.one) == [("5551234", "active")], 30)

    async def test_the_end_of_a_session_ends_its_calls(self) -> None:
        self.one.device.calls.dial(self.second)
        await self.both("alerting", "incoming")
        self.two.device.calls.answer()
        await self.both("active", "active")
        await self.one.stopService()
        await until(lambda: not states(self.two), 30)
        self.one.startService()
        self.first = self.one.device.phone.state.number
        self.one.device.calls.dial(self.second)
        await self.both("alerting", "incoming")

    async def test_messages(self) -> None:
        text = "über den Draht € " * 20
        self.one.device.messages.sent(f"+{self.second}", text)
        await until(lambda: len(self.two.device.messages.state.incoming) == 3, 30)
        self.assertEqual({m.pdu for m in self.two.device.messages.state.incoming}, {True})
        # A port alone is a number here too, as it is for calls.
        self.one.device.messages.sent(self.second[-4:], "short")
        await until(lambda: len(self.two.device.messages.state.incoming) == 4, 30)

    async def test_the_client(self) -> None:
        port = self.one.adb.port - 1
        token = AuthToken(f"{self.home}/token")
        answers = await send_commands(reactor, port, ["ping", "gsm call x"], token)
        self.assertEqual(answers[0], ["I am alive!", "OK"])
        self.assertTrue(answers[1][-1].startswith("KO: bad phone number"))
        other = AuthToken(f"{self.home}/other")
        error = await self.failed(send_commands(reactor, port, ["ping"], other))
        self.assertIsInstance(error, NetworkError)
        self.assertIn("does not take the token", str(error))
        self.assertIsInstance(
            await self.failed(send_commands(reactor, free_port(), ["ping"], token)), NotRunning
        )

    async def failed(self, work: Any) -> Exception | None:
        try:
            await work
        except Exception as error:
            return error
        return None

    async def test_a_console_that_hangs_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def hang_up() -> None:
                connection, _ = server.accept()
                connection.sendall(b"Android Console: type 'help'\r\nOK\r\n")
                connection.recv(100)
                connection.close()

            hung = deferToThread(hang_up)
            port = server.getsockname()[1]
            self.assertEqual(owner_of_port(port), os.getuid())
            token = AuthToken(f"{self.home}/token")
            self.assertIsInstance(
                await self.failed(send_commands(reactor, port, ["ping"], token)), NetworkError
            )
            await hung
        self.assertIsNone(owner_of_port(port))


class NumberTests(SynchronousTestCase):
    def test_whose_number_it_is(self) -> None:
        device = Device()
        link = PhoneLink(None, device, AuthToken("/nonexistent"))
        for number, full in (
            ("5556", "15555215556"),
            ("+15555215556", "15555215556"),
            ("5555", "5555"),
            ("5554", "5554"),
            ("911", "911"),
        ):
            self.assertEqual(link.full_number(number), full)
        for number, answers in (
            ("15555215556", True),
            ("+15555215556", True),
            ("15555215554", False),  # one's own
            ("15555215557", False),
            ("15555219998", False),
            ("5551234", False),
            ("", False),
        ):
            self.assertEqual(link.answers(number), answers, number)
        device.calls.dial("15555215556")
        self.assertEqual([call.state for call in device.calls], [CallState.DIALING])
