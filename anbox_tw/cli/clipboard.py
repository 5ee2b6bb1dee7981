"""``anbox clipboard``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._run import first_of, pause
from anbox_tw.cli._session import json_option, print_json, with_session
from anbox_tw.errors import ConfigError, NotRunning
from anbox_tw.session.client import SessionClient
from anbox_tw.session.clipboard import MAX_CLIPBOARD_CHARS

__all__ = ["clipboard"]

LOOK_EVERY_S = 1.0
"""The desktops' tools have no common way to say that the clipboard has changed."""


@click.group()
def clipboard() -> None:
    """Read and set the clipboard that host and guest share.

    It is the desktop's own where there is one, and the session's otherwise; see docs/desktop.md.
    """


@clipboard.command()
@instance_options
@json_option
def get(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """Print the text of the clipboard, as it is: no line end is added."""
    text = with_session(instance, runtime_dir, lambda reactor, client: client.get_clipboard())
    if as_json:
        print_json({"text": text})
    else:
        click.echo(text, nl=False)


@clipboard.command("set")
@instance_options
@click.argument("text", required=False)
def set_(instance: str, runtime_dir: str | None, text: str | None) -> None:
    """Replace the text of the clipboard by TEXT, or by standard input when there is no TEXT or it is '-'."""
    if text is None or text == "-":
        data = sys.stdin.buffer.read(4 * MAX_CLIPBOARD_CHARS + 1)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ConfigError("standard input is no UTF-8 text", "the clipboard holds text alone") from error
    if len(text) > MAX_CLIPBOARD_CHARS:
        raise ConfigError(
            f"the text has more than {MAX_CLIPBOARD_CHARS} characters",
            "push it as a file: anbox adb push FILE /sdcard/",
        )
    with_session(instance, runtime_dir, lambda reactor, client: client.set_clipboard(text))


@clipboard.command()
@instance_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many texts.")
def watch(instance: str, runtime_dir: str | None, as_json: bool, count: int | None) -> None:
    """Print the text now, and each time it changes, until Ctrl-C. Looks once a second, and when the guest copies."""

    async def work(reactor: Any, client: SessionClient) -> None:
        from twisted.internet.defer import Deferred

        copied: list[Deferred[None]] = []

        def event(told: dict[str, Any]) -> None:
            if told["kind"] == "bridge" and told["name"] == "clipboard" and copied:
                copied.pop().callback(None)

        await client.watch(event)
        last: str | None = None
        printed = 0
        while True:
            changed: Deferred[None] = Deferred()
            copied[:] = [changed]
            text = await client.get_clipboard()
            if text != last:
                last = text
                click.echo(json.dumps({"text": text}, ensure_ascii=False) if as_json else text)
                printed += 1
                if count is not None and printed >= count:
                    return
            place, why = await first_of(
                changed, client.when_lost(), Deferred.fromCoroutine(pause(reactor, LOOK_EVERY_S))
            )
            if place == 1:
                raise NotRunning(f"the session has ended: {why}")

    with_session(instance, runtime_dir, work)
