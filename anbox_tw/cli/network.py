"""``anbox network``."""

from __future__ import annotations

from typing import Any

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._session import ask, json_option, print_json
from anbox_tw.device.network import DELAYS, SPEEDS

__all__ = ["network"]


@click.group()
def network() -> None:
    """Make the guest's network as slow as a mobile one.

    It is the emulator's `network` command: the direct forwards and the connections that a guest makes through its pipe
    get the speed and the latency of a profile. Connections that are open already when the first limit comes stay as
    fast as they are.
    """


@network.command(help=f"Limit the speed: {', '.join(SPEEDS)}, KBITS, or UP:DOWN in kilobits per second.")
@instance_options
@json_option
@click.argument("speed")
def speed(instance: str, runtime_dir: str | None, as_json: bool, speed: str) -> None:
    _print(ask(instance, runtime_dir, "network.speed", speed=speed), as_json)


@network.command(help=f"Make round trips longer: {', '.join(DELAYS)}, MS, or MIN:MAX in milliseconds.")
@instance_options
@json_option
@click.argument("delay")
def delay(instance: str, runtime_dir: str | None, as_json: bool, delay: str) -> None:
    _print(ask(instance, runtime_dir, "network.delay", delay=delay), as_json)


@network.command()
@instance_options
@json_option
def status(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """Print speed and latency."""
    _print(ask(instance, runtime_dir, "network.status"), as_json)


def _print(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(state)
        return
    speed, delay = (f" ({state[name]})" if state[name] else "" for name in ("speed", "delay"))
    click.echo(f"upload   {_rate(state['upload'])}{speed}")
    click.echo(f"download {_rate(state['download'])}{speed}")
    click.echo(f"latency  {state['min_delay']} to {state['max_delay']} ms{delay}")


def _rate(bits: int) -> str:
    return f"{bits} bits/s" if bits else "no limit"
