"""The emulator console on its port: many clients, each with a dialogue of its own.

The port is the even one below the device's adb port; :mod:`anbox_tw.qemu.adb` holds it on 127.0.0.1 and hands its connections to the
`Console`, which also listens on ::1 where the host has that.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.console._auth import AuthToken
from anbox_tw.console._lines import LineDecoder
from anbox_tw.console._session import ConsoleSession, Reply
from anbox_tw.errors import AnboxError, PermissionRefused
from anbox_tw.interfaces import IConnectionCreator, IConsoleHost, IMessageProcessor
from anbox_tw.network import IEndOfInput, SocketConnection, TcpListener

__all__ = ["Console"]

MAX_QUEUE_BYTES = 256 * 1024
"""What may wait for one client beside the transport's buffer. Commands wait while there is something, so that it is at most
the answer of one: the longest, ``event codes EV_KEY``, has 12 KiB."""

CLOSE_GRACE_S = 2.0
"""A client that does not read the last answer does not keep the session."""


class _Connection(SocketConnection):
    """A connection that is not read while a command runs, and tells when the client has read what was sent."""

    _held = False

    def hold(self) -> None:
        """Read no more for now; what is not read yet waits in the kernel, however much a client sends."""
        if not self._held:
            self._held = True
            if self.transport is not None and not self.congested:
                self.transport.pauseProducing()

    def release(self) -> None:
        """Read on."""
        if self._held:
            self._held = False
            if self.transport is not None and not self.congested:
                self.transport.resumeProducing()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if self.transport is None or self.congested:
            return
        if self._held:
            self.transport.pauseProducing()
        if isinstance(self.processor, _Client):
            self.processor.next()


@implementer(IMessageProcessor, IEndOfInput)
class _Client:
    """Feeds lines to the dialogue, one at a time."""

    _log = Logger()

    def __init__(self, sender: _Connection, session: ConsoleSession, host: IConsoleHost) -> None:
        self._sender = sender
        self._session = session
        self._host = host
        self._decoder = LineDecoder()
        self._lines: deque[bytes] = deque()
        self._running: Deferred[None] | None = None
        self._ended = False
        self._closed = False
        self._answer(session.greet())

    def process_data(self, data: bytes) -> None:
        """See `IMessageProcessor`."""
        if self._closed:
            return
        self._lines += self._decoder.receive_data(data)
        self.next()

    def end_of_input(self) -> None:
        """Finish what was asked, then close: ``nc`` ends its side when its input ends."""
        self._ended = True
        self.next()

    def connection_lost(self, reason: Failure) -> None:
        """See `IMessageProcessor`."""
        self._closed = True
        self._lines.clear()
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def next(self) -> None:
        """Run what waits, unless a command runs or the client has answers to read first."""
        if self._running is not None:
            return
        while self._lines and not self._closed:
            if self._sender.congested:
                return
            running = ensureDeferred(self._run(self._lines.popleft()))
            if not running.called:
                self._running = running
                self._sender.hold()
                running.addCallbacks(self._went_on, self._failed)
                return
            running.addErrback(self._failed)
        if self._ended and not self._closed:
            self._close("the client has ended")

    async def _run(self, line: bytes) -> None:
        self._answer(await self._session.receive_line(line))

    def _went_on(self, _: None) -> None:
        self._running = None
        self._sender.release()
        self.next()

    def _failed(self, failure: Failure) -> None:
        self._running = None
        if not failure.check(CancelledError):
            self._log.failure("A console client failed", failure)
            self._close("an error")

    def _answer(self, reply: Reply) -> None:
        if self._closed:
            return
        if reply.lines:
            self._sender.send("".join(f"{line}\r\n" for line in reply.lines).encode("utf-8", "replace"))
        if reply.close:
            self._close(reply.close)
        if reply.kill:
            self._host.stop("killed by the console")

    def _close(self, reason: str) -> None:
        self._closed = True
        self._lines.clear()
        self._sender.close(reason)


@implementer(IConnectionCreator)
class Console(Service):
    """The console of one session.

    Args:
        reactor: listens on ::1.
        host: what it is the console of.
        token_path: the file with the secret; in the user's home by default.

    Attributes:
        token: the secret.
    """

    _log = Logger()

    def __init__(self, reactor: Any, host: IConsoleHost, token_path: str = "") -> None:
        self._reactor = reactor
        self._host = IConsoleHost(host)
        self.token = AuthToken(token_path)
        self._listener: TcpListener | None = None

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """Serve any client; who may do what is the token's affair."""
        return _Connection(
            self._make_client,
            "console",
            max_queue=MAX_QUEUE_BYTES,
            close_grace=CLOSE_GRACE_S,
        )

    def _make_client(self, sender: SocketConnection) -> _Client:
        assert isinstance(sender, _Connection)
        return _Client(sender, ConsoleSession(self._host, self.token), self._host)

    def ensure_token(self) -> None:
        """See that the token is there, so that clients can read it before they connect; logs why it cannot be."""
        try:
            self.token.load()
        except PermissionRefused as error:
            # The emulator's words, on which people search.
            self._log.error(
                "Unable to access '{path}': emulator console will not work. {error}",
                path=self.token.path,
                error=error,
            )

    def listen6(self, port: int) -> None:
        """Listen on ::1 too, at ``port`` and no longer at another; without IPv6, or if it is taken, 127.0.0.1 has to do."""
        former, self._listener = self._listener, None
        if former is not None:
            former.stopService().addErrback(lambda failure: self._log.failure("Closing ::1 failed", failure))
        listener = TcpListener(
            self._reactor, port, self, interface="::1", name="console6", close_grace=CLOSE_GRACE_S
        )
        try:
            listener.startService()
        except AnboxError as error:
            self._log.info("The console does not listen on ::1: {error}", error=error)
            return
        self._listener = listener

    def stopService(self) -> Deferred[None]:
        """Close ::1 and its clients; those of 127.0.0.1 are closed with that port."""
        super().stopService()
        listener, self._listener = self._listener, None
        return listener.stopService() if listener is not None else succeed(None)
