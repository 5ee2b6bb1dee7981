"""Finding devices by mDNS, where the extra ``mdns`` is installed (AOSP ``client/mdns_utils.cpp``, ``transport_mdns.cpp``)."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.adb.server.known_hosts import KnownHosts
from anbox_tw.errors import HostLacks

__all__ = ["PAIRING", "PLAIN", "TLS", "Found", "MdnsDiscovery", "auto_connected"]

PLAIN = "_adb._tcp"
TLS = "_adb-tls-connect._tcp"
PAIRING = "_adb-tls-pairing._tcp"

MAX_FOUND = 1024
"""Announcements kept; anybody in the network can make as many as they like."""

RESOLVE_MS = 3000
"""How long the library asks for the address behind an announcement."""


@attrs.frozen
class Found:
    """An announcement.

    Attributes:
        instance: such as ``adb-SERIAL-abc123``.
        service: such as ``_adb-tls-connect._tcp``.
        host: an address, IPv4 where there is one.
        port: the port.
    """

    instance: str
    service: str
    host: str
    port: int

    @property
    def serial(self) -> str:
        """The serial of a device that is connected because of it."""
        return f"{self.instance}.{self.service}"


def auto_connected(environment: Mapping[str, str] | None = None) -> frozenset[str]:
    """The services that are connected to without being asked, as ``ADB_MDNS_AUTO_CONNECT`` says."""
    env = os.environ if environment is None else environment
    text = env.get("ADB_MDNS_AUTO_CONNECT")
    if text is None:
        return frozenset({TLS})
    if text == "0":
        return frozenset()
    if text == "all":
        return frozenset({PLAIN, TLS})
    named = {f"_{word.strip()}._tcp" for word in text.split(",")}
    return frozenset(named & {PLAIN, TLS})


class MdnsDiscovery(Service):
    """Listens for announcements while it runs.

    Args:
        reactor: for its threads, as the library has its own.
        known_hosts: the devices that have paired with us.
        connect: called with (serial, host, port) of a device that is to be connected.
        services: the services that are connected to without being asked.
        interfaces: addresses of the interfaces to listen on; by default all.
        library: stands in for ``zeroconf`` in tests.

    Attributes:
        version: what ``adb mdns check`` shows.

    Raises:
        HostLacks: the library is not installed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        known_hosts: KnownHosts,
        connect: Callable[[str, str, int], Deferred[Any]],
        *,
        services: frozenset[str] = frozenset({TLS}),
        interfaces: list[str] | None = None,
        library: Any = None,
    ) -> None:
        if library is None and importlib.util.find_spec("zeroconf") is None:
            raise HostLacks("mDNS needs the library zeroconf", "pip install 'anbox-tw[mdns]'")
        number = importlib.metadata.version("zeroconf") if library is None else "0"
        self.version = f"mdns daemon version [zeroconf {number}]"
        self._reactor = reactor
        self._known_hosts = known_hosts
        self._connect = connect
        self._services = services
        self._interfaces = interfaces
        self._library = library
        self._found: dict[tuple[str, str], Found] = {}
        self._zeroconf: Any = None
        self._browser: Any = None
        self._work: Deferred[None] | None = None

    # -- for the server --

    def listing(self) -> str:
        """Lines of ``INSTANCE, SERVICE, IP:PORT``, separated by tabs."""
        return "".join(
            f"{one.instance}\t{one.service}\t{_address(one)}\n"
            for _, one in sorted(self._found.items(), key=lambda item: item[0])
        )

    def resolve(self, name: str, services: tuple[str, ...] = (TLS, PLAIN)) -> Found | None:
        """The announcement that ``name`` means: an instance, alone or with its service behind it."""
        name = name.removesuffix(".").removesuffix(".local")
        for service in services:
            found = self._found.get((name.removesuffix(f".{service}"), service))
            if found is not None:
                return found
        return None

    def paired(self, guid: str) -> None:
        """A device has paired: connect it if it has announced itself already."""
        for found in list(self._found.values()):
            if found.service == TLS and found.instance.startswith(guid):
                self._consider(found)

    # -- the service --

    def startService(self) -> None:
        """Begin to listen; failures are logged, the server works without."""
        super().startService()
        self._work = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._browse)
        self._work.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._log.warn("cannot look for devices by mDNS: {error}", error=failure.getErrorMessage())
        self.version = "ERROR: mdns discovery disabled"

    def _browse(self) -> None:
        zeroconf = self._library or importlib.import_module("zeroconf")
        if self._interfaces is None:
            self._zeroconf = zeroconf.Zeroconf()
        else:
            self._zeroconf = zeroconf.Zeroconf(interfaces=self._interfaces)
        types = [f"{service}.local." for service in (PLAIN, TLS, PAIRING)]
        self._browser = zeroconf.ServiceBrowser(self._zeroconf, types, listener=_Listener(self))

    def stopService(self) -> Deferred[None]:
        """Stop listening; fires when the library's threads have ended."""
        super().stopService()
        self._found.clear()
        work, self._work = self._work, None
        done: Deferred[None] = work if work is not None else succeed(None)

        def close(_: object) -> Any:
            if self._zeroconf is None:
                return None
            closing, self._zeroconf, self._browser = self._zeroconf, None, None
            return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), closing.close)

        return done.addCallback(close).addErrback(self._failed)

    # -- from the library's thread --

    def appeared(self, zeroconf: Any, kind: str, name: str) -> None:
        """An announcement was made or has changed; runs in the library's thread, where it may wait."""
        info = zeroconf.get_service_info(kind, name, RESOLVE_MS)
        if info is None or not info.port:
            return
        addresses = sorted(info.parsed_addresses(), key=lambda address: ":" in address)
        if addresses:
            found = Found(_instance(kind, name), kind.removesuffix(".local."), addresses[0], info.port)
            self._reactor.callFromThread(self._add, found)

    def vanished(self, kind: str, name: str) -> None:
        """An announcement was taken back or has expired; runs in the library's thread."""
        self._reactor.callFromThread(
            self._found.pop, (_instance(kind, name), kind.removesuffix(".local.")), None
        )

    # -- in the reactor's thread --

    def _add(self, found: Found) -> None:
        key = found.instance, found.service
        if not self.running or (key not in self._found and len(self._found) >= MAX_FOUND):
            return
        if any(ord(char) < 32 for char in found.instance):
            return  # it would break the listing's lines
        self._found[key] = found
        self._consider(found)

    def _consider(self, found: Found) -> None:
        if found.service not in self._services or found.instance.startswith("adb-EMULATOR"):
            return
        if found.service == TLS and not self._known_hosts.knows(found.instance):
            return
        connecting = self._connect(found.serial, found.host, found.port)
        connecting.addCallbacks(
            lambda text: self._log.info("found by mDNS: {text}", text=text),
            lambda failure: self._log.failure("connecting to {serial} failed", failure, serial=found.serial),
        )


class _Listener:
    """What the library calls."""

    def __init__(self, discovery: MdnsDiscovery) -> None:
        self._discovery = discovery

    def add_service(self, zeroconf: Any, kind: str, name: str) -> None:
        self._discovery.appeared(zeroconf, kind, name)

    def update_service(self, zeroconf: Any, kind: str, name: str) -> None:
        self._discovery.appeared(zeroconf, kind, name)

    def remove_service(self, zeroconf: Any, kind: str, name: str) -> None:
        self._discovery.vanished(kind, name)


def _instance(kind: str, name: str) -> str:
    return name.removesuffix(f".{kind}")


def _address(found: Found) -> str:
    return f"[{found.host}]:{found.port}" if ":" in found.host else f"{found.host}:{found.port}"
