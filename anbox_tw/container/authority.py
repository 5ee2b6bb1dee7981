"""Who may have the manager do what.

The manager may be root and its callers are not. The rules:

* The socket is 0660; who may connect is the group's. On each call the caller is who the kernel said
  it was when it connected (``SO_PEERCRED``).
* Root, and the user the manager runs as, are *administrators*: they may do all. Everybody else owns the
  containers they start, sees and stops only these, and cannot take over an instance whose data another
  user's container has written.
* A bind mount's source is opened by a child that has become the caller, and the mount is made from that
  open descriptor: what is seen in the container is what the caller could read, whatever happens to the
  path meanwhile.
* Devices come from an allow-list. Paths of rootfs, image and data, ``privileged``, and the backend
  ``process`` of a manager that is root (its containers share the host's users) are for administrators.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import re
import socket
import stat
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.container import _opener
from anbox_tw.container.diagnosis import DiagnosedError, Probe
from anbox_tw.container.journal import Journal
from anbox_tw.container.spec import BindMount, ContainerSpec, Device
from anbox_tw.container.undo import make_directory, record_mount
from anbox_tw.errors import ConfigError, PermissionRefused
from anbox_tw.interfaces import IContainer, IContainerBackend
from anbox_tw.network import close_fds, receive_fds
from anbox_tw.rpc import Peer

__all__ = ["DEFAULT_DEVICES", "Authority", "Caller", "GuardedBackend", "OpenedSource", "SourceOpener"]

DEFAULT_DEVICES = (
    "/dev/ashmem",
    "/dev/binder",
    "/dev/binderfs/*",
    "/dev/console",
    "/dev/dri/renderD*",
    "/dev/full",
    "/dev/fuse",
    "/dev/hwbinder",
    "/dev/kvm",
    "/dev/net/tun",
    "/dev/null",
    "/dev/random",
    "/dev/snd/*",
    "/dev/tty",
    "/dev/udmabuf",
    "/dev/urandom",
    "/dev/vndbinder",
    "/dev/zero",
)
"""Devices a caller who is no administrator may name; ``*`` stands for part of one name."""

OPEN_TIMEOUT_S = 10.0
"""Opening local paths takes milliseconds; a caller's own file system (FUSE, NFS) may hang."""

MAX_ANSWER_BYTES = 256 * 1024
"""One message of the opener: 100 short objects."""

MS_BIND = 0x1000  # linux/mount.h


@attrs.frozen
class Caller:
    """Who calls.

    Attributes:
        uid: as the kernel says.
        gid: likewise.
        groups: supplementary groups.
        pid: for messages only.
    """

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    pid: int = 0

    @classmethod
    def of(cls, peer: Peer) -> Caller:
        """The caller behind a peer.

        Raises:
            PermissionRefused: the connection does not tell, as TCP does not.
        """
        seen = peer.credentials
        if seen is None:
            raise PermissionRefused(
                "this connection does not tell who calls", "connect to the manager's UNIX socket"
            )
        return cls(seen.uid, seen.gid, peer.groups, seen.pid)

    def __str__(self) -> str:
        return user_name(self.uid)


def user_name(uid: int) -> str:
    """``user NAME (uid N)``, or without the name where there is none."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _device_pattern(pattern: str) -> re.Pattern[str]:
    if not pattern.startswith("/dev/") or ".." in pattern.split("/"):
        raise ConfigError(f"{pattern!r} is not a pattern of devices", "write for example '/dev/dri/renderD*'")
    return re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))


class Authority:
    """The rules of this module for one manager.

    Attributes:
        uid: the user the manager runs as.
    """

    def __init__(
        self,
        *,
        uid: int | None = None,
        devices: Iterable[str] = DEFAULT_DEVICES,
        admin_uids: Iterable[int] = (),
        dev: str = "/dev",
    ) -> None:
        """Make the rules.

        Args:
            uid: the user the manager runs as; ours when it is None.
            devices: patterns of the devices that everybody may name.
            admin_uids: further administrators.
            dev: where the device nodes are, for tests.

        Raises:
            ConfigError: a pattern is none.
        """
        self.uid = os.geteuid() if uid is None else uid
        self._admins = frozenset((0, self.uid, *admin_uids))
        self._devices = [_device_pattern(pattern) for pattern in devices]
        self._dev = dev

    def is_admin(self, caller: Caller) -> bool:
        """Whether the caller may do all."""
        return caller.uid in self._admins

    def may_see(self, caller: Caller, owner_uid: int) -> bool:
        """Whether the caller may know of a container."""
        return caller.uid == owner_uid or self.is_admin(caller)

    def check_owner(self, caller: Caller, owner_uid: int, instance: str) -> None:
        """Raises `PermissionRefused` unless the caller may end the container."""
        if not self.may_see(caller, owner_uid):
            raise PermissionRefused(
                f"the container {instance!r} is not the one of {caller}", "ask its owner, or root, to do it"
            )

    def check_device(self, caller: Caller, device: Device) -> None:
        """Raises `PermissionRefused` unless the caller may give this device to a container.

        Raises:
            ConfigError: there is no such character device.
        """
        if not self.is_admin(caller) and not any(pattern.fullmatch(device.path) for pattern in self._devices):
            raise PermissionRefused(
                f"the device {device.path} is not on the list of those that {caller} may use",
                "ask the administrator to start the manager with --allow-device",
            )
        try:
            mode = os.lstat(self._dev + device.path.removeprefix("/dev")).st_mode
        except OSError as error:
            # Old sessions ask for /dev/fuse wherever they run: the backend leaves out what is missing.
            if not isinstance(error, FileNotFoundError):
                raise ConfigError(f"the device {device.path} cannot be used: {error.strerror}") from error
            return
        if not stat.S_ISCHR(mode):
            raise ConfigError(
                f"{device.path} is not a character device", "give files and directories as bind mounts"
            )

    def check_request(
        self,
        caller: Caller,
        *,
        backend: str,
        rootfs: str,
        image: str,
        data_path: str,
        privileged: bool,
    ) -> None:
        """Raises `PermissionRefused` when the caller asks for what is an administrator's.

        Args:
            caller: who asks.
            backend: the backend that will be used.
            rootfs: as asked for; empty: the manager's own.
            image: likewise.
            data_path: likewise.
            privileged: as asked for.
        """
        if self.is_admin(caller):
            return
        if backend == "process":
            raise PermissionRefused(
                "the backend 'process' of a manager that runs as another user is for administrators",
                "start a manager of your own (anbox up does), or ask for the backend 'lxc'",
            )
        for what, asked in (
            ("the rootfs", rootfs if rootfs != "host" else ""),
            ("the image", image),
            ("the data path", data_path),
            ("a privileged container", privileged),
        ):
            if asked:
                raise PermissionRefused(
                    f"{what} can only be chosen by root",
                    "leave it out to get what the manager was started with",
                )

    def claim_data(self, caller: Caller, state_dir: str, instance: str) -> None:
        """Make the caller the owner of an instance's data, which stays so when the container is gone.

        Raises:
            PermissionRefused: the data belongs to another user.
            DiagnosedError: it cannot be written (``ANBOX-C004``).
        """
        if self.uid != 0:
            # Our own user's directories; the file system guards them.
            return
        path = f"{state_dir}/owner"
        try:
            os.makedirs(state_dir, mode=0o700, exist_ok=True)
            try:
                with open(path, encoding="ascii") as file:
                    owner = int(file.read(32))
            except (FileNotFoundError, ValueError):
                owner = None
            if owner is None:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
                with open(descriptor, "w", encoding="ascii") as file:
                    file.write(f"{caller.uid}\n")
                return
        except OSError as error:
            raise DiagnosedError.of("ANBOX-C004", "the data path cannot be used", str(error)) from error
        if owner != caller.uid and not self.is_admin(caller):
            raise PermissionRefused(
                f"the data of the instance {instance!r} belongs to {user_name(owner)}",
                "choose another instance",
            )

    def needs_opening(self, caller: Caller) -> bool:
        """Whether the caller's bind mounts must be opened as the caller: it is not us."""
        return not self.is_admin(caller)


@attrs.frozen
class OpenedSource:
    """What a path was when the caller opened it.

    Attributes:
        mount: the bind mount that was asked for.
        descriptor: ``O_PATH``, ours to close.
        directory: whether it is one.
    """

    mount: BindMount
    descriptor: int
    directory: bool


class _Opening(ProcessProtocol):
    """The opener's process."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.done: Deferred[None] = Deferred(lambda _: self.kill("cancelled"))
        self.errors = b""
        self.killed = ""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(self.request)
        transport.closeStdin()

    def errReceived(self, data: bytes) -> None:
        self.errors = (self.errors + data)[-2000:]

    def kill(self, why: str) -> None:
        self.killed = why
        transport: Any = self.transport
        try:
            transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def processEnded(self, reason: Failure) -> None:
        if self.done.called:
            return
        if reason.check(ProcessDone):
            self.done.callback(None)
        else:
            last = self.errors.decode(errors="replace").strip().rpartition("\n")[2]
            self.done.errback(RuntimeError(self.killed or last or reason.getErrorMessage()))


class SourceOpener:
    """Opens bind mounts' sources as their caller."""

    def __init__(
        self, reactor: Any, *, python: str = sys.executable, timeout: float = OPEN_TIMEOUT_S
    ) -> None:
        """Args:
        reactor: spawns the child.
        python: the interpreter that runs it.
        timeout: seconds it may take.
        """
        self._reactor = reactor
        self._python = python
        self._timeout = timeout

    async def open(self, caller: Caller, mounts: Sequence[BindMount]) -> list[OpenedSource]:
        """Open each source as ``caller``.

        Returns:
            One for each mount, in their order; the descriptors are the caller's of this method to close.

        Raises:
            DiagnosedError: one cannot be read by the caller (``ANBOX-C008``), or the child failed.
        """
        if not mounts:
            return []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with ours, theirs:
            ours.setblocking(False)
            await self._run(caller, mounts, theirs.fileno())
            return self._collect(ours, caller, mounts)

    async def _run(self, caller: Caller, mounts: Sequence[BindMount], answers: int) -> None:
        request = {
            "uid": caller.uid,
            "gid": caller.gid,
            "groups": sorted(caller.groups),
            "paths": [mount.source for mount in mounts],
        }
        protocol = _Opening(json.dumps(request).encode())
        try:
            self._reactor.spawnProcess(
                protocol,
                self._python,
                [self._python, "-I", "-S", _opener.__file__],
                env={},
                path="/",
                childFDs={0: "w", 1: "r", 2: "r", 3: answers},
            )
            timer = self._reactor.callLater(self._timeout, protocol.kill, f"it had {self._timeout:g} s")
            try:
                await protocol.done
            finally:
                if timer.active():
                    timer.cancel()
        except Exception as error:
            raise DiagnosedError.of(
                "ANBOX-C008",
                f"the bind mounts' sources could not be opened as {caller}",
                str(error) or type(error).__name__,
            ) from error

    def _collect(
        self, ours: socket.socket, caller: Caller, mounts: Sequence[BindMount]
    ) -> list[OpenedSource]:
        opened: list[OpenedSource] = []
        bad: list[str] = []
        spare: list[int] = []
        place = 0
        try:
            while place < len(mounts):
                data, spare = receive_fds(ours, MAX_ANSWER_BYTES, _opener.BATCH)
                for result in json.loads(data):
                    mount = mounts[place]
                    place += 1
                    if "error" in result:
                        bad.append(f"{mount.source}: {result['error']}")
                    else:
                        opened.append(OpenedSource(mount, spare.pop(0), bool(result["directory"])))
            if bad:
                raise DiagnosedError.of(
                    "ANBOX-C008", f"{caller} cannot bind what it cannot read", "; ".join(bad)
                )
        except BaseException:
            close_fds([*spare, *(source.descriptor for source in opened)])
            raise
        return opened


def bind(descriptor: int, target: str) -> None:
    """Bind what an ``O_PATH`` descriptor stands for to ``target``.

    ``mount(8)`` would look the path up again, so this is the system call itself; it takes no time.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    source = f"/proc/self/fd/{descriptor}".encode()
    if libc.mount(source, os.fsencode(target), None, ctypes.c_ulong(MS_BIND), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _make_directories(journal: Journal, path: str) -> None:
    """Make ``path`` and what is missing on the way to it, closed to others; all goes again with the container."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make_directories(journal, parent)
    make_directory(journal, path)


@implementer(IContainerBackend)
class GuardedBackend:
    """A backend whose bind mounts come from opened descriptors.

    Before the backend prepares its container, each source is bound to a place below the instance's run
    path that only root can change (written to the journal as any other mount), and the backend is given
    these places instead of the caller's paths.
    """

    def __init__(self, backend: IContainerBackend, sources: Sequence[OpenedSource]) -> None:
        """Args:
        backend: the real one.
        sources: in the order of the spec's bind mounts; see `close`.
        """
        self.name = backend.name
        self._backend = backend
        self._sources = list(sources)

    def close(self) -> None:
        """Close the descriptors; the mounts stay."""
        sources, self._sources = self._sources, []
        close_fds([source.descriptor for source in sources])

    def probe(self) -> Deferred[list[Probe]]:
        """See `IContainerBackend`."""
        return self._backend.probe()

    def create(self, spec: ContainerSpec, journal: Journal) -> IContainer:
        """See `IContainerBackend`; the places are bound here, as nothing of it can take time."""
        if not self._sources:
            return self._backend.create(spec, journal)
        try:
            place = f"{spec.run_path}/sources"
            _make_directories(journal, place)
            mounts = []
            for number, source in enumerate(self._sources):
                target = f"{place}/{number}"
                if source.directory:
                    make_directory(journal, target)
                else:
                    journal.record("file", path=target)
                    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                record_mount(journal, target)
                bind(source.descriptor, target)
                mounts.append(attrs.evolve(source.mount, source=target))
        except OSError as error:
            raise DiagnosedError.of(
                "ANBOX-C008", "a bind mount's source cannot be bound", str(error)
            ) from error
        finally:
            self.close()
        return self._backend.create(attrs.evolve(spec, bind_mounts=mounts), journal)
