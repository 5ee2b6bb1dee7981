"""Twisted transports over local sockets: streams whose descriptors travel as Android sends them, and packets.

Twisted's own UNIX transport sends each descriptor with one byte of its own, so a peer that does one
``recvmsg`` for "twelve bytes and a descriptor" (fwmarkd) gets one byte. Here all descriptors of a
``send_with_descriptors`` go in one control message with the first chunk of its data.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from twisted.internet import error, main, unix
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IFileDescriptorReceiver, IProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.android.errors import AndroidError
from anbox_tw.android.localsocket import (
    MAX_DESCRIPTORS,
    Credentials,
    Message,
    close_descriptors,
    peer_credentials,
    receive_message,
    send_message,
)

__all__ = ["MAX_PACKET_BYTES", "DatagramReceiver", "LocalStream", "PacketTransport"]

MAX_PACKET_BYTES = 256 * 1024
"""Longest packet taken; above the kernel's default send buffer (208 KiB), which bounds what a peer can send."""

MAX_QUEUED_BYTES = 1 << 20
"""A packet transport that holds this much tells its producer to pause, and refuses more at twice that."""

MAX_READS_PER_TURN = 32
"""Packets taken before the reactor gets its turn again."""


_DONE = Failure(main.CONNECTION_DONE)


class DatagramReceiver(Protocol):
    """What a protocol on an unconnected datagram socket may provide instead of ``dataReceived``."""

    def datagramReceived(self, data: bytes, address: bytes, credentials: Credentials | None) -> None:
        """One datagram: its sender's address is empty when the sender is not bound."""


def _deliver(protocol: Any, descriptors: list[int], log: Logger) -> None:
    if not descriptors:
        return
    if IFileDescriptorReceiver.providedBy(protocol):
        for position, descriptor in enumerate(descriptors):
            try:
                protocol.fileDescriptorReceived(descriptor)
            except BaseException:
                close_descriptors(descriptors[position + 1 :])
                raise
    else:
        log.warn("{protocol} takes no descriptors: closed {count}", protocol=protocol, count=len(descriptors))
        close_descriptors(descriptors)


class LocalStream(unix.Server):
    """A connected stream socket."""

    log = Logger()

    def __init__(self, sock: socket.socket, protocol: IProtocol, reactor: Any) -> None:
        """Wrap ``sock``, which is connected; the caller then makes the connection of ``protocol``."""
        sock.setblocking(False)
        super().__init__(sock, protocol, sock.getpeername(), None, 0, reactor)
        self.repstr = f"<{protocol.__class__.__name__} on {sock.getsockname()!r}>"
        self.credentials = peer_credentials(sock)
        self._taken = 0
        self._written = 0
        self._attached: deque[tuple[int, list[int], Callable[[], None] | None]] = deque()

    def getHost(self) -> UNIXAddress:
        """Our own end's name."""
        return UNIXAddress(self.socket.getsockname())

    def getPeer(self) -> UNIXAddress:
        """The peer's name, empty for a client that bound none."""
        return UNIXAddress(self.socket.getpeername() or None)

    def peer_credentials(self) -> Credentials:
        """Who the peer was when it connected."""
        return self.credentials

    def write(self, data: bytes) -> None:
        """Queue ``data``."""
        if data and self.connected and not self._writeDisconnected:
            self._written += len(data)
        super().write(data)

    def writeSequence(self, iovec: Any) -> None:
        """Queue all of ``iovec``."""
        self.write(b"".join(iovec))

    def sendFileDescriptor(self, fileno: int) -> None:
        """Attach ``fileno`` to the byte that is written next (Twisted's interface for it)."""
        if self._attached and self._attached[-1][0] == self._written:
            if len(self._attached[-1][1]) >= MAX_DESCRIPTORS:
                raise AndroidError(f"more than {MAX_DESCRIPTORS} descriptors on one byte")
            self._attached[-1][1].append(fileno)
        else:
            self._attached.append((self._written, [fileno], None))

    def send_with_descriptors(
        self, data: bytes, descriptors: Sequence[int], sent: Callable[[], None] | None = None
    ) -> None:
        """Queue ``data`` with ``descriptors`` on its first byte.

        Args:
            data: at least one byte.
            descriptors: at most ``MAX_DESCRIPTORS``; they have to stay open until ``sent`` is called.
            sent: called once the kernel has them, or the connection is lost.

        Raises:
            AndroidError: no data, or too many descriptors.
        """
        if not data:
            raise AndroidError("descriptors need at least one byte of data to travel with")
        if len(descriptors) > MAX_DESCRIPTORS:
            raise AndroidError(f"{len(descriptors)} descriptors, at most {MAX_DESCRIPTORS} are allowed")
        if not self.connected or self._writeDisconnected:
            if sent is not None:
                sent()
            return
        self._attached.append((self._written, list(descriptors), sent))
        self.write(data)

    def writeSomeData(self, data: bytes) -> int | ConnectionLost:
        """Send from the front of the queue, up to the next byte that carries descriptors."""
        fds = self._attached[0][1] if self._attached and self._attached[0][0] == self._taken else []
        limit = len(data)
        following = 1 if fds else 0
        if len(self._attached) > following:
            limit = min(limit, self._attached[following][0] - self._taken)
        try:
            count = send_message(self.socket, bytes(data[:limit]), fds)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as reason:
            return 0 if reason.errno == errno.ENOBUFS else main.CONNECTION_LOST
        if fds:
            done = self._attached.popleft()[2]
            if done is not None:
                done()
        self._taken += count
        return count

    def doRead(self) -> Any:
        """Take one chunk, and the descriptors on it before its data."""
        try:
            message = receive_message(self.socket, self.bufferSize)
        except (BlockingIOError, InterruptedError):
            return None
        except AndroidError as reason:
            self.log.warn("{reason}: connection closed", reason=reason)
            return reason
        except OSError:
            return main.CONNECTION_LOST
        _deliver(self.protocol, message.descriptors, self.log)
        return self._dataReceived(message.data)

    def connectionLost(self, reason: Failure) -> None:
        """Tell the owners of descriptors that were not sent, then the protocol."""
        waiting, self._attached = self._attached, deque()
        super().connectionLost(reason)
        for _, _, done in waiting:
            if done is not None:
                done()


class PacketTransport(FileDescriptor):
    """A seqpacket or datagram socket: each ``write`` is one packet, each packet one ``dataReceived``.

    A protocol with ``datagramReceived(data, address, credentials)`` gets datagrams through that instead. On a
    seqpacket socket an empty packet cannot be told from the peer's end (Linux gives 0 for both): it ends
    the connection.
    """

    log = Logger()

    def __init__(self, sock: socket.socket, reactor: Any, *, connected_peer: bool = True) -> None:
        """Wrap ``sock``.

        Args:
            sock: connected, or a bound datagram socket.
            reactor: the reactor.
            connected_peer: ``write`` has somewhere to go.
        """
        super().__init__(reactor)
        sock.setblocking(False)
        self.socket = sock
        self._clock = reactor
        self.protocol: Any = None
        self._datagrams = sock.type == socket.SOCK_DGRAM
        self._has_peer = connected_peer
        self._packets: deque[tuple[bytes, list[int], bytes | None]] = deque()
        self._queued = 0
        self._host = UNIXAddress(sock.getsockname() or None)
        self._peer = UNIXAddress((sock.getpeername() if connected_peer else None) or None)
        self.credentials = peer_credentials(sock) if connected_peer and not self._datagrams else None
        self.dropped = 0

    def fileno(self) -> int:
        """The socket's descriptor, -1 once it is closed."""
        return self.socket.fileno()

    def start(self, protocol: IProtocol) -> None:
        """Begin to serve ``protocol``."""
        self.protocol = protocol
        self.connected = 1
        self.startReading()
        protocol.makeConnection(cast(Any, self))

    def getHost(self) -> UNIXAddress:
        """Our own end's name."""
        return self._host

    def getPeer(self) -> UNIXAddress:
        """The peer's name, empty for a client that bound none."""
        return self._peer

    def peer_credentials(self) -> Credentials | None:
        """Who the peer was when it connected; nobody for datagrams."""
        return self.credentials

    def logPrefix(self) -> str:
        """The protocol's name."""
        return self._getLogPrefix(self.protocol)

    def write(self, data: bytes) -> None:
        """Queue one packet."""
        self.send_with_descriptors(data, ())

    def writeSequence(self, iovec: Any) -> None:
        """Queue one packet made of all of ``iovec``."""
        self.write(b"".join(iovec))

    def send_with_descriptors(
        self, data: bytes, descriptors: Sequence[int], address: bytes | None = None
    ) -> None:
        """Queue one packet.

        Args:
            data: the payload.
            descriptors: sent with it; they have to stay open until it is sent.
            address: where to, for a datagram socket without a peer.

        Raises:
            AndroidError: too long, too many descriptors, no destination, or the queue is full.
        """
        if not self.connected or self.disconnecting:
            return
        if len(data) > MAX_PACKET_BYTES:
            raise AndroidError(f"a packet of {len(data)} bytes, at most {MAX_PACKET_BYTES} are allowed")
        if len(descriptors) > MAX_DESCRIPTORS or (descriptors and not data):
            raise AndroidError(f"at most {MAX_DESCRIPTORS} descriptors, and at least one byte with them")
        if not data and not self._datagrams:
            return  # the peer would take it for our end
        if address is None and not self._has_peer:
            raise AndroidError("this datagram socket has no peer: give an address")
        if self._queued > 2 * MAX_QUEUED_BYTES:
            raise AndroidError("the peer does not take its packets, and the queue is full")
        self._packets.append((data, list(descriptors), address))
        # an empty datagram costs something too
        self._queued += len(data) + 64
        self.startWriting()
        if self._queued > MAX_QUEUED_BYTES and self.producer is not None and self.streamingProducer:
            self.producerPaused = True
            cast(Any, self.producer).pauseProducing()

    def doWrite(self) -> Any:
        """Send what the kernel takes."""
        while self._packets:
            data, fds, address = self._packets[0]
            try:
                send_message(self.socket, data, fds, address)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as reason:
                if reason.errno == errno.ENOBUFS:
                    return None
                if not self._datagrams or (
                    reason.errno in (errno.EPIPE, errno.ECONNRESET) and address is None
                ):
                    return main.CONNECTION_LOST
                # this one datagram cannot be delivered (too big, nobody there): the next may
                self.dropped += 1
                self.log.debug("datagram of {size} bytes dropped: {reason}", size=len(data), reason=reason)
            self._packets.popleft()
            self._queued -= len(data) + 64
        self.stopWriting()
        if self.producer is not None and (not self.streamingProducer or self.producerPaused):
            self.producerPaused = False
            cast(Any, self.producer).resumeProducing()
        elif self.disconnecting:
            return self._postLoseConnection()
        return None

    def doRead(self) -> Any:
        """Take packets, a bounded number of them."""
        for _ in range(MAX_READS_PER_TURN):
            if not self.connected or self.fileno() < 0 or not self._reading():
                return None
            try:
                message = receive_message(self.socket, MAX_PACKET_BYTES)
            except (BlockingIOError, InterruptedError):
                return None
            except AndroidError as reason:
                self.log.warn("{reason}", reason=reason)
                if self._datagrams:
                    continue
                return reason
            except OSError:
                return main.CONNECTION_LOST
            if not message.data and not self._datagrams:
                close_descriptors(message.descriptors)
                return main.CONNECTION_DONE
            self._received(message)
        return None

    def _reading(self) -> bool:
        return not self.disconnected and not getattr(self, "_paused", False)

    def pauseProducing(self) -> None:
        """Take no more packets for now."""
        self._paused = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Take packets again."""
        self._paused = False
        super().resumeProducing()

    def _received(self, message: Message) -> None:
        _deliver(self.protocol, message.descriptors, self.log)
        receiver = getattr(self.protocol, "datagramReceived", None)
        if self._datagrams and receiver is not None:
            receiver(message.data, message.address, message.credentials)
        else:
            self.protocol.dataReceived(message.data)

    def loseConnection(self, _connDone: Failure = _DONE) -> None:
        """Close once the queue is sent."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            if self._packets:
                self.startWriting()
            else:
                self.stopReading()
                self.stopWriting()
                self._clock.callLater(0, self.connectionLost, _connDone)

    def abortConnection(self) -> None:
        """Close now; what is queued is lost."""
        if self.connected:
            self.disconnecting = True
            self._packets.clear()
            self.stopReading()
            self.stopWriting()
            self._clock.callLater(0, self.connectionLost, Failure(error.ConnectionAborted()))

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket and tell the protocol, once."""
        if not self.connected:
            return
        super().connectionLost(reason)
        self._packets.clear()
        self.stopReading()
        self.stopWriting()
        protocol, self.protocol = self.protocol, None
        self.socket.close()
        if protocol is not None:
            protocol.connectionLost(reason)
