"""An adbd that says CNXN and nothing more, and adb servers of the real programs."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.utils import getProcessOutputAndValue

CNXN = 0x4E584E43


def packet(command: int, arg0: int, arg1: int, payload: bytes = b"") -> bytes:
    return struct.pack("<6I", command, arg0, arg1, len(payload), sum(payload), command ^ 0xFFFFFFFF) + payload


BANNER = packet(CNXN, 0x01000000, 4096, b"device::ro.product.name=scripted;ro.product.model=m;")


class ScriptedAdbd(Protocol):
    """Answers each CNXN with ours; what else comes is counted."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.received += data
        while len(self.received) >= 24:
            size = 24 + struct.unpack_from("<I", self.received, 12)[0]
            if len(self.received) < size:
                return
            message, self.received = self.received[:size], self.received[size:]
            if message[:4] == b"CNXN":
                self.transport.write(BANNER)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


def unused_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealAdb:
    """One adb program with a server port and a home of its own."""

    def __init__(self, program: str, *, scan: bool, max_port: int = 5) -> None:
        self.program = program
        self.port = unused_port()
        self.home = tempfile.mkdtemp(prefix="adb-home-")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": self.home,
            "TMPDIR": self.home,
            "ANDROID_ADB_SERVER_PORT": str(self.port),
            "ADB_USB": "0",
            "ADB_MDNS": "0",
            "ADB_MDNS_AUTO_CONNECT": "0",
            "ADB_LIBUSB": "0",
        }
        if not scan:
            self.environment["ADB_EMU"] = "0"
            self.environment["ADB_LOCAL_TRANSPORT_MAX_PORT"] = str(max_port)

    async def run(self, *arguments: str) -> tuple[str, int]:
        """Run the client; what it printed (both outputs) and its exit code."""
        out, error, code = await getProcessOutputAndValue(
            self.program, arguments, env=self.environment, reactor=reactor
        )
        return (out + error).decode("utf-8", "replace"), code

    async def devices(self) -> dict[str, str]:
        out, _ = await self.run("devices")
        lines = [line.split("\t") for line in out.splitlines() if "\t" in line]
        return {line[0]: line[1] for line in lines}

    async def stop(self) -> None:
        await self.run("kill-server")
        shutil.rmtree(self.home, ignore_errors=True)
