"""The property service: the socket through which every program sets properties and controls services."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.android._text import printable
from anbox_tw.android._wire import Namespace
from anbox_tw.android.endpoints import AndroidServerEndpoint
from anbox_tw.android.localsocket import Credentials, LocalAddress
from anbox_tw.android.properties._wire import (
    GET,
    LIST,
    PropertyReader,
    Request,
    Status,
    encode_answer,
    is_legal_name,
)
from anbox_tw.android.properties.store import PropertyRefused, PropertyStore
from anbox_tw.errors import AnboxError, PeerError

__all__ = ["MAX_CLIENTS", "SOCKET_NAME", "PropertyService", "may_set"]

SOCKET_NAME = "property_service"
"""``PROP_SERVICE_NAME``."""

REQUEST_TIMEOUT_S = 2.0
"""How long a client may take to send its message (``timeout_ms`` in ``handle_property_set_fd``)."""

LISTEN_BACKLOG = 8
"""As ``start_property_service`` listens."""

MAX_CLIENTS = 64
"""Connections at one time; a further one is closed."""

SYSTEM_UID = 1000
SHELL_UID = 2000

_SHELL_PREFIXES = ("debug.", "log.", "persist.log.", "service.adb.")
"""What Android's policy lets the shell user set."""


def may_set(name: str, value: str, who: Credentials) -> bool:
    """Whether ``who`` may set ``name``, where SELinux does not decide: root, the system user and init's own may.

    The shell user may set what helps with debugging. ``ctl.*`` is as any other name.
    """
    if who.uid in (0, SYSTEM_UID, os.geteuid()):
        return True
    return who.uid == SHELL_UID and name.startswith(_SHELL_PREFIXES)


class _Client(Protocol):
    """One connection, one request."""

    log = Logger()
    transport: Any

    def __init__(self, service: PropertyService) -> None:
        self._service = service
        self._reader = PropertyReader()
        self._timeout: Any = None

    def connectionMade(self) -> None:
        self._service.clients.add(self)
        self._timeout = self._service.reactor.callLater(REQUEST_TIMEOUT_S, self._late)

    def dataReceived(self, data: bytes) -> None:
        if self._timeout is None:
            return  # behind the request
        try:
            request = self._reader.feed(data)
        except PeerError as error:
            self.log.warn("{cause} from {who}", cause=error.cause, who=self.transport.peer_credentials())
            self._end(encode_answer(Status.INVALID_CMD))
            return
        if request is not None:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        if request.command == GET:
            known = request.name in self._service.store
            self._end(
                encode_answer(Status.SUCCESS, *([self._service.store.get(request.name)] if known else []))
            )
        elif request.command == LIST:
            texts = [text for pair in self._service.store.items() for text in pair]
            self._end(encode_answer(Status.SUCCESS, *texts))
        else:
            status = self._service.handle(request.name, request.value, self.transport.peer_credentials())
            self._end(encode_answer(status) if request.wants_answer else b"")

    def _end(self, data: bytes) -> None:
        # an old client takes the end of the connection for "it is set": never close before that
        if data:
            self.transport.write(data)
        self.transport.loseConnection()
        # a client that does not read its answer gets no more time than one that does not send
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
        self._kill = self._service.reactor.callLater(REQUEST_TIMEOUT_S, self.transport.abortConnection)

    _kill: Any = None

    def _late(self) -> None:
        self._timeout = None
        self.log.warn(
            "timeout waiting for {who} to send a property message", who=self.transport.peer_credentials()
        )
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        for call in (self._timeout, self._kill):
            if call is not None and call.active():
                call.cancel()
        self._timeout = None
        self._service.client_gone(self)


class _ClientFactory(Factory):
    """Makes clients up to the limit."""

    noisy = False

    def __init__(self, service: PropertyService) -> None:
        self._service = service

    def buildProtocol(self, addr: IAddress | None) -> _Client | None:
        if len(self._service.clients) >= MAX_CLIENTS:
            self._service.log.warn("{count} property clients at one time: closed", count=MAX_CLIENTS)
            return None
        return _Client(self._service)


class PropertyService(Service):
    """Serves a ``PropertyStore`` on ``property_service`` in the socket directory.

    Attributes:
        store: the properties.
        reactor: the reactor.
        control: called with verb and service name for each ``ctl.*`` that is allowed; raises to refuse.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        store: PropertyStore,
        socket_directory: str,
        *,
        control: Callable[[str, str], None] | None = None,
        policy: Callable[[str, str, Credentials], bool] = may_set,
    ) -> None:
        """Remember what to serve; nothing is opened before ``start``."""
        self.reactor = reactor
        self.store = store
        self.control = control
        self._policy = policy
        address = LocalAddress(SOCKET_NAME, Namespace.RESERVED, socket_directory)
        self._endpoint = AndroidServerEndpoint(reactor, address, mode=0o666, backlog=LISTEN_BACKLOG)
        self._port: Any = None
        self.clients: set[_Client] = set()
        self._quiet: list[Deferred[None]] = []

    def startService(self) -> None:
        """Listen.

        Raises:
            twisted.internet.error.CannotListenError: the socket cannot be made.
        """
        if self._port is not None:
            return
        factory = _ClientFactory(self)
        failures: list[Failure] = []
        ports: list[Any] = []
        self._endpoint.listen(factory).addCallbacks(ports.append, failures.append)
        if failures:
            failures[0].raiseException()
        self._port = ports[0]
        super().startService()

    def handle(self, name: str, value: str, who: Credentials) -> Status:
        """Do what one client asks for."""
        if not is_legal_name(name):
            self.log.warn("illegal property name {name!r} from {who}", name=name, who=who)
            return Status.INVALID_NAME
        if not self._policy(name, value, who):
            self.log.warn("permission denied: {who} may not set {name}", who=who, name=name)
            return Status.PERMISSION_DENIED
        try:
            if name.startswith("ctl."):
                if self.control is None:
                    return Status.HANDLE_CONTROL_MESSAGE
                self.control(name[4:], value)
            else:
                self.store.set(name, value)
        except PropertyRefused as error:
            self.log.warn(
                "property {name} from {who}: {cause}", name=name, who=who, cause=printable(error.cause)
            )
            return error.status
        except AnboxError as error:
            self.log.warn(
                "{name}={value!r} from {who}: {cause}",
                name=name,
                value=value,
                who=who,
                cause=printable(error.cause),
            )
            return Status.HANDLE_CONTROL_MESSAGE
        return Status.SUCCESS

    def client_gone(self, client: _Client) -> None:
        """A connection has ended."""
        self.clients.discard(client)
        if not self.clients:
            quiet, self._quiet = self._quiet, []
            for deferred in quiet:
                deferred.callback(None)

    def stopService(self) -> Deferred[None]:
        """Close the socket and every connection; fires when they are gone."""
        super().stopService()
        port, self._port = self._port, None
        stopped: Deferred[None] = succeed(None) if port is None else port.stopListening()
        for client in list(self.clients):
            client.transport.abortConnection()

        def rest(_: None) -> Deferred[None]:
            deferred: Deferred[None] = Deferred()
            if self.clients:
                self._quiet.append(deferred)
            else:
                deferred.callback(None)
            return deferred

        return stopped.addCallback(rest)
