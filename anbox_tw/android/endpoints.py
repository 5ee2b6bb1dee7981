"""Endpoints for Android's local sockets, and the parsers of their strings.

``android:NAME`` is a socket in one of Android's three namespaces, on both sides; ``android-control:NAME``
is the socket that init made and handed over in ``ANDROID_SOCKET_NAME``, which only a server can have.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from attrs import frozen
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError, ConnectionDone, TimeoutError, UserError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.android._wire import SOCKET_DIRECTORY, Namespace
from anbox_tw.android.errors import AddressError
from anbox_tw.android.localsocket import (
    SOCKET_TYPES,
    LocalAddress,
    adopt_control_socket,
    bind_path,
)
from anbox_tw.android.transports import LocalStream, PacketTransport

__all__ = [
    "LIBCUTILS_BACKLOG",
    "AndroidClientEndpoint",
    "AndroidControlEndpoint",
    "AndroidServerEndpoint",
    "LocalPort",
    "parse_client",
    "parse_control_server",
    "parse_server",
]

LIBCUTILS_BACKLOG = 4
"""``LISTEN_BACKLOG`` of libcutils, and of libsysutils' listeners on init's sockets."""

CONNECT_TIMEOUT_S = 30.0
"""How long a client waits for a server whose backlog is full."""

RETRY_S = 0.02
"""Pause between tries while the backlog is full: the kernel tells nobody when there is room again."""

ACCEPT_PAUSE_S = 1.0
"""Pause after an accept failed for want of descriptors or memory, as libsysutils does."""

MAX_ACCEPTS_PER_TURN = 50
"""Connections taken before the reactor gets its turn again."""


@frozen
class _FileIdentity:
    """Which file a path was when we made it, so that only ours is ever removed."""

    path: bytes
    device: int
    inode: int

    @classmethod
    def of(cls, path: bytes) -> _FileIdentity:
        status = os.lstat(path)
        return cls(path, status.st_dev, status.st_ino)

    def remove(self) -> None:
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                os.unlink(self.path)
        except OSError:
            pass  # gone, or its directory is


@implementer(IListeningPort)
class LocalPort(FileDescriptor):
    """A listening stream or seqpacket socket, or a bound datagram socket.

    A datagram socket has one protocol, made when the port starts; it lives as long as the port.
    """

    log = Logger()

    def __init__(
        self, sock: socket.socket, factory: IProtocolFactory, reactor: Any, made: _FileIdentity | None = None
    ) -> None:
        """Wrap ``sock``, which is bound (and listening, unless it is for datagrams)."""
        super().__init__(reactor)
        self._clock = reactor
        self.socket = sock
        sock.setblocking(False)
        self.factory = factory
        self._made = made
        self._address = UNIXAddress(sock.getsockname() or None)
        self._datagrams: PacketTransport | None = None
        self._pause: Any = None
        self._stopped: list[Deferred[None]] = []

    def fileno(self) -> int:
        """The socket's descriptor, -1 once it is closed."""
        return self.socket.fileno()

    def logPrefix(self) -> str:
        """The factory's name."""
        return self._getLogPrefix(self.factory)

    def getHost(self) -> UNIXAddress:
        """The name that is listened on."""
        return self._address

    def startListening(self) -> None:
        """Begin to accept."""
        self.factory.doStart()
        self.connected = 1
        if self.socket.type == socket.SOCK_DGRAM:
            protocol = self.factory.buildProtocol(self._address)
            if protocol is not None:
                self._datagrams = PacketTransport(self.socket, self.reactor, connected_peer=False)
                self._datagrams.start(protocol)
            return
        self.startReading()

    def doRead(self) -> None:
        """Accept what is waiting."""
        for _ in range(MAX_ACCEPTS_PER_TURN):
            if not self.connected:
                return
            try:
                accepted, _address = self.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as reason:
                if reason.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.log.error("{address} cannot accept: {reason}", address=self._address, reason=reason)
                else:
                    self.log.warn(
                        "{address} waits before it accepts: {reason}", address=self._address, reason=reason
                    )
                self.stopReading()
                self._pause = self._clock.callLater(ACCEPT_PAUSE_S, self._resume)
                return
            self._serve(accepted)

    def _resume(self) -> None:
        self._pause = None
        if self.connected:
            self.startReading()

    def _serve(self, accepted: socket.socket) -> None:
        try:
            protocol = self.factory.buildProtocol(UNIXAddress(accepted.getpeername() or None))
        except Exception:
            self.log.failure("the factory of {address} failed", address=self._address)
            protocol = None
        if protocol is None:
            accepted.close()
            return
        _attach(accepted, protocol, self.reactor)

    def stopListening(self) -> Deferred[None]:
        """Close the port, and remove its file if it is still ours; accepted connections stay."""
        done: Deferred[None] = Deferred()
        if not self.connected:
            return succeed(None)
        self.connected = 0
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self.stopReading()
        if self._datagrams is not None:
            self._datagrams.connectionLost(Failure(ConnectionDone()))
        self.socket.close()
        if self._made is not None:
            self._made.remove()
        self.factory.doStop()
        self._clock.callLater(0, done.callback, None)
        return done

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lost the socket (it shuts down, or polling failed)."""
        self.stopListening()


def _attach(sock: socket.socket, protocol: IProtocol, reactor: Any) -> None:
    """Put ``protocol`` on a connected socket."""
    if sock.type == socket.SOCK_STREAM:
        transport = LocalStream(sock, protocol, reactor)
        protocol.makeConnection(transport)
    else:
        sock.setblocking(False)
        PacketTransport(sock, reactor).start(protocol)


def _socket(type_name: str) -> socket.socket:
    return socket.socket(socket.AF_UNIX, SOCKET_TYPES[type_name])


@implementer(IStreamServerEndpoint)
class AndroidServerEndpoint:
    """Listens on a local socket, as ``socket_local_server`` does."""

    def __init__(
        self,
        reactor: Any,
        address: LocalAddress,
        type_name: str = "stream",
        *,
        mode: int | None = None,
        uid: int = -1,
        gid: int = -1,
        backlog: int = LIBCUTILS_BACKLOG,
        pass_credentials: bool = False,
    ) -> None:
        """Remember what to listen on.

        Args:
            reactor: an ``IReactorFDSet`` and ``IReactorTime``.
            address: the name; a file is made anew, the socket that is there goes.
            type_name: ``stream``, ``dgram`` or ``seqpacket``.
            mode: permission bits of the file, by default what the umask leaves.
            uid: owner of the file, or -1.
            gid: group of the file, or -1.
            backlog: connections that may wait.
            pass_credentials: have the kernel add its sender to each datagram.

        Raises:
            AddressError: the name does not fit, or the type is none.
        """
        if type_name not in SOCKET_TYPES:
            raise AddressError(f"unknown socket type {type_name!r}", "use stream, dgram or seqpacket")
        self._reactor = reactor
        self.address = address
        self.type_name = type_name
        self._path = address.path
        self._mode, self._uid, self._gid = mode, uid, gid
        self._backlog = backlog
        self._pass_credentials = pass_credentials

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Bind and listen; fails with ``CannotListenError``."""
        sock = _socket(self.type_name)
        made: _FileIdentity | None = None
        try:
            if self._pass_credentials:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            if self.address.in_filesystem:
                refused = bind_path(sock, self._path, mode=self._mode, uid=self._uid, gid=self._gid)
                made = _FileIdentity.of(self._path)
                if refused:
                    raise refused[0][1]
            else:
                sock.bind(self._path)
            if self.type_name != "dgram":
                sock.listen(self._backlog)
        except (OSError, AddressError) as reason:
            sock.close()
            if made is not None:
                made.remove()
            return fail(CannotListenError(None, os.fsdecode(self._path), reason))
        port = LocalPort(sock, protocolFactory, self._reactor, made)
        port.startListening()
        return succeed(port)


@implementer(IStreamServerEndpoint)
class AndroidControlEndpoint:
    """Listens on the socket that init handed to this process."""

    def __init__(
        self, reactor: Any, name: str, *, backlog: int = LIBCUTILS_BACKLOG, type_name: str | None = None
    ) -> None:
        """Remember which socket.

        Args:
            reactor: an ``IReactorFDSet`` and ``IReactorTime``.
            name: as on the ``socket`` line.
            backlog: connections that may wait.
            type_name: refuse a socket of another type.
        """
        self._reactor = reactor
        self.name = name
        self._backlog = backlog
        self._type_name = type_name

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Adopt and listen; the file stays when the port stops, since it is init's.

        Fails with ``ControlSocketError`` when there is no such socket.
        """
        try:
            sock = adopt_control_socket(self.name, type_name=self._type_name)
        except Exception:
            return fail(Failure())
        # a copy: the number in the environment stays good for a second listen after this port stops
        copy = sock.dup()
        sock.detach()
        try:
            if copy.type != socket.SOCK_DGRAM:
                copy.listen(self._backlog)
        except OSError as reason:
            copy.close()
            return fail(CannotListenError(None, self.name, reason))
        port = LocalPort(copy, protocolFactory, self._reactor)
        port.startListening()
        return succeed(port)


@implementer(IStreamClientEndpoint)
class AndroidClientEndpoint:
    """Connects to a local socket, as ``socket_local_client`` does."""

    def __init__(
        self,
        reactor: Any,
        address: LocalAddress,
        type_name: str = "stream",
        *,
        timeout: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Remember whom to connect to.

        Args:
            reactor: an ``IReactorFDSet`` and ``IReactorTime``.
            address: the server's name.
            type_name: ``stream``, ``dgram`` or ``seqpacket``.
            timeout: seconds to wait while the server's backlog is full.

        Raises:
            AddressError: the name does not fit, or the type is none.
        """
        if type_name not in SOCKET_TYPES:
            raise AddressError(f"unknown socket type {type_name!r}", "use stream, dgram or seqpacket")
        self._reactor = reactor
        self.address = address
        self.type_name = type_name
        self._path = address.path
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with the ``OSError`` of the kernel, or ``TimeoutError``."""
        sock = _socket(self.type_name)
        sock.setblocking(False)
        deadline = self._reactor.seconds() + self._timeout
        waiting: list[Any] = []

        def cancel(_deferred: Deferred[IProtocol]) -> None:
            for call in waiting:
                if call.active():
                    call.cancel()
            sock.close()

        result: Deferred[IProtocol] = Deferred(cancel)

        def attempt() -> None:
            waiting.clear()
            try:
                sock.connect(self._path)
            except BlockingIOError:
                # the server is there and its backlog is full
                if self._reactor.seconds() >= deadline:
                    sock.close()
                    result.errback(TimeoutError(string=f"{self.address.name!r} accepts nobody"))
                else:
                    waiting.append(self._reactor.callLater(RETRY_S, attempt))
                return
            except OSError as reason:
                sock.close()
                result.errback(reason)
                return
            try:
                protocol = protocolFactory.buildProtocol(UNIXAddress(self._path))
                if protocol is None:
                    raise UserError(string="the factory made no protocol")
                _attach(sock, protocol, self._reactor)
            except Exception:
                sock.close()
                result.errback(Failure())
                return
            result.callback(protocol)

        attempt()
        return result


def _namespace(text: str) -> Namespace:
    try:
        return Namespace[text.upper()]
    except KeyError:
        raise ValueError(f"unknown namespace {text!r}: use abstract, reserved or filesystem") from None


def _address(name: str, namespace: str, socket_directory: str) -> LocalAddress:
    return LocalAddress(name, _namespace(namespace), socket_directory)


def parse_server(
    reactor: Any,
    name: str,
    *,
    namespace: str = "abstract",
    type: str = "stream",
    socketDir: str = SOCKET_DIRECTORY,
    mode: str | None = None,
    uid: str = "-1",
    gid: str = "-1",
    backlog: str = str(LIBCUTILS_BACKLOG),
    passcred: str = "0",
) -> AndroidServerEndpoint:
    """``android:NAME[:namespace=…][:type=…][:socketDir=…][:mode=660][:uid=…][:gid=…][:backlog=…][:passcred=1]``."""
    return AndroidServerEndpoint(
        reactor,
        _address(name, namespace, socketDir),
        type,
        mode=None if mode is None else int(mode, 8),
        uid=int(uid),
        gid=int(gid),
        backlog=int(backlog),
        pass_credentials=passcred == "1",
    )


def parse_client(
    reactor: Any,
    name: str,
    *,
    namespace: str = "abstract",
    type: str = "stream",
    socketDir: str = SOCKET_DIRECTORY,
    timeout: str = str(CONNECT_TIMEOUT_S),
) -> AndroidClientEndpoint:
    """``android:NAME[:namespace=…][:type=…][:socketDir=…][:timeout=SECONDS]``."""
    return AndroidClientEndpoint(reactor, _address(name, namespace, socketDir), type, timeout=float(timeout))


def parse_control_server(
    reactor: Any, name: str, backlog: str = str(LIBCUTILS_BACKLOG), type: str | None = None
) -> AndroidControlEndpoint:
    """``android-control:NAME[:backlog=…][:type=…]``."""
    return AndroidControlEndpoint(reactor, name, backlog=int(backlog), type_name=type)
