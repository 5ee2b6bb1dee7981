"""Prints an rc configuration so that reading it again gives the same configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from anbox_tw.android.rc.model import RcConfig, RcService

__all__ = ["format_config", "format_service", "quote"]

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"', " ": "\\ "}


def quote(word: str) -> str:
    """``word`` as it has to stand in a file."""
    if word and not any(character in ' \t\r\n"\\' for character in word) and not word.startswith("#"):
        return word
    if not any(character in '\t\r\n"\\' for character in word):
        return f'"{word}"'
    text = "".join(_ESCAPES.get(character, character) for character in word)
    return "\\" + text if text.startswith("#") else text


def _join(words: Iterable[str]) -> str:
    return " ".join(quote(word) for word in words)


def format_service(service: RcService) -> Iterator[str]:
    """The lines of one service's section."""
    yield _join(("service", service.name, *service.arguments))
    if service.class_name != "default":
        yield "    " + _join(("class", service.class_name))
    for flag in ("console", "critical", "disabled", "oneshot"):
        if getattr(service, flag):
            yield f"    {flag}"
    if service.user:
        yield "    " + _join(("user", service.user))
    if service.group:
        first, rest = service.supplementary[:12], service.supplementary[12:]
        while rest:
            # more than one line can name: lines add up, and the last one's first word is the group
            yield "    " + _join(("group", service.group, *first))
            first, rest = rest[:12], rest[12:]
        yield "    " + _join(("group", service.group, *first))
    if service.seclabel:
        yield "    " + _join(("seclabel", service.seclabel))
    if service.ioprio is not None:
        yield f"    ioprio {service.ioprio[0]} {service.ioprio[1]}"
    if service.keycodes:
        yield "    " + _join(("keycodes", *map(str, service.keycodes)))
    for name, value in service.environment:
        yield "    " + _join(("setenv", name, value))
    for socket in service.sockets:
        owner = [socket.user, socket.group, socket.seclabel]
        while owner and not owner[-1]:
            owner.pop()
        yield "    " + _join(("socket", socket.name, socket.type, f"{socket.mode:04o}", *owner))
    for command in service.onrestart:
        yield "    " + _join(("onrestart", *command.words))
    if service.writepid:
        yield "    " + _join(("writepid", *service.writepid))


def format_config(config: RcConfig) -> str:
    """All of ``config`` as one file: imports first, then actions, then services."""
    sections: list[list[str]] = []
    if config.imports:
        sections.append([_join(("import", entry.path)) for entry in config.imports])
    for action in config.actions:
        sections.append(
            [_join(("on", *action.trigger.words()))]
            + ["    " + _join(command.words) for command in action.commands]
        )
    sections.extend(list(format_service(service)) for service in config.services.values())
    return "\n\n".join("\n".join(section) for section in sections) + ("\n" if sections else "")
