"""Socket specs on the host: where a forward listens, and what a reverse leads to (AOSP ``socket_spec.cpp``)."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.network.connectors import tcp_client_endpoint

__all__ = ["HostSpec", "parse_spec"]

RESERVED_PREFIX = "/tmp/"  # noqa: S108  # adb on Linux hosts: local: and localreserved: are below it
UNIX_KINDS = {
    "local": "reserved",
    "localreserved": "reserved",
    "localabstract": "abstract",
    "localfilesystem": "filesystem",
}
CONNECT_TIMEOUT_S = 10


@attrs.frozen
class HostSpec:
    """A socket on the host.

    Attributes:
        kind: ``tcp``, ``abstract`` or ``path``.
        host: for TCP; empty for loopback.
        port: for TCP; 0 lets the kernel choose.
        path: for the others.
    """

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""

    def server_endpoint(self, reactor: Any) -> IStreamServerEndpoint:
        """Where a forward listens: on loopback unless the spec names an address."""
        if self.kind == "tcp":
            if ":" in self.host:
                return TCP6ServerEndpoint(reactor, self.port, interface=self.host)
            host = "127.0.0.1" if self.host in ("", "localhost") else self.host
            return TCP4ServerEndpoint(reactor, self.port, interface="" if host == "*" else host)
        address = f"\0{self.path}" if self.kind == "abstract" else self.path
        return UNIXServerEndpoint(reactor, address, mode=0o600, wantPID=False)

    def client_endpoint(self, reactor: Any) -> IStreamClientEndpoint:
        """What a reverse forward connects to."""
        if self.kind == "tcp":
            return tcp_client_endpoint(
                reactor, self.host or "localhost", self.port, timeout=CONNECT_TIMEOUT_S
            )
        address = f"\0{self.path}" if self.kind == "abstract" else self.path
        return UNIXClientEndpoint(reactor, address, timeout=CONNECT_TIMEOUT_S)


def parse_spec(text: str) -> HostSpec:
    """Read a socket spec.

    Raises:
        RequestFailed: it is not one that a host can serve.
    """
    kind, _, rest = text.partition(":")
    if kind == "tcp":
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
        if not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
            raise RequestFailed(f"bad port number '{port}' in '{text}'")
        return HostSpec("tcp", host=host, port=int(port))
    if kind in UNIX_KINDS:
        if not rest:
            raise RequestFailed(f"empty path in '{text}'")
        if len(rest.encode()) > 100:
            raise RequestFailed(f"path too long in '{text}'")
        how = UNIX_KINDS[kind]
        return (
            HostSpec("abstract", path=rest)
            if how == "abstract"
            else HostSpec("path", path=RESERVED_PREFIX + rest if how == "reserved" else rest)
        )
    raise RequestFailed(f"unknown socket specification '{text}'")
