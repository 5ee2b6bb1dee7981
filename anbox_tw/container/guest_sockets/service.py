"""The manager's listener for those who want sockets in a container of theirs.

It is a UNIX socket beside the manager's own, with the same mode and group. The first request of a connection names the
instance; who asks is the kernel's word (``SO_PEERCRED``). An owner's connection goes to the helper of the container, and
nothing of it stays here.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IProtocol, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.container.authority import Caller
from anbox_tw.container.guest_sockets._wire import Kind, MessageError, Requests, encode_reply
from anbox_tw.container.spec import DEFAULT_INSTANCE
from anbox_tw.errors import AnboxError, NotRunning, PermissionRefused
from anbox_tw.interfaces import IConnectionCreator, IGuestGate
from anbox_tw.network import Connections, ISocketCreator, UnixListener, peer_credentials, peer_groups
from anbox_tw.network.connections import next_connection_id

if TYPE_CHECKING:
    from anbox_tw.container.manager import ContainerManager

__all__ = ["GuestSocketCreator", "GuestSocketService", "guest_socket_path"]

HELLO_TIMEOUT_S = 5.0
"""A client says what it wants when it connects."""

MAX_HELLOS = 64
"""Connections that have not said it yet."""

READ_BYTES = 2048  # more than a hello


def guest_socket_path(manager_socket: str) -> str:
    """Where the listener of a manager at ``manager_socket`` is."""
    return f"{manager_socket.removesuffix('.socket')}.guests"


@implementer(IReadDescriptor)
class _Hello:
    """A connection until it has said what it wants."""

    _log = Logger()

    def __init__(self, creator: GuestSocketCreator, sock: socket.socket, registry: Connections) -> None:
        self.id = next_connection_id()
        self.name = "guest sockets"
        self._creator = creator
        self._socket = sock
        self._registry = registry
        self._requests = Requests()
        registry.add(self)
        self._timer = creator.reactor.callLater(HELLO_TIMEOUT_S, self.abort, "it says nothing")
        creator.reactor.addReader(self)

    def describe(self) -> dict[str, Any]:
        """See ``ITrackedConnection``."""
        return {"id": self.id, "name": self.name}

    def close(self, reason: str) -> None:
        """See ``ITrackedConnection``."""
        self.abort(reason)

    def abort(self, reason: str) -> None:
        """End it."""
        if self._socket.fileno() < 0:
            return
        if self._timer.active():
            self._timer.cancel()
        self._creator.reactor.removeReader(self)
        self._socket.close()
        self._registry.remove(self)

    def fileno(self) -> int:
        """For the reactor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """For the reactor."""
        return self.name

    def connectionLost(self, reason: Failure) -> None:
        """For the reactor: it stops."""
        self.abort("the reactor stops")

    def doRead(self) -> None:
        """The client says something."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            requests = list(self._requests.receive_data(data))
        except MessageError:
            requests, data = [], b""
        if data and not requests:
            return
        if len(requests) == 1 and requests[0].kind == Kind.HELLO:
            self._answer(requests[0].id, requests[0].text)
        self.abort("it is done")

    def _answer(self, number: int, text: bytes) -> None:
        """Ask, tell the client, and hand it over. What it sends next is the helper's to read."""
        code = 0
        try:
            caller = self._caller()
            instance = text.decode("utf-8", "replace") or DEFAULT_INSTANCE
            # The answer leaves first: on this socket all that follows is the helper's.
            self._creator.hand_over(caller, instance, self._socket, lambda: self._say(number, 0))
            return
        except PermissionRefused as error:
            code = errno.EACCES
            self._log.warn("refused: {error}", error=error)
        except NotRunning as error:
            code = errno.ENOTCONN
            self._log.info("{error}", error=error)
        except AnboxError as error:
            code = errno.EINVAL
            self._log.info("{error}", error=error)
        self._say(number, code)

    def _say(self, number: int, code: int) -> None:
        try:
            self._socket.send(encode_reply(number, code))
        except OSError:
            pass  # it has left

    def _caller(self) -> Caller:
        seen = peer_credentials(self._socket)
        return Caller(seen.uid, seen.gid, peer_groups(self._socket), seen.pid)


@implementer(ISocketCreator, IConnectionCreator)
class GuestSocketCreator:
    """Serves the listener's connections.

    Args:
        reactor: reads from them.
        gate_of: gives the gate of an instance to a caller who may have it; raises `AnboxError` otherwise.
    """

    def __init__(self, reactor: Any, gate_of: Callable[[Caller, str], IGuestGate]) -> None:
        self.reactor = reactor
        self._gate_of = gate_of

    def hand_over(self, caller: Caller, instance: str, sock: socket.socket, tell: Callable[[], None]) -> None:
        """Hand a connection to an instance's helper.

        Raises:
            AnboxError: the caller may not have it, or there is none.
        """
        gate = self._gate_of(caller, instance)
        gate.check()
        tell()
        gate.hand_over(sock)

    def forward_socket(self, sock: socket.socket, registry: Connections) -> bool:
        """See `ISocketCreator`."""
        sock.setblocking(False)
        _Hello(self, sock, registry)
        return True

    def create_connection_for(self, address: IAddress) -> IProtocol | None:
        """See `IConnectionCreator`: what is full is refused."""
        return None


class GuestSocketService(Service):
    """Listens for those who want sockets in a container; where it cannot, the manager does its work without it.

    Args:
        reactor: an fd reactor.
        manager: knows the containers and who may have what; is told the path.
        path: of the socket; see `guest_socket_path`.
        gid: group of the socket, -1 for ours.
    """

    _log = Logger()

    def __init__(self, reactor: Any, manager: ContainerManager, path: str, *, gid: int = -1) -> None:
        self.setName("guest sockets")
        self._reactor = reactor
        self._manager = manager
        self._path = path
        self._gid = gid
        self._listener: UnixListener | None = None

    def startService(self) -> None:
        """Listen; where that cannot be, the reason is logged and nothing else happens."""
        super().startService()
        try:
            listener = UnixListener(
                self._reactor,
                self._path,
                GuestSocketCreator(self._reactor, self._manager.guest_gate),
                mode=0o660,
                gid=self._gid,
                registry=Connections(MAX_HELLOS, name="guest sockets", clock=self._reactor),
                name="guest-sockets",
            )
            listener.startService()
        except AnboxError as error:
            self._log.warn("there will be no direct forwards: {error}", error=error)
            return
        self._listener = listener
        self._manager.guest_sockets = listener.path

    def stopService(self) -> Deferred[None]:
        """Close it; fires when it is closed."""
        super().stopService()
        listener, self._listener = self._listener, None
        self._manager.guest_sockets = ""
        return listener.stopService() if listener is not None else succeed(None)
