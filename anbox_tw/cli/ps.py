"""``anbox ps``."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from anbox_tw.cli._control import as_dict, level_of, open_control
from anbox_tw.cli._instance import Instance, runtime_option
from anbox_tw.cli._run import run
from anbox_tw.errors import AnboxError, NotRunning
from anbox_tw.rpc._pb import anbox_session_pb2 as pb

__all__ = ["ps"]


@click.command()
@runtime_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with an object per instance.")
@click.option("-a", "--all", "everything", is_flag=True, help="List instances that do not run, too.")
def ps(runtime_dir: str | None, as_json: bool, everything: bool) -> None:
    """List the instances of this user."""
    found = run(lambda reactor: _look(reactor, list(Instance.all(runtime_dir))))
    if not everything:
        found = [entry for entry in found if entry["level"] != "stopped"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("no instance runs; start one with 'anbox up'")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("INSTANCE", "LEVEL", "SERIAL", "BACKEND", "CONTAINER", "PID", "UP", "NOTE"):
        table.add_column(title, no_wrap=title != "NOTE")
    for entry in found:
        container = entry.get("container", {})
        table.add_row(
            entry["instance"],
            entry["level"],
            entry.get("serial", "-"),
            container.get("backend", "-"),
            container.get("state", "-"),
            str(entry.get("pid", "-")),
            _age(entry.get("started_at")),
            container.get("failure") or entry.get("note", ""),
        )
    Console().print(table)


async def _look(reactor: Any, instances: list[Instance]) -> list[dict[str, Any]]:
    """Describe every instance; one that does not answer is told, not hidden."""
    found: list[dict[str, Any]] = []
    for where in instances:
        try:
            link = await open_control(reactor, where)
            try:
                info: pb.SessionInfo = await link.info()
            finally:
                await link.close()
        except NotRunning:
            holder = where.holder()
            if holder is None:
                found.append({"instance": where.name, "level": "stopped"})
            else:
                found.append({"instance": where.name, "level": "starting", "pid": holder.pid})
        except AnboxError as error:
            found.append({"instance": where.name, "level": "unknown", "note": str(error)})
        else:
            found.append({**as_dict(info), "level": level_of(info)})
    return found


def _age(started_at: float | None) -> str:
    if not started_at:
        return "-"
    seconds = max(0, int(time.time() - started_at))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
