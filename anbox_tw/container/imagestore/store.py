"""The directories of the store.

``<store>/<name>/versions/<version>/`` holds a ``meta.json`` and either ``image`` (a file that can be mounted) or ``rootfs``
(a directory). ``<store>/<name>/current`` is a symbolic link to the version in use, replaced by a rename: whoever looks sees the
old or the new one. A version is complete before it has its name, and is never changed. Nothing here runs long, so it blocks.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from anbox_tw.errors import AlreadyRunning, ConfigError, PermissionRefused

__all__ = ["ImageStore", "Version", "default_store", "resolve_image"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"([0-9]{4,9})-[0-9a-f]{12}")
META_BYTES = 64 * 1024
DEFAULT_KEEP = 3
"""Versions of an image that are kept unless told otherwise: the one in use, and two to go back to."""


def default_store(environ: Mapping[str, str] | None = None) -> str:
    """Where the store is: ``$ANBOX_IMAGES``, ``/var/lib/anbox/images`` for root, else below ``$XDG_DATA_HOME``."""
    environ = os.environ if environ is None else environ
    if environ.get("ANBOX_IMAGES"):
        return os.path.abspath(environ["ANBOX_IMAGES"])
    if os.geteuid() == 0:
        return "/var/lib/anbox/images"
    home = environ.get("XDG_DATA_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".local/share"
    )
    return f"{home}/anbox/images"


def check_name(name: str) -> str:
    """Return ``name`` if it can be an image's.

    Raises:
        ConfigError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} cannot be the name of an image",
            "use 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first; give one with --name",
        )
    return name


@attrs.frozen
class Version:
    """One version of an image.

    Attributes:
        image: its name.
        version: a number, counting up, and the begin of its checksum.
        path: the file or directory that a container is started with.
        kind: ``squashfs``, ``ext4``, ``erofs`` or ``directory``.
        size: bytes.
        sha256: of the file that was fetched or imported; empty for a directory.
        source: where it came from.
        current: whether it is the one in use.
    """

    image: str
    version: str
    path: str
    kind: str
    size: int
    sha256: str
    source: str
    current: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return attrs.asdict(self)


class ImageStore:
    """A store.

    Args:
        root: its directory; made when something is stored.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    # -- looking --

    def names(self) -> list[str]:
        """The images that have a version."""
        try:
            found = sorted(entry.name for entry in self.root.iterdir() if NAME.fullmatch(entry.name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name for name in found if self.versions(name)]

    def versions(self, name: str) -> list[Version]:
        """The versions of an image, oldest first; empty when there is no such image."""
        directory = self.root / check_name(name) / "versions"
        try:
            current = os.path.basename(os.readlink(self.root / name / "current"))
        except OSError:
            current = ""
        try:
            entries = sorted(
                (entry.name for entry in directory.iterdir() if VERSION.fullmatch(entry.name)), key=_number
            )
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [
            version for entry in entries if (version := self._read(name, entry, entry == current)) is not None
        ]

    def current(self, name: str) -> Version:
        """The version in use.

        Raises:
            ConfigError: there is no such image.
        """
        for version in self.versions(name):
            if version.current:
                return version
        known = ", ".join(self.names())
        raise ConfigError(
            f"there is no image {name!r} in {self.root}",
            f"there is {known}"
            if known
            else "get one with 'anbox image fetch URL' or 'anbox image import FILE'",
        )

    def _read(self, name: str, version: str, current: bool) -> Version | None:
        directory = self.root / name / "versions" / version
        try:
            with open(directory / "meta.json") as file:
                meta = json.loads(file.read(META_BYTES))
            kind = str(meta["kind"])
            return Version(
                image=name,
                version=version,
                path=str(directory / ("rootfs" if kind == "directory" else "image")),
                kind=kind,
                size=int(meta["size"]),
                sha256=str(meta["sha256"]),
                source=str(meta["source"]),
                current=current,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not of ours, or of a version to come

    # -- changing --

    @contextmanager
    def lock(self, name: str) -> Iterator[Path]:
        """Be the only one that changes an image.

        Yields:
            The image's directory, which is there. It goes again when it is empty at the end.

        Raises:
            AlreadyRunning: somebody else changes it.
            PermissionRefused: the store cannot be written.
        """
        directory = self.root / check_name(name)
        path = directory / "lock"
        try:
            (directory / "versions").mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise PermissionRefused(
                f"the store {self.root} cannot be written: {error.strerror}",
                "choose another one with --store",
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise AlreadyRunning(
                    f"the image {name!r} is being changed by process {holder}", "wait for it"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            self._sweep(directory)
            yield directory
        finally:
            self._tidy(directory, path)
            os.close(descriptor)

    def _sweep(self, directory: Path) -> None:
        """Take away what a killed process has left half made."""
        for entry in directory.glob("staging-*"):
            _remove(entry)
        (directory / "current.new").unlink(missing_ok=True)

    def _tidy(self, directory: Path, lock: Path) -> None:
        if not any((directory / "versions").iterdir()) and not (directory / "partial").exists():
            try:
                (directory / "versions").rmdir()
                lock.unlink()
                directory.rmdir()
            except OSError:
                pass

    def stage(self, directory: Path) -> Path:
        """A new empty directory in which a version is made; on the same file system as its place."""
        staging = directory / f"staging-{secrets.token_hex(8)}"
        staging.mkdir(mode=0o755)
        return staging

    def add(
        self, directory: Path, staging: Path, *, kind: str, size: int, sha256: str, source: str, keep: int
    ) -> Version:
        """Make what is staged the image's current version.

        Args:
            directory: of the image, locked.
            staging: has ``image`` or ``rootfs``.
            kind: see `Version`.
            size: bytes.
            sha256: see `Version`.
            source: see `Version`.
            keep: how many versions stay; the current one always does.
        """
        meta = {"kind": kind, "size": size, "sha256": sha256, "source": source, "added": time.time()}
        with open(staging / "meta.json", "w") as file:
            json.dump(meta, file)
            file.flush()
            os.fsync(file.fileno())
        number = 1 + max((_number(one.version) for one in self.versions(directory.name)), default=0)
        name = f"{number:04d}-{(sha256 or secrets.token_hex(6))[:12]}"
        place = directory / "versions" / name
        os.rename(staging, place)
        _sync(place.parent)
        self.use(directory, name)
        self.prune(directory.name, keep)
        return self.current(directory.name)

    def use(self, directory: Path, version: str) -> None:
        """Make a version the current one, in one step."""
        new = directory / "current.new"
        new.unlink(missing_ok=True)
        os.symlink(f"versions/{version}", new)
        os.rename(new, directory / "current")
        _sync(directory)

    def rollback(self, name: str, version: str = "") -> Version:
        """Go back to the version before the current one, or to a certain one.

        Raises:
            ConfigError: there is none.
            AlreadyRunning: the image is being changed.
        """
        self.current(name)
        with self.lock(name) as directory:
            versions = self.versions(name)
            if version:
                wanted = [one for one in versions if version in (one.version, one.sha256)]
                why = f"the image {name!r} has no version {version!r}"
            else:
                place = next(n for n, one in enumerate(versions) if one.current)
                wanted = versions[place - 1 : place] if place else []
                why = f"the image {name!r} has no earlier version"
            if not wanted:
                raise ConfigError(why, f"it has {', '.join(one.version for one in versions)}")
            self.use(directory, wanted[-1].version)
        return self.current(name)

    def remove(self, name: str, version: str = "") -> list[Version]:
        """Remove an image, or one version of it that is not the current one; returns what was removed.

        Raises:
            ConfigError: there is no such image or version, it is the current one, or a container uses it.
            AlreadyRunning: the image is being changed.
        """
        self.current(name)
        with self.lock(name) as directory:
            versions = self.versions(name)
            wanted = [one for one in versions if not version or one.version == version]
            if not wanted:
                raise ConfigError(
                    f"the image {name!r} has no version {version!r}",
                    f"it has {', '.join(one.version for one in versions)}",
                )
            if version and wanted[0].current:
                raise ConfigError(
                    f"{version} is the current version of {name!r}",
                    "go back to another one first, or remove the whole image",
                )
            for one in wanted:
                if in_use(one.path):
                    raise ConfigError(f"{one.version} of {name!r} is in use", "stop the container first")
            if not version:
                (directory / "current").unlink(missing_ok=True)
                _remove(directory / "partial")
            for one in wanted:
                _discard(directory, Path(one.path).parent)
        return wanted

    def prune(self, name: str, keep: int) -> None:
        """Remove the oldest versions beyond ``keep``, but not the current one nor what a container uses."""
        versions = self.versions(name)
        extra = len(versions) - max(1, keep)
        for one in versions:
            if extra <= 0:
                break
            if not one.current and not in_use(one.path):
                _discard(self.root / name, Path(one.path).parent)
                extra -= 1


def _number(version: str) -> int:
    return int(version.partition("-")[0])


def _discard(directory: Path, place: Path) -> None:
    # By a rename first: a version is there as a whole or not at all.
    gone = directory / f"staging-{secrets.token_hex(8)}"
    os.rename(place, gone)
    _remove(gone)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_use(path: str, *, proc: str = "/proc", sys: str = "/sys") -> bool:
    """Whether a version is mounted somewhere: by a loop device, or as (a layer of) a file system of some process."""
    real = os.path.realpath(path)
    for backing in Path(sys, "block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip() == real:
                return True
        except OSError:
            continue
    seen: set[str] = set()
    for entry in Path(proc).iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            space = os.readlink(entry / "ns/mnt")
            if space in seen:
                continue
            seen.add(space)
            # of mounts that are bound, and of overlays' layers, the directory stands in the line
            if any(real in line for line in (entry / "mountinfo").read_text().splitlines()):
                return True
        except OSError:
            continue
    return False


def resolve_image(text: str, store: str | None = None) -> tuple[str, str]:
    """What ``--image`` means: a path, or the name of an image in the store.

    Args:
        text: as given; without a ``/`` and not the name of a file here, it is looked up in the store. What the store
            does not have and ends as the name of a file is one, whether or not it is there.
        store: of the images; the usual one by default.

    Returns:
        ``("image", path)`` or, when the store has a directory, ``("rootfs", path)``.

    Raises:
        ConfigError: it is neither.
    """
    if "/" in text or os.path.exists(text) or not NAME.fullmatch(text):
        return "image", os.path.abspath(text)
    images = ImageStore(store or default_store())
    if text.endswith((".img", ".squashfs", ".sfs", ".ext4", ".erofs")) and text not in images.names():
        return "image", os.path.abspath(text)
    found = images.current(text)
    return ("rootfs" if found.kind == "directory" else "image"), found.path
