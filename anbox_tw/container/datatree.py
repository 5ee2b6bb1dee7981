"""The part of an instance's data directory that its container sees, and how to make it safely.

The container's guest can write to ``data``, so what lies in there is hostile: a symbolic link where a
directory should be must not lead a manager that is root to another place. Everything here walks from
an open directory, one name at a time, and follows no link below the data path.
"""

from __future__ import annotations

import errno
import os
import stat

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.spec import ContainerSpec

__all__ = ["DATA_TREE", "ensure_data_tree"]

DATA_TREE = (
    # path below data_path, mode; the modes are those of Android's init.rc
    ("data", 0o771),
    ("data/local", 0o751),
    ("data/local/tmp", 0o771),
    ("data/media", 0o770),
    ("data/media/0", 0o770),
    ("cache", 0o770),
)


def _error(path: str, why: str) -> DiagnosedError:
    return DiagnosedError.of(
        "ANBOX-C004",
        f"the data path cannot be used: {path}",
        why,
        "make it writable, or choose another --data-path",
    )


def _step(parent: int, name: str, path: str, mode: int, owner: tuple[int, int] | None) -> int:
    """Open the directory ``name`` in ``parent``, made if it is missing."""
    made = False
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        made = True
    except FileExistsError:
        pass
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        status = os.fstat(descriptor)
        # One that root made, for example by unpacking a backup, is taken over as the original did.
        if owner is not None and (made or (status.st_uid == 0 and owner[0] != 0)):
            os.fchown(descriptor, *owner)
        if made:
            os.fchmod(descriptor, mode)
        elif not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def ensure_data_tree(spec: ContainerSpec, uid: int, gid: int) -> None:
    """Make what is missing of the data path: the tree of `DATA_TREE`, ``logs`` and ``state``.

    What is made here is the user's data and stays when the container is gone, so it is not written to
    the journal.

    Args:
        spec: names the data path.
        uid: the host's uid of the container's root, who gets the tree; used when we are root.
        gid: the same for its group.

    Raises:
        DiagnosedError: something of it cannot be made or is not a directory (``ANBOX-C004``).
    """
    owner = (uid, gid) if os.geteuid() == 0 else None
    path = spec.data_path
    try:
        os.makedirs(path, 0o755, exist_ok=True)
        base = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name, mode in (("logs", 0o750), ("state", 0o700)):
                path = f"{spec.data_path}/{name}"
                os.close(_step(base, name, path, mode, None))
            for relative, mode in DATA_TREE:
                current = os.dup(base)
                for name in relative.split("/"):
                    path = f"{spec.data_path}/{relative}"
                    try:
                        deeper = _step(current, name, path, mode, owner)
                    finally:
                        os.close(current)
                    current = deeper
                os.close(current)
        finally:
            os.close(base)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiagnosedError.of("ANBOX-C023", f"{path} cannot be made", str(error)) from error
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _error(path, "it is not a directory, or a symbolic link leads there") from error
        raise _error(path, error.strerror or str(error)) from error
