"""What of the host decides how LXC is used: control groups, capabilities, file systems, LXC's version."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable

import attrs

from anbox_tw.container.commands import find_tool

__all__ = ["HostFacts", "cgroup_directories", "cgroup_layout", "look_at_host", "parse_lxc_version"]

CAP_SYS_RESOURCE = 24  # include/uapi/linux/capability.h
CAP_SYS_ADMIN = 21
CAP_NET_ADMIN = 12
CAP_MKNOD = 27
NEEDED_CAPABILITIES = {"CAP_SYS_ADMIN": CAP_SYS_ADMIN, "CAP_NET_ADMIN": CAP_NET_ADMIN}

SECCOMP_PROFILE = "/usr/share/lxc/config/common.seccomp"
OLDEST_LXC = (4, 0)
"""The first that has lxc.cgroup.dir.*; Debian 12 has 5.0.2, Ubuntu 24.04 has 5.0.3."""

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_OCTAL = re.compile(r"\\([0-7]{3})")


def parse_lxc_version(text: str) -> tuple[int, int, int] | None:
    """What ``lxc-start --version`` prints, as numbers; ``None`` if it is none."""
    found = _VERSION.search(text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def _cgroup_mounts(proc: str) -> list[tuple[str, str, frozenset[str]]]:
    """(mount point, ``cgroup`` or ``cgroup2``, controllers) of each hierarchy that is mounted."""
    found = []
    try:
        with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    for line in lines:
        fields = line.split(" ")
        try:
            dash = fields.index("-", 6)
            kind, options = fields[dash + 1], fields[dash + 3]
        except (ValueError, IndexError):
            continue
        if kind in ("cgroup", "cgroup2"):
            target = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
            found.append((target, kind, frozenset(options.split(","))))
    return found


def cgroup_layout(proc: str = "/proc") -> str:
    """Which keys the devices controller has: ``v1``, ``v2``, or empty if there is no controller."""
    mounts = _cgroup_mounts(proc)
    if any(kind == "cgroup" and "devices" in options for _, kind, options in mounts):
        return "v1"
    kinds = {kind for _, kind, _ in mounts}
    # On a hybrid host without v1's controller, eBPF programs cannot be attached to LXC's groups either.
    return "v2" if kinds == {"cgroup2"} else ""


def _memberships(proc: str, process: str) -> set[str]:
    try:
        with open(f"{proc}/{process}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return {line.rstrip("\n").split(":", 2)[2] for line in file if line.count(":") >= 2}
    except OSError:
        return set()


def cgroup_directories(name: str, proc: str = "/proc") -> list[str]:
    """Directories of a control group in all hierarchies, wherever LXC may have put it.

    LXC puts it below the group of process 1, or below its own when it is told to be relative.

    Args:
        name: of the group, relative.
        proc: where procfs is.
    """
    bases = {"/"}
    for process in ("1", "self"):
        for base in _memberships(proc, process):
            bases.add(base)
            bases.add(re.sub(r"/init\.scope$", "", base) or "/")
    found = []
    for target, _, _ in _cgroup_mounts(proc):
        for base in sorted(bases):
            path = os.path.normpath(f"{target}/{base}/{name}")
            if path not in found and os.path.isdir(path):
                found.append(path)
    return found


@attrs.frozen
class HostFacts:
    """What was found.

    Attributes:
        euid: our effective user.
        capabilities: our effective capabilities, one bit each.
        layout: `cgroup_layout`.
        nice_limit: RLIMIT_NICE can be set to 1.
        seccomp_profile: LXC's filter, or empty.
        lxc_start: path of the tool, or ``None``.
        overlay: the kernel has overlayfs.
        filesystems: names of the file systems that the kernel has now; modules may add more.
    """

    euid: int
    capabilities: int
    layout: str
    nice_limit: bool
    seccomp_profile: str
    lxc_start: str | None
    overlay: bool
    filesystems: frozenset[str] = frozenset()

    def has(self, capability: int) -> bool:
        """We have a capability, by its number."""
        return bool(self.capabilities >> capability & 1)


def _capabilities(proc: str) -> int:
    try:
        with open(f"{proc}/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return int(line.split()[1], 16)
    except (OSError, ValueError, IndexError):
        pass
    return 0


def look_at_host(
    proc: str = "/proc", *, find: Callable[[str], str | None] = find_tool, seccomp: str = SECCOMP_PROFILE
) -> HostFacts:
    """Look, and change nothing."""
    capabilities = _capabilities(proc)
    try:
        with open(f"{proc}/filesystems", encoding="ascii", errors="replace") as file:
            filesystems = frozenset(line.split()[-1] for line in file if line.strip())
    except OSError:
        filesystems = frozenset()
    _, hard = resource.getrlimit(resource.RLIMIT_NICE)
    may_raise = bool(capabilities >> CAP_SYS_RESOURCE & 1)
    return HostFacts(
        euid=os.geteuid(),
        capabilities=capabilities,
        layout=cgroup_layout(proc),
        nice_limit=may_raise or hard == resource.RLIM_INFINITY or hard >= 1,
        seccomp_profile=seccomp if os.path.isfile(seccomp) else "",
        lxc_start=find("lxc-start"),
        overlay="overlay" in filesystems,
        filesystems=filesystems,
    )
