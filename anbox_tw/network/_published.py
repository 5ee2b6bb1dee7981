"""Putting a UNIX socket at a path, and taking it away again, without ever touching another's.

The order of the system calls is what this module is about:

* Whether the socket at the path is alive is asked of the kernel by connecting with the wrong socket type:
  ``EPROTOTYPE`` says that a process holds it, ``ECONNREFUSED`` that nobody does. No connection is made, so
  the holder notices nothing, and it works across network namespaces, which ``/proc/net/unix`` does not.
* Probing, removing a stale socket and binding happen under a lock file that exists only meanwhile.
* The mode is set on the socket before it is bound, the owner and the full mode before it listens: at no instant
  can somebody connect whom the mode and group do not let in.
* The path is removed while the socket still lives (nobody can then take it for stale), and only if it still
  leads to the inode that was bound.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import threading
import time
from typing import Final

from anbox_tw.errors import AlreadyRunning, ConfigError, NetworkError, PermissionRefused
from anbox_tw.network.credentials import describe_process, peer_credentials, process_lives

__all__ = ["MAX_PATH_BYTES", "PublishedSocket", "check_path", "holder_of", "is_held"]

# sockaddr_un.sun_path has 108 bytes, the last one a NUL
MAX_PATH_BYTES: Final = 107
# another starter holds the lock for a few system calls only; this is how long its death may go unseen
LOCK_TIMEOUT_S: Final = 2.0
_LOCK_POLL_S: Final = 0.005


def check_path(path: str) -> str:
    """Check that ``path`` can be a UNIX socket's.

    Returns:
        The path, absolute.

    Raises:
        ConfigError: it is empty, has a NUL, or is too long for the kernel.
    """
    if not path or "\0" in path:
        raise ConfigError(f"{path!r} cannot be the path of a UNIX socket")
    path = os.path.abspath(path)
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise ConfigError(
            f"the socket path {path} has {length} bytes; the kernel takes at most {MAX_PATH_BYTES}",
            "choose a shorter directory, for example with XDG_RUNTIME_DIR or --runtime-dir",
        )
    return path


def is_held(path: str) -> bool:
    """Whether a process holds the UNIX socket at ``path``; no connection is made.

    Raises:
        PermissionRefused: the socket is there, but we may not connect to it.
        NetworkError: the kernel gave an answer that decides nothing.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(path)
    if code in (0, errno.EPROTOTYPE, errno.EAGAIN):
        return True
    if code in (errno.ECONNREFUSED, errno.ENOENT):
        return False
    if code in (errno.EACCES, errno.EPERM):
        raise PermissionRefused(
            f"{path} is a socket of another user, and whether it is in use cannot be seen",
            "use another path, or remove it as its owner",
        )
    raise NetworkError(f"whether {path} is in use cannot be found out: {os.strerror(code)}")


def holder_of(path: str) -> int:
    """The pid of the process that listens at the UNIX socket ``path``, or 0 when it cannot be told.

    This makes a connection and closes it at once: meant for the message about a refused start only.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(path) != 0:
            return 0
        return peer_credentials(probe).pid


class PublishedSocket:
    """A bound UNIX socket whose path is ours until `withdraw`.

    Attributes:
        path: where it is, absolute.
        socket: bound, not yet listening, non-blocking, close-on-exec.
    """

    def __init__(self, path: str, bound: socket.socket, identity: tuple[int, int]) -> None:
        self.path = path
        self.socket = bound
        self._identity = identity

    @classmethod
    def publish(cls, path: str, *, mode: int = 0o660, uid: int = -1, gid: int = -1) -> PublishedSocket:
        """Bind a UNIX socket at ``path``, in the place of a stale one if there is one.

        Args:
            path: where; its directory must exist.
            mode: permission bits of the socket.
            uid: owner, -1 for ours.
            gid: group, -1 for ours.

        Raises:
            AlreadyRunning: a process holds the socket; says which.
            ConfigError: the path is too long, or something that is no socket is there.
            PermissionRefused: the directory, the owner or the group are not ours to use.
            NetworkError: any other failure of the system.
        """
        path = check_path(path)
        try:
            with _TakeoverLock(path):
                _clear(path)
                return cls._bind(path, mode, uid, gid)
        except OSError as error:
            raise _explain(error, path) from error

    @classmethod
    def _bind(cls, path: str, mode: int, uid: int, gid: int) -> PublishedSocket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        created = False
        try:
            new_owner = (uid not in (-1, os.geteuid())) or gid != -1
            # bind(2) takes the mode of the socket's own inode, less the umask. With an owner to change,
            # nobody has any access until the owner is right.
            os.fchmod(bound.fileno(), 0 if new_owner else mode)
            # The umask is the whole process's: touch it only while there is no thread to notice. Without
            # that the mode is too strict for the instant until chmod, never too wide.
            umask = os.umask(0o777 & ~mode) if threading.active_count() == 1 else None
            try:
                bound.bind(path)
                created = True
            finally:
                if umask is not None:
                    os.umask(umask)
            if new_owner:
                os.chown(path, uid, gid, follow_symlinks=False)
            status = os.lstat(path)
            if stat.S_IMODE(status.st_mode) != mode:
                os.chmod(path, mode)
            return cls(path, bound, (status.st_dev, status.st_ino))
        except BaseException:
            if created:
                os.unlink(path)
            bound.close()
            raise

    def owns_path(self) -> bool:
        """Whether the path still leads to the socket that was bound here."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def withdraw(self) -> bool:
        """Remove the path if it is still ours. Call it while the socket is open.

        Returns:
            Whether it was ours and is gone now. Calling it again does nothing.
        """
        if not self.owns_path():
            return False
        try:
            os.unlink(self.path)
        except OSError:
            return False
        return True


def _clear(path: str) -> None:
    """Remove a stale socket at ``path``; refuse anything else that is there."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(f"{path} exists and is not a socket", "move it away, or choose another path")
    if is_held(path):
        pid = holder_of(path)
        # who began to listen may be dead, and a child of it that has not become its tool yet still hold the socket
        if not pid or process_lives(pid):
            raise AlreadyRunning(
                f"already running, {describe_process(pid)}: it holds {path}",
                "stop it first, or choose another instance or path",
            )
    os.unlink(path)


def _explain(error: OSError, path: str) -> Exception:
    directory = os.path.dirname(path)
    if isinstance(error, FileNotFoundError):
        return NetworkError(
            f"cannot listen on {path}: the directory {directory} does not exist", f"mkdir -p {directory}"
        )
    if isinstance(error, NotADirectoryError):
        return ConfigError(f"cannot listen on {path}: {directory} is not a directory")
    if isinstance(error, PermissionError):
        return PermissionRefused(
            f"cannot listen on {path}: {error.strerror}",
            f"make {directory} writable, or be a member of the group that the socket shall have",
        )
    return NetworkError(f"cannot listen on {path}: {error.strerror}")


class _TakeoverLock:
    """Keeps two starters from taking the same path over at once; leaves no file behind."""

    def __init__(self, path: str) -> None:
        directory, name = os.path.split(path)
        self._path = os.path.join(directory, f".{name}.lock")
        self._fd = -1

    def __enter__(self) -> None:
        # Blocking, but for as long as another starter needs for a handful of system calls.
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # its last holder may have removed the file between our open and our lock
                held, there = os.fstat(fd), os.lstat(self._path)
                if (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino):
                    self._fd = fd
                    return
            except (BlockingIOError, FileNotFoundError):
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            if time.monotonic() > deadline:
                raise AlreadyRunning(
                    f"another process has been starting on the same socket for {LOCK_TIMEOUT_S:g} s: it holds {self._path}",
                    "wait for it, or end it",
                )
            time.sleep(_LOCK_POLL_S)

    def __exit__(self, *exc_info: object) -> None:
        try:
            os.unlink(self._path)
        except OSError:
            # somebody tidied up; the lock itself goes with the descriptor
            pass
        os.close(self._fd)
