"""``anbox ndc``: AOSP's ``ndc`` for our netd, or for any daemon that speaks its protocol."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import click

from anbox_tw.errors import AnboxError, ConfigError, ExitCode, NotRunning

__all__ = ["find_socket", "ndc"]

SOCKET_NAMES = ("netd", "dnsproxyd", "mdns", "fwmarkd")
DEFAULT_SOCKET_DIR = "/run/anbox-netd"


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _directories(instance: str) -> list[Path]:
    """Where netd's sockets may be, the most particular place first."""
    # as network.paths.find_runtime_dir, which would make the last two
    given = os.environ.get("XDG_RUNTIME_DIR")
    bare = f"anbox-runtime-{os.geteuid()}"
    found: list[Path] = []
    for runtime in [Path(given)] if given else [Path("/run") / bare, Path(tempfile.gettempdir()) / bare]:
        root = runtime / "anbox"
        found.append(root / "netd" if instance == "default" else root / "instances" / instance / "netd")
    return [*found, Path(DEFAULT_SOCKET_DIR), Path("/dev/socket")]


def _other_instances(name: str, instance: str) -> list[str]:
    """The instances that have a netd."""
    found: set[str] = set()
    for place in _directories(instance)[:-2]:
        root = place.parent if instance == "default" else place.parent.parent.parent
        found |= {each.parent.name for each in root.glob("instances/*/netd") if _is_socket(each / name)}
        if _is_socket(root / "netd" / name):
            found.add("default")
    return sorted(found)


def find_socket(name: str, instance: str) -> str:
    """The path of netd's socket ``name``.

    Raises:
        NotRunning: there is none; names the places.
    """
    if "/" in name or name.startswith("__test__"):
        return name
    variable = os.environ.get("ANBOX_NETD_SOCKET_DIR")
    places = [Path(variable)] if variable else _directories(instance)
    for place in places:
        if _is_socket(place / name):
            return str(place / name)
    others = [] if variable else _other_instances(name, instance)
    if others:
        raise NotRunning(
            f"no socket '{name}' of a netd of the instance '{instance}'",
            f"these have one: {', '.join(others)}; name it with --instance",
        )
    raise NotRunning(
        f"no socket '{name}' of a netd in {', '.join(map(str, places))}",
        f"start the instance with 'anbox up{'' if instance == 'default' else f' --instance {instance}'}', or a daemon "
        "of its own with 'twistd -n anbox-netd', or name its socket with --socket",
    )


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--socket", "socket_name", metavar="PATH|NAME", help="The daemon's socket.  [default: netd]")
@click.option("--instance", "-i", default="default", show_default=True, help="Whose netd.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for each reply.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per message.")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    metavar="[SOCKET] [NUMBER] COMMAND [ARGUMENT...]",
)
def ndc(socket_name: str | None, instance: str, timeout: float, as_json: bool, words: tuple[str, ...]) -> int:
    """Send a command to netd, or watch its events.

    \b
    anbox ndc interface list
    anbox ndc interface getcfg eth0
    anbox ndc monitor
    anbox ndc mdns mdnssd start-service

    The first word may name a socket (netd, dnsproxyd, mdns), and a number before the command is its sequence
    number. Ends after the reply that finishes the command: 0 when it is 2xx, 1 when it is 4xx, 2 when it is 5xx.
    """
    from anbox_tw.cli._run import run

    arguments = list(words)
    if socket_name is None:
        socket_name = arguments.pop(0) if len(arguments) > 1 and arguments[0] in SOCKET_NAMES else "netd"
    path = find_socket(socket_name, instance)
    with_sequence = Path(path).name != "dnsproxyd"
    sequence: int | None = 0 if with_sequence else None
    if with_sequence and len(arguments) > 1 and arguments[0].lstrip("-").isdigit():
        sequence = int(arguments.pop(0))
    return run(lambda reactor: talk(reactor, path, sequence, arguments, timeout, as_json))


def _show(message: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"code": message.code, "sequence": message.sequence, "text": message.text}))
    else:
        number = "" if message.sequence is None else f" {message.sequence}"
        # what a daemon says may hold anything; a terminal gets no control characters
        text = "".join(char if char.isprintable() or char in "\n\t" else "?" for char in message.text)
        click.echo(f"{message.code}{number} {text}")


async def talk(
    reactor: Any, path: str, sequence: int | None, words: list[str], timeout: float, as_json: bool
) -> int:
    """Connect, send, print what comes; returns the exit code.

    Raises:
        NotRunning: nobody answers at ``path``, or the daemon went away.
        ConfigError: the words cannot be sent.
        TimedOut: no reply came in time.
    """
    from anbox_tw.netd.connector import abstract_or_path
    from anbox_tw.netd.console import Conversation

    monitor = words == ["monitor"]
    try:
        conversation = await Conversation.connect(
            reactor, abstract_or_path(path), with_sequence=sequence is not None
        )
    except AnboxError:
        raise
    except Exception as error:
        raise NotRunning(f"nobody answers at {path}: {error}", "is the daemon running?") from error
    try:
        if not monitor:
            try:
                conversation.send(sequence, words)
            except ValueError as error:
                raise ConfigError(str(error)) from error
        while True:
            message = await conversation.next(None if monitor else timeout)
            _show(message, as_json)
            if not monitor and not message.is_event and not message.is_continue:
                break
    finally:
        await conversation.close()
    if message.is_ok:
        return ExitCode.OK
    return ExitCode.USAGE if message.is_client_error else ExitCode.FAILED
