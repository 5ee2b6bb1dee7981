"""A backend whose every step the test decides."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import Probe
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.spec import ContainerSpec
from anbox_tw.container.undo import default_kinds
from anbox_tw.interfaces import IContainer, IContainerBackend


@implementer(IContainer)
class ManualContainer:
    """Each method gives a Deferred that the test fires."""

    def __init__(self, spec: ContainerSpec, journal: Journal) -> None:
        self.spec = spec
        self.journal = journal
        self.calls: list[str] = []
        self.pending: dict[str, Deferred[None]] = {}
        self.cancelled: list[str] = []
        self.exits: list[Deferred[str]] = []

    def _begin(self, name: str) -> Deferred[None]:
        self.calls.append(name)
        self.pending[name] = Deferred(lambda _: self.cancelled.append(name))
        return self.pending[name]

    def prepare(self) -> Deferred[None]:
        return self._begin("prepare")

    def start(self) -> Deferred[None]:
        return self._begin("start")

    def stop(self, timeout: float) -> Deferred[None]:
        return self._begin("stop")

    def when_exited(self) -> Deferred[str]:
        self.exits.append(Deferred())
        return self.exits[-1]

    def info(self) -> dict[str, Any]:
        return {"pid": 42}


@implementer(IContainerBackend)
class ManualBackend:
    """Makes `ManualContainer`s; ``probes`` are what it says of the host."""

    name = "manual"

    def __init__(self) -> None:
        self.probes = [Probe("everything", True, "is there")]
        self.made: list[ManualContainer] = []
        self.create_error: Exception | None = None

    def probe(self) -> Deferred[list[Any]]:
        return succeed(list(self.probes))

    def create(self, spec: ContainerSpec, journal: Journal) -> IContainer:
        if self.create_error is not None:
            raise self.create_error
        self.made.append(ManualContainer(spec, journal))
        return self.made[-1]


def a_spec(directory: str, **more: Any) -> ContainerSpec:
    """A spec whose paths lie in ``directory``."""
    return ContainerSpec(data_path=f"{directory}/data-path", run_path=f"{directory}/run", **more)


def a_journal(reactor: Any, path: str) -> Journal:
    """An open journal with the default kinds."""
    journal = Journal(path, UndoContext(reactor, Commands(reactor)), default_kinds())
    journal.open()
    return journal
