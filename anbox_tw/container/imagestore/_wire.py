"""What is read from a server without trusting it: checksum files and Content-Range."""

from __future__ import annotations

import re

__all__ = ["checksum_urls", "content_range", "find_checksum", "is_sha256", "strong_validator"]

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_RANGE = re.compile(rb"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)", re.ASCII)


def is_sha256(text: str) -> bool:
    """Whether it is 64 hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def checksum_urls(url: str) -> list[str]:
    """Where the checksum of a URL's file may be, in the order to look."""
    plain = url.partition("?")[0].partition("#")[0]
    return [f"{plain}.sha256", f"{plain.rpartition('/')[0]}/SHA256SUMS"]


def find_checksum(text: str, name: str) -> str | None:
    """The SHA-256 of a file in the text of a checksum file, in lower case.

    Hash and name as ``sha256sum`` writes them, for text and for binary files; as BSD's tools do; or a bare hash alone.

    Args:
        text: of the checksum file.
        name: of the file, without directories.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) == 1 and is_sha256(lines[0]):
        return lines[0].lower()
    for line in lines:
        bsd = re.fullmatch(r"SHA256 ?\((.+)\) ?= ?([0-9a-fA-F]{64})", line)
        digest, _, rest = line.partition(" ")
        found, listed = (bsd[2], bsd[1]) if bsd else (digest, rest.strip().removeprefix("*"))
        if is_sha256(found) and listed.rpartition("/")[2] == name:
            return found.lower()
    return None


def content_range(value: bytes | None) -> tuple[int | None, int | None]:
    """First byte and length of the whole, as a Content-Range says; ``None`` for what it does not say."""
    match = _RANGE.fullmatch((value or b"").strip())
    if match is None:
        return None, None
    whole = None if match[3] == b"*" else int(match[3])
    return (int(match[1]) if match[1] is not None else None), whole


def strong_validator(etag: bytes | None, modified: bytes | None) -> bytes | None:
    """What an If-Range can hold: a strong entity tag, or the time of the last change."""
    if etag and not etag.startswith(b"W/"):
        return etag
    return modified or None
