"""What an rc file says, as values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from attrs import field, frozen, mutable

__all__ = [
    "Action",
    "Command",
    "Import",
    "Location",
    "Problem",
    "RcConfig",
    "RcService",
    "SocketSpec",
    "Trigger",
]


class Location(NamedTuple):
    """A line of a file; prints as ``file:line``."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@frozen
class Problem:
    """Something a reader of the file should know.

    Attributes:
        location: where.
        message: what, in the words init logs where it logs anything.
        severity: ``error``: init leaves the line out; ``warning``: init takes it, but it will hardly do
            what was meant.
    """

    location: Location
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.location}: {self.severity}: {self.message}"


@frozen
class Command:
    """One command of an action or of ``onrestart``: its words, the first being its name."""

    words: tuple[str, ...]
    location: Location = field(eq=False)

    @property
    def name(self) -> str:
        """The command's own word."""
        return self.words[0]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words behind the name, not expanded."""
        return self.words[1:]


@frozen
class Trigger:
    """When an action runs: at most one event, and any number of properties (name to value, ``*`` for any)."""

    event: str | None = None
    properties: tuple[tuple[str, str], ...] = ()

    def words(self) -> tuple[str, ...]:
        """The trigger as the words behind ``on``."""
        parts = [] if self.event is None else [self.event]
        parts += [f"property:{name}={value}" for name, value in self.properties]
        words: list[str] = []
        for part in parts:
            words += ["&&", part] if words else [part]
        return tuple(words)

    def __str__(self) -> str:
        return " ".join(self.words())


@mutable
class Action:
    """Commands that run when the trigger fires; a later section with an equal trigger adds to them."""

    trigger: Trigger
    commands: list[Command]
    location: Location = field(eq=False)


@frozen
class SocketSpec:
    """One ``socket`` line.

    Attributes:
        name: file name below the socket directory.
        type: ``stream``, ``dgram`` or ``seqpacket``.
        mode: permission bits.
        user: owner as written, or empty for 0.
        group: group as written, or empty for 0.
        seclabel: SELinux label, or empty for the service's own.
    """

    name: str
    type: str
    mode: int
    user: str = ""
    group: str = ""
    seclabel: str = ""


@mutable
class RcService:
    """One ``service`` section; the defaults are those of init."""

    name: str
    arguments: tuple[str, ...]
    location: Location = field(eq=False)
    class_name: str = "default"
    console: bool = False
    critical: bool = False
    disabled: bool = False
    oneshot: bool = False
    user: str = ""
    group: str = ""
    supplementary: tuple[str, ...] = ()
    seclabel: str = ""
    ioprio: tuple[str, int] | None = None
    keycodes: tuple[int, ...] = ()
    environment: list[tuple[str, str]] = field(factory=list)
    sockets: list[SocketSpec] = field(factory=list)
    onrestart: list[Command] = field(factory=list)
    writepid: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The program."""
        return self.arguments[0]


@frozen
class Import:
    """One ``import`` line; the path is not expanded."""

    path: str
    location: Location = field(eq=False)


@mutable
class RcConfig:
    """Everything that was read so far, in init's order.

    Attributes:
        services: by name; the first definition of a name stands.
        actions: in order of their first section.
        imports: in order of reading, not followed.
        problems: in order of reading.
    """

    services: dict[str, RcService] = field(factory=dict)
    actions: list[Action] = field(factory=list)
    imports: list[Import] = field(factory=list)
    problems: list[Problem] = field(factory=list, eq=False)

    @property
    def errors(self) -> list[Problem]:
        """The problems that made init leave something out."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def services_in_class(self, name: str) -> Iterator[RcService]:
        """The services of one class, in order."""
        return (service for service in self.services.values() if service.class_name == name)
