"""The relay between two kernel sockets, taken over from their Twisted transports.

The transports stay what the reactor and everybody else knows: they own the sockets, close them, and tell the loss.
Only their ``doRead`` and ``doWrite`` are the relay's, so that bytes go from one socket to the other in one step,
without a write buffer and without a turn of the reactor between.

* At first, and always from a UNIX socket: ``recv_into`` a buffer that all relays share, and ``send`` at once. From a
  UNIX socket splicing costs more processor time than copying.
* In bulk from TCP: ``splice(2)`` through a pipe, so that the bytes never come to user space.

What a target does not take waits in the direction (one dose, or the pipe), and its source is not read meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import tcp
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.network._raw_socket import AF_UNIX, RawSocket, family_of, nothing
from anbox_tw.network._relay_ends import Direction, RelayEndpoint
from anbox_tw.network.tracked import abort_transport

if TYPE_CHECKING:
    from anbox_tw.network.relaying import Relay

__all__ = ["MAX_PIPES", "PIPE_BYTES", "SocketEndpoint", "possible"]

# What one read takes at most, and the bound of what one direction holds for a slow target. A UNIX socket of default
# size holds 208 KiB; half of this costs a quarter of the throughput.
DOSE_BYTES: Final = 256 * 1024
# Of one splice. More at a time is slower, since the bytes then leave the processor's cache before the peer reads them:
# measured, 64 to 128 KiB give up to 1.4 times what 1 MiB does. It is more than 64 KiB, so that a message of that common
# size is seen to be all there was, without asking again.
SPLICE_BYTES: Final = 80 * 1024
# A socket's bytes take a place in the pipe for each page they touch, so the room is more than one splice takes.
PIPE_BYTES: Final = 128 * 1024
# Pipes of one process in use at once, two descriptors each; the default limit of open files is 1024. A user without
# privileges has 16384 pipe pages (pipe-user-pages-soft), an eighth of which these use. Further streams are copied.
MAX_PIPES: Final = 64
# pipes that wait for their next use; each is two descriptors and no memory while it is empty
_POOLED_PIPES: Final = 8
# what a UNIX socket in bulk may hold; its default of 208 KiB stalls a writer that has more ready
_BULK_SNDBUF_BYTES: Final = 1024 * 1024
# pipefuls that one stream may move before the others get their turn
_ROUNDS: Final = 16
# A dose of so much is large; so many in a row make a stream bulk.
_LARGE_BYTES: Final = 64 * 1024
_LARGE_DOSES_FOR_BULK: Final = 3
# A pipeful of less is small; so many in a row end it. (A network card's packets fill a pipe with 23 kB.)
_SMALL_BYTES: Final = 16 * 1024
_SMALL_PIPEFULS_TO_END_BULK: Final = 8

# fcntl.h; SPLICE_F_MOVE | SPLICE_F_NONBLOCK. The names exist in Python since 3.11 only on some builds.
_SPLICE_FLAGS: Final = 0x01 | 0x02
_DONE: Final = Failure(CONNECTION_DONE)
_F_SETPIPE_SZ: Final = getattr(fcntl, "F_SETPIPE_SZ", 1031)

_view = memoryview(bytearray(0))


def _shared_buffer() -> memoryview:
    # One buffer for all: it is filled and emptied within one call, and there is one reactor thread.
    global _view  # noqa: PLW0603  # made on the first use, 256 KiB that a process without relays does not pay
    if not _view:
        _view = memoryview(bytearray(DOSE_BYTES))
    return _view


class _Pipe:
    """A pipe, and how much of it is filled."""

    __slots__ = ("filled", "read_fd", "write_fd")

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.filled = 0
        try:
            fcntl.fcntl(self.write_fd, _F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class _PipePool:
    """Pipes that wait for their next use; refuses when too many are in use."""

    def __init__(self) -> None:
        self._free: list[_Pipe] = []
        self.in_use = 0
        # no descriptor, or too few pages
        self.refused = 0

    def take(self) -> _Pipe | None:
        if self.in_use >= MAX_PIPES or not hasattr(os, "splice"):
            return None
        if self._free:
            pipe = self._free.pop()
        else:
            try:
                pipe = _Pipe()
            except OSError:
                self.refused += 1
                return None
        self.in_use += 1
        return pipe

    def give_back(self, pipe: _Pipe) -> None:
        self.in_use -= 1
        if pipe.filled or len(self._free) >= _POOLED_PIPES:
            # what a lost target did not take must not reach another stream
            pipe.close()
        else:
            self._free.append(pipe)

    def clear(self) -> None:
        """Close what waits, for tests that count descriptors."""
        while self._free:
            self._free.pop().close()


pipes = _PipePool()


def possible(a: Any, b: Any) -> bool:
    """Whether the relay can take both sockets over: plain ones, of one fd reactor, with nothing special queued."""
    return (
        _plain(a)
        and _plain(b)
        and a is not b
        and a.reactor is b.reactor
        and IReactorFDSet.providedBy(a.reactor)
    )


def _plain(transport: Any) -> bool:
    if isinstance(transport, RawSocket):
        return True
    return (
        isinstance(transport, tcp.Connection)
        # a transport on which startTLS was called
        and not getattr(transport, "TLS", False)
        and isinstance(getattr(transport, "socket", None), socket.socket)
        # descriptors that still wait to be sent go with their bytes, which only the transport knows
        and not getattr(transport, "_sendmsgQueue", None)
        and not transport.disconnecting
        and not transport._writeDisconnecting
        and hasattr(transport, "_tempDataBuffer")
    )


@implementer(IReadDescriptor)
class _ResetWatch:
    """Sees the reset of TCP sockets whose end was read: nothing else is waited for from them.

    A reactor can only be asked for reading or writing, and an ended socket is always readable. These sockets are in an
    epoll of their own, for no event but the loss, and that epoll is what the reactor reads. It exists while there are any.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._epoll = select.epoll()
        self._ends: dict[int, SocketEndpoint] = {}
        self._fds: dict[SocketEndpoint, int] = {}

    def fileno(self) -> int:
        return -1 if self._epoll.closed else self._epoll.fileno()

    def add(self, end: SocketEndpoint) -> None:
        if not self._ends:
            self._reactor.addReader(self)
        fd = end.fileno()
        self._ends[fd] = end
        self._fds[end] = fd
        # ERR and HUP are always reported
        self._epoll.register(fd, 0)

    def remove(self, end: SocketEndpoint) -> None:
        # the socket is closed by now and has forgotten its number
        fd = self._fds.pop(end, None)
        if fd is None:
            return
        del self._ends[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            # closed already, which took it out
            pass
        if not self._ends:
            self._reactor.removeReader(self)
            del _watches[id(self._reactor)]
            self._epoll.close()

    def doRead(self) -> None:
        for fd, _ in self._epoll.poll(0, _ROUNDS):
            end = self._ends.get(fd)
            if end is not None:
                end.lose(Failure(CONNECTION_LOST))
                if self._epoll.closed:
                    return

    def connectionLost(self, reason: Failure) -> None:
        """The reactor drops what it reads, at its end."""

    def logPrefix(self) -> str:
        return "relays"


# by the id of the reactor; one is taken out when its last socket goes
_watches: dict[int, _ResetWatch] = {}


def _watch_of(reactor: Any) -> _ResetWatch:
    watch = _watches.get(id(reactor))
    if watch is None:
        watch = _watches[id(reactor)] = _ResetWatch(reactor)
    return watch


class _SocketDirection(Direction):
    """A direction between sockets.

    Attributes:
        pending: taken from the source, and not yet by the target.
        run: large doses in a row, or, in bulk, small pipefuls.
        pipe: in bulk, what the bytes go through.
    """

    __slots__ = ("pending", "pipe", "run")

    def __init__(self) -> None:
        # the base's too: a call less for each end of each connection
        self.count = 0
        self.eof = self.ended = self.broken = False
        self.pending: memoryview | bytes = b""
        self.run = 0
        self.pipe: _Pipe | None = None


class SocketEndpoint(RelayEndpoint):
    """Reads its socket and writes at once to the peer's."""

    __slots__ = ("_closing", "_sock", "_unix")

    direction: _SocketDirection

    def __init__(self, relay: Relay) -> None:
        # the base's too, as above
        self.relay = relay
        self.transport: Any = None
        self.factory = None
        self.direction = _SocketDirection()
        self.lost = False
        self._closing = False
        self._sock: socket.socket

    def makeConnection(self, transport: Any) -> None:
        """See ``IProtocol``; takes the socket over."""
        self.transport = transport
        self._sock = transport.socket
        self._unix = family_of(transport.socket) == AF_UNIX
        transport.pauseProducing()
        # whoever filled the transport until now is not asked for more
        transport.producer = None
        transport.doRead = self._read_limited if self.relay.limited else self._do_read
        transport.doWrite = self._do_write

    def fileno(self) -> int:
        """The socket's descriptor, -1 when it is closed."""
        return self._sock.fileno()

    def begin(self, leftover: bytes, ended: bool) -> None:
        """See `RelayEndpoint`."""
        if self.lost or self.peer.lost:
            return
        direction, target = self.direction, self.peer.transport
        # what was written to the target before the relay and waits in its buffers goes first
        queued = b""
        if not isinstance(target, RawSocket):
            queued = bytes(target.dataBuffer[target.offset :]) + b"".join(target._tempDataBuffer)
            target.dataBuffer, target.offset = b"", 0
            target._tempDataBuffer, target._tempDataLen = [], 0
        if self.relay.limited:
            allowed = self.relay.allowance()
            leftover, over = leftover[:allowed], len(leftover) >= allowed
        else:
            over = False
        direction.count += len(leftover)
        direction.eof = ended
        direction.pending = queued + leftover
        self.peer._flush()
        if over and not self.relay.ending:
            self.relay.limit_reached()

    def start(self) -> None:
        """Begin, where nothing was read or written before: `begin` for a socket of our own."""
        self.transport.startReading()

    def lose(self, reason: Failure) -> None:
        """The connection is over, and it was not the reactor that found out."""
        transport = self.transport
        if isinstance(transport, RawSocket):
            transport.lose(reason)
        else:
            transport.connectionLost(reason)

    def abort(self, reason: str = "") -> None:
        """See `RelayEndpoint`."""
        if self.lost or self.transport is None:
            return
        if isinstance(self.transport, RawSocket):
            self.transport.abortConnection(self.relay.at_once)
        else:
            abort_transport(self.transport)

    def read_now(self) -> None:
        """Read without waiting for the reactor to say that there is something; only outside of its calls for this end."""
        if self.lost or self._closing or self.direction.pending or self.direction.eof:
            return
        why = self.transport.doRead()
        if why is CONNECTION_LOST:
            # the error was taken from the socket by this read: the next would see a plain end
            self.lose(Failure(CONNECTION_LOST))

    def shut(self) -> None:
        """See `RelayEndpoint`."""
        if self.lost or self._closing:
            return
        self._closing = True
        # the reactor may still have an event for it that was reported together with this one
        self.transport.doRead = nothing
        incoming = self.peer.direction
        if (
            self.relay.at_once
            and not incoming.pending
            and (incoming.pipe is None or not incoming.pipe.filled)
        ):
            self.lose(_DONE)
            return
        self.transport.stopReading()
        # the next turn flushes what is pending, if anything is, and closes
        self.transport.startWriting()

    def release(self) -> None:
        """See `RelayEndpoint`; also undoes the ring of references between transport and end."""
        transport = self.transport
        watch = _watches.get(id(transport.reactor)) if self.direction.eof else None
        if watch is not None:
            watch.remove(self)
        if isinstance(transport, RawSocket):
            transport.doRead = transport.doWrite = nothing
        else:
            for own in ("doRead", "doWrite"):
                transport.__dict__.pop(own, None)
        for end in (self, self.peer):
            direction = end.direction
            direction.pending = b""
            if direction.pipe is not None:
                end._drop_pipe()

    # -- reading: from this socket to the peer's

    def _do_read(self) -> Any:
        # one read and one send: a short read means that there was no more, and of a full one the reactor tells again
        view = _view or _shared_buffer()
        try:
            count = self._sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        if not count:
            # Twisted calls readConnectionLost for this
            return CONNECTION_DONE
        direction, target = self.direction, self.peer
        direction.count += count
        try:
            sent = target._sock.send(view[:count])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            target._broken(direction)
            return None
        if count >= _LARGE_BYTES:
            self._large_dose(direction)
        else:
            direction.run = 0
        if sent < count:
            self._wait_for(target, view[sent:count])
        return None

    def _read_limited(self) -> Any:
        """The same where the bytes are limited; never in bulk, so that the limit is exact."""
        view = _view or _shared_buffer()
        allowed = self.relay.allowance()
        try:
            count = self._sock.recv_into(view, min(allowed, DOSE_BYTES)) if allowed > 0 else 0
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        if allowed > 0 and not count:
            return CONNECTION_DONE
        direction, target = self.direction, self.peer
        direction.count += count
        try:
            sent = target._sock.send(view[:count])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            target._broken(direction)
            return None
        if sent < count:
            self._wait_for(target, view[sent:count])
        if count >= allowed:
            self.relay.limit_reached()
        return None

    def _wait_for(self, target: SocketEndpoint, rest: memoryview) -> None:
        """Keep what the target did not take, and read no more until it has."""
        self.direction.pending = bytes(rest)
        self.transport.stopReading()
        target.transport.startWriting()

    def _large_dose(self, direction: _SocketDirection) -> None:
        direction.run += 1
        if direction.run < _LARGE_DOSES_FOR_BULK or self._unix:
            return
        direction.run = 0
        pipe = pipes.take()
        if pipe is not None:
            self.peer._widen()
            direction.pipe = pipe
            self.transport.doRead = self._splice

    def _splice(self) -> Any:
        direction = self.direction
        pipe = direction.pipe
        assert pipe is not None
        source, target = self._sock.fileno(), self.peer._sock.fileno()
        splice = os.splice
        for _ in range(_ROUNDS):
            try:
                count = splice(source, pipe.write_fd, SPLICE_BYTES, flags=_SPLICE_FLAGS)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError:
                return CONNECTION_LOST
            if not count:
                return CONNECTION_DONE
            direction.count += count
            try:
                sent = splice(pipe.read_fd, target, count, flags=_SPLICE_FLAGS)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                pipe.filled = count
                self.peer._broken(direction)
                return None
            if sent < count:
                pipe.filled = count - sent
                direction.run = 0
                self.transport.stopReading()
                self.peer.transport.startWriting()
                return None
            if count < SPLICE_BYTES:
                if count >= _SMALL_BYTES:
                    direction.run = 0
                else:
                    self._small_pipeful(direction)
                return None
            direction.run = 0
        return None

    def _small_pipeful(self, direction: _SocketDirection) -> None:
        direction.run += 1
        if direction.run >= _SMALL_PIPEFULS_TO_END_BULK:
            direction.run = 0
            self._drop_pipe()
            self.transport.doRead = self._do_read

    def _widen(self) -> None:
        if self._unix:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BULK_SNDBUF_BYTES)

    def _drop_pipe(self) -> None:
        """Give back what this end's bytes went through; the caller sees to it that no more are read that way."""
        direction = self.direction
        pipe, direction.pipe = direction.pipe, None
        if pipe is not None:
            pipes.give_back(pipe)

    def dataReceived(self, data: bytes) -> None:
        """See ``IProtocol``; nothing comes this way while the sockets are the relay's."""

    def readConnectionLost(self) -> None:
        """The source has ended its side; the target learns it behind what is pending."""
        direction = self.direction
        direction.eof = True
        self.transport.stopReading()
        pipe = direction.pipe
        if not direction.pending and (pipe is None or not pipe.filled):
            if pipe is not None:
                self._drop_pipe()
            # the reactor is done with this socket when it calls this: both may be closed now, not in the next turn
            self.relay.at_once = True
            self.peer._end_output()
            self.relay.at_once = False
        if not self._unix and not self.lost and not self.relay.ending:
            _watch_of(self.transport.reactor).add(self)

    # -- writing: what is pending from the peer to this socket

    def _do_write(self) -> Any:
        direction = self.peer.direction
        pipe = direction.pipe
        try:
            if pipe is not None and pipe.filled:
                pipe.filled -= os.splice(pipe.read_fd, self._sock.fileno(), pipe.filled, flags=_SPLICE_FLAGS)
                if pipe.filled:
                    return None
            elif direction.pending:
                sent = self._sock.send(direction.pending)
                if sent < len(direction.pending):
                    direction.pending = memoryview(direction.pending)[sent:]
                    return None
                direction.pending = b""
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            if self._closing:
                return CONNECTION_LOST
            self._broken(direction)
            return None
        if self._closing or self.transport.disconnecting:
            return CONNECTION_DONE
        self._go_on(direction)
        return None

    def _flush(self) -> None:
        """Send what is pending for this socket now, as far as it goes."""
        if self._closing:
            return
        direction = self.peer.direction
        if direction.pending:
            self._do_write()
            if direction.pending:
                self.transport.startWriting()
        else:
            self._go_on(direction)

    def _go_on(self, direction: _SocketDirection) -> None:
        # everything taken was delivered
        self.transport.stopWriting()
        if direction.eof:
            self._end_output()
        elif not self.peer.lost and not self.peer._closing:
            self.peer.transport.startReading()

    def _end_output(self) -> None:
        direction = self.peer.direction
        if direction.ended or self.lost:
            return
        direction.ended = True
        # A source that has ended and takes nothing either is gone: this side is to see a reset, not an end before it.
        if not self.direction.broken:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                # reset meanwhile: the next read of this socket says so
                pass
        self.relay.direction_ended(direction)

    def _broken(self, direction: _SocketDirection) -> None:
        """This socket takes nothing more; what its peer still sent, before it went, is delivered all the same."""
        direction.broken = direction.ended = True
        direction.pending = b""
        if not self.lost:
            self.transport.stopWriting()
        source = self.peer
        source._drop_pipe()
        if not source.lost:
            source.transport.stopReading()
            source.transport.doRead = nothing
            if source._unix:
                try:
                    # a UNIX peer learns at its next write that nobody listens
                    source._sock.shutdown(socket.SHUT_RD)
                except OSError:
                    pass
        self.relay.direction_ended(direction)
