"""``anbox forward``."""

from __future__ import annotations

import json
import os
from typing import Any

import click
from google.protobuf.json_format import MessageToDict

from anbox_tw.cli._control import ControlLink, open_control
from anbox_tw.cli._instance import Instance, instance_options
from anbox_tw.cli._run import run
from anbox_tw.rpc._pb import anbox_session_pb2 as pb

__all__ = ["forward"]


@click.command()
@instance_options
@click.argument("listen", required=False)
@click.argument("target", required=False)
@click.option(
    "--via",
    type=click.Choice(["auto", "direct", "adb"]),
    default="auto",
    show_default=True,
    help="The way to the guest: a socket opened inside the container, adbd, or the first where there is one.",
)
@click.option("--persist", is_flag=True, help="There again at the next start of the instance.")
@click.option("--list", "listing", is_flag=True, help="List the forwards.")
@click.option("--remove", metavar="LISTEN", help="Remove a forward and end its connections.")
@click.option("--remove-all", is_flag=True, help="Remove all forwards.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with an object per forward.")
def forward(
    instance: str,
    runtime_dir: str | None,
    listen: str | None,
    target: str | None,
    via: str,
    persist: bool,
    listing: bool,
    remove: str | None,
    remove_all: bool,
    as_json: bool,
) -> None:
    """Forward a port or socket of the host to one of the guest.

    \b
    LISTEN  tcp:PORT, tcp:ADDRESS:PORT, unix:PATH, udp:PORT, udp:ADDRESS:PORT
    TARGET  tcp:PORT, tcp:ADDRESS:PORT, udp:..., localabstract:NAME, localfilesystem:PATH, localreserved:NAME

    Without an address it is loopback, here and in the guest. tcp:0 takes a free port and prints it. What listens is
    open at once, whether the guest's service is there or not: its absence shows as a reset connection.
    """
    if sum(map(bool, (listen, listing, remove, remove_all))) != 1 or bool(listen) != bool(target):
        raise click.UsageError("give LISTEN and TARGET, or one of --list, --remove and --remove-all")
    listen, remove = _absolute(listen), _absolute(remove)

    where = Instance.locate(instance, runtime_dir)

    async def ask(reactor: Any) -> pb.ForwardList:
        link: ControlLink = await open_control(reactor, where)
        try:
            if listing:
                answer = await link.channel.call("list_forwards", pb.ListForwards(), pb.ForwardList)
            elif listen:
                request = pb.AddForward(listen=listen, target=target, via=via, persistent=persist)
                answer = await link.channel.call("add_forward", request, pb.ForwardList)
            else:
                removal = pb.RemoveForward(listen=remove or "", all=remove_all)
                answer = await link.channel.call("remove_forward", removal, pb.ForwardList)
        finally:
            await link.close()
        assert isinstance(answer, pb.ForwardList)
        return answer

    answer = run(ask)
    if as_json:
        click.echo(json.dumps([_as_dict(each) for each in answer.forwards], indent=2))
    elif listing:
        _print_table(answer)
    elif listen and listen.endswith(":0"):
        # as adb does, so that scripts can read it
        click.echo(answer.forwards[0].listen.rpartition(":")[2])


def _absolute(listen: str | None) -> str | None:
    """The session's working directory is not ours."""
    if listen and listen.startswith("unix:") and listen != "unix:":
        return f"unix:{os.path.abspath(listen.removeprefix('unix:'))}"
    return listen


def _as_dict(forward: pb.Forward) -> dict[str, Any]:
    told = MessageToDict(
        forward, preserving_proto_field_name=True, always_print_fields_with_no_presence=False
    )
    for name in ("accepted", "failed", "bytes_to_guest", "bytes_from_guest"):
        # JSON has no 64-bit integers, says protobuf, and makes them strings
        told[name] = int(told.get(name, 0))
    return {
        "listen": forward.listen,
        "target": forward.target,
        **told,
        "persistent": forward.persistent,
        "connections": forward.connections,
        "way": forward.way,
    }


def _print_table(answer: pb.ForwardList) -> None:
    if not answer.forwards:
        click.echo("nothing is forwarded")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("LISTEN", "TARGET", "WAY", "OPEN", "TOTAL", "FAILED", "IN/OUT"):
        table.add_column(title, no_wrap=True)
    for each in answer.forwards:
        table.add_row(
            each.listen,
            each.target,
            f"only {each.via}" if each.way == each.via else each.way or "none",
            str(each.connections),
            str(each.accepted),
            str(each.failed),
            f"{_bytes(each.bytes_to_guest)}/{_bytes(each.bytes_from_guest)}",
        )
    Console().print(table)
    for each in answer.forwards:
        notes = ["kept"] * each.persistent + [text for text in (each.problem, each.last_error) if text]
        if notes:
            click.echo(f"{each.listen}: {'; '.join(notes)}")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("", "k", "M", "G"):
        if size < 1000:
            return f"{size:.3g}{unit}"
        size /= 1000
    return f"{size:.3g}T"
