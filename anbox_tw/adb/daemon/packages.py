"""``cmd package``, ``pm`` and ``abb_exec:package``: installing packages, the default way.

``PackageStore`` keeps APKs in a directory and answers as Android's package manager does. A real system
gives ``DaemonConfig.packages`` something of its own with the same ``command`` method.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO

from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from anbox_tw.adb.daemon.commands import Command

__all__ = ["PackageStore", "package_name"]

MAX_SESSIONS = 64
"""Install sessions that are open at a time."""
MAX_APK = 4 << 30
"""Largest APK, in bytes; Google Play's limit with all its splits is below."""
MAX_MANIFEST = 8 << 20
"""Largest AndroidManifest.xml that is looked into."""
_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$")
_VALUED = frozenset(
    {"-S", "-i", "-p", "--user", "--install-location", "--originating-uri", "--referrer", "--abi", "--pkg"}
)
_VALUED |= {
    "--dexopt-compiler-filter",
    "--install-reason",
    "--update-ownership-for",
    "--staged-ready-timeout",
}


class PackageError(Exception):
    """What Android calls a failure, such as ``INSTALL_PARSE_FAILED_NOT_APK``."""


class PackageStore:
    """Packages as files below a directory: ``NAME/base.apk`` and its splits.

    Args:
        reactor: the reactor.
        directory: made when the first package comes.
    """

    def __init__(self, reactor: Any, directory: str) -> None:
        self.reactor = reactor
        self.directory = directory
        self.sessions: dict[int, list[str]] = {}
        self._next_session = 1

    def command(self, arguments: Sequence[str]) -> Command:
        """``package ARGUMENTS``."""
        verb = arguments[0] if arguments else ""
        if verb in ("install", "install-incremental", "install-write"):
            return _Install(self, arguments)
        return _Simple(self, arguments)

    def names(self) -> list[str]:
        """Names of the installed packages."""
        try:
            return sorted(name for name in os.listdir(self.directory) if _NAME.match(name))
        except OSError:
            return []

    def create_session(self) -> int:
        """Open an install session."""
        if len(self.sessions) >= MAX_SESSIONS:
            raise PackageError("INSTALL_FAILED_INTERNAL_ERROR: too many active sessions")
        number = self._next_session
        self._next_session += 1
        self.sessions[number] = []
        return number

    def abandon(self, number: int) -> None:
        """Close a session and forget its files."""
        for path in self.sessions.pop(number, []):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def temporary(self) -> BinaryIO:
        """A file to receive an APK in. Blocks."""
        os.makedirs(self.directory, mode=0o771, exist_ok=True)
        return open(tempfile.mkstemp(prefix=".vmdl", suffix=".apk", dir=self.directory)[1], "wb")

    def commit(self, paths: Sequence[str]) -> str:
        """Make one package of received APKs; its name. Blocks.

        Raises:
            PackageError: they are no APKs, or of different packages.
        """
        names = {package_name(path) for path in paths}
        if len(names) != 1:
            raise PackageError("INSTALL_FAILED_INVALID_APK: inconsistent package names")
        (name,) = names
        folder = os.path.join(self.directory, name)
        os.makedirs(folder, mode=0o755, exist_ok=True)
        for old in os.listdir(folder):
            os.unlink(os.path.join(folder, old))
        for index, path in enumerate(paths):
            os.rename(path, os.path.join(folder, "base.apk" if index == 0 else f"split_{index}.apk"))
        return name

    def uninstall(self, name: str) -> bool:
        """Remove a package; whether it was there. Blocks."""
        folder = os.path.join(self.directory, name)
        if not _NAME.match(name) or not os.path.isdir(folder):
            return False
        for entry in os.listdir(folder):
            os.unlink(os.path.join(folder, entry))
        os.rmdir(folder)
        return True

    def paths(self, name: str) -> list[str]:
        """The APKs of a package."""
        folder = os.path.join(self.directory, name)
        return (
            sorted(os.path.join(folder, entry) for entry in os.listdir(folder))
            if name in self.names()
            else []
        )


class _Simple(Command):
    """Everything that reads no APK from stdin."""

    def __init__(self, store: PackageStore, arguments: Sequence[str]) -> None:
        super().__init__(arguments)
        self._store = store

    def on_start(self) -> None:
        try:
            text, status = self._run()
        except PackageError as error:
            text, status = f"Failure [{error}]\n", 1
        except (OSError, ValueError) as error:
            text, status = f"Failure [INSTALL_FAILED_INTERNAL_ERROR: {error}]\n", 1
        self.out(text.encode())
        self.exit(status)

    def _run(self) -> tuple[str, int]:
        store = self._store
        words = _positional(self.arguments)
        match words:
            case ["install-create", *_]:
                return f"Success: created install session [{store.create_session()}]\n", 0
            case ["install-commit", number, *_]:
                paths = store.sessions.get(int(number), [])
                if not paths:
                    raise PackageError("INSTALL_FAILED_INVALID_APK: session has no packages")
                store.commit(paths)
                store.sessions.pop(int(number))
                return "Success\n", 0
            case ["install-abandon", number, *_]:
                store.abandon(int(number))
                return "Success\n", 0
            case ["uninstall", name, *_]:
                if store.uninstall(name):
                    return "Success\n", 0
                return "Failure [DELETE_FAILED_INTERNAL_ERROR]\n", 1
            case ["clear", name, *_]:
                # There is no data of an app here that could be cleared.
                return ("Success\n", 0) if name in store.names() else ("Failed\n", 1)
            case ["list", "packages", *_]:
                return "".join(f"package:{name}\n" for name in store.names()), 0
            case ["path", name, *_]:
                paths = store.paths(name)
                return "".join(f"package:{path}\n" for path in paths), 0 if paths else 1
            case [word, *_]:
                return f"Unknown command: {word}\n", 255
        return "Package manager (package) commands: install, uninstall, list packages, path\n", 0


class _Install(Command):
    """``install -S SIZE``, ``install-write -S SIZE SESSION NAME -`` from stdin, or ``install PATH``."""

    def __init__(self, store: PackageStore, arguments: Sequence[str]) -> None:
        super().__init__(arguments)
        self._store = store
        self._file: BinaryIO | None = None
        self._left = 0
        self._size = 0
        self._ended = False
        self._keep = False

    def on_start(self) -> None:
        arguments = self.arguments
        words = _positional(arguments)
        try:
            if arguments[0] == "install-incremental":
                # adb falls back to a streamed install when this is refused.
                raise PackageError("INSTALL_FAILED_INTERNAL_ERROR: incremental installation is not supported")
            if "-S" in arguments:
                self._size = self._left = int(arguments[arguments.index("-S") + 1])
                if not 0 < self._size <= MAX_APK:
                    raise PackageError("INSTALL_FAILED_INSUFFICIENT_STORAGE")
            elif len(words) > 1 and words[1] != "-":
                self._work(self._copy, words[1])
                return
            else:
                raise PackageError(
                    "INSTALL_FAILED_INVALID_APK: must either specify a package size or an APK file"
                )
            if words[0] == "install-write" and int(words[1]) not in self._store.sessions:
                raise PackageError(f"INSTALL_FAILED_INTERNAL_ERROR: unknown session {words[1]}")
            self._file = self._store.temporary()
        except PackageError as error:
            self._failed(str(error))
        except (OSError, ValueError, IndexError) as error:
            self._failed(f"INSTALL_FAILED_INTERNAL_ERROR: {error}")

    def on_input(self, data: bytes) -> None:
        if self._file is None or self._ended:
            return
        data = data[: self._left]
        self._left -= len(data)
        self.pause_input()
        self._work(self._write, data)

    def on_input_end(self) -> None:
        if self._file is not None and self._left and not self._ended:
            self._failed("INSTALL_FAILED_INVALID_APK: the stream ended early")

    def on_close(self) -> None:
        self._ended = True
        self._forget()

    def _write(self, data: bytes) -> str | None:
        assert self._file is not None
        self._file.write(data)
        if self._left:
            return None
        self._file.close()
        path = self._file.name
        if self.arguments[0] == "install-write":
            package_name(path)
            self._store.sessions[int(_positional(self.arguments)[1])].append(path)
            self._keep = True
            return f"Success: streamed {self._size} bytes\n"
        self._store.commit([path])
        self._keep = True
        return "Success\n"

    def _copy(self, source: str) -> str:
        with open(source, "rb") as file, self._store.temporary() as target:
            self._file = target
            while data := file.read(1 << 20):
                target.write(data)
        self._store.commit([target.name])
        self._keep = True
        return "Success\n"

    def _work(self, function: Any, argument: Any) -> None:
        """Run blocking code in a thread."""
        reactor = self._store.reactor

        def done(text: str | None) -> None:
            if text is None:
                self.resume_input()
            elif not self._ended:
                self._ended = True
                self.out(text.encode())
                self.exit(0)
            elif not self._keep:
                self._forget()

        def failed(failure: Failure) -> None:
            if failure.check(PackageError):
                self._failed(failure.getErrorMessage())
            else:
                self._failed(f"INSTALL_FAILED_INTERNAL_ERROR: {failure.getErrorMessage()}")

        deferToThreadPool(reactor, reactor.getThreadPool(), function, argument).addCallbacks(done, failed)

    def _failed(self, text: str) -> None:
        self._forget()
        if not self._ended:
            self._ended = True
            self.out(f"Failure [{text}]\n".encode())
            self.exit(1)

    def _forget(self) -> None:
        if self._file is not None and not self._keep:
            self._file.close()
            with contextlib.suppress(OSError):
                os.unlink(self._file.name)


def _positional(arguments: Sequence[str]) -> list[str]:
    """The arguments that are neither options nor their values."""
    found, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in _VALUED:
            skip = True
        elif argument == "-" or not argument.startswith("-"):
            found.append(argument)
    return found


def package_name(path: str) -> str:
    """The package name inside an APK. Blocks.

    Raises:
        PackageError: it is not an APK.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("AndroidManifest.xml")
            if entry.file_size > MAX_MANIFEST:
                raise PackageError("INSTALL_PARSE_FAILED_BAD_MANIFEST")
            manifest = archive.read(entry)
    except (OSError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise PackageError("INSTALL_PARSE_FAILED_NOT_APK: Failed to parse the package") from error
    try:
        name = _manifest_package(manifest)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise PackageError("INSTALL_PARSE_FAILED_BAD_MANIFEST") from error
    if name is None or not _NAME.match(name):
        raise PackageError("INSTALL_PARSE_FAILED_BAD_PACKAGE_NAME")
    return name


def _manifest_package(data: bytes) -> str | None:
    """The ``package`` attribute of the root element of binary (or plain) XML (AOSP ``ResourceTypes.h``)."""
    if data[:4] != b"\x03\x00\x08\x00":
        found = re.search(rb'<manifest[^>]*\spackage="([^"]+)"', data)
        return found[1].decode() if found else None
    pos, strings = 8, []
    while pos + 8 <= len(data):
        kind, head, size = struct.unpack_from("<HHI", data, pos)
        if size < 8:
            return None
        if kind == 0x0001:
            strings = _string_pool(data, pos, head)
        elif kind == 0x0102:
            start, item, count = struct.unpack_from("<HHH", data, pos + head + 8)
            for index in range(count):
                _, name, value = struct.unpack_from("<III", data, pos + head + start + index * item)
                if strings[name] == "package":
                    return str(strings[value])
            return None
        pos += size
    return None


def _string_pool(data: bytes, pos: int, head: int) -> list[str]:
    count, _styles, flags, start = struct.unpack_from("<IIII", data, pos + 8)
    count = min(count, len(data) // 4)
    found = []
    for index in range(count):
        (offset,) = struct.unpack_from("<I", data, pos + head + 4 * index)
        at = pos + start + offset
        if flags & 0x100:
            at += 2 if data[at] & 0x80 else 1
            length = data[at]
            at += 1
            if length & 0x80:
                length = (length & 0x7F) << 8 | data[at]
                at += 1
            found.append(data[at : at + length].decode("utf-8", "replace"))
        else:
            (length,) = struct.unpack_from("<H", data, at)
            at += 2
            if length & 0x8000:
                length = (length & 0x7FFF) << 16 | struct.unpack_from("<H", data, at)[0]
                at += 2
            found.append(data[at : at + 2 * length].decode("utf-16-le", "replace"))
    return found
