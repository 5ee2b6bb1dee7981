"""The Android-like tree of the guest, and whether this is its first boot."""

from __future__ import annotations

import os

from anbox_tw.errors import ConfigError

__all__ = ["INITIALIZED", "mark_initialized", "prepare_tree"]

TREE = (
    # path, mode: as Android's init.rc makes them
    ("data", 0o771),
    ("data/local", 0o751),
    ("data/local/tmp", 0o771),
    ("data/app", 0o771),
    ("data/media", 0o770),
    ("data/media/0", 0o770),
)

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


def mark_initialized(root: str) -> None:
    """The next boot is not the first one.

    Raises:
        OSError: the mark cannot be made.
    """
    with open(os.path.join(root, INITIALIZED), "w", encoding="ascii"):
        pass
