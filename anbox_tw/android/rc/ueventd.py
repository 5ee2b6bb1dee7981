"""``ueventd*.rc``: the other language beside init's, which gives device nodes their owners.

Source: ``init/ueventd_parser.cpp`` and ``set_device_permission`` in ``init/ueventd.cpp`` at android-7.0.0_r1.
Nothing here runs ueventd: a container's nodes are made by its backend. ``anbox rc check`` reads the files so
that a whole set of rc files can be checked.
"""

from __future__ import annotations

import os

from attrs import field, frozen, mutable

from anbox_tw.android.aid import decode_id
from anbox_tw.android.rc._lexer import LexProblem, lex
from anbox_tw.android.rc.model import Location, Problem

__all__ = ["DeviceRule", "Subsystem", "UeventdConfig", "is_ueventd_file", "parse_ueventd"]


@frozen
class DeviceRule:
    """Mode and owner of a node, or of one attribute below a sysfs path; names may end in ``*``."""

    path: str
    attribute: str
    mode: int
    uid: int
    gid: int


@mutable
class Subsystem:
    """How a subsystem's nodes are named and where they go."""

    name: str
    location: Location = field(eq=False)
    devname: str = ""
    dirname: str = ""


@mutable
class UeventdConfig:
    """What a file says."""

    rules: list[DeviceRule] = field(factory=list)
    subsystems: list[Subsystem] = field(factory=list)
    problems: list[Problem] = field(factory=list, eq=False)


def is_ueventd_file(path: str) -> bool:
    """Whether a file is in this language, by its name, as ueventd finds its files."""
    name = os.path.basename(path)
    # AOSP keeps its own in rootdir/ueventd.rc; collections put a prefix before that
    return name.endswith(".rc") and (name.startswith("ueventd") or "_ueventd" in name)


def parse_ueventd(text: str, file: str = "<ueventd.rc>") -> UeventdConfig:
    """Read one file; goes on after every error."""
    config = UeventdConfig()
    section: Subsystem | None = None
    for item in lex(text):
        location = Location(file, item.number)
        if isinstance(item, LexProblem):
            config.problems.append(Problem(location, item.message))
            continue
        words = item.words
        error: str | None = None
        if words[0] == "subsystem":
            section = None
            if len(words) != 2:
                error = "subsystem requires 1 argument"
            else:
                section = Subsystem(words[1], location)
                config.subsystems.append(section)
        elif words[0] in ("devname", "dirname"):
            if section is None:
                error = f"{words[0]} outside of a subsystem"
            elif len(words) != 2:
                error = f"{words[0]} requires 1 argument"
            elif words[0] == "devname":
                if words[1] not in ("uevent_devname", "uevent_devpath"):
                    error = f"invalid devname '{words[1]}'"
                section.devname = words[1]
            else:
                if not words[1].startswith("/dev/"):
                    error = f"dirname '{words[1]}' does not start with /dev/"
                section.dirname = words[1]
        else:
            section = None
            error = _rule(config, words)
        if error is not None:
            config.problems.append(Problem(location, error))
    return config


def _rule(config: UeventdConfig, words: tuple[str, ...]) -> str | None:
    sysfs = words[0].startswith("/sys/")
    if len(words) != (5 if sysfs else 4):
        return f"a rule has {'five' if sysfs else 'four'} words: path{' attribute' if sysfs else ''} mode user group"
    attribute = words[1] if sysfs else ""
    mode_text, user, group = words[-3:]
    if not mode_text or any(character not in "01234567" for character in mode_text) or len(mode_text) > 11:
        return f"invalid mode '{mode_text}'"
    uid, gid = decode_id(user), decode_id(group)
    if uid is None:
        return f"invalid uid '{user}'"
    if gid is None:
        return f"invalid gid '{group}'"
    config.rules.append(DeviceRule(words[0], attribute, int(mode_text, 8), uid, gid))
    return None
