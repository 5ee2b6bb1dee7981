"""What the commands that ask a running session share: the connection, and tables or JSON of what it answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
from twisted.internet.defer import Deferred, ensureDeferred

from anbox_tw.cli._control import open_control
from anbox_tw.cli._instance import Instance
from anbox_tw.cli._run import run
from anbox_tw.session.client import SessionClient

__all__ = ["ask", "json_option", "print_json", "print_table", "with_session"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Add ``--json`` to a command, as its argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def with_session(
    instance: str, runtime_dir: str | None, work: Callable[[Any, SessionClient], Awaitable[T]]
) -> T:
    """Run ``work(reactor, client)`` with a connection to the session of an instance; returns its result.

    Raises:
        anbox_tw.errors.AnboxError: nobody answers there, or what ``work`` raised.
    """
    where = Instance.locate(instance, runtime_dir)

    async def main(reactor: Any) -> T:
        link = await open_control(reactor, where)
        try:
            return await work(reactor, SessionClient(link.channel))
        finally:
            await link.close()

    return run(lambda reactor: ensureDeferred(main(reactor)))


def ask(instance: str, runtime_dir: str | None, verb: str, **arguments: Any) -> Any:
    """The result of one verb of the session; errors as `with_session`."""

    def work(reactor: Any, client: SessionClient) -> Deferred[Any]:
        return client.device(verb, **arguments)

    return with_session(instance, runtime_dir, work)


def print_json(value: Any) -> None:
    """Print a value for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a value for people: one line per row, or ``empty`` on standard error when there is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        # What a guest says is text, never markup or terminal commands.
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    if table.row_count:
        Console(highlight=False).print(table)
    else:
        click.echo(empty, err=True)


def printable(text: str) -> str:
    """Text without what a terminal would take as a command."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
