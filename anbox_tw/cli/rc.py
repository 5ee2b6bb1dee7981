"""``anbox rc``: check and print Android init rc files, and look at a running init."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import click

from anbox_tw.android._text import printable
from anbox_tw.android._wire import Namespace, sun_path
from anbox_tw.android.errors import RcError
from anbox_tw.android.init.status import STATUS_SOCKET
from anbox_tw.android.properties.client import get_property, list_properties, set_property, socket_directory
from anbox_tw.android.rc import (
    Problem,
    RcConfig,
    RcLoader,
    format_config,
    is_ueventd_file,
    lint,
    parse_ueventd,
    read_rc,
)
from anbox_tw.errors import ExitCode, NotRunning, PermissionRefused

__all__ = ["rc"]

ANSWER_TIMEOUT_S = 10.0
"""How long an init may take to tell its state."""


@click.group()
def rc() -> None:
    """Check and print Android init rc files (the language of Android 7.0), and talk to a running init."""


def _properties(pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{pair}' is not NAME=VALUE", param_hint="'--property'")
        found[name] = value
    return found


def _files(paths: tuple[str, ...]) -> list[str]:
    """The files to read: each given file, and the rc files of each given directory."""
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inner = sorted(name for name in os.listdir(path) if name.endswith(".rc"))
            found += [os.path.join(path, name) for name in inner]
        else:
            found.append(path)
    return found


_files_argument = click.argument("files", nargs=-1, required=True, type=click.Path(exists=True))
_property_option = click.option(
    "-p",
    "--property",
    "properties",
    multiple=True,
    metavar="NAME=VALUE",
    help="A property that imports may use.",
)
_root_option = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False),
    help="Follow imports; this directory stands for /.",
)


def _loader(properties: tuple[str, ...], root: str | None) -> RcLoader:
    known = _properties(properties)
    return RcLoader(get=lambda name: known.get(name, ""), root=root or "", follow_imports=root is not None)


@rc.command()
@_files_argument
@_property_option
@_root_option
@click.option(
    "--whole", is_flag=True, help="The files are a whole system: unknown services and events are mistakes."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
@click.option("-W", "--strict", is_flag=True, help="Fail on warnings too.")
def check(
    *,
    files: tuple[str, ...],
    properties: tuple[str, ...],
    root: str | None,
    whole: bool,
    as_json: bool,
    quiet: bool,
    strict: bool,
) -> None:
    """Report every line of FILES that init would refuse, ignore or fail on, as file:line: severity: message.

    A directory stands for the .rc files in it. Each file is read by itself unless --whole is given. Files
    named ueventd*.rc are read in ueventd's language. Exits with 1 when there are errors.
    """
    problems: list[Problem] = []
    counts = {"files": 0, "services": 0, "actions": 0, "commands": 0, "rules": 0}

    def judge(config: RcConfig) -> None:
        problems.extend(config.problems)
        problems.extend(lint(config, whole=whole))
        counts["services"] += len(config.services)
        counts["actions"] += len(config.actions)
        counts["commands"] += sum(len(action.commands) for action in config.actions)

    together = _loader(properties, root) if whole else None
    for path in _files(files):
        if is_ueventd_file(path):
            rules = parse_ueventd(read_rc(path), path)
            problems.extend(rules.problems)
            counts["files"] += 1
            counts["rules"] += len(rules.rules) + len(rules.subsystems)
            continue
        loader = together or _loader(properties, root)
        before = len(loader.files)
        config = loader.load(path)
        counts["files"] += len(loader.files) - before
        if together is None:
            judge(config)
    if together is not None:
        judge(together.config)
    problems.sort(key=lambda problem: problem.location)
    errors = sum(problem.severity == "error" for problem in problems)
    if as_json:
        listed = [
            {
                "file": problem.location.file,
                "line": problem.location.line,
                "severity": problem.severity,
                "message": problem.message,
            }
            for problem in problems
        ]
        click.echo(json.dumps({**counts, "errors": errors, "problems": listed}, indent=2))
    else:
        for problem in problems:
            click.echo(printable(problem))
        if not quiet:
            click.echo(
                f"{counts['files']} files: {counts['services']} services, {counts['actions']} actions with "
                f"{counts['commands']} commands, {counts['rules']} device rules; {errors} errors, "
                f"{len(problems) - errors} warnings",
                err=True,
            )
    if errors or (strict and problems):
        raise click.exceptions.Exit(ExitCode.FAILED)


@rc.command(name="print")
@_files_argument
@_property_option
@_root_option
def print_(*, files: tuple[str, ...], properties: tuple[str, ...], root: str | None) -> None:
    """Print what was understood of FILES, as one rc file: reading that again gives the same.

    Problems go to standard error. Exits with 1 when there are errors.
    """
    loader = _loader(properties, root)
    for path in _files(files):
        if is_ueventd_file(path):
            raise RcError(f"'{path}' is in ueventd's language", "'anbox rc check' can read it")
        loader.load(path)
    click.echo(os.fsencode(format_config(loader.config)), nl=False)
    for problem in loader.config.problems:
        click.echo(printable(problem), err=True)
    if loader.config.errors:
        raise click.exceptions.Exit(ExitCode.FAILED)


_directory_option = click.option(
    "-d",
    "--socket-dir",
    "directory",
    type=click.Path(file_okay=False),
    help="The init's socket directory (default: ANBOX_SOCKET_DIR, or /dev/socket).",
)


def _events(directory: str | None) -> Iterator[dict[str, Any]]:
    """What an init tells about itself: its state, then events."""
    path = sun_path(STATUS_SOCKET, Namespace.RESERVED, socket_directory=directory or socket_directory())
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(
                f"no init answers on {os.fsdecode(path)!r}", "start 'twistd anbox-init', or give --socket-dir"
            ) from error
        except PermissionError as error:
            raise PermissionRefused(f"{os.fsdecode(path)!r} may not be opened") from error
        with sock.makefile("rb") as file:
            first = file.readline()
            sock.settimeout(None)
            if first:
                yield json.loads(first)
                for line in file:
                    yield json.loads(line)


@rc.command()
@_directory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(*, directory: str | None, as_json: bool) -> None:
    """Show the services of a running init, and what it could not do as written."""
    events = _events(directory)
    state = next(events, None)
    events.close()  # type: ignore[attr-defined]  # a generator
    if state is None:
        raise NotRunning("init closed the connection", "too many watchers, or it is just stopping")
    if as_json:
        click.echo(json.dumps(state, indent=2))
        return
    for name, service in state["services"].items():
        pid = f"pid {service['pid']}" if service["pid"] else service["last_exit"] or "never started"
        click.echo(f"{name:16}  {service['state']:10}  {pid:32}  {service['defined']}")
        for text in service["not_granted"]:
            click.echo(f"                  not granted: {text}")
    for problem in state["problems"]:
        click.echo(problem)
    for note in state["notes"]:
        click.echo(f"note: {note}")


@rc.command()
@_directory_option
def watch(*, directory: str | None) -> None:
    """Print each event of a running init as one line of JSON, its whole state first, until it ends."""
    for event in _events(directory):
        click.echo(json.dumps(event))


@rc.command()
@_directory_option
@click.argument("name", required=False)
@click.argument("default", default="")
def getprop(*, directory: str | None, name: str | None, default: str) -> None:
    """Print a property of a running init, or all of them."""
    if name is None:
        for known, value in list_properties(directory=directory).items():
            click.echo(os.fsencode(f"[{known}]: [{value}]"))
    else:
        click.echo(os.fsencode(get_property(name, default, directory=directory)))


@rc.command()
@_directory_option
@click.argument("name")
@click.argument("value")
def setprop(*, directory: str | None, name: str, value: str) -> None:
    """Set a property of a running init. ctl.start, ctl.stop and ctl.restart control services."""
    set_property(name, value, directory=directory)


def _control(verb: str) -> click.Command:
    @click.command(name=verb, help=f"{verb.capitalize()} a service of a running init.")
    @_directory_option
    @click.argument("service")
    def control(*, directory: str | None, service: str) -> None:
        set_property(f"ctl.{verb}", service, directory=directory)

    return control


for _verb in ("start", "stop", "restart"):
    rc.add_command(_control(_verb))
