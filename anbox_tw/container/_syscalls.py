"""The system calls of namespaces and mounts that Python 3.11 does not have.

Standard library only: the launcher imports it in a process of its own. Numbers of calls without a
libc wrapper are those of ``asm-generic/unistd.h``, which all architectures share from 424 on.
"""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = [
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MNT_DETACH",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "clone_tree",
    "drop_capabilities",
    "last_capability",
    "mount",
    "move_tree",
    "no_new_privileges",
    "pivot_root",
    "set_child_subreaper",
    "set_dumpable",
    "set_hostname",
    "set_name",
    "set_parent_death_signal",
    "syscall",
    "unmount",
    "unshare",
]

# sched.h
CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

# sys/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# linux/mount.h
_OPEN_TREE_CLONE = 1
_AT_RECURSIVE = 0x8000
_AT_EMPTY_PATH = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_MOUNT_ATTR_NODEV = 0x4
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_MOUNT_SETATTR = 442

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_LINUX_CAPABILITY_VERSION_3 = 0x2008_0522

_NR_PIVOT_ROOT = {
    "x86_64": 155,
    "i386": 217,
    "i686": 217,
    "armv7l": 218,
    "armv6l": 218,
    "ppc64le": 203,
    "ppc64": 203,
    "s390x": 217,
}
_NR_PIVOT_ROOT_GENERIC = 41  # aarch64, riscv64, loongarch64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(what: str, number: int, *arguments: object) -> int:
    """A system call without a wrapper in libc.

    Args:
        what: its name, for the error.
        number: its number.
        arguments: integers, byte strings, ``None`` or ctypes values.

    Raises:
        OSError: it failed.
    """
    arguments = tuple(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def _prctl(what: str, option: int, *arguments: object) -> int:
    padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    padded += [ctypes.c_ulong(0)] * (4 - len(padded))
    return _check(_libc.prctl(ctypes.c_int(option), *padded), what)


def unshare(flags: int) -> None:
    """Move this process (for a pid namespace: its next children) to new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, filesystem: str, flags: int, data: str = "") -> None:
    """``mount(2)``; an empty ``filesystem`` or ``data`` is a null pointer."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            filesystem.encode() or None,
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        f"mount {filesystem or source} at {target}",
    )


def unmount(target: str, flags: int) -> None:
    """``umount2(2)``."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """``pivot_root(2)``."""
    number = _NR_PIVOT_ROOT.get(platform.machine(), _NR_PIVOT_ROOT_GENERIC)
    syscall("pivot_root", number, os.fsencode(new_root), os.fsencode(put_old))


def clone_tree(descriptor: int, *, read_only: bool, devices: bool) -> int:
    """Copy the mount at an open path, with all mounts below it, as a tree that is mounted nowhere yet.

    Args:
        descriptor: opened with ``O_PATH`` in this mount namespace.
        read_only: nothing in the copy can be written, mounts below it included.
        devices: device nodes in it work.

    Returns:
        A descriptor of the copy, for `move_tree`.
    """
    tree = syscall(
        "open_tree",
        _NR_OPEN_TREE,
        ctypes.c_int(descriptor),
        b"",
        ctypes.c_uint(_OPEN_TREE_CLONE | _AT_RECURSIVE | _AT_EMPTY_PATH | os.O_CLOEXEC),
    )
    attributes = _MOUNT_ATTR_NOSUID
    if read_only:
        attributes |= _MOUNT_ATTR_RDONLY
    if not devices:
        attributes |= _MOUNT_ATTR_NODEV
    wanted = _MountAttributes(attr_set=attributes)
    try:
        syscall(
            "mount_setattr",
            _NR_MOUNT_SETATTR,
            ctypes.c_int(tree),
            b"",
            ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE),
            ctypes.byref(wanted),
            ctypes.c_size_t(ctypes.sizeof(wanted)),
        )
    except BaseException:
        os.close(tree)
        raise
    return tree


def move_tree(tree: int, target: int) -> None:
    """Mount a tree of `clone_tree` at an open path."""
    syscall(
        "move_mount",
        _NR_MOVE_MOUNT,
        ctypes.c_int(tree),
        b"",
        ctypes.c_int(target),
        b"",
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH),
    )


def set_hostname(name: str) -> None:
    """``sethostname(2)``."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), "sethostname")


def set_parent_death_signal(number: int) -> None:
    """Get this signal when the parent dies. Lost when the uid changes, kept over an ordinary exec."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, number)


def set_child_subreaper() -> None:
    """Become the parent of descendants whose own parent ends."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(dumpable: bool) -> None:
    """Whether other processes of the same user may trace this one."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(dumpable))


def set_name(name: str) -> None:
    """The name in ``ps``; 15 bytes of it count."""
    _prctl("PR_SET_NAME", _PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def no_new_privileges() -> None:
    """From now on no exec gives more privileges than this process has."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def last_capability() -> int:
    """The highest capability this kernel knows."""
    number = 0
    while True:
        try:
            _prctl("PR_CAPBSET_READ", _PR_CAPBSET_READ, number + 1)
        except OSError:
            return number
        number += 1


def drop_capabilities(keep: frozenset[int]) -> None:
    """Give up all capabilities but ``keep``, for good: those of this process and the bounding set."""
    for number in range(last_capability() + 1):
        if number not in keep:
            _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, number)
    masks = [0, 0]
    for number in keep:
        masks[number // 32] |= 1 << (number % 32)
    header = _CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)(_CapData(masks[0], masks[0], 0), _CapData(masks[1], masks[1], 0))
    _check(_libc.capset(ctypes.byref(header), data), "capset")
