"""What the lxc backend changes on the host besides mounts and directories, and how it is undone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import UndoContext, UndoKind, UndoKinds
from anbox_tw.container.lxc_host import cgroup_directories
from anbox_tw.container.network import NETWORK_KIND
from anbox_tw.container.undo import INTERFACE_NAME, default_kinds

__all__ = ["add_lxc_kinds", "lxc_kinds"]

_CGROUP_NAME = re.compile(r"anbox\.[a-z]+\.[A-Za-z0-9_.-]{1,80}")
LXC_LOCKS = "/run/lxc/lock"
"""Where liblxc keeps a lock file for each container it has ever heard of, and never deletes it."""


async def _undo_veth(args: Mapping[str, Any], context: UndoContext) -> None:
    name = str(args.get("name"))
    if not INTERFACE_NAME.fullmatch(name) or name in (".", ".."):
        raise DiagnosedError.of("ANBOX-C017", f"{name!r} is not an interface of ours")
    # Asked by netlink: a mounted /sys may show another network namespace.
    result = await context.commands.run(["ip", "link", "delete", "dev", name])
    if not result.ok and (await context.commands.run(["ip", "link", "show", "dev", name])).ok:
        result.require("ANBOX-C017", f"the interface {name} could not be deleted")


async def _undo_cgroups(args: Mapping[str, Any], context: UndoContext) -> None:
    """Kill what is in the container's control groups, and remove them in every hierarchy."""
    kind = default_kinds().get("cgroup")
    names = args.get("names")
    if kind is None or not isinstance(names, list):
        raise DiagnosedError.of("ANBOX-C017", "the journal entry names no control groups")
    for name in names:
        if not isinstance(name, str) or not _CGROUP_NAME.fullmatch(name):
            raise DiagnosedError.of("ANBOX-C017", f"{name!r} is not a control group of ours")
        for path in cgroup_directories(name, context.proc):
            await kind.undo({"path": path}, context)


async def _undo_lock_file(args: Mapping[str, Any], context: UndoContext) -> None:
    lxcpath, name = args.get("lxcpath"), args.get("name")
    if not isinstance(lxcpath, str) or not isinstance(name, str) or ".." in f"{lxcpath}/{name}".split("/"):
        raise DiagnosedError.of("ANBOX-C017", "the journal entry names no container")
    directory = LXC_LOCKS + lxcpath
    try:
        os.unlink(f"{directory}/.{name}")
    except (FileNotFoundError, NotADirectoryError):
        pass
    while directory.startswith("/run/lxc"):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError:
            break  # other containers' locks are in it
        directory = os.path.dirname(directory)


def lxc_kinds() -> list[UndoKind]:
    """The kinds that a registry needs before it can undo what the lxc backend has made."""
    return [
        NETWORK_KIND,
        UndoKind(
            "veth",
            _undo_veth,
            lambda args: f"the network interface {args.get('name')}",
            lambda args: f"ip link delete {args.get('name')}",
        ),
        UndoKind("lxc_cgroups", _undo_cgroups, lambda args: f"the control groups {args.get('names')}"),
        UndoKind("lxc_lock_file", _undo_lock_file, lambda args: f"LXC's lock file of {args.get('name')}"),
    ]


def add_lxc_kinds(kinds: UndoKinds) -> UndoKinds:
    """Register those kinds that are not there yet; gives the registry back."""
    for kind in lxc_kinds():
        if kinds.get(kind.name) is None:
            kinds.register(kind)
    return kinds
