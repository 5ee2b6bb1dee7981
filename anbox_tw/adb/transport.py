"""One ADB connection over any byte stream: the Twisted side of ``_state.Connection``.

``HostTransport`` is the end of a server or of a client that talks to a device; ``DeviceTransport`` is
the end of adbd. Both carry streams in both directions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHandshakeListener,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb import _events as ev
from anbox_tw.adb._socketio import SocketIO
from anbox_tw.adb._state import Connection, LocalProtocolError, Phase, Role
from anbox_tw.adb._wire import Buffer
from anbox_tw.adb.auth import Authority
from anbox_tw.adb.banner import DEVICE_FEATURES, HOST_FEATURES, Banner
from anbox_tw.adb.keys import TOKEN_SIZE, AdbKey, PublicKey
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.tls import ClientTls, ServerTls, peer_key
from anbox_tw.errors import AdbError, AnboxError, PeerError, TimedOut

__all__ = [
    "AdbTransport",
    "DeviceTransport",
    "HostTransport",
    "OpenHandler",
    "StreamRefused",
    "TransportClosed",
]

MAX_BUFFERED_IN = 256 * 1024 * 1024
"""Received and not acknowledged bytes of all streams together, above which nothing more is read."""
MAX_BLOCKED_OUT = 64 * 1024 * 1024
"""Bytes written while the peer does not read, above which the connection is given up. Stream data
stops at once in that state, so these are answers to a peer that asks and never listens."""
OPEN_TIMEOUT_S = 30.0
"""How long ``open_stream`` waits for the peer's answer unless told otherwise."""
HANDSHAKE_TIMEOUT_S = 60.0
"""How long a device waits for the host to greet, sign and finish TLS; a user's answer may take longer."""
FREE_AUTH_FAILURES = 256
"""Wrong signatures before each further one costs a second (``adbd_auth.cpp``)."""
AUTH_PENALTY_S = 1.0

CLOSE_GRACE_S = 2.0
"""How long a peer that broke the protocol has to take what was written to it."""

OpenHandler = Callable[[str, AdbStream], "IProtocol | Deferred[IProtocol | None] | None"]
"""Serves a stream that the peer opens: gets the service's name and the stream, answers the protocol to
``start`` on it, None to refuse, or a Deferred of these. Raising ``AnboxError`` refuses too."""


class TransportClosed(AdbError):
    """The connection to the other end is gone."""


class StreamRefused(AdbError):
    """The other end does not serve this."""


@implementer(IHandshakeListener)
class _InsideTls(Protocol):
    """Hands what TLS decrypts to the transport that asked for TLS."""

    def __init__(self, outer: AdbTransport) -> None:
        self._outer = outer

    def handshakeCompleted(self) -> None:
        self._outer._tls_ready()

    def dataReceived(self, data: bytes) -> None:
        self._outer._feed(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._outer._lost(reason)


@implementer(IPushProducer)
class AdbTransport(Protocol):
    """What both ends share.

    Args:
        connection: the protocol's state, with its role and banner.
        clock: for timeouts.
        open_handler: serves what the peer opens; without one, everything is refused.

    Attributes:
        connection: the protocol's state.
        high_water: bytes a stream queues before its producer is paused.
        peer_public_key: the key the peer has proven to hold, where it had to.
        closed_because: why the connection ended, or None while it lasts.
    """

    _log = Logger()

    def __init__(
        self, connection: Connection, clock: IReactorTime, open_handler: OpenHandler | None = None
    ) -> None:
        self.connection = connection
        self.clock = clock
        self.open_handler = open_handler
        self.high_water = 1024 * 1024
        self.peer_public_key: PublicKey | None = None
        self.closed_because: AnboxError | None = None
        self._streams: dict[int, AdbStream] = {}
        self._opening: dict[int, Deferred[AdbStream]] = {}
        self._answering: dict[int, Deferred[IProtocol | None]] = {}
        self._online: list[Deferred[Banner]] = []
        self._closed: list[Deferred[AnboxError]] = []
        self._io: SocketIO | None = None
        self._tls: TLSMemoryBIOProtocol | None = None
        self._batch = 0
        self._blocked = False
        self._blocked_bytes = 0
        self._read_paused = False
        self._closing: AnboxError | None = None
        self._linger: Any = None

    # -------------------------------------------------------------- for users

    @property
    def banner(self) -> Banner:
        """What the peer says about itself; an empty one before it has."""
        return self.connection.peer or Banner()

    @property
    def is_online(self) -> bool:
        """Whether streams can be opened."""
        return self.connection.phase is Phase.ONLINE and self.closed_because is None and self._closing is None

    def peer_address(self) -> object:
        """The address of the other end, as Twisted gives it."""
        return self.transport.getPeer() if self.transport is not None else None

    def when_online(self, timeout: float | None = None) -> Deferred[Banner]:
        """Fires with the peer's banner once streams can be opened.

        Args:
            timeout: seconds, or None to wait as long as the connection lasts.

        Raises:
            TransportClosed: it ended before.
            TimedOut: it took too long.
        """
        if self.closed_because is not None:
            return defer.fail(self._gone())
        if self.is_online:
            return defer.succeed(self.banner)
        waiter: Deferred[Banner] = Deferred(self._online_cancelled)
        self._online.append(waiter)
        if timeout is not None:
            waiter.addTimeout(
                timeout, self.clock, _timed_out("the peer did not finish the ADB handshake", timeout)
            )
        return waiter

    def when_closed(self) -> Deferred[AnboxError]:
        """Fires with the reason once the connection has ended; never fails."""
        if self.closed_because is not None:
            return defer.succeed(self.closed_because)
        waiter: Deferred[AnboxError] = Deferred(self._closed_cancelled)
        self._closed.append(waiter)
        return waiter

    def open_stream(
        self, service: str | bytes, protocol: IProtocol | None = None, *, timeout: float = OPEN_TIMEOUT_S
    ) -> Deferred[AdbStream]:
        """Ask the peer for ``service``.

        Args:
            service: its name, for example ``shell:id``; the NUL is added.
            protocol: connected to the stream before the Deferred fires. Without one, call the
                stream's ``start``: until then everything that arrives waits.
            timeout: seconds to wait for the answer.

        Returns:
            The open stream. Cancelling ends the attempt.

        Raises:
            StreamRefused: the peer does not serve it.
            TransportClosed: the connection is not there, or ended meanwhile.
            TimedOut: no answer in time.
        """
        if not self.is_online:
            return defer.fail(self._gone())
        name = service.encode() if isinstance(service, str) else service
        try:
            local = self.connection.open_stream(name)
        except LocalProtocolError as error:
            return defer.fail(error)
        stream = AdbStream(self, local, name.decode("utf-8", "replace"))
        self._streams[local] = stream

        def cancelled(_: Deferred[AdbStream]) -> None:
            self._opening.pop(local, None)
            self._close_stream(stream, Failure(ConnectionLost()))

        answer: Deferred[AdbStream] = Deferred(cancelled)
        self._opening[local] = answer
        self._send_out()
        if protocol is not None:
            chosen = protocol

            def start(opened: AdbStream) -> AdbStream:
                opened.start(chosen)
                return opened

            answer.addCallback(start)
        return answer.addTimeout(
            timeout, self.clock, _timed_out(f"the peer did not answer {stream.service!r}", timeout)
        )

    def close(self, reason: str | AnboxError = "closed here") -> None:
        """Send what is written, then close."""
        if self._closing is None and self.closed_because is None:
            self._closing = reason if isinstance(reason, AnboxError) else TransportClosed(reason)
            self._unregister()
            if self.transport is not None:
                self._sink().loseConnection()

    def abort(self, reason: str | AnboxError = "aborted here") -> None:
        """Close now, whatever is still written."""
        if self.closed_because is None:
            if self._closing is None:
                self._closing = reason if isinstance(reason, AnboxError) else TransportClosed(reason)
            self._unregister()
            if self.transport is not None:
                abort = getattr(self.transport, "abortConnection", None) or self.transport.loseConnection
                abort()

    # ------------------------------------------------------ the byte transport

    def connectionMade(self) -> None:
        """The byte stream is there."""
        assert self.transport is not None
        if ITCPTransport.providedBy(self.transport):
            # Each small packet waits for its answer: without this every one costs 40 ms.
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self._io = SocketIO.adopt(self.transport, self)
        self._sink().registerProducer(self, True)
        self._started()

    def _sink(self) -> Any:
        return self._tls if self._tls is not None else self.transport

    def _unregister(self) -> None:
        if self.transport is not None:
            self._sink().unregisterProducer()

    def pauseProducing(self) -> None:
        """The byte transport's buffer is full: streams stop sending."""
        self._blocked = True
        self._blocked_bytes = 0

    def resumeProducing(self) -> None:
        """The byte transport has room again."""
        self._blocked = False
        self._begin()
        for stream in list(self._streams.values()):
            if stream._queue or stream._producer is not None:
                stream._flush()
                if self._blocked:
                    break
        self._end_batch()

    def stopProducing(self) -> None:
        """The byte transport has gone; ``connectionLost`` says why."""
        self._blocked = True

    def dataReceived(self, data: bytes) -> None:
        """Bytes came in by Twisted's own reader."""
        if self._tls is not None:
            self._tls.dataReceived(data)
        else:
            self._feed(data)

    def get_buffer(self) -> memoryview:
        """Where the direct reader puts the next bytes."""
        return self.connection.get_buffer()

    def buffer_updated(self, count: int) -> None:
        """The direct reader has put ``count`` bytes there."""
        self.connection.buffer_updated(count)
        self._dispatch()

    def _feed(self, data: bytes) -> None:
        self.connection.receive_data(data)
        self._dispatch()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The byte stream has ended."""
        if self._tls is not None:
            self._tls.connectionLost(reason)
        self._lost(reason)

    def _lost(self, reason: Failure) -> None:
        if self.closed_because is not None:
            return
        error = self._closing
        if error is None:
            text = (
                "the other end closed the connection"
                if reason.check(ConnectionDone)
                else reason.getErrorMessage()
            )
            error = TransportClosed(text)
        self.closed_because = error
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        if self._io is not None:
            self._io.release()
        self.connection.close()
        self._ended(error)
        failure = Failure(error)
        opening, self._opening = self._opening, {}
        answering, self._answering = self._answering, {}
        streams, self._streams = self._streams, {}
        for answer in answering.values():
            answer.cancel()
        for local, stream in streams.items():
            waiter = opening.pop(local, None)
            stream._finish(failure)
            if waiter is not None:
                waiter.errback(Failure(self._gone()))
        online, self._online = self._online, []
        for pending in online:
            pending.errback(Failure(self._gone()))
        closed, self._closed = self._closed, []
        for done in closed:
            done.callback(error)

    def _gone(self) -> AnboxError:
        reason = self.closed_because or self._closing
        if reason is None:
            return TransportClosed("the peer is not online")
        return reason

    def _online_cancelled(self, waiter: Deferred[Banner]) -> None:
        if waiter in self._online:
            self._online.remove(waiter)

    def _closed_cancelled(self, waiter: Deferred[AnboxError]) -> None:
        if waiter in self._closed:
            self._closed.remove(waiter)

    # ------------------------------------------------------------------ output

    def _begin(self) -> None:
        self._batch += 1

    def _end_batch(self) -> None:
        self._batch -= 1
        self._send_out()

    def _send_out(self, *, now: bool = False) -> None:
        """Write what the state has to say, unless more is about to come."""
        if self._batch and not now:
            return
        out = self.connection.data_to_send()
        if not out or self.transport is None:
            return
        if self._blocked:
            self._blocked_bytes += sum(map(len, out))
            if self._blocked_bytes > MAX_BLOCKED_OUT:
                self.abort(
                    PeerError("the peer sends requests and does not read the answers", code="ANBOX-A006")
                )
                return
        if self._tls is None and self._io is not None:
            self._io.write(out)
        else:
            self._sink().writeSequence([bytes(piece) for piece in out])

    # ------------------------------------------------------------------- input

    def _dispatch(self) -> None:
        """Handle every event that is there."""
        self._begin()
        try:
            next_event = self.connection.next_event
            while (event := next_event()) is not None:
                if type(event) is ev.StreamData:
                    stream = self._streams.get(event.stream)
                    if stream is not None:
                        stream._received(event.data)
                elif type(event) is ev.StreamWritable:
                    stream = self._streams.get(event.stream)
                    if stream is not None:
                        stream._flush()
                else:
                    self._handle(event)
        finally:
            self._end_batch()
        if self.connection.unacked > MAX_BUFFERED_IN:
            self._pause_reading()

    def _handle(self, event: ev.Event) -> None:
        match event:
            case ev.OpenRequested():
                self._open_requested(event)
            case ev.StreamReady():
                self._stream_ready(event.stream)
            case ev.StreamClosed():
                self._stream_closed(event)
            case ev.TlsRequested():
                self._start_tls(event.rest)
            case ev.Online():
                self._went_online(event)
            case ev.ProtocolFailed():
                self._log.warn(
                    "{peer} broke the protocol: {error}", peer=self.peer_address(), error=event.error
                )
                self.close(event.error)
                if self.closed_because is None and self._linger is None:
                    # What breaks the protocol may well not read its last answers either.
                    self._linger = self.clock.callLater(CLOSE_GRACE_S, self.abort, event.error)
            case _:
                self._negotiate(event)

    def _went_online(self, event: ev.Online) -> None:
        waiting, self._online = self._online, []
        self._state_changed()
        for waiter in waiting:
            waiter.callback(event.banner)

    def _pause_reading(self) -> None:
        if not self._read_paused and self.transport is not None:
            self._read_paused = True
            if self._io is not None:
                self._io.reading = False
            cast(Any, self.transport).pauseProducing()

    def _resume_reading(self) -> None:
        self._read_paused = False
        if self._io is not None and self._tls is None:
            self._io.reading = True
        if self.transport is not None:
            cast(Any, self.transport).resumeProducing()

    # ----------------------------------------------------------------- streams

    def _open_requested(self, event: ev.OpenRequested) -> None:
        local = event.stream
        service = event.service.decode("utf-8", "surrogateescape")
        stream = AdbStream(self, local, service)
        self._streams[local] = stream
        if self.open_handler is None:
            self._refuse(stream)
            return
        try:
            answer = self.open_handler(service, stream)
        except AnboxError as error:
            self._log.info("refusing {service!r}: {error}", service=service, error=error)
            self._refuse(stream)
            return
        except Exception:
            self._log.failure("cannot open {service!r}", service=service)
            self._refuse(stream)
            return
        if not isinstance(answer, Deferred):
            self._answer_open(stream, answer)
            return
        self._answering[local] = answer

        def answered(protocol: IProtocol | None) -> None:
            self._answering.pop(local, None)
            self._answer_open(stream, protocol)

        def failed(failure: Failure) -> None:
            self._answering.pop(local, None)
            if failure.check(AnboxError, defer.CancelledError) is None:
                self._log.failure("cannot open {service!r}", failure=failure, service=service)
            self._refuse(stream)

        answer.addCallbacks(answered, failed).addErrback(
            lambda failure: self._log.failure(
                "{service!r} failed at its start", failure=failure, service=service
            )
        )

    def _answer_open(self, stream: AdbStream, protocol: IProtocol | None) -> None:
        if protocol is None:
            self._refuse(stream)
            return
        if stream.local in self.connection.streams:
            self._begin()
            try:
                self.connection.accept_stream(stream.local)
                stream.start(protocol)
            finally:
                self._end_batch()
        else:
            # Closed while the service was being started: it must still hear of its end.
            stream.start(protocol)

    def _refuse(self, stream: AdbStream) -> None:
        if self._streams.pop(stream.local, None) is not None and stream.local in self.connection.streams:
            self.connection.refuse_stream(stream.local)
            self._send_out()

    def _stream_ready(self, local: int) -> None:
        waiter = self._opening.pop(local, None)
        if waiter is not None:
            waiter.callback(self._streams[local])

    def _stream_closed(self, event: ev.StreamClosed) -> None:
        stream = self._streams.pop(event.stream, None)
        waiter = self._opening.pop(event.stream, None)
        answer = self._answering.pop(event.stream, None)
        if stream is not None:
            reason = Failure(event.reason) if event.reason is not None else Failure(ConnectionDone())
            stream._closed_by_peer(reason)
        if waiter is not None:
            assert stream is not None
            waiter.errback(event.reason or StreamRefused(f"the peer refuses {stream.service!r}"))
        if answer is not None:
            answer.cancel()

    def _acknowledge(self, stream: AdbStream, size: int) -> None:
        self.connection.acknowledge(stream.local, size)
        self._send_out()
        if self._read_paused and self.connection.unacked < MAX_BUFFERED_IN // 2:
            self._resume_reading()

    def _sendable(self, stream: AdbStream) -> int:
        return 0 if self._blocked else self.connection.sendable(stream.local)

    def _send_data(self, stream: AdbStream, data: Buffer | memoryview) -> None:
        self.connection.send_data(stream.local, data)
        # What can be changed must be out before its producer is asked for more.
        self._send_out(now=type(data) is not bytes)

    def _close_stream(self, stream: AdbStream, reason: Failure) -> None:
        """End ``stream`` from this side."""
        if self._streams.pop(stream.local, None) is None:
            return
        self.connection.close_stream(stream.local)
        self._send_out()
        if self._read_paused and self.connection.unacked < MAX_BUFFERED_IN // 2:
            self._resume_reading()
        stream._finish(reason)

    # --------------------------------------------------------------------- TLS

    def _start_tls(self, rest: bytes) -> None:
        assert self.transport is not None
        # The STLS that asks for it must be on its way before anything of TLS.
        self._send_out(now=True)
        if self._io is not None:
            self._io.release()
            self._io = None
        cast(Any, self.transport).unregisterProducer()
        factory = TLSMemoryBIOFactory(
            self._tls_settings(),
            isClient=self.connection.role is Role.HOST,
            wrappedFactory=Factory.forProtocol(lambda: _InsideTls(self)),
            clock=self.clock,
        )
        tls = factory.buildProtocol(None)
        assert isinstance(tls, TLSMemoryBIOProtocol)
        self._tls = tls
        tls.makeConnection(self.transport)
        if rest:
            tls.dataReceived(rest)

    def _tls_ready(self) -> None:
        assert self._tls is not None
        if self.closed_because is not None:
            return
        self.peer_public_key = peer_key(self._tls.getPeerCertificate())
        self._tls.registerProducer(self, True)
        self.connection.tls_established()
        self._begin()
        try:
            self._tls_started()
        finally:
            self._end_batch()

    # ------------------------------------------------------------- for the roles

    def _started(self) -> None:
        """The byte stream is there."""

    def _negotiate(self, event: ev.Event) -> None:
        """An event of the handshake."""

    def _tls_settings(self) -> ClientTls | ServerTls:
        """What TLS is made with."""
        raise AdbError("TLS is not set up here")

    def _tls_started(self) -> None:
        """TLS is there."""

    def _state_changed(self) -> None:
        """The connection has moved on in its handshake."""

    def _ended(self, error: AnboxError) -> None:
        """The connection is over."""


class HostTransport(AdbTransport):
    """The host's end of a connection to a device.

    Args:
        clock: for timeouts.
        keys: our keys, tried in this order; the first is the one offered to the device's user, and
            shown in TLS. Without keys no authentication is possible.
        banner: what we say about ourselves.
        open_handler: serves streams that the device opens (reverse forwards).
        on_state: called with this transport each time ``state`` may have changed.
        connection: a prepared state instead of the one for ``banner``.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        keys: Sequence[AdbKey] = (),
        banner: Banner | None = None,
        open_handler: OpenHandler | None = None,
        on_state: Callable[[HostTransport], None] | None = None,
        connection: Connection | None = None,
    ) -> None:
        if connection is None:
            connection = Connection(Role.HOST, banner or Banner("host", features=HOST_FEATURES))
        super().__init__(connection, clock, open_handler)
        self._keys = list(keys)
        self._untried = list(keys)
        self._on_state = on_state

    @property
    def state(self) -> str:
        """In adb's words: ``offline``, ``authorizing``, ``unauthorized``, or the device's type when online."""
        if self.closed_because is not None or self._closing is not None:
            return "offline"
        match self.connection.phase:
            case Phase.ONLINE:
                return self.banner.type
            case Phase.AUTHORIZING:
                return "authorizing"
            case Phase.UNAUTHORIZED:
                return "unauthorized"
        return "offline"

    def _started(self) -> None:
        self.connection.start()
        self._send_out()

    def _negotiate(self, event: ev.Event) -> None:
        if not isinstance(event, ev.AuthTokenReceived):
            return
        if len(event.token) != TOKEN_SIZE:
            self.close(
                PeerError(f"the device asks to sign {len(event.token)} bytes, tokens have {TOKEN_SIZE}")
            )
            return
        if self._untried:
            self.connection.send_signature(self._untried.pop(0).sign(event.token))
        elif self._keys:
            self.connection.send_public_key(self._keys[0].public.to_text().encode())
        self._state_changed()

    def _tls_settings(self) -> ClientTls:
        return ClientTls(self._keys or [AdbKey.generate()])

    def _state_changed(self) -> None:
        if self.connection.phase is Phase.ONLINE:
            self._untried = list(self._keys)
        if self._on_state is not None:
            self._on_state(self)

    def _ended(self, error: AnboxError) -> None:
        self._state_changed()


class DeviceTransport(AdbTransport):
    """The device's end: what adbd puts on each connection.

    Args:
        clock: for timeouts.
        banner: what we say about ourselves.
        authority: who may enter; without one, everybody.
        open_handler: the device's services.
        tls_key: with it, hosts are taken through TLS and known by their certificate; without, by AUTH.
        connection: a prepared state instead of the one for ``banner``.
        random: gives that many random bytes; for tests.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        banner: Banner | None = None,
        authority: Authority | None = None,
        open_handler: OpenHandler | None = None,
        tls_key: AdbKey | None = None,
        connection: Connection | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if connection is None:
            connection = Connection(Role.DEVICE, banner or Banner("device", features=DEVICE_FEATURES))
        super().__init__(connection, clock, open_handler)
        self.authority = authority or Authority("open")
        self._tls_key = tls_key
        self._random = random
        self._failures = 0
        self._timers: list[Any] = []
        self._question: Deferred[PublicKey | None] | None = None

    def _started(self) -> None:
        self._timers.append(self.clock.callLater(HANDSHAKE_TIMEOUT_S, self._too_slow))

    def _too_slow(self) -> None:
        if self._question is None and self.connection.phase is not Phase.ONLINE:
            self.abort(TimedOut(f"the host did not finish the ADB handshake in {HANDSHAKE_TIMEOUT_S:g} s"))

    def _negotiate(self, event: ev.Event) -> None:
        match event:
            case ev.PeerGreeted():
                self._forget_question()
                if self._tls_key is not None and not self.connection.in_tls:
                    self.connection.offer_tls()
                elif self.connection.in_tls or self.authority.policy == "open":
                    self._let_in()
                else:
                    self._challenge()
            case ev.AuthSignatureReceived():
                key = self.authority.signer(event.token, event.signature)
                if key is not None:
                    self._failures = 0
                    self.peer_public_key = key
                    self._let_in()
                else:
                    self._failures += 1
                    if self._failures <= FREE_AUTH_FAILURES:
                        self._challenge()
                    else:
                        self._timers.append(self.clock.callLater(AUTH_PENALTY_S, self._challenge_late))
            case ev.AuthKeyOffered():
                self._key_offered(event.text)

    def _key_offered(self, text: str) -> None:
        if self._question is not None:
            return
        question = self._question = self.authority.offer(text)

        def answered(key: PublicKey | None) -> None:
            if self._question is question:
                self._question = None
            if key is not None and self.connection.phase is Phase.CHALLENGED:
                self.peer_public_key = key
                self._let_in()
                self._send_out()

        def failed(failure: Failure) -> None:
            if self._question is question:
                self._question = None
            if failure.check(defer.CancelledError) is None:
                self._log.failure("asking about a key failed", failure=failure)

        question.addCallbacks(answered, failed)

    def _forget_question(self) -> None:
        if self._question is not None:
            question, self._question = self._question, None
            question.cancel()

    def _challenge(self) -> None:
        self.connection.challenge(self._random(TOKEN_SIZE))

    def _challenge_late(self) -> None:
        if self.connection.phase is Phase.CHALLENGED:
            self._challenge()
            self._send_out()

    def _let_in(self) -> None:
        self._went_online(self.connection.accept())

    def _tls_settings(self) -> ServerTls:
        assert self._tls_key is not None
        return ServerTls(self._tls_key, self.authority.allows)

    def _tls_started(self) -> None:
        self._let_in()

    def _state_changed(self) -> None:
        self._stop_timers()

    def _stop_timers(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            if timer.active():
                timer.cancel()

    def _ended(self, error: AnboxError) -> None:
        self._stop_timers()
        self._forget_question()


def _timed_out(what: str, seconds: float) -> Callable[[object, float], Any]:
    def convert(result: object, _timeout: float) -> Any:
        if isinstance(result, Failure) and result.check(defer.CancelledError):
            raise TimedOut(f"{what} within {seconds:g} s")
        return result

    return convert
