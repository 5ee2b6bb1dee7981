"""Files as the file services see them: all of the machine's, or those below a root that cannot be left.

Everything here blocks and belongs into a worker thread. A place is a pair (directory descriptor or None,
name): the operation's last step is always relative to a directory that is held open, so nobody can swap
a directory for a symlink in between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

__all__ = ["MAX_SYMLINKS", "FileTree", "RootedTree"]

MAX_SYMLINKS = 40
"""Symlinks followed in one path, as the kernel's ``MAXSYMLINKS``."""

Place = tuple[int | None, str]


class FileTree:
    """All files, by the paths the kernel knows."""

    @contextlib.contextmanager
    def place(self, path: str, *, follow: bool = False) -> Iterator[Place]:
        """The place of ``path``.

        Args:
            path: absolute, or relative to ``/``.
            follow: whether a symlink at the end of the path is followed.

        Raises:
            OSError: a directory of the path is missing, or not one, or may not be entered.
        """
        yield None, path if path.startswith("/") else f"/{path}"

    def make_parents(self, path: str, mode: int = 0o775) -> None:
        """Make the directories above ``path`` that are missing.

        Raises:
            OSError: one cannot be made.
        """
        parts = [part for part in path.split("/")[:-1] if part]
        for index in range(1, len(parts) + 1):
            with self.place("/" + "/".join(parts[:index])) as (folder, name):
                try:
                    os.mkdir(name, mode, dir_fd=folder)
                except FileExistsError:
                    continue
                except OSError:
                    if stat.S_ISDIR(os.stat(name, dir_fd=folder).st_mode):
                        continue
                    raise
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                try:
                    # The mode is meant, not what the umask leaves of it.
                    os.fchmod(fd, mode)
                finally:
                    os.close(fd)


class RootedTree(FileTree):
    """The files below ``root``, which paths and symlinks see as ``/``.

    Each component is opened relative to the one before it and never through a symlink; symlinks are
    read and followed here, with ``root`` as their ``/``. ``..`` goes back to the descriptor that was
    passed on the way, and at the root it stays.

    Args:
        root: an existing directory.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)

    @contextlib.contextmanager
    def place(self, path: str, *, follow: bool = False) -> Iterator[Place]:
        """See ``FileTree.place``."""
        with contextlib.ExitStack() as held:
            folders = [_open_folder(held, self._root, None)]
            todo = [part for part in path.split("/") if part and part != "."][::-1]
            links = 0
            name = "."
            while todo:
                name = todo.pop()
                if name == "..":
                    if len(folders) > 1:
                        folders.pop()
                    name = "."
                    continue
                if todo or follow:
                    target = _read_link(name, folders[-1])
                    if target is not None:
                        links += 1
                        if links > MAX_SYMLINKS:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                        if target.startswith("/"):
                            del folders[1:]
                        todo.extend([part for part in target.split("/") if part and part != "."][::-1])
                        name = "."
                        continue
                if todo:
                    folders.append(_open_folder(held, name, folders[-1]))
            yield folders[-1], name


def _read_link(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        # Not a symlink, or nothing there: what happens next tells.
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def _open_folder(held: contextlib.ExitStack, name: str, folder: int | None) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if folder is not None else 0)
    fd = os.open(name, flags, dir_fd=folder)
    held.callback(os.close, fd)
    return fd
