"""``anbox version``."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import click

from anbox_tw._version import __version__

__all__ = ["version"]

STANDS_ON = ["Twisted", "pyOpenSSL", "cryptography", "protobuf", "zope.interface", "treq"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Show the versions of anbox-tw and of what it stands on."""
    found = {"anbox-tw": __version__, "python": platform.python_version(), "kernel": platform.release()}
    for name in STANDS_ON:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"anbox {__version__}")
    for name, number in list(found.items())[1:]:
        click.echo(f"  {name} {number}")
