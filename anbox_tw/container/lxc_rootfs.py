"""The root file system of an LXC container: an image, a directory, or the host's own root.

======================  =======================================================================
rootfs                  what the container gets
======================  =======================================================================
image                   the image, read-only; ``data_path/rootfs-overlay`` over it if asked for
directory               an overlay over it: what is written is dropped with the run
``host``                the same over the host's ``/``; with private ``/tmp`` and ``/run``
======================  =======================================================================

An overlay shows one mount only, so what the guest's interpreter needs from other mounts of the host, or from
below directories that an unprivileged container's root may not enter, is bound in: `needed_paths`.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence

import attrs

import anbox_tw
from anbox_tw.container._lxc_config import MountEntry
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.idmap import IdMap
from anbox_tw.container.images import ImageMounter, inspect_image
from anbox_tw.container.lxc_android import add_android
from anbox_tw.container.lxc_staging import Staging, has_mount_point, make_mount_point, open_beneath
from anbox_tw.container.spec import HOST_ROOTFS, ContainerSpec

__all__ = [
    "NeededPath",
    "Rootfs",
    "build_rootfs",
    "guest_init",
    "guest_paths",
    "needed_paths",
    "patched_properties",
]

PROPERTIES_HEADER = "# Properties added by Anbox"
MAX_PROPERTIES_BYTES = 256 * 1024  # Android's default.prop has some 2 KiB
DEFAULT_INITS = ("/anbox-init.sh", "/init", "/sbin/init")
"""In this order: Anbox's images, other Android images, other Linux root file systems."""

PRIVATE_DIRECTORIES = ("tmp", "run")
"""Of the host rootfs: what other programs of the host leave there is none of the container's business."""


@attrs.frozen
class Rootfs:
    """A root file system that is mounted.

    Attributes:
        path: where.
        writable: the container may write to it, as far as file modes allow.
        android: it looks like Android.
        notes: what is not as one would expect.
    """

    path: str
    writable: bool
    android: bool
    notes: tuple[str, ...] = ()

    def exists(self, path: str) -> bool:
        """A path of the container is there; a symbolic link counts, wherever it points."""
        parent, _, name = path.strip("/").rpartition("/")
        try:
            return os.path.lexists(f"{resolve_in_root(self.path, parent)}/{name}")
        except OSError:
            return False


def resolve_in_root(root: str, path: str) -> str:
    """The host's path of a container's path, with its links followed as the container would.

    Raises:
        OSError: it does not exist, or its links go in a circle.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    real: list[str] = []
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            del real[-1:]
            continue
        here = "/".join((root, *real, part))
        if stat.S_ISLNK(os.lstat(here).st_mode):
            links += 1
            if links > 40:  # the kernel's own limit
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(here)
            if target.startswith("/"):
                real = []
            parts[:0] = [each for each in target.split("/") if each not in ("", ".")]
        else:
            real.append(part)
    return "/".join((root, *real))


async def build_rootfs(
    spec: ContainerSpec,
    staging: Staging,
    mounter: ImageMounter,
    targets: Sequence[MountEntry],
) -> Rootfs:
    """Mount the root file system in the staging directory.

    Args:
        spec: what is wanted.
        staging: opened.
        mounter: mounts images.
        targets: what will be mounted in it: mount points are made where the rootfs has none.

    Raises:
        DiagnosedError: with the reason; what was mounted is in the journal.
    """
    notes: list[str] = []
    image = not spec.rootfs
    if spec.rootfs == HOST_ROOTFS:
        lowers = ["/"]
    elif spec.rootfs:
        lowers = [await _bind_directory(spec.rootfs, staging)]
    else:
        found = inspect_image(spec.image or "")
        base = staging.directory("image")
        mounted = await mounter.mount(found, base, staging.journal, force_squashfuse=spec.force_squashfuse)
        notes += [mounted.note] if mounted.note else []
        lowers = [base]
    if spec.use_rootfs_overlay:
        lowers.insert(0, await _bind_rootfs_overlay(spec, staging))
    android = any(
        os.path.lexists(f"{lower}/{name}")
        for lower in lowers
        for name in ("anbox-init.sh", "system/build.prop", "system/bin/init")
    )
    points = [entry for entry in targets if not _made_by_lxc(entry.target, spec)]
    complete = all(has_mount_point(lowers, entry.target, directory=entry.directory) for entry in points)
    if image and complete and len(lowers) == 1:
        return Rootfs(lowers[0], False, android, tuple(notes))
    root = staging.directory("rootfs")
    upper = not (image or spec.use_rootfs_overlay) or not complete
    note = await staging.overlay(root, lowers, upper=upper)
    if note:
        notes.append(note)
    for entry in points:
        _make_point(root, entry)
    writable = upper and not (image or spec.use_rootfs_overlay)
    if writable and spec.rootfs == HOST_ROOTFS:
        notes += add_android(root)
    if upper and not writable:
        await staging.mount(root, "the overlay, read-only,", "-o", "remount,ro,bind")
    return Rootfs(root, writable, android, tuple(notes))


def _made_by_lxc(target: str, spec: ContainerSpec) -> bool:
    """LXC makes this mount point itself, on a tmpfs that it mounts there first."""
    first = target.split("/", 1)
    if len(first) < 2:
        return False
    return first[0] == "dev" or (spec.rootfs == HOST_ROOTFS and first[0] in PRIVATE_DIRECTORIES)


def _make_point(root: str, entry: MountEntry) -> None:
    try:
        make_mount_point(root, entry.target, directory=entry.directory)
    except OSError as error:
        if entry.optional:
            return
        raise DiagnosedError.of(
            "ANBOX-C008",
            f"/{entry.target} cannot be a mount point in the rootfs",
            str(error.strerror),
            "choose another target that is no symbolic link",
        ) from error


async def _bind_directory(path: str, staging: Staging) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DiagnosedError.of(
            "ANBOX-C002", f"the rootfs {path} cannot be used", str(error.strerror), "check --rootfs"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise DiagnosedError.of(
            "ANBOX-C002",
            f"the rootfs {path} is not a directory",
            "",
            f"if it is an image, give it as --android-image {path}",
        )
    if not any(os.path.lexists(f"{path}/{name}") for name in ("bin", "usr", "system", "init", "sbin")):
        raise DiagnosedError.of(
            "ANBOX-C002",
            f"the directory {path} is not a root file system",
            "it has no bin, sbin, usr, system or init",
            "give the directory that is to be the container's /",
        )
    return await staging.bind_path(path, f"the rootfs {path}", name="base")


async def _bind_rootfs_overlay(spec: ContainerSpec, staging: Staging) -> str:
    path = f"{spec.data_path}/rootfs-overlay"
    os.makedirs(path, mode=0o755, exist_ok=True)
    return await staging.bind_path(path, "the rootfs overlay", name="rootfs-overlay")


# -- init --


def default_init(rootfs: Rootfs) -> tuple[str, ...]:
    """The init of a rootfs that is not the host's.

    Raises:
        DiagnosedError: none is in it (``ANBOX-C013``).
    """
    for path in DEFAULT_INITS:
        if rootfs.exists(path):
            return (path,)
    raise DiagnosedError.of(
        "ANBOX-C013",
        "the rootfs has no init",
        f"it has none of {', '.join(DEFAULT_INITS)}",
        "name the program to run with --init",
    )


def check_init(rootfs: Rootfs, init: Sequence[str], seen: Iterable[MountEntry]) -> None:
    """Fail early if init is not in the container.

    Raises:
        DiagnosedError: it is not there (``ANBOX-C013``).
    """
    program = init[0]
    if "/" not in program or any(program.startswith(f"/{entry.target}") for entry in seen):
        return
    if not rootfs.exists(program):
        raise DiagnosedError.of(
            "ANBOX-C013",
            f"init cannot be executed: the rootfs has no {program}",
            "",
            "check --init and the rootfs",
        )


def guest_init() -> tuple[str, ...]:
    """The reference guest, run by our own interpreter."""
    return (sys.executable, "-m", "anbox_tw.guest")


def guest_environment() -> dict[str, str]:
    """What the reference guest needs besides ``PATH``."""
    return {
        "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(anbox_tw.__file__))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "HOME": "/data",
        "ANDROID_ROOT": "/system",
        "ANDROID_DATA": "/data",
    }


def guest_paths() -> list[str]:
    """Files and directories that our interpreter needs to run the reference guest."""
    package = os.path.dirname(os.path.abspath(anbox_tw.__file__))
    paths = [sys.executable, os.path.realpath(sys.executable), sys.prefix, sys.base_prefix, package]
    paths.append(os.path.dirname(os.path.abspath(os.__file__)))
    paths += [
        path for path in sys.path if path and os.path.basename(path) in ("site-packages", "dist-packages")
    ]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


@attrs.frozen
class NeededPath:
    """Something of the host that must be bound into the host rootfs.

    Attributes:
        path: the same outside and inside.
        directory: it is one.
        mask: directory that is hidden below an empty one first, or an empty string.
    """

    path: str
    directory: bool
    mask: str = ""


def is_readable(path: str, idmap: IdMap, *, status: Callable[[str], os.stat_result] = os.stat) -> bool:
    """The container's root may use a file or directory of the host, once it has got there."""
    mode = status(path).st_mode
    wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return not idmap or mode & wanted == wanted


def needed_paths(
    paths: Iterable[str],
    idmap: IdMap,
    mount_points: Iterable[str],
    *,
    status: Callable[[str], os.stat_result] = os.stat,
) -> list[NeededPath]:
    """Which of the paths an overlay over ``/`` does not show to the container's root.

    Args:
        paths: absolute paths that exist.
        idmap: who that root is.
        mount_points: of the host.
        status: looks at a path.

    Raises:
        DiagnosedError: one cannot be read by that root even when it is bound (``ANBOX-C013``).
    """
    others = sorted({point for point in mount_points if point != "/"}, key=len, reverse=True)
    found: dict[str, NeededPath] = {}
    for path in paths:
        directory = stat.S_ISDIR(status(path).st_mode)
        if not is_readable(path, idmap, status=status):
            raise DiagnosedError.of(
                "ANBOX-C013",
                f"the container's root may not read {path}",
                "it belongs to root alone, and an unprivileged container's root is another user",
                f"chmod -R o+rX {path}, or start with --privileged",
            )
        mask = _first_closed(path, status) if idmap else ""
        other_mount = any(path == point or path.startswith(f"{point}/") for point in others)
        private = path.split("/")[1] in PRIVATE_DIRECTORIES
        if mask or other_mount or private:
            found[path] = NeededPath(path, directory, mask)
    return [
        each
        for path, each in sorted(found.items())
        if not any(path.startswith(f"{other}/") and found[other].directory for other in found)
    ]


def _first_closed(path: str, status: Callable[[str], os.stat_result]) -> str:
    """The first directory above ``path`` that not everybody may pass through, or an empty string."""
    parts = path.strip("/").split("/")[:-1]
    for count in range(1, len(parts) + 1):
        directory = "/" + "/".join(parts[:count])
        if not status(directory).st_mode & stat.S_IXOTH:
            return directory
    return ""


def host_masks(needed: Iterable[NeededPath]) -> list[MountEntry]:
    """Empty file systems that hide the host's private directories, outermost first."""
    masks = {f"/{name}": "1777" if name == "tmp" else "0755" for name in PRIVATE_DIRECTORIES}
    for each in needed:
        if each.mask and not any(each.mask.startswith(f"{other}/") for other in masks):
            masks.setdefault(each.mask, "0755")
    return [
        MountEntry(
            "tmpfs",
            path[1:],
            directory=True,
            filesystem="tmpfs",
            options=("rw", "nosuid", "nodev", f"mode={mode}"),
        )
        for path, mode in sorted(masks.items())
    ]


# -- files in the rootfs --


def patched_properties(original: bytes, extra: Sequence[str]) -> bytes:
    """Android's ``default.prop`` with our properties before its own, as Anbox writes it."""
    lines = [PROPERTIES_HEADER, *extra, ""]
    return "\n".join(lines).encode("utf-8", "surrogateescape") + original


def read_properties(rootfs: Rootfs) -> bytes | None:
    """The rootfs's own ``default.prop``; ``None`` if it has none."""
    try:
        path = resolve_in_root(rootfs.path, "default.prop")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        return file.read(MAX_PROPERTIES_BYTES)


def write_resolv_conf(root: str, servers: Sequence[str]) -> None:
    """Give a writable rootfs its name servers, in place of the host's file or link."""
    text = "# written by anbox-tw\n" + "".join(f"nameserver {server}\n" for server in servers)
    with open_beneath(root, "etc", create=True) as directory:
        try:
            os.unlink("resolv.conf", dir_fd=directory)
        except FileNotFoundError:
            pass
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open("resolv.conf", flags, 0o644, dir_fd=directory), "w") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
