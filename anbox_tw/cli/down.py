"""``anbox down``."""

from __future__ import annotations

import os
import signal
import socket
import struct
from typing import Any

import click
from twisted.internet.defer import Deferred

from anbox_tw.cli._control import open_control
from anbox_tw.cli._instance import Instance, instance_options
from anbox_tw.cli._run import first_of, pause, run
from anbox_tw.errors import NotRunning, PermissionRefused, TimedOut
from anbox_tw.rpc import ChannelClosed

__all__ = ["down"]

STOP_TIMEOUT_S = 45.0
"""The container gets 10 s to end, its manager 20 s; then ``up`` ends what is left by force."""

LOOK_EVERY_S = 0.05


@click.command()
@instance_options
@click.option("--all", "everything", is_flag=True, help="Stop every instance of this user.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=STOP_TIMEOUT_S,
    show_default=True,
    help="Seconds to wait.",
)
def down(instance: str, runtime_dir: str | None, everything: bool, timeout: float) -> None:
    """Stop an instance and leave nothing of it behind but its data."""
    wanted = list(Instance.all(runtime_dir)) if everything else [Instance.locate(instance, runtime_dir)]
    run(lambda reactor: _stop_all(reactor, wanted, timeout, missing_is_wrong=not everything))


async def _stop_all(reactor: Any, wanted: list[Instance], seconds: float, *, missing_is_wrong: bool) -> None:
    for where in wanted:
        try:
            await _stop(reactor, where, seconds)
        except NotRunning:
            where.tidy()
            if missing_is_wrong:
                raise
        else:
            where.tidy()


async def _stop(reactor: Any, where: Instance, seconds: float) -> None:
    deadline = reactor.seconds() + seconds
    holder = where.holder()
    if holder is not None and holder.pid:
        _terminate(holder.pid, where)
        while where.holder() is not None:
            await _not_too_long(reactor, where, deadline)
    else:
        await _stop_without_up(reactor, where, deadline)
    click.echo(f"instance '{where.name}' is down")


async def _stop_without_up(reactor: Any, where: Instance, deadline: float) -> None:
    """Nobody runs ``anbox up``, but a session, or what one left behind, may still be there."""
    manager = listener_pid(str(where.manager))
    try:
        link = await open_control(reactor, where)
    except NotRunning:
        if manager is None:
            raise
    else:
        try:
            await link.stop("anbox down")
            place, _ = await first_of(link.closed(), Deferred.fromCoroutine(_wait_until(reactor, deadline)))
            if place:
                await _not_too_long(reactor, where, deadline)
        except ChannelClosed:
            pass
        finally:
            await link.close()
        while where.control.exists():
            await _not_too_long(reactor, where, deadline)
    if manager is not None:
        _terminate(manager, where)
        while listener_pid(str(where.manager)) is not None:
            await _not_too_long(reactor, where, deadline)


async def _wait_until(reactor: Any, deadline: float) -> None:
    await pause(reactor, max(0.0, deadline - reactor.seconds()))


async def _not_too_long(reactor: Any, where: Instance, deadline: float) -> None:
    if reactor.seconds() >= deadline:
        raise TimedOut(f"instance '{where.name}' has not ended in time", f"see 'anbox logs{where.option}'")
    await pause(reactor, LOOK_EVERY_S)


def _terminate(pid: int, where: Instance) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise PermissionRefused(
            f"instance '{where.name}' belongs to another user (pid {pid})", "run the command as that user"
        ) from None


def listener_pid(path: str) -> int | None:
    """The process that listens on a UNIX socket, or ``None`` when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(1.0)
        try:
            link.connect(path)
        except OSError:
            return None
        pid: int = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid
