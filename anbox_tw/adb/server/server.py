"""The adb server as a service."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger

from anbox_tw.adb.keys import AdbKey
from anbox_tw.adb.server._framing import fail
from anbox_tw.adb.server.devices import DeviceRegistry
from anbox_tw.adb.server.forwards import Forwards
from anbox_tw.adb.server.links import EMULATOR_PORTS, DeviceLinks
from anbox_tw.adb.server.services import HostServices
from anbox_tw.adb.server.smartsocket import SmartSocket
from anbox_tw.errors import NetworkError

__all__ = ["AdbServer", "Discovery", "emulator_ports"]

MAX_CLIENTS = 4096
"""Connections of clients; 200 parallel shells take 200."""

CLOSE_GRACE_S = 1.0
"""How long a client has to take what was written before its connection is cut at the server's end."""

MAX_EMULATORS = 16
"""``ADB_LOCAL_TRANSPORT_MAX`` (AOSP ``transport_local.cpp``)."""


class Discovery(Protocol):
    """What finds devices by mDNS."""

    version: str

    def listing(self) -> str:
        """Lines of ``INSTANCE, SERVICE, IP:PORT``, separated by tabs."""

    def resolve(self, name: str) -> Any:
        """What ``name`` means: has ``serial``, ``host`` and ``port``; ``None`` if it is no instance."""


Pairing = Callable[[str, str], Deferred[bytes]]
"""Takes the code and ``HOST:PORT``; fires with the length-prefixed text, or ``FAIL`` and its reason."""


def emulator_ports(environment: dict[str, str] | None = None) -> Sequence[int]:
    """The ports to look for emulators on, as the environment says (``ADB_EMU``, ``ADB_LOCAL_TRANSPORT_MAX_PORT``)."""
    found = os.environ if environment is None else environment
    if found.get("ADB_EMU") == "0":
        return range(0)
    highest = found.get("ADB_LOCAL_TRANSPORT_MAX_PORT", "")
    if highest.isascii() and highest.isdigit():
        return range(EMULATOR_PORTS.start, min(int(highest[:6]), 65535) + 1, 2)
    return EMULATOR_PORTS


class AdbServer(Service):
    """Serves adb clients on an endpoint.

    Args:
        reactor: listens, connects, and tells the time.
        endpoint: where clients connect.
        keys: for devices that ask for authentication.
        emulators: ports to look for emulators on at the start.
        emulator_host: where emulators run.
        on_kill: called when a client asks the server to end (``adb kill-server``).
        pairing: serves ``adb pair``.
        mdns: finds devices.
        log_path: what ``adb server-status`` shows.

    Attributes:
        devices: all that are known.
        links: the connections to them.
        forwards: listeners of ``adb forward``.
        sockets: clients' connections.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamServerEndpoint,
        *,
        keys: Sequence[AdbKey] = (),
        emulators: Sequence[int] = (),
        emulator_host: str = "127.0.0.1",
        on_kill: Callable[[], object] = lambda: None,
        pairing: Pairing | None = None,
        mdns: Discovery | None = None,
        log_path: str = "",
    ) -> None:
        self.reactor = reactor
        self.max_emulators = MAX_EMULATORS
        self.mdns: Discovery | None = mdns
        self.log_path = log_path
        self._endpoint = endpoint
        self._emulators = emulators
        self._on_kill = on_kill
        self._pairing = pairing
        self.devices = DeviceRegistry()
        self.links = DeviceLinks(reactor, self.devices, keys, emulator_host)
        self.forwards = Forwards(reactor, self.devices)
        self.services = HostServices(self)
        self.sockets: set[SmartSocket] = set()
        self._listening: IListeningPort | None = None
        self._starting: Deferred[Any] | None = None

    def startService(self) -> None:
        """Listen, then look for emulators.

        Raises:
            NetworkError: nobody can listen there.
        """
        super().startService()
        failed: list[Any] = []
        self._starting = self._endpoint.listen(_ClientFactory(self))
        self._starting.addCallbacks(self._listens, failed.append)
        if failed:
            error = failed[0].value
            self.running = False
            reason = getattr(getattr(error, "socketError", None), "strerror", None) or error
            raise NetworkError(
                f"the adb server cannot listen: {reason}",
                "another adb server may run there: 'adb kill-server' ends it, --listen chooses another place",
            ) from (error if isinstance(error, CannotListenError) else None)

    def _listens(self, port: IListeningPort) -> None:
        self._listening = port
        self._log.info("the adb server listens at {address}", address=port.getHost())
        self.links.scan_emulators(self._emulators)

    def get_port(self) -> int:
        """The TCP port that clients connect to."""
        if self._listening is None:
            raise NetworkError("the adb server does not listen", "start it first")
        address: Any = self._listening.getHost()
        return int(address.port)

    def stopService(self) -> Deferred[None]:
        """Stop listening, drop devices and clients; fires when all is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._listening is not None:
            await maybeDeferred(self._listening.stopListening)
            self._listening = None
        await self.forwards.close()
        self.links.stop()
        for socket in list(self.sockets):
            if socket.transport is not None:
                socket.transport.loseConnection()
        deadline = self.reactor.seconds() + CLOSE_GRACE_S
        while self.sockets and self.reactor.seconds() < deadline:
            await deferLater(self.reactor, 0.01)
        for socket in list(self.sockets):
            transport: Any = socket.transport
            if transport is not None:
                transport.abortConnection()
        if self.sockets:
            await deferLater(self.reactor, 0)

    def asked_to_end(self) -> None:
        """A client has sent ``host:kill``; its ``OKAY`` is still to be written."""
        self._log.info("a client asked the adb server to end")
        self.reactor.callLater(0, self._on_kill)

    def pair(self, code: str, address: str) -> Deferred[bytes]:
        """Serve ``adb pair``."""
        if self._pairing is None:
            from twisted.internet.defer import succeed

            return succeed(fail("Failed: this server cannot pair."))
        return self._pairing(code, address)


class _ClientFactory(Factory):
    noisy = False
    _log = Logger()

    def __init__(self, server: AdbServer) -> None:
        self._server = server

    def buildProtocol(self, addr: Any) -> SmartSocket | None:
        if len(self._server.sockets) >= MAX_CLIENTS:
            self._log.warn("refused a client: {count} are connected", count=MAX_CLIENTS)
            return None
        return SmartSocket(self._server)
