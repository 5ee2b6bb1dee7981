"""From a file or directory to a version in the store."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from anbox_tw.container.commands import Commands, Completed
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.images import inspect_image
from anbox_tw.container.imagestore.fetch import Fetcher, FetchFailed, FetchOptions, Progress, file_sha256
from anbox_tw.container.imagestore.store import DEFAULT_KEEP, ImageStore, Version
from anbox_tw.errors import ConfigError, HostLacks

__all__ = ["Installer", "name_of_source"]

COPY_TIMEOUT_S = 3600.0
"""Of cp and tar: gigabytes on a slow disk."""

_OPENERS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"\xfd7zXZ\x00", lzma.open),
    (b"BZh", bz2.open),
)
_ZSTD = b"\x28\xb5\x2f\xfd"
_TAR_OFFSET, _TAR = 0x101, b"ustar"

_ROOT_ENTRIES = ("init", "system", "bin", "sbin", "usr")
"""A directory with none of these is no root file system."""

_ENDINGS = (
    *(".squashfs", ".sfs", ".img", ".ext4", ".erofs", ".raw", ".bin"),
    *(".tar", ".tgz", ".gz", ".xz", ".zst", ".bz2"),
)


def name_of_source(source: str) -> str:
    """The name of an image after its URL or path: the last part without its endings; may be unusable."""
    name = source.partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2]
    while True:
        stem, ending = os.path.splitext(name)
        if ending.lower() not in _ENDINGS or not stem:
            return name
        name = stem


class Installer:
    """Brings images into a store.

    Args:
        reactor: runs what takes time.
        store: where they go.
        fetcher: fetches; a new one by default.
    """

    def __init__(self, reactor: Any, store: ImageStore, fetcher: Fetcher | None = None) -> None:
        self._reactor = reactor
        self._store = store
        self._fetcher = fetcher or Fetcher(reactor)
        self._commands = Commands(reactor)

    async def fetch(
        self,
        name: str,
        urls: Sequence[str],
        options: FetchOptions,
        *,
        keep: int = DEFAULT_KEEP,
        progress: Progress = lambda done, whole: None,
    ) -> tuple[Version, bool]:
        """Fetch an image and make it the current version.

        Args:
            name: of the image.
            urls: of the same file.
            options: how to fetch.
            keep: how many versions stay.
            progress: told of what has arrived.

        Returns:
            The version, and whether it is new to the store.

        Raises:
            FetchFailed: it cannot be had, or is not what was promised. The store is as it was.
            DiagnosedError: it is no image. The store is as it was.
            AlreadyRunning: the image is being changed by somebody else.
        """
        with self._store.lock(name) as directory:
            known = self._known(name, options.sha256)
            if known is not None:
                return self._again(directory, known), False
            file, sha256, url = await self._fetcher.fetch(urls, directory / "partial", options, progress)
            known = self._known(name, sha256)
            try:
                if known is not None:
                    return self._again(directory, known), False
                return await self._add(directory, file, sha256, url, keep), True
            finally:
                shutil.rmtree(directory / "partial", ignore_errors=True)

    async def import_path(
        self, name: str, path: str, *, sha256: str = "", keep: int = DEFAULT_KEEP
    ) -> tuple[Version, bool]:
        """Copy a file or directory of the host into the store; it becomes the current version.

        Args:
            name: of the image.
            path: an image, a tar archive, or a directory.
            sha256: what the file must have; empty checks nothing.
            keep: how many versions stay.

        Returns:
            The version, and whether it is new to the store.

        Raises:
            ConfigError: there is no such file, or it has another checksum.
            DiagnosedError: it is no image.
            AlreadyRunning: the image is being changed by somebody else.
        """
        path = os.path.abspath(path)
        if not (os.path.isfile(path) or os.path.isdir(path)):
            raise ConfigError(
                f"{path} is neither a file nor a directory", "name an image, an archive or a root"
            )
        with self._store.lock(name) as directory:
            staging = self._store.stage(directory)
            try:
                if os.path.isdir(path):
                    if sha256:
                        raise ConfigError("a directory has no checksum", "leave --sha256 out")
                    _check_root(Path(path))
                    await self._run("cp", "-a", "--reflink=auto", "--", path, str(staging / "rootfs"))
                    return await self._add_directory(directory, staging, "", path, keep), True
                await self._run("cp", "--reflink=auto", "--", path, str(staging / "file"))
                found = await self._in_thread(file_sha256, staging / "file")
                if sha256 and found != sha256.lower():
                    raise ConfigError(
                        f"{path} has SHA-256 {found}, and {sha256} was expected", "get it again"
                    )
                known = self._known(name, found)
                if known is not None:
                    return self._again(directory, known), False
                return await self._add(directory, staging / "file", found, path, keep), True
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _known(self, name: str, sha256: str) -> Version | None:
        return next((one for one in self._store.versions(name) if sha256 and one.sha256 == sha256), None)

    def _again(self, directory: Path, version: Version) -> Version:
        self._store.use(directory, version.version)
        return self._store.current(version.image)

    async def _add(self, directory: Path, file: Path, sha256: str, source: str, keep: int) -> Version:
        """Make a version of a file, which is moved away."""
        staging = self._store.stage(directory)
        try:
            try:
                kind = inspect_image(str(file)).kind
            except DiagnosedError:
                if not await self._in_thread(_is_archive, file):
                    raise
                (staging / "rootfs").mkdir(mode=0o755)
                await self._run(
                    *("tar", "--extract", "--numeric-owner", "--preserve-permissions", "--file", str(file)),
                    *("--directory", str(staging / "rootfs")),
                )
                _check_root(staging / "rootfs")
                return await self._add_directory(directory, staging, sha256, source, keep)
            os.chmod(file, 0o644)
            size = os.path.getsize(file)
            os.rename(file, staging / "image")
            return self._store.add(
                directory, staging, kind=kind, size=size, sha256=sha256, source=source, keep=keep
            )
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    async def _add_directory(
        self, directory: Path, staging: Path, sha256: str, source: str, keep: int
    ) -> Version:
        size = await self._in_thread(_size_of, staging / "rootfs")
        await self._in_thread(os.sync)
        return self._store.add(
            directory, staging, kind="directory", size=size, sha256=sha256, source=source, keep=keep
        )

    async def _run(self, *argv: str) -> None:
        done: Completed = await self._commands.run(list(argv), timeout=COPY_TIMEOUT_S)
        if not done.ok:
            if "No space left" in done.error_text:
                raise HostLacks(f"the disk of {self._store.root} is full", "make room, or use --store")
            raise FetchFailed(f"{argv[0]} failed: {done.error_text}", "look at the file or directory")

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)


def _is_archive(file: Path) -> bool:
    """Whether it is a tar archive, or may be one inside of a compressed file."""
    with open(file, "rb") as opened:
        head = opened.read(512)
    for magic, opener in _OPENERS:
        if head.startswith(magic):
            try:
                with opener(file) as unpacked:
                    head = unpacked.read(512)
            except (OSError, EOFError, lzma.LZMAError):
                return False
    # Of zstd, tar itself says whether it is an archive.
    return head.startswith(_ZSTD) or head[_TAR_OFFSET : _TAR_OFFSET + len(_TAR)] == _TAR


def _check_root(path: Path) -> None:
    if not any(os.path.lexists(path / entry) for entry in _ROOT_ENTRIES):
        raise ConfigError(
            f"{path.name} is no root file system: it has none of {', '.join(_ROOT_ENTRIES)}",
            "name the directory that is to be the container's /",
        )


def _size_of(path: Path) -> int:
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            status = os.lstat(os.path.join(directory, name))
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
