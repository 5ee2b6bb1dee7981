"""The guest's own socket, ``/dev/anbox_guest``: through it programs in the guest reach the host's clipboard."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from anbox_tw.guest.bridge import GuestBridge
from anbox_tw.network import RetryPolicy, UnixConnector, UnixListener
from anbox_tw.rpc import Channel, Dispatcher, Peer, RpcFactory
from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void

__all__ = ["GuestControl", "clipboard"]


class GuestControl:
    """Serves the socket.

    Args:
        reactor: listens.
        path: of the socket.
        bridge: to the session.
    """

    def __init__(self, reactor: Any, path: str, bridge: GuestBridge) -> None:
        self._bridge = bridge
        dispatcher = Dispatcher()
        dispatcher.register("set_clipboard_data", pb.ClipboardData, self._set)
        dispatcher.register("get_clipboard_data", Void, self._get)
        self._listener = UnixListener(
            reactor, path, RpcFactory(reactor, dispatcher), mode=0o600, name="anbox_guest", close_grace=1.0
        )

    def startService(self) -> None:
        """Listen.

        Raises:
            NetworkError: the socket cannot be made.
        """
        self._listener.startService()

    def stopService(self) -> Deferred[None]:
        """Fires when the socket and all its connections are closed."""
        return self._listener.stopService()

    async def _set(self, request: pb.ClipboardData, peer: Peer) -> Void:
        await self._bridge.set_clipboard(request.text)
        return Void()

    async def _get(self, request: Void, peer: Peer) -> pb.ClipboardData:
        return pb.ClipboardData(text=await self._bridge.get_clipboard())


async def clipboard(reactor: Any, path: str, text: str | None) -> str:
    """What ``python -m anbox_tw.guest clipboard`` does.

    Args:
        reactor: connects.
        path: of the guest's socket.
        text: to set; ``None`` asks for what is there.

    Returns:
        The text of the clipboard.

    Raises:
        NotRunning: no guest, or no session.
    """
    channel: Channel = await UnixConnector(reactor, path, retry=RetryPolicy.once()).connect(
        lambda: Channel(reactor, name="the guest")
    )
    try:
        if text is not None:
            await channel.call("set_clipboard_data", pb.ClipboardData(text=text), Void)
            return text
        answer: pb.ClipboardData = await channel.call("get_clipboard_data", Void(), pb.ClipboardData)
        return str(answer.text)
    finally:
        await channel.close()
