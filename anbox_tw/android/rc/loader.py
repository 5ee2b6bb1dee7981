"""Reads rc files from disk and follows their imports, as ``Parser::ParseConfig`` in init does."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from anbox_tw.android.errors import RcError
from anbox_tw.android.rc.expand import expand
from anbox_tw.android.rc.model import Import, Location, Problem, RcConfig
from anbox_tw.android.rc.parser import RcParser

__all__ = ["MAX_FILES", "MAX_FILE_BYTES", "RcLoader", "read_rc"]

MAX_FILE_BYTES = 1 << 20
"""Longest file that is read; the longest of 7.0 has 24 KiB."""

MAX_FILES = 1000
"""Most files one loader reads, so that imports cannot go on for ever."""


def read_rc(path: str, *, strict_modes: bool = False) -> str:
    """Read one file; bytes that are not UTF-8 survive as surrogates.

    Args:
        path: the file; a symlink as last part is refused, as init refuses it.
        strict_modes: also refuse what the group or others may write.

    Raises:
        RcError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RcError(f"cannot read '{path}': {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RcError(f"cannot read '{path}': not a regular file")
        if strict_modes and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RcError(f"skipping insecure file '{path}'", "chmod go-w it")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise RcError(f"cannot read '{path}': longer than {MAX_FILE_BYTES} bytes")
    return data.decode("utf-8", "surrogateescape")


class RcLoader:
    """Reads files and directories into one configuration.

    Attributes:
        config: what was read so far.
        files: the files read so far, in order.
    """

    def __init__(
        self,
        *,
        get: Callable[[str], str] | None = None,
        root: str = "",
        follow_imports: bool = True,
        strict_modes: bool = False,
    ) -> None:
        """Prepare to read.

        Args:
            get: gives the value of a property, for imports; without it none is set.
            root: directory that stands for ``/`` in imports.
            follow_imports: read imported files too.
            strict_modes: leave out files that the group or others may write.
        """
        self._parser = RcParser()
        self.config: RcConfig = self._parser.config
        self.files: list[str] = []
        self._get = get or (lambda name: "")
        self._root = root.rstrip("/")
        self._follow = follow_imports
        self._strict = strict_modes
        self._open: list[str] = []

    def load(self, path: str) -> RcConfig:
        """Read a file, or each regular file of a directory (by name, not recursive), and what they import.

        Raises:
            RcError: ``path`` itself cannot be read; an import that cannot is a problem of the importing line.
        """
        if os.path.isdir(path):
            for name in sorted(os.listdir(path)):
                inner = os.path.join(path, name)
                if os.path.isfile(inner) and not os.path.islink(inner):
                    self._file(inner)
        else:
            self._file(path)
        return self.config

    def feed(self, text: str, name: str) -> RcConfig:
        """Read text that is not on disk, and what it imports."""
        before = len(self.config.imports)
        self._parser.feed(text, name)
        self._imports(before)
        return self.config

    def _file(self, path: str) -> None:
        real = os.path.realpath(path)
        if real in self._open:
            raise RcError(f"'{path}' imports itself")
        if len(self.files) >= MAX_FILES:
            raise RcError(f"more than {MAX_FILES} files")
        text = read_rc(path, strict_modes=self._strict)
        self.files.append(path)
        before = len(self.config.imports)
        self._parser.feed(text, path)
        self._open.append(real)
        try:
            self._imports(before)
        finally:
            self._open.pop()

    def _imports(self, before: int) -> None:
        if self._follow:
            for entry in self.config.imports[before:]:
                self._import(entry)

    def _import(self, entry: Import) -> None:
        try:
            path = expand(entry.path, self._get)
        except RcError as error:
            self._problem(entry.location, f"error while expanding import: {error.cause}")
            return
        try:
            self.load(self._root + path if path.startswith("/") else path)
        except RcError as error:
            self._problem(entry.location, f"could not import file '{path}': {error.cause}")

    def _problem(self, location: Location, message: str) -> None:
        self.config.problems.append(Problem(location, message))
