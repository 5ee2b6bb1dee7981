"""The console on its port: a session, and people's programs: adb emu 29 and 36, nc, telnet."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from anbox_tw.interfaces import IConsoleHost, IRedirections
from anbox_tw.network import RuntimePaths, free_port
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.session.console_host import SessionConsole
from anbox_tw.session.service import SessionService, SessionSettings
from tests.support import adb_binaries, need_tool


class Program(ProcessProtocol):
    """A program that is given its input at once; fires with what it printed."""

    def __init__(self, data: bytes, close: bool = True) -> None:
        self.done: Deferred[str] = Deferred()
        self._data = data
        self._close = close
        self._out = b""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._data)
        if self._close:
            self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._out += data

    def processEnded(self, reason: Failure) -> None:
        self.done.callback(self._out.decode())


class ConsoleTests(TestCase):
    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="ac-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.token = f"{self.home}/.emulator_console_auth_token"
        self.stops: list[str] = []
        self.session = self.make()
        self.session.startService()

    def make(self, **settings: Any) -> SessionService:
        session = SessionService(
            reactor,
            SessionSettings(
                paths=RuntimePaths(self.home),
                adb_server=AdbServerAddress(port=free_port()),
                standalone=True,
                console_token=self.token,
                **settings,
            ),
            Deferred,
            stop=self.stops.append,
        )
        self.addCleanup(session.stopService)
        return session

    @property
    def port(self) -> int:
        return self.session.adb.port - 1

    async def run_program(self, *command: str, data: bytes = b"", close: bool = True) -> str:
        program = Program(data, close)
        environment = {**os.environ, "HOME": self.home}
        reactor.spawnProcess(program, need_tool(command[0]), command, env=environment, path=self.home)
        return await program.done.addTimeout(60, reactor)

    async def test_adb_emu(self) -> None:
        for version, adb in adb_binaries().items():
            emu = (adb, "-s", f"emulator-{self.port}", "emu")
            self.assertEqual(
                (await self.run_program(*emu, "avd", "name")).split(), ["default", "OK"], version
            )
            self.assertIn("OK", await self.run_program(*emu, "geo", "fix", "13.4", f"{version}.5"), version)
            self.assertEqual(self.session.device.location.state.latitude, float(version) + 0.5)
            self.assertIn("KO: bad phone number", await self.run_program(*emu, "gsm", "call", "x"), version)
            await self.run_program(*emu, "sms", "send", "5551234", f"from adb {version}")
            self.assertEqual(
                self.session.device.messages.state.incoming[-1].text, f"from adb {version}", version
            )
        self.assertEqual(os.stat(self.token).st_mode & 0o777, 0o600)

    async def test_adb_emu_kill(self) -> None:
        for number, adb in enumerate(adb_binaries().values(), 1):
            said = await self.run_program(adb, "-s", f"emulator-{self.port}", "emu", "kill")
            self.assertIn("OK: killing emulator, bye bye", said)
            self.assertEqual(self.stops, ["killed by the console"] * number)

    async def test_nc_and_telnet(self) -> None:
        with open(self.token) as file:
            token = file.read()
        lines = f"auth {token}\nping\ngsm call 5551234\ngsm list\n"
        said = await self.run_program("nc", "127.0.0.1", str(self.port), data=f"{lines}quit\n".encode())
        self.assertTrue(said.startswith("Android Console: Authentication required\r\n"), said)
        self.assertTrue(
            said.endswith("I am alive!\r\nOK\r\nOK\r\ninbound from 5551234    : incoming\r\nOK\r\n"), said
        )
        said = await self.run_program(
            "telnet", "127.0.0.1", str(self.port), data=f"{lines}quit\r\n".encode(), close=False
        )
        self.assertIn("I am alive!", said)
        self.assertIn("inbound from 5551234    : incoming", said)

    async def test_the_other_loopback(self) -> None:
        if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
            return
        said = await self.run_program("socat", "-", f"TCP6:[::1]:{self.port}", data=b"ping\nquit\n")
        self.assertIn("I am alive!\r\nOK\r\n", said)

    async def test_redirections_are_the_sessions_forwards(self) -> None:
        with open(self.token, "w"):
            pass  # nobody is asked
        verifyObject(IRedirections, self.session.forwards)
        port = free_port()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            lines = (
                f"redir add tcp:{port}:5000\nredir list\nredir add tcp:{port}:1\n"
                f"redir add tcp:{taken.getsockname()[1]}:1\nredir del tcp:{port}\nredir list\nquit\n"
            )
            said = await self.run_program("nc", "127.0.0.1", str(self.port), data=lines.encode())
        self.assertEqual(
            said.splitlines()[2:],
            [
                "OK",
                f"tcp:{port:<5d} => 5000 ",
                "OK",
                "KO: host port already active, use 'redir del' to remove first",
                "KO: can't setup redirection, port probably used by another program on host",
                "OK",
                "no active redirections",
                "OK",
            ],
        )

    async def test_the_own_number_ends_with_the_port(self) -> None:
        self.assertEqual(self.session.device.phone.state.number, f"1555521{self.port}")

    async def test_many_clients_and_one_that_floods(self) -> None:
        def flood() -> None:
            with socket.create_connection(("127.0.0.1", self.port), 30) as bad:
                bad.settimeout(1)
                try:
                    for _ in range(200):
                        bad.sendall(b"help-verbose\n" * 5000)  # and reads nothing
                except (TimeoutError, OSError):
                    pass

        def ask() -> bytes:
            with socket.create_connection(("127.0.0.1", self.port), 30) as good:
                good.sendall(b"ping\nquit\n")
                said = b""
                while data := good.recv(4096):
                    said += data
                return said

        flooding = deferToThread(flood)
        for answer in [deferToThread(ask) for _ in range(8)]:
            self.assertIn(b"I am alive!\r\nOK\r\n", await answer)
        await flooding

    async def test_the_end_of_the_session_ends_clients(self) -> None:
        client = socket.create_connection(("127.0.0.1", self.port), 30)
        self.addCleanup(client.close)
        client.settimeout(30)
        self.assertIn(b"Android Console", await deferToThread(client.recv, 16))
        port = self.port
        await self.session.stopService()

        def rest() -> bytes:
            said = b""
            while data := client.recv(4096):
                said += data
            return said

        self.assertTrue((await deferToThread(rest)).endswith(b"OK\r\n"))
        self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", port), 5)

    async def test_without_a_console(self) -> None:
        await self.session.stopService()
        os.unlink(self.token)
        self.session = self.make(console=False)
        self.session.startService()
        said = await self.run_program("nc", "127.0.0.1", str(self.port), data=b"ping\n")
        self.assertEqual(said, "")
        self.assertFalse(os.path.exists(self.token))

    async def test_what_the_session_is_to_its_console(self) -> None:
        host = SessionConsole(self.session)
        verifyObject(IConsoleHost, host)
        self.assertEqual((host.name, host.running), ("default", True))
        for call in (host.pause, host.resume):
            error = (await call().addErrback(lambda failure: failure.value)) or ConnectionDone()
            self.assertIn("virtual device", str(error))
