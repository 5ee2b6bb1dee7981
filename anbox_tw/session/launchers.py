"""Launchers: desktop entries and icons by which a desktop's menu shows the guest's applications.

Text and names are made here without I/O; `LauncherDirectory` writes and removes the files, and blocks: call it in a
thread. The format is the freedesktop.org Desktop Entry Specification; place and names of the files are the original's
(``src/anbox/application/launcher_storage.cpp``), which ``docs/desktop.md`` describes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.logger import Logger

from anbox_tw.network.paths import DEFAULT_INSTANCE
from anbox_tw.session._files import write_atomically
from anbox_tw.session.bridge import Application

if TYPE_CHECKING:
    from anbox_tw.session.service import SessionSettings

__all__ = [
    "LauncherDirectory",
    "anbox_program",
    "applications_directory",
    "desktop_entry",
    "file_stem",
    "is_png",
    "launchers_of",
    "quote_argument",
]

MAX_STEM_CHARS = 200
"""A file name has 255 bytes at most; a longer one ends in a hash."""

MAX_ICON_PIXELS = 4096
"""Of a side. An icon that says more is not one; a desktop would set aside the memory for it."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_ENTRY_BYTES = 64 * 1024
"""Of a file that is looked into before it is removed; ours have some kB."""

_SAFE = re.compile(r"[A-Za-z0-9_]")
# Reserved inside double quotes, "The Exec key" of the specification.
_QUOTED = re.compile(r'(["`$\\])')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def applications_directory(environ: Mapping[str, str]) -> str:
    """Where launchers belong: ``<XDG data home>/applications/anbox``, or one above with ANBOX_NO_DESKTOP_SUBDIR."""
    home = environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(home):  # the specification wants relative ones ignored
        home = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local/share")
    below = "applications" if environ.get("ANBOX_NO_DESKTOP_SUBDIR") else "applications/anbox"
    return os.path.join(home, below)


def anbox_program() -> list[str]:
    """The words that run our own ``anbox`` from anywhere."""
    beside = Path(sys.executable).parent / "anbox"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("anbox")
    return [found] if found else [sys.executable, "-m", "anbox_tw.cli"]


def file_prefix(instance: str) -> str:
    """What the names of an instance's files begin with; no two instances share one."""
    return "anbox-" if instance == DEFAULT_INSTANCE else f"anbox@{instance}+"


def file_stem(package: str, instance: str = DEFAULT_INSTANCE) -> str:
    """The name of a package's files without the suffix; no two packages share one.

    As in the original a dot becomes a dash. What Android's own packages never have, a dash above all, is written as
    ``+`` and its bytes in hexadecimal, so that ``a.b`` and ``a-b`` are two.
    """
    encoded = "".join(
        char
        if _SAFE.fullmatch(char)
        else "-"
        if char == "."
        else "".join(f"+{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
        for char in package
    )
    if len(encoded) > MAX_STEM_CHARS:
        digest = hashlib.sha256(package.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        # Longer than any that is not cut, so the two kinds cannot meet.
        encoded = f"{encoded[: MAX_STEM_CHARS - 32]}+{digest}"
    return file_prefix(instance) + encoded


def is_png(data: bytes) -> bool:
    """Whether this begins and ends as a PNG of sane size (PNG specification, 5.2, 11.2.2)."""
    if len(data) < 45 or not data.startswith(PNG_SIGNATURE) or not data.endswith(b"IEND\xaeB`\x82"):
        return False
    length, kind, width, height = struct.unpack(">I4sII", data[8:24])
    if (length, kind) != (13, b"IHDR") or not (
        0 < width <= MAX_ICON_PIXELS and 0 < height <= MAX_ICON_PIXELS
    ):
        return False
    return int.from_bytes(data[29:33], "big") == zlib.crc32(data[12:29])


def _plain(text: str) -> str:
    """Text on one line, without control characters."""
    return " ".join(_CONTROL.sub(" ", text).split())


def _escaped(text: str) -> str:
    """A value of type string: the specification's escapes for what a line cannot hold."""
    return text.replace("\\", "\\\\")


def quote_argument(argument: str) -> str:
    """One argument of an Exec key, quoted and escaped twice: as an argument, then as a string.

    Control characters, which no intent needs, are left out.
    """
    text = _CONTROL.sub("", argument).replace("%", "%%")
    if not re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text):
        text = '"' + _QUOTED.sub(r"\\\1", text) + '"'
    return _escaped(text)


def desktop_entry(application: Application, program: Sequence[str], icon: str, instance: str) -> str:
    """The text of a launcher.

    Args:
        application: what it launches.
        program: the ``anbox`` command and its first arguments, up to ``launch``'s own.
        icon: path of its icon, or empty.
        instance: whose application it is.
    """
    words = [*program]
    for option in ("action", "type", "uri"):
        if application.intent.get(option):
            words.append(f"--{option}={application.intent[option]}")
    words.append(f"--package={application.package}")
    if application.component:
        words.append(f"--component={application.component}")
    lines = [
        "[Desktop Entry]",
        "Version=1.0",
        "Type=Application",
        f"Name={_escaped(_plain(application.name) or _plain(application.package))}",
        f"Exec={' '.join(quote_argument(word) for word in words)}",
        "Terminal=false",
        "Categories=Utility;X-Anbox;",
        f"StartupWMClass={_escaped(_plain(application.package))}",
        f"X-Anbox-Instance={instance}",
        f"X-Anbox-Package={_escaped(_plain(application.package))}",
    ]
    if icon:
        lines.append(f"Icon={_escaped(icon)}")
    return "\n".join(lines) + "\n"


def launchers_of(settings: SessionSettings) -> LauncherDirectory | None:
    """The launcher directory that a session's settings name, or None."""
    if not settings.launchers:
        return None
    paths = settings.paths
    program = [*anbox_program(), "launch", "--start", f"--instance={paths.instance}"]
    if paths.runtime_dir != f"/run/user/{os.geteuid()}":
        # A desktop may run the launcher with another idea of where sockets live.
        program.append(f"--runtime-dir={paths.runtime_dir}")
    return LauncherDirectory(settings.launchers, paths.instance, program)


class LauncherDirectory:
    """The launchers of one instance on the disk.

    Args:
        directory: where they are; made when it is missing.
        instance: whose they are; others' files in the directory are left alone.
        program: the ``anbox`` command and its first arguments, up to ``launch``'s own.
    """

    _log = Logger()

    def __init__(self, directory: str, instance: str, program: Sequence[str]) -> None:
        self.directory = directory
        self._instance = instance
        self._program = list(program)

    def path(self, package: str, suffix: str = ".desktop") -> str:
        """Of a package's file."""
        return os.path.join(self.directory, file_stem(package, self._instance) + suffix)

    def store(self, application: Application) -> None:
        """Write the launcher of an application, and its icon where it has one.

        An application that comes without an icon keeps the one that is there.

        Raises:
            OSError: it cannot be written.
        """
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        icon = self.path(application.package, ".png")
        if is_png(application.icon):
            if _content(icon, len(application.icon)) != application.icon:
                write_atomically(icon, application.icon, 0o644)
        elif application.icon:
            self._log.warn("The icon of {package} is no PNG", package=application.package)
        text = desktop_entry(
            application, self._program, icon if os.path.isfile(icon) else "", self._instance
        ).encode()
        entry = self.path(application.package)
        # Desktops look at the directory again whenever one of its files changes.
        if _content(entry, len(text)) != text:
            write_atomically(entry, text, 0o644)

    def remove(self, package: str) -> None:
        """Remove a package's launcher and icon; what is not there is no error.

        Raises:
            OSError: a file cannot be removed.
        """
        for suffix in (".desktop", ".png"):
            Path(self.path(package, suffix)).unlink(missing_ok=True)

    def sweep(self, keep: Sequence[str] | set[str]) -> list[str]:
        """Remove the instance's launchers, and the original's, of packages that are not in ``keep``.

        A file that begins like ours and is somebody else's stays: an entry is ours by its own keys.

        Returns:
            The names of the removed entries.

        Raises:
            OSError: a file cannot be removed.
        """
        kept = {file_stem(package, self._instance) for package in keep}
        prefix = file_prefix(self._instance)
        removed = []
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return []
        for name in names:
            stem, suffix = os.path.splitext(name)
            if not name.startswith(prefix) or suffix != ".desktop" or stem in kept:
                continue
            if self._is_ours(os.path.join(self.directory, name)):
                os.unlink(os.path.join(self.directory, name))
                Path(self.directory, stem + ".png").unlink(missing_ok=True)
                removed.append(name)
        return removed

    def _is_ours(self, path: str) -> bool:
        lines = (_content(path, MAX_ENTRY_BYTES) or b"").splitlines()
        original = self._instance == DEFAULT_INSTANCE and b"Categories=Anbox;" in lines
        return original or f"X-Anbox-Instance={self._instance}".encode() in lines


def _content(path: str, limit: int) -> bytes | None:
    """A regular file's first ``limit`` + 1 bytes, or None when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            return file.read(limit + 1)
    except OSError:
        return None
