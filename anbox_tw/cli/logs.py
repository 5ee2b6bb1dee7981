"""``anbox logs``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from anbox_tw.cli._child import tail
from anbox_tw.cli._instance import Instance, instance_options
from anbox_tw.errors import NotRunning

__all__ = ["log_files", "logs"]

FOLLOW_EVERY_S = 0.2


@click.command()
@instance_options
@click.option(
    "--data-path", metavar="DIR", help="Where the instance keeps its data, if not in the usual place."
)
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="Lines of each log."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on, until Ctrl-C.")
@click.argument("which", nargs=-1)
def logs(
    instance: str,
    runtime_dir: str | None,
    data_path: str | None,
    lines: int,
    follow: bool,
    which: tuple[str, ...],
) -> None:
    """Show what the manager, the session and the container logged.

    WHICH names logs: up, manager, session, container, console; all by default.
    """
    where = Instance.locate(instance, runtime_dir)
    files = log_files(where, data_path)
    unknown = set(which) - {"up", "manager", "session", *files}
    if unknown:
        raise click.BadParameter(
            f"no log is called {', '.join(sorted(unknown))}; there are {', '.join(files) or 'none'}"
        )
    chosen = {name: path for name, path in files.items() if not which or name in which}
    if not chosen:
        raise NotRunning(
            f"instance '{where.name}' has no logs",
            f"start it with 'anbox up{where.option}', or give --data-path",
        )
    for name, path in chosen.items():
        for line in tail(path, lines):
            click.echo(f"{name}: {line}")
    if follow:
        _follow(chosen)


def log_files(where: Instance, data_path: str | None = None) -> dict[str, Path]:
    """The logs that exist: name to path."""
    holder = where.holder()
    directory = where.log_dir(data_path or (holder.data_path if holder else None))
    if not directory.is_dir():
        return {}
    return {
        path.stem: path
        for path in sorted(directory.glob("*.log"))
        if path.is_file() and os.access(path, os.R_OK)
    }


def _follow(chosen: dict[str, Path]) -> None:
    at = {name: path.stat().st_size for name, path in chosen.items()}
    rest = dict.fromkeys(chosen, b"")
    while True:
        for name, path in chosen.items():
            try:
                size = path.stat().st_size
                if size < at[name]:
                    at[name] = 0  # it was started anew
                if size == at[name]:
                    continue
                with path.open("rb") as log:
                    log.seek(at[name])
                    data = log.read(size - at[name])
            except OSError:
                continue
            at[name] += len(data)
            *complete, rest[name] = (rest[name] + data).split(b"\n")
            for line in complete:
                click.echo(f"{name}: {line.decode(errors='replace')}")
        time.sleep(FOLLOW_EVERY_S)
