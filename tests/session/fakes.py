"""A container manager that the test plays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from anbox_tw.session.container import ContainerRequest


class FakeManager:
    """One connection to the manager; the test answers."""

    def __init__(self) -> None:
        self.requests: list[ContainerRequest] = []
        self.starting: list[Deferred[None]] = []
        self.stops = 0
        self.closed = False
        self.callback: Callable[[dict[str, Any]], object] = lambda info: None
        self.stopping: Deferred[None] | None = None
        self._lost: list[Deferred[str]] = []

    def start_container(self, request: ContainerRequest) -> Deferred[None]:
        self.requests.append(request)
        self.starting.append(Deferred())
        return self.starting[-1]

    def stop_container(self, instance: str) -> Deferred[None]:
        self.stops += 1
        return self.stopping or succeed(None)

    def watch(self, instance: str, callback: Callable[[dict[str, Any]], object]) -> Deferred[dict[str, Any]]:
        self.callback = callback
        return succeed({"state": "absent"})

    def info(self, instance: str) -> Deferred[dict[str, Any]]:
        return succeed(
            {"state": "running", "backend": "process", "pid": 4711, "details": '{"isolation": "full"}'}
        )

    def when_lost(self) -> Deferred[str]:
        self._lost.append(Deferred())
        return self._lost[-1]

    def lose(self, why: str) -> None:
        waiting, self._lost = self._lost, []
        for waiter in waiting:
            waiter.callback(why)

    def close(self) -> Deferred[None]:
        self.closed = True
        self.lose("closed")
        return succeed(None)


class FakeManagers:
    """What the session dials: each connection is a new manager, answered by the test or at once."""

    def __init__(self, *, answer: bool = False) -> None:
        self.answer = answer
        self.dialled: list[Deferred[Any]] = []
        self.made: list[FakeManager] = []

    def connect(self) -> Deferred[Any]:
        dialled: Deferred[Any] = Deferred()
        self.dialled.append(dialled)
        if self.answer:
            self.accept()
        return dialled

    def accept(self) -> FakeManager:
        manager = FakeManager()
        self.made.append(manager)
        self.dialled[-1].callback(manager)
        if self.answer:
            original = manager.start_container

            def start(request: ContainerRequest) -> Deferred[None]:
                started = original(request)
                started.callback(None)
                return started

            manager.start_container = start  # type: ignore[method-assign]
        return manager
