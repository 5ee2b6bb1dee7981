"""``FrameworkListener`` and ``SocketClient`` of libsysutils, for any daemon that speaks their protocol.

A daemon makes a `FrameworkListener`, registers its commands, and hands it to a listener of
``anbox_tw.network`` as the connection creator::

    listener = FrameworkListener("netd", clock=reactor)
    listener.register(InterfaceCommand(...))
    service = UnixListener(reactor, "/dev/socket/netd", listener, mode=0o660)
    listener.broadcast(600, "Iface added veth0")

Where the original has one thread with blocking writes, this is one reactor: a client that does not read
cannot hold up a broadcast, and is dropped when it is `MAX_UNSENT_BYTES` behind.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import NetworkError
from anbox_tw.interfaces import IConnectionCreator, IFrameworkCommand, IMessageSender
from anbox_tw.netd._framing import (
    Command,
    CommandRefused,
    CommandSplitter,
    encode_binary,
    encode_code,
    encode_event,
    encode_reply,
    parse_command,
)
from anbox_tw.netd.codes import ResponseCode
from anbox_tw.netd.errors import CommandFailed, errno_of
from anbox_tw.network.credentials import Credentials, peer_credentials

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IReactorTime

__all__ = ["FrameworkCommand", "FrameworkListener", "Request", "SocketClient"]

# A client that is this far behind gets no more: 10,000 link events are about 400 KiB, and one that misses those
# must resynchronise anyway. The original blocks the whole daemon instead.
MAX_UNSENT_BYTES: Final = 1024 * 1024
# How many commands a client may send ahead of their replies before we stop reading from it; netd's own client
# has at most 10 pending (NetworkManagementService passes 10 to NativeDaemonConnector).
MAX_PENDING_COMMANDS: Final = 64


class Request:
    """One command of one client, and where its replies go.

    Attributes:
        client: who asks.
        sequence: the number that the replies carry; None on a listener without numbers.
        arguments: the tokens, the command's name first.
    """

    def __init__(self, client: SocketClient, sequence: int | None, arguments: list[str]) -> None:
        self.client = client
        self.sequence = sequence
        self.arguments = arguments

    @property
    def credentials(self) -> Credentials:
        """The client's pid, uid and gid as the kernel recorded them; all -1 when they could not be read."""
        return self.client.credentials

    def reply(self, code: int, text: str, errno: int | None = None) -> None:
        """Send a text reply with the command's number; with an errno its text follows in parentheses."""
        self.client.write(encode_reply(int(code), self.sequence, text, errno))

    def send_code(self, code: int) -> None:
        """Send a bare code (four bytes)."""
        self.client.write(encode_code(int(code)))

    def send_binary(self, code: int, payload: bytes) -> None:
        """Send a binary message: code, length, payload."""
        self.client.write(encode_binary(int(code), payload))

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are: a reply that the command has encoded."""
        self.client.write(data)


@implementer(IFrameworkCommand)
class FrameworkCommand:
    """Base of commands: a name, a handler, and the lock it runs under.

    Attributes:
        name: the first word of a request.
        lock_name: commands with the same one run one at a time over all clients; empty for no lock.
    """

    name = ""
    # netd runs every command under one lock, except firewall (and in the original bandwidth), which has its own
    # (system/netd/server/LockingFrameworkCommand.h)
    lock_name = "netd"

    def __init__(
        self, name: str = "", handler: Callable[[Request], Any] | None = None, lock_name: str | None = None
    ) -> None:
        self.name = name or self.name
        self._handler = handler
        if lock_name is not None:
            self.lock_name = lock_name

    def run(self, request: Request) -> Any:
        """Call the handler; a subclass without one overrides this."""
        if self._handler is None:
            raise NotImplementedError("a command needs a handler, or its own run()")
        return self._handler(request)


@implementer(IMessageSender, IPushProducer, IHalfCloseableProtocol)
class SocketClient(Protocol):
    """One client of a `FrameworkListener`.

    Attributes:
        credentials: of the peer.
        sequence: the last sequence number that was understood, 0 at first: what an answer to a command
            without one carries.
    """

    _log = Logger()
    transport: Any

    def __init__(self, listener: FrameworkListener) -> None:
        self._listener = listener
        self._splitter = CommandSplitter()
        self._commands: deque[bytes | CommandRefused] = deque()
        self._running: Deferred[Any] | None = None
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._paused = False
        self._reading = True
        self._lost = False
        self._close_when_idle = False
        self._input_ended = False
        self._active = 0
        self.sequence = 0
        self.credentials = Credentials(-1, -1, -1)

    def __repr__(self) -> str:
        return (
            f"<SocketClient of {self._listener.name}, uid {self.credentials.uid}, pid {self.credentials.pid}>"
        )

    def connectionMade(self) -> None:
        try:
            self.credentials = peer_credentials(self.transport)
        except NetworkError as error:
            # as the original: the client is served all the same, as nobody in particular
            self._log.debug("{client}: no credentials: {error}", client=self, error=error)
        self.transport.registerProducer(self, True)
        self._listener.client_arrived(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self._commands.clear()
        self._drop_unsent()
        self._listener.client_left(self)
        # what a client has begun is finished though the client is gone: half a change to the kernel helps nobody

    # -- what comes in

    def readConnectionLost(self) -> None:
        """The client says no more (``... | socat - UNIX:netd``): what it asked for is answered, then we close."""
        self._input_ended = True
        self._next()

    def writeConnectionLost(self) -> None:
        """The client reads no more: nobody is left to answer."""
        self.abort()

    def dataReceived(self, data: bytes) -> None:
        self._commands.extend(self._splitter.feed(data))
        self._next()

    def _next(self) -> None:
        while self._running is None and self._commands and not self._lost:
            self._begin(self._commands.popleft())
        if self._lost or self.transport is None:
            return
        if self._input_ended:
            if self._running is None and not self._active and not self._commands:
                self._finish()
            return
        wanted = len(self._commands) < MAX_PENDING_COMMANDS and not self._paused
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()
        if self._close_when_idle and self._running is None:
            self._finish()

    def _begin(self, piece: bytes | CommandRefused) -> None:
        with_sequence = self._listener.with_sequence
        try:
            if isinstance(piece, CommandRefused):
                raise piece
            command = parse_command(piece, with_sequence=with_sequence)
        except CommandRefused as refusal:
            if refusal.sequence is not None:
                self.sequence = refusal.sequence
            self._answer(refusal.text)
            return
        if command.sequence is not None:
            self.sequence = command.sequence
        self._dispatch(command)

    def _answer(self, text: str) -> None:
        sequence = self.sequence if self._listener.with_sequence else None
        self.write(encode_reply(ResponseCode.SYNTAX_ERROR, sequence, text))

    def _dispatch(self, command: Command) -> None:
        handler = self._listener.commands.get(command.arguments[0])
        if handler is None:
            self._answer("Command not recognized")
            return
        sequence = self.sequence if self._listener.with_sequence else None
        request = Request(self, sequence, command.arguments)
        running = self._listener.run(handler, request)
        # without a lock, commands of one client may overlap (dnsproxyd: one thread per request); one that is done
        # already leaves the loop in _next to go on, so that a burst does not nest
        if running.called:
            return
        self._active += 1
        if handler.lock_name:
            self._running = running
        running.addBoth(self._ended, running)

    def _ended(self, _result: object, running: Deferred[Any]) -> None:
        self._active -= 1
        if self._running is running:
            self._running = None
        self._next()

    # -- what goes out

    def write(self, data: bytes) -> None:
        """Queue bytes for the client, in one piece; ignored when it is gone.

        A client that does not read is dropped when `MAX_UNSENT_BYTES` wait for it.
        """
        if self._lost or self.transport is None:
            return
        if not self._paused:
            self.transport.write(data)
            return
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self._log.warn(
                "{client} does not read; dropped with {size} bytes unsent",
                client=self,
                size=self._unsent_bytes,
            )
            self.abort()

    send = write

    def close(self, reason: str) -> None:
        """Close when the running command has answered and all is sent; ``reason`` is logged."""
        if self._lost:
            return
        self._log.debug("{client} closes: {reason}", client=self, reason=reason)
        self._commands.clear()
        self._close_when_idle = True
        if self._running is None:
            self._finish()

    def _finish(self) -> None:
        self._close_when_idle = False
        if self.transport is not None:
            unsent = list(self._unsent)
            self._drop_unsent()
            # first, so that a transport that is full does not pause us once more, and we come here again
            self.transport.unregisterProducer()
            for data in unsent:
                self.transport.write(data)
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self._drop_unsent()
        if self.transport is not None:
            self.transport.unregisterProducer()
            abort: Any = getattr(self.transport, "abortConnection", self.transport.loseConnection)
            abort()

    def _drop_unsent(self) -> None:
        self._unsent.clear()
        self._unsent_bytes = 0

    def pauseProducing(self) -> None:
        self._paused = True
        self._next()

    def resumeProducing(self) -> None:
        self._paused = False
        while self._unsent and not self._paused and self.transport is not None:
            data = self._unsent.popleft()
            self._unsent_bytes -= len(data)
            self.transport.write(data)
        self._next()

    def stopProducing(self) -> None:
        self._drop_unsent()


def _follow(original: Deferred[Any]) -> Deferred[Any]:
    """A Deferred of one's own that fires when another does, whose result stays as it is."""
    mine: Deferred[Any] = Deferred()

    def fired(result: Any) -> Any:
        mine.callback(None)
        return result

    original.addBoth(fired)
    return mine


class FairLock:
    """A lock that is handed on in a new turn of the reactor.

    Twisted's ``DeferredLock`` runs the next waiter inside ``release``: some hundred clients that wait behind one
    slow command would nest deeper than Python allows.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._held = False
        self._waiting: deque[Deferred[None]] = deque()

    def acquire(self) -> Deferred[None]:
        """Fires when the lock is the caller's; can be cancelled."""
        if not self._held:
            self._held = True
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._cancelled)
        self._waiting.append(waiter)
        return waiter

    def _cancelled(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def release(self) -> None:
        """Give the lock back."""
        if self._waiting:
            self._clock.callLater(0, self._hand_over)
        else:
            self._held = False

    def _hand_over(self) -> None:
        if self._waiting:
            self._waiting.popleft().callback(None)
        else:
            self._held = False


@implementer(IConnectionCreator)
class FrameworkListener:
    """The server side of one of the daemon's sockets: its commands, its clients, its broadcasts.

    Attributes:
        name: of the socket, for logs.
        with_sequence: whether commands and replies carry sequence numbers.
        commands: by name.
        clients: those connected now.
    """

    _log = Logger()

    def __init__(self, name: str, *, clock: IReactorTime, with_sequence: bool = True) -> None:
        self.name = name
        self._clock = clock
        self.with_sequence = with_sequence
        self.commands: dict[str, Any] = {}
        self.clients: set[SocketClient] = set()
        self._locks: dict[str, FairLock] = {}
        self._work: set[Deferred[Any]] = set()

    def register(self, command: Any) -> None:
        """Add an `IFrameworkCommand`; a later one of the same name takes its place."""
        self.commands[IFrameworkCommand(command).name] = command

    def create_connection_for(self, address: IAddress) -> SocketClient:
        """Serve one more client."""
        return SocketClient(self)

    def client_arrived(self, client: SocketClient) -> None:
        """A client has connected; subclasses may greet it."""
        self.clients.add(client)

    def client_left(self, client: SocketClient) -> None:
        """A client is gone."""
        self.clients.discard(client)

    def broadcast(self, code: int, text: str) -> None:
        """Say something to every client, without a sequence number."""
        self.broadcast_raw(encode_event(int(code), text))

    def broadcast_raw(self, data: bytes) -> None:
        """Send bytes to every client."""
        for client in list(self.clients):
            client.write(data)

    def run(self, command: Any, request: Request) -> Deferred[None]:
        """Run a command under its lock, and answer for it when it fails.

        Returns:
            A Deferred that always fires with None; what went wrong was answered and logged.
        """
        lock = self._locks.setdefault(command.lock_name, FairLock(self._clock)) if command.lock_name else None

        async def work() -> None:
            held = False
            try:
                if lock is not None:
                    await lock.acquire()
                    held = True
                result = command.run(request)
                if inspect.isawaitable(result):
                    await result
            except CommandFailed as error:
                request.reply(error.reply_code, error.text, error.errno)
            except CancelledError:
                request.reply(ResponseCode.OPERATION_FAILED, "Operation cancelled")
            except Exception as error:
                self._log.failure(
                    "{listener}: {command} failed", listener=self.name, command=request.arguments[0]
                )
                request.reply(ResponseCode.OPERATION_FAILED, "Operation failed", errno_of(error))
            finally:
                if held and lock is not None:
                    lock.release()

        done: Deferred[None] = Deferred.fromCoroutine(work())
        if not done.called:
            self._work.add(done)

            def finished(result: Any) -> Any:
                self._work.discard(done)
                return result

            done.addBoth(finished)
        return done

    def hold(self, *lock_names: str) -> Callable[[], None]:
        """Keep the commands of some locks waiting.

        Args:
            lock_names: locks that nobody holds.

        Returns:
            What lets them go on.
        """
        locks = [self._locks.setdefault(name, FairLock(self._clock)) for name in lock_names]
        for lock in locks:
            lock.acquire()

        def let_go() -> None:
            for lock in locks:
                lock.release()

        return let_go

    def cancel_work(self) -> None:
        """Cancel the commands that still run; their clients are told."""
        for work in list(self._work):
            work.cancel()

    async def when_idle(self) -> None:
        """Wait until no command runs."""
        while self._work:
            await _follow(next(iter(self._work)))
