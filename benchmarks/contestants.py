"""The relays that are measured: how each is started, and what it used."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
START_S = 15.0

HAPROXY = """\
global
    maxconn 2000
    nbthread 1
    maxpipes 2000
    tune.pipesize 1048576
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    option splice-request
    option splice-response
listen relay
    bind 127.0.0.1:{port} backlog 4096
    server target unix@{path}
"""


def build(directory: str) -> dict[str, str]:
    """Compile the C programs into ``directory``; name -> path."""
    if shutil.which("gcc") is None:
        raise SystemExit("the load of these measurements is a C program: install gcc")
    programs = {}
    for name in ("load", "relay_rw", "relay_splice"):
        programs[name] = f"{directory}/{name}"
        subprocess.run(
            ["gcc", "-O2", "-pthread", "-o", programs[name], str(SOURCES / f"{name}.c")], check=True
        )
    return programs


@contextlib.contextmanager
def on_one_processor(pids: list[int]) -> Iterator[None]:
    """Keep processes, with all their threads, and what is started within, on the first processor for a while.

    How long a byte takes between two processors depends on whether they sleep, which a machine's other work decides;
    on one it does not.
    """
    cpus = os.sched_getaffinity(0)

    def move(where: set[int]) -> None:
        for pid in [os.getpid(), *pids]:
            with contextlib.suppress(OSError):  # ended meanwhile
                for task in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(task), where)

    move({min(cpus)})
    try:
        yield
    finally:
        move(cpus)


class Running:
    """One started relay.

    Attributes:
        address: where its callers connect, as ``load`` takes it.
    """

    def __init__(self, address: str, process: subprocess.Popen[bytes] | None) -> None:
        self.address = address
        self.process = process

    def _tree(self) -> list[int]:
        if self.process is None:
            return []
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                queue += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def cpu(self) -> float:
        """Seconds of processor time used so far, with its children, living and dead."""
        total = 0.0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    total += int((task / "schedstat").read_text().split()[0]) / 1e9
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
        return total

    def memory(self) -> int:
        """Bytes of memory that belong to it alone now (private pages of all its processes)."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Private_"):
                        total += int(line.split()[1]) * 1024
        return total


@contextlib.contextmanager
def started(command: list[str] | None, port: int, direct: str) -> Iterator[Running]:
    """Start a relay and wait until it accepts; None is no relay at all."""
    if command is None:
        yield Running(direct, None)
        return
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[0]} did not start") from None
                time.sleep(0.02)
        time.sleep(0.1)
        yield Running(f"tcp:{port}", process)
    finally:
        # its own session: children of a forking relay go with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


Command = Callable[[int, str, str], list[str] | None]


def contestants(programs: dict[str, str]) -> dict[str, Command]:
    """Name -> how to build its command from (port, path of the target, directory for files); what is missing is left out."""

    def haproxy(port: int, path: str, directory: str) -> list[str]:
        config = Path(directory) / f"haproxy-{port}.cfg"
        config.write_text(HAPROXY.format(port=port, path=path))
        return ["haproxy", "-q", "-db", "-f", str(config)]

    def ours(strategy: str, reactor: str = "default") -> Command:
        return lambda port, path, _: [
            sys.executable,
            "-m",
            "benchmarks.relay_ours",
            str(port),
            path,
            strategy,
            reactor,
        ]

    def python(loop: str) -> Command:
        return lambda port, path, _: [sys.executable, "-m", "benchmarks.relay_asyncio", str(port), path, loop]

    found: dict[str, Command] = {"anbox-tw": ours("auto"), "anbox-tw, producer": ours("producer")}
    if importlib.util.find_spec("anbox_tw.network.epoll"):
        found["anbox-tw, anbox-epoll"] = ours("auto", "anbox-epoll")
    if shutil.which("haproxy"):
        found["HAProxy"] = haproxy
    if shutil.which("socat"):
        listen = "TCP-LISTEN:{},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=4096"
        found["socat"] = lambda port, path, _: ["socat", listen.format(port), f"UNIX-CONNECT:{path}"]
    found["C read/write"] = lambda port, path, _: [programs["relay_rw"], str(port), path]
    found["C splice"] = lambda port, path, _: [programs["relay_splice"], str(port), path]
    found["asyncio"] = python("asyncio")
    if importlib.util.find_spec("uvloop"):
        found["uvloop"] = python("uvloop")
    found["no relay"] = lambda port, path, directory: None
    return found
