"""Device nodes for containers: how they are made, and which are never given.

Nodes of the host are never shared by default: the container gets nodes of its own, in the
instance's run directory, with the owner and mode that Android expects. Where nodes cannot be made (no
CAP_MKNOD), the host's own node is bound.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Callable
from typing import Any

import attrs

from anbox_tw.container._lxc_config import DeviceRule
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.idmap import IdMap
from anbox_tw.container.journal import Journal

__all__ = [
    "BinderDevice",
    "DeviceNode",
    "allocate_binder",
    "check_number",
    "device_rules",
    "make_node",
]

ANDROID_DEVICES: dict[str, tuple[str, int]] = {
    "tun": ("net/tun", 0o660),
    "ashmem": ("ashmem", 0o666),
    "fuse": ("fuse", 0o666),
}
"""Name in the container's ``/dev``: the host's node and its mode (``src/anbox/container/lxc_container.cpp``)."""

FORBIDDEN = frozenset({(1, 1), (1, 2), (1, 4), (1, 11), (1, 12)})
"""mem, kmem, port, kmsg and oldmem: with them a container is the host (Documentation/admin-guide/devices.txt)."""

BINDER_CTL_ADD = 0xC1086201  # _IOWR('b', 1, struct binderfs_device), include/uapi/linux/android/binderfs.h
BINDERFS_DEVICE = struct.Struct("256sII")  # its name, major and minor
MAX_BINDER_NODES = 4096  # binderfs itself stops at 1 << 20; nobody runs so many instances


@attrs.frozen
class DeviceNode:
    """A device as the container sees it.

    Attributes:
        target: path in the container, relative to its root.
        source: path on the host of the node that is bound there.
        number: device number.
        note: what differs from what was asked for, or an empty string.
    """

    target: str
    source: str
    number: int
    note: str = ""

    @property
    def rule(self) -> DeviceRule:
        """What the devices controller must let through."""
        return DeviceRule("c", os.major(self.number), os.minor(self.number))


def check_number(path: str, mode: int, number: int) -> None:
    """Refuse what no container gets, whoever asks; who may ask for which of the others is decided elsewhere.

    Raises:
        DiagnosedError: it is a disk, or the host's memory, or no device at all (``ANBOX-C009``).
    """
    if stat.S_ISCHR(mode) and (os.major(number), os.minor(number)) not in FORBIDDEN:
        return
    why = "it is a disk" if stat.S_ISBLK(mode) else "it is the host's memory" if stat.S_ISCHR(mode) else ""
    raise DiagnosedError.of(
        "ANBOX-C009",
        f"{path} is not given to containers" if why else f"{path} is not a device node",
        why,
        f"name a character device; check `ls -l {path}`",
    )


def make_node(
    path: str,
    target: str,
    mode: int,
    directory: str,
    idmap: IdMap,
    journal: Journal,
    *,
    dev: str = "/dev",
    mknod: Callable[..., None] = os.mknod,
) -> DeviceNode | None:
    """Make a node of the container's own for a device of the host.

    Args:
        path: the host's node, below ``/dev``.
        target: path in the container, relative to its root.
        mode: permission bits of the node.
        directory: where to make it; it goes away with the run.
        idmap: the owner is the host's, shifted by it.
        journal: where the node is written down.
        dev: where the host's nodes really are.
        mknod: makes the node.

    Returns:
        The node, or ``None`` if the host has no such device.

    Raises:
        DiagnosedError: the path is not a device (``ANBOX-C009``).
    """
    actual = dev + path.removeprefix("/dev")
    try:
        status = os.stat(actual)
    except OSError:
        return None
    check_number(path, status.st_mode, status.st_rdev)
    node = f"{directory}/{path.removeprefix('/dev/').replace('/', '-')}"
    entry = journal.record("node", path=node)
    try:
        # os.makedev splits the minor number over both halves as the kernel does.
        device = os.makedev(os.major(status.st_rdev), os.minor(status.st_rdev))
        mknod(node, stat.S_IFCHR | 0o600, device)
        os.chown(node, idmap.host_uid(0), idmap.host_gid(0))
        os.chmod(node, mode)
    except PermissionError as error:
        journal.done(entry)
        note = f"{path} is the host's own node, with its mode: {error.strerror}"
        return DeviceNode(target, actual, status.st_rdev, note)
    return DeviceNode(target, node, status.st_rdev)


def device_rules(nodes: list[DeviceNode]) -> tuple[DeviceRule, ...]:
    """What the container may open: its standard devices, pseudo terminals, and ``nodes``."""
    rules = [
        *(DeviceRule("c", 1, minor) for minor in (3, 5, 7, 8, 9)),  # null zero full random urandom
        *(DeviceRule("c", 5, minor) for minor in (0, 1, 2)),  # tty console ptmx
        DeviceRule("c", 136, None),  # pts/*
        *(node.rule for node in nodes),
    ]
    return tuple(dict.fromkeys(rules))


@attrs.frozen
class BinderDevice:
    """A binder node of one container's own.

    Attributes:
        path: the node in binderfs.
        number: device number.
    """

    path: str
    number: int


def allocate_binder(
    control: str,
    journal: Journal,
    *,
    idmap: IdMap,
    ioctl: Callable[[int, int, Any], Any] = fcntl.ioctl,
) -> BinderDevice | None:
    """Make a new node in binderfs.

    Args:
        control: its control device, usually ``/dev/binderfs/binder-control``.
        journal: where the node is written down.
        idmap: the owner is the container's root.
        ioctl: makes it.

    Returns:
        The node, or ``None`` where there is no binderfs.

    Raises:
        DiagnosedError: binderfs refuses (``ANBOX-C009``).
    """
    try:
        descriptor = os.open(control, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DiagnosedError.of("ANBOX-C009", f"{control} cannot be opened", str(error.strerror)) from error
    directory = os.path.dirname(control)
    try:
        for number in range(MAX_BINDER_NODES):
            path = f"{directory}/binder{number}"
            if os.path.lexists(path):
                continue
            entry = journal.record("node", path=path)
            request = bytearray(BINDERFS_DEVICE.pack(f"binder{number}".encode(), 0, 0))
            try:
                ioctl(descriptor, BINDER_CTL_ADD, request)
            except FileExistsError:
                journal.done(entry)  # another manager was quicker: it is not ours to delete
                continue
            _, major, minor = BINDERFS_DEVICE.unpack(request)
            os.chown(path, idmap.host_uid(0), idmap.host_gid(0))
            os.chmod(path, 0o666)  # noqa: S103  # every process of Android talks over binder
            return BinderDevice(path, os.makedev(major, minor))
    except OSError as error:
        raise DiagnosedError.of("ANBOX-C009", "binderfs gives no new node", str(error.strerror)) from error
    finally:
        os.close(descriptor)
    raise DiagnosedError.of("ANBOX-C009", "binderfs is full", f"it has {MAX_BINDER_NODES} nodes of ours")
