"""Real adb in tests: its server on a private port, with a private home, and its client."""

from __future__ import annotations

import os
import random
import socket
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig
from tests.support import adb_binaries

reactor: Any = _reactor
TIMEOUT_S = 40


class Result:
    """What a command said."""

    def __init__(self, out: bytes, err: bytes, code: int) -> None:
        self.out = out
        self.err = err
        self.code = code

    @property
    def text(self) -> str:
        return (self.out + self.err).decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<code {self.code}: {self.text!r}>"


class Command(ProcessProtocol):
    """A running command; ``done`` fires with its ``Result``."""

    def __init__(self, stdin: bytes | None = b"") -> None:
        self.stdin = stdin
        self.out = bytearray()
        self.err = bytearray()
        self.done: Deferred[Result] = Deferred()
        self.waiting: list[tuple[bytes, Deferred[None]]] = []

    def connectionMade(self) -> None:
        if self.stdin is not None:
            assert self.transport is not None
            self.transport.write(self.stdin)
            self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self.out += data
        for wanted, waiter in list(self.waiting):
            if wanted in self.out:
                self.waiting.remove((wanted, waiter))
                waiter.callback(None)

    def errReceived(self, data: bytes) -> None:
        self.err += data

    def said(self, wanted: bytes) -> Deferred[None]:
        """Fires when ``wanted`` has been written to stdout."""
        waiter: Deferred[None] = Deferred()
        if wanted in self.out:
            waiter.callback(None)
        else:
            self.waiting.append((wanted, waiter))
        return waiter.addTimeout(TIMEOUT_S, reactor)

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        code = value.exitCode if value.exitCode is not None else 128 + (value.signal or 0)
        self.done.callback(Result(bytes(self.out), bytes(self.err), code))


def free_port() -> int:
    """A port for a server that is yet to start, where the kernel takes none for anybody's connection meanwhile."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        lowest = int(file.read().split()[0])
    while True:
        port = random.randrange(10_000, lowest if lowest > 11_000 else 65_536)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class RealAdb:
    """One version of adb with its own server.

    Args:
        test: the test it belongs to; its server is killed at the end.
        version: ``29`` or ``36``.
    """

    def __init__(self, test: TestCase, version: str, **environment: str) -> None:
        self.binary = adb_binaries()[version]
        self.home = os.path.abspath(test.mktemp())
        os.makedirs(self.home)
        self.port = free_port()
        self.serial = ""
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": self.home,
            "TMPDIR": self.home,
            "ADB_EMU": "0",
            "ADB_USB": "0",
            "ADB_MDNS": "0",
            "ADB_LOCAL_TRANSPORT_MAX_PORT": "5",
            "ANDROID_ADB_SERVER_PORT": str(self.port),
            "TERM": "xterm",
            **environment,
        }
        test.addCleanup(self.kill)

    def start(self, *arguments: str, stdin: bytes | None = b"") -> Command:
        """Start a client; does not wait."""
        command = Command(stdin)
        argv = [self.binary, *(["-s", self.serial] if self.serial else []), *arguments]
        command.process = reactor.spawnProcess(command, self.binary, argv, self.environment)  # type: ignore[attr-defined]
        return command

    async def run(self, *arguments: str, stdin: bytes | None = b"") -> Result:
        """Run a client to its end."""
        command = self.start(*arguments, stdin=stdin)
        return await command.done.addTimeout(TIMEOUT_S, reactor)

    async def connect(self, port: int) -> Result:
        """``adb connect``, and use that device from now on."""
        result = await self.run("connect", f"localhost:{port}")
        self.serial = f"localhost:{port}"
        return result

    async def kill(self) -> None:
        self.serial = ""
        await self.run("kill-server")


class DaemonTestCase(TestCase):
    """Tests against our adbd on a TCP port of this machine."""

    timeout = 30

    async def serve(self, config: DaemonConfig | None = None) -> int:
        """Start an adbd; returns its port. It is stopped at the end of the test."""
        self.daemon = AdbDaemon(reactor, config)
        factory = Factory()
        factory.buildProtocol = lambda _address: self.daemon.build_transport()  # type: ignore[method-assign,assignment]
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)

        async def stop() -> None:
            await listening.stopListening()
            await self.daemon.stop()

        self.addCleanup(stop)
        return int(listening.getHost().port)

    def folder(self) -> str:
        path: str = os.path.abspath(self.mktemp())
        os.makedirs(path)
        return path
