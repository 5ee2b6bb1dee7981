"""``anbox top``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anbox_tw.cli._control import as_dict, open_control
from anbox_tw.cli._instance import Instance, runtime_option
from anbox_tw.cli._run import pause, run
from anbox_tw.cli._session import printable
from anbox_tw.errors import AnboxError, NotRunning
from anbox_tw.session.client import SessionClient

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["top"]

FIRST_INTERVAL_S = 0.2
"""Between the two looks of --once: a rate needs two."""

MAX_PROCESSES = 4096
"""Of one container that are added up."""

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@click.command()
@runtime_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between looks.",
)
@click.option("--once", is_flag=True, help="Print one view and end.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON: one list a line and look, with an object per instance.",
)
def top(runtime_dir: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch the instances of this user: levels, connections, bytes per second, processors and memory.

    CPU and MEMORY are those of the session (S) and of the container's processes (C), where they can be seen.
    Rates are to and from the guest, of adb and of forwards together. Ctrl-C ends it.
    """
    run(lambda reactor: _watch(reactor, runtime_dir, interval, once, as_json))


async def _watch(reactor: Any, runtime_dir: str | None, interval: float, once: bool, as_json: bool) -> None:
    before: dict[str, dict[str, Any]] = {}
    if once:
        before = {one["instance"]: one for one in await look(reactor, runtime_dir)}
        await pause(reactor, FIRST_INTERVAL_S)
    if as_json or once:
        while True:
            found = await look(reactor, runtime_dir)
            add_rates(found, before)
            if as_json:
                click.echo(json.dumps(found))
            else:
                _console().print(table_of(found))
            if once:
                return
            before = {one["instance"]: one for one in found}
            await pause(reactor, interval)
    from rich.live import Live

    with Live(console=_console(), auto_refresh=False, screen=True) as live:
        while True:
            found = await look(reactor, runtime_dir)
            add_rates(found, before)
            live.update(table_of(found), refresh=True)
            before = {one["instance"]: one for one in found}
            await pause(reactor, interval)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


async def look(reactor: Any, runtime_dir: str | None) -> list[dict[str, Any]]:
    """Every instance that runs: its description, statistics, and what its processes use."""
    found = []
    for where in Instance.all(runtime_dir):
        try:
            link = await open_control(reactor, where)
            try:
                told = as_dict(await link.info())
                told["stats"] = await SessionClient(link.channel).device("stats")
            finally:
                await link.close()
        except NotRunning:
            continue
        except AnboxError as error:
            found.append(
                {"instance": where.name, "level": "unknown", "note": error.cause, "time": time.monotonic()}
            )
            continue
        told["time"] = time.monotonic()
        told["session_use"] = usage([told["pid"]])
        told["container_use"] = usage(tree(told.get("container", {}).get("pid", 0)))
        found.append(told)
    return found


def add_rates(found: list[dict[str, Any]], before: dict[str, dict[str, Any]]) -> None:
    """Give each instance its ``rates``, by what was seen of it before; None where nothing was."""
    for one in found:
        last = before.get(one["instance"])
        one["rates"] = None
        if last is None or "stats" not in one or "stats" not in last or last["pid"] != one["pid"]:
            continue
        seconds = max(one["time"] - last["time"], 1e-3)
        rates = {
            name: round(
                sum(one["stats"][kind][name] - last["stats"][kind][name] for kind in ("adb", "forwards"))
                / seconds
            )
            for name in ("to_guest", "from_guest")
        }
        for name in ("session_use", "container_use"):
            spent = one[name]["cpu_s"] - last[name]["cpu_s"]
            # A process that has ended takes its time along.
            rates[name.replace("_use", "_cpu_percent")] = round(100 * max(0.0, spent) / seconds, 1)
        one["rates"] = rates


def tree(pid: int) -> list[int]:
    """A process and all below it, as far as they can be seen."""
    found = [pid] if pid else []
    for each in found:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        if len(found) >= MAX_PROCESSES:
            break
    return found[:MAX_PROCESSES]


def usage(pids: list[int]) -> dict[str, Any]:
    """What processes use together: ``processes``, ``cpu_s`` spent so far, ``rss`` in bytes."""
    spent, resident, seen = 0, 0, 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # proc(5): state is field 3, utime 14, stime 15, rss 24
        spent += int(fields[11]) + int(fields[12])
        resident += int(fields[21]) * PAGE
        seen += 1
    return {"processes": seen, "cpu_s": spent / TICKS, "rss": resident}


def table_of(found: list[dict[str, Any]]) -> Table:
    """The view."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in (
        "INSTANCE",
        "LEVEL",
        "SERIAL",
        "PIPES",
        "ADB",
        "FWD",
        "TO GUEST",
        "FROM GUEST",
        "CPU S/C",
        "MEMORY S/C",
        "PROCS",
        "TASKS",
    ):
        table.add_column(title, justify="left" if title in ("INSTANCE", "LEVEL", "SERIAL") else "right")
    for one in found:
        if "stats" not in one:
            table.add_row(one["instance"], one["level"], Text(printable(one.get("note", ""))))
            continue
        stats, rates = one["stats"], one["rates"] or {}
        table.add_row(
            one["instance"],
            one["level"],
            one.get("serial") or "-",
            str(stats["connections"].get("qemu_pipe", 0)),
            str(stats["adb"]["connections"]),
            str(stats["forwards"]["connections"]),
            _size(rates.get("to_guest"), "/s"),
            _size(rates.get("from_guest"), "/s"),
            f"{_percent(rates.get('session_cpu_percent'))}/{_percent(rates.get('container_cpu_percent'))}",
            f"{_size(one['session_use']['rss'])}/{_size(one['container_use']['rss'])}",
            str(one["container_use"]["processes"]),
            str(one.get("details", {}).get("bridge", {}).get("windows", 0)),
        )
    if not found:
        table.add_row("no instance runs; start one with 'anbox up'")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}%"


def _size(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    for prefix in ("", "k", "M", "G"):
        if value < 1000 or prefix == "G":
            return f"{value:.0f} B{unit}" if not prefix else f"{value:.1f} {prefix}B{unit}"
        value /= 1000
    raise AssertionError("the last prefix takes all")
