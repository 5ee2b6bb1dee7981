"""The daemon: its services by name, and a transport for each connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IProtocol
from twisted.logger import Logger

from anbox_tw.adb._state import Connection, Role
from anbox_tw.adb.daemon import shell, sockets
from anbox_tw.adb.daemon.config import DaemonConfig
from anbox_tw.adb.daemon.files import FileTree, RootedTree
from anbox_tw.adb.daemon.process import ChildSet
from anbox_tw.adb.daemon.sync import SyncStream, SyncThreads
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.transport import DeviceTransport
from anbox_tw.errors import AdbError

__all__ = ["AdbDaemon", "Service"]

Answer = IProtocol | Deferred[IProtocol | None] | None
Service = Callable[[str, AdbStream], Answer]
"""Serves one stream: gets what follows the service's name and the stream. Answers as ``OpenHandler``."""

STOP_TIMEOUT_S = 10.0


class AdbDaemon:
    """An adbd.

    Args:
        reactor: the reactor.
        config: what it is and may do.

    Attributes:
        config: the settings.
        services: served names; a name ends with ``:`` when an argument follows, or with ``,`` or ``:``
            as ``shell`` does. Add to it to offer more.
        transports: the connections there are now.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: DaemonConfig | None = None) -> None:
        self.reactor = reactor
        self.config = config or DaemonConfig()
        self.transports: set[DeviceTransport] = set()
        self.children = ChildSet(reactor)
        self.sync_threads = SyncThreads()
        self.tree = RootedTree(self.config.root) if self.config.root else FileTree()
        self.services: dict[str, Service] = {
            "exec": self._exec,
            "sync": self._sync,
            "tcp": self._tcp,
            "dev": self._dev,
            "dev-raw": self._dev_raw,
        }
        for kind in ("local", "localreserved", "localabstract", "localfilesystem"):
            self.services[kind] = self._local(kind)

    def build_transport(self) -> DeviceTransport:
        """The protocol for one connection with a host, over whatever byte stream."""
        config = self.config
        connection = Connection(Role.DEVICE, config.banner(), max_payload=config.max_payload)
        transport = DeviceTransport(
            self.reactor,
            connection=connection,
            authority=config.authority,
            tls_key=config.tls_key,
            open_handler=self.open_service,
        )
        self.transports.add(transport)
        transport.when_closed().addCallback(lambda _: self.transports.discard(transport))
        return transport

    def open_service(self, name: str, stream: AdbStream) -> Answer:
        """Serve one stream that a host opens.

        Raises:
            AdbError: there is no such service, or it cannot be started.
        """
        word, colon, argument = name.partition(":")
        if word == "shell" or word.startswith("shell,"):
            if not colon:
                raise AdbError("a shell service needs its colon")
            return shell.open_shell(self.reactor, self.children, self.config, word[6:], argument)
        service = self.services.get(word)
        if service is None:
            raise AdbError(f"there is no service {name[:100]!r}")
        return service(argument, stream)

    def _exec(self, command: str, _stream: AdbStream) -> Answer:
        return shell.open_exec(self.reactor, self.children, self.config, command)

    def _sync(self, _argument: str, _stream: AdbStream) -> Answer:
        self.sync_threads.begin()
        return SyncStream(self.reactor, self.tree, self.sync_threads)

    def _tcp(self, argument: str, _stream: AdbStream) -> Answer:
        return sockets.connect_stream(sockets.tcp_endpoint(self.reactor, sockets.parse_tcp_port(argument)))

    def _local(self, kind: str) -> Service:
        def serve(argument: str, _stream: AdbStream) -> Answer:
            address = sockets.parse_local(kind, argument)
            return sockets.connect_stream(sockets.unix_endpoint(self.reactor, address))

        return serve

    def _dev(self, argument: str, _stream: AdbStream) -> Answer:
        return sockets.DeviceFile(self.reactor, argument)

    def _dev_raw(self, argument: str, _stream: AdbStream) -> Answer:
        return sockets.DeviceFile(self.reactor, argument, raw=True)

    def stop(self) -> Deferred[None]:
        """End every connection and child; fires when they are gone."""
        for transport in list(self.transports):
            transport.abort("adbd is stopping")
        waiting = DeferredList([self.children.stop(), self.sync_threads.when_idle()])
        done: Deferred[None] = waiting.addCallback(lambda _: None)

        def gave_up(_result: object, _timeout: float) -> None:
            self._log.warn("some services did not end within {seconds} s", seconds=STOP_TIMEOUT_S)

        return done.addTimeout(STOP_TIMEOUT_S, self.reactor, gave_up)
