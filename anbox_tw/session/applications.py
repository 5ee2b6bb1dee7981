"""The applications that a session knows, also while no guest runs: its database and the file it is kept in.

The bridge holds what the guest that is connected has reported. The database remembers it over restarts, so that a
desktop lists an application, and its launcher works, before the guest has booted. Nothing here does I/O.

What a guest no longer has is found out in two ways: it says that a package was removed, or it reports after its boot
and leaves a package out (`ApplicationDatabase.forget_unreported`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import attrs

from anbox_tw.session.bridge import MAX_APPLICATIONS, MAX_TEXT_CHARS, Application

__all__ = ["FORMAT_VERSION", "MAX_DATABASE_BYTES", "ApplicationDatabase", "DatabaseError", "NewerDatabase"]

FORMAT_VERSION = 1
"""Of the file. A newer one is left alone: an older program must not write over it."""

MAX_DATABASE_BYTES = 32 << 20
"""`MAX_APPLICATIONS` with texts of usual length have about 2 MB; a bigger file is not ours."""

MAX_CATEGORIES = 64
"""Of one intent, as the bridge takes them."""


class DatabaseError(ValueError):
    """The file cannot be used; the next one is written over it."""


class NewerDatabase(DatabaseError):
    """The file is of a version that this program does not know; it must not be written over."""


class ApplicationDatabase:
    """Applications by package, without their icons.

    Attributes:
        applications: all that are known.
        reported: packages that the guest which is connected has reported.
    """

    def __init__(self) -> None:
        self.applications: dict[str, Application] = {}
        self.reported: set[str] = set()

    def take(self, changed: Iterable[Application]) -> bool:
        """Remember what a guest reports; whether anything is different from before."""
        different = False
        for application in changed:
            package = application.package
            if package not in self.applications and len(self.applications) >= MAX_APPLICATIONS:
                self._make_room()
                if len(self.applications) >= MAX_APPLICATIONS:
                    continue
            self.reported.add(package)
            kept = attrs.evolve(application, icon=b"")
            if self.applications.get(package) != kept:
                self.applications[package] = kept
                different = True
        return different

    def remove(self, packages: Iterable[str]) -> list[str]:
        """Forget packages; returns those that were known."""
        gone = [package for package in packages if self.applications.pop(package, None) is not None]
        self.reported.difference_update(gone)
        return gone

    def guest_left(self) -> None:
        """The guest is gone; what it reported stays known, and the next one has to report it anew."""
        self.reported.clear()

    def forget_unreported(self) -> list[str]:
        """Forget what the guest did not report; returns the packages.

        A guest that has reported nothing at all may only not have come to it, so nothing is forgotten then.
        """
        if not self.reported:
            return []
        return self.remove([package for package in self.applications if package not in self.reported])

    def _make_room(self) -> None:
        """Drop one package that the guest does not have, the one known longest."""
        for package in self.applications:
            if package not in self.reported:
                del self.applications[package]
                return

    # -- the file --

    def to_bytes(self) -> bytes:
        """The content of the file: JSON, sorted, so that equal databases are equal files."""
        listed = [
            {"package": app.package, "name": app.name, "component": app.component, "intent": app.intent}
            for _, app in sorted(self.applications.items())
        ]
        return (
            json.dumps(
                {"version": FORMAT_VERSION, "applications": listed},
                ensure_ascii=False,
                indent=1,
                sort_keys=True,
            )
            + "\n"
        ).encode()

    def load(self, data: bytes) -> None:
        """Replace all by the content of a file.

        Raises:
            DatabaseError: it cannot be used; nothing was changed.
        """
        if len(data) > MAX_DATABASE_BYTES:
            raise DatabaseError(f"it is larger than {MAX_DATABASE_BYTES} bytes")
        try:
            content = json.loads(data)
            version = content["version"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise NewerDatabase(f"it has version {version}, and this program knows {FORMAT_VERSION}")
            if version != FORMAT_VERSION:
                raise DatabaseError(f"its version is {version!r}")
            found = [_application(entry) for entry in content["applications"][:MAX_APPLICATIONS]]
        except DatabaseError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DatabaseError(f"it is damaged: {type(error).__name__}: {error}") from error
        self.applications = {application.package: application for application in found}
        self.reported.clear()


def _application(entry: Any) -> Application:
    texts = {name: entry[name] for name in ("package", "name", "component")}
    intent = entry["intent"]
    categories = intent.get("categories", [])
    plain = [*texts.values(), *categories, *(intent.get(name, "") for name in ("action", "uri", "type"))]
    if not all(isinstance(text, str) and len(text) <= MAX_TEXT_CHARS for text in plain):
        raise ValueError("a text is none, or too long")
    if not texts["package"] or not isinstance(categories, list) or len(categories) > MAX_CATEGORIES:
        raise ValueError("an application without a package, or with categories that are no list")
    known = {name: intent[name] for name in ("action", "uri", "type", "categories") if intent.get(name)}
    return Application(**texts, intent=known)
