"""Protocols and waits that the network tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from anbox_tw.network import Connections

WAIT_S = 10.0


@implementer(IHalfCloseableProtocol)
class Recorder(Protocol):
    """Keeps what comes, and offers waits for it."""

    def __init__(self, answer: Callable[[bytes], bytes] | None = None, *, half_close: bool = True) -> None:
        self.data = bytearray()
        self.ended = False
        self.lost: Failure | None = None
        self._answer = answer
        self._half_close = half_close
        self._waiters: list[tuple[Callable[[], bool], Deferred[None]]] = []
        self.transport: Any = None

    def _check(self) -> None:
        for item in list(self._waiters):
            condition, waiter = item
            if condition() and item in self._waiters:
                self._waiters.remove(item)
                waiter.callback(None)

    def when(self, condition: Callable[[], bool]) -> Deferred[None]:
        if condition():
            return defer.succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiters.append((condition, waiter))
        from twisted.internet import reactor

        return waiter.addTimeout(WAIT_S, reactor)

    def when_received(self, count: int) -> Deferred[None]:
        return self.when(lambda: len(self.data) >= count)

    def when_lost(self) -> Deferred[None]:
        return self.when(lambda: self.lost is not None)

    def when_ended(self) -> Deferred[None]:
        return self.when(lambda: self.ended or self.lost is not None)

    def connectionMade(self) -> None:
        self._check()

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        if self._answer is not None:
            self.transport.write(self._answer(data))
        self._check()

    def readConnectionLost(self) -> None:
        self.ended = True
        self._check()
        if not self._half_close:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self._check()


async def wait_until(condition: Callable[[], Any], what: str = "") -> None:
    """Poll for something that offers no event, each 5 ms, for `WAIT_S` at most."""
    from twisted.internet import reactor

    for _ in range(int(WAIT_S / 0.005)):
        if condition():
            return
        await deferLater(reactor, 0.005)
    raise AssertionError(f"never happened: {what or condition}")


class NetworkTestCase(TestCase):
    """A private directory with a short path, and services that are stopped at the end."""

    timeout = 30

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.directory = tempfile.mkdtemp(prefix="ground")
        self.addCleanup(shutil.rmtree, self.directory)
        self.registry = Connections(name="test", clock=self.reactor)

    def path(self, name: str = "socket") -> str:
        return f"{self.directory}/{name}"

    def start(self, service: Any) -> Any:
        service.startService()
        self.addCleanup(service.stopService)
        return service
