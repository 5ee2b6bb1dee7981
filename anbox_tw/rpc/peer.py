"""Who calls: what a handler learns about the other end of its link."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.logger import Logger

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from twisted.internet.defer import Deferred

    from anbox_tw.rpc.channel import Channel

__all__ = ["Credentials", "Peer"]


@attrs.frozen
class Credentials:
    """Who connected, as the kernel says (SO_PEERCRED): fixed when the connection was made.

    Attributes:
        pid: may have been reused since; use it for messages only.
        uid: effective user.
        gid: effective group.
    """

    pid: int
    uid: int
    gid: int


def credentials_of(transport: Any) -> Credentials | None:
    """The credentials of the peer of a UNIX socket; None for any other transport."""
    sock = getattr(transport, "socket", None)
    if not isinstance(sock, socket.socket) or sock.family != socket.AF_UNIX:
        return None
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Credentials(pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF)


class Peer:
    """The other end of one channel, as handlers see it.

    Attributes:
        credentials: of a UNIX socket's peer; None where the transport has none.
        name: for log lines and messages.
        connected: False from the moment the link is lost.
    """

    _log = Logger()

    def __init__(self, channel: Channel) -> None:
        self.credentials: Credentials | None = None
        self.name = ""
        self.connected = False
        self._channel = channel
        self._on_disconnect: dict[object, Callable[[], object]] = {}

    def __repr__(self) -> str:
        return f"<Peer {self.name or 'not connected'}>"

    def send_event(self, event: Message) -> None:
        """Send this peer an event; ignored when it is gone."""
        self._channel.send_event(event)

    def call(
        self, method: str, message: Message, response_type: type[Any], timeout: float | None = 30.0
    ) -> Deferred[Any]:
        """Call a method of the peer; see ``Channel.call``."""
        return self._channel.call(method, message, response_type, timeout)

    def on_disconnect(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have ``callback`` called once when the link is lost; at once when it is lost already.

        Returns:
            Call it to take the callback back.
        """
        if not self.connected:
            callback()
            return lambda: None
        key = object()
        self._on_disconnect[key] = callback

        def remove() -> None:
            self._on_disconnect.pop(key, None)

        return remove

    def _gone(self) -> None:
        self.connected = False
        callbacks, self._on_disconnect = self._on_disconnect, {}
        for callback in callbacks.values():
            try:
                callback()
            except Exception:
                self._log.failure("a disconnect callback of {peer} failed", peer=self)
