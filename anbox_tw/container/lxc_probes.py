"""What ``anbox doctor`` asks the host about the lxc backend; nothing is changed."""

from __future__ import annotations

import os

from anbox_tw.container.commands import Commands, find_tool
from anbox_tw.container.diagnosis import DiagnosedError, Probe
from anbox_tw.container.lxc_host import NEEDED_CAPABILITIES, OLDEST_LXC, HostFacts, parse_lxc_version

__all__ = ["probe_host"]


async def probe_host(commands: Commands, facts: HostFacts, *, dev: str = "/dev") -> list[Probe]:
    """Ask about all that the backend uses.

    Args:
        commands: asks LXC for its version.
        facts: of the host.
        dev: where device nodes are.
    """
    root = facts.euid == 0
    missing = [name for name, number in NEEDED_CAPABILITIES.items() if not facts.has(number)]
    probes = [
        Probe(
            "root",
            root,
            f"uid {facts.euid}",
            "" if root else "start the manager as root, or use --backend process",
        ),
        Probe(
            "capabilities",
            not missing,
            "all that are needed" if not missing else f"without {', '.join(missing)}",
            "" if not missing else "give them to the container that the manager runs in",
        ),
        await _lxc(commands, facts),
    ]
    for tool, package, required in (
        ("ip", "iproute2", True),
        ("mount", "mount", True),
        ("nft", "nftables", True),
        ("setpriv", "util-linux", False),
        ("squashfuse", "squashfuse", False),
    ):
        path = find_tool(tool)
        cure = "" if path else f"apt install {package}"
        probes.append(Probe(tool, path is not None, path or "not found", cure, required))
    loop = os.path.exists(f"{dev}/loop-control")
    detail, cure = (
        ("there", "") if loop else ("/dev/loop-control is missing", "modprobe loop, or install squashfuse")
    )
    probes.append(Probe("loop devices", loop, detail, cure, False))
    probes.append(
        Probe(
            "overlayfs",
            facts.overlay,
            "there" if facts.overlay else "the kernel does not list it",
            "" if facts.overlay else "modprobe overlay; without it only complete images can be the rootfs",
            False,
        )
    )
    probes.append(
        Probe(
            "control groups",
            bool(facts.layout),
            f"devices by {facts.layout}" if facts.layout else "no controller for devices",
            "" if facts.layout else "mount cgroup2 on /sys/fs/cgroup",
            False,
        )
    )
    probes.append(
        Probe(
            "nice limit",
            facts.nice_limit,
            "can be set" if facts.nice_limit else "no CAP_SYS_RESOURCE",
            "" if facts.nice_limit else "harmless: Android's threads keep the usual priority",
            False,
        )
    )
    return probes


async def _lxc(commands: Commands, facts: HostFacts) -> Probe:
    if facts.lxc_start is None:
        return Probe("LXC", False, "lxc-start was not found", "apt install lxc")
    try:
        result = await commands.run([facts.lxc_start, "--version"], timeout=10.0)
    except DiagnosedError as error:
        return Probe("LXC", False, error.cause, error.cure)
    version = parse_lxc_version(result.stdout.decode("ascii", "replace"))
    if version is None:
        return Probe("LXC", False, f"lxc-start --version said {result.error_text!r}", "install LXC again")
    text = ".".join(map(str, version))
    if version[:2] < OLDEST_LXC:
        oldest = ".".join(map(str, OLDEST_LXC))
        return Probe("LXC", False, f"version {text}", f"install LXC {oldest} or newer")
    return Probe("LXC", True, f"version {text}, {facts.lxc_start}")
