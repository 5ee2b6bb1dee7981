"""POSIX access control lists of files, as the kernel takes them in ``system.posix_acl_access``; no I/O.

A session of root has sockets that are open to root alone, and an unprivileged container's root is another user.
One more entry in the socket's list lets that user in, and nobody else.
"""

from __future__ import annotations

import struct

__all__ = ["ACL_ATTRIBUTE", "acl_with_user", "allows_user"]

ACL_ATTRIBUTE = "system.posix_acl_access"
_VERSION = 2  # include/uapi/linux/posix_acl_xattr.h
_ENTRY = struct.Struct("<HHI")
_NOBODY = 0xFFFF_FFFF
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 0x10, 0x20


def acl_with_user(mode: int, uid: int, permission: int, existing: bytes = b"") -> bytes:
    """A list that gives one more user a permission.

    Args:
        mode: the file's mode.
        uid: the user.
        permission: 4 read, 2 write, 1 execute, added up.
        existing: the list the file has; without it the mode's is taken.

    Raises:
        ValueError: the existing list is damaged.
    """
    entries: list[tuple[int, int, int]] = []
    if existing:
        if (
            len(existing) < 4
            or (len(existing) - 4) % _ENTRY.size
            or existing[:4] != struct.pack("<I", _VERSION)
        ):
            raise ValueError("not an access control list")
        entries = list(_ENTRY.iter_unpack(existing[4:]))
    else:
        entries = [
            (_USER_OBJ, mode >> 6 & 7, _NOBODY),
            (_GROUP_OBJ, mode >> 3 & 7, _NOBODY),
            (_OTHER, mode & 7, _NOBODY),
        ]
    entries = [
        entry for entry in entries if entry[0] != _MASK and not (entry[0] == _USER and entry[2] == uid)
    ]
    entries.append((_USER, permission, uid))
    mask = 0
    for tag, granted, _ in entries:
        if tag in (_USER, _GROUP_OBJ, _GROUP):
            mask |= granted
    entries.append((_MASK, mask, _NOBODY))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", _VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def allows_user(mode: int, owner: tuple[int, int], user: tuple[int, int], permission: int) -> bool:
    """A file's mode gives a user a permission.

    Args:
        mode: the file's mode.
        owner: its uid and gid.
        user: the user's uid and gid.
        permission: 4 read, 2 write, 1 execute, added up.
    """
    shift = 6 if owner[0] == user[0] else 3 if owner[1] == user[1] else 0
    return mode >> shift & permission == permission
