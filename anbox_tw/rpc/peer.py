"""Who calls: what a handler learns about the other end of its link."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from anbox_tw.errors import NetworkError
from anbox_tw.network import Credentials, peer_credentials, peer_groups

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from twisted.internet.defer import Deferred

    from anbox_tw.rpc.channel import Channel

__all__ = ["Credentials", "Peer"]


def credentials_of(transport: Any) -> tuple[Credentials | None, frozenset[int]]:
    """Credentials and supplementary groups of a UNIX socket's peer; None and none for any other transport."""
    try:
        credentials = peer_credentials(transport)
    except NetworkError:
        return None, frozenset()
    try:
        return credentials, peer_groups(transport)
    except NetworkError:
        # A kernel without SO_PEERGROUPS: the peer is told apart by uid and gid alone.
        return credentials, frozenset()


class Peer:
    """The other end of one channel, as handlers see it.

    Attributes:
        credentials: of a UNIX socket's peer; None where the transport has none.
        groups: its supplementary groups when it connected; empty where unknown.
        name: for log lines and messages.
        connected: False from the moment the link is lost.
    """

    _log = Logger()

    def __init__(self, channel: Channel) -> None:
        self.credentials: Credentials | None = None
        self.groups: frozenset[int] = frozenset()
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
