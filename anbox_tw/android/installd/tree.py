"""Files below roots that no name and no symlink leads out of.

Clients name files as Android sees them (``/data/…``, ``/mnt/expand/…``). Each name is mapped to a directory of the
host and then walked part by part through directory descriptors without following a symlink, because applications
own what lies below and may swap any part at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from attrs import frozen
from twisted.logger import Logger

__all__ = ["MAX_PATH_BYTES", "OutsideRoot", "Place", "Tree"]

MAX_PATH_BYTES = 255
"""``PKG_PATH_MAX`` (256) with its NUL."""

MAX_DEPTH = 24
"""Directories held open one below the other; deeper ones are first moved up, or not counted."""

MAX_SIZE_DEPTH = 128
"""How deep sizes are added up."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
BLOCK_BYTES = 512
"""``st_blocks`` counts these, whatever the file system's own block is."""


class OutsideRoot(ValueError):
    """A name that is not below any root, or tries to leave it."""


@frozen
class Place:
    """A name below a root: the root's directory on the host, and the parts below it."""

    root: str
    parts: tuple[str, ...]

    def __truediv__(self, name: str) -> Place:
        """The place ``name`` below this one; ``name`` is one or more parts.

        Raises:
            OutsideRoot: a part is empty, ``.``, ``..`` or holds NUL.
        """
        parts = tuple(name.split("/"))
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise OutsideRoot(f"{name!r} is no name below {self}")
        return Place(self.root, self.parts + parts)

    @property
    def parent(self) -> Place:
        """The directory that holds this place."""
        return Place(self.root, self.parts[:-1])

    @property
    def name(self) -> str:
        """The last part."""
        return self.parts[-1]

    @property
    def path(self) -> str:
        """The host's path, for programs that can be trusted with one."""
        return "/".join((self.root, *self.parts))

    def __str__(self) -> str:
        # for logs: bytes that are no UTF-8 come as escapes
        return self.path.encode("utf-8", "backslashreplace").decode()


def _why(error: Exception) -> str:
    """An error's reason without the names in it, which need not be text."""
    return (error.strerror or repr(error)) if isinstance(error, OSError) else repr(error)


class Tree:
    """The roots, and what is done below them. Every method may block: call them in a thread."""

    log = Logger()

    def __init__(self, roots: dict[str, str], *, keep_owners: bool = True) -> None:
        """Map Android's directories.

        Args:
            roots: Android's absolute directory to the host's.
            keep_owners: owners are really set and checked; without the right to, all files stay ours.
        """
        self._roots = sorted(roots.items(), key=lambda item: -len(item[0]))
        self.keep_owners = keep_owners

    def root(self, directory: str) -> Place:
        """The place that stands for one of Android's directories given to the constructor."""
        return Place(dict(self._roots)[directory], ())

    def locate(self, path: str) -> Place:
        """Where an absolute Android path lies.

        Raises:
            OutsideRoot: below no root, with ``..``, or too long.
        """
        if len(path.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
            raise OutsideRoot(f"path longer than {MAX_PATH_BYTES} bytes")
        for prefix, directory in self._roots:
            if path == prefix or path.startswith(prefix + "/"):
                rest = [part for part in path[len(prefix) :].split("/") if part]
                place = Place(directory, ())
                return place / "/".join(rest) if rest else place
        raise OutsideRoot(f"{path!r} is below none of {', '.join(prefix for prefix, _ in self._roots)}")

    @contextlib.contextmanager
    def directory(self, place: Place) -> Iterator[int]:
        """A descriptor of a directory.

        Raises:
            OSError: a part is missing, no directory, or a symlink.
        """
        # the root itself may be a symlink: it is the operator's
        descriptor = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in place.parts:
                inner = os.open(part, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _parent(self, place: Place) -> Iterator[tuple[int, str]]:
        if not place.parts:
            raise OutsideRoot("the root itself is not to be changed")
        with self.directory(place.parent) as descriptor:
            yield descriptor, place.name

    def lstat(self, place: Place) -> os.stat_result:
        """What is there, a symlink as itself.

        Raises:
            OSError: nothing is.
        """
        if not place.parts:
            return os.stat(place.root)
        with self._parent(place) as (descriptor, name):
            return os.stat(name, dir_fd=descriptor, follow_symlinks=False)

    def exists(self, place: Place) -> bool:
        """Whether something is there."""
        try:
            self.lstat(place)
        except OSError:
            return False
        return True

    def prepare_dir(self, place: Place, mode: int, uid: int, gid: int, *, strict: bool) -> int:
        """Make a directory, or check (``strict``) or mend the one that is there, as ``fs_prepare_dir`` does.

        Returns:
            0, or -1 with the reason logged.
        """
        return self._prepare(place, mode, uid, gid, strict=strict, file=False)

    def prepare_file(self, place: Place, mode: int, uid: int, gid: int) -> int:
        """As ``prepare_dir`` with ``strict``, for a regular file."""
        return self._prepare(place, mode, uid, gid, strict=True, file=True)

    def _prepare(self, place: Place, mode: int, uid: int, gid: int, *, strict: bool, file: bool) -> int:
        try:
            with self._parent(place) as (parent, name):
                try:
                    if file:
                        flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                        os.close(os.open(name, flags, 0o600, dir_fd=parent))
                    else:
                        os.mkdir(name, 0o700, dir_fd=parent)
                except FileExistsError:
                    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                    kind = stat.S_ISREG if file else stat.S_ISDIR
                    if not kind(found.st_mode):
                        self.log.error("{place}: something else is there", place=str(place))
                        return -1
                    owner_matches = not self.keep_owners or (found.st_uid, found.st_gid) == (uid, gid)
                    if strict:
                        if not owner_matches:
                            self.log.error(
                                "expected {place} with owner {uid}:{gid} but found {found}",
                                place=str(place),
                                uid=uid,
                                gid=gid,
                                found=f"{found.st_uid}:{found.st_gid}",
                            )
                            return -1
                        return 0
                descriptor = os.open(
                    name,
                    os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if file else os.O_DIRECTORY),
                    dir_fd=parent,
                )
                try:
                    if self.keep_owners:
                        os.fchown(descriptor, uid, gid)
                    # behind chown, which clears setuid and setgid
                    os.fchmod(descriptor, mode)
                finally:
                    os.close(descriptor)
        except (OSError, OutsideRoot) as error:
            self.log.error("failed to prepare {place}: {reason}", place=str(place), reason=_why(error))
            return -1
        return 0

    def delete(self, place: Place, *, itself: bool = False, ignore_missing: bool = False) -> int:
        """Delete a directory's contents, and itself.

        Returns:
            0; minus the errno when it cannot be opened; -1 when something in it could not be deleted.
        """
        result = 0
        try:
            with self.directory(place) as descriptor:
                result = self._empty(descriptor)
        except OSError as error:
            if ignore_missing and error.errno == errno.ENOENT:
                return 0
            self.log.error("couldn't opendir {place}: {reason}", place=str(place), reason=error.strerror)
            return -(error.errno or 1)
        if itself:
            try:
                with self._parent(place) as (parent, name):
                    os.rmdir(name, dir_fd=parent)
            except OSError as error:
                self.log.error("couldn't rmdir {place}: {reason}", place=str(place), reason=error.strerror)
                result = -1
        return result

    def _empty(self, descriptor: int) -> int:
        """Delete all entries; directories deeper than ``MAX_DEPTH`` are moved up until they are not."""
        result = 0
        moved = 0
        while True:
            counts = [0, moved]
            if self._empty_level(descriptor, descriptor, 0, counts):
                result = -1
            if counts[1] == moved:
                return result
            moved = counts[1]

    def _empty_level(self, top: int, descriptor: int, depth: int, counts: list[int]) -> int:
        result = 0
        with os.scandir(descriptor) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in names:
            try:
                if not is_directory:
                    os.unlink(name, dir_fd=descriptor)
                    continue
                if depth >= MAX_DEPTH:
                    try:
                        os.rmdir(name, dir_fd=descriptor)
                    except OSError:
                        counts[1] += 1
                        os.rename(
                            name,
                            f".anbox-deep-{counts[1]}-{os.getpid()}",
                            src_dir_fd=descriptor,
                            dst_dir_fd=top,
                        )
                    continue
                inner = os.open(name, _DIRECTORY, dir_fd=descriptor)
                try:
                    if self._empty_level(top, inner, depth + 1, counts):
                        result = -1
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=descriptor)
            except FileNotFoundError:
                continue  # somebody else was faster
            except OSError as error:
                self.log.error("couldn't delete {name!r}: {reason}", name=name, reason=error.strerror)
                result = -1
        return result

    def size(self, place: Place) -> int:
        """Bytes on disk of all that is below a directory, not of itself; 0 when there is none."""
        try:
            with self.directory(place) as descriptor:
                return self.size_below(descriptor)
        except OSError:
            return 0

    def size_below(self, descriptor: int, depth: int = 0) -> int:
        """As ``size``, for an open directory."""
        total = 0
        with os.scandir(descriptor) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False)
                    total += found.st_blocks * BLOCK_BYTES
                    if stat.S_ISDIR(found.st_mode) and depth < MAX_SIZE_DEPTH:
                        inner = os.open(entry.name, _DIRECTORY, dir_fd=descriptor)
                        try:
                            total += self.size_below(inner, depth + 1)
                        finally:
                            os.close(inner)
        return total

    def unlink(self, place: Place) -> int:
        """Remove a file; 0, or minus the errno."""
        try:
            with self._parent(place) as (parent, name):
                os.unlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.log.error("couldn't unlink {place}: {reason}", place=str(place), reason=error.strerror)
            return -(error.errno or 1)
        return 0

    def rename(self, source: Place, target: Place) -> int:
        """Rename; 0, or minus the errno."""
        try:
            with self._parent(source) as (one, old), self._parent(target) as (other, new):
                os.rename(old, new, src_dir_fd=one, dst_dir_fd=other)
        except OSError as error:
            self.log.error(
                "couldn't rename {source} to {target}: {reason}",
                source=str(source),
                target=str(target),
                reason=error.strerror,
            )
            return -(error.errno or 1)
        return 0

    def link(self, source: Place, target: Place) -> int:
        """Make a hard link; 0, or minus the errno."""
        try:
            with self._parent(source) as (one, old), self._parent(target) as (other, new):
                os.link(old, new, src_dir_fd=one, dst_dir_fd=other, follow_symlinks=False)
        except OSError as error:
            self.log.error("link to {target} failed: {reason}", target=str(target), reason=error.strerror)
            return -(error.errno or 1)
        return 0

    def symlink(self, text: str, place: Place) -> int:
        """Make a symlink that says ``text``; 0, or minus the errno."""
        try:
            with self._parent(place) as (parent, name):
                os.symlink(text, name, dir_fd=parent)
        except (OSError, ValueError) as error:
            self.log.error("couldn't symlink {place}: {reason}", place=str(place), reason=_why(error))
            return -(error.errno or 1) if isinstance(error, OSError) else -1
        return 0

    def copy(self, source: Place, target: Place) -> int:
        """Copy a directory with modes, owners and times into a new or existing one, symlinks as such; 0 or -1."""
        try:
            with self.directory(source) as one:
                with self._parent(target) as (parent, name):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=parent)
                with self.directory(target) as other:
                    self._copy_level(one, other, 0)
        except (OSError, OutsideRoot) as error:
            self.log.error(
                "failed copying {source} to {target}: {reason}",
                source=str(source),
                target=str(target),
                reason=_why(error),
            )
            return -1
        return 0

    def _copy_level(self, source: int, target: int, depth: int) -> None:
        if depth > MAX_SIZE_DEPTH:
            raise OSError(errno.ELOOP, "directories are nested too deep")
        with os.scandir(source) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=target)
                one = os.open(name, _DIRECTORY, dir_fd=source)
                try:
                    other = os.open(name, _DIRECTORY, dir_fd=target)
                    try:
                        self._copy_level(one, other, depth + 1)
                    finally:
                        os.close(other)
                finally:
                    os.close(one)
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=target)
            if stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                if self.keep_owners:
                    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
            elif stat.S_ISREG(found.st_mode):
                self._copy_file(source, target, name)
            else:
                self.log.warn("{name!r} is neither file, directory nor symlink: not copied", name=name)
        self._copy_attributes(source, target)

    def _copy_file(self, source: int, target: int, name: str) -> None:
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        one = os.open(name, os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=source)
        try:
            other = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target)
            try:
                while os.sendfile(other, one, None, 1 << 24):
                    pass
                self._copy_attributes(one, other)
            finally:
                os.close(other)
        finally:
            os.close(one)

    def _copy_attributes(self, source: int, target: int) -> None:
        found = os.fstat(source)
        if self.keep_owners:
            os.fchown(target, found.st_uid, found.st_gid)
        os.fchmod(target, stat.S_IMODE(found.st_mode))
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))

    def free_bytes(self, place: Place) -> int:
        """Bytes that are free for all on the place's file system, -1 when that cannot be told."""
        try:
            with self.directory(place) as descriptor:
                found = os.fstatvfs(descriptor)
        except OSError:
            return -1
        return found.f_bavail * found.f_bsize
