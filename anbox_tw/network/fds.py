"""Passing file descriptors over UNIX sockets: never inheritable, counted, and closed on every path."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import NetworkError, PeerError
from anbox_tw.network.tracked import abort_transport

__all__ = ["MAX_FDS_PER_MESSAGE", "MAX_PENDING_FDS", "FdReceiver", "close_fds", "receive_fds", "send_fds"]

# Our protocols pass one or two at a time; the kernel's own limit (SCM_MAX_FD) is 253.
MAX_FDS_PER_MESSAGE: Final = 16
# received and not yet taken by the protocol: more is a flood
MAX_PENDING_FDS: Final = 32
_INT_SIZE: Final = array.array("i").itemsize


def close_fds(fds: Iterable[int]) -> None:
    """Close each descriptor; one that is closed already is ignored."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def send_fds(transport: Any, data: bytes, fds: Sequence[int]) -> None:
    """Send ``data`` with file descriptors; they stay the caller's, who may close them when this returns.

    The stream is not cut into messages: the reader gets the descriptors with some of the bytes, and the rest later.

    Args:
        transport: a connected UNIX ``socket.socket`` (all is sent now, or the send fails), or a Twisted UNIX
            transport (it is queued).
        data: as many bytes as there are descriptors at least: they travel with bytes.
        fds: at most `MAX_FDS_PER_MESSAGE`.

    Raises:
        NetworkError: too many, too little data, or the socket does not take them.
    """
    if len(fds) > MAX_FDS_PER_MESSAGE:
        raise NetworkError(f"{len(fds)} file descriptors in one message, the limit is {MAX_FDS_PER_MESSAGE}")
    if len(data) < max(1, len(fds)):
        raise NetworkError("file descriptors travel with data: at least one byte for each is needed")
    if not isinstance(transport, socket.socket):
        send = getattr(transport, "sendFileDescriptor", None)
        if send is None:
            raise NetworkError("only a UNIX socket can carry file descriptors")
        owned = [_OwnedFd(fd) for fd in fds]
        for fd in owned:
            send(fd)
        transport.write(data)
        return
    try:
        sent = socket.send_fds(transport, [data], list(fds))
        # the descriptors went with the first byte; the rest is plain data
        if sent < len(data):
            transport.sendall(data[sent:])
    except OSError as error:
        raise NetworkError(f"file descriptors cannot be sent: {error.strerror}") from error


class _OwnedFd:
    """A copy of a descriptor that is closed when nothing refers to it any more.

    Twisted's transport keeps what it is given to send in a list until the socket has taken it or the connection is
    lost, and tells nobody when that is. It packs it with ``struct``, which takes anything with ``__index__``.
    """

    def __init__(self, fd: int) -> None:
        self._fd = -1
        try:
            self._fd = os.dup(fd)
        except OSError as error:
            raise NetworkError(f"the file descriptor {fd} cannot be sent: {error.strerror}") from error

    def __index__(self) -> int:
        return self._fd

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def receive_fds(
    sock: socket.socket, max_bytes: int = 65536, max_fds: int = MAX_FDS_PER_MESSAGE
) -> tuple[bytes, list[int]]:
    """Read once from a UNIX socket, with the file descriptors that came along; they are close-on-exec and the caller's.

    Args:
        sock: blocking or not; ``BlockingIOError`` passes through.
        max_bytes: how much data to read at most.
        max_fds: how many descriptors the message may carry.

    Returns:
        The data, empty at the end of the stream, and the descriptors.

    Raises:
        PeerError: the message carried more descriptors; all of them are closed.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        max_bytes, socket.CMSG_SPACE(max_fds * _INT_SIZE), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) // _INT_SIZE * _INT_SIZE])
    # CMSG_SPACE rounds up, so one more than asked for may fit
    if flags & socket.MSG_CTRUNC or len(fds) > max_fds:
        close_fds(fds)
        raise PeerError(f"the peer sent more than {max_fds} file descriptors in one message")
    return data, list(fds)


@implementer(IFileDescriptorReceiver)
class FdReceiver:
    """Mix-in for Twisted protocols on UNIX sockets: collects the descriptors that come until the protocol takes them.

    Put it before ``Protocol`` among the bases, so that its ``connectionLost`` closes what nobody took.
    """

    transport: Any
    max_pending_fds: int = MAX_PENDING_FDS
    _pending_fds: list[int] | None = None

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """Twisted's hook. More than ``max_pending_fds`` untaken ones close the connection and all of them."""
        # Twisted receives them inheritable
        os.set_inheritable(descriptor, False)
        if self._pending_fds is None:
            self._pending_fds = []
        self._pending_fds.append(descriptor)
        if len(self._pending_fds) > self.max_pending_fds:
            self.close_pending_fds()
            abort_transport(self.transport)

    @property
    def pending_fds(self) -> int:
        """How many wait to be taken."""
        return len(self._pending_fds or ())

    def take_fds(self, count: int) -> list[int]:
        """The oldest ``count`` descriptors, now the caller's.

        Raises:
            PeerError: the peer has not sent that many.
        """
        pending = self._pending_fds or []
        if len(pending) < count:
            raise PeerError(f"{count} file descriptors belong here, but {len(pending)} came")
        taken, self._pending_fds = pending[:count], pending[count:]
        return taken

    def close_pending_fds(self) -> None:
        """Close what was not taken."""
        pending, self._pending_fds = self._pending_fds or [], None
        close_fds(pending)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Closes what was not taken, then goes on to the next base."""
        self.close_pending_fds()
        super().connectionLost(reason)  # type: ignore[misc]  # the protocol behind this mix-in has it
