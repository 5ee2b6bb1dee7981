"""Forwards by way of adbd: streams of the guest's own ADB daemon, for guests with no other way in.

The session is a host of its own to the guest's adbd, through the pipe that ADB servers use; no adb program or server is
needed. ADB knows no half-close and no refusal after the caller was accepted: the end of either side ends both.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb.client.links import DirectLink
from anbox_tw.adb.keys import AdbKey, load_user_keys
from anbox_tw.adb.server.bridge import SocketSide, StreamSide, join
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.transport import HostTransport
from anbox_tw.errors import AnboxError
from anbox_tw.network import ITrackedConnection, RelayCounters, abort_transport
from anbox_tw.network.connections import next_connection_id
from anbox_tw.session.forwards.errors import ForwardError

if TYPE_CHECKING:
    from anbox_tw.session.forwards.registry import Forward

__all__ = ["AdbWay"]

CONNECT_TIMEOUT_S = 15.0
"""Until adbd has taken us in; a user who has to allow our key has that long."""


class AdbWay:
    """The session's own connection to the guest's adbd, made when the first forward needs it.

    Args:
        reactor: an fd reactor.
        port: tells the host port at which the guest's adbd is, 0 while there is none.
        keys: loads our keys, in a thread.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, port: Callable[[], int], keys: Callable[[], Sequence[AdbKey]] = load_user_keys
    ) -> None:
        self._reactor = reactor
        self._port = port
        self._load_keys = keys
        self._link: DirectLink | None = None
        self._connecting: Deferred[None] | None = None
        self._waiting: list[Deferred[HostTransport]] = []

    @property
    def available(self) -> bool:
        """Whether the guest's adbd is there."""
        return bool(self._port())

    def serve(self, sock: socket.socket, forward: Forward) -> None:
        """Forward one accepted connection; the socket is ours from now on."""
        connection = _Connection(self, forward)
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _address: connection  # type: ignore[method-assign,assignment]
        try:
            self._reactor.adoptStreamConnection(sock.fileno(), sock.family, factory)
        finally:
            sock.close()

    def transport(self) -> Deferred[HostTransport]:
        """A Deferred of the caller's own with the connection to adbd.

        Raises:
            AnboxError: there is none.
        """
        link = self._link
        if link is not None and link.transport.is_online:
            return succeed(link.transport)
        waiter: Deferred[HostTransport] = Deferred(
            lambda d: self._waiting.remove(d) if d in self._waiting else None
        )
        self._waiting.append(waiter)
        if self._connecting is None:
            self._connecting = ensureDeferred(self._connect())
            self._connecting.addBoth(self._settle)
        return waiter

    def close(self) -> Deferred[None]:
        """End the connection; fires when it has ended."""
        if self._connecting is not None:
            self._connecting.cancel()
        link, self._link = self._link, None
        if link is None:
            return succeed(None)
        ended: Deferred[None] = ensureDeferred(link.close())
        return ended.addErrback(
            lambda failure: self._log.info("closing the link to adbd: {error}", error=failure.value)
        )

    async def _connect(self) -> None:
        port = self._port()
        if not port:
            raise ForwardError("the guest's adbd is not there", "see anbox wait --for ready")
        keys = await deferToThread(self._load_keys)
        endpoint = TCP4ClientEndpoint(self._reactor, "127.0.0.1", port, timeout=5)
        self._link = await DirectLink.connect(
            self._reactor, endpoint, keys, "the guest's adbd", CONNECT_TIMEOUT_S
        )

    def _settle(self, result: Any) -> None:
        self._connecting = None
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if isinstance(result, Failure):
                waiter.errback(result)
            elif self._link is not None:
                waiter.callback(self._link.transport)
            else:
                waiter.errback(ForwardError("the session ends"))


class _Counted(StreamSide):
    """The stream's end of a connection, which counts."""

    def __init__(self, socket: Any, connection: _Connection) -> None:
        super().__init__(socket)
        self._connection = connection

    def dataReceived(self, data: bytes) -> None:
        self._connection.from_guest += len(data)
        super().dataReceived(data)


@implementer(ITrackedConnection)
class _Connection(SocketSide):
    """A caller's end of a connection."""

    _log = Logger()
    transport: Any = None

    def __init__(self, way: AdbWay, forward: Forward) -> None:
        self.id = next_connection_id()
        self.name = forward.relays.name
        self._way = way
        self._forward = forward
        self._opening: Deferred[Any] | None = None
        self.to_guest = self.from_guest = 0

    @property
    def counters(self) -> RelayCounters:
        """Bytes to the guest and from it."""
        return RelayCounters(self.to_guest, self.from_guest)

    def describe(self) -> dict[str, Any]:
        """See ``ITrackedConnection``."""
        return {"id": self.id, "name": self.name, "way": "adb"}

    def close(self, reason: str) -> None:
        """See ``ITrackedConnection``."""
        self.abort(reason)

    def abort(self, reason: str) -> None:
        """See ``ITrackedConnection``."""
        if self.transport is not None:
            abort_transport(self.transport)

    def connectionMade(self) -> None:
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        try:
            self._forward.relays.add(self)
        except AnboxError as error:
            self._refuse(str(error))
            return
        # What it sends waits in the kernel until there is a stream.
        self.transport.pauseProducing()
        self._opening = self._way.transport()
        self._opening.addCallback(self._open).addCallbacks(self._opened, self._failed)

    def _open(self, transport: HostTransport) -> Deferred[AdbStream]:
        return transport.open_stream(os.fsencode(self._forward.target.adb_service))

    def _opened(self, stream: AdbStream) -> None:
        self._opening = None
        self.stream = stream
        side = join(stream, self.transport, _Counted(self.transport, self))
        self.transport.resumeProducing()
        stream.start(side)

    def _failed(self, failure: Failure) -> None:
        self._opening = None
        if self.transport is None:
            return  # the caller has left, which has cancelled it
        error = failure.value
        self._refuse(error.cause if isinstance(error, AnboxError) else str(error))

    def _refuse(self, why: str) -> None:
        self._forward.failure(why)
        abort_transport(self.transport)

    def dataReceived(self, data: bytes) -> None:
        self.to_guest += len(data)
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.transport = None
        if self in self._forward.relays:
            self._forward.relays.remove(self)
            self._forward.to_guest += self.to_guest
            self._forward.from_guest += self.from_guest
        if self._opening is not None:
            self._opening.cancel()
        super().connectionLost(reason)
