"""Whom adbd's services act as: the user that adbd runs as, or Android's ``shell`` after ``adb unroot``.

A real adbd restarts itself under the other user (AOSP ``restart_service.cpp``, ``daemon/main.cpp``). Ours stays what it is,
so that it can come back: shells are started as that user, and the thread of a file service becomes that user for
good before it touches a file. The kernel keeps credentials for each thread; only the C library's wrappers change all.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Any

import attrs

__all__ = ["SHELL", "Identity", "can_change_identity"]

_CALLS = {
    "x86_64": (116, 119, 117),
    "aarch64": (159, 149, 147),
    "riscv64": (159, 149, 147),
}
"""Numbers of ``setgroups``, ``setresgid``, ``setresuid``: ``asm/unistd_64.h`` and ``asm-generic/unistd.h``."""

_libc = ctypes.CDLL(None, use_errno=True)


@attrs.frozen
class Identity:
    """A user, as the kernel knows it.

    Attributes:
        uid: user id.
        gid: group id.
        groups: supplementary group ids.
        name: what ``id`` shall call it.
        home: where its shells begin.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = "/"

    def become_in_this_thread(self) -> None:
        """Make the calling thread, and no other, this user; there is no way back.

        Raises:
            OSError: the kernel refuses, or the machine's system calls are not known.
        """
        calls = _CALLS.get(platform.machine())
        if calls is None:
            raise OSError(38, "no thread can change its user on this machine")
        groups = (ctypes.c_uint32 * len(self.groups))(*self.groups)
        setgroups, setresgid, setresuid = calls
        _call(setgroups, ctypes.c_long(len(self.groups)), groups)
        _call(setresgid, *[ctypes.c_long(self.gid)] * 3)
        _call(setresuid, *[ctypes.c_long(self.uid)] * 3)


def _call(number: int, *arguments: Any) -> None:
    if _libc.syscall(ctypes.c_long(number), *arguments):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


SHELL = Identity(
    2000,
    2000,
    # input, log, adb, sdcard_rw, media_rw, sdcard_r, net_bt_admin, net_bt, inet, net_bw_stats, readproc, uhid
    (1004, 1007, 1011, 1015, 1023, 1028, 3001, 3002, 3003, 3006, 3009, 3011),
    "shell",
)
"""``AID_SHELL`` with the groups that AOSP's ``daemon/main.cpp`` gives it."""


def can_change_identity(identity: Identity = SHELL) -> bool:
    """Whether this process is a root that has the user: in a user namespace its ids need to be mapped."""
    if os.geteuid() != 0 or platform.machine() not in _CALLS:
        return False
    return all(
        all(_mapped(wanted, f"/proc/self/{table}") for wanted in ids)
        for table, ids in (("uid_map", (identity.uid,)), ("gid_map", (identity.gid, *identity.groups)))
    )


def _mapped(wanted: int, path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except (OSError, ValueError):
        return False
    return any(first <= wanted < first + count for first, _, count in ranges)
