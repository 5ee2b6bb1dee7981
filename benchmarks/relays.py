"""What is measured of a relay between a TCP port (host) and a UNIX socket (guest), and how.

Rounds are interleaved: each round measures every relay once, so that what disturbs the machine disturbs all. Each
figure is the median of its rounds, and every comparison is a ratio within one run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen

from benchmarks.contestants import Running, build, contestants, started

GIB = 1 << 30


@frozen
class Measure:
    """One kind of figure.

    Attributes:
        key: in the results.
        title: in tables.
        unit: of the figure.
        better: ``more`` or ``less``.
    """

    key: str
    title: str
    unit: str
    better: str


MEASURES = [
    Measure("push", "throughput h→g", "MB/s", "more"),
    Measure("pull", "throughput g→h", "MB/s", "more"),
    Measure("push_cpu", "CPU h→g", "s/GiB", "less"),
    Measure("pull_cpu", "CPU g→h", "s/GiB", "less"),
    Measure("ping", "1 byte, p50", "µs", "less"),
    Measure("ping_p99", "1 byte, p99", "µs", "less"),
    Measure("ping64k", "64 KiB and ack, p50", "µs", "less"),
    Measure("calls1", "new connections, 1 caller", "1/s", "more"),
    Measure("calls8", "new connections, 8 callers", "1/s", "more"),
    Measure("calls_cpu", "CPU per connection", "µs", "less"),
    Measure("idle", "idle stream", "kB", "less"),
    Measure("notice", "death noticed after", "ms", "less"),
]


@frozen
class Scale:
    """How much of each.

    Attributes:
        rounds: how often.
        bytes: per throughput measurement.
        pings: round trips.
        calls: connections.
        streams: idle ones.
    """

    rounds: int
    bytes: int
    pings: int
    calls: int
    streams: int


FULL = Scale(rounds=7, bytes=2 * GIB, pings=10_000, calls=4000, streams=1000)
QUICK = Scale(rounds=1, bytes=GIB // 4, pings=1000, calls=400, streams=1000)


class Bench:
    """Servers, relays and clients of one run."""

    def __init__(self, scale: Scale, only: list[str], keys: list[str]) -> None:
        self.scale = scale
        self.keys = keys
        self._stack = contextlib.ExitStack()
        self.directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench"))
        self.programs = build(self.directory)
        found = contestants(self.programs)
        self.names = [name for name in found if not only or any(part == name for part in only)]
        self.commands = {name: found[name] for name in self.names}
        self.samples: dict[str, dict[str, list[float]]] = {name: {} for name in self.names}
        self.port = 21000

    def close(self) -> None:
        """Remove the files."""
        self._stack.close()

    def add(self, name: str, key: str, value: float) -> None:
        """Note a sample."""
        self.samples[name].setdefault(key, []).append(value)

    def load(self, *arguments: str, pin: bool = False) -> list[float]:
        """Run a client to its end; what it printed."""
        command = [*(["taskset", "-c", "0"] if pin else []), self.programs["load"], *arguments]
        return [float(x) for x in subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()]

    @contextlib.contextmanager
    def server(self, address: str, pin: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """The server behind the relay."""
        command = [*(["taskset", "-c", "0"] if pin else []), self.programs["load"], "server", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield process
            finally:
                process.kill()

    @contextlib.contextmanager
    def relay(self, name: str, pin: bool = False) -> Iterator[tuple[Running, subprocess.Popen[bytes]]]:
        """A relay with a server behind it, both new."""
        self.port += 1
        path = f"{self.directory}/s{self.port}"
        command = self.commands[name](self.port, path, self.directory)
        direct = f"tcp:{self.port}"
        if command is not None and pin:
            command = ["taskset", "-c", "0", *command]
        with self.server(direct if command is None else f"unix:{path}", pin) as server:
            with started(command, self.port, direct) as running:
                yield running, server

    def run(self, say: Callable[[str], None]) -> None:
        """All rounds."""
        steps: list[tuple[set[str], Callable[[str], None]]] = [
            ({"push", "pull", "push_cpu", "pull_cpu"}, self.bulk),
            ({"ping", "ping_p99", "ping64k"}, self.latency),
            ({"calls1", "calls8", "calls_cpu"}, self.calls),
            ({"idle"}, self.idle),
            ({"notice"}, self.notice),
        ]
        for number in range(self.scale.rounds):
            for keys, step in steps:
                if not keys & set(self.keys):
                    continue
                say(f"round {number + 1} of {self.scale.rounds}: {step.__name__}")
                for name in self.names:
                    step(name)

    def bulk(self, name: str) -> None:
        """Throughput and processor time, each direction."""
        with self.relay(name) as (running, _):
            self.load("push", running.address, str(64 << 20))
            for key in ("push", "pull"):
                before = running.cpu()
                (seconds,) = self.load(key, running.address, str(self.scale.bytes))
                self.add(name, key, self.scale.bytes / seconds / 1e6)
                if running.process is not None:
                    time.sleep(0.05)
                    self.add(name, f"{key}_cpu", (running.cpu() - before) * GIB / self.scale.bytes)

    def latency(self, name: str) -> None:
        """Round trips, all of it on one processor."""
        with self.relay(name, pin=True) as (running, _):
            p50, p99 = self.load("ping", running.address, str(self.scale.pings), "1", pin=True)
            self.add(name, "ping", p50)
            self.add(name, "ping_p99", p99)
            self.add(
                name,
                "ping64k",
                self.load("ping", running.address, str(self.scale.pings // 4), "65536", pin=True)[0],
            )

    def calls(self, name: str) -> None:
        """New connections per second."""
        with self.relay(name) as (running, _):
            self.load("calls", running.address, "200", "1")
            before = running.cpu()
            for callers in (1, 8):
                self.add(
                    name,
                    f"calls{callers}",
                    self.load("calls", running.address, str(self.scale.calls), str(callers))[0],
                )
            if running.process is not None:
                time.sleep(0.05)
                self.add(name, "calls_cpu", (running.cpu() - before) * 1e6 / (2 * self.scale.calls))

    def idle(self, name: str) -> None:
        """Memory of an idle stream."""
        if name == "no relay":
            return
        with self.relay(name) as (running, _):
            # what is allocated once, and once for the first streams, is not a stream's
            self.load("calls", running.address, "100", "4")
            time.sleep(0.1)
            before = running.memory()
            command = [self.programs["load"], "hold", running.address, str(self.scale.streams)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
                assert holder.stdout is not None
                holder.stdout.readline()
                time.sleep(0.2)
                self.add(name, "idle", (running.memory() - before) / self.scale.streams / 1000)
                holder.kill()

    def notice(self, name: str) -> None:
        """From the death of the target to the caller's learning of it."""
        with self.relay(name) as (running, server):
            command = [self.programs["load"], "notice", running.address]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
                assert client.stdout is not None
                client.stdout.readline()
                time.sleep(0.05)
                start = time.monotonic()
                os.kill(server.pid, signal.SIGKILL)
                end = float(client.stdout.readline())
                self.add(name, "notice", (end - start) * 1000)

    def results(self) -> dict[str, Any]:
        """Medians and samples."""
        return medians(self.samples)


def medians(samples: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Each list of samples with its median."""
    return {
        name: {
            key: {"median": statistics.median(values), "samples": [round(value, 4) for value in values]}
            for key, values in measured.items()
        }
        for name, measured in samples.items()
    }
