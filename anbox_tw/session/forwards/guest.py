"""Sockets inside the container, from the session's side: the client of ``protocols/guest-sockets``."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.container.guest_sockets._wire import (
    REPLY_BYTES,
    Kind,
    Replies,
    encode_request,
    has_descriptor,
)
from anbox_tw.errors import PeerError
from anbox_tw.network import close_fds, receive_fds
from anbox_tw.session.forwards.errors import ForwardError
from anbox_tw.session.forwards.specs import Target

__all__ = ["GuestSockets"]

ANSWER_TIMEOUT_S = 10.0
"""The helper never waits; only a guest's own file system can hold it up."""

CONNECT_TIMEOUT_S = 20.0
"""For a target that is not on the guest's loopback, and for one whose backlog is full."""

BACKLOG_RETRY_S = 0.02
"""A UNIX socket with a full backlog refuses for as long as its server accepts nothing."""

MAX_WAITING = 1024
"""Requests without an answer; the helper takes some thousands a second."""

READ_BYTES = 128 * REPLY_BYTES

_REFUSALS = {
    errno.EACCES: "the container belongs to another user",
    errno.ENOTCONN: "the container manager has no way into the container",
}

Done = Callable[[int, "socket.socket | None"], object]
"""Called with 0 and a socket, or an errno and None."""


@implementer(IReadDescriptor)
class _Link:
    """A connection to the helper."""

    _log = Logger()

    def __init__(self, reactor: Any, path: str, instance: str, lost: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._lost = lost
        self._replies = Replies()
        self._numbers = count(1)
        self._descriptors: list[int] = []
        self._waiting: dict[int, tuple[float, int, Done]] = {}
        self._timer: IDelayedCall | None = None
        self._greeted = False
        self.open = True
        self.refused = ""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
            self._send(encode_request(0, Kind.HELLO, instance.encode()))
        except OSError:
            self._socket.close()
            raise
        # Until the manager has answered the hello all that comes is for it, and it reads no more than that.
        self._queue: list[bytes] = []
        self._wait_for(0, Kind.HELLO, self._hello)
        reactor.addReader(self)

    def ask(self, kind: int, text: bytes, done: Done) -> None:
        """Ask for one socket."""
        if len(self._waiting) >= MAX_WAITING:
            done(errno.EAGAIN, None)
            return
        number = next(self._numbers) & 0xFFFF_FFFF
        self._wait_for(number, kind, done)
        data = encode_request(number, kind, text)
        if self._greeted:
            try:
                self._send(data)
            except OSError as error:
                self.close(f"the helper takes no more: {error.strerror}")
        else:
            self._queue.append(data)

    def close(self, why: str) -> None:
        """End it; whoever waits is told."""
        if not self.open:
            return
        self.open = False
        self._reactor.removeReader(self)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._socket.close()
        close_fds(self._descriptors)
        waiting, self._waiting = self._waiting, {}
        self._lost(why)
        for _, _, done in waiting.values():
            done(errno.ENOTCONN, None)

    def _send(self, data: bytes) -> None:
        # A request is some twenty bytes of a socket buffer of 200 KiB: it goes as a whole, or the helper hangs.
        if self._socket.send(data) != len(data):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _wait_for(self, number: int, kind: int, done: Done) -> None:
        self._waiting[number] = (self._reactor.seconds() + ANSWER_TIMEOUT_S, kind, done)
        if self._timer is None:
            self._timer = self._reactor.callLater(ANSWER_TIMEOUT_S, self._look_at_time)

    def _look_at_time(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        first = next(iter(self._waiting.values()))[0]
        left = first - self._reactor.seconds()
        if left <= 0:
            self.close(f"the helper has not answered for {ANSWER_TIMEOUT_S:g} s")
        else:
            self._timer = self._reactor.callLater(left, self._look_at_time)

    def _hello(self, number: int, _: object) -> None:
        if number:
            self.refused = _REFUSALS.get(number, os.strerror(number))
            self.close(self.refused)
            return
        self._greeted = True
        queue, self._queue = self._queue, []
        try:
            self._send(b"".join(queue))
        except OSError as error:
            self.close(f"the helper takes no more: {error.strerror}")

    # -- for the reactor --

    def fileno(self) -> int:
        """See ``IReadDescriptor``."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See ``IReadDescriptor``."""
        return "guest sockets"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
        self.close("the reactor stops")

    def doRead(self) -> None:
        """Answers."""
        try:
            data, descriptors = receive_fds(self._socket, READ_BYTES)
        except BlockingIOError:
            return
        except (OSError, PeerError) as error:
            self.close(str(error))
            return
        self._descriptors += descriptors
        if not data:
            self.close("the helper has ended")
            return
        for reply in self._replies.receive_data(data):
            entry = self._waiting.pop(reply.id, None)
            if entry is None:
                self.close("the helper answers what nobody asked")
                return
            _, kind, done = entry
            if kind == Kind.HELLO or not has_descriptor(reply.errno):
                done(reply.errno, None)
            elif not self._descriptors:
                self.close("the helper sends no socket with its answer")
                return
            else:
                done(reply.errno, _socket_of(self._descriptors.pop(0), kind))
            if not self.open:
                return


def _socket_of(descriptor: int, kind: int) -> socket.socket:
    """The socket object; what it is is known, and asking the kernel costs three calls."""
    if kind in (Kind.ABSTRACT, Kind.PATH):
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    return socket.socket(fileno=descriptor)


@implementer(IWriteDescriptor)
class _Connecting:
    """A socket whose connection is under way."""

    def __init__(
        self, reactor: Any, sock: socket.socket, done: Done, over: Callable[[_Connecting], object]
    ) -> None:
        self._reactor = reactor
        self._socket = sock
        self._done = done
        self._on_over = over
        self._timer = reactor.callLater(CONNECT_TIMEOUT_S, self.end, errno.ETIMEDOUT)
        reactor.addWriter(self)

    def fileno(self) -> int:
        """For the reactor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For the reactor."""
        return "guest sockets"

    def doWrite(self) -> None:
        """It is decided."""
        self.end(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def connectionLost(self, reason: Failure) -> None:
        """The reactor says that it failed, or stops."""
        self.end(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNABORTED)

    def end(self, number: int) -> None:
        """Tell how it went; 0: it is connected."""
        if self._done is _over:
            return
        done, self._done = self._done, _over
        self._on_over(self)
        if self._timer.active():
            self._timer.cancel()
        self._reactor.removeWriter(self)
        if number:
            self._socket.close()
            done(number, None)
        else:
            done(0, self._socket)


def _over(number: int, sock: socket.socket | None) -> None:
    """The `Done` of what is done."""


class GuestSockets:
    """Opens sockets inside the container of one instance.

    Args:
        reactor: an fd reactor.
        instance: its name.

    Attributes:
        problem: why there is no way into the container, or an empty string.
    """

    _log = Logger()

    def __init__(self, reactor: Any, instance: str) -> None:
        self._reactor = reactor
        self._instance = instance
        self._path = ""
        self._link: _Link | None = None
        self._on_lost: list[Callable[[], object]] = []
        self._connecting: set[_Connecting] = set()
        self._retries: dict[IDelayedCall, Callable[[], None]] = {}
        self.problem = "no container runs"

    @property
    def available(self) -> bool:
        """Whether the manager has told of a way into the container that runs."""
        return bool(self._path)

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called each time the container, and all sockets in it, are gone."""
        self._on_lost.append(callback)

    def container_runs(self, path: str) -> None:
        """A container runs.

        Args:
            path: of the manager's socket for this; empty: it has none.
        """
        if path != self._path:
            self._drop("another container runs")
        self._path = path
        self.problem = "" if path else "the container manager offers no way into the container"

    def container_gone(self) -> None:
        """There is no container now."""
        self._path = ""
        self.problem = "no container runs"
        self._drop(self.problem)

    def ask(self, kind: int, text: bytes, done: Done) -> None:
        """Open one socket; see `anbox_tw.container.guest_sockets._wire.Kind`.

        Args:
            kind: of socket.
            text: its address.
            done: called once, perhaps before this returns. The socket is non-blocking and perhaps not connected yet:
                then the number is ``EINPROGRESS``.
        """
        if self._link is None:
            if not self._path:
                done(errno.ENOTCONN, None)
                return
            try:
                self._link = _Link(self._reactor, self._path, self._instance, self._link_lost)
            except OSError as error:
                self.problem = f"{self._path}: {error.strerror}"
                done(errno.ENOTCONN, None)
                return
        self._link.ask(kind, text, done)

    def connect(self, target: Target, done: Done) -> None:
        """Connect to a target, waiting as long as it makes sense.

        Args:
            target: where to.
            done: called once, perhaps before this returns.
        """
        questions = target.questions
        until = self._reactor.seconds() + CONNECT_TIMEOUT_S
        place = 0

        def go() -> None:
            kind, text = questions[place]
            self.ask(kind, text, answered)

        def again() -> None:
            if self.available:
                go()
            else:
                done(errno.ENOTCONN, None)

        def answered(number: int, sock: socket.socket | None) -> None:
            nonlocal place
            if sock is not None and number == errno.EINPROGRESS:
                self._connecting.add(_Connecting(self._reactor, sock, answered, self._connecting.discard))
            elif number == errno.ECONNREFUSED and place + 1 < len(questions):
                place += 1
                go()
            elif number == errno.EAGAIN and self._reactor.seconds() < until:
                self._retry(again)
            else:
                done(number, sock)

        go()

    def open(self, target: Target) -> Deferred[socket.socket]:
        """As `connect`, for people who like Deferreds.

        Raises:
            ForwardError: the target was not reached.
        """
        opened: Deferred[socket.socket] = Deferred(lambda _: None)

        def done(number: int, sock: socket.socket | None) -> None:
            if opened.called:
                if sock is not None:
                    sock.close()
            elif sock is not None:
                opened.callback(sock)
            else:
                opened.errback(ForwardError(f"{target}: {self.explain(number)}"))

        self.connect(target, done)
        return opened

    def explain(self, number: int) -> str:
        """An errno of `connect` in words."""
        if number == errno.ENOTCONN and self.problem:
            return self.problem
        if number == errno.ECONNREFUSED:
            return "nobody listens there in the guest"
        if number == errno.ENOENT:
            return "the guest has no such socket"
        if number == errno.EAGAIN:
            return "the server in the guest accepts no connections"
        return os.strerror(number)

    def close(self) -> None:
        """Give the connection to the helper up."""
        self.container_gone()

    def _retry(self, again: Callable[[], None]) -> None:
        def now() -> None:
            del self._retries[timer]
            again()

        timer = self._reactor.callLater(BACKLOG_RETRY_S, now)
        self._retries[timer] = again

    def _drop(self, why: str) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(why)
        for connecting in list(self._connecting):
            connecting.end(errno.ENOTCONN)
        retries, self._retries = self._retries, {}
        for timer, again in retries.items():
            timer.cancel()
            again()
        for callback in list(self._on_lost):
            callback()

    def _link_lost(self, why: str) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._log.info("the way into the container is lost: {why}", why=why)
            if link.refused:
                self._path, self.problem = "", link.refused
