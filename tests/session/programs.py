"""Our twistd commands as programs of their own."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.trial.unittest import TestCase

from tests.support import REPOSITORY

_CODE = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


class Program(ProcessProtocol):
    """A running twistd of ours.

    Attributes:
        output: what it wrote, to both outputs.
        ended: fires with the exit code, or with the negative number of the signal.
    """

    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[int] = Deferred()

    @property
    def pid(self) -> int:
        transport: Any = self.transport
        return int(transport.pid)

    def kill(self, number: int) -> None:
        transport: Any = self.transport
        transport.signalProcess(number)

    def outReceived(self, data: bytes) -> None:
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Any) -> None:
        value = reason.value
        self.ended.callback(-value.signal if value.signal else value.exitCode)


def start_twistd(test: TestCase, directory: str, command: str, *arguments: str) -> Program:
    """Start a command of ours in the foreground; it does not outlive the test."""
    program = Program()
    environment = {
        **{name: value for name, value in os.environ.items() if name.startswith(("COV", "PATH"))},
        "XDG_RUNTIME_DIR": directory,
        "HOME": directory,
        "PYTHONPATH": str(REPOSITORY),
        "ANDROID_ADB_SERVER_PORT": "1",
    }
    line = [sys.executable, "-c", _CODE, "-n", "--pidfile=", command, *arguments]
    reactor.spawnProcess(program, line[0], line, env=environment, path=directory)

    def end() -> Any:
        if program.ended.called:
            return None
        program.kill(9)
        return program.ended

    test.addCleanup(end)
    return program
