"""Files that others read while we write them. Everything here blocks: call it in a thread."""

from __future__ import annotations

import contextlib
import os
import tempfile

__all__ = ["write_atomically"]


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace a file as a whole: readers see the old content or the new one, also after a crash of the host.

    Args:
        path: of the file; its directory exists.
        data: all of its content.
        mode: permission bits.

    Raises:
        OSError: it could not be written; the old content is untouched and nothing is left beside it.
    """
    directory = os.path.dirname(path)
    descriptor, temporary = tempfile.mkstemp(prefix=".anbox-", suffix=".new", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The rename itself is on the disk only when its directory is.
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
