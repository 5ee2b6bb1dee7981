"""What each command of the rc language does here.

Source: ``init/builtins.cpp`` at android-7.0.0_r1. Three kinds:

* commands about services, properties and triggers, and about files, are done (files below ``root``);
* commands that change the system (``mount``, ``hostname``, ``ifup``, writes below ``/proc`` and ``/sys``, …) are done
  where the system is ours, which a container's pid 1 may say of itself; elsewhere they are refused, so that nobody's
  host is reconfigured by an ``init.rc``;
* commands for hardware and formats a container does not have (``restorecon``, ``installkey``, …) succeed and do nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import stat
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from anbox_tw.android.aid import decode_id
from anbox_tw.android.errors import InitError, RcError
from anbox_tw.android.rc.model import RcService

if TYPE_CHECKING:
    from anbox_tw.android.init.supervisor import Init
    from anbox_tw.android.rc.model import Command

__all__ = ["Builtins"]

WAIT_DEFAULT_S = 5.0
"""``COMMAND_RETRY_TIMEOUT``."""

WAIT_POLL_S = 0.02
"""How often ``wait`` looks."""

MAX_COPY_BYTES = 16 << 20
"""Longest file that ``copy`` copies: it is read whole."""

MAX_GROUPS_IN_EXEC = 12

_MOUNT_FLAGS = {
    "noatime": 0x400,
    "noexec": 0x8,
    "nosuid": 0x2,
    "nodev": 0x4,
    "nodiratime": 0x800,
    "ro": 0x1,
    "rw": 0,
    "remount": 0x20,
    "bind": 0x1000,
    "rec": 0x4000,
    "unbindable": 1 << 17,
    "private": 1 << 18,
    "slave": 1 << 19,
    "shared": 1 << 20,
    "defaults": 0,
}
"""Words of ``mount`` to ``MS_*``."""

_MAX_LIMIT = 2**63 - 1
"""Largest ``rlim_t`` that can be handed to the kernel from here; -1 is no limit."""

_LATE_DIRECTORIES = ("/system/etc/init", "/vendor/etc/init", "/odm/etc/init")

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

Result = Deferred[None] | None


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise InitError(f"'{text}' is not octal") from None


def _decimal(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InitError(f"'{text}' is not a number") from None


class Builtins:
    """The commands, for one supervisor."""

    def __init__(self, init: Init, *, root: str = "/", system: bool = False) -> None:
        """Prepare.

        Args:
            init: whose services and properties.
            root: directory that stands for ``/`` in the file commands.
            system: the system is ours to change.
        """
        self._init = init
        self._root = root.rstrip("/")
        self._system = system

    def run(self, command: Command, words: list[str]) -> Result:
        """Run one command.

        Args:
            command: as it stands in the file.
            words: the command with its properties expanded.

        Returns:
            ``None``, or a Deferred when no further command may run until it fires.

        Raises:
            InitError: it failed, and why.
            OSError: the kernel refused.
        """
        function: Callable[[list[str]], Result] | None = getattr(self, f"_do_{words[0]}", None)
        if function is None:
            raise InitError(f"'{words[0]}' is not done here")
        return function(words[1:])

    # -- services ---------------------------------------------------------------------------------------

    def _do_start(self, args: list[str]) -> None:
        self._init.find(args[0]).start()

    def _do_stop(self, args: list[str]) -> None:
        self._init.find(args[0]).stop()

    def _do_restart(self, args: list[str]) -> None:
        self._init.find(args[0]).restart()

    def _do_enable(self, args: list[str]) -> None:
        self._init.find(args[0]).enable()

    def _do_class_start(self, args: list[str]) -> None:
        for service in self._init.in_class(args[0]):
            service.start_if_not_disabled()

    def _do_class_stop(self, args: list[str]) -> None:
        for service in self._init.in_class(args[0]):
            service.stop()

    def _do_class_reset(self, args: list[str]) -> None:
        for service in self._init.in_class(args[0]):
            service.reset()

    def _do_exec(self, args: list[str]) -> Result:
        """``exec [SECLABEL [USER [GROUP]*]] -- COMMAND ARGUMENTS``; without ``--`` all of it is the command."""
        before, command = [], args
        if "--" in args:
            at = args.index("--")
            before, command = args[:at], args[at + 1 :]
        if not command:
            raise InitError("exec called without command")
        groups = before[2:]
        if len(groups) > MAX_GROUPS_IN_EXEC + 1:
            raise InitError("exec called with too many supplementary group ids")
        spec = RcService("", tuple(command), self._init.current_location())
        spec.seclabel = before[0] if before and before[0] != "-" else ""
        spec.user = before[1] if len(before) > 1 else ""
        spec.group = groups[0] if groups else ""
        spec.supplementary = tuple(groups[1:])
        return self._init.run_exec(spec)

    # -- properties, triggers ---------------------------------------------------------------------------

    def _do_setprop(self, args: list[str]) -> None:
        self._init.store.set(args[0], args[1])

    def _do_trigger(self, args: list[str]) -> None:
        self._init.actions.queue_event(args[0])

    def _do_export(self, args: list[str]) -> None:
        self._init.export(args[0], args[1])

    def _do_load_persist_props(self, args: list[str]) -> None:
        if self._init.store.get("ro.debuggable") == "1":
            self._init.store.load_file(self._root + "/data/local.prop", root=self._root)
        self._init.store.load_persistent()

    def _do_load_system_props(self, args: list[str]) -> None:
        for path, pattern in (
            ("/system/build.prop", ""),
            ("/vendor/build.prop", ""),
            ("/factory/factory.prop", "ro.*"),
        ):
            self._init.store.load_file(self._root + path, pattern, root=self._root)

    def _do_loglevel(self, args: list[str]) -> None:
        level = _decimal(args[0])
        if not 3 <= level <= 7:
            raise InitError(f"invalid log level '{level}'")

    # -- files ------------------------------------------------------------------------------------------

    def _path(self, path: str) -> str:
        if "\0" in path:
            raise InitError("a path holds a NUL byte")
        normal = os.path.normpath("/" + path.lstrip("/")) if path.startswith("/") else path
        if not self._system and not self._root:
            first = os.path.realpath(os.path.dirname(normal) or ".")
            for kernel in ("/proc", "/sys"):
                if f"{normal}/".startswith(f"{kernel}/") or f"{first}/".startswith(f"{kernel}/"):
                    raise InitError(
                        f"'{path}' belongs to the host's kernel, and the system is not ours to change"
                    )
        if not path.startswith("/"):
            return path
        return self._inside(normal) if self._root else normal

    def _inside(self, normal: str) -> str:
        """``normal`` below the root: its directory may not lead out through a symlink."""
        full = self._root + normal
        parent = os.path.realpath(os.path.dirname(full))
        root = os.path.realpath(self._root)
        if parent != root and not parent.startswith(root + "/"):
            raise InitError(f"'{normal}' leads out of {self._root}")
        return os.path.join(parent, os.path.basename(full))

    def _owner(self, text: str, *, group: bool = False) -> int:
        number = decode_id(text, group=group, host=True)
        if number is None:
            raise InitError(f"no such {'group' if group else 'user'}: '{text}'")
        return number

    def _chown(self, path: str, uid: int, gid: int) -> None:
        try:
            os.chown(path, uid, gid, follow_symlinks=False)
        except OSError as error:
            if self._init.strict:
                raise
            self._init.note(f"owner of {path}", error.strerror or str(error))

    def _chmod(self, path: str, mode: int) -> None:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise InitError(f"'{path}' is a symbolic link")
        os.chmod(path, mode)

    def _do_chmod(self, args: list[str]) -> None:
        self._chmod(self._path(args[1]), _octal(args[0]))

    def _do_chown(self, args: list[str]) -> None:
        gid = self._owner(args[1], group=True) if len(args) == 3 else -1
        path = self._path(args[-1])
        os.lstat(path)
        self._chown(path, self._owner(args[0]), gid)

    def _do_mkdir(self, args: list[str]) -> None:
        path = self._path(args[0].rstrip("/") or "/")
        mode = _octal(args[1]) if len(args) > 1 else 0o755
        before = os.umask(0)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            self._chmod(path, mode)
        finally:
            os.umask(before)
        if len(args) > 2:
            gid = self._owner(args[3], group=True) if len(args) > 3 else -1
            self._chown(path, self._owner(args[2]), gid)
        if mode & 0o7000:
            # mkdir ignores these bits, and chown clears them
            self._chmod(path, mode)

    def _do_rm(self, args: list[str]) -> None:
        os.unlink(self._path(args[0]))

    def _do_rmdir(self, args: list[str]) -> None:
        os.rmdir(self._path(args[0]))

    def _do_symlink(self, args: list[str]) -> None:
        os.symlink(args[0], self._path(args[1]))

    def _do_write(self, args: list[str]) -> None:
        self._write(self._path(args[0]), args[1].encode("utf-8", "surrogateescape"), 0o600, os.O_NOFOLLOW)

    def _do_copy(self, args: list[str]) -> None:
        source = os.open(self._path(args[0]), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(source, "rb") as file:
            size = os.fstat(source).st_size
            if size > MAX_COPY_BYTES:
                raise InitError(f"'{args[0]}' is longer than {MAX_COPY_BYTES} bytes")
            data = file.read(size) or b""
        self._write(self._path(args[1]), data, 0o660, os.O_TRUNC)

    def _write(self, path: str, data: bytes, mode: int, flags: int) -> None:
        # O_NONBLOCK: a pipe without a reader must not stop init
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | flags, mode)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)

    def _do_wait(self, args: list[str]) -> Result:
        path = self._path(args[0])
        limit = float(_decimal(args[1])) if len(args) > 1 else WAIT_DEFAULT_S
        clock = self._init.clock
        deadline = clock.seconds() + limit
        calls: list[IDelayedCall] = []

        def cancel(_deferred: Deferred[None]) -> None:
            for call in calls:
                call.cancel()

        done: Deferred[None] = Deferred(cancel)

        def look() -> None:
            calls.clear()
            if os.path.exists(path):
                done.callback(None)
            elif clock.seconds() >= deadline:
                done.errback(InitError(f"'{args[0]}' did not appear within {limit:g} s"))
            else:
                calls.append(clock.callLater(WAIT_POLL_S, look))

        look()
        return done

    # -- the system -------------------------------------------------------------------------------------

    def _need_system(self, what: str) -> None:
        if not self._system:
            raise InitError(f"{what} is refused: the system is not ours to change")

    def _do_domainname(self, args: list[str]) -> None:
        self._need_system("domainname")
        self._write("/proc/sys/kernel/domainname", args[0].encode(), 0o600, 0)

    def _do_hostname(self, args: list[str]) -> None:
        self._need_system("hostname")
        socket.sethostname(args[0])

    def _do_ifup(self, args: list[str]) -> None:
        self._need_system("ifup")
        name = args[0].encode()[:15]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh22x", name, 0))
            flags = struct.unpack_from("16sh", answer)[1] | _IFF_UP
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", name, flags))

    def _do_mount(self, args: list[str]) -> Result:
        self._need_system("mount")
        kind, source, target, *words = args
        if source.startswith(("mtd@", "loop@")):
            raise InitError(f"'{source}': a container's images are mounted by its backend")
        flags, options = 0, ""
        for index, word in enumerate(words):
            if word in _MOUNT_FLAGS:
                flags |= _MOUNT_FLAGS[word]
            elif word != "wait" and index == len(words) - 1:
                options = word
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(
            source.encode(), self._path(target).encode(), kind.encode(), flags, options.encode() or None
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target)
        return None

    def _do_mount_all(self, args: list[str]) -> None:
        """The backend has mounted everything; what is left is to read the late rc files, and to say so."""
        for path in args[1:] or _LATE_DIRECTORIES:
            try:
                self._init.load(self._root + path)
            except RcError as error:
                self._init.note(path, error.cause)
        self._init.store.try_set("ro.crypto.state", "unsupported")
        self._init.actions.queue_event("nonencrypted")

    def _do_setrlimit(self, args: list[str]) -> None:
        number, soft, hard = map(_decimal, args)
        if (
            not 0 <= number < resource.RLIM_NLIMITS
            if hasattr(resource, "RLIM_NLIMITS")
            else not 0 <= number < 16
        ):
            raise InitError(f"there is no resource {number}")
        for limit in (soft, hard):
            if not -1 <= limit <= _MAX_LIMIT:
                # kept, it would fail in the child of every service from now on
                raise InitError(f"'{limit}' is no limit")
        self._init.limits[number] = (number, soft, hard)

    def _do_powerctl(self, args: list[str]) -> None:
        self._init.power(args[0])

    def _do_insmod(self, args: list[str]) -> None:
        raise InitError("modules are the host's: load them there")

    def _nothing(self, args: list[str]) -> None:
        """Succeeds: a container has nothing that this would work on."""

    _do_bootchart_init = _nothing
    _do_init_user0 = _nothing
    _do_installkey = _nothing
    _do_restorecon = _nothing
    _do_restorecon_recursive = _nothing
    _do_swapon_all = _nothing
    _do_sysclktz = _nothing
    _do_verity_load_state = _nothing
    _do_verity_update_state = _nothing
