"""A connected socket with just enough around it for a reactor and a relay."""

from __future__ import annotations

import socket
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReadWriteDescriptor
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["AF_UNIX", "RawSocket", "family_of", "nothing"]

# each look at socket.family makes an enum member, which costs as much as a small send: numbers are compared
AF_UNIX: Final = int(socket.AF_UNIX)
_plain: Any = socket.SocketType
family_of: Final = _plain.family.__get__
"""The family of a socket as a number."""
# struct linger: on, 0 seconds
_LINGER_NONE: Final = b"\1\0\0\0\0\0\0\0"
_ABORTED: Final = Failure(ConnectionAborted())


class _Adopt(Factory):
    noisy = False

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Any:
        return self._protocol


def nothing() -> None:
    """What a descriptor does whose relay is over."""


@implementer(IReadWriteDescriptor, IHalfCloseableDescriptor)
class RawSocket:
    """A connected socket as the reactor and the relay need it, and no more: a fifth of a Twisted transport's memory.

    It owns the socket. There is no writing to it but by the relay.
    """

    __slots__ = (
        "__weakref__",
        "disconnected",
        "disconnecting",
        "doRead",
        "doWrite",
        "family",
        "fileno",
        "producer",
        "protocol",
        "reactor",
        "reading",
        "socket",
        "writing",
    )

    def __init__(self, sock: socket.socket, reactor: Any) -> None:
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        self.socket = sock
        self.fileno = sock.fileno
        self.family: int = family_of(sock)
        self.reactor = reactor
        # what the reactor was asked for: asking it again for the same costs as much as a small send
        self.reading = False
        self.writing = False
        self.protocol: Any = None
        self.producer: Any = None
        self.disconnecting = False
        self.disconnected = False
        self.doRead: Any = nothing
        self.doWrite: Any = nothing

    def startReading(self) -> None:
        if not self.reading:
            self.reading = True
            self.reactor.addReader(self)

    def stopReading(self) -> None:
        if self.reading:
            self.reading = False
            self.reactor.removeReader(self)

    pauseProducing = stopReading

    def startWriting(self) -> None:
        if not self.writing:
            self.writing = True
            self.reactor.addWriter(self)

    def stopWriting(self) -> None:
        if self.writing:
            self.writing = False
            self.reactor.removeWriter(self)

    def loseConnection(self) -> None:
        self.disconnecting = True
        self.stopReading()
        self.startWriting()

    def abortConnection(self, at_once: bool = False) -> None:
        if self.disconnected:
            return
        self.disconnected = True
        self.stopReading()
        self.stopWriting()
        if self.family != AF_UNIX:
            try:
                # by convention: a reset instead of an end
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            except OSError:
                pass
        if at_once:
            self._close(_ABORTED)
        else:
            self.reactor.callLater(0, self._close, _ABORTED)

    def adopt(self, protocol: Any) -> Any:
        """Give the socket to a Twisted transport of its own, for a peer that is none; returns that transport."""
        made = _Adopt(protocol)
        self.disconnected = True
        self.reactor.adoptStreamConnection(self.fileno(), self.socket.family, made)
        self.socket.close()
        return protocol.transport

    # The reactor calls these after it has taken the socket out.

    def readConnectionLost(self, reason: Failure) -> None:
        self.reading = False
        self.protocol.readConnectionLost()

    def writeConnectionLost(self, reason: Failure) -> None:
        """Part of ``IHalfCloseableDescriptor``; our side is ended by the relay itself."""

    def connectionLost(self, reason: Failure) -> None:
        self.reading = self.writing = False
        if not self.disconnected:
            self.disconnected = True
            self._close(reason)

    def lose(self, reason: Failure) -> None:
        """The connection is over, and the relay is the first to know."""
        self.stopReading()
        self.stopWriting()
        self.connectionLost(reason)

    def _close(self, reason: Failure) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            self.socket.close()
            protocol.connectionLost(reason)

    def getHandle(self) -> socket.socket:
        return self.socket

    def getPeer(self) -> Any:
        return _address(self.family, self.socket.getpeername())

    def logPrefix(self) -> str:
        return "relay"


def _address(family: int, name: Any) -> Any:
    if family == AF_UNIX:
        return UNIXAddress(name or None)
    return (IPv6Address if family == socket.AF_INET6 else IPv4Address)("TCP", *name)
