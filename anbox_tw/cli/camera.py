"""``anbox camera``."""

from __future__ import annotations

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._session import ask, json_option, print_json, print_table

__all__ = ["camera"]


@click.group()
def camera() -> None:
    """See what the device's cameras show, and have them show something else; see docs/device.md."""


@camera.command("list")
@instance_options
@json_option
def list_(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """List the cameras, what they show, and what the guest does with them."""
    cameras = ask(instance, runtime_dir, "camera.list")
    if as_json:
        print_json(cameras)
        return
    rows = []
    for each in cameras:
        capture = each["capture"]
        use = f"{capture['size']} {capture['format']}" if capture else "open" if each["connected"] else "-"
        rows.append((each["direction"], each["source"], use, each["frames"]))
    print_table(("CAMERA", "SHOWS", "GUEST", "FRAMES"), rows, "there is no camera")


@camera.command("set")
@instance_options
@click.argument("which", type=click.Choice(["back", "front"]))
@click.argument("source")
def set_(instance: str, runtime_dir: str | None, which: str, source: str) -> None:
    """Have a camera show SOURCE from the guest's next start on: test-pattern, none, image:PATH or video:PATH."""
    from anbox_tw.qemu.camera_sources import parse_source

    kind, path = parse_source(source)
    ask(instance, runtime_dir, "camera.set", camera=which, source=f"{kind}:{path}" if path else kind)
