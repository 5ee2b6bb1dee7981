"""Port forwards: each accepted connection is relayed to a new one of a connector."""

from __future__ import annotations

import socket
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IReactorFDSet
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import NetworkError
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.network._raw_socket import AF_UNIX, RawSocket
from anbox_tw.network._relay_sockets import SocketEndpoint
from anbox_tw.network.connections import Connections
from anbox_tw.network.connectors import EndpointConnector, UnixConnector
from anbox_tw.network.relaying import DEFAULTS, Relay, RelayProtocol, enlist, relay
from anbox_tw.network.tracked import abort_transport

__all__ = ["ForwardCreator", "ISocketCreator"]

# a number: the names are members of an enum, and adding two makes a third each time
_NONBLOCKING_STREAM: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


class ISocketCreator(IConnectionCreator):
    """A creator that can serve an accepted socket without a transport of its own."""

    def forward_socket(sock: Any, registry: Any) -> bool:
        """Serve a socket that was just accepted.

        Args:
            sock: a ``socket.socket``; belongs to the creator when this returns True.
            registry: `Connections` of the listener, which are not full.

        Returns:
            Whether it was taken; if not, nothing has happened, and ``create_connection_for`` is asked.
        """


@implementer(ISocketCreator)
class ForwardCreator:
    """Relays each accepted connection to a new one of a connector: a port forward.

    A target that refuses, or does not answer in time, closes the accepted connection at once.
    """

    _log = Logger()

    def __init__(
        self,
        connector: EndpointConnector,
        *,
        clock: Any,
        name: str = "forward",
        registry: Connections | None = None,
        **options: Any,
    ) -> None:
        """Make the creator.

        Args:
            connector: to the target; its retry policy says how long a caller waits.
            clock: the reactor.
            name: of the relays.
            registry: where the relays are listed.
            options: further keyword arguments of `relay`.
        """
        self._connector = connector
        self._clock = clock
        self._name = name
        self._registry = registry
        self._options = options
        # what `Relay` itself takes; the rest is for `relay`, and the usual way
        self._plain = {**DEFAULTS, **options}
        strategy = self._plain.pop("strategy", "auto")
        self._quick = (
            isinstance(connector, UnixConnector)
            and strategy != "producer"
            and self._plain.keys() == DEFAULTS.keys()
            and IReactorFDSet.providedBy(clock)
        )

    def create_connection_for(self, address: IAddress) -> IProtocol:
        """See `IConnectionCreator`."""
        return _Forwarded(self)

    def forward_socket(self, sock: socket.socket, registry: Connections) -> bool:
        """Relay a socket that was just accepted, without a transport of its own.

        Only where the target is a UNIX socket that takes the connection at once, as they do: no waiting, no name to
        look up.

        Args:
            sock: accepted; belongs to the relay when this returns True.
            registry: of the listener.

        Returns:
            Whether it was done; if not, nothing has happened, and the usual way may try.
        """
        if not self._quick:
            return False
        assert isinstance(self._connector, UnixConnector)
        target = socket.socket(AF_UNIX, _NONBLOCKING_STREAM)
        if target.connect_ex(self._connector.path):
            target.close()
            return False
        registries = (registry,) if self._registry is None else (registry, self._registry)
        new = Relay(self._clock, name=self._name, registries=registries, **self._plain)
        try:
            enlist(new, registries)
        except NetworkError as error:
            self._log.warn("{name}: {error}", name=self._name, error=error)
            target.close()
            return False
        new.strategy = "sockets"
        a, b = SocketEndpoint(new), SocketEndpoint(new)
        a.peer, b.peer = b, a
        new.start(a, b)
        near, far = RawSocket(sock, self._clock), RawSocket(target, self._clock)
        near.protocol, far.protocol = a, b
        a.makeConnection(near)
        b.makeConnection(far)
        b.start()
        # the caller's first words are often here by now
        a.start()
        a.read_now()
        return True

    def connect(self, accepted: _Forwarded) -> None:
        """Connect to the target and relay; logs what fails."""
        attempt = self._connector.connect(RelayProtocol)
        accepted.attempt = attempt
        attempt.addCallback(self._connected, accepted)
        attempt.addErrback(self._failed, accepted)

    def _connected(self, target: RelayProtocol, accepted: _Forwarded) -> None:
        accepted.attempt = None
        try:
            relay(
                accepted,
                target,
                clock=self._clock,
                name=self._name,
                registry=self._registry,
                **self._options,
            )
        except NetworkError:
            if target.transport is not None and target.lost is None:
                abort_transport(target.transport)
            raise

    def _failed(self, failure: Failure, accepted: _Forwarded) -> None:
        accepted.attempt = None
        if accepted.lost is None:
            self._log.info("{name}: {error}", name=self._name, error=failure.getErrorMessage())
            abort_transport(accepted.transport)


class _Forwarded(RelayProtocol):
    def __init__(self, creator: ForwardCreator) -> None:
        super().__init__()
        self._creator = creator
        self.attempt: Deferred[Any] | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self._creator.connect(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        if self.attempt is not None:
            self.attempt.cancel()
