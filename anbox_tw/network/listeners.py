"""Listeners: services that hand each accepted connection to an `IConnectionCreator` and close all when they stop."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.application.service import Service
from twisted.internet import tcp, unix
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import AlreadyRunning, AnboxError, ConfigError, NetworkError, PermissionRefused
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.network._published import PublishedSocket, check_path
from anbox_tw.network.connections import CLOSE_GRACE_S, Connections
from anbox_tw.network.credentials import describe_process
from anbox_tw.network.forwarding import ISocketCreator
from anbox_tw.network.ports import holder_of_port
from anbox_tw.network.socket_connection import SocketConnection
from anbox_tw.network.tracked import TrackedProtocol, abort_transport

__all__ = ["BACKLOG", "CreatorFactory", "EndpointListener", "TcpListener", "UnixListener"]

# accepted in one turn before the other descriptors get theirs
_ACCEPTS_AT_ONCE = 64
_STREAM = int(socket.SOCK_STREAM)
# no descriptor or memory is left for one more
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_ROOM_WAIT_S = 0.1
# connections that the kernel completes while the reactor is busy; the kernel cuts it to net.core.somaxconn
BACKLOG = 128


class CreatorFactory(Factory):
    """A Twisted factory over an `IConnectionCreator`; what it builds is in a `Connections` registry while it is open.

    For endpoints and applications that want a factory; the listeners here make their own.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self, creator: IConnectionCreator, registry: Connections, name: str, *, tcp_no_delay: bool = False
    ) -> None:
        """Make the factory.

        Args:
            creator: decides who serves.
            registry: where the connections are listed and limited.
            name: of each connection.
            tcp_no_delay: whether to set TCP_NODELAY on each: protocols of small messages wait 40 ms without it.
        """
        self.creator = IConnectionCreator(creator)
        self.registry = registry
        self.name = name
        self._no_delay = tcp_no_delay

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self.registry.full:
            self.registry.refused += 1
            self._log.warn(
                "{name}: refused {address}: all {limit} connections are taken",
                name=self.name,
                address=addr,
                limit=self.registry.limit,
            )
            return None
        try:
            protocol = self.creator.create_connection_for(addr)  # type: ignore[arg-type]  # a listening port always knows the peer's address
        except Exception:
            self._log.failure(
                "{name}: nothing could be made to serve {address}", name=self.name, address=addr
            )
            return None
        if protocol is None:
            return None
        if (
            isinstance(protocol, SocketConnection)
            and protocol.registry is self.registry
            and not self._no_delay
        ):
            # it lists itself there
            return protocol
        tracked = protocol if isinstance(protocol, TrackedProtocol) else TrackedProtocol(protocol)
        if isinstance(tracked.protocol, SocketConnection) and tracked.protocol.registry is self.registry:
            tracked.protocol.registry = None
        tracked.name, tracked.address = self.name, addr
        tracked.on_made(self._made)
        tracked.on_lost(self.registry.remove)
        return tracked

    def serve_socket(self, sock: socket.socket, address: Any, port: Any, number: int) -> None:
        """Serve a socket that was just accepted, if it can be without a transport; else with one, as Twisted does."""
        if not self.registry.full and self.creator.forward_socket(sock, self.registry):  # type: ignore[attr-defined]  # an ISocketCreator
            return
        protocol = self.buildProtocol(port._buildAddr(address))
        if protocol is None:
            sock.close()
        else:
            protocol.makeConnection(port.transport(sock, protocol, address, port, number, port.reactor))

    def _made(self, connection: TrackedProtocol) -> None:
        transport: Any = connection.transport
        if self._no_delay and hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        try:
            self.registry.add(connection)
        except NetworkError as error:
            # the last place was taken between accept and here
            self._log.warn(
                "{name}: refused {address}: {error}", name=self.name, address=connection.address, error=error
            )
            abort_transport(transport)


class _Listener(Service):
    """What the three listeners share."""

    _log = Logger()

    def __init__(
        self, creator: IConnectionCreator, registry: Connections | None, name: str, grace: float, clock: Any
    ) -> None:
        self.connection_name = name
        self.setName(name)
        self.creator = IConnectionCreator(creator)
        self.connections = registry if registry is not None else Connections(name=name, clock=clock)
        self._grace = grace
        self._port: IListeningPort | None = None

    @property
    def listening(self) -> bool:
        """Whether connections are accepted now."""
        return self._port is not None

    def _factory(self, *, tcp_no_delay: bool = False) -> CreatorFactory:
        return CreatorFactory(self.creator, self.connections, self.connection_name, tcp_no_delay=tcp_no_delay)

    def _quick(self) -> bool:
        return ISocketCreator.providedBy(self.creator)

    def _listen(self) -> None:
        raise NotImplementedError

    def privilegedStartService(self) -> None:
        # a port below 1024 or a directory of root's is taken before the process gives up its privileges
        if self._port is None:
            self._listen()
        super().privilegedStartService()

    def startService(self) -> None:
        if self._port is None:
            self._listen()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop listening and close every accepted connection.

        Returns:
            A Deferred that fires when all is really closed; calling this again is allowed.
        """
        super().stopService()
        port, self._port = self._port, None
        stopped: Deferred[Any] = maybeDeferred(port.stopListening) if port is not None else succeed(None)
        stopped.addErrback(self._stop_failed)
        closed = self.connections.close_all(grace=self._grace)
        return stopped.addCallback(lambda _: closed)

    def _stop_failed(self, failure: Failure) -> None:
        self._log.failure("{name}: closing the listening socket failed", failure, name=self.connection_name)


class _QuickAccept:
    """Mix-in for a Twisted port whose creator is an `ISocketCreator`: sockets go to it as they are."""

    _log = Logger()
    addressFamily: Any
    factory: Any
    socket: Any
    reactor: Any
    sessionno: int
    # accepted with the last descriptor, and waiting for one more to be served
    _held: tuple[socket.socket, Any] | None = None

    def doRead(self) -> None:
        """Accept what waits, some at a time."""
        accept, family = self.socket._accept, self.addressFamily
        for _ in range(_ACCEPTS_AT_ONCE):
            held, self._held = self._held, None
            try:
                if held is not None:
                    sock, address = held
                else:
                    # What socket.accept does, but for its enums and the look at the default timeout: these cost a
                    # twentieth of the whole connection.
                    fd, address = accept()
                    sock = socket.socket(family, _STREAM, 0, fileno=fd)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    # the caller has left already
                    continue
                self._wait_for_room("accept", error)
                return
            self.sessionno += 1
            try:
                self.factory.serve_socket(sock, address, self, self.sessionno)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._held = sock, address
                    self._wait_for_room("serve", error)
                    return
                self._log.failure("a connection could not be served")
                sock.close()
            except Exception:
                self._log.failure("a connection could not be served")
                sock.close()

    def _wait_for_room(self, what: str, error: OSError) -> None:
        # The next accept would fail too, and the listening socket stays readable: the callers wait in the backlog.
        self._log.warn("cannot {what} a connection: {error}", what=what, error=error.strerror)
        self.stopReading()  # type: ignore[attr-defined]  # the port's
        self.reactor.callLater(_NO_ROOM_WAIT_S, self._accept_again)

    def _accept_again(self) -> None:
        if not self.connected or self.disconnecting:  # type: ignore[attr-defined]  # the port's
            if self._held is not None:
                self._held[0].close()
            return
        self.startReading()  # type: ignore[attr-defined]  # the port's
        if self._held is not None:
            self.doRead()


class _QuickTcpPort(_QuickAccept, tcp.Port):
    """Twisted's TCP port with a quicker accept.

    Attributes:
        no_delay: whether accepted sockets get TCP_NODELAY, which they inherit.
    """

    no_delay = False

    def createInternetSocket(self) -> socket.socket:
        """See ``tcp.Port``."""
        made: socket.socket = super().createInternetSocket()
        if self.no_delay:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


class _PublishedPort(unix.Port):
    """Twisted's UNIX port over a socket that was published by us, and whose path only we may remove."""

    def __init__(self, published: PublishedSocket, mode: int, factory: CreatorFactory, reactor: Any) -> None:
        super().__init__(published.path, factory, backlog=BACKLOG, mode=mode, reactor=reactor)  # type: ignore[arg-type]  # a str will do, and a Factory is a factory
        self._preexistingSocket = published.socket
        self._published = published

    def connectionLost(self, reason: Any) -> None:
        # while the socket is open: until the path is gone nobody may take it for stale
        self._published.withdraw()
        tcp.Port.connectionLost(self, reason)


class _QuickPublishedPort(_QuickAccept, _PublishedPort):
    """The same with a quicker accept."""


class UnixListener(_Listener):
    """Listens at a path: takes over a stale socket but never a live one, and removes only its own.

    Attributes:
        path: absolute.
        connections: the registry of the accepted connections.
    """

    def __init__(
        self,
        reactor: Any,
        path: str,
        creator: IConnectionCreator,
        *,
        mode: int = 0o660,
        uid: int = -1,
        gid: int = -1,
        registry: Connections | None = None,
        name: str | None = None,
        close_grace: float = CLOSE_GRACE_S,
    ) -> None:
        """Make the service; nothing is touched before it starts.

        Args:
            reactor: an fd reactor.
            path: of the socket; its directory must exist at the start.
            creator: decides who serves.
            mode: permission bits, exact before anybody can connect, whatever the umask is.
            uid: owner, -1 for ours.
            gid: group, -1 for ours.
            registry: where the connections are listed and limited; a new `Connections` when it is None.
            name: of the service and its connections; the path's last part when it is None.
            close_grace: seconds a peer may take to read the rest when the service stops.

        Raises:
            ConfigError: the path cannot be a socket's.
        """
        self.path = check_path(path)
        super().__init__(creator, registry, name or self.path.rpartition("/")[2], close_grace, reactor)
        self._reactor = reactor
        self._mode, self._uid, self._gid = mode, uid, gid
        self._published: PublishedSocket | None = None

    def _listen(self) -> None:
        published = PublishedSocket.publish(self.path, mode=self._mode, uid=self._uid, gid=self._gid)
        kind = _QuickPublishedPort if self._quick() else _PublishedPort
        port = kind(published, self._mode, self._factory(), self._reactor)
        try:
            port.startListening()
        except Exception as error:
            published.withdraw()
            published.socket.close()
            raise NetworkError(f"cannot listen on {self.path}: {error}") from error
        self._port = port
        self._published = published

    def owns_path(self) -> bool:
        """Whether clients that connect to the path reach this listener (nobody removed or replaced it)."""
        return self._port is not None and self._published is not None and self._published.owns_path()

    def get_address(self) -> UNIXAddress:
        """The address that peers connect to."""
        return UNIXAddress(self.path)


class TcpListener(_Listener):
    """Listens on a TCP port, on loopback unless told otherwise; sets TCP_NODELAY on each connection.

    Attributes:
        connections: the registry of the accepted connections.
    """

    def __init__(
        self,
        reactor: Any,
        port: int | socket.socket,
        creator: IConnectionCreator,
        *,
        interface: str = "127.0.0.1",
        registry: Connections | None = None,
        name: str | None = None,
        close_grace: float = CLOSE_GRACE_S,
        tcp_no_delay: bool = True,
    ) -> None:
        """Make the service; nothing is bound before it starts.

        Args:
            reactor: an IReactorTCP and IReactorSocket.
            port: 0 for any free one, or a listening socket (of a `PortClaim`) that the service takes over: it then
                can be started once.
            creator: decides who serves.
            interface: IPv4 or IPv6 address to bind; an empty string binds all IPv4 ones.
            registry: where the connections are listed and limited; a new `Connections` when it is None.
            name: of the service and its connections.
            close_grace: seconds a peer may take to read the rest when the service stops.
            tcp_no_delay: whether to set TCP_NODELAY on accepted connections.
        """
        label = port if isinstance(port, int) else port.getsockname()[1]
        super().__init__(creator, registry, name or f"tcp:{label}", close_grace, reactor)
        self._reactor = reactor
        self._socket = port if isinstance(port, socket.socket) else None
        self._wanted: int = label
        self.interface = interface
        self._no_delay = tcp_no_delay

    def _listen(self) -> None:
        factory = self._factory(tcp_no_delay=self._no_delay)
        if self._socket is not None:
            with self._socket as listening:
                if listening.fileno() < 0:
                    raise NetworkError(f"the socket given for TCP port {self._wanted} is closed")
                self._port = self._adopt(listening, factory)
            return
        quick = self._quick() and (isIPAddress(self.interface) or isIPv6Address(self.interface))
        try:
            if quick:
                port = _QuickTcpPort(self._wanted, factory, BACKLOG, self.interface, self._reactor)
                port.no_delay = self._no_delay
                port.startListening()
                self._port = port
            else:
                self._port = self._reactor.listenTCP(
                    self._wanted, factory, backlog=BACKLOG, interface=self.interface
                )
        except CannotListenError as error:
            raise self._explain(error) from error

    def _adopt(self, listening: socket.socket, factory: CreatorFactory) -> Any:
        if not self._quick() or listening.family != socket.AF_INET:
            return self._reactor.adoptStreamPort(listening.fileno(), listening.family, factory)
        port = _QuickTcpPort._fromListeningDescriptor(
            self._reactor, listening.fileno(), listening.family, factory
        )
        port.startListening()
        return port

    def _explain(self, error: CannotListenError) -> AnboxError:
        where = f"TCP port {self._wanted} of {self.interface or 'all interfaces'}"
        cause: Any = error.socketError
        code = getattr(cause, "errno", None)
        if code == errno.EADDRINUSE:
            holder = describe_process(holder_of_port(self._wanted))
            return AlreadyRunning(f"{where} is taken, {holder}", "stop it first, or choose another port")
        if code in (errno.EACCES, errno.EPERM):
            return PermissionRefused(
                f"{where}: not permitted", "choose a port of 1024 or above, or start as root"
            )
        if code == errno.EADDRNOTAVAIL or isinstance(cause, (socket.gaierror, OverflowError)):
            return ConfigError(f"{where} cannot be bound: {cause}", "choose an address that this host has")
        return NetworkError(f"cannot listen on {where}: {cause}")

    def get_port(self) -> int:
        """The port that is really bound.

        Raises:
            NetworkError: the service does not listen.
        """
        if self._port is None:
            raise NetworkError(f"{self.connection_name} does not listen")
        host: Any = self._port.getHost()
        return int(host.port)


class EndpointListener(_Listener):
    """Listens on any Twisted server endpoint (``systemd:``, ``ssl:``, ``tcp6:``, one of a test).

    Attributes:
        connections: the registry of the accepted connections.
    """

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        creator: IConnectionCreator,
        *,
        registry: Connections | None = None,
        name: str = "endpoint",
        close_grace: float = CLOSE_GRACE_S,
        tcp_no_delay: bool = True,
        clock: Any = None,
    ) -> None:
        """Make the service; nothing is bound before it starts.

        Args:
            endpoint: where to listen.
            creator: decides who serves.
            registry: where the connections are listed and limited; a new `Connections` when it is None.
            name: of the service and its connections.
            close_grace: seconds a peer may take to read the rest when the service stops.
            tcp_no_delay: whether to set TCP_NODELAY where the transport can.
            clock: for the grace; the global reactor when it is None.
        """
        super().__init__(creator, registry, name, close_grace, clock)
        self._endpoint = endpoint
        self._no_delay = tcp_no_delay
        self._pending: Deferred[IListeningPort] | None = None
        self._waiting: list[Deferred[IListeningPort]] = []

    def _listen(self) -> None:
        if self._pending is not None:
            return
        failures: list[Failure] = []
        starting = True
        pending = self._pending = self._endpoint.listen(self._factory(tcp_no_delay=self._no_delay))

        def done(port: IListeningPort) -> None:
            self._pending = None
            self._port = port
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.callback(port)

        def failed(failure: Failure) -> None:
            self._pending = None
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.errback(failure)
            if starting:
                failures.append(failure)
            else:
                self._log.failure("{name}: cannot listen", failure, name=self.connection_name)

        pending.addCallbacks(done, failed)
        starting = False
        if failures:
            error = failures[0].value
            if isinstance(error, AnboxError):
                raise error
            raise NetworkError(f"{self.connection_name} cannot listen: {error}") from error

    def when_listening(self) -> Deferred[IListeningPort]:
        """A Deferred of the caller's own that fires with the port when the endpoint listens, or with its failure."""
        if self._port is not None:
            return succeed(self._port)
        waiter: Deferred[IListeningPort] = Deferred()
        self._waiting.append(waiter)
        return waiter

    def stopService(self) -> Deferred[None]:
        """See `UnixListener.stopService`; an endpoint that is just starting to listen is cancelled."""
        if self._pending is not None:
            self._pending.cancel()
        return super().stopService()
