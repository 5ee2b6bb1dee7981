"""adbd as Twisted services: listeners for plain and TLS transports and for pairing."""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.adb.daemon.adbd import AdbDaemon
from anbox_tw.adb.keys import AdbKey, PublicKey
from anbox_tw.adb.pairing import PairingFailed, PairingServer
from anbox_tw.network import DelegateCreator, EndpointListener

__all__ = ["AdbdService", "PairingService"]


class _DaemonService(Service):
    """Stops the daemon; nothing is to be done at its start."""

    def __init__(self, daemon: AdbDaemon) -> None:
        self.setName("adbd")
        self._daemon = daemon

    def stopService(self) -> Deferred[None]:
        """End every connection and child."""
        super().stopService()
        return self._daemon.stop()


class AdbdService(MultiService):
    """An adbd that listens.

    Args:
        reactor: the reactor.
        daemon: what serves plain connections.

    Attributes:
        daemon: the same.
    """

    def __init__(self, reactor: Any, daemon: AdbDaemon) -> None:
        super().__init__()
        self._reactor = reactor
        self.daemon = daemon

    def listen(self, endpoint: IStreamServerEndpoint, *, tls_key: AdbKey | None = None) -> EndpointListener:
        """Add a listener for transports.

        Args:
            endpoint: where.
            tls_key: take hosts through TLS, as Android's wireless debugging does.
        """
        creator = DelegateCreator(lambda _address: self.daemon.build_transport(tls_key=tls_key))
        name = "adb-tls" if tls_key is not None else "adb"
        listener = EndpointListener(endpoint, creator, name=name, clock=self._reactor)
        listener.setServiceParent(self)
        return listener

    def finish(self) -> None:
        """Call when all listeners have been added: the daemon stops before them."""
        # MultiService ends its children from the last to the first.
        _DaemonService(self.daemon).setServiceParent(self)


class PairingService(EndpointListener):
    """Listens for one pairing.

    Args:
        reactor: the reactor.
        endpoint: where.
        daemon: whose authority learns the new key.
        key: the device's key.
        code: what the host must know.
        guid: the device's name for hosts.

    Attributes:
        paired: fires with the host's key when one has paired, with None when the port closes before.
    """

    _pairing_log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamServerEndpoint,
        daemon: AdbDaemon,
        key: AdbKey,
        code: str,
        guid: str,
    ) -> None:
        self._server = PairingServer(reactor, key, code, guid, daemon.config.authority.allow)
        creator = DelegateCreator(self._server.buildProtocol)
        super().__init__(endpoint, creator, name="adb-pairing", clock=reactor)
        self.paired: Deferred[PublicKey | None] = Deferred()
        self._server.paired.addCallbacks(self._success, self._failed)

    def _success(self, key: PublicKey) -> None:
        self._pairing_log.info("paired with {key}", key=key)
        self._end(key)

    def _failed(self, failure: Failure) -> None:
        failure.trap(PairingFailed, CancelledError)
        if failure.check(PairingFailed):
            self._pairing_log.warn("pairing is closed: {error}", error=failure.value)
        self._end(None)

    def _end(self, key: PublicKey | None) -> None:
        if not self.paired.called:
            self.paired.callback(key)

    def stopService(self) -> Deferred[None]:
        """Close the port and the attempts that are going on."""
        self._server.close()
        self._end(None)
        return super().stopService()
