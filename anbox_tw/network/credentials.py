"""Who is at the other end of a UNIX socket, and what a process is called."""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from attrs import frozen

from anbox_tw.errors import NetworkError

__all__ = [
    "Credentials",
    "describe_process",
    "peer_credentials",
    "peer_groups",
    "process_command",
    "process_lives",
]

_UCRED: Final = struct.Struct("3i")
# asm-generic/socket.h; Python has no name for it
_SO_PEERGROUPS: Final = 59
# Python reads at most 1024 bytes of a socket option; a peer with more groups is told apart by uid and gid alone
MAX_PEER_GROUPS: Final = 256
# enough to recognise a process in a message
MAX_COMMAND_CHARS: Final = 120


@frozen
class Credentials:
    """The identity of a peer as the kernel recorded it when the connection was made (``SO_PEERCRED``).

    Attributes:
        pid: process id in our pid namespace; 0 when the peer lives in a namespace we cannot see. The
            process may be gone and the number taken by another: decide by ``uid`` and ``gid``.
        uid: effective user id, mapped into our user namespace.
        gid: effective group id, mapped likewise.
    """

    pid: int
    uid: int
    gid: int


def peer_credentials(transport: Any) -> Credentials:
    """Read the credentials of a UNIX socket's peer.

    Args:
        transport: a connected Twisted transport over a UNIX socket, a ``socket.socket``, or a test's
            transport with a ``peer_credentials`` attribute that is a `Credentials`.

    Raises:
        NetworkError: the transport is no UNIX socket, or is closed.
    """
    given = getattr(transport, "peer_credentials", None)
    if isinstance(given, Credentials):
        return given
    pid, uid, gid = _UCRED.unpack(_option(transport, socket.SO_PEERCRED, _UCRED.size))
    if uid == -1 and gid == -1:
        # what the kernel answers for a socket that has no peer
        raise NetworkError("the socket has no peer whose credentials could be read")
    return Credentials(pid, uid, gid)


def peer_groups(transport: Any) -> frozenset[int]:
    """Read the supplementary groups of a UNIX socket's peer (``SO_PEERGROUPS``, Linux 4.13).

    Raises:
        NetworkError: as `peer_credentials`, or the peer is in more than `MAX_PEER_GROUPS` groups.
    """
    given = getattr(transport, "peer_groups", None)
    if isinstance(given, frozenset):
        return given
    raw = _option(transport, _SO_PEERGROUPS, 4 * MAX_PEER_GROUPS)
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw[: len(raw) // 4 * 4]))


def _option(transport: Any, option: int, size: int) -> bytes:
    sock = transport
    if not isinstance(transport, socket.socket):
        get_handle = getattr(transport, "getHandle", None)
        try:
            sock = get_handle() if get_handle is not None else None
        except AttributeError:
            # Twisted's transports drop their socket when they close
            sock = None
    if not isinstance(sock, socket.socket) or sock.family != socket.AF_UNIX:
        raise NetworkError("only the peer of an open UNIX socket has credentials")
    try:
        return sock.getsockopt(socket.SOL_SOCKET, option, size)
    except OSError as error:
        raise NetworkError(f"the credentials of the peer cannot be read: {error}") from error


def process_command(pid: int) -> str:
    """The command line of a process, for messages; ``"unknown"`` when it cannot be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read(4096)
        if not raw:
            with open(f"/proc/{pid}/comm", "rb") as file:
                raw = file.read(64)
    except OSError:
        return "unknown"
    text = " ".join(part.decode(errors="replace") for part in raw.strip(b"\0\n").split(b"\0"))
    # another user's process may be called anything: no control characters reach a terminal
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= MAX_COMMAND_CHARS else text[: MAX_COMMAND_CHARS - 1] + "…"


def describe_process(pid: int) -> str:
    """``pid N, command C`` for a message."""
    return (
        f"pid {pid}, command {process_command(pid)}" if pid > 0 else "a process that is not visible from here"
    )


def process_lives(pid: int, proc: str = "/proc") -> bool:
    """Whether there is such a process in our pid namespace, and it is no zombie; ``proc`` is where procfs is."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            return file.read(4096).rpartition(b")")[2].split()[:1] not in ([b"Z"], [b"X"])
    except OSError:
        return False
