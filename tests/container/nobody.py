"""Runs a command as the user nobody: ``python -m tests.container.nobody DIRECTORY COMMAND...``, by root.

The interpreter and this checkout may lie below a directory that only root may enter (``/root``). Then, in
a mount namespace of our own, that directory is covered by one that shows just these.
"""

from __future__ import annotations

import os
import stat
import sys

from anbox_tw.container import _syscalls as sys_
from tests.support import REPOSITORY

NOBODY = 65534


def hidden_ancestor(path: str) -> str | None:
    """The outermost directory above ``path`` that others may not enter."""
    current = "/"
    for part in path.strip("/").split("/"):
        current = os.path.join(current, part)
        if os.path.isdir(current) and not os.stat(current).st_mode & stat.S_IXOTH:
            return current
    return None


def needed() -> list[str]:
    paths = {sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix), str(REPOSITORY)}
    return sorted(paths, key=len)


def uncover() -> None:
    """Make what we need visible to everybody, in this process's mount namespace only."""
    covered = {path: root for path in needed() if (root := hidden_ancestor(path))}
    if not covered:
        return
    sys_.unshare(sys_.CLONE_NEWNS)
    sys_.mount("none", "/", "", sys_.MS_REC | sys_.MS_PRIVATE)
    opened = {path: os.open(path, os.O_PATH) for path in covered}
    for root in sorted(set(covered.values())):
        sys_.mount("shown", root, "tmpfs", sys_.MS_NOSUID, "mode=755")
    for path, descriptor in opened.items():
        if os.path.exists(os.path.join(path, "bin")) or os.path.exists(os.path.join(path, "anbox_tw")):
            continue  # it lies in one that is shown already
        os.makedirs(path, exist_ok=True)
        sys_.mount(f"/proc/self/fd/{descriptor}", path, "", 4096 | sys_.MS_REC)
        os.close(descriptor)


def main() -> None:
    directory, *command = sys.argv[1:]
    uncover()
    os.chdir(directory)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    environment = {**os.environ, "HOME": directory, "USER": "nobody", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("XDG_RUNTIME_DIR", None)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    main()
