"""Our ADB server and client beside adb 36's, all against our adbd, in one run: ``python -m benchmarks --part adb``.

AOSP's own adbd does not run outside Android, so every row has ours at the device's end; the ratio is to the first
row, adb 36 as client and server. Rounds are interleaved and medians compared; before them each contestant runs once unseen,
for memory that a virtual machine touches for the first time costs more than the transfer. Everything is on loopback and,
where there is room, in memory (/dev/shm), so that no disk is measured.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.relays import Measure, medians

__all__ = ["BASE", "MEASURES", "run", "split_table"]

MIB = 1 << 20
FILES = 2000
"""Small files of one push, of 1 KiB each."""
SHELLS = 50
CONNECTS = 10
BASE = "adb 36 client, adb 36 server"
MEASURES = [
    Measure("push", "push", "MB/s", "more"),
    Measure("pull", "pull", "MB/s", "more"),
    Measure("push_files", f"push {FILES} files of 1 KiB", "s", "less"),
    Measure("pull_files", f"pull {FILES} files of 1 KiB", "s", "less"),
    Measure("shell", "shell true", "ms", "less"),
    Measure("connect", "connect", "ms", "less"),
]

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
        client = AdbClient(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        device = client.device()
    while line := sys.stdin.readline():
        verb, *words = json.loads(line)
        began = time.perf_counter()
        if verb == "push":
            await device.push(*words, compression="none")
        elif verb == "pull":
            await device.pull(*words)
        elif verb == "connect" and kind == "direct":
            await (await connect_device(reactor, f"localhost:{words[0]}", keys=[])).close()
        elif verb == "connect":
            await client.disconnect(f"localhost:{words[0]}")
            began = time.perf_counter()
            await client.connect(f"localhost:{words[0]}")
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


def wait_for_port(port: int) -> None:
    """Wait until somebody listens there, ten seconds at most."""
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


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
            wait_for_port(port)
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
            if verb in ("push", "pull"):
                return self.adb(port, verb, "-Z", *words)
            if verb == "connect":
                self.adb(port, "disconnect", f"localhost:{words[0]}")
                return self.adb(port, "connect", f"localhost:{words[0]}")
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

    def daemon_cpu(self) -> tuple[float, float]:
        """Seconds of CPU that our adbd has used: (its own code's, the kernel's for it)."""
        fields = Path(f"/proc/{self.adbd.pid}/stat").read_text().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / tick, int(fields[12]) / tick

    def daemon_peak_mib(self) -> int:
        """The most memory that our adbd ever had."""
        text = Path(f"/proc/{self.adbd.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) // 1024


def measure(do: Callable[..., float], bench: Bench, size: int) -> dict[str, float]:
    """One round of one contestant."""
    folder = bench.folder
    found = {}
    for verb, words in (("push", ("source", "there")), ("pull", ("there", "back"))):
        before = bench.daemon_cpu()
        found[verb] = size / 1e6 / do(verb, *(f"{folder}/{word}" for word in words))
        for name, start, end in zip(("python", "kernel"), before, bench.daemon_cpu(), strict=True):
            found[f"{verb}_{name}"] = (end - start) / (size / (1 << 30))
    found["push_files"] = do("push", f"{folder}/small", f"{folder}/small-there")
    found["pull_files"] = do("pull", f"{folder}/small-there", f"{folder}/small-back")
    found["shell"] = do("shell", SHELLS) / SHELLS * 1000
    found["connect"] = sum(do("connect", bench.device_port) for _ in range(CONNECTS)) / CONNECTS * 1000
    for name in ("there", "back"):
        os.unlink(f"{folder}/{name}")
    for name in ("small-there", "small-back"):
        shutil.rmtree(f"{folder}/{name}")
    return found


def run(rounds: int, mib: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure.

    Args:
        rounds: interleaved rounds, after one that does not count.
        mib: size of the large file.
        say: is told how far it is.

    Returns:
        ``{name: {measure: {"median", "samples"}}}`` as ``contestants``, and ``adbd peak MiB``.
    """
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    if memory and shutil.disk_usage(memory).free < 4 * mib * MIB:
        memory = None
    with tempfile.TemporaryDirectory(prefix="anbox-adb-bench-", dir=memory) as folder, ExitStack() as stack:
        block = os.urandom(MIB)
        with open(f"{folder}/source", "wb") as file:
            for _ in range(mib):
                file.write(block)
        os.mkdir(f"{folder}/small")
        for index in range(FILES):
            Path(folder, "small", str(index)).write_bytes(block[:1024])
        bench = Bench(stack, folder)
        contestants = {
            BASE: bench.adb_client(bench.theirs),
            "adb 36 client, our server": bench.adb_client(bench.ours),
            "our client, adb 36 server": bench.our_client("server", bench.theirs),
            "our client, our server": bench.our_client("server", bench.ours),
            "our client, no server": bench.our_client("direct", bench.device_port),
        }
        samples: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}: adb" if number else "adb: a round that does not count")
            for name, do in contestants.items():
                found = measure(do, bench, mib * MIB)
                for key, value in found.items() if number else ():
                    samples[name].setdefault(key, []).append(value)
        return {"contestants": medians(samples), "MiB": mib, "adbd peak MiB": bench.daemon_peak_mib()}


def split_table(results: dict[str, Any]) -> str:
    """Where our adbd's time goes, as Markdown."""
    lines = [
        "| our adbd under | push: Python, s/GiB | push: kernel, s/GiB | pull: Python, s/GiB | pull: kernel, s/GiB |",
        "|---|---|---|---|---|",
    ]
    for name, values in results["contestants"].items():
        cells = [
            f"{values[key]['median']:.2f}"
            for key in ("push_python", "push_kernel", "pull_python", "pull_kernel")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    base = {key: value["median"] for key, value in results["contestants"][BASE].items()}
    python, kernel = (base[f"push_{part}"] + base[f"pull_{part}"] for part in ("python", "kernel"))
    share = kernel / ((python + kernel) or 1)
    lines += [
        "",
        f"Under adb's own client and server {share:.0%} of our adbd's time is the kernel's, which copies each byte from the socket and into the"
        " file, or the other way: what Python could still save is the rest. Client, server and adbd share the processors, and each has the"
        " same copies to make.",
        "",
        f"CPU time of our adbd alone for a file of {results['MiB']} MiB: Python is its own code, kernel what reading, writing and copying"
        f" cost it in system calls. Its peak memory over the whole run: {results['adbd peak MiB']} MiB.",
    ]
    return "\n".join(lines)
