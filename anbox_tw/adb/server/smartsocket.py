"""One connection of an adb client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.adb.server._framing import BadRequest, RequestReader, fail, okay
from anbox_tw.adb.server._targets import Kind, Target, parse_host_request
from anbox_tw.adb.server.bridge import join
from anbox_tw.adb.server.devices import Device
from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.adb.transport import StreamRefused
from anbox_tw.errors import AnboxError

if TYPE_CHECKING:
    from anbox_tw.adb.server.server import AdbServer

__all__ = ["SmartSocket"]

REQUEST_TIMEOUT_S = 60.0
"""adb itself waits for ever for the rest of a request; nobody's request takes a minute to arrive."""

MAX_PENDING_BYTES = 1 << 20
"""What a client may send behind a request before the answer; then it is held back."""

MAX_TRACKER_BACKLOG_BYTES = 1 << 20
"""A tracker that does not read is dropped: each frame is the whole list, and there may be many."""


class SmartSocket(Protocol):
    """Reads requests; answers them, or joins the connection to a device's stream."""

    _log = Logger()

    def __init__(self, server: AdbServer) -> None:
        self._server = server
        self._reader = RequestReader()
        self._device: Device | None = None
        self._serving: Deferred[None] | None = None
        self._busy = False
        self._stream: Any = None
        self._tracking: Callable[[], None] | None = None
        self._early: list[bytes] = []
        self._early_size = 0
        self._timer: Any = None
        self._lost = False

    # -- the transport's side --

    def connectionMade(self) -> None:
        self._server.sockets.add(self)
        transport: Any = self.transport
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        self._expect_request()

    def dataReceived(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.write(data)
        elif self._tracking is not None:
            self.finish()  # a tracker has nothing to say
        elif self._busy:
            self._early.append(data)
            self._early_size += len(data)
            if self._early_size >= MAX_PENDING_BYTES:
                self.transport.pauseProducing()  # type: ignore[union-attr]
        else:
            self._feed(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._server.sockets.discard(self)
        self._stop_timer()
        if self._tracking is not None:
            self._tracking()
        if self._stream is not None:
            self._stream.unregisterProducer()
            self._stream.loseConnection()
        if self._serving is not None:
            self._serving.cancel()

    # -- requests --

    def _expect_request(self) -> None:
        self._stop_timer()
        self._timer = self._server.reactor.callLater(REQUEST_TIMEOUT_S, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._log.info("a client has not sent its request within {limit} s", limit=REQUEST_TIMEOUT_S)
        self.transport.abortConnection()  # type: ignore[union-attr]

    def _feed(self, data: bytes) -> None:
        try:
            request = self._reader.feed(data)
        except BadRequest as error:
            self._log.info("closing a client's connection: {error}", error=error)
            self.finish()
            return
        if request is None:
            return
        self._stop_timer()
        if self._reader.rest:
            self._early.append(self._reader.rest)
            self._early_size = len(self._reader.rest)
        self._busy = True
        # Much is answered at once: what the request has made of this connection is known when this returns.
        serving = Deferred.fromCoroutine(self._serve(request))
        self._serving = serving
        serving.addCallbacks(self._served, self._failed)

    def _served(self, _: None) -> None:
        self._serving = None

    async def _serve(self, request: str) -> None:
        try:
            parsed = parse_host_request(request)
            if parsed is None:
                await self._open(request)
                return
            target, command = parsed
            if self._device is not None:
                # After a switch every host request means the device that was chosen, whatever its prefix says.
                target = Target(Kind.ID, transport_id=self._device.transport_id)
            reply = await self._server.services.serve(command, target, self)
        except BadRequest as error:
            self._log.info("closing a client's connection: {error}", error=error)
            self.finish()
        except RequestFailed as error:
            self.finish(fail(error.cause))
        else:
            if reply is not None:
                self.finish(reply)

    def _failed(self, failure: Failure) -> None:
        self._serving = None
        self._busy = False
        if failure.check(CancelledError) is None:
            self._log.failure("a request failed", failure)
        if not self._lost:
            self.transport.loseConnection()  # type: ignore[union-attr]

    # -- what services do with the connection --

    def write(self, data: bytes) -> None:
        """Send without closing."""
        if not self._lost:
            self.transport.write(data)  # type: ignore[union-attr]

    def finish(self, reply: bytes = b"") -> None:
        """Send the last of it and close; clients wait for the end before they go on."""
        if self._lost:
            return
        if reply:
            self.transport.write(reply)  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]

    def switch(self, device: Device, reply: bytes) -> None:
        """From now on this connection means ``device``."""
        self._device = device
        self.write(reply)
        self._busy = False
        early, self._early, self._early_size = self._early, [], 0
        self._expect_request()
        # After this request's coroutine has ended, so that the next one has its own.
        self._server.reactor.callLater(0, self._again, b"".join(early))

    def _again(self, early: bytes) -> None:
        if early and not self._lost:
            self._feed(early)

    def track(
        self, frame: Callable[[], bytes], observe: Callable[[Callable[[], object]], Callable[[], None]]
    ) -> None:
        """Send ``frame()`` now and whenever it has changed."""
        last: list[bytes] = []

        def send() -> None:
            now = frame()
            if last and last[0] == now:
                return
            last[:] = [now]
            if _backlog(self.transport) > MAX_TRACKER_BACKLOG_BYTES:
                self._log.info("dropping a tracker that does not read")
                self.transport.abortConnection()  # type: ignore[union-attr]
                return
            self.write(now)

        self.write(okay())
        self._tracking = observe(send)
        self._busy = False
        send()

    async def _open(self, service: str) -> None:
        """Open a service of the chosen device and join the connection to it."""
        device = self._device
        if device is None:
            raise RequestFailed("device offline (no transport)")
        if not device.is_online or device.transport is None:
            raise RequestFailed("device offline (transport offline)")
        device.note_reverse(service)
        try:
            stream = await device.transport.open_stream(service.encode("utf-8", "surrogateescape"))
        except StreamRefused:
            raise RequestFailed("closed") from None
        except AnboxError as error:
            raise RequestFailed(error.cause) from error
        if self._lost:
            stream.loseConnection()
            return
        self.write(okay())
        side = join(stream, self.transport)
        self._stream = stream
        self._busy = False
        early, self._early = self._early, []
        for data in early:
            stream.write(data)
        if self._early_size >= MAX_PENDING_BYTES:
            self.transport.resumeProducing()  # type: ignore[union-attr]
        stream.start(side)


def _backlog(transport: Any) -> int:
    """What Twisted holds back for a socket, in bytes."""
    size: int = len(getattr(transport, "dataBuffer", b"")) + getattr(transport, "_tempDataLen", 0)
    return size
