"""``FwmarkServer``: sockets come as descriptors, and go back with a mark that leads them to a network.

Facts: AOSP ``system/netd/server/FwmarkServer.cpp`` (android-7.0).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import NetworkError
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.netd._wire import FwmarkRequest, decode_fwmark_request
from anbox_tw.netd.networks import SYSTEM, Fwmark, NetworkController
from anbox_tw.network.credentials import Credentials, peer_credentials
from anbox_tw.network.fds import FdReceiver, close_fds

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

__all__ = ["FwmarkCommand", "FwmarkListener", "FwmarkServer"]

_SO_MARK: Final = 36
REQUEST_BYTES: Final = 12
# a client sends its request with the connect; who does not is not one
REQUEST_TIMEOUT_S: Final = 5.0
# a request that is not whole gets this long for the rest; then it is one of the wrong size
REST_TIMEOUT_S: Final = 0.25


class FwmarkCommand(IntEnum):
    """``FwmarkCommand.h``."""

    ON_ACCEPT = 0
    ON_CONNECT = 1
    SELECT_NETWORK = 2
    PROTECT_FROM_VPN = 3
    SELECT_FOR_USER = 4
    QUERY_USER_ACCESS = 5


class FwmarkServer:
    """What is done with a socket, without the connection it came by."""

    def __init__(self, networks: NetworkController) -> None:
        self._networks = networks

    def handle(self, request: FwmarkRequest, fd: int | None, uid: int) -> int:
        """Do a request.

        Args:
            request: what is asked.
            fd: the socket; stays the caller's.
            uid: who asks.

        Returns:
            0, or an error number, negative.
        """
        networks = self._networks
        permission = networks.permission_of(uid)
        if request.command == FwmarkCommand.QUERY_USER_ACCESS:
            if permission & SYSTEM != SYSTEM:
                return -errno.EPERM
            return -networks.check_access(request.uid, request.net_id)
        if fd is None:
            return -errno.EBADF
        try:
            # without family and type the kernel is asked for both; and it says when this is no socket
            sock = socket.socket(fileno=fd)
        except OSError as error:
            return -(error.errno or errno.EIO)
        try:
            before = Fwmark.from_int(sock.getsockopt(socket.SOL_SOCKET, _SO_MARK))
            after = self._marked(before, request, uid, permission)
            if isinstance(after, int):
                return after
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, after.to_int())
        except OSError as error:
            return -(error.errno or errno.EIO)
        finally:
            # the descriptor stays open: it is the caller's
            sock.detach()
        return 0

    def _marked(self, mark: Fwmark, request: FwmarkRequest, uid: int, permission: int) -> Fwmark | int:
        networks = self._networks
        match request.command:
            case FwmarkCommand.ON_ACCEPT:
                # a connection that came in answers the way it came
                return evolve(mark, permission=permission | mark.permission)
            case FwmarkCommand.ON_CONNECT:
                net_id = mark.net_id
                if not mark.explicit and not mark.protected:
                    net_id = networks.for_connect(uid)
                elif not mark.explicit and not networks.is_virtual(net_id):
                    net_id = networks.default
                return evolve(mark, net_id=net_id, permission=permission)
            case FwmarkCommand.SELECT_NETWORK:
                if request.net_id == 0:
                    return Fwmark()
                refused = networks.check_access(uid, request.net_id)
                if refused:
                    return -refused
                return Fwmark(request.net_id & 0xFFFF, True, networks.can_protect(uid), permission)
            case FwmarkCommand.PROTECT_FROM_VPN:
                if not networks.can_protect(uid):
                    return -errno.EPERM
                net_id = mark.net_id
                if not mark.explicit and networks.is_virtual(net_id):
                    net_id = networks.default
                return evolve(mark, net_id=net_id, protected=True, permission=permission | mark.permission)
            case FwmarkCommand.SELECT_FOR_USER:
                if permission & SYSTEM != SYSTEM:
                    return -errno.EPERM
                net_id = networks.for_user(request.uid)
                return evolve(mark, net_id=net_id, protected=True, permission=permission)
        return -errno.EPROTO


@implementer(IHalfCloseableProtocol)
class _FwmarkProtocol(FdReceiver, Protocol):
    """One request, one answer, and the end."""

    # one socket; more are a mistake or a flood
    max_pending_fds = 4

    def __init__(self, server: FwmarkServer, clock: Any) -> None:
        self._server = server
        self._clock = clock
        self._data = b""
        self._timer: Any = None
        self._answered = False
        self._credentials = Credentials(-1, -1, -1)

    def connectionMade(self) -> None:
        try:
            self._credentials = peer_credentials(self.transport)
        except NetworkError:
            pass
        self._wait(REQUEST_TIMEOUT_S, self.transport.abortConnection)

    def dataReceived(self, data: bytes) -> None:
        if self._answered:
            return
        self._data += data
        if len(self._data) < REQUEST_BYTES:
            # the original takes one recvmsg for the whole; over a stream, pieces of it may come one by one
            self._wait(REST_TIMEOUT_S, self._answer)
            return
        self._answer()

    def _wait(self, delay: float, then: Callable[[], object]) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(delay, then)

    def _answer(self) -> None:
        request = decode_fwmark_request(self._data)
        if request is None:
            result = -errno.EBADMSG
        else:
            fds = self.take_fds(self.pending_fds)
            try:
                # exactly one descriptor belongs here
                fd = fds[0] if len(fds) == 1 else None
                result = self._server.handle(request, fd, self._credentials.uid)
            finally:
                close_fds(fds)
        self._finish(result)

    def _finish(self, result: int) -> None:
        self._answered = True
        self._wait(REQUEST_TIMEOUT_S, self.transport.abortConnection)
        self.close_pending_fds()
        self.transport.write(struct.pack("=i", result))
        self.transport.loseConnection()

    def readConnectionLost(self) -> None:
        """The client will send no more: a request that is not whole is answered as one of the wrong size."""
        if not self._answered:
            self._finish(-errno.EBADMSG)

    def writeConnectionLost(self) -> None:
        """Nothing to do: what we wrote is gone."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        super().connectionLost(reason)


@implementer(IConnectionCreator)
class FwmarkListener:
    """Serves the ``fwmarkd`` socket."""

    _log = Logger()

    def __init__(self, networks: NetworkController, *, clock: Any) -> None:
        self._server = FwmarkServer(networks)
        self._clock = clock

    def create_connection_for(self, address: IAddress) -> _FwmarkProtocol:
        """Serve one request."""
        return _FwmarkProtocol(self._server, self._clock)
