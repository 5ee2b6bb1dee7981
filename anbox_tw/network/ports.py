"""TCP ports: claiming free ones without a race, and finding out who has one."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Final

from anbox_tw.errors import NetworkError

__all__ = ["PortAllocator", "PortClaim", "free_port", "holder_of_port", "owner_of_port"]

_LISTEN_STATE: Final = "0A"  # TCP_LISTEN in /proc/net/tcp
# the accept queue of a claimed port until its listener starts; a client may come that early
_CLAIM_BACKLOG: Final = 128


def free_port(interface: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago; use `PortAllocator` where somebody else may take it meanwhile."""
    with _bound(interface, 0) as probe:
        return int(probe.getsockname()[1])


def _bound(interface: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # as Twisted's listeners do, else a port of which old connections linger would look taken
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((interface, port))
    except BaseException:
        sock.close()
        raise
    return sock


class PortClaim:
    """Adjacent TCP ports that are ours: each is bound and listens already, so nobody can take it.

    Attributes:
        first: the lowest port.
    """

    def __init__(self, first: int, sockets: Sequence[socket.socket]) -> None:
        self.first = first
        self._sockets: list[socket.socket | None] = list(sockets)

    def take(self, offset: int = 0) -> socket.socket:
        """The listening socket of port ``first + offset``, now the caller's; give it to a `TcpListener`.

        Raises:
            NetworkError: it was taken or released before.
        """
        sock = self._sockets[offset]
        if sock is None:
            raise NetworkError(f"the claim on TCP port {self.first + offset} was already used")
        self._sockets[offset] = None
        return sock

    def release(self) -> None:
        """Close what was not taken."""
        for index, sock in enumerate(self._sockets):
            if sock is not None:
                sock.close()
                self._sockets[index] = None


class PortAllocator:
    """Claims the first free group of adjacent ports in a range, as the emulator does with 5554/5555, 5556/5557, ...

    Several processes may do so at once: a port is claimed by listening on it, so no two get the same.
    """

    def __init__(
        self,
        first: int = 5554,
        last: int = 5682,
        *,
        step: int = 2,
        width: int = 2,
        interface: str = "127.0.0.1",
    ) -> None:
        """Describe the range.

        Args:
            first: the lowest first port of a group.
            last: the highest first port of a group.
            step: from one group to the next.
            width: ports in a group.
            interface: address they are bound on.
        """
        self.first, self.last, self.step, self.width = first, last, step, width
        self.interface = interface

    def claim(self, wanted: int | None = None) -> PortClaim:
        """Claim a group.

        Args:
            wanted: the group's first port; None takes the first free one of the range.

        Raises:
            NetworkError: ``wanted``, or every group, is taken.
        """
        candidates = range(self.first, self.last + 1, self.step) if wanted is None else (wanted,)
        for port in candidates:
            sockets: list[socket.socket] = []
            try:
                for offset in range(self.width):
                    sockets.append(_bound(self.interface, port + offset))
                    sockets[-1].listen(_CLAIM_BACKLOG)
            except (OSError, OverflowError) as error:
                for sock in sockets:
                    sock.close()
                if getattr(error, "errno", None) != errno.EADDRINUSE:
                    raise NetworkError(
                        f"TCP port {port} of {self.interface} cannot be bound: {error}"
                    ) from error
                continue
            return PortClaim(port, sockets)
        what = (
            f"TCP ports {self.first} to {self.last + self.width - 1} are all"
            if wanted is None
            else f"TCP port {wanted} is"
        )
        raise NetworkError(f"{what} taken on {self.interface}", "stop an instance, or choose another port")


def holder_of_port(port: int) -> int:
    """The pid of the process that listens on a TCP port of this network namespace, or 0 when it cannot be seen."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                for line in file.readlines()[1:]:
                    fields = line.split()
                    if fields[3] == _LISTEN_STATE and int(fields[1].rpartition(":")[2], 16) == port:
                        inodes.add(f"socket:[{fields[9]}]")
        except OSError:
            continue
    return _process_with(inodes) if inodes else 0


def owner_of_port(port: int) -> int | None:
    """The uid of whoever listens on a TCP port of this network namespace, on 127.0.0.1 or every address; None for nobody."""
    try:
        with open("/proc/net/tcp") as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].partition(":")
                if (
                    fields[3] == _LISTEN_STATE
                    and int(number, 16) == port
                    and address in ("0100007F", "00000000")
                ):
                    return int(fields[7])
    except OSError:
        pass
    return None


def _process_with(links: set[str]) -> int:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in links:
                    return int(pid)
        except OSError:
            # gone, or another user's
            continue
    return 0
