"""Making channels: for listeners, and out to a peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.rpc.channel import Channel, Limits
from anbox_tw.rpc.dispatcher import Dispatcher
from anbox_tw.rpc.errors import ChannelClosed

__all__ = ["RpcFactory", "connect"]

MAX_CHANNELS = 256
"""Channels of one factory: the original serves one client; a farm of sessions and tools fits here."""


@implementer(IConnectionCreator)
class RpcFactory(Factory):
    """Serves a dispatcher: a Twisted factory for endpoints, and a creator for our own listeners.

    Args:
        clock: for the channels' timeouts.
        dispatcher: what is offered to each peer.
        limits: caps of each channel.
        max_channels: one more connection is refused. The original's rule of one client is 1.
        on_channel: called with each new channel, before it is connected.

    Attributes:
        channels: the channels that are connected now.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        dispatcher: Dispatcher,
        *,
        limits: Limits | None = None,
        max_channels: int = MAX_CHANNELS,
        on_channel: Callable[[Channel], object] | None = None,
    ) -> None:
        self.channels: set[Channel] = set()
        self._clock = clock
        self._dispatcher = dispatcher
        self._limits = limits
        self._max_channels = max_channels
        self._on_channel = on_channel

    def create_connection_for(self, address: IAddress) -> Channel | None:
        """A channel for one accepted connection; None when there are too many."""
        if len(self.channels) >= self._max_channels:
            self._log.warn(
                "refused a connection from {address}: {count} are open already, which is the limit",
                address=address,
                count=len(self.channels),
            )
            return None

        def gone(_: ChannelClosed) -> None:
            self.channels.discard(channel)

        channel = Channel(self._clock, dispatcher=self._dispatcher, limits=self._limits, on_close=gone)
        self.channels.add(channel)
        if self._on_channel is not None:
            self._on_channel(channel)
        return channel

    def buildProtocol(self, addr: IAddress | None) -> Channel | None:
        """As ``create_connection_for``, for Twisted's endpoints."""
        channel = self.create_connection_for(addr)  # type: ignore[arg-type]
        if channel is not None:
            channel.factory = self
        return channel

    def close_all(self, reason: str = "this side is shutting down") -> Deferred[None]:
        """Close every channel; fires when all are gone."""
        closing = [channel.close(reason) for channel in list(self.channels)]
        done: Deferred[Any] = gatherResults(closing)
        return done.addCallback(lambda _: None)


def connect(
    endpoint: IStreamClientEndpoint,
    clock: IReactorTime,
    *,
    dispatcher: Dispatcher | None = None,
    on_event: Callable[[bytes], object] | None = None,
    on_close: Callable[[ChannelClosed], object] | None = None,
    name: str = "",
    limits: Limits | None = None,
) -> Deferred[Channel]:
    """Connect to a peer; the arguments are those of ``Channel``.

    Returns:
        Fires with the connected channel, or fails as the endpoint does.
    """

    class _Outbound(Factory):
        noisy = False

        def buildProtocol(self, addr: IAddress | None) -> Channel:
            return Channel(
                clock, dispatcher=dispatcher, on_event=on_event, on_close=on_close, name=name, limits=limits
            )

    return cast("Deferred[Channel]", endpoint.connect(_Outbound()))
