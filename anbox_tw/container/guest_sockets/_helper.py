"""The helper: a small process that opens sockets in one container.

Standard library only; it has one thread. The process backend's launcher forks it (it then shares the launcher's memory);
for LXC the manager runs it as a program while lxc-start works, and tells it the container's init when that is known.

It joins the container's user and network namespaces and becomes the container's root, so a service in the guest sees
its own root as the peer, and no right of the host is left. It does not join the mount namespace: it keeps a descriptor
of the container's root directory, below which paths are resolved by the kernel (``openat2`` with ``RESOLVE_IN_ROOT``).
So nothing is ever imported, opened or executed from the guest's file system, and its symbolic links do not lead out.

On the control socket (``SOCK_SEQPACKET``) it gets clients, each a connected socket that came with the byte ``c``; it says
``ready`` or ``failed: why`` there once. When that socket is at its end, or the container's init has ended, it ends.

A guest whose file system (FUSE) does not answer can hold it up, and with it the forwards of this one container alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from anbox_tw.container import _syscalls as sys_
from anbox_tw.container.guest_sockets._wire import (
    Kind,
    MessageError,
    Request,
    Requests,
    decode_address,
    encode_reply,
    has_descriptor,
)

__all__ = ["main", "serve"]

MAX_CLIENTS = 16
"""A session keeps one connection; a Python program or two may have their own."""

READ_BYTES = 64 * 1024
NAMESPACES = {"user": sys_.CLONE_NEWUSER, "net": sys_.CLONE_NEWNET}
DAC_OVERRIDE = 1  # linux/capability.h: root may connect to every socket file

_NR_OPENAT2 = 437  # asm-generic/unistd.h
_NR_SETNS = {
    "x86_64": 308,
    "i386": 346,
    "i686": 346,
    "armv7l": 375,
    "armv6l": 375,
    "ppc64le": 350,
    "s390x": 339,
}
_NR_SETNS_GENERIC = 268
_RESOLVE_IN_ROOT = 0x10  # linux/openat2.h
_RESOLVE_NO_MAGICLINKS = 0x02


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_in_root(root: int, path: bytes) -> int:
    """An ``O_PATH`` descriptor of what an absolute path is below a root directory, links resolved below it too.

    Raises:
        OSError: it is not there.
    """
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    return sys_.syscall(
        "openat2",
        _NR_OPENAT2,
        ctypes.c_int(root),
        path,
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )


class Place:
    """Where sockets are opened: inside a container, or in our own namespaces.

    Attributes:
        root: descriptor of the container's root directory.
        prefix: put before paths where there is no such root: the directory that stands for it.
    """

    def __init__(self, root: int = -1, prefix: bytes = b"") -> None:
        self.root = root
        self.prefix = prefix

    def open(self, request: Request) -> tuple[int, socket.socket | None]:
        """Open and connect one socket, without waiting.

        Returns:
            An errno and, where `has_descriptor`, the socket.
        """
        try:
            return self._open(request)
        except socket.gaierror:
            return errno.EINVAL, None
        except OSError as error:
            return error.errno or errno.EIO, None
        except (MessageError, ValueError):
            return errno.EINVAL, None
        except Exception as error:
            # One request that goes wrong is no reason to fail all others.
            return _unexpected(error), None

    def _open(self, request: Request) -> tuple[int, socket.socket | None]:
        kind, text = request.kind, request.text
        flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        if kind in (Kind.TCP, Kind.UDP):
            address, port = decode_address(text)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            stream = kind == Kind.TCP
            # Never a name, which would be looked up, and by the host's name servers. As bytes: for a text Python
            # imports a codec, which the container's root may not read.
            found = socket.getaddrinfo(address.encode(), port, family, flags=socket.AI_NUMERICHOST)
            target: Any = found[0][4]
            sock = socket.socket(family, (socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) | flags)
            if stream:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        elif kind == Kind.ABSTRACT:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | flags)
            target = b"\0" + text
        elif kind == Kind.PATH:
            if not text.startswith(b"/") or b"\0" in text:
                return errno.EINVAL, None
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | flags)
            return self._connect_path(sock, text)
        else:
            return errno.ENOSYS, None
        return _connect(sock, target)

    def _connect_path(self, sock: socket.socket, path: bytes) -> tuple[int, socket.socket | None]:
        try:
            if self.root >= 0:
                found = open_in_root(self.root, path)
            else:
                found = os.open(self.prefix + path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            sock.close()
            raise
        try:
            return _connect(sock, b"/proc/self/fd/%d" % found)
        finally:
            os.close(found)


def _unexpected(error: Exception) -> int:
    """Tell of a defect, where there is somebody to tell; the launcher's helper has no standard error."""
    try:
        os.write(2, f"{error!r}\n".encode())
    except OSError:
        pass
    return errno.EIO


def _connect(sock: socket.socket, target: Any) -> tuple[int, socket.socket | None]:
    try:
        number = sock.connect_ex(target)
        if number == errno.EINPROGRESS:
            # Over loopback it is decided by now, one way or the other.
            number = sock.connect_ex(target)
            if number == errno.EALREADY:
                number = errno.EINPROGRESS
    except (OSError, ValueError, OverflowError):
        sock.close()
        raise
    if not has_descriptor(number):
        sock.close()
        return number, None
    return number, sock


def enter(pid: int, pidfd: int) -> Place:
    """Join a container.

    Args:
        pid: of a process in it.
        pidfd: of the same process.

    Raises:
        OSError: the kernel refuses.
    """
    flags = 0
    for name, flag in NAMESPACES.items():
        if os.stat(f"/proc/{pid}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            flags |= flag
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    if _ended(pidfd):
        # then what was found under its number may be another's
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    if flags:
        number = _NR_SETNS.get(os.uname().machine, _NR_SETNS_GENERIC)
        sys_.syscall("setns", number, ctypes.c_int(pidfd), ctypes.c_int(flags))
    if flags & sys_.CLONE_NEWUSER:
        try:
            os.setgroups([])
        except PermissionError:
            pass  # a user namespace made without privileges may not; its groups are the user's own
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    if os.geteuid() == 0:
        sys_.drop_capabilities(frozenset({DAC_OVERRIDE}))
    sys_.no_new_privileges()
    return Place(root)


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class _Client:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.requests = Requests()


class Helper:
    """Serves clients until the control socket or the container ends."""

    def __init__(self, control: socket.socket, place: Place, pidfd: int = -1) -> None:
        self._control = control
        self._place = place
        self._pidfd = pidfd
        self._clients: dict[int, _Client] = {}
        self._poll = select.epoll()

    def run(self) -> None:
        """Serve."""
        control, pidfd = self._control.fileno(), self._pidfd
        self._poll.register(control, select.EPOLLIN)
        if pidfd >= 0:
            self._poll.register(pidfd, select.EPOLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == pidfd:
                    return
                if descriptor != control:
                    client = self._clients.get(descriptor)
                    if client is not None and not self._read(client):
                        self._drop(client)
                elif not self._take_client():
                    return

    def _take_client(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, 16, 4, socket.MSG_CMSG_CLOEXEC)
        for descriptor in descriptors:
            if len(self._clients) >= MAX_CLIENTS:
                os.close(descriptor)
                continue
            client = _Client(socket.socket(fileno=descriptor))
            client.socket.setblocking(False)
            self._clients[descriptor] = client
            self._poll.register(descriptor, select.EPOLLIN)
        return bool(data)

    def _drop(self, client: _Client) -> None:
        descriptor = client.socket.fileno()
        del self._clients[descriptor]
        self._poll.unregister(descriptor)
        client.socket.close()

    def _read(self, client: _Client) -> bool:
        try:
            data = client.socket.recv(READ_BYTES)
            if not data:
                return False
            for request in client.requests.receive_data(data):
                self._answer(client, request)
        except BlockingIOError:
            # from the receiving: nothing there after all
            return True
        except (OSError, MessageError):
            # a client that does not read its answers is none
            return False
        return True

    def _answer(self, client: _Client, request: Request) -> None:
        number, opened = self._place.open(request)
        try:
            if opened is None:
                self._send(client, encode_reply(request.id, number))
                return
            try:
                socket.send_fds(client.socket, [encode_reply(request.id, number)], [opened.fileno()])
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise _Unread from None
                self._send(client, encode_reply(request.id, error.errno))
        finally:
            if opened is not None:
                opened.close()

    def _send(self, client: _Client, data: bytes) -> None:
        try:
            client.socket.send(data)
        except BlockingIOError:
            raise _Unread from None


class _Unread(OSError):
    """A client does not read."""


def serve(
    control: socket.socket,
    pid: int,
    *,
    parent: int,
    inside: bool = True,
    prefix: str = "",
    entered: int = -1,
) -> None:
    """Be the helper, in this process, from now on.

    Args:
        control: connected to the manager.
        pid: of the container's init.
        parent: our parent, with whom we die.
        inside: the container has namespaces.
        prefix: if it has none: the directory that stands for its root.
        entered: descriptor that is closed when we are inside.
    """
    try:
        pidfd = os.pidfd_open(pid)
        place = enter(pid, pidfd) if inside else Place(prefix=os.fsencode(prefix))
        sys_.set_name("anbox-sockets")
        # The uid has changed for the last time, which would have cleared it.
        sys_.set_parent_death_signal(signal.SIGKILL)
    except OSError as error:
        control.send(b"failed: " + (error.strerror or str(error)).encode()[:200])
        return
    finally:
        if entered >= 0:
            os.close(entered)
    if os.getppid() != parent:
        return
    control.send(b"ready")
    Helper(control, place, pidfd).run()


def main() -> (
    NoReturn
):  # pragma: no cover  # a process that ends in os._exit, with nothing to import any more
    """As a program: the control socket is descriptor 3; its first message has the pid of init, or it ends."""
    control = socket.socket(fileno=3)
    parent = os.getppid()
    sys_.set_parent_death_signal(signal.SIGKILL)
    try:
        pid = control.recv(16)
        if pid and os.getppid() == parent:
            serve(control, int(pid), parent=parent)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
    finally:
        os._exit(0)
