"""Arguments of console commands: numbers as C reads them, texts with escapes."""

from __future__ import annotations

import re

from anbox_tw.console._tree import Ko

__all__ = ["ESCAPES", "c_integer", "numbers", "unescape"]

ESCAPES = (
    "message must be utf8 and can use the following escapes:",
    "    \\n      for a newline",
    "    \\xNN    where NN are two hexadecimal numbers",
    "    \\uNNNN  where NNNN are four hexadecimal numbers",
    "    \\\\     to send a '\\' character",
    "",
    "    anything else is an error",
)
"""What is said before a text is refused."""

_ESCAPE = re.compile(r"\\(?:(n)|(\\)|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|(.?))", re.ASCII | re.DOTALL)
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d+", re.ASCII)
_INTEGER = re.compile(r"[+-]?(?:0[xX][0-9A-Fa-f]+|\d+)", re.ASCII)

MAX_DIGITS = 20


def unescape(text: str) -> str:
    """A text with its escapes replaced.

    Raises:
        Ko: an escape is none; a pair of ``\\u`` that is half a character is none either.
    """

    def one(match: re.Match[str]) -> str:
        newline, backslash, octet, unit, _ = match.groups()
        if newline:
            return "\n"
        if backslash:
            return "\\"
        if octet or unit:
            return chr(int(octet or unit, 16))
        raise Ko("badly formatted text", ESCAPES)

    try:
        # two halves of a surrogate pair become one character
        return _ESCAPE.sub(one, text).encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise Ko("badly formatted text", ESCAPES) from None


def numbers(text: str, most: int, *, whole: bool = False) -> list[float]:
    """Up to ``most`` numbers between blanks; what follows them is ignored, as in the emulator.

    Raises:
        Ko: something else stands where one should.
    """
    found: list[float] = []
    pattern = _DECIMAL if whole else _FLOAT
    rest = text.strip(" \t")
    while rest and len(found) < most:
        match = pattern.match(rest)
        if match is None or len(match[0]) > MAX_DIGITS * 2:
            raise Ko(f"argument '{rest}' is not a number")
        found.append(int(match[0]) if whole else float(match[0]))
        rest = rest[match.end() :].lstrip(" \t")
    return found


def c_integer(text: str) -> int | None:
    """The integer that a text begins with, as ``strtol`` with base 0 reads it; None if it begins with none."""
    match = _INTEGER.match(text.strip(" \t"))
    if match is None or len(match[0]) > MAX_DIGITS:
        return None
    digits = match[0]
    if re.fullmatch(r"[+-]?0[0-7]+", digits, re.ASCII):
        return int(digits, 8)
    return int(digits, 16 if "x" in digits.lower() else 10)
