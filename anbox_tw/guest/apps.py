"""What the guest can launch: programs of the rootfs, listed like Android's applications.

Two sources, of which the first wins where both name a package:

* ``/data/app/<package>/app.json``: ``{"name": "...", "exec": ["program", "argument"], "component": ".Main", "icon": "icon.png"}``,
  installed with ``adb push``; the program's path may be relative to its directory.
* desktop entries in ``/usr/share/applications``, as the package of their file name.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
from collections.abc import Iterator

import attrs
from twisted.logger import Logger

__all__ = ["GuestApplication", "find_applications", "fingerprint"]

_log = Logger()

MAX_MANIFEST_BYTES = 64 * 1024
"""A manifest or desktop entry has some hundred bytes, with all its translations some kB."""

MAX_ICON_BYTES = 512 * 1024
"""What the session's side takes is more."""

MAX_APPLICATIONS = 1024
"""Of each source."""

_PACKAGE = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_-]+)+")
_FIELD_CODE = re.compile(r"%[a-zA-Z]")


@attrs.frozen
class GuestApplication:
    """One application.

    Attributes:
        package: the key; of dotted words, as Android's.
        name: its label.
        command: program and arguments; an argument ``%u`` stands for the intent's uri.
        component: of its launch intent.
        directory: where it runs; empty for the guest's root.
        icon: PNG, or empty.
    """

    package: str
    name: str
    command: tuple[str, ...]
    component: str = ".Main"
    directory: str = ""
    icon: bytes = attrs.field(default=b"", repr=False)

    def command_for(self, uri: str) -> list[str]:
        """The command line for an intent with this uri, which may be empty."""
        filled = [uri if part in ("%u", "%U", "%f", "%F") else part for part in self.command]
        return [part for part in filled if part]


def find_applications(root: str) -> dict[str, GuestApplication]:
    """Every application of the guest, by package. A manifest that cannot be used is logged and left out."""
    found: dict[str, GuestApplication] = {}
    for source in (_desktop_entries(root), _manifests(root)):
        for application in source:
            found[application.package] = application
    return found


def fingerprint(root: str) -> tuple[object, ...]:
    """What changes when the applications may have changed; costs a few system calls, where finding them parses files."""
    base = os.path.join(root, "data/app")
    directories = [os.path.join(root, "usr/share/applications"), base]
    directories += [os.path.join(base, name) for name in _names(base)]
    manifests = [os.path.join(directory, "app.json") for directory in directories[2:]]
    return tuple(_stamp(path) for path in (*directories, *manifests))


def _stamp(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return path
    return path, status.st_mtime_ns, status.st_size, status.st_ino


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))[:MAX_APPLICATIONS]
    except OSError:
        return []


def _read(path: str, limit: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return data


def _manifests(root: str) -> Iterator[GuestApplication]:
    base = os.path.join(root, "data/app")
    for package in _names(base):
        directory = os.path.join(base, package)
        manifest = os.path.join(directory, "app.json")
        if not os.path.isfile(manifest):
            continue
        try:
            yield _from_manifest(package, directory, json.loads(_read(manifest, MAX_MANIFEST_BYTES)))
        except (OSError, ValueError) as error:
            _log.warn("{path} is left out: {error}", path=manifest, error=error)


def _from_manifest(package: str, directory: str, manifest: object) -> GuestApplication:
    if not _PACKAGE.fullmatch(package):
        raise ValueError("its directory's name is no package name, such as org.example.app")
    if not isinstance(manifest, dict):
        raise ValueError("it is no JSON object")
    command = manifest.get("exec")
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise ValueError('"exec" must be a list of texts, the program first')
    program = os.path.join(directory, command[0])
    icon = b""
    if isinstance(manifest.get("icon"), str):
        icon = _read(os.path.join(directory, manifest["icon"]), MAX_ICON_BYTES)
    return GuestApplication(
        package=package,
        name=str(manifest.get("name") or package),
        command=(program if os.path.exists(program) else command[0], *command[1:]),
        component=str(manifest.get("component") or ".Main"),
        directory=directory,
        icon=icon,
    )


def _desktop_entries(root: str) -> Iterator[GuestApplication]:
    directory = os.path.join(root, "usr/share/applications")
    for name in _names(directory):
        stem, extension = os.path.splitext(name)
        if extension != ".desktop":
            continue
        try:
            application = _from_entry(stem, _read(os.path.join(directory, name), MAX_MANIFEST_BYTES).decode())
        except (OSError, ValueError, configparser.Error) as error:
            _log.info("{name} is left out: {error}", name=name, error=error)
            continue
        if application is not None:
            yield application


def _from_entry(stem: str, text: str) -> GuestApplication | None:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.read_string(text)
    entry = dict(parser["Desktop Entry"]) if parser.has_section("Desktop Entry") else {}
    hidden = any(entry.get(key, "").strip() == "true" for key in ("hidden", "nodisplay", "terminal"))
    if entry.get("type") != "Application" or hidden or not entry.get("exec"):
        return None
    words = shlex.split(entry["exec"])
    command = [word if word in ("%u", "%U", "%f", "%F") else _FIELD_CODE.sub("", word) for word in words]
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", stem)
    return GuestApplication(
        package=clean if _PACKAGE.fullmatch(clean) else f"desktop.{clean.replace('.', '_')}",
        name=entry.get("name", stem),
        command=tuple(word for word in command if word),
    )
