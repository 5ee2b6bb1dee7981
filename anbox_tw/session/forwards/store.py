"""The forwards that are there again at the next start: a small JSON file, replaced as a whole."""

from __future__ import annotations

import json
import os

import attrs
from twisted.logger import Logger

from anbox_tw.session.forwards.errors import BadSpec, ForwardError
from anbox_tw.session.forwards.specs import Listen, Target, parse_listen, parse_target

__all__ = ["ForwardStore", "Kept"]

VERSION = 1
MAX_FILE_BYTES = 1024 * 1024
"""256 forwards with two long names each take half of it."""

_log = Logger()


@attrs.frozen
class Kept:
    """One forward as it is kept.

    Attributes:
        listen: where.
        target: where to.
        via: which way.
    """

    listen: Listen
    target: Target
    via: str


class ForwardStore:
    """One instance's file.

    Args:
        path: absolute; its directory is made when it is missing.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def load(self) -> list[Kept]:
        """What is kept. A file that cannot be read is left as it is and told in the log; an entry likewise."""
        try:
            with open(self.path, "rb") as file:
                data = json.loads(file.read(MAX_FILE_BYTES))
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}")
            entries = list(data["forwards"])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _log.warn("the forwards in {path} cannot be read: {error}", path=self.path, error=error)
            return []
        kept = []
        for entry in entries:
            try:
                kept.append(
                    Kept(parse_listen(entry["listen"]), parse_target(entry["target"]), str(entry["via"]))
                )
            except (BadSpec, KeyError, TypeError, AttributeError) as error:
                _log.warn("{path}: {entry!r}: {error}", path=self.path, entry=entry, error=error)
        return kept

    def save(self, forwards: list[Kept]) -> None:
        """Replace what is kept; it is on the disk when this returns.

        Raises:
            ForwardError: it cannot be written.
        """
        entries = [{"listen": str(k.listen), "target": str(k.target), "via": k.via} for k in forwards]
        text = json.dumps({"version": VERSION, "forwards": entries}, indent=1)
        new = f"{self.path}.new"
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            descriptor = os.open(
                new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, self.path)
        except OSError as error:
            raise ForwardError(f"the forwards cannot be kept in {self.path}: {error.strerror}") from error
