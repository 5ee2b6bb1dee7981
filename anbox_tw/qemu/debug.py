"""``zero`` and ``pingpong``: the emulator's test pipes, for measuring and for trying a guest's pipe code.

``zero`` sends zeros as fast as they are read and takes whatever it is sent; ``pingpong`` sends back what it gets.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress, IProtocol, IPullProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._guest_connection import GuestConnection

__all__ = ["PingPongService", "ZeroService"]

_ZEROS = bytes(64 * 1024)


@implementer(IPullProducer)
class _Zero(Protocol):
    transport: Any

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """One block more: the last one has left."""
        self.transport.write(_ZEROS)

    def stopProducing(self) -> None:
        """Nothing to stop: blocks are only made when they are asked for."""

    def dataReceived(self, data: bytes) -> None:
        """Taken, as the emulator does."""


class _PingPong(GuestConnection):
    service = "pingpong"

    def guest_sent(self, data: bytes) -> None:
        self.write(data)


@implementer(IPipeService)
class ZeroService:
    """``zero``."""

    name = "zero"

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        return _Zero()


@implementer(IPipeService)
class PingPongService:
    """``pingpong``."""

    name = "pingpong"

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        return _PingPong()
