"""How many arguments each word of the rc language takes.

Source: ``OptionHandlerMap`` in ``init/service.cpp`` and ``BuiltinFunctionMap`` in ``init/builtins.cpp``
at android-7.0.0_r1, and the checks of ``KeywordMap`` in ``init/keyword_map.h``.
"""

from __future__ import annotations

__all__ = ["COMMANDS", "LATER_OPTIONS", "MAX_SUPPLEMENTARY_GROUPS", "OPTIONS", "count_problem"]

MANY: int | None = None

MAX_SUPPLEMENTARY_GROUPS = 12
"""``NR_SVC_SUPP_GIDS``: groups behind the first."""

OPTIONS: dict[str, tuple[int, int | None]] = {
    "class": (1, 1),
    "console": (0, 0),
    "critical": (0, 0),
    "disabled": (0, 0),
    "group": (1, MAX_SUPPLEMENTARY_GROUPS + 1),
    "ioprio": (2, 2),
    "keycodes": (1, MANY),
    "oneshot": (0, 0),
    "onrestart": (1, MANY),
    "seclabel": (1, 1),
    "setenv": (2, 2),
    "socket": (3, 6),
    "user": (1, 1),
    "writepid": (1, MANY),
}
"""Service options of 7.0: fewest and most arguments."""

LATER_OPTIONS = frozenset(
    {
        "animation",
        "capabilities",
        "enter_namespace",
        "file",
        "interface",
        "memcg.limit_in_bytes",
        "memcg.soft_limit_in_bytes",
        "memcg.swappiness",
        "namespace",
        "oom_score_adjust",
        "override",
        "priority",
        "reboot_on_failure",
        "restart_period",
        "rlimit",
        "shutdown",
        "sigstop",
        "task_profiles",
        "timeout_period",
        "updatable",
    }
)
"""Options that only later releases know: a line with one gets a message that says so."""

COMMANDS: dict[str, tuple[int, int | None]] = {
    "bootchart_init": (0, 0),
    "chmod": (2, 2),
    "chown": (2, 3),
    "class_reset": (1, 1),
    "class_start": (1, 1),
    "class_stop": (1, 1),
    "copy": (2, 2),
    "domainname": (1, 1),
    "enable": (1, 1),
    "exec": (1, MANY),
    "export": (2, 2),
    "hostname": (1, 1),
    "ifup": (1, 1),
    "init_user0": (0, 0),
    "insmod": (1, MANY),
    "installkey": (1, 1),
    "load_persist_props": (0, 0),
    "load_system_props": (0, 0),
    "loglevel": (1, 1),
    "mkdir": (1, 4),
    "mount": (3, MANY),
    "mount_all": (1, MANY),
    "powerctl": (1, 1),
    "restart": (1, 1),
    "restorecon": (1, MANY),
    "restorecon_recursive": (1, MANY),
    "rm": (1, 1),
    "rmdir": (1, 1),
    "setprop": (2, 2),
    "setrlimit": (3, 3),
    "start": (1, 1),
    "stop": (1, 1),
    "swapon_all": (1, 1),
    "symlink": (2, 2),
    "sysclktz": (1, 1),
    "trigger": (1, 1),
    "verity_load_state": (0, 0),
    "verity_update_state": (0, 0),
    "wait": (1, 2),
    "write": (2, 2),
}
"""Commands of 7.0: fewest and most arguments."""


def count_problem(table: dict[str, tuple[int, int | None]], keyword: str, given: int) -> str | None:
    """What is wrong with ``given`` arguments behind ``keyword``, in the words init uses, or ``None``."""
    if keyword not in table:
        return f"invalid keyword '{keyword}'"
    fewest, most = table[keyword]
    if fewest == most and given != fewest:
        return f"{keyword} requires {fewest} argument{'' if fewest == 1 else 's'}"
    if most is None and given < fewest:
        return f"{keyword} requires at least {fewest} argument{'s' if fewest > 1 else ''}"
    if most is not None and not fewest <= given <= most:
        return f"{keyword} requires between {fewest} and {most} arguments"
    return None
