"""Announcing adbd by mDNS, where the extra ``mdns`` is installed (AOSP ``daemon/mdns.cpp``)."""

from __future__ import annotations

import importlib
import importlib.util
import socket
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import HostLacks

__all__ = ["PAIRING", "PLAIN", "TLS", "AnnouncementService"]

PLAIN = "_adb._tcp.local."
TLS = "_adb-tls-connect._tcp.local."
PAIRING = "_adb-tls-pairing._tcp.local."


class AnnouncementService(Service):
    """Announces ports while it runs.

    Args:
        reactor: for its threads, as the library blocks.
        guid: the instance name, ``adb-SERIAL-abc123``.
        ports: (service type, port) of each.
        model: shown to people.
        addresses: IPv4 addresses to announce; by default those of this host.
        library: stands in for ``zeroconf`` in tests.

    Raises:
        HostLacks: the library is not installed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        guid: str,
        ports: list[tuple[str, int]],
        model: str,
        addresses: list[str] | None = None,
        library: Any = None,
    ) -> None:
        if library is None and importlib.util.find_spec("zeroconf") is None:
            raise HostLacks("mDNS needs the library zeroconf", "pip install 'anbox-tw[mdns]'")
        self._reactor = reactor
        self._guid = guid
        self._ports = ports
        self._model = model
        self._addresses = addresses
        self._library = library
        self._zeroconf: Any = None
        self._work: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to announce; failures are logged, adbd serves without."""
        super().startService()
        self._work = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._register)
        self._work.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._log.warn("cannot announce by mDNS: {error}", error=failure.getErrorMessage())

    def _register(self) -> None:
        zeroconf = self._library or importlib.import_module("zeroconf")
        if self._addresses is None:
            self._zeroconf = zeroconf.Zeroconf()
        else:
            self._zeroconf = zeroconf.Zeroconf(interfaces=self._addresses)
        found = self._addresses
        if found is None:
            outside = [one for one in zeroconf.get_all_addresses() if not one.startswith("127.")]
            found = outside or ["127.0.0.1"]
        addresses = [socket.inet_aton(one) for one in found]
        for kind, port in self._ports:
            info = zeroconf.ServiceInfo(
                kind,
                f"{self._guid}.{kind}",
                addresses=addresses,
                port=port,
                properties={"v": "1", "name": self._model},
                server=f"{self._guid}.local.",
            )
            self._zeroconf.register_service(info)

    def stopService(self) -> Deferred[None]:
        """Say goodbye."""
        super().stopService()
        work, self._work = self._work, None
        done: Deferred[None] = work if work is not None else Deferred()
        if work is None:
            done.callback(None)

        def close(_: object) -> Any:
            if self._zeroconf is None:
                return None
            closing, self._zeroconf = self._zeroconf, None
            return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), closing.close)

        return done.addCallback(close).addErrback(self._failed)
