"""A session in the test's own reactor, with a guest played by the test, and the command line as a program beside it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from click.testing import CliRunner
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from anbox_tw.cli import cli
from tests.session.guest import BridgeGuest, until
from tests.session.test_service import SessionCase
from tests.support import REPOSITORY

LIMIT_S = 60.0


class Program(ProcessProtocol):
    """One run of ``anbox``."""

    def __init__(self, stdin: str = "", terminal: bool = False) -> None:
        self._stdin = stdin
        self._terminal = terminal
        self.out = ""
        self.err = ""
        self.ended: Deferred[int] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        if self._stdin:
            self.transport.write(self._stdin.encode())
        if not self._terminal:
            self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self.out += data.decode()

    def errReceived(self, data: bytes) -> None:
        self.err += data.decode()

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        self.ended.callback(0 if reason.check(ProcessDone) else value.exitCode)

    def interrupt(self) -> None:
        """As Ctrl-C."""
        assert self.transport is not None
        self.transport.signalProcess("INT")

    def kill(self) -> None:
        if not self.ended.called and self.transport is not None:
            self.transport.signalProcess("KILL")


class CommandCase(SessionCase):
    """Runs ``anbox`` against ``self.session``."""

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANBOX_", "XDG_"))}
        return {**kept, "XDG_RUNTIME_DIR": self.runtime, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}

    def start(self, *arguments: str, stdin: str = "", terminal: bool = False) -> Program:
        program = Program(stdin, terminal)
        command = [sys.executable, "-u", "-m", "anbox_tw.cli", *arguments]
        environment = {**self.environment(), "TERM": "xterm"} if terminal else self.environment()
        reactor.spawnProcess(program, sys.executable, command, env=environment, usePTY=terminal)
        limit = reactor.callLater(LIMIT_S, program.kill)

        def over(code: int) -> int:
            if limit.active():
                limit.cancel()
            return code

        program.ended.addCallback(over)
        self.addCleanup(program.kill)
        return program

    async def anbox(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """Run a command to its end; returns what it printed, on standard error when it is meant to fail."""
        program = self.start(*arguments, stdin=stdin)
        self.assertEqual(await program.ended, code, f"{arguments}: {program.out}{program.err}")
        return program.out if code == 0 else program.err

    def wrong_usage(self, *arguments: str) -> None:
        """The command line alone is wrong: no session is asked, so no process is needed to see it."""
        result = CliRunner().invoke(cli, arguments)
        self.assertEqual(result.exit_code, 2, f"{arguments}: {result.output}")

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.anbox(*arguments, "--json"))

    async def boot(self) -> BridgeGuest:
        self.session.startService()
        guest = await self.guest()
        guest.booted()
        await until(lambda: self.session.state.levels.booted)
        return guest
