"""Text of an rc file into logical lines of words.

The rules are those of ``next_token`` in ``init/parser.cpp`` at android-7.0.0_r1:

* words are separated by space, tab and carriage return; a newline ends the line;
* ``#`` where a word could begin starts a comment that runs to the end of the physical line;
* ``"`` opens and closes a part of a word in which everything else is literal, newlines too;
* ``\\n``, ``\\r``, ``\\t`` and ``\\\\`` are escapes; a backslash before a newline joins the next line
  to this one (the blanks that lead the next line are dropped, so a word may be folded in its middle);
  a backslash before anything else is dropped.

One deliberate difference: the original forgets to step over the letter of an escape, so its ``\\n``
gives a newline *and* an ``n``. The language's own description says C-style escapes; so do we.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["LexProblem", "Line", "lex"]

_BLANKS = " \t\r"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


class Line(NamedTuple):
    """One logical line: the physical line it begins on (from 1), and its words."""

    number: int
    words: tuple[str, ...]


class LexProblem(NamedTuple):
    """Text that ends in the middle of something, and the physical line where that began."""

    number: int
    message: str


def lex(text: str) -> Iterator[Line | LexProblem]:
    """Split ``text``; empty lines and comments give nothing.

    A NUL ends the file, as it does for a reader in C; that is told.
    """
    nul = text.find("\0")
    if nul >= 0:
        rest_at = text.count("\n", 0, nul) + 1
        text = text[:nul]
    position, number, end = 0, 1, len(text)
    words: list[str] = []
    begun = 1
    while position < end:
        character = text[position]
        if character == "\n":
            if words:
                yield Line(begun, tuple(words))
                words = []
            position += 1
            number += 1
            continue
        if character in _BLANKS:
            position += 1
            continue
        if character == "#":
            newline = text.find("\n", position)
            position = end if newline < 0 else newline
            continue
        if not words:
            begun = number
        word, position, lines, closed = _word(text, position, end)
        if not closed:
            # the original drops the whole line without a word
            yield LexProblem(
                number, "the quote that opens here is never closed: the rest of the file is lost"
            )
            words = []
            position = end
            break
        number += lines
        words.append(word)
    if words:
        yield Line(begun, tuple(words))
    if nul >= 0:
        yield LexProblem(rest_at, "a NUL byte ends the file here: the rest is not read")


def _word(text: str, position: int, end: int) -> tuple[str, int, int, bool]:
    """One word from ``position``: (word, position behind it, newlines passed, all quotes closed)."""
    parts: list[str] = []
    lines = 0
    while position < end:
        character = text[position]
        if character in _BLANKS or character == "\n":
            break
        if character == '"':
            close = text.find('"', position + 1)
            if close < 0:
                return "".join(parts), end, lines, False
            parts.append(text[position + 1 : close])
            lines += text.count("\n", position, close)
            position = close + 1
        elif character == "\\":
            position += 1
            if position >= end:
                break
            character = text[position]
            if character == "\r" and text[position + 1 : position + 2] == "\n":
                position += 1
                character = "\n"
            if character == "\n":
                lines += 1
                position += 1
                while position < end and text[position] in " \t":
                    position += 1
            else:
                parts.append(_ESCAPES.get(character, character))
                position += 1
        else:
            start = position
            while position < end and text[position] not in ' \t\r\n"\\':
                position += 1
            parts.append(text[start:position])
    return "".join(parts), position, lines, True
