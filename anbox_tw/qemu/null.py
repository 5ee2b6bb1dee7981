"""A service for guests that only talk."""

from __future__ import annotations

from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from anbox_tw.interfaces import IPipeService

__all__ = ["NullService"]


class _Swallow(Protocol):
    def dataReceived(self, data: bytes) -> None:
        pass


@implementer(IPipeService)
class NullService:
    """Takes what a guest sends and says nothing, until the guest closes.

    For services whose guests send commands without answers, such as ``qemud:hw-control``. A name
    that nobody serves is better refused: a guest that waits for an answer would wait for ever.

    Args:
        name: what guests ask for.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        return _Swallow()
