"""Where a bus is: D-Bus addresses, as the D-Bus Specification's "Server Addresses" has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import attrs
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint

__all__ = ["SYSTEM_BUS", "BusAddress", "addresses_of", "parse_addresses"]

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"

CONNECT_TIMEOUT_S = 10


@attrs.frozen
class BusAddress:
    """One address.

    Attributes:
        kind: ``unix`` or ``tcp``.
        path: of the socket; a leading NUL means the abstract namespace.
        host: of a TCP address.
        port: of a TCP address.
    """

    kind: str
    path: str = ""
    host: str = ""
    port: int = 0

    def endpoint(self, reactor: Any) -> Any:
        """A client endpoint."""
        if self.kind == "unix":
            return UNIXClientEndpoint(reactor, self.path, timeout=CONNECT_TIMEOUT_S)
        return TCP4ClientEndpoint(reactor, self.host, self.port, timeout=CONNECT_TIMEOUT_S)

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"@{self.path[1:]}" if self.path.startswith("\0") else self.path
        return f"{self.host}:{self.port}"


def parse_addresses(text: str) -> list[BusAddress]:
    """The addresses in a list separated by ``;``. Kinds that cannot be reached by a socket, or are malformed, are left out."""
    found = []
    for one in text.split(";"):
        kind, _, rest = one.partition(":")
        values: dict[str, str] = {}
        for pair in filter(None, rest.split(",")):
            key, _, value = pair.partition("=")
            values[key] = os.fsdecode(unquote_to_bytes(value))
        if kind == "unix" and values.get("path"):
            found.append(BusAddress("unix", values["path"]))
        elif kind == "unix" and values.get("abstract"):
            found.append(BusAddress("unix", "\0" + values["abstract"]))
        elif kind == "tcp" and values.get("port", "").isdecimal() and int(values["port"]) < 65536:
            found.append(BusAddress("tcp", host=values.get("host", "localhost"), port=int(values["port"])))
    return found


def addresses_of(bus: str, environ: Mapping[str, str]) -> list[BusAddress]:
    """Where a bus may be, best first.

    Args:
        bus: ``session`` or ``system``.
        environ: of the process.
    """
    if bus == "system":
        return parse_addresses(environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS)
    given = environ.get("DBUS_SESSION_BUS_ADDRESS")
    if given:
        return parse_addresses(given)
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    # As sd-bus and GLib: a user bus of systemd needs no variable.
    return [BusAddress("unix", f"{runtime}/bus")] if runtime and os.path.exists(f"{runtime}/bus") else []
