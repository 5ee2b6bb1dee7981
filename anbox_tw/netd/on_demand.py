"""netd's sockets beside a manager's: the daemon itself begins with the first client.

A container manager that nobody asks about the network pays nothing for it: no netlink socket, no ``nft``. What the
daemon changes is undone when the manager stops; what one that was killed has left makes it begin at once. Each
manager's daemon has an nftables table of its own, so that several of one host live side by side.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.errors import AnboxError
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.netd.daemon import DEFAULT_SOCKET_DIR, SOCKETS, Netd, make_socket_directory
from anbox_tw.netd.kernel_journal import SUFFIX as JOURNAL_SUFFIX
from anbox_tw.netd.nft import DEFAULT_TABLE
from anbox_tw.network import Connections, UnixListener

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

__all__ = ["OnDemandNetd"]


def table_for(socket_dir: str) -> str:
    """The name of the nftables table of the daemon with its sockets there."""
    if os.path.normpath(socket_dir) == DEFAULT_SOCKET_DIR:
        return DEFAULT_TABLE
    return f"{DEFAULT_TABLE}_{zlib.crc32(os.fsencode(os.path.normpath(socket_dir))):08x}"


@implementer(IConnectionCreator)
class _Creator:
    """Starts the daemon, and lets it serve the client."""

    def __init__(self, owner: OnDemandNetd, name: str) -> None:
        self._owner = owner
        self._name = name

    def create_connection_for(self, address: IAddress) -> Any:
        netd = self._owner.begin()
        return netd.creators[self._name].create_connection_for(address) if netd is not None else None


class OnDemandNetd(Service):
    """Listens like netd; is netd from the first client on.

    Attributes:
        netd: the daemon, once it has begun.
    """

    _log = Logger()

    def __init__(self, reactor: Any, socket_dir: str, *, mode: int = 0o600, **options: Any) -> None:
        """Make the service.

        Args:
            reactor: an fd reactor.
            socket_dir: where the sockets are put; made when it is missing, in a directory that is there.
            mode: of the sockets: who may connect may change this host's network as we may.
            options: more of `Netd`; its table's name, by default, goes by the directory.
        """
        self.setName("netd on demand")
        self._reactor = reactor
        self.socket_dir = socket_dir
        self._mode = mode
        options.setdefault("table", table_for(socket_dir))
        self._options = options
        self._listeners: list[UnixListener] = []
        self._made_directory = False
        self.netd: Netd | None = None

    def startService(self) -> None:
        """Listen; where that cannot be, the reason is logged and nothing else happens."""
        super().startService()
        connections = Connections(name="netd's clients", clock=self._reactor)
        try:
            self._made_directory = make_socket_directory(self.socket_dir)
            left = any(name.endswith(JOURNAL_SUFFIX) for name in os.listdir(self.socket_dir))
            for name in SOCKETS:
                path = os.path.join(self.socket_dir, name)
                listener = UnixListener(
                    self._reactor,
                    path,
                    _Creator(self, name),
                    mode=self._mode,
                    registry=connections,
                    name=name,
                )
                listener.startService()
                self._listeners.append(listener)
            if left:
                self.begin()
        except (AnboxError, OSError) as error:
            self._log.info(
                "netd's sockets are not served in {directory}: {error}",
                directory=self.socket_dir,
                error=error,
            )

    def begin(self) -> Netd | None:
        """The daemon; started when it is not. None, with the reason in the log, where it cannot be."""
        if self.netd is None and self.running:
            netd = Netd(self._reactor, socket_dir=self.socket_dir, sockets=(), **self._options)
            try:
                netd.startService()
            except AnboxError as error:
                self._log.warn("netd cannot start: {error}", error=error)
                return None
            self.netd = netd
        return self.netd

    def stopService(self) -> Deferred[None]:
        """Close the sockets, and undo what the daemon has changed; fires when that is done."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        listeners, self._listeners = self._listeners, []
        netd, self.netd = self.netd, None
        await DeferredList([listener.stopService() for listener in listeners], consumeErrors=True)
        if netd is not None:
            await netd.stopService()
        if self._made_directory:
            self._made_directory = False
            try:
                os.rmdir(self.socket_dir)
            except OSError as error:
                self._log.debug("{directory} stays: {error}", directory=self.socket_dir, error=error.strerror)
