"""What Android programs look for and a Linux rootfs has not, put into the overlay of a ``host`` rootfs.

``/system/bin/sh`` for scripts, and the user ``shell`` that ``adb unroot`` becomes. The container's root cannot make these
itself: in an overlay over the host's ``/`` the directories belong to a user that is not mapped. All of it is in the
run's own upper directory and goes with it.
"""

from __future__ import annotations

import os
import stat

__all__ = ["SHELL_ID", "add_android"]

SHELL_ID = 2000
"""``AID_SHELL``, user and group."""

MAX_TABLE_BYTES = 4 << 20
"""Of ``/etc/passwd``: a larger one is left alone."""

DIRECTORY_MODE = 0o755

_SHELLS = ("/bin/mksh", "/bin/bash", "/bin/sh")


def add_android(root: str) -> list[str]:
    """Add what is missing below ``root``, which is an overlay of the run's own.

    Returns:
        Notes on what could not be added; the container runs without.
    """
    notes = []
    for what, add in (
        ("/system/bin/sh", _add_system),
        (
            "the user shell in /etc/passwd",
            lambda root: _add_line(root, "passwd", "shell:x:2000:2000:Android shell:/:/bin/sh"),
        ),
        ("the group shell in /etc/group", lambda root: _add_line(root, "group", "shell:x:2000:")),
    ):
        try:
            add(root)
        except OSError as error:
            notes.append(f"{what} is missing: {error.strerror}")
    return notes


def _add_system(root: str) -> None:
    if os.path.lexists(f"{root}/system"):
        return
    shell = next((path for path in _SHELLS if os.access(path, os.X_OK)), _SHELLS[-1])
    for path in ("system", "system/bin"):
        os.mkdir(f"{root}/{path}", DIRECTORY_MODE)
        # whatever the umask is
        os.chmod(f"{root}/{path}", DIRECTORY_MODE)
    os.symlink(shell, f"{root}/system/bin/sh")


def _add_line(root: str, table: str, line: str) -> None:
    name = line.partition(":")[0]
    # Never through a symlink: an absolute one would lead out of the overlay, to the host's own file.
    folder = os.open(f"{root}/etc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        reading = os.open(table, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with open(reading, "rb") as file:
            status = os.fstat(reading)
            text = file.read(MAX_TABLE_BYTES + 1)
        if not stat.S_ISREG(status.st_mode) or len(text) > MAX_TABLE_BYTES:
            return
        fields = [entry.split(b":") for entry in text.splitlines()]
        if any(entry[0] == name.encode() or entry[2:3] == [b"2000"] for entry in fields):
            return
        writing = os.open(table, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with open(writing, "ab") as file:
            file.write((b"" if text.endswith(b"\n") or not text else b"\n") + line.encode() + b"\n")
    finally:
        os.close(folder)
