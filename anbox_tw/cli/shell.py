"""``anbox shell``."""

from __future__ import annotations

import shlex
from typing import Any

import click
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory

from anbox_tw.adb import HostTransport, load_user_keys
from anbox_tw.cli._control import open_control
from anbox_tw.cli._instance import Instance, instance_options
from anbox_tw.cli._run import run
from anbox_tw.cli._shell_io import run_shell
from anbox_tw.errors import NotRunning

__all__ = ["shell"]

CONNECT_TIMEOUT_S = 10
ONLINE_TIMEOUT_S = 15.0


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@instance_options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(instance: str, runtime_dir: str | None, command: tuple[str, ...]) -> int:
    """Run a command, or a shell, in the container; no adb program is needed.

    Several words are one command and its arguments, which reach it as they are:
    'anbox shell -- sh -c "echo hi; exit 7"'. A single word is a line for the container's shell:
    'anbox shell "ls /data | wc -l"'. The exit code is the command's.
    """
    where = Instance.locate(instance, runtime_dir)
    line = command[0] if len(command) == 1 else shlex.join(command)
    return run(lambda reactor: _shell(reactor, where, line))


async def _shell(reactor: Any, where: Instance, line: str) -> int:
    link = await open_control(reactor, where)
    try:
        info = await link.info()
    finally:
        await link.close()
    nothing = f"wait for it with 'anbox wait --for booted{where.option}'"
    if not info.adb_port:
        raise NotRunning(f"instance '{where.name}' has no ADB port yet", nothing)
    transport = HostTransport(reactor, keys=load_user_keys())
    factory = Factory.forProtocol(lambda: transport)
    factory.noisy = False
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", info.adb_port, timeout=CONNECT_TIMEOUT_S)
    try:
        await endpoint.connect(factory)
    except ConnectError as error:
        raise NotRunning(f"instance '{where.name}' has no guest yet: {error}", nothing) from error
    try:
        await transport.when_online(ONLINE_TIMEOUT_S)
        return await run_shell(reactor, transport, line)
    finally:
        transport.close("the shell has ended")
        await transport.when_closed()
