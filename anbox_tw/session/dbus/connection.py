"""One connection to a message bus.

Messages, their marshalling and the authentication are txdbus's. Its own client is not used: it reads the messages of one
segment by recursion (a burst of some hundred ends the connection), keeps file descriptors that others send it, answers
calls that want no answer, and leaves the greeting without an answer when the bus dies before it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from txdbus import authentication, message
from txdbus.protocol import BasicDBusProtocol
from zope.interface import implementer

from anbox_tw.errors import PeerError, SessionError, TimedOut

__all__ = ["BusCallFailed", "BusConnection", "Struct"]

CALL_TIMEOUT_S = 25.0
"""As libdbus waits for an answer."""

MAX_MESSAGE_BYTES = 1 << 20
"""Of what others send us; the largest that makes sense is a call with some kB. Bigger ones are read past."""

MAX_WIRE_BYTES = 1 << 27
"""The specification's own limit: a peer that says more is none."""

MAX_UNSENT_BYTES = 8 << 20
"""Of what the bus does not take from us; then the connection is ended, and made anew."""

NO_REPLY_EXPECTED = 0x1
"""Flag of a call, in the third byte of a message."""


class BusCallFailed(SessionError):
    """The bus, or who was called, answered with an error; ``code`` is its D-Bus name."""


class Struct(tuple[Any, ...]):
    """A structure in a variant, whose fields have the types that ``signature`` says."""

    dbusSignature: str

    @classmethod
    def of(cls, signature: str, values: Any) -> Struct:
        """Make one; the signature is in parentheses."""
        made = cls(values)
        made.dbusSignature = signature
        return made


class _Authenticator(authentication.ClientAuthenticator):  # type: ignore[misc]  # txdbus has no types
    """Without file descriptors: nobody has reason to send us one, and each would have to be closed."""

    preference = [b"EXTERNAL"]

    def _usesUnixSocketTransport(self, protocol: Any) -> bool:
        return False


@implementer(IPushProducer)
class BusConnection(BasicDBusProtocol):  # type: ignore[misc]  # txdbus has no types
    """A client of a bus.

    Args:
        clock: for the timeouts.
        on_call: gets each method call to us, and whether an answer is wanted.
        on_signal: gets each signal that the bus sends us.

    Attributes:
        ready: fires with our unique name once the bus has greeted us, or fails.
        name: our unique name.
    """

    authenticator = _Authenticator
    _log = Logger()

    _buffer = b""

    def __init__(
        self,
        clock: IReactorTime,
        on_call: Callable[[Any, bool], object],
        on_signal: Callable[[Any], object] = lambda signal: None,
    ) -> None:
        self._clock = clock
        self._on_call = on_call
        self._on_signal = on_signal
        self._received = bytearray()
        self._skip = 0
        self._pending: dict[int, Deferred[Any]] = {}
        self._lost: list[Deferred[None]] = []
        self._closed: Failure | None = None
        self._gone = False
        self._paused = False
        self._unsent = 0
        self.ready: Deferred[str] = Deferred()
        self.name = ""

    # -- Twisted's side --

    def connectionMade(self) -> None:
        """Begin the authentication."""
        self.transport.registerProducer(self, True)
        super().connectionMade()

    def pauseProducing(self) -> None:
        """The transport's buffer is full: from now on what we send is counted."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The bus has read all."""
        self._paused = False
        self._unsent = 0

    def stopProducing(self) -> None:
        """The connection is gone; ``connectionLost`` does the rest."""

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, cut at any place."""
        if not self._authenticated:
            super().dataReceived(data)
            # What came behind the authentication was given to us by the line above.
            return
        self._received += data
        while self._next_message():
            pass

    def _next_message(self) -> bool:
        buffer = self._received
        if self._skip:
            passed = min(self._skip, len(buffer))
            del buffer[:passed]
            self._skip -= passed
        if len(buffer) < self.MSG_HDR_LEN or self._skip:
            return False
        endian = "<" if buffer[0] == ord("l") else ">"
        (body,) = struct.unpack_from(endian + "I", buffer, 4)
        (fields,) = struct.unpack_from(endian + "I", buffer, 12)
        size = self.MSG_HDR_LEN + (fields + 7) // 8 * 8 + body
        if size > MAX_WIRE_BYTES:
            self._end(PeerError(f"the bus sent a message of {size} bytes"))
            return False
        if size > MAX_MESSAGE_BYTES:
            self._log.warn("A D-Bus message of {size} bytes is left out", size=size)
            self._skip = size
            return True
        if len(buffer) < size:
            return False
        raw = bytes(buffer[:size])
        del buffer[:size]
        try:
            self._message(message.parseMessage(raw, []), raw[2])
        except Exception:
            # The bus checks what it passes on: a message that txdbus cannot read is a kind it does not know.
            self._log.failure("A D-Bus message is left out")
        return self._closed is None

    def _message(self, received: Any, flags: int) -> None:
        kind = received._messageType
        if kind == 1:
            self._on_call(received, not flags & NO_REPLY_EXPECTED)
        elif kind == 4:
            self._on_signal(received)
        else:
            waiting = self._pending.pop(received.reply_serial, None)
            if waiting is None:
                return
            if kind == 2:
                waiting.callback(received)
            else:
                said = received.body[0] if received.body and isinstance(received.body[0], str) else ""
                waiting.errback(BusCallFailed(said or received.error_name, code=received.error_name))

    def connectionAuthenticated(self) -> None:
        """Greet the bus."""

        def greeted(answer: Any) -> str:
            self.name = answer.body[0]
            return self.name

        hello = self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        hello.addCallback(greeted).addBoth(self._greeted)
        # Bytes behind the last line of the authentication are messages already.
        rest: bytes = self._buffer
        self._buffer = b""
        if rest:
            self.dataReceived(rest)

    def _greeted(self, result: Any) -> None:
        if not self.ready.called:
            self.ready.callback(result)

    def connectionLost(self, reason: Failure) -> None:
        """Fail everything that waits."""
        self._gone = True
        self._closed = self._closed or reason
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            waiting.errback(self._closed)
        if not self.ready.called:
            self.ready.errback(self._closed)
        lost, self._lost = self._lost, []
        for deferred in lost:
            deferred.callback(None)

    # -- what we send --

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> Deferred[Any]:
        """Call a method; fires with the answer's message, fails with `BusCallFailed`, `TimedOut` or the loss."""
        if self._closed is not None:
            return fail(self._closed)
        made = message.MethodCallMessage(
            path,
            member,
            interface=interface,
            destination=destination,
            signature=signature or None,
            body=list(body),
        )

        def forget(_: object) -> None:
            self._pending.pop(made.serial, None)

        waiting: Deferred[Any] = Deferred(forget)
        self._pending[made.serial] = waiting
        self.send(made)

        def too_late(result: Any, seconds: float) -> Any:
            return Failure(TimedOut(f"{interface}.{member} had no answer within {seconds:g} s"))

        return waiting.addTimeout(CALL_TIMEOUT_S, self._clock, too_late)

    def reply(self, call: Any, signature: str = "", *body: Any) -> None:
        """Answer a method call."""
        self.send(
            message.MethodReturnMessage(
                call.serial, destination=call.sender, signature=signature or None, body=list(body)
            )
        )

    def reply_error(self, call: Any, name: str, text: str) -> None:
        """Answer a method call with an error."""
        self.send(
            message.ErrorMessage(
                name, call.serial, destination=call.sender, signature="s", body=[text.replace("\0", "")]
            )
        )

    def signal(self, path: str, interface: str, member: str, signature: str, *body: Any) -> None:
        """Send a signal to all who listen."""
        self.send(message.SignalMessage(path, member, interface, signature=signature, body=list(body)))

    def send(self, made: Any) -> None:
        """Send a message, unless the connection has ended."""
        if self._closed is not None or self.transport is None:
            return
        if self._paused:
            self._unsent += len(made.rawMessage)
            if self._unsent > MAX_UNSENT_BYTES:
                self._end(PeerError("the bus does not read what it is sent"))
                return
        self.transport.write(made.rawMessage)

    def _end(self, why: Exception) -> None:
        self._closed = self._closed or Failure(why)
        self.transport.abortConnection()

    # -- its end --

    def when_lost(self) -> Deferred[None]:
        """A Deferred of the caller's own: fires when the connection has ended."""
        deferred: Deferred[None] = Deferred(lambda d: self._lost.remove(d) if d in self._lost else None)
        if self._gone or self.transport is None:
            deferred.callback(None)
        else:
            self._lost.append(deferred)
        return deferred

    def close(self) -> None:
        """Flush and end the connection."""
        if self.transport is not None and not self._gone:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """End the connection at once."""
        if self.transport is not None and not self._gone:
            self.transport.abortConnection()
