"""Working in another network namespace than one's own.

Sockets and child processes are *made* in the namespace, by a short visit of the reactor's thread, and then
used from where we are. Nothing else of the process moves: other services of the same reactor keep their
network.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from anbox_tw.errors import ConfigError, HostLacks, PermissionRefused

__all__ = ["NamespacedReactor", "NetworkNamespace"]

_CLONE_NEWNET: Final = 0x40000000
_SO_NETNS_COOKIE: Final = 71
# where iproute2 keeps its names
NETNS_DIRECTORY: Final = "/run/netns"


def _setns(fd: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(fd, _CLONE_NEWNET)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class NetworkNamespace:
    """One network namespace: our own, one that ``ip netns`` named, or that of a process.

    Attributes:
        name: for messages; empty for our own.
    """

    def __init__(self, name: str = "") -> None:
        """Open the namespace.

        Args:
            name: of ``ip netns``, or a path such as ``/proc/PID/ns/net``; empty for our own.

        Raises:
            ConfigError: there is no such namespace.
            PermissionRefused: it may not be opened.
        """
        self.name = name
        self._fd: int | None = None
        self._home: int | None = None
        if not name:
            return
        path = name if "/" in name else f"{NETNS_DIRECTORY}/{name}"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ConfigError(
                f"there is no network namespace {name!r}", "'ip netns list' shows those that are"
            ) from error
        except PermissionError as error:
            raise PermissionRefused(
                f"the network namespace {name!r} cannot be opened: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Let the namespace go; calling this again is allowed."""
        for fd in (self._fd, self._home):
            if fd is not None and fd >= 0:
                os.close(fd)
        if self._fd is not None:
            self._fd = self._home = -1

    def identity(self) -> str:
        """A text that no other namespace has, nor had since this boot, nor has in another boot."""
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot = file.read(64).strip()
        except OSError:
            boot = "?"  # a sandbox that hides it; what lies in /run is of this boot anyway
        with self.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                cookie = int.from_bytes(
                    probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder
                )
            except OSError:
                # before Linux 5.14; numbers of files are given again when a namespace is gone
                with self.entered():
                    cookie = os.stat("/proc/thread-self/ns/net").st_ino
        return f"{boot}/{cookie}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the namespace; for a few system calls that do not wait, never over an ``await``.

        Raises:
            HostLacks: we have no CAP_SYS_ADMIN over it.
        """
        if self._fd is None or self._home is None:
            yield
            return
        try:
            _setns(self._fd)
        except OSError as error:
            raise HostLacks(
                f"the network namespace {self.name!r} cannot be entered: {error.strerror}", "run as root"
            ) from error
        try:
            yield
        finally:
            _setns(self._home)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A non-blocking, close-on-exec socket of the namespace."""
        with self.entered():
            return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)

    def read_file(self, path: str, limit: int = 65536) -> str:
        """Read a file below ``/proc/sys/net``, which shows the namespace of the reader."""
        with self.entered(), open(path, encoding="ascii", errors="replace") as file:
            return file.read(limit)

    def write_file(self, path: str, text: str) -> None:
        """Write a file below ``/proc/sys/net``."""
        with self.entered(), open(path, "w", encoding="ascii") as file:
            file.write(text)

    def interface_name(self, index: int) -> str | None:
        """The name of the interface with that index, or None."""
        try:
            with self.entered():
                return socket.if_indextoname(index)
        except OSError:
            return None

    def interface_index(self, name: str) -> int:
        """The index of an interface.

        Raises:
            OSError: there is no such interface (ENODEV).
        """
        with self.entered():
            return socket.if_nametoindex(name)


class NamespacedReactor:
    """A reactor whose new sockets and children are of a namespace; everything else is the real one's.

    Covers what netd makes: outgoing TCP connections, UDP ports, adopted ones, child processes.
    """

    def __init__(self, reactor: Any, namespace: NetworkNamespace) -> None:
        self._reactor = reactor
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def _made_there(self, method: str, *args: Any, **options: Any) -> Any:
        with self._namespace.entered():
            return getattr(self._reactor, method)(*args, **options)

    def connectTCP(self, *args: Any, **options: Any) -> Any:
        """As the reactor's; the host must be an address."""
        return self._made_there("connectTCP", *args, **options)

    def listenTCP(self, *args: Any, **options: Any) -> Any:
        """As the reactor's."""
        return self._made_there("listenTCP", *args, **options)

    def listenUDP(self, *args: Any, **options: Any) -> Any:
        """As the reactor's."""
        return self._made_there("listenUDP", *args, **options)

    def spawnProcess(self, *args: Any, **options: Any) -> Any:
        """As the reactor's; the child and what it starts are in the namespace."""
        return self._made_there("spawnProcess", *args, **options)
