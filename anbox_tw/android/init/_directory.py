"""The directory of the sockets: one init at a time, and nobody else who could change it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from anbox_tw.android.errors import InitError
from anbox_tw.errors import AlreadyRunning

__all__ = ["SocketDirectory"]

_LOCK_NAME = ".anbox-init.lock"


class SocketDirectory:
    """Taken while an init runs.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: str) -> None:
        """Nothing is made before ``take``."""
        self.path = path
        self._lock = -1
        self._made = False

    def take(self) -> None:
        """Make it where it is missing, and lock it.

        Raises:
            AlreadyRunning: another init holds it.
            InitError: others may write it.
            OSError: it cannot be made.
        """
        try:
            os.mkdir(self.path, 0o755)
            self._made = True
            os.chmod(self.path, 0o755)  # noqa: S103  # every service looks its socket up here
        except FileExistsError:
            found = os.stat(self.path)
            if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                raise InitError(
                    f"{self.path} can be changed by others (owner {found.st_uid}, "
                    f"mode {stat.S_IMODE(found.st_mode):o})",
                    "give a directory of your own that only you may write",
                ) from None
        path = os.path.join(self.path, _LOCK_NAME)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 20).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise AlreadyRunning(
                f"another init serves {self.path} (pid {pid or 'unknown'})",
                "stop it, or give another --socket-dir",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def leave(self) -> None:
        """Give it up; one that was made here goes, when it is empty."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, _LOCK_NAME))
        os.close(self._lock)
        self._lock = -1
        if self._made:
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
