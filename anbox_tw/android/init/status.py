"""The state of an init as JSON lines on a socket: first all of it, then each event as it happens.

A client that wants only the state ends after the first line. One that sends ``watch`` first is told it is
watching by getting events; the state line comes in either case.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IAddress, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from anbox_tw.android.init.supervisor import Init

__all__ = ["MAX_WATCHERS", "STATUS_SOCKET", "StatusService"]

STATUS_SOCKET = "init_status"
"""Its name in the socket directory; nothing of Android's is called so."""

MAX_WATCHERS = 32
"""Connections at one time."""

MAX_BEHIND_BYTES = 1 << 20
"""A watcher that is this far behind is dropped."""


class _Watcher(Protocol):
    """One connection."""

    transport: Any

    def __init__(self, service: StatusService) -> None:
        self._service = service
        self._behind = 0
        self._paused = False
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        self._service.watchers.add(self)
        self.send({"event": "state", "time": self._service.init.now(), **self._service.init.describe()})

    def send(self, event: dict[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=True).encode() + b"\n"
        if self._paused:
            self._behind += len(line)
            if self._behind > MAX_BEHIND_BYTES:
                self.transport.abortConnection()
                return
        self.transport.write(line)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._behind = 0

    def stopProducing(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._service.watchers.discard(self)
        self.gone.callback(None)


class _WatcherFactory(Factory):
    noisy = False

    def __init__(self, service: StatusService) -> None:
        self._service = service

    def buildProtocol(self, addr: IAddress | None) -> _Watcher | None:
        return _Watcher(self._service) if len(self._service.watchers) < MAX_WATCHERS else None


class StatusService(Service):
    """Serves one init's state on an endpoint."""

    log = Logger()

    def __init__(self, init: Init, endpoint: IStreamServerEndpoint) -> None:
        """Remember what to serve."""
        self.init = init
        self._endpoint = endpoint
        self._port: Any = None
        self.watchers: set[_Watcher] = set()

    def startService(self) -> None:
        """Listen; a failure is logged, for init is worth more than its window."""
        super().startService()
        self.init.observers.append(self._event)
        self._endpoint.listen(_WatcherFactory(self)).addCallbacks(self._listening, self._failed)

    def _listening(self, port: Any) -> None:
        self._port = port
        if not self.running:
            port.stopListening()

    def _failed(self, failure: Failure) -> None:
        self.log.error("no status socket: {reason}", reason=failure.value)

    def _event(self, event: dict[str, Any]) -> None:
        for watcher in list(self.watchers):
            watcher.send(event)

    def stopService(self) -> Deferred[None]:
        """Close the socket and every connection, what is queued for them first."""
        super().stopService()
        if self._event in self.init.observers:
            self.init.observers.remove(self._event)
        port, self._port = self._port, None
        waiting: list[Deferred[None]] = [succeed(None) if port is None else port.stopListening()]
        for watcher in list(self.watchers):
            waiting.append(watcher.gone)
            watcher.transport.unregisterProducer()
            if watcher._paused:
                watcher.transport.abortConnection()
            else:
                watcher.transport.loseConnection()
        return gatherResults(waiting).addCallback(lambda _: None)
