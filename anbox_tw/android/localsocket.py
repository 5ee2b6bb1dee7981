"""Android's local sockets as plain sockets: making, adopting, credentials, messages with descriptors.

Everything here works on ``socket.socket`` and never waits; ``transports`` and ``endpoints`` put Twisted
on top. Sources at android-7.0.0_r1: ``libcutils/socket_local_server_unix.c``, ``create_socket`` in
``init/util.cpp``, ``include/cutils/sockets.h``.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from attrs import frozen

from anbox_tw.android._wire import SOCKET_DIRECTORY, Namespace, control_key, sun_path
from anbox_tw.android.errors import AddressError, AndroidError, ControlSocketError

__all__ = [
    "MAX_DESCRIPTORS",
    "SOCKET_TYPES",
    "Credentials",
    "LocalAddress",
    "Message",
    "adopt_control_socket",
    "bind_path",
    "close_descriptors",
    "peer_credentials",
    "receive_message",
    "remove_stale",
    "send_message",
]

SOCKET_TYPES: dict[str, int] = {
    "stream": int(socket.SOCK_STREAM),
    "dgram": int(socket.SOCK_DGRAM),
    "seqpacket": int(socket.SOCK_SEQPACKET),
}
"""The words of rc files and endpoint strings."""

MAX_DESCRIPTORS = 64
"""Most descriptors sent or taken with one message: what Android's frameworks make room for."""

_UCRED = struct.Struct("=iII")
_CMSG_SPACE = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4) + socket.CMSG_SPACE(_UCRED.size)


class Credentials(NamedTuple):
    """``struct ucred``: who the peer was when it connected (or listened, or sent)."""

    pid: int
    uid: int
    gid: int


@frozen
class LocalAddress:
    """A name in one of the three namespaces.

    Attributes:
        name: the name as Android programs write it.
        namespace: where it lives.
        socket_directory: what stands for ``/dev/socket`` in the reserved namespace.
    """

    name: str
    namespace: Namespace = Namespace.ABSTRACT
    socket_directory: str = SOCKET_DIRECTORY

    @property
    def path(self) -> bytes:
        """The address as ``socket.bind`` takes it.

        Raises:
            AddressError: it does not fit, or is no name.
        """
        return sun_path(self.name, self.namespace, socket_directory=self.socket_directory)

    @property
    def in_filesystem(self) -> bool:
        """Whether the address is a file."""
        return self.namespace != Namespace.ABSTRACT


class Message(NamedTuple):
    """What one ``recvmsg`` gave."""

    data: bytes
    descriptors: list[int]
    credentials: Credentials | None
    address: bytes


def remove_stale(path: bytes | str) -> None:
    """Remove a socket file that a dead server left; Android's libraries remove whatever is there.

    Raises:
        AddressError: something that is no socket is in the way; it is left alone.
        OSError: it cannot be removed.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise AddressError(f"{os.fsdecode(path)!r} exists and is not a socket", "move it away")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def bind_path(
    sock: socket.socket, path: bytes, *, mode: int | None = None, uid: int = -1, gid: int = -1
) -> list[tuple[str, OSError]]:
    """Bind ``sock`` to a file in the order init uses: stale file away, bind under umask 077, owner, mode.

    Args:
        sock: an unbound ``AF_UNIX`` socket.
        path: the file.
        mode: permission bits, or ``None`` for what the caller's umask leaves.
        uid: owner, or -1 to keep it.
        gid: group, or -1 to keep it.

    Returns:
        What the kernel refused, ``owner`` or ``mode``, and why (the caller decides whether that is fatal).

    Raises:
        AddressError: something that is no socket is in the way.
        OSError: the path cannot be bound.
    """
    remove_stale(path)
    # umask is the process's: nothing else of ours runs between these lines
    before = os.umask(0o077) if mode is not None else None
    try:
        sock.bind(path)
    finally:
        if before is not None:
            os.umask(before)
    refused: list[tuple[str, OSError]] = []
    if uid != -1 or gid != -1:
        try:
            os.chown(path, uid, gid, follow_symlinks=False)
        except OSError as error:
            refused.append(("owner", error))
    if mode is not None:
        try:
            _chmod_nofollow(path, mode)
        except OSError as error:
            refused.append(("mode", error))
    return refused


def _chmod_nofollow(path: bytes, mode: int) -> None:
    """``fchmodat(AT_SYMLINK_NOFOLLOW)``, which Linux has only as a chmod through an ``O_PATH`` descriptor."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            raise OSError(40, "is a symbolic link", os.fsdecode(path))
        try:
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
        except FileNotFoundError:  # no /proc here yet
            os.chmod(path, mode)
    finally:
        os.close(descriptor)


def adopt_control_socket(
    name: str, *, environment: Mapping[str, str] | None = None, type_name: str | None = None
) -> socket.socket:
    """Take the socket that init made for this process, as ``android_get_control_socket`` does.

    The variable stays, the descriptor becomes close-on-exec, and the socket does not listen yet.

    Args:
        name: the name on the service's ``socket`` line.
        environment: where to look, by default ``os.environ``.
        type_name: ``stream``, ``dgram`` or ``seqpacket``, when only that will do.

    Raises:
        ControlSocketError: no variable, no number in it, or the descriptor is not such a socket.
    """
    try:
        key = control_key(name)
    except AddressError as error:
        raise ControlSocketError(error.cause, error.cure) from error
    text = (os.environ if environment is None else environment).get(key)
    if text is None:
        raise ControlSocketError(
            f"{key} is not set: init made no socket '{name}' for this process",
            f"start it from an rc file with a line 'socket {name} …', and see init's log for why it was not made",
        )
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ControlSocketError(f"{key} holds {text!r}, which is no descriptor number")
    descriptor = int(text)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ControlSocketError(f"{key}: descriptor {descriptor} is not a socket")
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ControlSocketError(
            f"{key}: descriptor {descriptor} is not open here ({error.strerror})"
        ) from error
    problem = ""
    if sock.family != socket.AF_UNIX:
        problem = f"is not a UNIX socket but {sock.family.name}"
    elif type_name is not None and sock.type != SOCKET_TYPES[type_name]:
        problem = f"is not a {type_name} socket but {sock.type.name}"
    else:
        address = os.fsencode(sock.getsockname())
        if not address.endswith(b"/" + os.fsencode(name)):
            problem = f"is bound to {os.fsdecode(address)!r}, not to '{name}'"
    if problem:
        sock.detach()  # not ours: leave it open for whoever owns it
        raise ControlSocketError(f"{key}: descriptor {descriptor} {problem}")
    os.set_inheritable(descriptor, False)
    return sock


def peer_credentials(sock: socket.socket) -> Credentials:
    """The peer's pid, uid and gid of the moment it connected (for a client: of the server's ``listen``).

    Raises:
        OSError: the socket is not connected.
    """
    return Credentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def send_message(
    sock: socket.socket, data: bytes, descriptors: Iterable[int] = (), address: bytes | None = None
) -> int:
    """One ``sendmsg``; all descriptors go with the first byte, as Android sends them.

    Args:
        sock: a connected socket, or an unconnected datagram socket with ``address``.
        data: the payload; at least one byte when there are descriptors.
        descriptors: at most ``MAX_DESCRIPTORS``; the caller keeps and closes its own.
        address: where to, for an unconnected datagram socket.

    Returns:
        How many bytes the kernel took.

    Raises:
        AndroidError: too many descriptors, or no byte to carry them.
        OSError: the kernel refused; ``BlockingIOError`` when the socket is full.
    """
    fds = list(descriptors)
    if len(fds) > MAX_DESCRIPTORS:
        raise AndroidError(f"{len(fds)} descriptors in one message, at most {MAX_DESCRIPTORS} are allowed")
    if fds and not data:
        raise AndroidError("descriptors need at least one byte of data to travel with")
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    flags = socket.MSG_NOSIGNAL
    return (
        sock.sendmsg([data], control, flags)
        if address is None
        else sock.sendmsg([data], control, flags, address)
    )


def receive_message(sock: socket.socket, max_bytes: int) -> Message:
    """One ``recvmsg``. The descriptors in the result are the caller's to close, and close-on-exec.

    Args:
        sock: any UNIX socket.
        max_bytes: longest payload; a longer packet is refused, never handed over cut.

    Raises:
        AndroidError: the packet or its descriptors did not fit; whatever came with it has been closed.
        OSError: the kernel refused; ``BlockingIOError`` when there is nothing.
    """
    data, ancillary, flags, address = sock.recvmsg(max_bytes, _CMSG_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    credentials: Credentials | None = None
    for level, kind, payload in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds.extend(numbers)
        elif kind == socket.SCM_CREDENTIALS and len(payload) >= _UCRED.size:
            credentials = Credentials(*_UCRED.unpack(payload[: _UCRED.size]))
    if len(fds) > MAX_DESCRIPTORS or flags & socket.MSG_CTRUNC:
        close_descriptors(fds)
        raise AndroidError(f"the peer sent more than {MAX_DESCRIPTORS} descriptors in one message")
    if flags & socket.MSG_TRUNC:
        close_descriptors(fds)
        raise AndroidError(f"the peer sent a packet longer than {max_bytes} bytes")
    return Message(data, fds, credentials, os.fsencode(address) if address else b"")


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close each, whatever the others say."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
