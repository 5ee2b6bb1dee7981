"""``anbox wait``."""

from __future__ import annotations

import json
from typing import Any

import click
from twisted.internet.defer import Deferred

from anbox_tw.cli._control import LEVELS, ControlLink, as_dict, open_control
from anbox_tw.cli._instance import Instance, instance_options
from anbox_tw.cli._run import first_of, pause, run
from anbox_tw.errors import TimedOut
from anbox_tw.rpc import ChannelClosed
from anbox_tw.rpc._pb import anbox_session_pb2 as pb

__all__ = ["wait", "wait_for", "wait_ready"]

DEFAULT_TIMEOUT_S = 60.0

READY_TIMEOUT_S = 30.0
"""The original's wait-ready looks 30 times, once a second."""


@click.command()
@instance_options
@click.option(
    "--for",
    "level",
    type=click.Choice(LEVELS),
    default="booted",
    show_default=True,
    help="live: the session answers. ready: the container runs and adb sees it. booted: the guest said so.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    help="Seconds to wait; then the exit code is 4.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what the instance then is, as JSON.")
def wait(instance: str, runtime_dir: str | None, level: str, timeout: float, as_json: bool) -> None:
    """Wait until an instance has reached a level. It need not have been started yet."""
    where = Instance.locate(instance, runtime_dir)
    info = run(lambda reactor: wait_for(reactor, where, level, timeout))
    if as_json:
        click.echo(json.dumps(as_dict(info), indent=2))


@click.command("wait-ready")
@instance_options
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=READY_TIMEOUT_S,
    show_default=True,
    help="Seconds to wait; then the exit code is 4.",
)
@click.option(
    "--use-system-dbus", is_flag=True, hidden=True, help="Taken as in the original; D-Bus is not used."
)
def wait_ready(instance: str, runtime_dir: str | None, timeout: float, use_system_dbus: bool) -> None:
    """Wait until the guest has booted and takes applications to launch; the same as 'anbox wait --for booted'."""
    where = Instance.locate(instance, runtime_dir)
    run(lambda reactor: wait_for(reactor, where, "booted", timeout))


async def wait_for(reactor: Any, where: Instance, level: str, seconds: float) -> pb.SessionInfo:
    """Wait until a session has reached ``level``.

    Returns:
        The session's description at that moment.

    Raises:
        anbox_tw.errors.TimedOut: it has not within ``seconds``; the cause tells what it waits for.
    """
    deadline = reactor.seconds() + seconds
    waiting_for = ""
    while True:
        link = await open_control(reactor, where, wait_until=deadline)
        try:
            await link.watch()
            while True:
                next_change = link.next_event()
                info = await link.info()
                if getattr(info, level):
                    return info
                waiting_for = info.container.failure or info.waiting_for
                left = deadline - reactor.seconds()
                if left <= 0 or not await _change(reactor, link, next_change, left):
                    raise TimedOut(
                        f"instance '{where.name}' was not {level} within {seconds:g} s"
                        + (f"; it waits for: {waiting_for}" if waiting_for else ""),
                        f"see 'anbox logs{where.option}'",
                    )
        except ChannelClosed:
            # The session went away; another one may come within the time.
            await pause(reactor, 0.1)
        finally:
            await link.close()


async def _change(reactor: Any, link: ControlLink, change: Deferred[None], seconds: float) -> bool:
    """Wait for an event; whether there was one before the time was over."""
    place, result = await first_of(change, link.closed(), Deferred.fromCoroutine(pause(reactor, seconds)))
    if place == 1:
        raise result
    return place == 0
