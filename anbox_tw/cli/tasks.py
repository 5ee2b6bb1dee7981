"""``anbox tasks``."""

from __future__ import annotations

import json
from typing import Any

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._session import ask, json_option, print_json, print_table, with_session
from anbox_tw.session.client import SessionClient

__all__ = ["tasks"]


@click.group()
def tasks() -> None:
    """List, focus, move and end the guest's tasks: its running applications and their windows."""


@tasks.command("list")
@instance_options
@json_option
def list_(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """List the tasks.

    WINDOW tells whether a task is a window of the host: it has a surface and lies in the freeform stack.
    FRAME is left,top,right,bottom in pixels.
    """
    found = ask(instance, runtime_dir, "tasks.list")
    if as_json:
        print_json(found)
        return
    print_table(
        ("TASK", "PACKAGE", "TITLE", "STACK", "WINDOW", "FRAME"),
        (
            (
                task["task"],
                task["package"],
                task["title"],
                task["stack"],
                "yes" if task["window"] else "no",
                ",".join(str(side) for side in task["frame"]),
            )
            for task in found
        ),
        "no task runs; start one with 'anbox launch'",
    )


@tasks.command()
@instance_options
@click.argument("task", type=int)
def focus(instance: str, runtime_dir: str | None, task: int) -> None:
    """Give a task the focus."""
    ask(instance, runtime_dir, "tasks.focus", task=task)


@tasks.command()
@instance_options
@click.argument("task", type=int)
def remove(instance: str, runtime_dir: str | None, task: int) -> None:
    """End a task, as closing its window does; returns when the guest has done it."""
    ask(instance, runtime_dir, "tasks.remove", task=task)


@tasks.command(context_settings={"ignore_unknown_options": True})  # a coordinate may be negative
@instance_options
@click.argument("task", type=int)
@click.argument("left", type=int)
@click.argument("top", type=int)
@click.argument("right", type=int)
@click.argument("bottom", type=int)
def resize(
    instance: str, runtime_dir: str | None, task: int, left: int, top: int, right: int, bottom: int
) -> None:
    """Move and resize a task's window, in pixels; RIGHT and BOTTOM are the first ones outside."""
    ask(instance, runtime_dir, "tasks.resize", task=task, left=left, top=top, right=right, bottom=bottom)


@tasks.command()
@instance_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many changes.")
def watch(instance: str, runtime_dir: str | None, as_json: bool, count: int | None) -> None:
    """Print each change of a task from now on, until Ctrl-C: added, changed, removed."""

    async def work(reactor: Any, client: SessionClient) -> None:
        from twisted.internet.defer import Deferred

        from anbox_tw.cli._run import first_of
        from anbox_tw.errors import NotRunning

        seen = 0
        enough: Deferred[None] = Deferred()

        def event(told: dict[str, Any]) -> None:
            nonlocal seen
            if told["kind"] != "task" or enough.called:
                return
            seen += 1
            change, _, package = told["detail"].partition(" ")
            if as_json:
                click.echo(json.dumps({"task": int(told["name"]), "change": change, "package": package}))
            else:
                click.echo(f"{change} {told['name']} {package}")
            if count is not None and seen >= count:
                enough.callback(None)

        await client.watch(event)
        place, why = await first_of(enough, client.when_lost())
        if place:
            raise NotRunning(f"the session has ended: {why}")

    with_session(instance, runtime_dir, work)
