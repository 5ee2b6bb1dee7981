"""``anbox shell``."""

from __future__ import annotations

import shlex
from typing import Any

import click
from twisted.internet.endpoints import TCP4ClientEndpoint

from anbox_tw.adb.client import DeviceOffline, connect_device
from anbox_tw.adb.keys import load_user_keys
from anbox_tw.cli._control import open_control
from anbox_tw.cli._instance import Instance, instance_options
from anbox_tw.cli._run import run
from anbox_tw.errors import NotRunning

__all__ = ["shell"]


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@instance_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(instance: str, runtime_dir: str | None, command: tuple[str, ...]) -> int:
    """Run a command, or a shell, in the container; no adb program is needed.

    Several words are one command and its arguments, which reach it as they are:
    'anbox shell -- sh -c "echo hi; exit 7"'. A single word is a line for the container's shell:
    'anbox shell "ls /data | wc -l"'. The exit code is the command's; 255 says that the container
    went away meanwhile.
    """
    where = Instance.locate(instance, runtime_dir)
    words = command[1:] if command[:1] == ("--",) else command
    line = words[0] if len(words) == 1 else shlex.join(words)
    return run(lambda reactor: _shell(reactor, where, line))


async def _shell(reactor: Any, where: Instance, line: str) -> int:
    from anbox_tw.cli._adb_terminal import run_shell

    link = await open_control(reactor, where)
    try:
        info = await link.info()
    finally:
        await link.close()
    nothing = f"wait for it with 'anbox wait --for booted{where.option}'"
    if not info.adb_port:
        raise NotRunning(f"instance '{where.name}' has no ADB port yet", nothing)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", info.adb_port)
    try:
        device = await connect_device(reactor, endpoint, keys=load_user_keys())
    except DeviceOffline as error:
        raise NotRunning(f"instance '{where.name}' has no guest yet: {error.cause}", nothing) from error
    try:
        return await run_shell(reactor, device, line, pty=None, stdin=True)
    finally:
        direct: Any = device.link
        await direct.close()
