"""``tcp:`` and ``unix:``: connections that a guest asks the session to make on the host.

The emulator lets a guest connect to any TCP port of the host's loopback and to any UNIX socket. Here nothing may be reached that is not
on an allow-list (`Allowance`), because a guest is not its host's user: the host's loopback holds what was never meant for it.

What is allowed is relayed by `anbox_tw.network.relay`, with half-close, and in the kernel.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.errors import ConfigError, NotRunning, PermissionRefused
from anbox_tw.interfaces import IPipeService
from anbox_tw.network import (
    Connections,
    EndpointConnector,
    ForwardCreator,
    RetryPolicy,
    Shaper,
    TcpConnector,
    UnixConnector,
)

__all__ = ["Allowance", "TcpOutward", "UnixOutward"]

LOOPBACK = "127.0.0.1"

CONNECTION_LIMIT = 256
"""Relays of one service at a time."""

# The last label begins with a letter: what would be an address to some resolvers (127.1, 0x7f.1) is no name.
_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,62})\.)*[a-z](?:[a-z0-9-]{0,62})")

_P = TypeVar("_P", bound=IProtocol)


@attrs.frozen
class Allowance:
    """One line of the allow-list.

    ==================================  ==============================================================
    pattern                             allows
    ==================================  ==============================================================
    ``tcp:8000``                        port 8000 of 127.0.0.1
    ``tcp:127.0.0.1:8000-8010``         these ports
    ``tcp:*``                           every port of 127.0.0.1, as the emulator
    ``tcp:[::1]:80``                    an IPv6 address
    ``tcp:db.example:5432``             a host by the name that the guest writes; it is looked up on the host
    ``tcp:*:443``                       port 443 of any host
    ``unix:/run/service.sock``          this socket
    ``unix:/srv/sockets/*``             the sockets that lie in this directory itself; no symbolic links
    ==================================  ==============================================================

    Attributes:
        kind: ``tcp`` or ``unix``.
        host: in lower case, ``*`` for any; empty for ``unix``.
        first: lowest port.
        last: highest port.
        path: of the socket, or of the directory.
        directory: whether `path` is one.
    """

    kind: str
    host: str = ""
    first: int = 0
    last: int = 0
    path: str = ""
    directory: bool = False

    @classmethod
    def parse(cls, pattern: str) -> Allowance:
        """Read a pattern.

        Raises:
            ConfigError: it is none.
        """
        kind, _, rest = pattern.partition(":")
        if kind == "unix":
            directory = rest.endswith("/*")
            path = rest.removesuffix("/*")
            if not path.startswith("/") or os.path.normpath(path) != path or "*" in path:
                raise ConfigError(
                    f"{pattern!r} allows nothing", "write unix:/absolute/path or unix:/absolute/directory/*"
                )
            return cls("unix", path=path, directory=directory)
        if kind != "tcp":
            raise ConfigError(f"{pattern!r} allows nothing", "a pattern begins with tcp: or unix:")
        host, ports = _host_and_port(rest)
        first, dash, last = ("1", "-", "65535") if ports == "*" else ports.partition("-")
        low, high = _port(first), _port(last if dash else first)
        if low is None or high is None or low > high or not host:
            raise ConfigError(
                f"{pattern!r} allows nothing", "write tcp:PORT, tcp:HOST:PORT or tcp:HOST:FIRST-LAST"
            )
        return cls("tcp", host=host, first=low, last=high)

    def allows_port(self, host: str, port: int) -> bool:
        """Whether it is a ``tcp`` pattern that takes this."""
        return self.kind == "tcp" and self.host in ("*", host) and self.first <= port <= self.last

    def allows_path(self, path: str) -> bool:
        """Whether it is a ``unix`` pattern that takes this; ``path`` is absolute and normal."""
        return self.kind == "unix" and (os.path.dirname(path) if self.directory else path) == self.path


def _host_and_port(text: str) -> tuple[str, str]:
    """``PORT``, ``HOST:PORT`` or ``[HOST]:PORT``; loopback where there is no host, and addresses in one form."""
    host, colon, port = text.rpartition(":")
    if not colon:
        return LOOPBACK, port
    host = host.lower()
    if host in ("localhost", "*"):
        return LOOPBACK if host == "localhost" else "*", port
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return (host if _NAME.fullmatch(host) else ""), port
    return (str(address) if bracketed == (address.version == 6) else ""), port


def _port(text: str) -> int | None:
    return (
        int(text) if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536 else None
    )


class _Outward:
    """What both services share."""

    name = ""
    _log = Logger()

    def __init__(self, reactor: Any, allowed: Iterable[Allowance], shaper: Shaper | None = None) -> None:
        self._reactor = reactor
        self._shaper = shaper
        self.allowed = tuple(allowed)
        self.connections = Connections(CONNECTION_LIMIT, name=self.name, clock=reactor)

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Connect to what is named, if that is allowed."""
        connector = self.connector(argument)
        if connector is None:
            self._log.warn(
                "A guest may not connect to {name}:{argument}; --allow-outward would let it",
                name=self.name,
                argument=argument[:128],
            )
            return None
        shaper = self._shaper
        # The guest is the relay's first end here.
        shape = (shaper.from_guest, shaper.to_guest) if shaper is not None and shaper.active else None
        forward = ForwardCreator(
            connector,
            clock=self._reactor,
            name=f"{self.name}:{argument}",
            registry=self.connections,
            shape=shape,
        )
        return forward.create_connection_for(address)

    def connector(self, argument: str) -> EndpointConnector | None:
        """To the place, or None where that is no place or not allowed."""
        raise NotImplementedError


@implementer(IPipeService)
class TcpOutward(_Outward):
    """``tcp:<port>`` on the host's loopback, and ``tcp:<host>:<port>``.

    Args:
        reactor: connects.
        allowed: what may be reached; nothing else is.
    """

    name = "tcp"

    def connector(self, argument: str) -> EndpointConnector | None:
        """See the class."""
        host, text = _host_and_port(argument)
        port = _port(text)
        if port is None or not host or not any(each.allows_port(host, port) for each in self.allowed):
            return None
        return TcpConnector(self._reactor, host, port, retry=RetryPolicy.once())


@implementer(IPipeService)
class UnixOutward(_Outward):
    """``unix:<path>``: a stream socket of the host.

    Args:
        reactor: connects.
        allowed: what may be reached; nothing else is.
    """

    name = "unix"

    def connector(self, argument: str) -> EndpointConnector | None:
        """See the class."""
        if not argument.startswith("/") or os.path.normpath(argument) != argument or "\0" in argument:
            return None
        for each in self.allowed:
            if each.allows_path(argument):
                kind = _InDirectory if each.directory else UnixConnector
                try:
                    return kind(self._reactor, argument, retry=RetryPolicy.once())
                except ConfigError as error:
                    self._log.info("unix: {error}", error=error)
        return None


class _InDirectory(UnixConnector):
    """A socket of a directory that others may write to: it is looked at without following links, and that one is connected to."""

    def connect(self, factory: Callable[[], _P]) -> Deferred[_P]:
        try:
            descriptor = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            return fail(NotRunning(f"{self.path}: {error.strerror}"))
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return fail(PermissionRefused(f"{self.path} is no socket"))
        pinned = UnixConnector(self._reactor, f"/proc/self/fd/{descriptor}", retry=self.retry)
        pinned.description = self.path

        def close(result: Any) -> Any:
            os.close(descriptor)
            return result

        return pinned.connect(factory).addBoth(close)
