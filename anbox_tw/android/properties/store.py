"""The properties themselves: rules of names and values, files of defaults, and what persists.

Source: ``init/property_service.cpp`` at android-7.0.0_r1.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator

from twisted.logger import Logger

from anbox_tw.android.errors import PropertyError
from anbox_tw.android.properties._wire import MAX_VALUE, Status, is_legal_name

__all__ = ["MAX_PROPERTIES", "PropertyRefused", "PropertyStore"]

MAX_PROPERTIES = 4096
"""Most properties; Android's area of 128 KiB holds fewer."""

MAX_FILE_BYTES = 1 << 20
"""Longest file of defaults that is read."""

MAX_IMPORT_DEPTH = 8
"""Files of defaults may import others this deep."""


class PropertyRefused(PropertyError):
    """A property cannot be set.

    Attributes:
        status: the number a client of Android 8 is answered.
    """

    def __init__(self, cause: str, status: Status) -> None:
        super().__init__(cause)
        self.status = status


class PropertyStore:
    """Names and values.

    Attributes:
        changed: called with name and value after each change, in order.
    """

    log = Logger()

    def __init__(self, persistent_directory: str | None = None) -> None:
        """Begin empty.

        Args:
            persistent_directory: where ``persist.*`` are kept, one file each (``/data/property`` on Android);
                made when the first one is written. ``None`` keeps nothing.
        """
        self._values: dict[str, str] = {}
        self._directory = persistent_directory
        self._persistent_loaded = False
        self.changed: list[Callable[[str, str], None]] = []

    def get(self, name: str, default: str = "") -> str:
        """A value, or ``default`` when the property is not set."""
        return self._values.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> Iterator[tuple[str, str]]:
        """All, by name."""
        return iter(sorted(self._values.items()))

    def set(self, name: str, value: str) -> None:
        """Set one, tell the observers, and write it down when it persists.

        Raises:
            PropertyRefused: the name is illegal, the value too long, or a ``ro.`` property is set already.
        """
        if not is_legal_name(name):
            raise PropertyRefused(f"illegal property name {name!r}", Status.INVALID_NAME)
        if len(value.encode("utf-8", "surrogateescape")) > MAX_VALUE or "\0" in value:
            raise PropertyRefused(
                f"the value of {name} is longer than {MAX_VALUE} bytes", Status.INVALID_VALUE
            )
        known = name in self._values
        if known and name.startswith("ro."):
            raise PropertyRefused(f"{name} is set already and read-only", Status.READ_ONLY_PROPERTY)
        if not known and len(self._values) >= MAX_PROPERTIES:
            raise PropertyRefused(f"there are {MAX_PROPERTIES} properties already", Status.SET_FAILED)
        self._values[name] = value
        if name.startswith("net."):
            # net.change names the last net.* that changed, and changes nothing itself
            if name == "net.change":
                return
            self.set("net.change", name)
        elif name.startswith("persist.") and self._persistent_loaded:
            self._write(name, value)
        for callback in list(self.changed):
            callback(name, value)

    def try_set(self, name: str, value: str) -> bool:
        """As ``set``, but a refusal is logged and gives ``False``."""
        try:
            self.set(name, value)
        except PropertyRefused as error:
            self.log.warn("property {name}: {cause}", name=name, cause=error.cause)
            return False
        return True

    def _write(self, name: str, value: str) -> None:
        if self._directory is None:
            return
        temporary = None
        try:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".temp.", dir=self._directory)
            with open(descriptor, "wb") as file:
                file.write(value.encode("utf-8", "surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, os.path.join(self._directory, name))
        except OSError as error:
            self.log.error("{name} is set but not written down: {reason}", name=name, reason=error)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def load_persistent(self) -> int:
        """Read what persists; from now on ``persist.*`` are written. Called once defaults are in place.

        A file is left out unless it is a regular file of ours with no other link and no rights for others.

        Returns:
            How many were set.
        """
        self._persistent_loaded = True
        if self._directory is None:
            return 0
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return 0
        except OSError as error:
            self.log.error("cannot read persistent properties: {reason}", reason=error)
            return 0
        count = 0
        self._persistent_loaded = False  # what is read need not be written again
        try:
            for name in names:
                if name.startswith(".temp."):
                    # left by a crash in the middle of a write
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(self._directory, name))
                elif name.startswith("persist."):
                    value = self._read(name)
                    if value is not None and self.try_set(name, value):
                        count += 1
        finally:
            self._persistent_loaded = True
        return count

    def _read(self, name: str) -> str | None:
        assert self._directory is not None
        path = os.path.join(self._directory, name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self.log.warn("persistent property {path}: {reason}", path=path, reason=error.strerror)
            return None
        try:
            status = os.fstat(descriptor)
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_mode & 0o077
                or status.st_uid != os.geteuid()
                or status.st_nlink != 1
            ):
                self.log.warn("skipping insecure property file {path}", path=path)
                return None
            return os.read(descriptor, MAX_VALUE).decode("utf-8", "surrogateescape")
        finally:
            os.close(descriptor)

    def load_file(self, path: str, pattern: str = "", *, root: str = "", depth: int = 0) -> int:
        """Read a file of defaults: ``name=value`` lines, ``#`` comments, ``import file [pattern]``.

        Args:
            path: the file; nothing happens when it is not there.
            pattern: only this name, or with ``*`` at its end only names that begin so.
            root: what stands for ``/`` in imports.
            depth: how many imports lead here.

        Returns:
            How many were set; a line that is refused is logged.
        """
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_FILE_BYTES).decode("utf-8", "surrogateescape")
        except OSError as error:
            self.log.debug("no properties from {path}: {reason}", path=path, reason=error.strerror)
            return 0
        count = 0
        for line in text.split("\n"):
            line = line.strip(" \t\n\v\f\r")
            if not line or line.startswith("#"):
                continue
            if line.startswith("import ") and not pattern:
                target, _, inner = line[7:].strip().partition(" ")
                if depth < MAX_IMPORT_DEPTH:
                    count += self.load_file(root + target, inner.strip(), root=root, depth=depth + 1)
                continue
            name, equals, value = line.partition("=")
            name, value = name.rstrip(), value.lstrip()
            if not equals:
                continue
            if pattern and not (name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern):
                continue
            count += self.try_set(name, value)
        return count
