"""The container's side of the launcher, run by root in a process that reports instead of becoming init.

``python -m tests.container.inside build JSON``: builds a root, but stays outside of it, and prints what is in
it. ``... landlock DIRECTORY...``: gives up writing outside of the directories, and prints what works.
``... privileges``: gives up what the launcher does, and prints what is left. ``... enter``: enters
namespaces, and prints which.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from anbox_tw.container import _landlock, _launch, _namespaces
from anbox_tw.container import _syscalls as sys_
from tests.support import REPOSITORY


def build(plan: dict[str, Any]) -> Any:
    sys_.unshare(sys_.CLONE_NEWNS | sys_.CLONE_NEWUTS | sys_.CLONE_NEWNET)
    here = os.open(".", os.O_PATH)
    kept: dict[str, Callable[..., Any]] = {}
    # All but the last step: this process must find its way back to write what it saw.
    for name in ("pivot_root", "unmount"):
        kept[name] = getattr(sys_, name)
        setattr(sys_, name, lambda *arguments: None)
    try:
        notes = _namespaces.build_root(plan, ["mount", "uts", "net"])
    except _namespaces.Failed as error:
        for staging in _namespaces.STAGING:
            try:
                kept["unmount"](staging, sys_.MNT_DETACH)
            except OSError:
                continue
        return {"failed": [error.code, error.what, error.why]}
    except _namespaces.Refused as error:
        return {"refused": str(error)}
    finally:
        # What is mounted over may be where we are, or where coverage puts its data.
        os.fchdir(here)
    root = next(path for path in _namespaces.STAGING if os.path.isdir(path))
    found: dict[str, Any] = {}
    for name in plan["look"]:
        path = f"{root}/{name}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK) if os.path.isfile(path) else -1
            os.close(descriptor) if descriptor >= 0 else None
            found[name] = sorted(os.listdir(path)) if os.path.isdir(path) else "writable"
        except OSError as error:
            found[name] = error.strerror
    os.fchdir(here)
    kept["unmount"](root, sys_.MNT_DETACH)
    return {"notes": notes, "found": found, "hostname": socket.gethostname()}


def landlock(*directories: str) -> Any:
    sys_.no_new_privileges()
    # The checkout is where coverage puts its data.
    allowed = [*directories, "/nonexistent", "/dev/null", str(REPOSITORY)]
    _landlock.restrict_writes(_landlock.abi(), allowed)
    found = {}
    for directory in (*directories, "/var/tmp"):
        try:
            with open(f"{directory}/x", "w"):
                found[directory] = True
        except OSError:
            found[directory] = False
    return found


def privileges() -> Any:
    _namespaces.finish_privileges(own_network=True)
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {name: status[name] for name in ("CapEff", "CapBnd", "NoNewPrivs")}


def enter(kind: str) -> Any:
    kept = sys_.unshare

    def refuse(flags: int) -> None:
        if kind == "nothing" or (kind == "required" and flags != sum(_namespaces.REQUIRED.values())):
            raise PermissionError(1, "Operation not permitted")
        kept(flags)

    sys_.unshare = refuse
    try:
        return _namespaces.enter_namespaces(own_network=kind != "host network")
    except _namespaces.Refused as error:
        return str(error)


def init(*argv: str) -> Any:
    output = os.memfd_create("output")
    plan = {"argv": list(argv), "environment": {"PATH": "/bin"}, "directory": "/"}
    try:
        pid = _launch._start_init(plan, output)
    except _namespaces.Failed as error:
        return [error.code, error.why]
    return [_launch._status(os.waitpid(pid, 0)[1]), os.pread(output, 100, 0).decode()]


if __name__ == "__main__":
    actions: dict[str, Callable[..., Any]] = {
        "landlock": landlock,
        "privileges": privileges,
        "enter": enter,
        "init": init,
    }
    action = actions.get(sys.argv[1])
    result = build(json.loads(sys.argv[2])) if action is None else action(*sys.argv[2:])
    sys.stdout.write(json.dumps(result))
