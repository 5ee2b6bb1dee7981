"""``anbox launch`` and ``anbox apps``."""

from __future__ import annotations

from typing import Any

import click
from twisted.internet.defer import ensureDeferred

from anbox_tw.cli._again import start_again
from anbox_tw.cli._control import open_control
from anbox_tw.cli._instance import Instance, instance_options
from anbox_tw.cli._run import run
from anbox_tw.cli._session import ask, json_option, print_json, print_table
from anbox_tw.cli.wait import wait_for
from anbox_tw.errors import NotRunning
from anbox_tw.session.client import SessionClient
from anbox_tw.session.windows import STACKS

__all__ = ["apps", "launch"]

BOOT_TIMEOUT_S = 60.0
"""The original gives the session 50 s to become ready."""


@click.command()
@instance_options
@click.option(
    "--action", default="", metavar="TEXT", help="Action of the intent, as android.intent.action.VIEW."
)
@click.option("--type", "kind", default="", metavar="MIME", help="MIME type of the intent's data.")
@click.option("--uri", default="", metavar="URI", help="Data of the intent, as https://example.org/.")
@click.option("--package", default="", metavar="NAME", help="The application; the same as the argument.")
@click.option("--component", default="", metavar="NAME", help="Activity of the package, as .MainActivity.")
@click.option(
    "--category", "categories", multiple=True, metavar="NAME", help="Category of the intent; may be repeated."
)
@click.option(
    "--stack",
    type=click.Choice(list(STACKS)),
    default="default",
    show_default=True,
    help="Where its window goes. Only a session in single-window mode heeds it: otherwise all go to freeform.",
)
@click.option(
    "--bounds",
    metavar="LEFT,TOP,RIGHT,BOTTOM",
    help="Where its window shall be, in pixels; right and bottom are the first outside.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=BOOT_TIMEOUT_S,
    show_default=True,
    help="Seconds to wait for a guest that has not booted yet; then the exit code is 4.",
)
@click.option(
    "--start",
    is_flag=True,
    help="When the instance does not run, start it first, as 'anbox up' did the last time; launchers do so.",
)
@click.option(
    "--use-system-dbus", is_flag=True, hidden=True, help="Taken as in the original; D-Bus is not used."
)
@click.argument("target", required=False, metavar="[PACKAGE[/COMPONENT]]")
def launch(
    instance: str,
    runtime_dir: str | None,
    action: str,
    kind: str,
    uri: str,
    package: str,
    component: str,
    categories: tuple[str, ...],
    stack: str,
    bounds: str | None,
    timeout: float,
    start: bool,
    use_system_dbus: bool,
    target: str | None,
) -> None:
    """Launch an application, or whatever an intent names, in the guest.

    'anbox apps' lists what there is. Returns when the guest has started it, with the guest's error when it cannot.

    \b
    anbox launch org.example.notes
    anbox launch org.example.notes/.EditActivity --action android.intent.action.EDIT
    anbox launch --package org.example.browser --uri https://example.org/
    """
    if target:
        named, _, activity = target.partition("/")
        if (package and package != named) or (component and activity and component != activity):
            raise click.UsageError(f"{target} and --package or --component name different things")
        package, component = named, component or activity
    if not (package or component):
        raise click.UsageError("name a package, or give --package or --component; 'anbox apps' lists them")
    rect = _rect(bounds) if bounds else None
    where = Instance.locate(instance, runtime_dir)

    async def work(reactor: Any) -> None:
        try:
            link = await open_control(reactor, where)
        except NotRunning:
            if not start:
                raise
            await start_again(reactor, where, timeout)
            link = await open_control(reactor, where)
        try:
            client = SessionClient(link.channel)
            if not (await client.info())["booted"]:
                await wait_for(reactor, where, "booted", timeout)
            await client.launch(
                package=package,
                component=component,
                action=action,
                uri=uri,
                type=kind,
                categories=categories,
                stack=STACKS[stack],
                bounds=rect,
            )
        finally:
            await link.close()

    run(lambda reactor: ensureDeferred(work(reactor)))


def _rect(text: str) -> tuple[int, int, int, int]:
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not LEFT,TOP,RIGHT,BOTTOM", param_hint="--bounds") from None
    if left >= right or top >= bottom:
        raise click.BadParameter(
            f"{text}: left must be less than right, top than bottom", param_hint="--bounds"
        )
    return left, top, right, bottom


@click.command()
@instance_options
@click.option("--running", is_flag=True, help="Only those that the guest which runs now has reported.")
@json_option
def apps(instance: str, runtime_dir: str | None, running: bool, as_json: bool) -> None:
    """List the guest's applications.

    Those of the last time are listed while the guest boots; IN GUEST says which the guest has reported itself.
    """
    found: list[dict[str, Any]] = ask(instance, runtime_dir, "apps.list")
    if running:
        found = [app for app in found if app["reported"]]
    if as_json:
        print_json(found)
        return
    print_table(
        ("PACKAGE", "NAME", "COMPONENT", "IN GUEST"),
        (
            (app["package"], app["name"], app["component"] or "-", "yes" if app["reported"] else "not yet")
            for app in found
        ),
        "no application is known; they come with the guest's boot: anbox wait --for booted",
    )
