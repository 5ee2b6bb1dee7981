"""``anbox input``: touch, type and click in the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._session import ask, json_option, print_json, print_table
from anbox_tw.device.gestures import (
    BUTTONS,
    DEFAULT_RATE_HZ,
    KEY_S,
    MAX_GESTURE_S,
    MAX_RATE_HZ,
    TAP_S,
    TYPING_S,
)

__all__ = ["input_commands"]

F = TypeVar("F", bound=Callable[..., Any])

SECONDS = click.FloatRange(0, MAX_GESTURE_S)
RATE = click.FloatRange(1, MAX_RATE_HZ)
NEGATIVE: dict[str, Any] = {"ignore_unknown_options": True}
"""Of commands with arguments that may be negative."""


def _seconds(name: str, default: float, text: str) -> Callable[[F], F]:
    return click.option(name, type=SECONDS, default=default, show_default=True, metavar="S", help=text)


@click.group()
def input_commands() -> None:
    """Touch, type and click in the guest, in pixels of its display.

    A command returns when its gesture is done.
    """


@input_commands.command()
@instance_options
@click.argument("x", type=float)
@click.argument("y", type=float)
@_seconds("--hold", TAP_S, "Seconds between touching and leaving; 0.6 is a long press.")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True, help="2 is a double tap.")
def tap(instance: str, runtime_dir: str | None, **gesture: Any) -> None:
    """Touch at X Y and leave."""
    ask(instance, runtime_dir, "input.tap", **gesture)


@input_commands.command()
@instance_options
@click.argument("x1", type=float)
@click.argument("y1", type=float)
@click.argument("x2", type=float)
@click.argument("y2", type=float)
@_seconds("--duration", 0.3, "Seconds of the movement.")
@_seconds("--hold", 0.0, "Seconds before the movement: with some of it, what is held is dragged.")
@click.option("--rate", type=RATE, default=DEFAULT_RATE_HZ, show_default=True, help="Positions a second.")
def swipe(instance: str, runtime_dir: str | None, **gesture: Any) -> None:
    """Touch at X1 Y1, move to X2 Y2 and leave."""
    ask(instance, runtime_dir, "input.swipe", **gesture)


@input_commands.command()
@instance_options
@click.argument("x", type=float)
@click.argument("y", type=float)
@click.argument("start", type=click.FloatRange(min=0))
@click.argument("end", type=click.FloatRange(min=0))
@_seconds("--duration", 0.4, "Seconds of the movement.")
@click.option("--angle", type=float, default=0.0, show_default=True, help="Degrees from the x axis.")
def pinch(instance: str, runtime_dir: str | None, **gesture: Any) -> None:
    """Two fingers around X Y, START pixels apart, move until they are END apart."""
    ask(instance, runtime_dir, "input.pinch", **gesture)


@input_commands.command()
@instance_options
@click.argument("paths", nargs=-1, required=True)
@_seconds("--duration", 0.3, "Seconds of the movement.")
@_seconds("--hold", 0.0, "Seconds before the movement.")
def multitouch(
    instance: str, runtime_dir: str | None, paths: tuple[str, ...], duration: float, hold: float
) -> None:
    """Up to ten fingers touch at once, follow their PATHS and leave.

    A path is the corners of one finger's way: 100,100:200,100:200,300. One corner is a finger that stays.
    """
    fingers = [[_corner(corner) for corner in path.split(":")] for path in paths]
    ask(instance, runtime_dir, "input.multitouch", paths=fingers, duration=duration, hold=hold)


def _corner(text: str) -> list[float]:
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no corner; write X,Y") from None
    return [x, y]


@input_commands.command()
@instance_options
@click.argument("text")
@_seconds("--interval", TYPING_S, "Seconds from one keystroke to the next.")
def text(instance: str, runtime_dir: str | None, **gesture: Any) -> None:
    """Type TEXT on a US keyboard.

    What such a keyboard does not have is refused, and nothing is typed: put it on the clipboard with
    'anbox clipboard' and press the key PASTE.
    """
    ask(instance, runtime_dir, "input.text", **gesture)


@input_commands.command()
@instance_options
@click.argument("keys", nargs=-1, required=True)
@_seconds("--hold", KEY_S, "Seconds that each is held; 0.6 is a long press.")
@click.option("--down", "action", flag_value="down", help="Press and do not release.")
@click.option("--up", "action", flag_value="up", help="Release.")
def key(
    instance: str, runtime_dir: str | None, keys: tuple[str, ...], hold: float, action: str | None
) -> None:
    """Press KEYS one after another.

    A key is Android's name (HOME, BACK, KEYCODE_ENTER), Linux's (KEY_A), a code of Linux, or several that are
    pressed together: CTRL+C.
    """
    ask(instance, runtime_dir, "input.key", key=list(keys), action=action or "press", hold=hold)


@input_commands.command(context_settings=NEGATIVE)
@instance_options
@click.argument("action", type=click.Choice(["move", "down", "up", "click", "wheel"]))
@click.argument("numbers", nargs=-1, type=float)
@click.option("--button", type=click.Choice([*BUTTONS]), default="left", show_default=True, help="Which.")
def mouse(
    instance: str, runtime_dir: str | None, action: str, numbers: tuple[float, ...], button: str
) -> None:
    """Move, press, release and click the mouse, or turn its wheel.

    'move X Y', 'click X Y', 'down' and 'up' with or without X Y; 'wheel CLICKS' up, or down when negative. The
    mouse is a finger unless the session was started with --no-touch-emulation.
    """
    arguments: dict[str, Any] = {"action": action, "button": button}
    if action == "wheel" and len(numbers) in (1, 3):
        arguments["clicks"] = int(numbers[0])
        numbers = numbers[1:]
    elif action == "wheel" or (action == "move" and not numbers) or len(numbers) not in (0, 2):
        raise click.UsageError("give X Y, or CLICKS for the wheel; see --help")
    if numbers:
        arguments["x"], arguments["y"] = numbers
    ask(instance, runtime_dir, "input.mouse", **arguments)


@input_commands.command(context_settings=NEGATIVE)
@instance_options
@click.argument("device", type=click.Choice(["pointer", "keyboard", "touch"]))
@click.argument("events", nargs=-1, required=True)
def event(instance: str, runtime_dir: str | None, device: str, events: tuple[str, ...]) -> None:
    """Send raw EVENTS of Linux's input as one batch: EV_KEY:KEY_A:1 EV_SYN:SYN_REPORT:0."""
    triples = [one.split(":") for one in events]
    for triple in triples:
        if len(triple) != 3:
            raise click.UsageError(f"{':'.join(triple)!r} is not TYPE:CODE:VALUE")
    ask(instance, runtime_dir, "input.event", device=device, events=triples)


@input_commands.command()
@instance_options
@json_option
def devices(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """List the devices, how many in the guest read them, and what slow readers have lost."""
    found = ask(instance, runtime_dir, "input.devices")
    if as_json:
        print_json(found)
        return
    print_table(
        ("DEVICE", "KIND", "READERS", "EVENTS", "LOST"),
        ((one["device"], one["kind"], one["readers"], one["events"], one["lost"]) for one in found),
        "there are no devices",
    )
