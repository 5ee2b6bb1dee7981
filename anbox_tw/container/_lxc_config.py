"""The text of an LXC configuration file; no I/O.

The keys are those of Anbox (``src/anbox/container/lxc_container.cpp``), of LXC 3 and newer, and what
both kinds of control groups need. ``lxc.container.conf(5)`` describes each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from anbox_tw.container.idmap import IdMap
from anbox_tw.errors import ConfigError

__all__ = ["DeviceRule", "LxcConfig", "MountEntry", "NetworkInterface"]

PRIVILEGED_CAP_DROP = ("mac_admin", "mac_override", "sys_module", "sys_rawio", "sys_time")
"""What LXC's own ``common.conf`` takes from containers whose root is the host's."""


def _value(text: str) -> str:
    """A value that fits on one line of the file.

    Raises:
        ConfigError: it does not.
    """
    if "\n" in text or "\r" in text or "\0" in text:
        raise ConfigError(
            f"{text[:60]!r} cannot be given to LXC", "leave line breaks out of it", code="ANBOX-C001"
        )
    return text


def _fstab(path: str) -> str:
    """A path as a field of fstab(5)."""
    return re.sub(r"[\s\\#]", lambda found: f"\\{ord(found[0]):03o}", _value(path))


@attrs.frozen
class MountEntry:
    """One line of the container's fstab.

    Attributes:
        source: path on the host, or the name of a virtual file system.
        target: path in the container, relative to its root.
        directory: it is a directory; otherwise a file, socket or device.
        read_only: writing is refused.
        recursive: with all that is mounted below the source.
        optional: a failure does not matter.
        filesystem: ``none`` for a bind mount.
        options: more options of mount(8).
    """

    source: str
    target: str
    directory: bool = False
    read_only: bool = False
    recursive: bool = False
    optional: bool = False
    filesystem: str = "none"
    options: tuple[str, ...] = ()

    def line(self) -> str:
        """The value of ``lxc.mount.entry``."""
        options = list(self.options)
        if self.filesystem == "none":
            options.insert(0, "rbind" if self.recursive else "bind")
        if self.read_only:
            options.append("ro")
        options.append("create=dir" if self.directory else "create=file")
        if self.optional:
            options.append("optional")
        return f"{_fstab(self.source)} {_fstab(self.target)} {self.filesystem} {','.join(options)} 0 0"


@attrs.frozen
class DeviceRule:
    """A device the container may use.

    Attributes:
        kind: ``c`` or ``b``.
        major: major number, or ``None`` for all.
        minor: minor number, or ``None`` for all.
    """

    kind: str
    major: int | None
    minor: int | None

    def __str__(self) -> str:
        """As the devices controller writes it."""
        major = "*" if self.major is None else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} rwm"


@attrs.frozen
class NetworkInterface:
    """The container's ``eth0``.

    Attributes:
        host_name: name of the host's end of the veth pair.
        bridge: the bridge that it joins.
        address: IPv4 address with prefix length.
        gateway: IPv4 address of the gateway, or ``None``.
        attach_command: command that joins the bridge, where LXC cannot see it itself; it gets more arguments
            from LXC, which it must ignore.
    """

    host_name: str
    bridge: str
    address: str
    gateway: str | None = None
    attach_command: str = ""


@attrs.frozen
class LxcConfig:
    """All that goes into the file.

    Attributes:
        rootfs: directory of the mounted root file system.
        init: command and arguments.
        log_file: LXC's own log.
        console_log: what the container's init prints.
        hostname: the container's host name.
        environment: of init.
        idmap: empty for a privileged container.
        mounts: bind mounts and others, in order.
        network: the interface; ``None`` gives loopback only.
        share_network: use the host's network instead.
        devices: what the devices controller lets through; empty leaves it alone.
        cgroup_layout: ``v1``, ``v2`` or empty: which keys the controller has.
        monitor_cgroup: name of the control group of LXC's own process.
        payload_cgroup: name of the control group of the container.
        nice_limit: set RLIMIT_NICE, for which CAP_SYS_RESOURCE is needed.
        seccomp_profile: path of LXC's system call filter, or empty.
        start_hook: command that the host runs when all is set up, immediately before init.
        cap_drop: capabilities taken from the container, in LXC's spelling.
        raw: more lines, such as a snap's ``lxc.namespace.keep``.
    """

    rootfs: str
    init: tuple[str, ...]
    log_file: str
    console_log: str
    hostname: str = "anbox"
    environment: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    idmap: IdMap = IdMap()
    mounts: tuple[MountEntry, ...] = ()
    network: NetworkInterface | None = None
    share_network: bool = False
    devices: tuple[DeviceRule, ...] = ()
    cgroup_layout: str = ""
    monitor_cgroup: str = ""
    payload_cgroup: str = ""
    nice_limit: bool = False
    seccomp_profile: str = ""
    start_hook: str = ""
    cap_drop: tuple[str, ...] = ("wake_alarm",)
    raw: tuple[tuple[str, str], ...] = ()

    def items(self) -> list[tuple[str, str]]:
        """Keys and values in the order of the file.

        Raises:
            ConfigError: a value cannot be written.
        """
        items = [
            ("lxc.uts.name", self.hostname),
            ("lxc.rootfs.path", f"dir:{self.rootfs}"),
            ("lxc.mount.auto", f"proc:mixed {'' if self._borrows_sys() else 'sys:mixed '}cgroup:mixed"),
            ("lxc.autodev", "1"),
            ("lxc.pty.max", "1024"),
            ("lxc.tty.max", "0"),
            ("lxc.tty.dir", ""),
            # Android's init (since 9) and ours end on it; LXC's default is a signal that neither knows.
            ("lxc.signal.halt", "SIGTERM"),
            ("lxc.apparmor.profile", "unconfined"),
            ("lxc.log.level", "0"),
            ("lxc.log.file", self.log_file),
            ("lxc.console.logfile", self.console_log),
            ("lxc.console.rotate", "1"),
            ("lxc.console.size", "1MB"),
        ]
        if not any(re.search(r"\s", each) or not each for each in self.init):
            # LXC splits it at blanks and knows no quotes, so lxc-start gets the command as arguments as well.
            items.append(("lxc.init.cmd", " ".join(self.init)))
        items += [("lxc.environment", f"{name}={value}") for name, value in self.environment.items()]
        drop = self.cap_drop if self.idmap else (*self.cap_drop, *PRIVILEGED_CAP_DROP)
        items.append(("lxc.cap.drop", " ".join(drop)))
        if self.seccomp_profile:
            items.append(("lxc.seccomp.profile", self.seccomp_profile))
        if self.nice_limit:
            items.append(("lxc.prlimit.nice", "1"))
        items += self._cgroup_items() + self._network_items()
        for letter, ranges in (("u", self.idmap.uids), ("g", self.idmap.gids)):
            items += [("lxc.idmap", f"{letter} {r.container} {r.host} {r.count}") for r in ranges]
        if self._borrows_sys():
            sys = MountEntry("/sys", "sys", directory=True, read_only=True, recursive=True, optional=True)
            items.append(("lxc.mount.entry", sys.line()))
        items += [("lxc.mount.entry", mount.line()) for mount in self.mounts]
        if self.start_hook:
            items.append(("lxc.hook.start-host", self.start_hook))
        return items + list(self.raw)

    def _borrows_sys(self) -> bool:
        """sysfs belongs to the network namespace: who only shares one may not mount it."""
        return self.share_network and bool(self.idmap)

    def _cgroup_items(self) -> list[tuple[str, str]]:
        items = []
        if self.monitor_cgroup:
            items.append(("lxc.cgroup.dir.monitor", self.monitor_cgroup))
        if self.payload_cgroup:
            items.append(("lxc.cgroup.dir.container", self.payload_cgroup))
        prefix = {"v1": "lxc.cgroup.devices", "v2": "lxc.cgroup2.devices"}.get(self.cgroup_layout)
        if prefix and self.devices:
            items.append((f"{prefix}.deny", "a"))
            items += [(f"{prefix}.allow", str(rule)) for rule in self.devices]
        return items

    def _network_items(self) -> list[tuple[str, str]]:
        if self.share_network:
            return [("lxc.net.0.type", "none")]
        if self.network is None:
            return [("lxc.net.0.type", "empty")]
        link = self.network
        items = [
            ("lxc.net.0.type", "veth"),
            ("lxc.net.0.flags", "up"),
            ("lxc.net.0.name", "eth0"),
            ("lxc.net.0.veth.pair", link.host_name),
            ("lxc.net.0.ipv4.address", link.address),
        ]
        if link.gateway:
            items.append(("lxc.net.0.ipv4.gateway", link.gateway))
        if link.attach_command:
            items.append(("lxc.net.0.script.up", link.attach_command))
        else:
            items.append(("lxc.net.0.link", link.bridge))
        return items

    def render(self) -> str:
        """The file's text.

        Raises:
            ConfigError: a value cannot be written.
        """
        lines = ["# written by anbox-tw at each start; changes are lost"]
        lines += [f"{key} = {_value(value)}".rstrip() for key, value in self.items()]
        return "\n".join(lines) + "\n"
