"""``anbox rc``: check and print Android init rc files."""

from __future__ import annotations

import json
import os

import click

from anbox_tw.android.errors import RcError
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
from anbox_tw.errors import ExitCode

__all__ = ["rc"]


@click.group()
def rc() -> None:
    """Check and print Android init rc files (the language of Android 7.0)."""


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
            click.echo(str(problem))
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
    click.echo(format_config(loader.config), nl=False)
    for problem in loader.config.problems:
        click.echo(str(problem), err=True)
    if loader.config.errors:
        raise click.exceptions.Exit(ExitCode.FAILED)
