"""What LXC's own messages mean; no I/O.

A line of LXC's log has the tool, the container, a time stamp, the level, the subsystem, the source file with the
function and the line, and the text::

    lxc-start one 20261121041448.155 ERROR    conf - ../src/lxc/conf.c:lxc_map_ids:3708 - newuidmap failed ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

__all__ = ["Explanation", "errors_of_log", "explain"]

MAX_REASON = 300  # characters of the reason; the log's tail has the rest
MAX_ERRORS = 12  # lines of errors that are kept for the tail

_LOG_LINE = re.compile(
    r"^lxc-start \S+ \d+\.\d+ (?P<level>[A-Z]+) +\S+ - \S+?:(?P<function>\w+):\d+ - (?P<text>.*)$"
)

_KNOWN: tuple[tuple[str, str, str, str], ...] = (
    (r"idmap|newuidmap|newgidmap|id mapping", "ANBOX-C021", "LXC could not set the id map", ""),
    (
        r"Failed to attach .* to bridge|Failed to create network|network device|netdev",
        "ANBOX-C016",
        "LXC could not make the container's network",
        "",
    ),
    (r"[Cc]group", "ANBOX-C019", "LXC could not use the control groups", ""),
    (
        r"Failed to exec|No such file or directory - Failed to exec",
        "ANBOX-C013",
        "init cannot be executed",
        "check that it, and the interpreter that its first line names, are in the rootfs",
    ),
    (r"seccomp", "ANBOX-C006", "the kernel refuses LXC's system call filter", ""),
    (
        r"AppArmor|apparmor",
        "ANBOX-C006",
        "AppArmor refuses the container",
        "see `dmesg` for the profile it names",
    ),
    (r"rlimit", "ANBOX-C006", "a resource limit could not be set", ""),
    (r"rootfs", "ANBOX-C011", "LXC could not mount the rootfs", ""),
    (r"[Mm]ount", "ANBOX-C011", "LXC could not mount what belongs into the container", ""),
    (r"unshare|CLONE_NEW|clone", "ANBOX-C010", "the kernel refuses namespaces", "run `anbox doctor`"),
    (r"already running|already exists", "ANBOX-C007", "a container of that name runs already", ""),
    (
        r"Failed to parse|Unknown configuration key|invalid",
        "ANBOX-C006",
        "this LXC does not take our configuration",
        "",
    ),
)


@attrs.frozen
class Explanation:
    """What went wrong.

    Attributes:
        code: key of `anbox_tw.container.diagnosis.CODES`.
        what: what failed.
        why: LXC's own first complaint.
        cure: what to do, or an empty string for the code's own.
        errors: LXC's complaints, oldest first.
    """

    code: str
    what: str
    why: str
    cure: str
    errors: tuple[str, ...]


def errors_of_log(lines: Sequence[str]) -> list[str]:
    """The texts of lxc-start's ERROR lines in LXC's log file; the other tools write to it, too."""
    found = []
    for line in lines:
        match = _LOG_LINE.match(line)
        if match and match["level"] in ("ERROR", "FATAL", "CRIT", "ALERT"):
            found.append(f"{match['function']}: {match['text']}")
    return found


def explain(log: Sequence[str], status: str) -> Explanation:
    """Why LXC did not start the container.

    Args:
        log: lines of LXC's log file.
        status: how lxc-start ended, for when it said nothing.
    """
    errors = errors_of_log(log)
    # The first complaint is the cause, those after it are who passed it on.
    for text in errors:
        for pattern, code, what, cure in _KNOWN:
            if re.search(pattern, text):
                return Explanation(code, what, text[:MAX_REASON], cure, tuple(errors[:MAX_ERRORS]))
    why = errors[0][:MAX_REASON] if errors else status
    return Explanation(
        "ANBOX-C012", "LXC ended before the container ran", why, "", tuple(errors[:MAX_ERRORS])
    )
