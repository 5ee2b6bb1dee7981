"""``python -m benchmarks``: measure, print the table, and keep both under ``benchmarks/results/``."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

from benchmarks import adb, forwards, report, rpc, soak
from benchmarks.relays import FULL, MEASURES, QUICK, Bench, Scale

# of the machine, before ours: figures from a busy one are worth less
LOAD_BEFORE = os.getloadavg()[0]
PARTS = ("relays", "forwards", "rpc", "adb", "soak")
RESULTS = Path(__file__).parent / "results"


def first_line(*command: str) -> str:
    """What a program says about its version, or that it is missing."""
    if shutil.which(command[0]) is None:
        return "missing"
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if any(char.isdigit() for char in line)]
    return lines[0].strip() if lines else "unknown"


def host() -> dict[str, Any]:
    """The machine and the versions."""
    import twisted

    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.*)", cpuinfo)
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "twisted": twisted.__version__,
        "haproxy": first_line("haproxy", "-v"),
        "socat": first_line("socat", "-V"),
        "gcc": first_line("gcc", "--version"),
    }


def measure_relays(scale: Scale, only: list[str], keys: list[str]) -> dict[str, Any]:
    """The rounds of the relays."""
    bench = Bench(scale, only, keys or [measure.key for measure in MEASURES])
    try:
        bench.run(say)
    finally:
        bench.close()
    return bench.results()


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small round; ends within 90 s")
    parser.add_argument("--mib", type=int, help="MiB of each transfer")
    parser.add_argument("--rounds", type=int, help="how many interleaved rounds")
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        choices=PARTS,
        help="this part only (repeat); all but soak where none is given",
    )
    parser.add_argument(
        "--append",
        action="store_true",
        help="add the samples to today's results of this kind of machine: a long measurement in several goes",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="RELAY", help="measure this relay (repeat)"
    )
    parser.add_argument(
        "--measure", action="append", default=[], metavar="KEY", help="this figure only (repeat)"
    )
    parser.add_argument("--gib", type=float, default=10, help="GiB each way of the soak")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    # ended from outside, the relays and servers end too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    scale = QUICK if arguments.quick else FULL
    if arguments.rounds:
        scale = attrs.evolve(scale, rounds=arguments.rounds)
    if arguments.mib:
        scale = attrs.evolve(scale, bytes=arguments.mib << 20)
    some = bool(arguments.only or arguments.measure)
    parts = arguments.part or (
        ["relays"] if some else ["relays", "forwards", "rpc", *([] if arguments.quick else ["adb"])]
    )
    machine = host()
    document: dict[str, Any] = {
        "host": machine,
        "settings": {"MiB per transfer": scale.bytes >> 20, "idle streams": scale.streams},
        "runs": [],
    }
    for part in parts:
        run = {
            "part": part,
            "rounds": scale.rounds,
            "at": f"{datetime.datetime.now():%H:%M}",
            "load before": f"{LOAD_BEFORE if part == parts[0] else os.getloadavg()[0]:.1f}",
        }
        if part == "relays":
            document[part] = measure_relays(scale, arguments.only, arguments.measure)
        elif part == "rpc":
            run["rounds"] = 1 if arguments.quick else min(scale.rounds, 5)
            document[part] = rpc.run(quick=arguments.quick, rounds=run["rounds"])
        elif part == "soak":
            run["rounds"] = 1
            document[part] = soak.soak(int(arguments.gib * 2**30), "anbox-tw", say)
        elif importlib.util.find_spec("adbutils") is None:
            say(f"{part}: left out: adbutils, which carries adb 36, is not installed")
            continue
        elif part == "adb":
            run["rounds"] = rounds = min(scale.rounds, 5)
            document[part] = adb.run(rounds, 256 if arguments.quick else 1024, say)
        else:
            run["rounds"] = rounds = max(1, scale.rounds // 2)
            document[part] = forwards.run(attrs.evolve(scale, rounds=rounds), say)
        run["load after"] = f"{os.getloadavg()[0]:.1f}"
        document["runs"].append(run)
    kind = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['cpus']}cpu".lower()).strip("-")
    stem = RESULTS / f"{datetime.date.today()}-{kind}{'-quick' if arguments.quick else ''}"
    if arguments.append and stem.with_suffix(".json").exists():
        document = report.merge(json.loads(stem.with_suffix(".json").read_text()), document)
    text = report.text(document)
    print(text)
    if arguments.no_save:
        return
    RESULTS.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    say(f"written: {stem}.json and .md")
    if not arguments.quick and not some and document.get("relays"):
        report.write_page(document)


if __name__ == "__main__":
    main()
