"""The container's side of the launcher: builds the new root from inside the new namespaces.

Standard library only. All of it runs in a forked child that ends in ``execve`` or ``_exit``; what it
does is planned by `anbox_tw.container.process_plan`, which says what the keys of the plan mean.

Two kinds of failures are told apart. `Refused`: the kernel does not let us build the container at all,
so a container without namespaces is the way out. `Failed`: what was asked for cannot be done, and
no other isolation would help.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from typing import Any

from anbox_tw.container import _syscalls as sys_

__all__ = ["Failed", "Refused", "build_root", "enter_namespaces", "finish_privileges"]

REQUIRED = {"user": sys_.CLONE_NEWUSER, "mount": sys_.CLONE_NEWNS, "pid": sys_.CLONE_NEWPID}
OPTIONAL = {
    "ipc": sys_.CLONE_NEWIPC,
    "uts": sys_.CLONE_NEWUTS,
    "cgroup": sys_.CLONE_NEWCGROUP,
    "net": sys_.CLONE_NEWNET,
}

STAGING = ("/tmp", "/run", "/mnt", "/var", "/usr")  # noqa: S108  # only mounted over, in our own namespace
ROOT_OPTIONS = "mode=755,size=64m,nr_inodes=64k"  # holds directories, links and what the guest puts in /tmp
SHM_OPTIONS = "mode=1777,size=64m,nr_inodes=16k"  # as Docker's
DEVPTS_OPTIONS = "newinstance,ptmxmode=0666,mode=0620"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {
    "dev/fd": "/proc/self/fd",
    "dev/stdin": "/proc/self/fd/0",
    "dev/stdout": "/proc/self/fd/1",
    "dev/stderr": "/proc/self/fd/2",
    "dev/ptmx": "pts/ptmx",
}
# What a root without an id map of its own could harm the host by.
GUARDED_PROC = ("sys", "irq", "bus", "fs", "sysrq-trigger")

# linux/capability.h: what a container's root needs for its own files, processes and network. None of
# them lets it change mounts, so the read-only ones stay read only.
KEPT_CAPABILITIES = frozenset(
    {
        0,  # CHOWN
        1,  # DAC_OVERRIDE
        3,  # FOWNER
        4,  # FSETID
        5,  # KILL
        6,  # SETGID
        7,  # SETUID
        8,  # SETPCAP
        10,  # NET_BIND_SERVICE
        18,  # SYS_CHROOT
    }
)
NETWORK_CAPABILITIES = frozenset({12, 13})  # NET_ADMIN, NET_RAW: only over a network of its own

SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


class Refused(Exception):
    """The kernel refuses what every container needs."""


class Failed(Exception):
    """What was asked for cannot be done.

    Attributes:
        code: of `anbox_tw.container.diagnosis.CODES`.
        what: what failed.
        why: the reason.
        cure: what to do, or an empty string for the code's own.
    """

    def __init__(self, code: str, what: str, why: str, cure: str = "") -> None:
        super().__init__(what)
        self.code, self.what, self.why, self.cure = code, what, why, cure


def enter_namespaces(own_network: bool) -> tuple[list[str], dict[str, str]]:
    """Move this process to new namespaces.

    Returns:
        The names of those it has, and for each that the kernel refused its reason.

    Raises:
        Refused: one that is needed cannot be had.
    """
    wanted = {name: flag for name, flag in OPTIONAL.items() if own_network or name != "net"}
    try:
        sys_.unshare(sum(REQUIRED.values()) | sum(wanted.values()))
        return sorted([*REQUIRED, *wanted]), {}
    except OSError:
        pass  # one by one, then
    try:
        sys_.unshare(sum(REQUIRED.values()))
    except OSError as error:
        raise Refused(f"user, mount and pid namespaces: {_why(error)}") from error
    got, refused = list(REQUIRED), {}
    for name, flag in wanted.items():
        try:
            sys_.unshare(flag)
            got.append(name)
        except OSError as error:
            refused[name] = _why(error)
    return sorted(got), refused


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:  # says "No space left on device", which sends people to their disks
        return "the limits in /proc/sys/user allow no more"
    return error.strerror or str(error)


def _walk(base: int, path: str) -> int:
    """Open what lies below an open directory; no symbolic link is followed."""
    descriptor = os.dup(base)
    for part in path.split("/"):
        try:
            deeper = os.open(part, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = deeper
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ELOOP, "a symbolic link where there must be none")
    return descriptor


def _open_base(path: str) -> int:
    """Open a directory from which sources are walked to."""
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise Failed("ANBOX-C004", f"{path} cannot be used", error.strerror or str(error)) from error


def _cannot_bind(bind: dict[str, Any], error: OSError, cure: str = "") -> Failed:
    return Failed(
        bind.get("code", "ANBOX-C008"),
        f"{bind['source']} cannot be bound to /{bind['target']}",
        error.strerror or str(error),
        cure,
    )


def _open_sources(binds: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Open the sources of bind mounts with the rights that this process has now."""
    opened = []
    for bind in binds:
        try:
            descriptor = os.open(bind["source"], os.O_PATH | os.O_CLOEXEC)
            if bind.get("check"):
                # Seeing the path is not enough: only what its owner may read can be shown to the guest.
                mode = os.fstat(descriptor).st_mode
                need = os.W_OK if stat.S_ISSOCK(mode) else os.R_OK
                if not os.access(f"/proc/self/fd/{descriptor}", need, effective_ids=True):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if bind.get("optional"):
                continue
            raise _cannot_bind(bind, error) from error
        opened.append((bind, descriptor))
    return opened


class _DataSources:
    """Opens the instance's own directories, which neither of our two users may reach alone.

    What lies above the data path may be the launcher's alone (``/root``, a home directory), what lies in it
    the container's alone. So the data path is opened as the one and walked from as both.
    """

    def __init__(self, base: str, binds: list[dict[str, Any]]) -> None:
        self._base = _open_base(base) if binds else -1
        self._prefix = len(base) + 1
        self._missing = binds
        self.opened: list[tuple[dict[str, Any], int]] = []

    def open(self, *, last: bool) -> None:
        """Open what this process may open now; for the ``last`` time what is denied is a failure."""
        missing = []
        for bind in self._missing:
            try:
                self.opened.append((bind, _walk(self._base, bind["source"][self._prefix :])))
            except PermissionError as error:
                if last:
                    raise _cannot_bind(bind, error) from error
                missing.append(bind)
            except OSError as error:
                raise _cannot_bind(bind, error) from error
        self._missing = missing


def _make_target(root: int, target: str, directory: bool) -> int:
    """Open ``target`` below the new root, made if it is missing; follows no symbolic link."""
    parts = target.split("/")
    current = os.dup(root)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            try:
                if last and not directory:
                    os.close(
                        os.open(
                            part, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_WRONLY, 0o644, dir_fd=current
                        )
                    )
                else:
                    os.mkdir(part, 0o755, dir_fd=current)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                # It may be there all the same, in a read-only part of the root.
            deeper = os.open(part, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=current)
            os.close(current)
            current = deeper
            mode = os.fstat(current).st_mode
            if stat.S_ISLNK(mode) or (not last and not stat.S_ISDIR(mode)):
                raise OSError(errno.ENOTDIR, f"{part} is not a directory")
            if last and stat.S_ISDIR(mode) != directory:
                raise OSError(errno.EISDIR, "a file and a directory cannot be bound to each other")
        return current
    except BaseException:
        os.close(current)
        raise


def _bind(root: int, bind: dict[str, Any], source: int) -> None:
    try:
        tree = sys_.clone_tree(source, read_only=not bind.get("writable"), devices=bool(bind.get("devices")))
    except OSError as error:
        raise Refused(f"cloning the mount of {bind['source']}: {error.strerror}") from error
    try:
        target = _make_target(root, bind["target"], stat.S_ISDIR(os.fstat(source).st_mode))
        try:
            sys_.move_tree(tree, target)
        finally:
            os.close(target)
    except OSError as error:
        if bind.get("optional"):
            return
        cure = "choose a target that exists in the rootfs, or one below /dev, /mnt, /run or /data"
        raise _cannot_bind(bind, error, cure) from error
    finally:
        os.close(tree)
        os.close(source)


def _must(what: str, work: Any, *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except OSError as error:
        raise Refused(f"{what}: {error.strerror}") from error


def build_root(plan: dict[str, Any], got: list[str]) -> list[str]:
    """Build the new root and move into it.

    Runs as pid 1 of the new namespaces, whose id maps are set, with all capabilities in them but still
    with the uid that the launcher had. Afterwards its uid and gid are the container's 0.

    Args:
        plan: see `anbox_tw.container.process_plan`.
        got: the namespaces there are.

    Returns:
        Notes on what the container does without.

    Raises:
        Refused: see the module.
        Failed: see the module.
    """
    notes: list[str] = []
    _must("making mounts private", sys_.mount, "none", "/", "", sys_.MS_REC | sys_.MS_PRIVATE)
    # Ours are opened with the launcher's rights, the caller's with the caller's alone: what it
    # cannot read itself it cannot have shown to its guest.
    caller_binds = [{**bind, "check": True} for bind in plan["caller_binds"]]
    sources = _open_sources(plan["binds"])
    data = _DataSources(plan["data_path"], plan["data_binds"])
    data.open(last=False)
    if plan["owner_is_launcher"]:
        sources += _open_sources(caller_binds)
    devices = _open_sources(
        [
            {
                "source": f"/dev/{name}",
                "target": f"dev/{name}",
                "writable": True,
                "devices": True,
                "optional": True,
            }
            for name in DEVICES
        ]
        + [{**bind, "writable": True, "devices": True, "code": "ANBOX-C009"} for bind in plan["devices"]]
    )
    _must("becoming the container's root", _become_root)
    data.open(last=True)
    sources += data.opened
    if not plan["owner_is_launcher"]:
        sources += _open_sources(caller_binds)

    staging = next(path for path in STAGING if os.path.isdir(path))
    flags = sys_.MS_NOSUID | sys_.MS_NODEV
    _must("mounting a tmpfs", sys_.mount, "anbox", staging, "tmpfs", flags, ROOT_OPTIONS)
    root = os.open(staging, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    os.chdir(staging)
    os.umask(0)
    for path, mode in plan["directories"]:
        os.makedirs(path, 0o755, exist_ok=True)
        os.chmod(path, mode)
    for path, text in plan["links"]:
        os.symlink(text, path)

    _must("mounting /proc", sys_.mount, "proc", "proc", "proc", flags | sys_.MS_NOEXEC)
    notes += _mount_sys(got)
    for bind, source in devices:
        _bind(root, bind, source)
    _must(
        "mounting devpts",
        sys_.mount,
        "devpts",
        "dev/pts",
        "devpts",
        sys_.MS_NOSUID | sys_.MS_NOEXEC,
        DEVPTS_OPTIONS,
    )
    _must("mounting /dev/shm", sys_.mount, "shm", "dev/shm", "tmpfs", flags, SHM_OPTIONS)
    for path, text in DEVICE_LINKS.items():
        os.symlink(text, path)
    # A mount point may lie in another bind mount, which must then be there first.
    for bind, source in sorted(sources, key=lambda opened: opened[0]["target"].count("/")):
        _bind(root, bind, source)
    for path, text, over in plan["files"]:
        _write_file(root, path, text)
        if over:
            written = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root)
            _bind(root, {"source": f"/{path}", "target": over, "optional": True}, written)
    if plan["guard_proc"]:
        _guard_proc(root)
    os.close(root)

    if "uts" in got:
        sys_.set_hostname(plan["hostname"])
    if "net" in got:
        _loopback_up()
    _must("pivot_root", sys_.pivot_root, ".", ".")
    _must("leaving the old root", sys_.unmount, ".", sys_.MNT_DETACH)
    os.chdir("/")
    return notes


def _become_root() -> None:
    try:
        os.setgroups([])
    except PermissionError:
        pass  # a user namespace made without privileges may not; its groups are the user's own
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # A change of the uid makes a process undumpable, and its own /proc/self entries root's.
    sys_.set_dumpable(True)


def _mount_sys(got: list[str]) -> list[str]:
    if "net" not in got:
        return ["no /sys: it needs a network namespace of its own"]
    try:
        flags = sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC | sys_.MS_RDONLY
        sys_.mount("sysfs", "sys", "sysfs", flags)
    except OSError as error:
        return [f"no /sys: {error.strerror}"]
    return []


def _write_file(root: int, path: str, text: str) -> None:
    try:
        target = _make_target(root, path, directory=False)
        try:
            descriptor = os.open(f"/proc/self/fd/{target}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        finally:
            os.close(target)
        with open(descriptor, "w") as file:
            file.write(text)
    except OSError as error:
        raise Failed("ANBOX-C012", f"/{path} cannot be written", error.strerror or str(error)) from error


def _guard_proc(root: int) -> None:
    for name in GUARDED_PROC:
        try:
            source = os.open(f"proc/{name}", os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root)
        except FileNotFoundError:
            continue
        _bind(root, {"source": f"/proc/{name}", "target": f"proc/{name}"}, source)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def finish_privileges(own_network: bool) -> None:
    """Give up, for this process and all its children, what would let them undo the isolation."""
    sys_.drop_capabilities(KEPT_CAPABILITIES | (NETWORK_CAPABILITIES if own_network else frozenset()))
    sys_.no_new_privileges()
