"""What serves a connection on ``qemu_pipe`` until the guest has said which service it wants."""

from __future__ import annotations

from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import AnboxError
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.network import abort_transport, hand_over
from anbox_tw.qemu._wire import PipeIdentifier
from anbox_tw.qemu.errors import IdentificationError
from anbox_tw.qemu.registry import PipeServiceRegistry

__all__ = ["IDENTIFICATION_TIMEOUT_S", "PipeConnection", "PipeConnectionCreator"]

IDENTIFICATION_TIMEOUT_S = 5.0
"""A guest writes the name in the same breath as it opens the pipe."""


class PipeConnection(Protocol):
    """Identifies one guest connection, then hands its transport to the service and is done.

    Args:
        registry: the services.
        clock: for the time limit.
        address: the peer's address, for the service.
    """

    _log = Logger()

    def __init__(self, registry: PipeServiceRegistry, clock: IReactorTime, address: IAddress) -> None:
        self._registry = registry
        self._clock = clock
        self._address = address
        self._identifier = PipeIdentifier()
        self._timeout: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._timeout = self._clock.callLater(IDENTIFICATION_TIMEOUT_S, self._timed_out)

    def dataReceived(self, data: bytes) -> None:
        try:
            identified = self._identifier.receive_data(data)
            if identified is None:
                return
            self._cancel_timeout()
            service, argument = self._registry.find(identified.text)
        except AnboxError as error:
            self._refuse(error)
            return
        try:
            protocol = service.open(argument, self._address)
        except Exception:
            self._log.failure("The pipe service {name} failed to open", name=service.name)
            protocol = None
        if protocol is None:
            # The service has logged why.
            self._end()
            return
        self._log.debug("A guest opened {name} with {argument!r}", name=service.name, argument=argument)
        hand_over(self.transport, protocol, identified.rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timeout is not None:
            self._log.info("A guest left its pipe unnamed")
        self._cancel_timeout()

    def _timed_out(self) -> None:
        self._timeout = None
        self._refuse(IdentificationError(f"no name within {IDENTIFICATION_TIMEOUT_S:g} s"))

    def _refuse(self, error: AnboxError) -> None:
        self._cancel_timeout()
        self._log.warn("A guest's pipe is closed: {error}", error=error)
        self._end()

    def _end(self) -> None:
        assert self.transport is not None
        # Nothing is to be flushed, and a peer that does not read must not hold the connection.
        abort_transport(self.transport)

    def _cancel_timeout(self) -> None:
        timeout, self._timeout = self._timeout, None
        if timeout is not None and timeout.active():
            timeout.cancel()


@implementer(IConnectionCreator)
class PipeConnectionCreator:
    """Serves the connections of the session's ``qemu_pipe`` socket.

    Args:
        registry: the services.
        clock: for time limits.
    """

    def __init__(self, registry: PipeServiceRegistry, clock: IReactorTime) -> None:
        self._registry = registry
        self._clock = clock

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """A connection that begins with the identification; the listener's registry has its limit."""
        return PipeConnection(self._registry, self._clock, address)
