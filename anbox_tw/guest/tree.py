"""The Android-like tree of the guest, and whether this is its first boot."""

from __future__ import annotations

import os
import pwd

from twisted.logger import Logger

from anbox_tw.errors import ConfigError

__all__ = ["INITIALIZED", "mark_initialized", "name_shell_user", "prepare_tree"]

_log = Logger()

TREE = (
    # path, mode: as Android's init.rc makes them
    ("data", 0o771),
    ("data/local", 0o751),
    ("data/local/tmp", 0o771),
    ("data/app", 0o771),
    ("data/media", 0o770),
    ("data/media/0", 0o770),
)

SHELL_UID = 2000
"""``AID_SHELL``"""

INITIALIZED = "data/.anbox_initialized"
"""As the original's guest marks that it has booted once with this data."""


def prepare_tree(root: str) -> bool:
    """Make what is missing of the tree.

    ``/sdcard`` is whatever the container brought; where it brought none, it leads to ``/data/media/0``.

    Returns:
        Whether this is the first boot with this data.

    Raises:
        ConfigError: a directory cannot be made.
    """
    try:
        for path, mode in TREE:
            full = os.path.join(root, path)
            if not os.path.isdir(full):
                os.mkdir(full, 0o700)
                os.chmod(full, mode)
        sdcard = os.path.join(root, "sdcard")
        if not os.path.lexists(sdcard):
            os.symlink("data/media/0", sdcard)
    except OSError as error:
        raise ConfigError(
            f"the guest's tree cannot be made: {error}",
            "give the container a data directory that can be written",
        ) from error
    return not os.path.exists(os.path.join(root, INITIALIZED))


def name_shell_user() -> None:
    """Give Android's user 2000 its name in a root that is an overlay: what is written there is the container's own."""
    try:
        pwd.getpwuid(SHELL_UID)
        return
    except KeyError:
        pass
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            ours = any(line.split()[1:3] == ["/", "overlay"] for line in mounts)
        if ours:
            with open("/etc/passwd", "a", encoding="ascii") as passwd:
                passwd.write(f"shell:x:{SHELL_UID}:{SHELL_UID}:Android's shell:/data/local/tmp:/bin/sh\n")
    except OSError as error:
        _log.info("The user {uid} stays without a name: {error}", uid=SHELL_UID, error=error)


def mark_initialized(root: str) -> None:
    """The next boot is not the first one.

    Raises:
        OSError: the mark cannot be made.
    """
    with open(os.path.join(root, INITIALIZED), "w", encoding="ascii"):
        pass
