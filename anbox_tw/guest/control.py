"""The guest's own socket, ``/dev/anbox_guest``: programs in the guest launch applications and reach the host's clipboard."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from anbox_tw.guest.bridge import GuestBridge
from anbox_tw.network import RetryPolicy, UnixConnector, UnixListener
from anbox_tw.rpc import Channel, Dispatcher, Peer, RpcFactory
from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void

__all__ = ["GuestControl", "clipboard", "force_stop", "start"]


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
        dispatcher.register("launch_application", pb.LaunchApplication, bridge.launch)
        dispatcher.register("force_stop", pb.Intent, bridge.force_stop)
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


def _connect(reactor: Any, path: str) -> Deferred[Channel]:
    connector = UnixConnector(reactor, path, retry=RetryPolicy.once())
    connecting: Deferred[Channel] = connector.connect(lambda: Channel(reactor, name="the guest"))
    return connecting


async def start(reactor: Any, path: str, intent: pb.Intent, stack: int = 0) -> None:
    """What ``am start`` does.

    Args:
        reactor: connects.
        path: of the guest's socket.
        intent: what to launch.
        stack: 0 default, 1 fullscreen, 2 freeform.

    Raises:
        NotRunning: no guest.
        RemoteError: the application is not there, or cannot be started.
    """
    channel = await _connect(reactor, path)
    try:
        name = pb.LaunchApplication.Stack.Name(stack)
        await channel.call("launch_application", pb.LaunchApplication(intent=intent, stack=name), Void)
    finally:
        await channel.close()


async def force_stop(reactor: Any, path: str, package: str) -> None:
    """What ``am force-stop`` does; arguments and errors as `start`."""
    channel = await _connect(reactor, path)
    try:
        await channel.call("force_stop", pb.Intent(package=package), Void)
    finally:
        await channel.close()


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
    channel = await _connect(reactor, path)
    try:
        if text is not None:
            await channel.call("set_clipboard_data", pb.ClipboardData(text=text), Void)
            return text
        answer: pb.ClipboardData = await channel.call("get_clipboard_data", Void(), pb.ClipboardData)
        return str(answer.text)
    finally:
        await channel.close()
