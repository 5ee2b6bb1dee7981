"""``anbox man``: manual pages, from the same source as ``--help``."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import click

from anbox_tw._version import __version__
from anbox_tw.errors import ConfigError

__all__ = ["man", "manual_page", "pages"]

EXIT_STATUS = (
    ("0", "It is done."),
    ("1", "It failed."),
    ("2", "Wrong usage."),
    ("3", "What should answer is not running."),
    ("4", "It timed out."),
    ("5", "It was refused."),
    ("6", "The host lacks something; 'anbox doctor' says what."),
)

ENVIRONMENT = (
    ("ANBOX_INSTANCE", "The instance, for --instance."),
    ("ANBOX_RUNTIME_DIR", "Where sockets live, for --runtime-dir."),
    ("XDG_RUNTIME_DIR", "Where sockets live when neither the option nor ANBOX_RUNTIME_DIR says so."),
)


@click.command()
@click.option("--directory", type=click.Path(), metavar="DIR", help="Write the pages of all commands there.")
@click.argument("command", nargs=-1)
def man(directory: str | None, command: tuple[str, ...]) -> None:
    """Print the manual page of a command, or write those of all.

    \b
    anbox man tasks resize | man -l -
    anbox man --directory ~/.local/share/man/man1
    """
    known = dict(pages())
    if directory is None:
        name = "-".join(("anbox", *command))
        if name not in known:
            raise click.UsageError(f"there is no command '{' '.join(command)}'; 'anbox --help' lists them")
        click.echo(known[name], nl=False)
        return
    if command:
        raise click.UsageError("--directory writes the pages of all commands")
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        for name, text in known.items():
            Path(directory, f"{name}.1").write_text(text)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {directory}: {error.strerror}", "choose another directory"
        ) from error
    click.echo(f"{len(known)} pages are in {directory}")


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of each page: ``anbox``, ``anbox-up``, ``anbox-tasks-list``, ..."""
    from anbox_tw.cli._main import cli

    root = click.Context(cli, info_name="anbox")
    yield "anbox", manual_page(root)
    yield from _below(root)


def _below(context: click.Context) -> Iterator[tuple[str, str]]:
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        child = click.Context(command, info_name=name, parent=context)
        yield child.command_path.replace(" ", "-"), manual_page(child)
        if isinstance(command, click.Group):
            yield from _below(child)


def manual_page(context: click.Context) -> str:
    """The page of one command, in the man macros (groff_man(7))."""
    command = context.command
    name = context.command_path.replace(" ", "-")
    paragraphs = (command.help or "").split("\f")[0].strip().split("\n\n")
    summary = " ".join(paragraphs[0].split()).rstrip(".")
    day = time.strftime("%Y-%m-%d", time.gmtime(0))
    lines = [
        f'.TH "{_text(name.upper())}" 1 "{day}" "anbox-tw {__version__}" "anbox-tw"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(summary)}",
        ".SH SYNOPSIS",
        f".B {_text(context.command_path)}",
        _text(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
    ]
    for paragraph in paragraphs:
        if paragraph.lstrip().startswith("\b"):
            shown = [line.strip() for line in paragraph.strip().lstrip("\b").strip("\n").splitlines()]
            lines += [".PP", ".nf", *(_text(line) for line in shown), ".fi"]
        else:
            lines += [".PP", _text(" ".join(paragraph.split()))]
    options = [
        record
        for one in command.get_params(context)
        if (record := one.get_help_record(context)) is not None and record[1]
    ]
    if options:
        lines.append(".SH OPTIONS")
        for option, text in options:
            lines += [".TP", f".B {_text(option)}", _text(" ".join(text.split())) or "\\&"]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                lines += [
                    ".TP",
                    f".BR {_text(f'{name}-{child}')} (1)",
                    _text(found.get_short_help_str(200)),
                ]
    for title, rows in (("EXIT STATUS", EXIT_STATUS), ("ENVIRONMENT", ENVIRONMENT)):
        lines.append(f".SH {title}")
        for key, text in rows:
            lines += [".TP", f".B {key}", _text(text)]
    if context.parent is not None:
        lines += [".SH SEE ALSO", f".BR {_text(context.parent.command_path.replace(' ', '-'))} (1)"]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """Text that groff takes as such: no escapes, no requests at the beginning of a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    escaped = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", escaped)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
