"""Where the ADB server listens, said in the ways that adb itself understands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint

from anbox_tw.errors import ConfigError

if TYPE_CHECKING:
    from typing import Any

__all__ = ["DEFAULT_ADB_SERVER_PORT", "AdbServerAddress"]

DEFAULT_ADB_SERVER_PORT = 5037

CONNECT_TIMEOUT_S = 3.0
"""For one attempt; a server on this host answers at once or not at all."""

_CURE = "write tcp:PORT, tcp:HOST:PORT, HOST:PORT, localfilesystem:PATH or localabstract:NAME"


@attrs.frozen
class AdbServerAddress:
    """A TCP or UNIX address of an ADB server.

    Attributes:
        host: host name or address; empty for a UNIX socket.
        port: TCP port; 0 for a UNIX socket.
        path: path of a UNIX socket, with a NUL first for an abstract one; empty for TCP.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_ADB_SERVER_PORT
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> AdbServerAddress:
        """Read an address in the notation of adb's ``-L`` option, or as ``HOST:PORT`` or ``PORT``.

        Raises:
            ConfigError: the text is none of these.
        """
        kind, _, rest = text.partition(":")
        if kind in ("localfilesystem", "local", "unix") and rest:
            return cls(host="", port=0, path=rest)
        if kind == "localabstract" and rest:
            return cls(host="", port=0, path="\0" + rest)
        host, _, port = (rest if kind == "tcp" else text).rpartition(":")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"{text!r} is no address of an ADB server", _CURE)
        host = host.removeprefix("[").removesuffix("]")
        return cls(host=host or "127.0.0.1", port=int(port))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> AdbServerAddress:
        """The address that adb itself would use here.

        ``ADB_SERVER_SOCKET`` wins over ``ANDROID_ADB_SERVER_ADDRESS`` and ``ANDROID_ADB_SERVER_PORT``,
        as in adb's ``client/main.cpp``; without them it is 127.0.0.1:5037.

        Raises:
            ConfigError: a variable holds no address.
        """
        environment = os.environ if environment is None else environment
        if socket := environment.get("ADB_SERVER_SOCKET"):
            try:
                return cls.parse(socket)
            except ConfigError as error:
                raise ConfigError(f"ADB_SERVER_SOCKET: {error.cause}", error.cure) from None
        port = environment.get("ANDROID_ADB_SERVER_PORT") or str(DEFAULT_ADB_SERVER_PORT)
        host = environment.get("ANDROID_ADB_SERVER_ADDRESS") or "127.0.0.1"
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"ANDROID_ADB_SERVER_PORT is {port!r}", "set it to a port, 1 to 65535")
        return cls(host=host, port=int(port))

    def endpoint(self, reactor: Any) -> IStreamClientEndpoint:
        """A client endpoint for this address, with a short connect timeout."""
        if self.path:
            # An abstract name begins with NUL, which Twisted hands to the kernel as it is.
            return UNIXClientEndpoint(reactor, self.path, timeout=CONNECT_TIMEOUT_S)
        if self.host.replace(".", "").isdigit():
            return TCP4ClientEndpoint(reactor, self.host, self.port, timeout=CONNECT_TIMEOUT_S)
        return HostnameEndpoint(reactor, self.host, self.port, timeout=CONNECT_TIMEOUT_S)

    def __str__(self) -> str:
        if self.path.startswith("\0"):
            return f"localabstract:{self.path[1:]}"
        if self.path:
            return f"localfilesystem:{self.path}"
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
