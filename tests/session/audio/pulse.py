"""A real PulseAudio server whose only sink is a null one, and its monitor."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.session.guest import until
from tests.support import need_tool


class Running(ProcessProtocol):
    """A process of the test."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(None)

    def kill(self, number: int = signal.SIGKILL) -> Deferred[None]:
        """Signal it; fires at its end."""
        transport: Any = self.transport
        if not self.ended.called:
            transport.signalProcess(number)
        return self.ended


def start(test: TestCase, arguments: list[str], environment: dict[str, str]) -> Running:
    """Start a process that does not outlive the test."""
    running = Running()
    reactor.spawnProcess(running, arguments[0], arguments, env=environment, path="/")
    test.addCleanup(running.kill)
    return running


class PulseServer:
    """PulseAudio in a directory of its own.

    Attributes:
        environment: of its clients.
    """

    def __init__(self, test: TestCase) -> None:
        for tool in ("pulseaudio", "pacat", "parec", "pactl"):
            need_tool(tool)
        self._test = test
        self.directory = tempfile.mkdtemp(prefix="ap-")
        test.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": self.directory,
            "XDG_RUNTIME_DIR": self.directory,
            "PULSE_SERVER": f"unix:{self.directory}/native",
            "LC_ALL": "C",
        }
        self.running: Running

    async def start(self) -> PulseServer:
        """Start it; returns when it answers."""
        socket = f"{self.directory}/native"
        self.running = start(
            self._test,
            [
                *("pulseaudio", "--daemonize=no", "--exit-idle-time=-1", "-n", "--use-pid-file=no"),
                *("--high-priority=no", "--realtime=no"),
                *("-L", "module-null-sink sink_name=null rate=44100 channels=2 format=s16le"),
                *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={socket}"),
            ],
            self.environment,
        )
        await until(lambda: os.path.exists(socket) or self.running.ended.called)
        if self.running.ended.called:
            raise AssertionError(self.running.errors.decode())
        return self

    def record(self, *options: str) -> Running:
        """Record what is played."""
        return start(
            self._test,
            [
                *(
                    "parec",
                    "--raw",
                    "--device=null.monitor",
                    "--format=s16le",
                    "--rate=44100",
                    "--channels=2",
                ),
                *options,
            ],
            self.environment,
        )

    async def pactl(self, *arguments: str) -> str:
        """What ``pactl`` says."""
        output, errors, code = await getProcessOutputAndValue(
            shutil.which("pactl") or "pactl", arguments, env=self.environment
        )
        if code != 0:
            raise AssertionError(errors.decode())
        text: str = output.decode()
        return text
