"""``NativeDaemonConnector``: the framework's client of netd, and of any libsysutils daemon.

::

    connector = NativeDaemonConnector(reactor, "/dev/socket/netd", on_event=print)
    connector.startService()
    await connector.when_connected()
    flags = (await connector.execute("interface", "getcfg", "eth0")).text
    names = [event.text for event in await connector.execute_for_list("interface", "list")]

It keeps the connection: when the daemon goes away it comes back by itself (AOSP
``frameworks/base/services/core/java/com/android/server/NativeDaemonConnector.java``: 5 s after an error, at
once after an orderly end). Sequence numbers count on over reconnects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import NotRunning, TimedOut
from anbox_tw.netd._framing import Message, MessageDecoder, MessageError, encode_command
from anbox_tw.netd.errors import DaemonFailed, RequestRefused

__all__ = ["DEFAULT_TIMEOUT_S", "NativeDaemonConnector", "abstract_or_path"]

# NativeDaemonConnector.DEFAULT_TIMEOUT: for each response, so every 1xx starts it anew
DEFAULT_TIMEOUT_S: Final = 60.0
# NativeDaemonConnector.WARN_EXECUTE_DELAY_MS
SLOW_COMMAND_S: Final = 0.5
RECONNECT_DELAY_S: Final = 5.0
# a daemon that closes orderly again and again must not make us spin; the original would
QUICK_RECONNECT_S: Final = 0.1
CONNECT_TIMEOUT_S: Final = 10.0
# replies to one command; `interface list` and `bandwidth gettetherstats` are the long ones
MAX_REPLIES: Final = 10_000
# commands that wait for their replies (the original drops the oldest beyond 10; we refuse the newest)
MAX_PENDING: Final = 256


def abstract_or_path(name: str) -> str:
    """The address of a daemon's socket: ``__test__...`` is an abstract name, as on debuggable builds."""
    return "\0" + name if name.startswith("__test__") else name


class _Pending:
    """A command that waits for replies."""

    def __init__(self, words: list[str], timeout: float) -> None:
        self.words = words
        self.timeout = timeout
        self.replies: list[Message] = []
        self.done: Deferred[list[Message]] = Deferred()
        self.timer: Any = None
        self.began = 0.0


class _Link(Protocol):
    """One connection to the daemon."""

    def __init__(self, owner: NativeDaemonConnector) -> None:
        self._owner = owner
        self._decoder = MessageDecoder()

    def connectionMade(self) -> None:
        self._owner._link_up(self)

    def dataReceived(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._owner._message(message)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._owner._link_down(self, reason)


class NativeDaemonConnector(Service):
    """A client that stays connected to one daemon.

    Attributes:
        path: of the daemon's socket.
        connected: whether commands can be sent now.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        *,
        on_event: Callable[[Message], object] | None = None,
        on_connected: Callable[[], object] | None = None,
        reconnect_delay: float = RECONNECT_DELAY_S,
    ) -> None:
        """Make a connector; ``startService`` connects it.

        Args:
            reactor: connects and gives the time.
            path: of the daemon's socket; one that starts with a NUL is an abstract name.
            on_event: called with each unsolicited (6xx) message.
            on_connected: called after each connect, where the framework replays its state.
            reconnect_delay: seconds to wait after a connection failed.
        """
        self._reactor = reactor
        self.path = path
        self._on_event = on_event
        self._on_connected = on_connected
        self._delay = reconnect_delay
        self._sequence = 0
        self._pending: dict[int, _Pending] = {}
        self._link: _Link | None = None
        self._connecting: Deferred[Any] | None = None
        self._timer: Any = None
        self._waiters: list[Deferred[None]] = []
        self._closed: list[Deferred[None]] = []
        self._last_error = ""

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._link is not None

    # -- life

    def startService(self) -> None:
        """Connect, and keep doing so."""
        super().startService()
        self._connect()

    def stopService(self) -> Deferred[None]:
        """Disconnect; what waits fails. Fires when the connection is really closed."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail_pending("the connector was stopped")
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.errback(NotRunning("the connector was stopped"))
        if self._link is None:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._closed.append(done)
        assert self._link.transport is not None
        self._link.transport.loseConnection()
        return done

    def when_connected(self, timeout: float = CONNECT_TIMEOUT_S) -> Deferred[None]:
        """Fires when there is a connection.

        Raises:
            TimedOut: there was none within ``timeout`` seconds; says what the last try failed with.
        """
        if self._link is not None:
            return succeed(None)
        waiter: Deferred[None] = Deferred(lambda d: self._waiters.remove(d) if d in self._waiters else None)
        self._waiters.append(waiter)

        def late(_result: object, _timeout: float) -> None:
            raise TimedOut(
                f"no connection to {self.path!r} within {timeout:g} s"
                + (f": {self._last_error}" if self._last_error else ""),
                "is the daemon running?",
            )

        return waiter.addTimeout(timeout, self._reactor, onTimeoutCancel=late)

    def _connect(self) -> None:
        self._timer = None
        endpoint = UNIXClientEndpoint(self._reactor, self.path, timeout=int(CONNECT_TIMEOUT_S))
        factory = Factory.forProtocol(lambda: _Link(self))
        factory.noisy = False
        self._connecting = endpoint.connect(factory)
        self._connecting.addCallbacks(self._connect_done, self._connect_failed)

    def _connect_done(self, _link: object) -> None:
        self._connecting = None

    def _connect_failed(self, failure: Failure) -> None:
        self._connecting = None
        self._last_error = failure.getErrorMessage()
        if self.running and not failure.check(CancelledError):
            self._log.debug("{path}: {error}", path=self.path, error=self._last_error)
            self._retry(self._delay)

    def _retry(self, delay: float) -> None:
        self._timer = self._reactor.callLater(delay, self._connect)

    def _link_up(self, link: _Link) -> None:
        self._link = link
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)
        if self._on_connected is not None:
            try:
                self._on_connected()
            except Exception:
                self._log.failure("on_connected failed")

    def _link_down(self, link: _Link, reason: Failure) -> None:
        self._link = None
        self._last_error = reason.getErrorMessage()
        self._fail_pending(f"the connection ended: {self._last_error}")
        closed, self._closed = self._closed, []
        for done in closed:
            done.callback(None)
        if self.running:
            self._retry(min(QUICK_RECONNECT_S, self._delay) if reason.check(ConnectionDone) else self._delay)

    def _fail_pending(self, why: str) -> None:
        for sequence in list(self._pending):
            self._finish(sequence, NotRunning(f"no reply: {why}", "is the daemon running?"))

    # -- commands

    def execute(self, *words: str, timeout: float = DEFAULT_TIMEOUT_S) -> Deferred[Message]:
        """Run a command that has exactly one reply.

        Raises:
            ValueError: the words cannot be a command.
            DaemonFailed: a 4xx reply, no reply, or more than one.
            RequestRefused: a 5xx reply.
            NotRunning: there is no connection, or it ended.
            TimedOut: the daemon did not answer.
        """

        def only(replies: list[Message]) -> Message:
            if len(replies) != 1:
                raise DaemonFailed(f"one reply was expected, and {len(replies)} came")
            return replies[0]

        return self.execute_for_list(*words, timeout=timeout).addCallback(only)

    def execute_for_list(self, *words: str, timeout: float = DEFAULT_TIMEOUT_S) -> Deferred[list[Message]]:
        """Run a command and give all its replies, the last one included. Errors as of `execute`.

        Args:
            words: the command's name and its arguments; quoting is done here.
            timeout: seconds for each reply.
        """
        # as of the original, a word may be marked as not for the logs; that is for whoever logs
        link = self._link
        if link is None:
            raise NotRunning(f"not connected to {self.path!r}", "is the daemon running?")
        if len(self._pending) >= MAX_PENDING:
            raise DaemonFailed(f"{MAX_PENDING} commands wait for a reply already")
        data = encode_command(self._sequence + 1, words)
        self._sequence += 1
        sequence = self._sequence
        pending = _Pending(list(words), timeout)
        pending.done = Deferred(lambda _d: (self._forget(sequence), None)[1])
        pending.began = self._reactor.seconds()
        self._pending[sequence] = pending
        self._arm(sequence)
        assert link.transport is not None
        link.transport.write(data)
        return pending.done

    def _arm(self, sequence: int) -> None:
        pending = self._pending[sequence]
        if pending.timer is not None:
            pending.timer.cancel()
        pending.timer = self._reactor.callLater(pending.timeout, self._late, sequence)

    def _late(self, sequence: int) -> None:
        pending = self._pending[sequence]
        pending.timer = None
        self._finish(
            sequence,
            TimedOut(f"no reply to '{pending.words[0]}' (number {sequence}) within {pending.timeout:g} s"),
        )

    def _forget(self, sequence: int) -> _Pending | None:
        pending = self._pending.pop(sequence, None)
        if pending is not None and pending.timer is not None:
            pending.timer.cancel()
            pending.timer = None
        return pending

    def _finish(self, sequence: int, result: list[Message] | Exception) -> None:
        pending = self._forget(sequence)
        if pending is None:
            return
        took = self._reactor.seconds() - pending.began
        if took > SLOW_COMMAND_S:
            self._log.info("{command} took {took:.1f} s", command=pending.words[0], took=took)
        if isinstance(result, Exception):
            pending.done.errback(result)
        else:
            pending.done.callback(result)

    def _message(self, message: Message | MessageError) -> None:
        if isinstance(message, MessageError):
            # as the original: logged, and the connection lives on
            self._log.warn("{path}: {error}", path=self.path, error=message)
            return
        if message.is_event:
            if self._on_event is not None:
                try:
                    self._on_event(message)
                except Exception:
                    self._log.failure(
                        "an event handler failed on {code} {text}", code=message.code, text=message.text
                    )
            return
        sequence = message.sequence
        pending = self._pending.get(sequence) if sequence is not None else None
        if pending is None or sequence is None:
            self._log.debug("{path}: a reply nobody waits for: {message}", path=self.path, message=message)
            return
        pending.replies.append(message)
        said = f"'{pending.words[0]}': {message.code} {message.text}"
        if message.is_continue:
            if len(pending.replies) >= MAX_REPLIES:
                self._finish(
                    sequence, DaemonFailed(f"more than {MAX_REPLIES} replies to '{pending.words[0]}'")
                )
            else:
                self._arm(sequence)
        elif message.is_client_error:
            self._finish(sequence, RequestRefused(said, reply_code=message.code))
        elif message.is_server_error:
            self._finish(sequence, DaemonFailed(said, reply_code=message.code))
        else:
            self._finish(sequence, pending.replies)
