"""One RPC link: calls as Deferreds, events, and the calls of the peer.

Both ends of a link are alike: each may call the other and send events, as on the original's
bridge. All state changes before anything is called back, so a callback may call, close, or be
re-entered by bytes that arrive meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

from google.protobuf.message import DecodeError, Message
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import AnboxError, PeerError
from anbox_tw.rpc._direct import send_directly, send_queued
from anbox_tw.rpc._framing import (
    INVOCATION,
    OVERSIZE,
    PROTOCOL_VERSION,
    RESPONSE,
    Frame,
    FrameReader,
    FrameTooBig,
    encode_event,
    encode_invocation,
    encode_response,
    invocation_prefix,
    salvage_id,
)
from anbox_tw.rpc._link import Call, Limits, Valve, carries_error
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Invocation, Result, Void
from anbox_tw.rpc.dispatcher import Answer, Dispatcher
from anbox_tw.rpc.errors import (
    BadParameters,
    CallTimedOut,
    ChannelClosed,
    MessageTooBig,
    TooManyCalls,
    UnknownMethod,
    WrongVersion,
    from_wire,
    to_wire,
)
from anbox_tw.rpc.messages import check_message, parse_message
from anbox_tw.rpc.peer import Peer, credentials_of

__all__ = ["Channel", "Limits"]

_Response = TypeVar("_Response", bound=Message)


MAX_ABANDONED_IDS = 1024
"""How many ids of calls that timed out or were cancelled are remembered, to tell their late answers
from answers to nothing. A peer that is later than this is only logged wrongly."""

MAX_PREFIXES = 256
"""Method names whose encoded form is kept."""


@implementer(IHalfCloseableProtocol)
class Channel(Protocol):
    """One RPC link over any Twisted transport.

    Args:
        clock: for all timeouts.
        dispatcher: answers the peer's calls; without one each is answered with ``UnknownMethod``.
        on_event: called with the bytes of each event the peer sends. May be set later.
        on_close: called once with the ``ChannelClosed`` that ended the link.
        name: for log lines and errors; made from the peer's address when it is empty.
        limits: the link's caps.

    Attributes:
        peer: the other end, as handlers get it.
        closed: why the link is gone; None while it is there or not yet made.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        dispatcher: Dispatcher | None = None,
        on_event: Callable[[bytes], object] | None = None,
        on_close: Callable[[ChannelClosed], object] | None = None,
        name: str = "",
        limits: Limits | None = None,
    ) -> None:
        self.on_event = on_event
        self.on_close = on_close
        self.name = name
        self.limits = limits or Limits()
        self.peer = Peer(self)
        self.closed: ChannelClosed | None = None
        self._clock = clock
        self._dispatcher = dispatcher or Dispatcher()
        self._reader = FrameReader(self.limits.max_payload)
        # What has come in while frames before it are being handled.
        self._frames: deque[Frame] | None = None
        # What goes out with one write when the frames at hand are handled; None: write at once.
        self._out: list[bytes] | None = None
        self._next_id = 0
        self._calls: dict[int, Call] = {}
        self._abandoned: dict[int, None] = {}
        self._error_types: dict[type[Any], bool] = {Void: True}
        self._prefixes: dict[str, bytes] = {}
        self._served: set[Deferred[Any]] = set()
        self._keep_serving: set[Deferred[Any]] = set()
        # One timer for all calls, at or before the earliest deadline: most calls end long before
        # theirs, and a timer each would cost more than the call itself.
        self._timer: IDelayedCall | None = None
        self._frame_timer: IDelayedCall | None = None
        self._close_timer: IDelayedCall | None = None
        self._valve = Valve()
        self._why = ""
        self._waiting_for_close: list[Deferred[ChannelClosed]] = []
        self._complaints = 0
        self._peer_left = False
        self._send_now: Callable[[Any, bytes], None] = send_queued

    def __repr__(self) -> str:
        return f"<Channel {self.name or 'unnamed'}{' closed' if self.closed else ''}>"

    # -- calling ------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        message: Message,
        response_type: type[_Response],
        timeout: float | None = 30.0,
    ) -> Deferred[_Response]:
        """Call a method of the peer.

        Args:
            method: its name.
            message: its parameters.
            response_type: the class of its answer.
            timeout: seconds to wait for the answer; None waits as long as the link lasts. The
                original waits 30 s, and without limit for ``start_container``.

        Returns:
            Fires with the answer. Cancelling it forgets the call: the peer may still do it. Fails with
            ``RemoteError`` (the peer's own error), ``CallTimedOut``, ``ChannelClosed``,
            ``TooManyCalls``, ``MessageTooBig``, or ``PeerError`` when the answer cannot be parsed.
        """
        if not self.peer.connected:
            return _failed(
                ChannelClosed(
                    f"{method} was not called: {self.closed.cause}"
                    if self.closed
                    else f"{method} was not called: the link is not connected",
                    reason=self.closed.reason if self.closed else None,
                )
            )
        calls = self._calls
        if len(calls) >= self.limits.max_calls:
            return _failed(
                TooManyCalls(
                    f"{method} was not called: {len(calls)} calls have no answer yet",
                    "wait for some of them",
                )
            )
        prefix = self._prefixes.get(method)
        if prefix is None:
            prefix = invocation_prefix(method)
            if len(self._prefixes) < MAX_PREFIXES:
                self._prefixes[method] = prefix
        call_id = self._next_id
        while call_id in calls:
            call_id = (call_id + 1) & 0xFFFFFFFF
        try:
            data = encode_invocation(call_id, prefix, message.SerializeToString())
        except FrameTooBig as error:
            return _failed(MessageTooBig(f"{method} was not called: {error}"))
        except Exception:
            # A required field is not set, a programmer's error.
            return _failed(Failure())
        self._next_id = (call_id + 1) & 0xFFFFFFFF
        if timeout is None:
            call = Call(method, response_type, None, 0.0)
        else:
            deadline = self._clock.seconds() + timeout
            call = Call(method, response_type, timeout, deadline)
            timer = self._timer
            if timer is None:
                self._timer = self._clock.callLater(timeout, self._expire)
            elif timer.getTime() > deadline:
                timer.reset(timeout)

        def forget(_: Deferred[Any]) -> None:
            if calls.pop(call_id, None) is not None:
                self._abandon(call_id)

        call.deferred = Deferred(forget)
        calls[call_id] = call
        if self._out is not None:
            self._out.append(data)
        else:
            cast(Any, self.transport).write(data)
        return call.deferred

    def send_event(self, message: Message | bytes) -> None:
        """Send an event; ignored when the link is not connected.

        Args:
            message: the event, or its serialized form where the same goes to many.

        Raises:
            MessageTooBig: it does not fit into a frame.
        """
        data = message if isinstance(message, bytes) else message.SerializeToString()
        try:
            self._write(encode_event(data))
        except FrameTooBig as error:
            raise MessageTooBig(f"an event was not sent: {error}") from None

    def close(self, reason: str = "closed by this side") -> Deferred[ChannelClosed]:
        """Flush what is queued and close; cut the link when the peer does not take it in time.

        Args:
            reason: given to all calls without an answer.

        Returns:
            Fires when the link is gone.
        """
        done = self.when_closed()
        if self.closed is None and not self._why:
            self._why = reason
            if self.transport is None:
                return done
            self._flush()
            self._lose()
        return done

    def abort(self, reason: str) -> None:
        """Cut the link at once; what is queued is lost."""
        if self.closed is None:
            self._why = self._why or reason
            transport = cast(Any, self.transport)
            if transport is not None:
                abort = getattr(transport, "abortConnection", transport.loseConnection)
                abort()

    def when_closed(self) -> Deferred[ChannelClosed]:
        """A Deferred of the caller's own: fires with the reason when the link is gone."""
        if self.closed is not None:
            return succeed(self.closed)
        waiting: Deferred[ChannelClosed] = Deferred(self._waiting_for_close.remove)
        self._waiting_for_close.append(waiting)
        return waiting

    # -- Twisted's side -----------------------------------------------------------------------

    def connectionMade(self) -> None:
        """The link is there."""
        transport = cast(Any, self.transport)
        peer = self.peer
        peer.credentials, peer.groups = credentials_of(transport)
        if not self.name:
            self.name = _describe(transport.getPeer(), peer)
        peer.name = self.name
        peer.connected = True
        transport.registerProducer(self._valve, True)
        if isinstance(transport, FileDescriptor):
            self._send_now = send_directly

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the peer, cut at any place."""
        if self._peer_left:
            return
        reader = self._reader
        frames = reader.receive_data(data)
        if self._frames is not None:
            # A handler of an earlier frame has let the transport deliver more: keep the order.
            self._frames.extend(frames)
            return
        if frames:
            self._handle(frames)
        if reader.failure is not None:
            self._broken(reader.failure)
        elif reader.partial:
            if self._frame_timer is None:
                self._frame_timer = self._clock.callLater(self.limits.frame_timeout, self._frame_late)
            elif frames:
                self._frame_timer.reset(self.limits.frame_timeout)
        elif self._frame_timer is not None:
            self._frame_timer.cancel()
            self._frame_timer = None

    def readConnectionLost(self) -> None:
        """The peer has shut its side down: its calls are over, but it still gets what is queued."""
        self._leave(Failure(connectionDone.value))
        self._lose()

    def writeConnectionLost(self) -> None:
        """Our side is shut down, which only happens on the way to the end."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The link is gone."""
        self._leave(reason)
        for timer in (self._close_timer, self._timer, self._frame_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._close_timer = self._timer = self._frame_timer = None
        closed = self.closed
        if closed is None:
            raise AssertionError("unreachable")
        waiting, self._waiting_for_close = self._waiting_for_close, []
        if self.on_close is not None:
            try:
                self.on_close(closed)
            except Exception:
                self._log.failure("the close callback of {channel} failed", channel=self)
        for deferred in waiting:
            deferred.callback(closed)

    # -- incoming -----------------------------------------------------------------------------

    def _handle(self, frames: list[Frame]) -> None:
        """Handle complete frames; what they cause to be sent goes out with one write."""
        queue = self._frames = deque(frames)
        self._out = []
        try:
            while queue:
                kind, payload = queue.popleft()
                if kind == INVOCATION:
                    self._serve(payload)
                elif kind == RESPONSE:
                    self._answered(payload)
                else:
                    self._oversize(kind, payload)
                if self._why or self.closed is not None:
                    break
        except PeerError as error:
            self._broken(error)
        finally:
            self._frames = None
            self._flush()

    def _serve(self, payload: bytes) -> None:
        try:
            # A message that is parsed into again and again keeps the memory of all it ever held.
            invocation = Invocation.FromString(payload)
        except DecodeError as error:
            self._unusable(salvage_id(payload), BadParameters(f"the invocation cannot be parsed: {error}"))
            return
        call_id = invocation.id
        if not call_id and not invocation.HasField("id"):
            raise PeerError("the peer sent an invocation without an id")
        try:
            if invocation.protocol_version != PROTOCOL_VERSION:
                raise WrongVersion(
                    f"the invocation has protocol version {invocation.protocol_version},"
                    f" this side speaks {PROTOCOL_VERSION}"
                )
            served_now = len(self._served) + len(self._keep_serving)
            if served_now >= self.limits.max_served:
                raise TooManyCalls(
                    f"{served_now} calls of this peer are being worked on already",
                    "wait for some of their answers",
                )
            answer, cancel = self._dispatcher.dispatch(
                invocation.method_name, invocation.parameters, self.peer
            )
        except Exception as error:
            self._respond_error(call_id, Failure(error))
            return
        if not isinstance(answer, Deferred):
            self._respond(call_id, answer)
            return
        served = self._served if cancel else self._keep_serving
        if answer.called and not answer.paused:
            answer.addCallbacks(
                lambda value: self._respond(call_id, value),
                lambda failure: self._respond_error(call_id, failure),
            )
            answer.addErrback(self._lost_answer)
            return
        served.add(answer)

        def done(value: Any) -> Any:
            served.discard(answer)
            return value

        answer.addBoth(done)
        answer.addCallbacks(
            lambda value: self._respond(call_id, value),
            lambda failure: self._respond_error(call_id, failure),
        )
        answer.addErrback(self._lost_answer)

    def _lost_answer(self, failure: Failure) -> None:
        self._log.failure("an answer to {channel} could not be sent", failure, channel=self)

    def _respond(self, call_id: int, answer: Answer) -> None:
        try:
            data = b"" if answer is None else answer.SerializeToString()
            self._write(encode_response(call_id, data))
        except FrameTooBig as error:
            self._respond_error(call_id, Failure(MessageTooBig(f"the answer was not sent: {error}")))
        except Exception:
            self._respond_error(call_id, Failure())

    def _respond_error(self, call_id: int, failure: Failure) -> None:
        if not self.peer.connected:
            return
        error = cast(BaseException, failure.value)
        if not isinstance(error, AnboxError):
            self._log.failure("a handler failed for {channel}", failure, channel=self)
        elif isinstance(error, (UnknownMethod, BadParameters, WrongVersion, TooManyCalls)):
            self._complain("its call was refused", error)
        self._write(encode_response(call_id, to_wire(error).SerializeToString()))

    def _unusable(self, call_id: int | None, error: AnboxError) -> None:
        """An invocation that cannot be read: answer it if its id is known, else end the link."""
        if call_id is None:
            raise PeerError(f"the peer sent an invocation without a usable id: {error.cause}")
        self._respond_error(call_id, Failure(error))

    def _answered(self, payload: bytes) -> None:
        try:
            result = Result.FromString(payload)
        except DecodeError as error:
            raise PeerError(f"the peer sent a response that cannot be parsed: {error}") from None
        events = list(result.events) if result.events else ()
        # Events first, as in the original: they happened before the answer.
        if result.HasField("id"):
            call_id, response = result.id, result.response
            for event in events:
                self._event(event)
            call = self._calls.pop(call_id, None)
            if call is None:
                self._answer_to_nothing(call_id)
            else:
                self._complete(call, response)
        else:
            for event in events:
                self._event(event)

    def _event(self, event: bytes) -> None:
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        except Exception:
            self._log.failure("the event callback of {channel} failed", channel=self)

    def _complete(self, call: Call, response: bytes) -> None:
        response_type = call.response_type
        by_itself = self._error_types.get(response_type)
        if by_itself is None:
            by_itself = self._error_types[response_type] = carries_error(response_type)
        try:
            answer = response_type.FromString(response)
            if response:
                # First: an answer that is an error may lack what its type requires.
                failed = answer if by_itself else Void.FromString(response)
                if failed.HasField("error") or failed.HasField("structured_error"):
                    call.deferred.errback(from_wire(parse_message(Void, response)))
                    return
            check_message(answer, response)
        except DecodeError as error:
            call.deferred.errback(
                PeerError(f"the answer to {call.method} is no {response_type.__name__}: {error}")
            )
            return
        call.deferred.callback(answer)

    def _answer_to_nothing(self, call_id: int) -> None:
        if call_id in self._abandoned:
            del self._abandoned[call_id]
            return
        self._complain("ignored", f"it answered call {call_id}, which was never made")

    def _oversize(self, kind: int, head: bytes) -> None:
        limit = self.limits.max_payload
        error = MessageTooBig(f"the message is over this side's limit of {limit} bytes")
        call_id = salvage_id(head)
        if kind == OVERSIZE + INVOCATION:
            self._unusable(call_id, error)
            return
        call = self._calls.pop(call_id, None) if call_id is not None else None
        if call is None:
            self._complain("dropped", f"an event or answer over the limit of {limit} bytes")
            return
        call.deferred.errback(
            MessageTooBig(f"the answer to {call.method} is over this side's limit of {limit} bytes")
        )

    def _complain(self, done: str, what: object) -> None:
        """Log what the peer does wrong without harm: the 1st, 2nd, 4th, 8th, ... time, so that it
        cannot fill the log."""
        self._complaints += 1
        if self._complaints & (self._complaints - 1) == 0:
            self._log.warn(
                "{channel}: {done}: {what} (complaint {count} about this link)",
                channel=self,
                done=done,
                what=what,
                count=self._complaints,
            )

    def _broken(self, error: PeerError) -> None:
        """The peer does not keep to the protocol: say so and end the link."""
        if self.closed is None and not self._why:
            self._log.warn("{channel} broke the protocol: {error}", channel=self, error=error)
            self._leave(Failure(error))
            self._flush()
            self._lose()

    # -- outgoing -----------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        """Send an answer or an event."""
        if self._valve.paused:
            self._count_unread(len(data))
        if self._out is not None:
            self._out.append(data)
        elif self.closed is None and self.transport is not None:
            self.transport.write(data)

    def _flush(self) -> None:
        out, self._out = self._out, None
        if out and self.transport is not None:
            self._send_now(self.transport, b"".join(out) if len(out) > 1 else out[0])

    def _count_unread(self, size: int) -> None:
        self._valve.unread += size
        if self._valve.unread > self.limits.max_unread:
            self._log.warn("{channel} does not read what it is sent; cut", channel=self)
            self.abort(f"the peer left more than {self.limits.max_unread} bytes unread")

    # -- time and the end ---------------------------------------------------------------------

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        late: list[tuple[int, Call]] = []
        next_deadline: float | None = None
        for call_id, call in self._calls.items():
            if call.timeout is None:
                continue
            if call.deadline <= now:
                late.append((call_id, call))
            elif next_deadline is None or call.deadline < next_deadline:
                next_deadline = call.deadline
        for call_id, _ in late:
            del self._calls[call_id]
            self._abandon(call_id)
        if next_deadline is not None:
            self._timer = self._clock.callLater(next_deadline - now, self._expire)
        for _, call in late:
            call.deferred.errback(
                CallTimedOut(f"{call.method} had no answer from {self.name} within {call.timeout:g} s")
            )

    def _abandon(self, call_id: int) -> None:
        self._abandoned[call_id] = None
        if len(self._abandoned) > MAX_ABANDONED_IDS:
            del self._abandoned[next(iter(self._abandoned))]

    def _frame_late(self) -> None:
        self._frame_timer = None
        self._broken(PeerError(f"the peer did not complete a message within {self.limits.frame_timeout:g} s"))

    def _leave(self, reason: Failure) -> None:
        """The peer is gone as far as calls go: fail ours, drop its own. Happens once."""
        if self._peer_left:
            return
        self._peer_left = True
        why = self._why or reason.getErrorMessage() or repr(reason.value)
        self.closed = closed = ChannelClosed(
            f"the link to {self.name or 'the peer'} has ended: {why}", reason=reason
        )
        calls, self._calls = self._calls, {}
        served, self._served = self._served, set()
        self._keep_serving = set()
        self.peer._gone()
        for call in calls.values():
            call.deferred.errback(
                ChannelClosed(f"{call.method} has no answer: {closed.cause}", reason=reason)
            )
        # A copy: each takes itself out of the set.
        for deferred in list(served):
            deferred.cancel()

    def _lose(self) -> None:
        transport = cast(Any, self.transport)
        # First: a transport in memory is closed when loseConnection returns.
        if self._close_timer is None:
            self._close_timer = self._clock.callLater(self.limits.close_timeout, self._close_late)
        transport.unregisterProducer()
        transport.loseConnection()

    def _close_late(self) -> None:
        self._close_timer = None
        transport = cast(Any, self.transport)
        abort = getattr(transport, "abortConnection", None)
        if abort is not None:
            abort()


def _failed(error: Exception | Failure) -> Deferred[Any]:
    deferred: Deferred[Any] = Deferred()
    deferred.errback(error)
    return deferred


def _describe(address: IAddress | Any, peer: Peer) -> str:
    if peer.credentials is not None:
        return f"pid {peer.credentials.pid} uid {peer.credentials.uid}"
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    return f"{host}:{port}" if host is not None else str(address)
