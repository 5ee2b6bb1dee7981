"""The kinds of changes every backend makes, and how each is undone.

The ``make_*`` functions at the end are the two steps in one: they write the change down and make
it. All undo functions are idempotent and touch only what is provably the thing that was written
down: a directory only while it is empty, a socket only while it is a socket, a process only by its
start time or token, a mount only above those that were there before.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import stat
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from anbox_tw.container.commands import find_tool
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import Entry, Journal, UndoContext, UndoKind, UndoKinds

__all__ = [
    "TOKEN_VARIABLE",
    "Mount",
    "boot_id",
    "default_kinds",
    "make_directories",
    "make_directory",
    "mounts_at",
    "process_start_time",
    "processes_with_token",
    "read_mounts",
    "record_mount",
]

TOKEN_VARIABLE = "ANBOX_TW_TOKEN"  # noqa: S105  # a name, and nothing secret
"""Environment variable by which a process of ours is found when its pid was never written down."""

BUSY_TRIES = 20  # a mount stays busy until the last dying process has let go of it
BUSY_WAIT_S = 0.1
DEATH_WAIT_S = 5.0  # until a process that was sent SIGKILL is gone; longer only in state D
DEATH_POLL_S = 0.02
MAX_ENVIRON_BYTES = 256 * 1024  # read of one process; the token is set first of all
MAX_MOUNTINFO_BYTES = 16 * 1024 * 1024  # 100 000 mounts is the kernel's default limit

INTERFACE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
LOOP_DEVICE = re.compile(r"/dev/loop[0-9]+")
NFT_FAMILIES = ("ip", "ip6", "inet", "bridge", "arp", "netdev")
NFT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def sleep(context: UndoContext, seconds: float) -> Deferred[None]:
    """A Deferred that fires after ``seconds``; cancelling it forgets the timer."""
    waiter: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer = context.reactor.callLater(seconds, waiter.callback, None)
    return waiter


def _text(args: Mapping[str, Any], name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise DiagnosedError.of("ANBOX-C017", f"the journal entry has no {name}")
    return value


def _path(args: Mapping[str, Any]) -> str:
    path = _text(args, "path")
    if not path.startswith("/") or path == "/" or ".." in path.split("/"):
        raise DiagnosedError.of("ANBOX-C017", f"the journal entry's path {path!r} is not one of ours")
    return path


# -- directories, files, sockets --


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


async def _undo_directory(args: Mapping[str, Any], context: UndoContext) -> None:
    path = _path(args)
    if not args.get("recursive"):
        try:
            os.rmdir(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            # Somebody else put something into it: then it is theirs now. One that instances share may never have
            # been ours, such as /run/user/1000.
            theirs = [errno.ENOTEMPTY, errno.EEXIST]
            if args.get("shared"):
                theirs += [errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS]
            if error.errno not in theirs:
                raise
        return
    if not _is_directory(path):
        return
    under = [m.target for m in read_mounts(context) if m.target == path or m.target.startswith(path + "/")]
    if under:
        raise DiagnosedError.of("ANBOX-C017", f"something is still mounted at {under[-1]}")
    result = await context.commands.run(["rm", "-rf", "--one-file-system", "--", path])
    result.require("ANBOX-C017", f"{path} could not be deleted")


def _undo_if(is_kind: Any) -> Any:
    async def undo(args: Mapping[str, Any], context: UndoContext) -> None:
        path = _path(args)
        try:
            if is_kind(os.lstat(path).st_mode):
                os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass

    return undo


def _is_file_or_link(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _is_node(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


# -- mounts --


@attrs.frozen
class Mount:
    """One line of ``/proc/self/mountinfo``.

    Attributes:
        target: where it is mounted.
        filesystem: its type.
        source: its source as the kernel tells it.
    """

    target: str
    filesystem: str
    source: str


_OCTAL = re.compile(rb"\\([0-7]{3})")


def _unescape(text: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), text))


def read_mounts(context: UndoContext) -> list[Mount]:
    """All mounts of our mount namespace, in the kernel's order: later ones lie above."""
    found = []
    with open(f"{context.proc}/self/mountinfo", "rb") as file:
        data = file.read(MAX_MOUNTINFO_BYTES)
    for line in data.splitlines():
        fields = line.split(b" ")
        try:
            dash = fields.index(b"-", 6)
            found.append(
                Mount(_unescape(fields[4]), _unescape(fields[dash + 1]), _unescape(fields[dash + 2]))
            )
        except (ValueError, IndexError):
            continue
    return found


def mounts_at(target: str, context: UndoContext) -> int:
    """How many mounts lie upon each other at exactly ``target``."""
    return sum(mount.target == target for mount in read_mounts(context))


async def _undo_mount(args: Mapping[str, Any], context: UndoContext) -> None:
    target = _path(args)
    depth = args.get("depth", 0)
    depth = depth if isinstance(depth, int) and not isinstance(depth, bool) else 0
    tries = 0
    while (there := mounts_at(target, context)) > depth:
        fuse = [m for m in read_mounts(context) if m.target == target][-1].filesystem.startswith("fuse")
        fusermount = find_tool("fusermount3") or find_tool("fusermount")
        if fuse and os.geteuid() != 0 and fusermount is not None:
            argv = [fusermount, "-u", "--", target]
        else:
            # --no-mtab: otherwise umount(8) makes /run/mount where there is none, and leaves it
            argv = ["umount", "--no-mtab", "--no-canonicalize", "--", target]
        tries += 1
        if tries > BUSY_TRIES:
            # Whoever is still in there keeps the file system, but not under our name.
            argv.insert(1, "-z" if fuse and argv[0] == fusermount else "--lazy")
        result = await context.commands.run(argv)
        if mounts_at(target, context) >= there:
            if tries > BUSY_TRIES:
                result.require("ANBOX-C017", f"{target} could not be unmounted")
                raise DiagnosedError.of("ANBOX-C017", f"{target} is still mounted")
            await sleep(context, BUSY_WAIT_S)


# -- loop devices --


def _backing_file(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read(8192)).rstrip("\n").removesuffix(" (deleted)")
    except FileNotFoundError:
        return None


async def _undo_loop(args: Mapping[str, Any], context: UndoContext) -> None:
    device, backing = _text(args, "device"), _text(args, "backing_file")
    if not LOOP_DEVICE.fullmatch(device):
        raise DiagnosedError.of("ANBOX-C017", f"{device!r} is not a loop device")
    path = f"{context.sys}/block/{os.path.basename(device)}/loop/backing_file"
    for _ in range(BUSY_TRIES):
        if _backing_file(path) != backing:
            return  # it is free, or somebody else's by now
        result = await context.commands.run(["losetup", "--detach", device])
        if not result.ok and "No such device" not in result.error_text:
            result.require("ANBOX-C017", f"{device} could not be detached")
        await sleep(context, DEATH_POLL_S)  # the kernel detaches when its last user has closed it
    raise DiagnosedError.of("ANBOX-C017", f"{device} is still in use")


# -- network --


def _interface_exists(name: str, context: UndoContext) -> bool:
    return os.path.exists(f"{context.sys}/class/net/{name}")


async def _undo_link(args: Mapping[str, Any], context: UndoContext) -> None:
    name = _text(args, "name")
    if not INTERFACE_NAME.fullmatch(name) or name in (".", ".."):
        raise DiagnosedError.of("ANBOX-C017", f"{name!r} is not an interface of ours")
    if not _interface_exists(name, context):
        return
    if args.get("only_if_unused"):
        try:
            if os.listdir(f"{context.sys}/class/net/{name}/brif"):
                return  # other instances are on the bridge; the last one has an entry for it, too
        except FileNotFoundError:
            return
    result = await context.commands.run(["ip", "link", "delete", name])
    if not result.ok and _interface_exists(name, context):
        result.require("ANBOX-C017", f"the interface {name} could not be deleted")


async def _undo_nft_table(args: Mapping[str, Any], context: UndoContext) -> None:
    family, name = _text(args, "family"), _text(args, "name")
    if family not in NFT_FAMILIES or not NFT_NAME.fullmatch(name):
        raise DiagnosedError.of("ANBOX-C017", f"{family} {name!r} is not an nft table of ours")
    result = await context.commands.run(["nft", "delete", "table", family, name])
    if not result.ok:
        there = await context.commands.run(["nft", "list", "table", family, name])
        if there.ok:
            result.require("ANBOX-C017", f"the nft table {family} {name} could not be deleted")


# -- control groups --


async def _undo_cgroup(args: Mapping[str, Any], context: UndoContext) -> None:
    path = _path(args)
    if not _is_directory(path):
        return
    for directory, _, _ in os.walk(path, topdown=False):
        for _ in range(BUSY_TRIES):
            for pid in _cgroup_processes(directory):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                os.rmdir(directory)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            await sleep(context, BUSY_WAIT_S)
        else:
            raise DiagnosedError.of("ANBOX-C019", f"the control group {directory} still has processes")


def _cgroup_processes(directory: str) -> list[int]:
    try:
        with open(f"{directory}/cgroup.procs") as file:
            return [int(line) for line in file if int(line) > 0]
    except OSError:
        return []


# -- processes --


def boot_id(context: UndoContext) -> str:
    """Identifies this boot of the kernel: pids of another one mean nothing."""
    try:
        with open(f"{context.proc}/sys/kernel/random/boot_id") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def process_start_time(pid: int, context: UndoContext) -> int | None:
    """When a process began, in clock ticks since boot; ``None`` if there is none or it is a zombie."""
    try:
        with open(f"{context.proc}/{pid}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def processes_with_token(token: str, context: UndoContext) -> Iterator[int]:
    """Pids of all processes that were started with ``TOKEN_VARIABLE=token`` and may be seen by us."""
    wanted = f"{TOKEN_VARIABLE}={token}".encode()
    for name in os.listdir(context.proc):
        if not name.isdecimal():
            continue
        try:
            with open(f"{context.proc}/{name}/environ", "rb") as file:
                data = file.read(MAX_ENVIRON_BYTES)
        except OSError:
            continue
        if wanted in data.split(b"\0") and int(name) != os.getpid():
            yield int(name)


async def _undo_process(args: Mapping[str, Any], context: UndoContext) -> None:
    """Kill a process by pid and start time, and all with its token."""
    token, pid, started = args.get("token"), args.get("pid"), args.get("start_time")
    same_boot = args.get("boot_id") in (None, "", boot_id(context))
    waited = 0.0
    while True:
        left = set(processes_with_token(token, context)) if isinstance(token, str) and token else set()
        if same_boot and isinstance(pid, int) and pid > 1 and isinstance(started, int):
            left |= {pid} if process_start_time(pid, context) == started else set()
        left = {p for p in left if process_start_time(p, context) is not None}
        if not left:
            return
        if waited >= DEATH_WAIT_S:
            raise DiagnosedError.of("ANBOX-C018", f"process {min(left)} does not end")
        for each in left:
            _kill(each, context)
        await sleep(context, DEATH_POLL_S)
        waited += DEATH_POLL_S


def _kill(pid: int, context: UndoContext) -> None:
    """SIGKILL a process that was just looked at, and no other that got its pid meanwhile."""
    before = process_start_time(pid, context)
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if before is not None and process_start_time(pid, context) == before:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def default_kinds() -> UndoKinds:
    """A registry with the kinds of this module, to which a backend adds its own."""
    kinds = UndoKinds()

    def quoted(name: str) -> Any:
        return lambda args: shlex.quote(str(args.get(name)))

    path = quoted("path")
    for kind in (
        UndoKind(
            "directory",
            _undo_directory,
            lambda a: f"the directory {a.get('path')}",
            lambda a: f"rmdir {path(a)}",
        ),
        UndoKind(
            "file",
            _undo_if(_is_file_or_link),
            lambda a: f"the file {a.get('path')}",
            lambda a: f"rm {path(a)}",
        ),
        UndoKind(
            "socket",
            _undo_if(stat.S_ISSOCK),
            lambda a: f"the socket {a.get('path')}",
            lambda a: f"rm {path(a)}",
        ),
        UndoKind(
            "node",
            _undo_if(_is_node),
            lambda a: f"the device node {a.get('path')}",
            lambda a: f"rm {path(a)}",
        ),
        UndoKind(
            "mount", _undo_mount, lambda a: f"the mount at {a.get('path')}", lambda a: f"umount {path(a)}"
        ),
        UndoKind(
            "loop",
            _undo_loop,
            lambda a: f"the loop device {a.get('device')} of {a.get('backing_file')}",
            lambda a: f"losetup -d {quoted('device')(a)}",
        ),
        UndoKind(
            "link",
            _undo_link,
            lambda a: f"the network interface {a.get('name')}",
            lambda a: f"ip link delete {quoted('name')(a)}",
        ),
        UndoKind(
            "nft_table",
            _undo_nft_table,
            lambda a: f"the nft table {a.get('family')} {a.get('name')}",
            lambda a: f"nft delete table {a.get('family')} {quoted('name')(a)}",
        ),
        UndoKind("cgroup", _undo_cgroup, lambda a: f"the control group {a.get('path')}"),
        UndoKind(
            "process",
            _undo_process,
            lambda a: f"the process {a.get('pid') or a.get('what') or ''}".rstrip(),
            lambda a: f"kill -9 {a['pid']}" if a.get("pid") else "",
        ),
    ):
        kinds.register(kind)
    return kinds


# -- writing down and making in one --


def make_directory(journal: Journal, path: str, mode: int = 0o700) -> Entry | None:
    """Make one directory that is to go away again; its parent must be there.

    Args:
        journal: where it is written down.
        path: absolute path.
        mode: exact mode, whatever the umask.

    Returns:
        Its entry, or ``None`` if the directory was there before: then it stays.
    """
    if _is_directory(path):
        return None
    entry = journal.record("directory", path=path)
    os.mkdir(path, mode)
    os.chmod(path, mode)
    return entry


def make_directories(journal: Journal, path: str, mode: int = 0o700, *, shared: str = "") -> None:
    """Make a directory and what is missing of its parents; all that is made goes away again.

    Args:
        journal: where it is written down.
        path: absolute path.
        mode: exact mode of each, whatever the umask.
        shared: a parent that several instances have in common: whoever leaves last takes it away, not only
            the one who made it.

    Raises:
        DiagnosedError: it cannot be made (``ANBOX-C005``).
    """
    missing: list[str] = []
    if shared and _is_directory(shared):
        journal.record("directory", path=shared, shared=True)
    while path != "/" and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        try:
            make_directory(journal, each, mode)
        except OSError as error:
            if isinstance(error, FileExistsError) and _is_directory(each):
                continue  # another instance has just made it; it is empty, or theirs
            raise DiagnosedError.of(
                "ANBOX-C005", f"{each} cannot be made", error.strerror or str(error)
            ) from error


def record_mount(journal: Journal, target: str) -> Entry:
    """Write down that something will be mounted at ``target``, above what is there now."""
    return journal.record("mount", path=target, depth=mounts_at(target, journal.context))
