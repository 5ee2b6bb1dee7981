"""Serving ``adb pair`` (AOSP ``client/adb_wifi.cpp``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anbox_tw.adb.keys import AdbKey
from anbox_tw.adb.pairing import PairingNotStarted, pair
from anbox_tw.adb.server._framing import body, fail
from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.adb.server.known_hosts import KnownHosts
from anbox_tw.adb.server.links import split_address
from anbox_tw.errors import AnboxError
from anbox_tw.network.connectors import tcp_client_endpoint

__all__ = ["Pairer"]

CONNECT_TIMEOUT_S = 10.0

_WRONG = "Failed: Wrong password or connection was dropped."
_NOT_STARTED = "Failed: Unable to start pairing client."


class Pairer:
    """Pairs with devices; an instance is what ``AdbServer`` takes as ``pairing``.

    Args:
        reactor: connects.
        key: is made known to the device.
        known_hosts: learns who the device is.
        resolve: the (host, port) behind an mDNS instance name of a pairing port, or ``None``.
        on_paired: called with the GUID of a device that has paired.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        key: AdbKey,
        known_hosts: KnownHosts,
        resolve: Callable[[str], tuple[str, int] | None] = lambda _: None,
        on_paired: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._reactor = reactor
        self._key = key
        self._known_hosts = known_hosts
        self._resolve = resolve
        self._on_paired = on_paired

    def __call__(self, code: str, address: str) -> Deferred[bytes]:
        """Pair with the device at ``HOST:PORT``, or with the instance of that name.

        Returns:
            A Deferred of the reply behind the first ``OKAY``: a text with its length, or ``FAIL`` and a text.
        """
        return Deferred.fromCoroutine(self._pair(code, address))

    async def _pair(self, code: str, address: str) -> bytes:
        place = self._resolve(address)
        if place is None:
            try:
                place = split_address(address, default_port=None)
            except RequestFailed as error:
                return fail(f"Failed to parse address for pairing: {error.cause}")
        host, port = place
        if not code:
            return fail(_WRONG)
        endpoint = tcp_client_endpoint(self._reactor, host, port, timeout=CONNECT_TIMEOUT_S)
        try:
            guid = await pair(self._reactor, endpoint, code, self._key)
        except PairingNotStarted as error:
            self._log.info("cannot pair with {address}: {error}", address=address, error=error)
            return fail(_NOT_STARTED)
        except AnboxError as error:
            self._log.info("did not pair with {address}: {error}", address=address, error=error)
            return fail(_WRONG)
        try:
            self._known_hosts.add(guid)
        except OSError as error:
            self._log.warn("cannot remember {guid}: {error}", guid=guid, error=error)
        self._on_paired(guid)
        return body(f"Successfully paired to {address} [guid={guid}]")
