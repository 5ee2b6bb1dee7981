"""A socket and an ADB stream joined: bytes both ways, each holding the other back."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb._socketio import SocketIO

__all__ = ["SocketSide", "StreamSide", "join"]


SOCKET_QUEUE_BYTES = 1 << 20
"""What may wait for a client before its stream is held back: one payload, so that the next is on its way
while this one is read. Twisted's own 64 KiB would have device and client take turns."""


class StreamSide(Protocol):
    """The stream's end: what the device sends goes to the socket."""

    takes_buffers = True

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self._io = SocketIO.adopt(socket, None)
        if self._io is not None:
            socket.bufferSize = SOCKET_QUEUE_BYTES

    def dataReceived(self, data: bytes) -> None:
        """Hand on what the device sent; large payloads come as the buffer they were received into."""
        if self._io is not None:
            self._io.write((data,))
        else:
            self.socket.write(bytes(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The device has closed: the client gets what is queued, then its end of file."""
        self.socket.unregisterProducer()
        self.socket.loseConnection()


class SocketSide(Protocol):
    """The socket's end, for sockets that carry nothing but the stream (forwards, reverses)."""

    stream: Any = None

    def dataReceived(self, data: bytes) -> None:
        """Hand on what the client sent."""
        self.stream.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has gone. ADB knows no half-close: its end of file ends the stream."""
        if self.stream is not None:
            self.stream.unregisterProducer()
            self.stream.loseConnection()


def join(stream: Any, socket: Any, side: StreamSide | None = None) -> StreamSide:
    """Join an ADB stream and the transport of a socket.

    The caller still has to give the socket's data to ``stream.write`` and to end the stream when the
    socket is lost, as ``SocketSide`` does.

    Args:
        stream: an ``AdbStream`` that has no protocol yet.
        socket: a Twisted transport.
        side: the stream's protocol, if it is to be more than a `StreamSide`.

    Returns:
        The stream's protocol; give it to ``stream.start`` (or return it from an open handler).
    """
    side = side or StreamSide(socket)
    socket.registerProducer(_Valve(stream), True)
    stream.registerProducer(_Valve(socket), True)
    return side


@implementer(IPushProducer)
class _Valve:
    """Pauses one side when the other's queue is full.

    Neither side may be stopped by the other's end, which would cut off what is still queued: a stream that ends
    and a socket that ends are told to each other by ``connectionLost``.
    """

    def __init__(self, source: Any) -> None:
        self._source = source

    def pauseProducing(self) -> None:
        """The consumer's queue is full."""
        self._source.pauseProducing()

    def resumeProducing(self) -> None:
        """There is room again."""
        self._source.resumeProducing()

    def stopProducing(self) -> None:
        """The consumer is gone; its ``connectionLost`` ends the source."""
