"""``python -m benchmarks.rpc``: our RPC beside gRPC's Python implementations, echoing 64 bytes of text.

Every contestant has a server and a client of its own, in a process each, over a UNIX socket; rounds are
interleaved and the medians compared. ``grpcio`` and ``grpclib`` are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from anbox_tw.rpc._pb.anbox_bridge_pb2 import ClipboardData
from benchmarks.contestants import on_one_processor

Times = tuple[list[float], float]

MESSAGE = ClipboardData(text="x" * 64)
METHOD = "/anbox.Echo/Say"

PLAIN = "anbox_tw.rpc, plain socket as client"

CONTESTANTS = {
    "anbox_tw.rpc": "twisted",
    "anbox_tw.rpc, anbox-epoll": "twisted",
    PLAIN: "twisted",
    "grpcio": "grpc",
    "grpcio aio": "grpc",
    "grpclib": "grpclib",
}
"""Name, and the module it needs."""


# -- servers -----------------------------------------------------------------------------------


def serve_ours(path: str) -> None:
    from twisted.internet import reactor as global_reactor
    from twisted.internet.endpoints import UNIXServerEndpoint

    from anbox_tw.rpc import Dispatcher, RpcFactory

    reactor: Any = global_reactor
    dispatcher = Dispatcher()
    dispatcher.register("echo", ClipboardData, lambda request, peer: request)
    listening = UNIXServerEndpoint(reactor, path).listen(RpcFactory(reactor, dispatcher))
    listening.addCallback(lambda _: print("ready", flush=True))
    reactor.run()


def _grpc_handlers(grpc: Any, say: Callable[..., Any]) -> Any:
    handler = grpc.unary_unary_rpc_method_handler(
        say, ClipboardData.FromString, ClipboardData.SerializeToString
    )

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return handler

    return Handlers()


def serve_grpcio(path: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((_grpc_handlers(grpc, lambda request, context: request),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def serve_grpcio_aio(path: str) -> None:
    import asyncio

    import grpc

    async def say(request: Any, context: Any) -> Any:
        return request

    async def main() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_grpc_handlers(grpc, say),))
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        print("ready", flush=True)
        await server.wait_for_termination()

    asyncio.run(main())


def serve_grpclib(path: str) -> None:
    import asyncio

    from grpclib.const import Cardinality, Handler
    from grpclib.server import Server

    class Echo:
        async def say(self, stream: Any) -> None:
            await stream.send_message(await stream.recv_message())

        def __mapping__(self) -> dict[str, Any]:
            return {METHOD: Handler(self.say, Cardinality.UNARY_UNARY, ClipboardData, ClipboardData)}

    async def main() -> None:
        server = Server([Echo()])
        await server.start(path=path)
        print("ready", flush=True)
        await server.wait_closed()

    asyncio.run(main())


# -- clients: calls, calls outstanding -> seconds of each call, and of all -----------------------------------


def call_ours(path: str, calls: int, outstanding: int) -> Times:
    from twisted.internet import reactor as global_reactor
    from twisted.internet.defer import Deferred, ensureDeferred
    from twisted.internet.endpoints import UNIXClientEndpoint

    from anbox_tw.rpc import connect

    reactor: Any = global_reactor
    times: list[float] = []

    async def main() -> None:
        channel = await connect(UNIXClientEndpoint(reactor, path), reactor)
        done: Deferred[None] = Deferred()
        clock = time.perf_counter
        left = calls
        start = clock()

        def answered(_: ClipboardData, began: float) -> None:
            times.append(clock() - began)
            if len(times) == calls:
                done.callback(None)
            else:
                call()

        def call() -> None:
            nonlocal left
            if left:
                left -= 1
                channel.call("echo", MESSAGE, ClipboardData).addCallback(answered, clock())

        for _ in range(outstanding):
            call()
        await done
        spent.append(clock() - start)
        await channel.close()

    spent: list[float] = []
    ensureDeferred(main()).addErrback(lambda failure: failure.printTraceback()).addBoth(
        lambda _: reactor.stop()
    )
    reactor.run()
    return times, spent[0]


def call_plain(path: str, calls: int, outstanding: int) -> Times:
    """A blocking socket that sends bytes made before: what the server alone can do."""
    import socket

    from anbox_tw.rpc._framing import encode_invocation, encode_response, invocation_prefix

    data = MESSAGE.SerializeToString()
    prefix = invocation_prefix("echo")
    batch = b"".join(encode_invocation(number, prefix, data) for number in range(outstanding))
    expected = sum(len(encode_response(number, data)) for number in range(outstanding))
    times: list[float] = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        start = time.perf_counter()
        for _ in range(calls // outstanding):
            began = time.perf_counter()
            sock.sendall(batch)
            got = 0
            while got < expected:
                got += len(sock.recv(1 << 18))
            times.extend([time.perf_counter() - began] * outstanding)
        return times, time.perf_counter() - start


def call_grpcio(path: str, calls: int, outstanding: int) -> Times:
    import grpc

    channel = grpc.insecure_channel(f"unix:{path}")
    say = channel.unary_unary(METHOD, ClipboardData.SerializeToString, ClipboardData.FromString)
    times: list[float] = []
    clock = time.perf_counter
    say(MESSAGE)
    start = clock()
    if outstanding == 1:
        for _ in range(calls):
            began = clock()
            say(MESSAGE)
            times.append(clock() - began)
        return times, clock() - start
    lock = threading.Lock()
    done = threading.Event()
    left = calls

    def call() -> None:
        nonlocal left
        with lock:
            if not left:
                return
            left -= 1
        began = clock()

        def answered(_: Any) -> None:
            with lock:
                times.append(clock() - began)
                last = len(times) == calls
            if last:
                done.set()
            else:
                call()

        say.future(MESSAGE).add_done_callback(answered)

    for _ in range(outstanding):
        call()
    done.wait()
    return times, clock() - start


def call_grpcio_aio(path: str, calls: int, outstanding: int) -> Times:
    import asyncio

    import grpc

    times: list[float] = []

    async def main() -> None:
        channel = grpc.aio.insecure_channel(f"unix:{path}")
        say = channel.unary_unary(METHOD, ClipboardData.SerializeToString, ClipboardData.FromString)

        async def worker() -> None:
            for _ in range(calls // outstanding):
                began = time.perf_counter()
                await say(MESSAGE)
                times.append(time.perf_counter() - began)

        await say(MESSAGE)
        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(outstanding)))
        spent.append(time.perf_counter() - start)
        await channel.close()

    spent: list[float] = []
    asyncio.run(main())
    return times, spent[0]


def call_grpclib(path: str, calls: int, outstanding: int) -> Times:
    import asyncio

    from grpclib.client import Channel, UnaryUnaryMethod

    times: list[float] = []

    async def main() -> None:
        channel = Channel(path=path)
        say: Any = UnaryUnaryMethod(channel, METHOD, ClipboardData, ClipboardData)

        async def worker() -> None:
            for _ in range(calls // outstanding):
                began = time.perf_counter()
                await say(MESSAGE)
                times.append(time.perf_counter() - began)

        await say(MESSAGE)
        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(outstanding)))
        spent.append(time.perf_counter() - start)
        channel.close()

    spent: list[float] = []
    asyncio.run(main())
    return times, spent[0]


SERVERS = {
    "anbox_tw.rpc": serve_ours,
    "anbox_tw.rpc, anbox-epoll": serve_ours,
    PLAIN: serve_ours,
    "grpcio": serve_grpcio,
    "grpcio aio": serve_grpcio_aio,
    "grpclib": serve_grpclib,
}
CLIENTS = {
    "anbox_tw.rpc": call_ours,
    "anbox_tw.rpc, anbox-epoll": call_ours,
    PLAIN: call_plain,
    "grpcio": call_grpcio,
    "grpcio aio": call_grpcio_aio,
    "grpclib": call_grpclib,
}
SHARE = {"grpcio": 0.12, "grpcio aio": 0.1, "grpclib": 0.08}
"""How many of the calls a slow contestant makes, so that a round takes each about as long."""


# -- measuring ---------------------------------------------------------------------------------


def client_role(name: str, path: str, calls: int, outstanding: int) -> None:
    """Print what one client measured, as JSON."""
    times, seconds = CLIENTS[name](path, calls, outstanding)
    times.sort()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "calls_per_s": len(times) / seconds,
                "p50_us": times[len(times) // 2] * 1e6,
                "p99_us": times[len(times) * 99 // 100] * 1e6,
                "client_peak_kb": peak,
            }
        )
    )


def memory_kb(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


class Server:
    """One contestant's server, as a process."""

    def __init__(self, name: str, directory: str, prefix: list[str]) -> None:
        self.path = f"{directory}/{abs(hash(name)):x}"
        command = [*prefix, sys.executable, "-m", "benchmarks.rpc", "--server", name, "--path", self.path]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.prefix = prefix
        self.name = name
        stdout = self.process.stdout
        if stdout is None or stdout.readline() != "ready\n":
            raise RuntimeError(f"the server {name} did not start")

    def measure(self, calls: int, outstanding: int) -> dict[str, float]:
        """Run a client against it."""
        command = [*self.prefix, sys.executable, "-m", "benchmarks.rpc", "--client", self.name]
        command += ["--path", self.path, "--calls", str(calls), "--outstanding", str(outstanding)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        result["server_kb"] = memory_kb(self.process.pid)
        return result

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def measure(*, calls: int, rounds: int, pinned: bool, million: bool) -> dict[str, Any]:
    """Everything, as ``{contestant: {measure: value}}``."""
    names = [name for name, module in CONTESTANTS.items() if importlib.util.find_spec(module)]
    prefix = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if pinned else []
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    extra: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="anbox-rpc-") as directory:
        servers = {name: Server(name, directory, prefix) for name in names}
        try:
            for _ in range(rounds):
                for outstanding in (1, 64):
                    for name, server in servers.items():
                        share = SHARE.get(name, 1.0) * (1 if outstanding == 1 or name not in SHARE else 0.5)
                        made = max(64, int(calls * share * (1 if outstanding == 1 else 3)) // 64 * 64)
                        # one call after the other is latency, and that is taken on one processor
                        alone = on_one_processor([server.process.pid]) if outstanding == 1 else nullcontext()
                        with alone:
                            figures = server.measure(made, outstanding)
                        for key, value in figures.items():
                            found[name].setdefault(f"{key} {outstanding}", []).append(value)
            if million:
                ours = servers["anbox_tw.rpc"]
                before = memory_kb(ours.process.pid)
                result = ours.measure(1_000_000, 64)
                extra = {
                    "calls": 1_000_000,
                    "server_kb_before": before,
                    "server_kb_after": result["server_kb"],
                    "calls_per_s": result["calls_per_s"],
                }
        finally:
            for server in servers.values():
                server.stop()
    return {"medians": middle(found), "rounds": found, "million": extra}


def middle(rounds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """The median of each figure."""
    return {
        name: {key: statistics.median(values) for key, values in measured.items()}
        for name, measured in rounds.items()
    }


COLUMNS = (
    ("calls_per_s 1", "calls/s, 1 outstanding, pinned"),
    ("p50_us 1", "p50, us"),
    ("p99_us 1", "p99, us"),
    ("calls_per_s 64", "calls/s, 64 outstanding"),
    ("p99_us 64", "p99 of 64, us"),
)


def table(results: dict[str, Any]) -> str:
    """The medians as Markdown, with the ratio to grpcio."""
    medians = results["medians"]
    base = medians.get("grpcio")
    lines = ["| RPC | " + " | ".join(title for _, title in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, values in medians.items():
        cells = [
            f"{values[key]:.0f}" + (f" ({values[key] / base[key]:.2f}x)" if base else "")
            for key, _ in COLUMNS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "x = ratio to grpcio."]
    if results["million"]:
        one = results["million"]
        lines.append(
            f"A million calls: the server's memory went from {one['server_kb_before']} to"
            f" {one['server_kb_after']:.0f} kB, at {one['calls_per_s']:.0f} calls/s."
        )
    return "\n".join(lines)


def run(*, quick: bool, pinned: bool = False, rounds: int = 5) -> dict[str, Any]:
    """Measure, and tell about what.

    Args:
        quick: one short round.
        pinned: everything on one CPU.
        rounds: how many, unless it is quick.
    """
    settings = (
        {"calls": 4000, "rounds": 1, "million": False}
        if quick
        else {"calls": 20000, "rounds": rounds, "million": True}
    )
    results = measure(**settings, pinned=pinned)  # type: ignore[arg-type]
    results["about"] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "pinned": pinned,
    }
    return results


def main() -> None:
    """The command, and the roles that it starts itself in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rpc", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--pinned", action="store_true", help="everything on one CPU")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--outstanding", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "anbox-epoll" in (arguments.server or arguments.client or ""):
        importlib.import_module("anbox_tw.network.epoll").install()
    if arguments.server:
        SERVERS[arguments.server](arguments.path)
    elif arguments.client:
        client_role(arguments.client, arguments.path, arguments.calls, arguments.outstanding)
    else:
        results = run(quick=arguments.quick, pinned=arguments.pinned)
        print(table(results))
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
