"""Reaching a guest's TCP service: ``adb forward`` (adb 36 and our adbd) beside the direct forward, in one run.

The same C load as for the relays stands at both ends, and rounds are interleaved. The way between
them differs: two processes and a link by adb, one process with the direct forward. Latency is taken on one processor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks import adb
from benchmarks.contestants import build, on_one_processor
from benchmarks.relays import Measure, Scale, medians

__all__ = ["ADB_FORWARD", "BARE", "DIRECT_FORWARD", "MEASURES", "run"]

MEASURES = [
    Measure("push", "throughput to the guest", "MB/s", "more"),
    Measure("pull", "throughput from the guest", "MB/s", "more"),
    Measure("ping", "1 byte, p50", "µs", "less"),
    Measure("ping_p99", "1 byte, p99", "µs", "less"),
    Measure("calls1", "new connections, 1 caller", "1/s", "more"),
    Measure("notice", "death noticed after", "ms", "less"),
]
# of one round: a fraction of a millisecond varies much, and costs little to see again
DEATHS = 5
ADB_FORWARD, DIRECT_FORWARD, BARE = "adb forward (adb 36, our adbd)", "direct forward", "no forward"


class Forwards:
    """The peers of one run."""

    def __init__(self, stack: ExitStack, scale: Scale) -> None:
        self.scale = scale
        self.folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="anbox-forward-bench-"))
        self.programs = build(self.folder)
        self.environment = adb.isolated_environment(self.folder)
        self.stack = stack
        self.device_port, self.server_port, self.guest_port = (adb.free_port() for _ in range(3))
        daemon = stack.enter_context(
            adb.running(sys.executable, "-c", adb.ADBD, str(self.device_port), environment=self.environment)
        )
        assert daemon.stdout is not None
        daemon.stdout.readline()
        server = stack.enter_context(
            adb.running(
                adb.binary(), "-P", str(self.server_port), "server", "nodaemon", environment=self.environment
            )
        )
        self.between = [daemon.pid, server.pid]
        adb.wait_for_port(self.server_port)
        self.adb("connect", f"localhost:{self.device_port}")
        ports = {ADB_FORWARD: self.by_adb(), DIRECT_FORWARD: self.directly(), BARE: self.guest_port}
        self.ports = {name: port for name, port in ports.items() if port is not None}
        self.samples: dict[str, dict[str, list[float]]] = {name: {} for name in self.ports}

    def adb(self, *arguments: str) -> str:
        """Run adb 36 against a server of its own."""
        environment = {**self.environment, "ANDROID_ADB_SERVER_PORT": str(self.server_port)}
        return subprocess.run(
            [adb.binary(), *arguments],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def by_adb(self) -> int:
        """Make an ``adb forward``; its port."""
        return int(self.adb("forward", "tcp:0", f"tcp:{self.guest_port}"))

    def directly(self) -> int | None:
        """Start our forward; its port, or None where the helper may not enter the namespaces."""
        process = self.stack.enter_context(
            adb.running(
                sys.executable,
                "-m",
                "benchmarks.forward_ours",
                str(self.guest_port),
                environment=self.environment,
            )
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        self.between.append(process.pid)
        return int(line) if line else None

    @contextlib.contextmanager
    def guest(self) -> Iterator[subprocess.Popen[bytes]]:
        """The guest's service, new."""
        command = [self.programs["load"], "server", f"tcp:{self.guest_port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield process
            finally:
                process.kill()

    def load(self, *arguments: str) -> list[float]:
        """Run a client to its end; what it printed."""
        done = subprocess.run(
            [self.programs["load"], *arguments], check=True, stdout=subprocess.PIPE, timeout=120
        )
        return [float(x) for x in done.stdout.split()]

    def round(self) -> None:
        """Measure each once."""
        for name, port in self.ports.items():
            note = self.samples[name]
            address = f"tcp:{port}"
            # adb moves some hundred MB/s: an eighth keeps its rounds about as long
            size = self.scale.bytes // (8 if name == ADB_FORWARD else 1)
            with self.guest() as server:
                self.load("push", address, str(8 << 20))
                for key in ("push", "pull"):
                    note.setdefault(key, []).append(size / self.load(key, address, str(size))[0] / 1e6)
                with on_one_processor([*self.between, server.pid]):
                    p50, p99 = self.load("ping", address, str(self.scale.pings // 4), "1")
                note.setdefault("ping", []).append(p50)
                note.setdefault("ping_p99", []).append(p99)
                (rate,) = self.load("calls", address, str(self.scale.calls // 8), "1")
                note.setdefault("calls1", []).append(rate)
            note.setdefault("notice", []).extend(self.notice(address) for _ in range(DEATHS))

    def notice(self, address: str) -> float:
        """Milliseconds from the death of the service to the caller's learning of it."""
        with (
            self.guest() as server,
            subprocess.Popen([self.programs["load"], "notice", address], stdout=subprocess.PIPE) as client,
        ):
            assert client.stdout is not None
            client.stdout.readline()
            time.sleep(0.05)
            start = time.monotonic()
            os.kill(server.pid, signal.SIGKILL)
            return (float(client.stdout.readline()) - start) * 1000


def run(scale: Scale, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure: ``{name: {measure: {"median", "samples"}}}``."""
    with ExitStack() as stack:
        forwards = Forwards(stack, scale)
        for number in range(scale.rounds):
            say(f"round {number + 1} of {scale.rounds}: forwards")
            forwards.round()
        return medians(forwards.samples)
