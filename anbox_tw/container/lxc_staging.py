"""The instance's staging directory: what LXC is shown, mounted by us before it starts.

Why not give LXC the paths themselves: an unprivileged container's root opens them, so each directory on
the way would have to be open to it; and between a check and LXC's own look a path could be swapped. So every
source is opened once, and what was opened is bound into the staging directory, which LXC gets.

Whatever a guest can write to (its ``/data``) is walked without following symbolic links: it could aim them at
the host's files.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.idmap import IdMap
from anbox_tw.container.journal import Journal
from anbox_tw.container.undo import make_directory, record_mount

__all__ = ["Staging", "is_open_to_all", "open_beneath", "staging_path"]

_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
MAX_BASE_BYTES = 200  # an overlay's options hold three paths below it and must fit into one page
FALLBACK_BASE = "/run/anbox-tw"
MAX_BASE_RACES = 20  # instances that start just when others leave; each try loses only to one that ends


def is_open_to_all(path: str, gid: int = -1) -> bool:
    """Everybody, or the group ``gid``, may pass through every directory on the way to ``path``, itself included."""
    while True:
        try:
            status = os.stat(path)
            if not status.st_mode & (stat.S_IXGRP if status.st_gid == gid else stat.S_IXOTH):
                return False
        except FileNotFoundError:
            pass  # to be made by us
        except OSError:
            return False
        if path in ("/", ""):
            return True
        path = os.path.dirname(path)


def staging_path(run_path: str, key: str, fallback: str = FALLBACK_BASE) -> str:
    """Where to stage an instance.

    Args:
        run_path: what the spec says; used if everybody may pass through it and an overlay's options can hold it.
        key: unique name of the instance.
        fallback: the directory that is used otherwise.
    """
    plain = _PLAIN.fullmatch(run_path) and len(run_path) <= MAX_BASE_BYTES
    return f"{run_path}/lxc" if plain and is_open_to_all(run_path) else f"{fallback}/{key}"


@contextmanager
def open_beneath(
    root: int | str,
    path: str,
    *,
    create: bool = False,
    mode: int = 0o755,
    owner: tuple[int, int] | None = None,
) -> Iterator[int]:
    """Open a directory below another one without following symbolic links.

    Args:
        root: descriptor or path of a directory that is ours.
        path: relative path; empty is the root itself.
        create: make what is missing.
        mode: of what is made.
        owner: uid and gid of what is made.

    Yields:
        A descriptor, closed at the end.

    Raises:
        OSError: something on the way is missing, a link (``ELOOP``) or not a directory.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    current = os.open(root, flags & ~os.O_NOFOLLOW) if isinstance(root, str) else os.dup(root)
    try:
        for part in [part for part in path.split("/") if part not in ("", ".")]:
            if part == "..":
                raise OSError(errno.EINVAL, "'..' in a path", path)
            if create:
                try:
                    os.mkdir(part, mode, dir_fd=current)
                    made = os.open(part, flags, dir_fd=current)
                    try:
                        os.fchmod(made, mode)
                        if owner is not None:
                            os.fchown(made, *owner)
                    finally:
                        os.close(made)
                except FileExistsError:
                    pass
            try:
                deeper = os.open(part, flags, dir_fd=current)
            except NotADirectoryError as error:
                if stat.S_ISLNK(os.stat(part, dir_fd=current, follow_symlinks=False).st_mode):
                    raise OSError(errno.ELOOP, "a symbolic link", path) from error
                raise
            os.close(current)
            current = deeper
        yield current
    finally:
        os.close(current)


class Staging:
    """One instance's staging directory.

    Attributes:
        path: the directory; the container's root may pass through it.
    """

    def __init__(self, path: str, journal: Journal, commands: Commands, idmap: IdMap) -> None:
        """Args:
        path: from `staging_path`.
        journal: where all that is made is written down.
        commands: runs mount.
        idmap: who the container's root is.
        """
        self.path = path
        self.journal = journal
        self.commands = commands
        self.idmap = idmap
        self._binds = 0

    def open(self) -> None:
        """Make the directory, and those above it that are missing.

        Raises:
            DiagnosedError: it cannot be made (``ANBOX-C005``).
        """
        try:
            for attempt in range(MAX_BASE_RACES):
                self._make_base()
                try:
                    os.mkdir(self.path, 0o700)
                    break
                except FileNotFoundError:
                    # Another instance has just left, and taken the empty base with it.
                    if attempt + 1 == MAX_BASE_RACES:
                        raise
            # Nobody but the container's root passes through it: what a guest puts into its /data, a program
            # that is set-uid to its root among it, is none of the host's other users' business.
            os.chown(self.path, 0, self.idmap.root_gid)
            os.chmod(self.path, 0o710)  # noqa: S103  # see above
        except OSError as error:
            raise DiagnosedError.of(
                "ANBOX-C005", f"the run directory {self.path} cannot be made", str(error)
            ) from error

    def _make_base(self) -> None:
        """Make what is above the staging directory, and write both down."""
        missing = []
        parent = os.path.dirname(self.path)
        while not os.path.isdir(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        for directory in reversed(missing):
            try:
                make_directory(self.journal, directory, 0o711)
            except FileExistsError:
                continue  # another instance was quicker
        parent = os.path.dirname(self.path)
        if parent == FALLBACK_BASE:
            # Shared by all instances: whoever leaves last takes it away, not only the one who made it.
            self.journal.record("directory", path=parent)
        self.journal.record("directory", path=self.path, recursive=True)

    def directory(self, name: str, mode: int = 0o711) -> str:
        """Make a directory in the staging directory; gives its path."""
        path = f"{self.path}/{name}"
        os.mkdir(path, mode)
        os.chmod(path, mode)
        return path

    async def mount(self, target: str, what: str, *arguments: str, code: str = "ANBOX-C011") -> None:
        """Mount something at ``target``.

        Args:
            target: an existing file or directory of ours.
            what: for the error: ``the overlay``.
            arguments: of mount(8), all but the target.
            code: of the error.

        Raises:
            DiagnosedError: it failed.
        """
        entry = record_mount(self.journal, target)
        # --no-mtab: otherwise mount(8) makes /run/mount where there is none, and leaves it
        result = await self.commands.run(["mount", "--no-mtab", "--no-canonicalize", *arguments, target])
        if not result.ok:
            self.journal.done(entry)
            result.require(code, f"{what} could not be mounted")

    async def bind(self, descriptor: int, what: str, *, name: str = "", read_only: bool = False) -> str:
        """Bind what a descriptor is of, and nothing that may lie at its path by now.

        Args:
            descriptor: open, also with ``O_PATH``; stays open.
            what: for the error.
            name: of the mount point; the default is a number.
            read_only: nothing can be changed through it.

        Returns:
            Path of the mount point.
        """
        if not name:
            self._binds += 1
            name = f"bind-{self._binds:03}"
        target = f"{self.path}/{name}"
        wanted = os.fstat(descriptor)
        if stat.S_ISDIR(wanted.st_mode):
            os.mkdir(target, 0o755)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        source = f"/proc/{os.getpid()}/fd/{descriptor}"
        options = "bind,ro" if read_only else "bind"
        await self.mount(target, what, "-o", options, source, code="ANBOX-C008")
        got = os.stat(target)
        if (got.st_dev, got.st_ino) != (wanted.st_dev, wanted.st_ino):
            raise DiagnosedError.of("ANBOX-C008", f"{what} was swapped while it was mounted")
        return target

    async def bind_path(self, path: str, what: str, *, name: str = "", read_only: bool = True) -> str:
        """Bind what is at a path that nobody but root can change; see `bind`."""
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise DiagnosedError.of("ANBOX-C008", f"{what} cannot be opened", str(error)) from error
        try:
            return await self.bind(descriptor, what, name=name, read_only=read_only)
        finally:
            os.close(descriptor)

    async def overlay(self, target: str, lowers: list[str], *, upper: bool) -> str:
        """Mount an overlay.

        Args:
            target: an existing directory.
            lowers: directories, the uppermost first.
            upper: on top of them a directory of the run's own, which takes all that is written.

        Returns:
            A note if the upper directory had to be in memory, or an empty string.
        """
        lower = f"lowerdir={':'.join(lowers)}"
        if not upper:
            await self.mount(target, "the overlay", "-t", "overlay", "-o", f"ro,{lower}", "overlay")
            return ""
        delta = self.directory("delta")
        options = self._upper(lower, delta)
        try:
            await self.mount(target, "the overlay", "-t", "overlay", "-o", options, "overlay")
        except DiagnosedError:
            # Not every file system can be an upper directory: another overlay, NFS and FUSE cannot.
            for name in ("upper", "work/work", "work"):
                try:
                    os.rmdir(f"{delta}/{name}")
                except OSError:
                    pass
            await self.mount(delta, "a tmpfs", "-t", "tmpfs", "-o", "mode=0711,nodev,nosuid", "tmpfs")
            options = self._upper(lower, delta)
            await self.mount(target, "the overlay", "-t", "overlay", "-o", options, "overlay")
            return "what is written to the rootfs is kept in memory"
        return ""

    @staticmethod
    def _upper(lower: str, delta: str) -> str:
        for name in ("upper", "work"):
            os.mkdir(f"{delta}/{name}", 0o755)
        return f"{lower},upperdir={delta}/upper,workdir={delta}/work"

    def write_file(self, name: str, data: bytes, mode: int = 0o644) -> str:
        """Write a file into the staging directory; gives its path."""
        path = f"{self.path}/{name}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
        return path


def make_mount_point(root: str, target: str, *, directory: bool) -> None:
    """Make a mount point in a mounted rootfs, unless there is one.

    Raises:
        OSError: it cannot be made; ``ELOOP`` if a symbolic link is in the way.
    """
    parent, _, name = target.rpartition("/")
    with open_beneath(root, parent, create=True) as descriptor:
        try:
            there = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
        except FileNotFoundError:
            if directory:
                os.mkdir(name, 0o755, dir_fd=descriptor)
            else:
                os.close(
                    os.open(
                        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=descriptor
                    )
                )
            return
    if stat.S_ISLNK(there):
        raise OSError(errno.ELOOP, "a symbolic link is in the way", target)
    if stat.S_ISDIR(there) != directory:
        raise OSError(errno.ENOTDIR if directory else errno.EISDIR, "of another kind", target)


def has_mount_point(roots: list[str], target: str, *, directory: bool) -> bool:
    """One of the directories, the uppermost first, has a mount point of that name and kind."""
    parent, _, name = target.rpartition("/")
    for root in roots:
        try:
            with open_beneath(root, parent) as descriptor:
                mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
        except OSError:
            continue
        return stat.S_ISDIR(mode) == directory and not stat.S_ISLNK(mode)
    return False


def write_beneath(
    root: int | str, path: str, data: bytes, owner: tuple[int, int], modes: Mapping[str, int] | None = None
) -> None:
    """Write a file in a tree that the guest can write to, following no links.

    Args:
        root: the tree.
        path: of the file, relative.
        data: all of its new content.
        owner: uid and gid of what is made.
        modes: ``directory`` and ``file`` mode; 0o771 and 0o644 by default.
    """
    modes = modes or {}
    parent, _, name = path.rpartition("/")
    with open_beneath(
        root, parent, create=True, mode=modes.get("directory", 0o771), owner=owner
    ) as directory:
        # A new file that takes the old one's name: whatever the guest has put there is not written through.
        temporary = f".{name}.anbox-tw"
        try:
            os.unlink(temporary, dir_fd=directory)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(data)
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), modes.get("file", 0o644))
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
