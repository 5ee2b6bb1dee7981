"""Listening on a UNIX socket that somebody else has made: Android's init, or systemd.

Twisted's own way (``adoptStreamPort``, and so ``systemd:`` endpoints) takes such a socket for its own: it makes the path
readable and writable for everybody when it begins, whatever mode its maker gave it; and when it ends it deletes the path
and shuts the socket down, where its maker still listens and would hand it to the next start. This one does neither.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

__all__ = ["FIRST_DESCRIPTOR", "AdoptedUnixEndpoint", "initial_environment", "systemd_endpoint"]

FIRST_DESCRIPTOR: Final = 3
"""Of those that systemd hands over (``SD_LISTEN_FDS_START``)."""

# the kernel takes arguments and environment of a quarter of the stack: 2 MiB
MAX_ENVIRONMENT_BYTES: Final = 2 * 1024 * 1024

# as `UnixListener`; init binds and leaves listening to the daemon
BACKLOG: Final = 128


def initial_environment() -> dict[str, str]:
    """Our environment with the variables that systemd has set as they were when the process began.

    Twisted takes ``LISTEN_PID`` and ``LISTEN_FDS`` out of ``os.environ`` as soon as its endpoints are imported, which
    is before any command of ours can look.
    """
    found = dict(os.environ)
    try:
        with open("/proc/self/environ", "rb") as file:
            pieces = file.read(MAX_ENVIRONMENT_BYTES).split(b"\0")
    except OSError:
        return found
    for piece in pieces:
        name, _, value = piece.partition(b"=")
        if name.startswith(b"LISTEN_"):
            found.setdefault(os.fsdecode(name), os.fsdecode(value))
    return found


def systemd_endpoint(
    reactor: Any, description: str, environ: Mapping[str, str] | None = None
) -> AdoptedUnixEndpoint | None:
    """The endpoint of ``systemd:domain=UNIX:index=0`` or ``systemd:domain=UNIX:name=NAME``.

    Args:
        reactor: an IReactorFDSet.
        description: as Twisted's ``serverFromString`` takes it.
        environ: where systemd's variables are; by default our initial environment.

    Returns:
        The endpoint; None when it is another kind, or there is no such descriptor. Twisted then says what is wrong.
    """
    kind, *parts = description.split(":")
    words = dict(part.partition("=")[::2] for part in parts)
    environ = initial_environment() if environ is None else environ
    count = environ.get("LISTEN_FDS", "")
    if kind != "systemd" or words.get("domain") != "UNIX" or not count.isdigit():
        return None
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    index = words.get("index", "")
    if "name" in words:
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        index = str(names.index(words["name"])) if words["name"] in names else ""
    if not index.isdigit() or int(index) >= int(count):
        return None
    return AdoptedUnixEndpoint(reactor, FIRST_DESCRIPTOR + int(index))


class _AdoptedPort(unix.Port):
    """A port over a socket that is bound already."""

    # a shutdown is for everybody who has the socket, its maker too; Twisted's adopted TCP ports know that
    _shouldShutdown = False

    def __init__(self, sock: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        super().__init__(sock.getsockname() or b"", factory, BACKLOG, reactor=reactor)
        self._adopted = sock
        self._protocols: Any = factory

    def startListening(self) -> None:
        """Listen; neither the path nor its mode is touched."""
        self._adopted.listen(self.backlog)
        self._protocols.doStart()
        self.connected = True
        self.socket = self._adopted
        self.fileno = self.socket.fileno  # type: ignore[method-assign]  # as Twisted's own ports do
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Any) -> None:
        """Close our descriptor; the path is not ours to delete."""
        tcp.Port.connectionLost(self, reason)


@implementer(IStreamServerEndpoint)
class AdoptedUnixEndpoint:
    """An endpoint over a descriptor of a bound UNIX stream socket."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        """Make the endpoint.

        Args:
            reactor: an IReactorFDSet.
            descriptor: of the socket; it is duplicated when the endpoint listens, and stays the caller's.
        """
        self._reactor = reactor
        self._descriptor = descriptor

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See ``IStreamServerEndpoint``."""
        try:
            # close-on-exec, as os.dup makes it
            sock = socket.socket(fileno=os.dup(self._descriptor))
            sock.setblocking(False)
            port = _AdoptedPort(sock, factory, self._reactor)
            port.startListening()
        except OSError:
            return fail()
        return succeed(port)
