"""``python -m anbox_tw.guest`` as a program, and what it does when the other side misbehaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from anbox_tw.adb.daemon import AdbDaemon
from anbox_tw.guest import properties
from anbox_tw.guest.adbd import PipeAdbd
from anbox_tw.guest.bridge import GuestBridge
from anbox_tw.guest.properties import fetch_boot_properties
from tests.session.guest import until
from tests.support import REPOSITORY


class Scripted(Protocol):
    """Keeps what it gets; says what the test wants."""

    factory: Any

    def connectionMade(self) -> None:
        self.data = b""
        self.lost = False
        self.factory.made.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.factory.on_data(self)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True

    def say(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def close(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


class ScriptedFactory(Factory):
    protocol = Scripted
    noisy = False

    def __init__(self) -> None:
        self.made: list[Scripted] = []
        self.on_data: Callable[[Scripted], object] = lambda connection: None


class SocketCase(TestCase):
    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="ag-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.path = f"{self.home}/socket"
        self.served = ScriptedFactory()

    async def connection(self, number: int) -> Scripted:
        """The connection of that number, waited for."""
        await until(lambda: len(self.served.made) > number)
        return self.served.made[number]

    def listen(self) -> None:
        unix: Any = reactor
        port = unix.listenUNIX(self.path, self.served)

        def stop() -> Any:
            for connection in self.served.made:
                if connection.transport is not None:
                    connection.transport.loseConnection()
            return port.stopListening()

        self.addCleanup(stop)


class PipeAdbdTests(SocketCase):
    def start(self) -> PipeAdbd:
        adbd = PipeAdbd(reactor, self.path, AdbDaemon(reactor))
        adbd.startService()
        adbd.startService()
        self.addCleanup(adbd.stopService)
        return adbd

    async def test_the_words_in_their_order_and_the_next_pipe(self) -> None:
        self.listen()
        adbd = self.start()
        await until(lambda: self.served.made and len(self.served.made[0].data) >= 26)
        first = self.served.made[0]
        self.assertEqual(first.data, b"pipe:qemud:adb:5555\0accept")
        first.say(b"o")
        first.say(b"k")
        await until(lambda: first.data.endswith(b"start"))
        await until(lambda: len(self.served.made) == 2)
        self.assertEqual(adbd.hosts, 1)

    async def test_a_pipe_that_is_refused_or_lost_is_opened_again(self) -> None:
        adbd = self.start()
        self.listen()
        for number, answer in enumerate((b"ko", b"nonsense", b"")):
            connection = await self.connection(number)
            if answer:
                connection.say(answer)
            else:
                connection.close()
            await until(lambda: self.served.made[number].lost)
        await until(lambda: len(self.served.made) == 4)
        self.assertEqual(adbd.hosts, 0)
        await adbd.stopService()
        await until(lambda: self.served.made[3].lost)


class BridgeTests(SocketCase):
    async def test_a_session_that_closes_is_dialled_again(self) -> None:
        bridge = GuestBridge(reactor, self.path, self.home, {})
        bridge.startService()
        bridge.startService()
        self.addCleanup(bridge.stopService)
        bridge.boot_finished(True)
        self.listen()
        await until(lambda: self.served.made and self.served.made[0].data)
        told = self.served.made[0].data
        self.served.made[0].close()
        await until(lambda: len(self.served.made) == 2 and self.served.made[1].data)
        # The boot is said to each session.
        self.assertEqual(self.served.made[1].data, told)


class BootPropertiesTests(SocketCase):
    def fetch(self) -> Deferred[dict[str, str]]:
        return ensureDeferred(fetch_boot_properties(reactor, self.path))

    async def test_frames_at_any_cut(self) -> None:
        self.listen()

        def answer(connection: Scripted) -> None:
            if connection.data == b"pipe:qemud:boot-properties\x000004list":
                for byte in b"0005a=b=c0003odd000aempty.one=0001\0":
                    connection.say(bytes([byte]))

        self.served.on_data = answer
        self.assertEqual(await self.fetch(), {"a": "b=c", "empty.one": ""})
        await until(lambda: self.served.made[0].lost)

    async def test_nobody_there_or_nonsense_is_no_property(self) -> None:
        self.patch(properties, "ATTEMPTS", 1)
        self.patch(properties, "LIST_TIMEOUT_S", 0.2)
        self.assertEqual(await self.fetch(), {})
        self.listen()
        for answer in (lambda connection: connection.say(b"zzzz"), Scripted.close, lambda connection: None):
            self.served.on_data = answer
            self.assertEqual(await self.fetch(), {})


class ProgramTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="ag-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        os.makedirs(f"{self.home}/dev")

    def run_guest(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "anbox_tw.guest", "--dev", f"{self.home}/dev", "--root", self.home]
        guest = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

        def end() -> None:
            if guest.poll() is None:
                guest.kill()
            guest.communicate()

        self.addCleanup(end)
        return guest

    async def test_sigterm_stops_in_order(self) -> None:
        guest = self.run_guest()
        await until(lambda: os.path.exists(f"{self.home}/dev/anbox_guest"))
        self.assertTrue(os.path.isdir(f"{self.home}/data/local/tmp"))
        guest.send_signal(signal.SIGTERM)
        output, _ = await deferToThread(guest.communicate, None, 20)
        self.assertEqual(guest.returncode, 0, output)
        self.assertNotIn(b"Traceback", output)
        self.assertEqual(os.listdir(f"{self.home}/dev"), [])

    async def test_a_tree_that_cannot_be_made_ends_it_with_words(self) -> None:
        with open(f"{self.home}/data", "w"):
            pass
        guest = self.run_guest()
        output, _ = await deferToThread(guest.communicate, None, 20)
        self.assertEqual(guest.returncode, 2, output)
        self.assertIn(b"the guest's tree cannot be made", output)
        self.assertNotIn(b"Traceback", output)

    async def test_a_clipboard_without_a_guest(self) -> None:
        guest = self.run_guest("clipboard", "-")
        output, _ = await deferToThread(guest.communicate, None, 20)
        self.assertEqual(guest.returncode, 3, output)
        self.assertNotIn(b"Traceback", output)
