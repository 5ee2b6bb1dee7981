"""``python -m benchmarks``: measure, print the table, and keep both under ``benchmarks/results/``."""

from __future__ import annotations

import argparse
import datetime
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

from benchmarks import rpc
from benchmarks.plot import plot
from benchmarks.relays import FULL, MEASURES, QUICK, Bench

# of the machine, before ours: figures from a busy one are worth less
LOAD_BEFORE = os.getloadavg()[0]
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
        "load before": f"{LOAD_BEFORE:.1f}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "twisted": twisted.__version__,
        "haproxy": first_line("haproxy", "-v"),
        "socat": first_line("socat", "-V"),
        "gcc": first_line("gcc", "--version"),
    }


def table(results: dict[str, Any], machine: dict[str, Any], settings: dict[str, Any]) -> str:
    """The results as Markdown: medians, and in brackets the ratio to HAProxy or else to the first relay."""
    base = "HAProxy" if "HAProxy" in results else next(iter(results))
    shown = [measure for measure in MEASURES if any(measure.key in values for values in results.values())]
    lines = [
        "| relay | " + " | ".join(f"{measure.title}, {measure.unit}" for measure in shown) + " |",
        "|" + "---|" * (len(shown) + 1),
    ]
    for name, values in results.items():
        cells = []
        for measure in shown:
            if measure.key not in values:
                cells.append("-")
                continue
            median = values[measure.key]["median"]
            reference = results[base].get(measure.key, {}).get("median")
            ratio = f" ({median / reference:.2f}x)" if reference else ""
            cells.append(f"{median:.3g}{ratio}" if median < 1000 else f"{median:.0f}{ratio}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    how = ", ".join(f"{key} {value}" for key, value in settings.items())
    return "\n".join(
        [*lines, "", f"x = ratio to {base}. Medians of interleaved rounds. {how}.", f"Host: {about}.", ""]
    )


PAGE = """\
# Measurements

Made by `make bench`: do not edit. The load is the same C program for all; the relays stand between a TCP port (h, the host) and a
UNIX socket (g, the guest), each started anew in each of the interleaved rounds. Latency is taken with everything pinned to one
processor. CPU is the relay's own; an idle stream's memory is the relay's private pages, not the kernel's.
`anbox-tw` is the relay on Twisted's epoll reactor, `anbox-epoll` the same on ours, `producer` the strategy for transports that are
no sockets.

{table}
{picture}"""


def write_page(results: dict[str, Any], text: str, machine: dict[str, Any]) -> None:
    """The manual's page, with the picture where matplotlib is installed."""
    docs = Path(__file__).parent.parent / "docs"
    caption = ", ".join(
        f"{key} {value}" for key, value in machine.items() if key in ("cpu", "cpus", "kernel", "python")
    )
    drawn = plot(results, caption, docs / "benchmarks" / "relays")
    picture = (
        "\n![The same as bars](benchmarks/relays.svg)\n\nAs [PNG](benchmarks/relays.png).\n" if drawn else ""
    )
    (docs / "benchmarks.md").write_text(PAGE.format(table=text, picture=picture))
    print(f"written: {docs}/benchmarks.md", file=sys.stderr)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small round; ends within 90 s")
    parser.add_argument("--mib", type=int, help="MiB of each transfer")
    parser.add_argument("--rounds", type=int, help="how many interleaved rounds")
    parser.add_argument(
        "--only", action="append", default=[], metavar="RELAY", help="measure this relay (repeat)"
    )
    parser.add_argument(
        "--measure", action="append", default=[], metavar="KEY", help="this figure only (repeat)"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    # ended from outside, the relays and servers end too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    scale = QUICK if arguments.quick else FULL
    if arguments.rounds:
        scale = attrs.evolve(scale, rounds=arguments.rounds)
    if arguments.mib:
        scale = attrs.evolve(scale, bytes=arguments.mib << 20)
    bench = Bench(scale, arguments.only, arguments.measure or [measure.key for measure in MEASURES])
    try:
        bench.run(lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        bench.close()
    results, machine = bench.results(), host()
    settings = {"rounds": scale.rounds, "MiB per transfer": scale.bytes >> 20, "idle streams": scale.streams}
    text = table(results, machine, settings)
    calls = None
    if not arguments.only and not arguments.measure:
        calls = rpc.run(quick=arguments.quick)
        text += "\n" + rpc.table(calls) + "\n"
    print(text)
    if not arguments.no_save:
        RESULTS.mkdir(exist_ok=True)
        kind = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['cpus']}cpu".lower()).strip("-")
        name = f"{datetime.date.today()}-{kind}{'-quick' if arguments.quick else ''}"
        document = {"host": machine, "settings": settings, "relays": results, "rpc": calls}
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(text)
        print(f"written: {RESULTS / name}.json and .md", file=sys.stderr)
        if not arguments.quick and not arguments.only and not arguments.measure:
            write_page(results, text, machine)


if __name__ == "__main__":
    main()
