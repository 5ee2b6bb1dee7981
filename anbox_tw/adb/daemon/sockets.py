"""``tcp:``, ``local*:``, ``dev:``: streams joined to the device's own sockets (AOSP ``socket_spec.cpp``)."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from anbox_tw.adb._numbers import MAX_PORT, decimal
from anbox_tw.adb.daemon._fds import FdReader, FdWriter
from anbox_tw.adb.streams import AdbStream
from anbox_tw.errors import AdbError
from anbox_tw.network.connectors import LoopbackEndpoint

__all__ = ["DeviceFile", "Inner", "SocketStream", "connect_stream", "parse_local", "parse_tcp_port"]

CONNECT_TIMEOUT_S = 10
"""How long a connection to one of the device's own sockets may take."""
RESERVED_DIR = "/dev/socket"
_LOCALHOST = frozenset({"localhost", "127.0.0.1", ""})


class Inner(Protocol):
    """The side of the device's socket.

    Attributes:
        outer: the side of the stream, once the two are joined.
        lost: the socket has been closed.
        when_connected: called when the socket is there, or None.
        pause_at_start: read nothing before the two are joined.
    """

    outer: SocketStream | None = None
    transport: Any
    lost = False
    when_connected: Callable[[], None] | None = None
    pause_at_start = False

    def connectionMade(self) -> None:
        """The socket is connected."""
        if self.pause_at_start:
            self.transport.pauseProducing()
        if self.when_connected is not None:
            self.when_connected()

    def dataReceived(self, data: bytes) -> None:
        """From the socket to the host."""
        if self.outer is not None:
            self.outer.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The socket is closed."""
        self.lost = True
        if self.outer is not None:
            self.outer._inner_lost()


class SocketStream(Protocol):
    """The side of the ADB stream.

    Args:
        inner: the protocol on the connected socket, which is paused until the stream is there.
    """

    transport: AdbStream

    def __init__(self, inner: Inner) -> None:
        self._inner = inner
        self._registered = False

    def connectionMade(self) -> None:
        """The stream is open: join the two, each slowing the other."""
        inner = self._inner
        inner.outer = self
        if inner.lost:
            self.transport.loseConnection()
            return
        self._registered = True
        self.transport.registerProducer(inner.transport, True)
        inner.transport.registerProducer(self.transport, True)
        inner.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """From the host to the socket."""
        self._inner.transport.write(data)

    def _inner_lost(self) -> None:
        if self._registered:
            self._registered = False
            self.transport.unregisterProducer()
        self.transport.resumeProducing()
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is over: what the host has sent still goes to the socket."""
        inner = self._inner
        inner.outer = None
        self._registered = False
        if not inner.lost:
            inner.transport.unregisterProducer()
            inner.transport.resumeProducing()
            inner.transport.loseConnection()


def connect_stream(endpoint: IStreamClientEndpoint) -> Deferred[IProtocol | None]:
    """A protocol for a stream that leads to ``endpoint``; fails when it cannot be connected."""

    def connected(inner: Inner) -> SocketStream:
        inner.transport.pauseProducing()
        return SocketStream(inner)

    def failed(failure: Failure) -> None:
        raise AdbError(f"cannot connect: {failure.getErrorMessage()}")

    connecting: Deferred[Any] = endpoint.connect(Factory.forProtocol(Inner))
    connecting.addCallbacks(connected, failed)
    return connecting


def parse_tcp_port(argument: str) -> int:
    """The port of ``tcp:PORT`` or ``tcp:localhost:PORT``.

    Raises:
        AdbError: another host is named, or there is no port.
    """
    host, _, digits = argument.rpartition(":")
    if host not in _LOCALHOST:
        raise AdbError("adbd does not support arbitrary tcp connections")
    port = decimal(digits, MAX_PORT)
    if not port:
        raise AdbError(f"not a port: {digits[:40]!r}")
    return port


def parse_local(kind: str, name: str) -> str:
    """The address of a UNIX socket, as ``connect`` takes it.

    Args:
        kind: ``local``, ``localreserved``, ``localabstract`` or ``localfilesystem``.
        name: what follows the colon.
    """
    if not name:
        raise AdbError("the socket has no name")
    if kind == "localabstract":
        return f"\0{name}"
    if kind == "localfilesystem":
        return name
    return f"{RESERVED_DIR}/{name}"


def tcp_endpoint(reactor: Any, port: int) -> IStreamClientEndpoint:
    """The device's own loopback, IPv4 and then IPv6."""
    return LoopbackEndpoint(reactor, port, CONNECT_TIMEOUT_S)


def unix_endpoint(reactor: Any, address: str) -> IStreamClientEndpoint:
    """A UNIX socket of the device."""
    return UNIXClientEndpoint(reactor, os.fsencode(address), timeout=CONNECT_TIMEOUT_S)


class DeviceFile(Protocol):
    """``dev:PATH``: a character device, both ways.

    Args:
        reactor: the reactor.
        path: the device.
        raw: put a terminal into raw mode, for ``dev-raw:``.

    Raises:
        AdbError: it cannot be opened.
    """

    takes_buffers = True
    transport: AdbStream

    def __init__(self, reactor: Any, path: str, *, raw: bool = False) -> None:
        self._reactor = reactor
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise AdbError(f"cannot open {path}: {error.strerror}") from error
        if raw:
            try:
                tty.setraw(self._fd, termios.TCSANOW)
            except termios.error as error:
                os.close(self._fd)
                raise AdbError(f"{path} is not a terminal") from error

    def connectionMade(self) -> None:
        """The stream is open."""
        try:
            self._writer = FdWriter(self._reactor, os.dup(self._fd), self.transport)
            self._reader = FdReader(self._reactor, self._fd, self.transport.write, self._ended)
        except OSError:
            # A regular file or such: nothing that can be waited for.
            os.close(self._fd)
            self.transport.loseConnection()
            return
        self.transport.registerProducer(self._reader, True)

    def dataReceived(self, data: bytes) -> None:
        """To the device."""
        self._writer.write(data)

    def _ended(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Close both."""
        self._reader.close()
        self._writer.close_when_written()
