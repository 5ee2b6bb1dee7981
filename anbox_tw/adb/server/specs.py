"""Socket specs on the host: where a forward listens, and what a reverse leads to (AOSP ``socket_spec.cpp``)."""

from __future__ import annotations

import os
from typing import Any

import attrs
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from anbox_tw.adb._numbers import MAX_PORT, decimal, listen_port
from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.errors import AdbError
from anbox_tw.network.connectors import tcp_client_endpoint

__all__ = ["HostSpec", "parse_listener", "parse_spec"]

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
        """Where a forward listens: on loopback, for TCP."""
        if self.kind == "tcp":
            return TCP4ServerEndpoint(reactor, self.port, interface="127.0.0.1")
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


def parse_listener(text: str) -> HostSpec:
    """Read where a forward is to listen.

    Raises:
        RequestFailed: nobody can listen there.
    """
    try:
        kind, _, rest = text.partition(":")
        return HostSpec("tcp", port=listen_port(rest)) if kind == "tcp" else parse_spec(text)
    except AdbError as error:
        raise RequestFailed(f"cannot bind listener: {error.cause}") from error


def parse_spec(text: str) -> HostSpec:
    """Read a socket spec to connect to.

    Raises:
        RequestFailed: it is not one that a host can serve.
    """
    kind, _, rest = text.partition(":")
    if kind == "tcp":
        host, _, digits = rest.rpartition(":")
        host = host.strip("[]")
        port = decimal(digits, MAX_PORT)
        if port is None:
            raise RequestFailed(f"bad port number '{digits}' in '{text}'")
        if not host.isascii() or not host.isprintable():
            raise RequestFailed(f"bad host '{host}' in '{text}'")
        return HostSpec("tcp", host=host, port=port)
    if kind in UNIX_KINDS:
        if not rest:
            raise RequestFailed(f"empty path in '{text}'")
        if "\0" in rest:
            raise RequestFailed(f"NUL in '{kind}' path")
        if len(os.fsencode(rest)) > 100:
            raise RequestFailed(f"path too long in '{text}'")
        how = UNIX_KINDS[kind]
        return (
            HostSpec("abstract", path=rest)
            if how == "abstract"
            else HostSpec("path", path=RESERVED_PREFIX + rest if how == "reserved" else rest)
        )
    raise RequestFailed(f"unknown socket specification:{text}")
