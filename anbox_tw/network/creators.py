"""Who serves an accepted connection: the connection creators of the original, and one for message processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress, IProtocol
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.network.socket_connection import SocketConnection
from anbox_tw.network.tracked import TrackedProtocol

if TYPE_CHECKING:
    from anbox_tw.interfaces import IMessageProcessor
    from anbox_tw.network.connections import Connections

__all__ = ["DelegateCreator", "NullCreator", "ProcessorCreator", "SingleClientCreator"]


@implementer(IConnectionCreator)
class DelegateCreator:
    """Asks a callable for each connection."""

    def __init__(self, build: Callable[[IAddress], IProtocol | None]) -> None:
        """Make the creator.

        Args:
            build: takes the peer's address; returns a protocol, or None to refuse, and then has logged why.
        """
        self._build = build

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """See `IConnectionCreator`."""
        return self._build(address)


@implementer(IConnectionCreator)
class SingleClientCreator:
    """Serves one connection at a time and refuses the others; when it ends, the next may come.

    Attributes:
        connection: the one that is served now, or None.
    """

    _log = Logger()

    def __init__(self, build: Callable[[IAddress], IProtocol | None], name: str = "single client") -> None:
        """Make the creator.

        Args:
            build: takes the peer's address; returns a protocol, or None to refuse, and then has logged why.
            name: for logs.
        """
        self._build = build
        self.name = name
        self.connection: TrackedProtocol | None = None

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """See `IConnectionCreator`."""
        if self.connection is not None:
            self._log.warn(
                "{name}: refused {address}: another client is connected", name=self.name, address=address
            )
            return None
        protocol = self._build(address)
        if protocol is None:
            return None
        self.connection = TrackedProtocol(protocol, name=self.name, address=address)
        self.connection.on_lost(self._gone)
        return self.connection

    def _gone(self, connection: TrackedProtocol) -> None:
        self.connection = None


@implementer(IConnectionCreator)
class NullCreator:
    """Refuses every connection, and says so in the log: for a socket that must exist and serve nobody."""

    _log = Logger()

    def __init__(self, name: str = "null", reason: str = "nothing is served here") -> None:
        self.name = name
        self.reason = reason

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """See `IConnectionCreator`; always None."""
        self._log.info(
            "{name}: refused {address}: {reason}", name=self.name, address=address, reason=self.reason
        )
        return None


@implementer(IConnectionCreator)
class ProcessorCreator:
    """Serves each connection with a message processor of its own, through a `SocketConnection`."""

    def __init__(
        self,
        processor_factory: Callable[[SocketConnection], IMessageProcessor],
        name: str,
        registry: Connections | None = None,
        **options: Any,
    ) -> None:
        """Make the creator.

        Args:
            processor_factory: as `SocketConnection` takes it.
            name: of the connections.
            registry: where the connections are listed.
            options: further keyword arguments of `SocketConnection`.
        """
        self._factory = processor_factory
        self._name = name
        self._registry = registry
        self._options = options

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """See `IConnectionCreator`."""
        return SocketConnection(self._factory, self._name, self._registry, **self._options)
