"""A container backend without containers, for tests of whatever uses one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from anbox_tw.errors import ContainerError
from anbox_tw.interfaces import IContainer, IContainerBackend

__all__ = ["FakeBackend", "FakeContainer"]


@implementer(IContainer)
class FakeContainer:
    """A container that only says what it was asked.

    Attributes:
        spec: what it is to be.
        journal: of its instance.
        calls: ``prepare``, ``start``, ``stop`` in the order they came.
        graces: what each stop was given, in seconds.
    """

    def __init__(self, backend: FakeBackend, spec: Any, journal: Any) -> None:
        self.spec = spec
        self.journal = journal
        self.calls: list[str] = []
        self.graces: list[float] = []
        self._backend = backend
        self._waiting: list[Deferred[str]] = []
        self._ended: str | None = None

    def _phase(self, name: str) -> Deferred[None]:
        self.calls.append(name)
        error = self._backend.failures.get(name)
        if error is not None:
            return fail(error)
        if name in self._backend.held:
            holding: Deferred[None] = Deferred()
            self._backend.held[name].append(holding)
            return holding
        return succeed(None)

    def prepare(self) -> Deferred[None]:
        """See `IContainer`."""
        return self._phase("prepare")

    def start(self) -> Deferred[None]:
        """See `IContainer`."""
        return self._phase("start")

    def stop(self, timeout: float) -> Deferred[None]:
        """See `IContainer`."""
        self.graces.append(timeout)
        return self._phase("stop").addCallback(lambda _: self.end("stopped"))

    def end(self, description: str) -> None:
        """Let its init end."""
        if self._ended is None:
            self._ended = description
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.callback(description)

    def when_exited(self) -> Deferred[str]:
        """See `IContainer`."""
        if self._ended is not None:
            return succeed(self._ended)
        waiter: Deferred[str] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def info(self) -> dict[str, Any]:
        """See `IContainer`."""
        return {"pid": 4711, "address": "192.0.2.2", "isolation": "none at all"}


@implementer(IContainerBackend)
class FakeBackend:
    """Makes `FakeContainer`\\ s.

    Attributes:
        name: as given.
        containers: all that were made, oldest first.
        failures: by phase (``prepare``, ``start``, ``stop``): the error with which it fails.
        held: by phase: Deferreds of the containers that wait in it. A phase that is a key here waits
            until the test fires what it appended.
        on_create: called with each new container.
    """

    def __init__(self, name: str = "process") -> None:
        self.name = name
        self.containers: list[FakeContainer] = []
        self.failures: dict[str, ContainerError] = {}
        self.held: dict[str, list[Deferred[None]]] = {}
        self.on_create: Callable[[FakeContainer], object] = lambda container: None

    def probe(self) -> Deferred[list[Any]]:
        """See `IContainerBackend`; lacks nothing."""
        return succeed([])

    def create(self, spec: Any, journal: Any) -> FakeContainer:
        """See `IContainerBackend`."""
        container = FakeContainer(self, spec, journal)
        self.containers.append(container)
        self.on_create(container)
        return container
