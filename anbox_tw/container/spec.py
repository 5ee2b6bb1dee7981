"""What a container is to be: immutable values, checked when they are made.

A `ContainerSpec` says everything that a backend needs and nothing about how the backend does it.
Each value is validated by its own class, so whatever holds a spec holds a sound one; bad input
raises `anbox_tw.errors.ConfigError` with its cause and cure.

The fields follow the ``Configuration`` message and the flags of Anbox's container manager
(``src/anbox/container/configuration.h``, ``src/anbox/cmds/container_manager.cpp``).
"""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from anbox_tw.errors import ConfigError
from anbox_tw.network.paths import DEFAULT_INSTANCE, check_instance_name

__all__ = [
    "DEFAULT_INSTANCE",
    "HOST_ROOTFS",
    "BindMount",
    "ContainerSpec",
    "Device",
    "NetworkSpec",
]

HOST_ROOTFS = "host"
"""The value of `ContainerSpec.rootfs` that means: the host's own ``/``, read only."""

PROPERTY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]*")
MAX_PROPERTY_BYTES = 1024  # name and value; Android's own limit is 92 for a value, none for ro.* ones
MAX_PROPERTIES = 256
MAX_BIND_MOUNTS = 256  # a session asks for four
MAX_DEVICES = 64  # a session asks for one
MAX_PATH_BYTES = 4095  # PATH_MAX without its NUL
MAX_ENVIRONMENT = 512
MAX_ENVIRONMENT_BYTES = 128 * 1024  # half of what Linux gives to a process with a small stack limit
MAX_INIT_ARGUMENTS = 256
MAX_ID = 0xFFFF_FFFE  # the highest uid or gid; the next one means "none"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _bad(what: str, cure: str) -> ConfigError:
    return ConfigError(what, cure, code="ANBOX-C001")


def _host_path(value: str) -> str:
    """An absolute, normal path on the host."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise _bad(f"{value!r} is not an absolute path", "give a path that begins with '/'")
    if _CONTROL.search(value) or len(os.fsencode(value)) > MAX_PATH_BYTES:
        raise _bad(
            f"{value[:80]!r} is not a usable path",
            "give a path without control characters, shorter than 4096 bytes",
        )
    if ".." in value.split("/"):
        raise _bad(f"the path {value!r} has '..' in it", "give the path without '..'")
    return posixpath.normpath(value)


def _optional_host_path(value: str | None) -> str | None:
    return None if not value else _host_path(value)


def _rootfs(value: str) -> str:
    return value if value in ("", HOST_ROOTFS) else _host_path(value)


def _target(value: str) -> str:
    """A path in the container, relative to its root: ``dev/qemu_pipe``."""
    if not isinstance(value, str) or _CONTROL.search(value) or len(os.fsencode(value)) > MAX_PATH_BYTES:
        raise _bad(f"{str(value)[:80]!r} is not a usable path", "give a path without control characters")
    if ".." in value.split("/"):
        raise _bad(f"the target {value!r} has '..' in it", "give the path inside the container without '..'")
    relative = posixpath.normpath(value).lstrip("/")
    if relative in ("", "."):
        raise _bad("a target cannot be the container's root itself", "name a file or directory below '/'")
    return relative


def _id(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_ID:
        raise _bad(f"{value!r} is not a user or group id", f"give a number from 0 to {MAX_ID}")
    return value


@attrs.frozen
class BindMount:
    """A file, directory or socket of the host that is seen in the container.

    Attributes:
        source: absolute path on the host.
        target: where it is seen, relative to the container's root (a leading ``/`` is dropped).
        read_only: the container cannot write to it.
    """

    source: str = attrs.field(converter=_host_path)
    target: str = attrs.field(converter=_target)
    read_only: bool = False


def _permission(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o777:
        raise _bad(f"{value!r} is not a permission", "give octal 0 to 0777, for example 0666")
    return value


def _device_path(value: str) -> str:
    path = _host_path(value)
    if not path.startswith("/dev/"):
        raise _bad(f"the device {path!r} is not in /dev", "name a device node below /dev")
    return path


@attrs.frozen
class Device:
    """A device node of the host that the container gets under the same path.

    Attributes:
        path: absolute path below ``/dev``.
        permission: mode of the node in the container, octal ``0`` to ``0o777``. Backends that
            share the host's node cannot change its mode; they say so in their notes.
    """

    path: str = attrs.field(converter=_device_path)
    permission: int = attrs.field(default=0o666, converter=_permission)


def _interface_address(value: str | None) -> str | None:
    if not value:
        return None
    try:
        # Without a length the original takes the whole /24 that its bridge serves.
        return str(ipaddress.IPv4Interface(value if "/" in value else f"{value}/24"))
    except ValueError as error:
        raise _bad(
            f"{value[:64]!r} is not an IPv4 address with a prefix length", "for example 192.168.250.2/24"
        ) from error


def _address(value: str | None) -> str | None:
    if not value:
        return None
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError as error:
        raise _bad(f"{value[:64]!r} is not an IPv4 address", "for example 192.168.250.1") from error


def _addresses(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(checked for value in values if (checked := _address(value)) is not None)


def _network_mode(value: str) -> str:
    if value not in ("auto", "none", "host"):
        raise _bad(f"{value[:32]!r} is not a network mode", "use auto, none or host")
    return value


@attrs.frozen
class NetworkSpec:
    """The container's network.

    Attributes:
        mode: ``auto`` lets the backend give what it can (lxc: a veth on ``anbox0``; process: its own
            namespace, with slirp4netns to the outside if that is installed), ``none`` gives only
            loopback, ``host`` shares the host's network.
        address: the container's IPv4 address with prefix length; ``None`` lets the backend choose.
        gateway: IPv4 address of the gateway; ``None`` lets the backend choose.
        dns: IPv4 addresses of the name servers; empty lets the backend choose.
        host_loopback: ``10.0.2.2`` leads the container to what listens on the host's ``127.0.0.1``, as in the emulator.
    """

    mode: str = attrs.field(default="auto", converter=_network_mode)
    address: str | None = attrs.field(default=None, converter=_interface_address)
    gateway: str | None = attrs.field(default=None, converter=_address)
    dns: tuple[str, ...] = attrs.field(default=(), converter=_addresses)
    host_loopback: bool = False


def _limited(what: str, limit: int) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_instance: Any, _attribute: attrs.Attribute[Any], value: Any) -> None:
        if len(value) > limit:
            raise _bad(f"{len(value)} {what} are too many", f"give at most {limit}")

    return check


def _properties(values: Iterable[str]) -> tuple[str, ...]:
    checked = []
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not PROPERTY_NAME.fullmatch(name) or _CONTROL.search(value):
            raise _bad(
                f"{text[:80]!r} is not a property",
                "give name=value, one line, for example ro.boot.fake_battery=1",
            )
        if len(text.encode("utf-8", "surrogateescape")) > MAX_PROPERTY_BYTES:
            raise _bad(f"the property {name[:80]!r} is too long", f"keep it under {MAX_PROPERTY_BYTES} bytes")
        checked.append(text)
    return tuple(checked)


def _environment(values: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in values.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise _bad(
                f"{name[:64]!r} cannot be an environment variable",
                "a name has no '=', and nothing has a NUL in it",
            )
    if sum(len(os.fsencode(n)) + len(os.fsencode(v)) + 2 for n, v in values.items()) > MAX_ENVIRONMENT_BYTES:
        raise _bad("the environment is too long", f"keep it under {MAX_ENVIRONMENT_BYTES} bytes")
    return MappingProxyType(dict(values))


def _init(values: Iterable[str]) -> tuple[str, ...]:
    arguments = tuple(values)
    if arguments and not arguments[0]:
        raise _bad("the init command is empty", "name a program, or give no init at all")
    if any("\0" in argument for argument in arguments):
        raise _bad("the init command has a NUL in it", "give arguments without NUL")
    return arguments


def _bind_mounts(values: Iterable[BindMount]) -> tuple[BindMount, ...]:
    return tuple(values)


def _devices(values: Iterable[Device]) -> tuple[Device, ...]:
    return tuple(values)


def _hash_mapping(value: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(value.items()))


@attrs.frozen
class ContainerSpec:
    """All that is asked of one container.

    Attributes:
        instance: name; two instances share nothing.
        backend: name of the backend: ``process`` or ``lxc``.
        rootfs: ``host`` for the host's own root, an absolute directory, or empty to take ``image``.
        image: absolute path of an Android image (squashfs or ext4), or ``None``.
        data_path: absolute directory that keeps everything of the instance between its runs; see
            the properties below for what lies in it.
        run_path: absolute directory for what ends with the run (staging, helper sockets).
        bind_mounts: what of the host is seen in the container, besides what the backend binds.
        devices: device nodes, besides those that the backend always gives.
        extra_properties: ``name=value`` lines for Android's ``default.prop``.
        owner_uid: uid of the user for whom the container runs (the caller's, by SO_PEERCRED).
        owner_gid: gid of the same.
        network: addresses and mode.
        privileged: no id map: the container's root is the owner itself.
        use_rootfs_overlay: put ``data_path/rootfs-overlay`` over the rootfs.
        force_squashfuse: mount a squashfs image through FUSE even where loop devices work.
        init: command and arguments; empty for the backend's default.
        environment: variables for init, besides and over the backend's own.
    """

    data_path: str = attrs.field(converter=_host_path)
    run_path: str = attrs.field(converter=_host_path)
    instance: str = attrs.field(default=DEFAULT_INSTANCE, converter=check_instance_name)
    backend: str = "process"
    rootfs: str = attrs.field(default=HOST_ROOTFS, converter=_rootfs)
    image: str | None = attrs.field(default=None, converter=_optional_host_path)
    bind_mounts: tuple[BindMount, ...] = attrs.field(
        default=(), converter=_bind_mounts, validator=_limited("bind mounts", MAX_BIND_MOUNTS)
    )
    devices: tuple[Device, ...] = attrs.field(
        default=(), converter=_devices, validator=_limited("devices", MAX_DEVICES)
    )
    extra_properties: tuple[str, ...] = attrs.field(
        default=(), converter=_properties, validator=_limited("properties", MAX_PROPERTIES)
    )
    owner_uid: int = attrs.field(factory=os.geteuid, converter=_id)
    owner_gid: int = attrs.field(factory=os.getegid, converter=_id)
    network: NetworkSpec = NetworkSpec()
    privileged: bool = False
    use_rootfs_overlay: bool = False
    force_squashfuse: bool = False
    init: tuple[str, ...] = attrs.field(
        default=(), converter=_init, validator=_limited("arguments of init", MAX_INIT_ARGUMENTS)
    )
    environment: Mapping[str, str] = attrs.field(
        factory=dict,
        converter=_environment,
        validator=_limited("variables", MAX_ENVIRONMENT),
        hash=False,
        eq=_hash_mapping,
    )

    def __attrs_post_init__(self) -> None:
        """Check what spans several fields.

        Raises:
            ConfigError: neither a rootfs nor an image, or two things at one place.
        """
        if not self.rootfs and not self.image:
            raise _bad(
                "neither a rootfs nor an image is named",
                "give --rootfs host, --rootfs DIR or --android-image FILE",
            )
        taken: set[str] = set()
        for mount in self.bind_mounts:
            if mount.target in taken:
                raise _bad(f"two bind mounts have the target {mount.target!r}", "give each its own target")
            taken.add(mount.target)

    @property
    def data_dir(self) -> str:
        """The container's ``/data``; its ``/sdcard`` is ``media/0`` in it, as in Android."""
        return f"{self.data_path}/data"

    @property
    def cache_dir(self) -> str:
        """The container's ``/cache``."""
        return f"{self.data_path}/cache"

    @property
    def logs_dir(self) -> str:
        """Directory of the instance's log files; not seen in the container."""
        return f"{self.data_path}/logs"

    @property
    def engine_log(self) -> str:
        """Log of what runs the container."""
        return f"{self.logs_dir}/container.log"

    @property
    def console_log(self) -> str:
        """What the container's init writes to its standard output and error."""
        return f"{self.logs_dir}/console.log"

    @property
    def state_dir(self) -> str:
        """What we must find again after a crash."""
        return f"{self.data_path}/state"

    @property
    def journal_path(self) -> str:
        """File of the instance's undo journal (`anbox_tw.container.journal`)."""
        return f"{self.state_dir}/undo.journal"
