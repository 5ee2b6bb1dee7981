"""Landlock: what keeps a container without namespaces from writing outside its own directories.

Standard library only. See ``Documentation/userspace-api/landlock.rst`` of Linux; the constants are those of
``include/uapi/linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import os
import stat

from anbox_tw.container import _syscalls as sys_

__all__ = ["abi", "restrict_writes"]

_NR_CREATE_RULESET = 444
_NR_ADD_RULE = 445
_NR_RESTRICT_SELF = 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE = 1 << 1
_REFER = 1 << 13  # since version 2
_TRUNCATE = 1 << 14  # since version 3
# REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM
_CHANGE_DIRECTORY = sum(1 << bit for bit in range(4, 13))
_SCOPE_ABSTRACT_UNIX_SOCKET = 1  # since version 6
_SCOPE_SIGNAL = 2


class _RulesetAttributes(ctypes.Structure):
    _fields_ = [
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # what a packed structure has had on Linux, too; Python 3.14 wants it said
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def abi() -> int:
    """The version that this kernel has; 0 if it has none or it is switched off."""
    try:
        return sys_.syscall("landlock_create_ruleset", _NR_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict_writes(version: int, writable: list[str]) -> None:
    """From now on this process and its children write below ``writable`` only.

    Where the kernel can (version 6), they also send signals and connect to abstract sockets only among
    themselves.

    Args:
        version: of `abi`, at least 1.
        writable: files and directories; what is missing is left out.

    Raises:
        OSError: it cannot be done, for example without `anbox_tw.container._syscalls.no_new_privileges`.
    """
    of_file = _WRITE_FILE | (_TRUNCATE if version >= 3 else 0)
    of_directory = of_file | _CHANGE_DIRECTORY | (_REFER if version >= 2 else 0)
    attributes = _RulesetAttributes(
        of_directory, 0, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0
    )
    # An older kernel wants the structure as short as it knows it.
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = sys_.syscall(
        "landlock_create_ruleset", _NR_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0
    )
    try:
        for path in writable:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                rule = _PathBeneath(of_directory if directory else of_file, descriptor)
                sys_.syscall(
                    "landlock_add_rule", _NR_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0
                )
            finally:
                os.close(descriptor)
        sys_.syscall("landlock_restrict_self", _NR_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
