"""``python -m benchmarks.adb``: our ADB server and client beside adb 36's, all against our adbd, in one run.

AOSP's own adbd does not run outside Android, so every row has ours at the device's end; the ratio is to the first
row, adb 36 as client and server. Rounds are interleaved and medians compared. Everything is on loopback and, where there
is room, in memory (/dev/shm), so that no disk is measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20

ADBD = """
import sys
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from anbox_tw.adb.daemon import AdbDaemon
daemon = AdbDaemon(reactor)
factory = Factory()
factory.buildProtocol = lambda _: daemon.build_transport()
serverFromString(reactor, f"tcp:{sys.argv[1]}:interface=127.0.0.1").listen(factory).addCallback(lambda _: print("up", flush=True))
reactor.run()
"""

CLIENT = """
import json, sys, time
from twisted.internet import reactor, task
from twisted.internet.defer import ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from anbox_tw.adb.client import AdbClient, connect_device
async def main(reactor):
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "direct":
        device = await connect_device(reactor, f"localhost:{port}", keys=[])
    else:
        device = AdbClient(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", port)).device()
    while line := sys.stdin.readline():
        verb, *words = json.loads(line)
        began = time.perf_counter()
        if verb == "push":
            await device.push(*words, compression="none")
        elif verb == "pull":
            await device.pull(*words)
        else:
            for _ in range(words[0]):
                await device.shell("true")
        print(json.dumps(time.perf_counter() - began), flush=True)
task.react(lambda reactor: ensureDeferred(main(reactor)))
"""


def binary() -> str:
    """Where adb 36 is: in the wheel of adbutils, which the measurements of the relays do without."""
    adbutils: Any = importlib.import_module("adbutils")
    return str(Path(adbutils.__file__).parent / "binaries" / "adb")


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def isolated_environment(folder: str) -> dict[str, str]:
    """What makes adb keep to itself: its keys in ``folder``, no USB, no emulators, no mDNS."""
    return {
        **os.environ,
        "HOME": folder,
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "ADB_USB": "0",
        "ADB_EMU": "0",
        "ADB_MDNS": "0",
        "ADB_LOCAL_TRANSPORT_MAX_PORT": "5",
    }


@contextmanager
def running(
    *command: str, environment: dict[str, str], pipe: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A process, ended at the end."""
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdin=subprocess.PIPE if pipe else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        # A client waits for its next line in a read that no signal handler gets past.
        (process.kill if pipe else process.terminate)()
        process.wait(30)


class Bench:
    """The peers of one run."""

    def __init__(self, stack: ExitStack, folder: str) -> None:
        self.folder = folder
        self.environment = isolated_environment(folder)
        self.stack = stack
        self.device_port, self.theirs, self.ours = free_port(), free_port(), free_port()
        self.adbd = stack.enter_context(
            running(sys.executable, "-c", ADBD, str(self.device_port), environment=self.environment)
        )
        assert self.adbd.stdout is not None
        self.adbd.stdout.readline()
        stack.callback(self.adb, self.theirs, "kill-server")
        self.adb(self.theirs, "start-server")
        stack.enter_context(
            running(
                sys.executable,
                "-c",
                "from twisted.scripts.twistd import run; run()",
                "-n",
                "--pidfile=",
                "anbox-adb-server",
                f"--listen=tcp:{self.ours}:interface=127.0.0.1",
                "--no-emulators",
                environment=self.environment,
            )
        )
        for port in (self.theirs, self.ours):
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            self.adb(port, "connect", f"localhost:{self.device_port}")

    def adb(self, port: int, *arguments: str) -> float:
        """Run adb 36 against the server on ``port``; seconds it took."""
        environment = {**self.environment, "ANDROID_ADB_SERVER_PORT": str(port)}
        began = time.perf_counter()
        subprocess.run([binary(), *arguments], env=environment, check=True, capture_output=True, timeout=300)
        return time.perf_counter() - began

    def adb_client(self, port: int) -> Callable[..., float]:
        """adb 36 as the client of one server."""

        def do(verb: str, *words: Any) -> float:
            if verb == "push":
                return self.adb(port, "push", "-Z", *words)
            if verb == "pull":
                return self.adb(port, "pull", "-Z", *words)
            return sum(self.adb(port, "shell", "true") for _ in range(words[0]))

        return do

    def our_client(self, kind: str, port: int) -> Callable[..., float]:
        """Our client, in a process of its own that goes on running."""
        process = self.stack.enter_context(
            running(sys.executable, "-c", CLIENT, kind, str(port), environment=self.environment, pipe=True)
        )
        assert process.stdin is not None and process.stdout is not None
        write, read = process.stdin, process.stdout

        def do(verb: str, *words: Any) -> float:
            write.write(json.dumps([verb, *words]) + "\n")
            write.flush()
            return float(json.loads(read.readline()))

        return do


def measure(do: Callable[..., float], bench: Bench, size: int, files: int, shells: int) -> dict[str, float]:
    """One round of one contestant."""
    folder = bench.folder
    found = {}
    found["push, MB/s"] = size / 1e6 / do("push", f"{folder}/source", f"{folder}/there")
    found["pull, MB/s"] = size / 1e6 / do("pull", f"{folder}/there", f"{folder}/back")
    found[f"push {files} files, s"] = do("push", f"{folder}/small", f"{folder}/small-there")
    found[f"pull {files} files, s"] = do("pull", f"{folder}/small-there", f"{folder}/small-back")
    found["shell true, ms"] = do("shell", shells) / shells * 1000
    for name in ("there", "back"):
        os.unlink(f"{folder}/{name}")
    for name in ("small-there", "small-back"):
        shutil.rmtree(f"{folder}/{name}")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the large file")
    parser.add_argument("--files", type=int, default=2000, help="number of small files, of 1 KiB")
    parser.add_argument("--shells", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    if memory and shutil.disk_usage(memory).free < 4 * settings.size * MIB:
        memory = None
    with tempfile.TemporaryDirectory(prefix="anbox-adb-bench-", dir=memory) as folder, ExitStack() as stack:
        with open(f"{folder}/source", "wb") as file:
            block = os.urandom(MIB)
            for _ in range(settings.size):
                file.write(block)
        os.mkdir(f"{folder}/small")
        for index in range(settings.files):
            Path(folder, "small", str(index)).write_bytes(block[:1024])
        bench = Bench(stack, folder)
        contestants = {
            "adb 36 client, adb 36 server": bench.adb_client(bench.theirs),
            "adb 36 client, our server": bench.adb_client(bench.ours),
            "our client, adb 36 server": bench.our_client("server", bench.theirs),
            "our client, our server": bench.our_client("server", bench.ours),
            "our client, no server": bench.our_client("direct", bench.device_port),
        }
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        for _ in range(settings.rounds):
            for name, do in contestants.items():
                rounds[name].append(measure(do, bench, settings.size * MIB, settings.files, settings.shells))
        with open(f"/proc/{bench.adbd.pid}/status") as status:
            peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    medians = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for name, found in rounds.items()
    }
    base = next(iter(medians.values()))
    lines = ["| all against our adbd | " + " | ".join(base) + " |", "|" + "---|" * (len(base) + 1)]
    for name, values in medians.items():
        cells = [f"{values[key]:.4g} ({values[key] / base[key]:.2f})" for key in base]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(
        f"\n{os.cpu_count()} CPUs, medians of {settings.rounds}; peak memory of our adbd {int(peak) // 1024} MiB"
    )
    text = "\n".join(lines)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "adb.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
