"""``${property}`` in words of the rc language.

Source: ``expand_props`` in ``init/util.cpp`` at android-7.0.0_r1. One thing of later releases is
taken too, since 7.0 can only fail on it: ``${name:-text}`` gives ``text`` where the property is not set.
"""

from __future__ import annotations

from collections.abc import Callable

from anbox_tw.android.errors import RcError

__all__ = ["expand", "references"]


def expand(text: str, get: Callable[[str], str]) -> str:
    """Replace each property reference in ``text``.

    ``${name}`` anywhere, ``$name`` up to the end of the text (an old form), ``$$`` for one ``$``.

    Args:
        text: a word of the file.
        get: gives a property's value, or an empty string when it is not set.

    Raises:
        RcError: a reference is not closed, is empty, or names a property that is not set.
    """
    parts: list[str] = []
    position = 0
    while True:
        dollar = text.find("$", position)
        if dollar < 0:
            parts.append(text[position:])
            return "".join(parts)
        parts.append(text[position:dollar])
        following = text[dollar + 1 : dollar + 2]
        if not following:
            return "".join(parts)
        if following == "$":
            parts.append("$")
            position = dollar + 2
            continue
        if following == "{":
            close = text.find("}", dollar)
            if close < 0:
                raise RcError(f"unexpected end of string in '{text}', looking for }}")
            name, position = text[dollar + 2 : close], close + 1
        else:
            name, position = text[dollar + 1 :], len(text)
        name, has_default, default = name.partition(":-")
        if not name:
            raise RcError(f"invalid zero-length prop name in '{text}'")
        value = get(name)
        if not value:
            if not has_default:
                raise RcError(f"property '{name}' doesn't exist while expanding '{text}'")
            value = default
        parts.append(value)


def references(text: str) -> list[str]:
    """The names of the properties that ``text`` refers to.

    Raises:
        RcError: a reference is not closed or is empty.
    """
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return "-"

    expand(text, note)
    return found
