"""``anbox image``: fetch, import, list, remove and go back."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import click
from twisted.internet.defer import Deferred

from anbox_tw.cli._run import run
from anbox_tw.cli._session import json_option, print_json, print_table, printable
from anbox_tw.container.imagestore.fetch import FetchOptions
from anbox_tw.container.imagestore.install import Installer, name_of_source
from anbox_tw.container.imagestore.store import DEFAULT_KEEP, ImageStore, Version, default_store

__all__ = ["image"]

store_option = click.option(
    "--store",
    metavar="DIR",
    envvar="ANBOX_IMAGES",
    help="Where images are kept.  [default: /var/lib/anbox/images for root, else ~/.local/share/anbox/images]",
)
keep_option = click.option(
    "--keep",
    type=click.IntRange(1, 100),
    default=DEFAULT_KEEP,
    show_default=True,
    help="How many versions stay, the one in use among them.",
)


@click.group()
def image() -> None:
    """Keep the images that containers are started with: 'anbox up --image NAME'."""


def _store(where: str | None) -> ImageStore:
    return ImageStore(where or default_store())


def _told(version: Version, new: bool) -> None:
    state = "is now" if new else "was there already and is"
    click.echo(f"{version.image} {state} {version.version}: {version.kind}, {version.size} bytes")


@image.command()
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.option("--name", metavar="NAME", help="Of the image.  [default: after the first URL]")
@click.option(
    "--sha256",
    metavar="HEX",
    default="",
    help="What the file must have.  [default: URL.sha256 or SHA256SUMS beside it]",
)
@click.option("--no-checksum", is_flag=True, help="Take a file that has no checksum beside it.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 3600),
    default=30.0,
    show_default=True,
    help="Seconds without a byte.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=5,
    show_default=True,
    help="Attempts in a row that bring nothing.",
)
@keep_option
@store_option
def fetch(
    urls: tuple[str, ...],
    name: str | None,
    sha256: str,
    no_checksum: bool,
    timeout: float,
    retries: int,
    keep: int,
    store: str | None,
) -> None:
    """Fetch an image; further URLs are mirrors of the same file.

    An interrupted fetch goes on where it was. The image is used when all of it is there and has its checksum;
    until then, and after a failure, everything is as before.
    """
    options = FetchOptions(sha256=sha256, check=not no_checksum, timeout=timeout, retries=retries)
    chosen = name or name_of_source(urls[0])

    def work(reactor: Any) -> Coroutine[Deferred[Any], Any, tuple[Version, bool]]:
        return _fetch(Installer(reactor, _store(store)), chosen, urls, options, keep)

    _told(*run(work))


async def _fetch(
    installer: Installer, name: str, urls: tuple[str, ...], options: FetchOptions, keep: int
) -> tuple[Version, bool]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    # On standard error, and only for people.
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, auto_refresh=False) as bar:
        task = bar.add_task(printable(name), total=None)

        def progress(done: int, whole: int | None) -> None:
            bar.update(task, completed=done, total=whole, refresh=True)

        return await installer.fetch(name, urls, options, keep=keep, progress=progress)


@image.command("import")
@click.argument("path", metavar="FILE|DIR")
@click.option("--name", metavar="NAME", help="Of the image.  [default: after the file]")
@click.option("--sha256", metavar="HEX", default="", help="What the file must have.")
@keep_option
@store_option
def import_(path: str, name: str | None, sha256: str, keep: int, store: str | None) -> None:
    """Copy an image (squashfs, ext4, EROFS), a tar archive of a root file system, or a directory into the store."""
    chosen = name or name_of_source(path)
    checked = FetchOptions(sha256=sha256).sha256

    def work(reactor: Any) -> Coroutine[Deferred[Any], Any, tuple[Version, bool]]:
        return Installer(reactor, _store(store)).import_path(chosen, path, sha256=checked, keep=keep)

    _told(*run(work))


@image.command("list")
@store_option
@json_option
def list_(store: str | None, as_json: bool) -> None:
    """List the images with their versions, newest last; '*' marks the one in use."""
    images = _store(store)
    found = [version for name in images.names() for version in images.versions(name)]
    if as_json:
        print_json([version.as_dict() for version in found])
        return
    print_table(
        ("IMAGE", "", "VERSION", "KIND", "BYTES", "FROM"),
        ((v.image, "*" if v.current else "", v.version, v.kind, v.size, v.source) for v in found),
        "there are no images; get one with 'anbox image fetch URL' or 'anbox image import FILE'",
    )


@image.command()
@click.argument("name")
@click.argument("version", required=False, default="")
@store_option
def rm(name: str, version: str, store: str | None) -> None:
    """Remove an image with all its versions, or one VERSION that is not in use."""
    for gone in _store(store).remove(name, version):
        click.echo(f"removed {gone.image} {gone.version}")


@image.command()
@click.argument("name")
@click.argument("version", required=False, default="")
@store_option
def rollback(name: str, version: str, store: str | None) -> None:
    """Go back to the version before the one in use, or to a certain VERSION."""
    _told(_store(store).rollback(name, version), True)
