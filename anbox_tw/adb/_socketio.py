"""Socket reads into place and gathered writes, under a Twisted transport that is a plain socket.

Twisted reads 64 KiB into a new ``bytes`` at a time and joins what is written. For megabyte payloads
that is most of the work, so where the transport is one of Twisted's own socket connections without
TLS, its ``doRead`` is replaced for this instance by one that receives straight into the payload, and
writes go out at once with ``sendmsg`` as long as Twisted holds nothing back. Everything else (closing,
errors, the rest of a partial write, pausing) stays Twisted's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from twisted.internet import main, tcp

from anbox_tw.adb._wire import Buffer

if TYPE_CHECKING:
    from twisted.internet.error import ConnectionDone, ConnectionLost

__all__ = ["SocketIO"]

_READS_PER_TURN = 8
"""Receives in a row before other connections get their turn."""
_IOV_MAX = 512
"""Buffers of one ``sendmsg``; Linux takes 1024."""


class BufferOwner(Protocol):
    """What the reader puts bytes into."""

    def get_buffer(self) -> memoryview:
        """Where to receive."""

    def buffer_updated(self, count: int) -> None:
        """``count`` bytes were received."""


class SocketIO:
    """Direct I/O on the socket of ``transport`` for ``owner``."""

    def __init__(self, transport: tcp.Connection, owner: BufferOwner | None) -> None:
        self._transport = transport
        self._socket: socket.socket = transport.socket
        self._is_tcp = self._socket.family in (socket.AF_INET, socket.AF_INET6)
        self.reading = True
        if owner is None:
            return
        self._owner = owner
        transport.doRead = self._do_read  # type: ignore[method-assign]  # for this instance alone

    @classmethod
    def adopt(cls, transport: object, owner: BufferOwner | None) -> SocketIO | None:
        """Direct I/O for ``transport`` where that is possible; writes alone without an ``owner``."""
        if isinstance(transport, tcp.Connection) and not getattr(transport, "TLS", False):
            return cls(transport, owner)
        return None

    def acknowledge(self) -> None:
        """Have the kernel acknowledge what has come, and not wait 40 ms for something to send with it.

        adb's own server writes to its clients with Nagle's algorithm on: while the end of one write is not
        acknowledged, the next waits. The kernel forgets this wish, so it is told again with each read.
        """
        if self._is_tcp:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def release(self) -> None:
        """Give reading back to Twisted."""
        self.reading = False
        self._transport.__dict__.pop("doRead", None)

    def _do_read(self) -> ConnectionLost | ConnectionDone | None:
        owner = self._owner
        receive = self._socket.recv_into
        for _ in range(_READS_PER_TURN):
            buffer = owner.get_buffer()
            try:
                count = receive(buffer)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError:
                return main.CONNECTION_LOST
            if not count:
                return main.CONNECTION_DONE
            owner.buffer_updated(count)
            if count < len(buffer) or not self.reading or not self._transport.connected:
                return None
        return None

    def write(self, buffers: Sequence[Buffer | memoryview]) -> None:
        """Send ``buffers``, what the kernel does not take through the transport's own buffer."""
        transport = self._transport
        if not transport.connected or transport.disconnecting:
            return
        sent = 0
        if not transport.dataBuffer and not transport._tempDataBuffer:
            try:
                sent = self._socket.sendmsg(buffers[:_IOV_MAX])
            except OSError:
                # Full, or broken: Twisted's own write finds out which.
                sent = 0
        rest: list[bytes] = []
        for buffer in buffers:
            size = len(buffer)
            if sent >= size:
                sent -= size
            elif sent:
                rest.append(bytes(memoryview(buffer)[sent:]))
                sent = 0
            else:
                rest.append(bytes(buffer))
        if rest:
            transport.writeSequence(rest)
