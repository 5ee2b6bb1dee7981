"""``anbox doctor``."""

from __future__ import annotations

import json
import os

import click

from anbox_tw.cli._run import run
from anbox_tw.container.backends import BACKENDS
from anbox_tw.container.commands import Commands
from anbox_tw.container.doctor import DoctorReport, examine
from anbox_tw.container.probes import HostView

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
    report = run(
        lambda reactor: examine(HostView(Commands(reactor), os.environ.get("XDG_RUNTIME_DIR")), wanted)
    )
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print(report)
    return report.exit_code


def _print(report: DoctorReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for name, probes in report.backends.items():
        verdict = "[green]can run here[/]" if report.ready(name) else "[red]cannot run here[/]"
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
