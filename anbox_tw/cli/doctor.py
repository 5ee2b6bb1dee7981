"""``anbox doctor``."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from anbox_tw.cli._run import run
from anbox_tw.container.backends import BACKENDS, make_backends
from anbox_tw.container.diagnosis import Probe
from anbox_tw.errors import ExitCode, HostLacks

__all__ = ["doctor"]

MARKS = {"ok": "[green]ok[/]", "degraded": "[yellow]less[/]", "missing": "[red]missing[/]"}


@click.command()
@click.option(
    "--backend",
    type=click.Choice(["all", *BACKENDS]),
    default="all",
    show_default=True,
    help="Look only at what this backend needs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(backend: str, as_json: bool) -> int:
    """Look at the host: what works here, what is missing, how to mend it. Nothing is changed.

    The exit code is 6 when a backend that was named, or every one of them, cannot run.
    """
    wanted = list(BACKENDS) if backend == "all" else [backend]
    found = run(lambda reactor: _probe(reactor, wanted))
    able = [name for name, probes in found.items() if not any(probe.verdict == "missing" for probe in probes)]
    if as_json:
        click.echo(
            json.dumps(
                {
                    name: {"able": name in able, "probes": [probe.as_dict() for probe in probes]}
                    for name, probes in found.items()
                },
                indent=2,
            )
        )
    else:
        _print(found, able)
    return ExitCode.OK if able else ExitCode.HOST_LACKS


async def _probe(reactor: Any, wanted: list[str]) -> dict[str, list[Probe]]:
    found = {}
    for name in wanted:
        try:
            probes = await make_backends(reactor, name)[name].probe()
        except HostLacks as error:
            probes = [Probe("root", os.geteuid() == 0, error.cause, error.cure or "run it as root")]
        found[name] = probes
    return found


def _print(found: dict[str, list[Probe]], able: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for name, probes in found.items():
        verdict = "[green]can run here[/]" if name in able else "[red]cannot run here[/]"
        console.print(f"[bold]{name}[/]: {verdict}")
        table = Table(box=None, show_header=False, pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for probe in probes:
            text = escape(probe.detail)
            if not probe.ok and probe.cure:
                text += f"\n[dim]->[/] {escape(probe.cure)}"
            table.add_row(MARKS[probe.verdict], escape(probe.name), text)
        console.print(table)
