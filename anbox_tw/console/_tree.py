"""The console's tree of commands: how one is found, and what help says of it (``console.cpp``).

A command's name is compared exactly; what follows the first blanks is the argument, of which blanks at the end count.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

__all__ = ["Command", "Ko", "find", "help_for", "help_lines", "short_help", "verbose_help"]

Lines = Sequence[str]
Handler = Callable[[Any, str], "Lines | Awaitable[Lines | None] | None"]
"""Takes the context and the argument (empty for none); returns lines that go before ``OK``."""


class Ko(Exception):
    """A command fails.

    Args:
        text: what follows ``KO:``.
        lines: that go before it.
    """

    def __init__(self, text: str, lines: Lines = ()) -> None:
        super().__init__(text)
        self.text = text
        self.lines = lines


@attrs.frozen
class Command:
    """A command, or a group of them.

    Attributes:
        names: its names, with ``|`` between them.
        abstract: one line.
        description: of ``help NAME``; the abstract without it.
        handler: runs it; a group has none.
        commands: of a group.
    """

    names: str
    abstract: str
    description: Lines = ()
    handler: Handler | None = None
    commands: tuple[Command, ...] = ()


def find(commands: Sequence[Command], line: str) -> tuple[Command | None, str]:
    """The command that a line begins with, and its argument."""
    name, _, rest = line.partition(" ")
    found = next((command for command in commands if name in command.names.split("|")), None)
    return found, rest.lstrip(" ")


def help_lines(command: Command, prefix: str = "") -> list[str]:
    """What is said of a command; of a group with its commands, each behind ``prefix``."""
    lines = list(command.description or (command.abstract,))
    if command.commands:
        lines += ["", "available sub-commands:"]
        lines += [f"   {prefix} {sub.names:<15}  {sub.abstract}" for sub in command.commands]
        lines.append("")
    return lines


def short_help(commands: Sequence[Command]) -> list[str]:
    """``help``: below 1024 characters, as Android Studio reads no more."""
    return [
        "Android console commands:",
        *(f"    {command.names}" for command in commands),
        "",
        "Try 'help-verbose' for more description",
        "Try 'help <command>' for command-specific help",
    ]


def verbose_help(commands: Sequence[Command]) -> list[str]:
    """``help-verbose``."""
    return [
        "Android console command help:",
        "",
        *(f"    {command.names:<15}  {command.abstract}" for command in commands),
        "",
        "try 'help <command>' for command-specific help",
    ]


def help_for(commands: Sequence[Command], line: str) -> list[str]:
    """``help COMMAND [SUBCOMMAND ...]``.

    Raises:
        Ko: there is no such command.
    """
    top, rest, level = commands, line, commands
    while True:
        command, rest = find(level, rest)
        if command is None:
            raise Ko("unknown command", [*short_help(top), ""])
        if not rest or not command.commands:
            return help_lines(command, line)
        level = command.commands
