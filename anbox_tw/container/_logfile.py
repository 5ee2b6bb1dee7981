"""A log file that never grows beyond its limit. Standard library only."""

from __future__ import annotations

import os

__all__ = ["LogFile"]


class LogFile:
    """Writes a new file; the one before, and this one when it is full, becomes ``<path>.1``.

    So the file tells of one run only, and at most twice the limit is kept. A symbolic link is not followed. What cannot be written
    (a full disk) is dropped: the container must not stand still for its log.
    """

    def __init__(self, path: str, limit: int) -> None:
        """Begin a new file.

        Args:
            path: the file; its directory is there.
            limit: bytes until it is rotated.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = path
        self.limit = limit
        self._descriptor = -1
        self._size = 0
        self._open()
        if self._size:
            self._rotate()

    def _rotate(self) -> None:
        os.rename(self.path, f"{self.path}.1")
        os.close(self._descriptor)
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._descriptor = os.open(self.path, flags, 0o640)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> bool:
        """Append ``data``; False if there was none, that is, at the writer's end."""
        if not data:
            return False
        try:
            if self._size and self._size + len(data) > self.limit:
                self._rotate()
            self._size += os.write(self._descriptor, data)
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
