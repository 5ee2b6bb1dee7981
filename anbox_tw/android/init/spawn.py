"""Makes a service's process: the steps between fork and exec, in the order of Android's init.

Source: ``Service::Start`` in ``init/service.cpp`` and ``create_socket`` in ``init/util.cpp`` at
android-7.0.0_r1. What the kernel refuses is written to a pipe that closes on exec, so the parent learns
of it without waiting.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import termios
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from anbox_tw.android._wire import Namespace, control_key, sun_path
from anbox_tw.android.errors import AndroidError
from anbox_tw.android.localsocket import SOCKET_TYPES, bind_path

__all__ = ["EXIT_CANNOT_START", "Launch", "SocketLaunch", "launch", "parse_report"]

EXIT_CANNOT_START = 127
"""How the child exits when it cannot become the service."""

MAX_REPORT_BYTES = 65536
"""Longest report of one child."""

_IOPRIO_CLASSES = {"rt": 1, "be": 2, "idle": 3}
_IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "armv7l": 314,
    "armv6l": 314,
    "i686": 289,
    "i386": 289,
}
"""``__NR_ioprio_set``: the C library has no wrapper."""

_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


@frozen
class SocketLaunch:
    """One socket to make; ``uid`` and ``gid`` are numbers, or ``None`` when the name is unknown."""

    name: str
    type: str
    mode: int
    uid: int | None = 0
    gid: int | None = 0


@frozen
class Launch:
    """All that the child needs to know.

    Attributes:
        argv: program and arguments.
        failure: why the arguments cannot be had; the child then ends as one that cannot be executed.
        environment: what it gets, before its sockets.
        sockets: made in this order.
        socket_directory: where.
        writepid: files that get the process id.
        ioprio: class and level.
        console: terminal that becomes its controlling one, or ``None`` for ``/dev/null``.
        inherit_output: keep our standard output and error instead of ``/dev/null``.
        uid: user, 0 to stay what we are.
        gid: group, 0 to stay.
        groups: supplementary groups, empty to stay.
        unknown: names that could not be turned into numbers.
        limits: resource limits to set first.
        seclabel: SELinux label to run under, or empty.
        strict: what the kernel refuses ends the child, as on Android; otherwise it is reported and left out.
        parent: the child ends with this process, which forks it.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    failure: str = ""
    sockets: Sequence[SocketLaunch] = ()
    socket_directory: str = "/dev/socket"
    writepid: Sequence[str] = ()
    ioprio: tuple[str, int] | None = None
    console: str | None = None
    inherit_output: bool = False
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    unknown: Sequence[str] = ()
    limits: Sequence[tuple[int, int, int]] = field(factory=list)
    seclabel: str = ""
    strict: bool = True
    parent: int = field(factory=os.getpid)


def launch(plan: Launch) -> tuple[int, int]:
    """Fork and start.

    Returns:
        The child's pid, and the read end of its report: lines of JSON, ended by the exec or the child's end.

    Raises:
        OSError: no process or pipe could be made.
    """
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with warnings.catch_warnings():
            # 3.12 warns where threads run; between here and exec the child only makes system calls
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if pid == 0:
        # nothing may get out of here, whatever happens
        try:
            _child(plan, write)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                _report(write, "start", f"{type(error).__name__}: {error}", fatal=True)
        finally:
            os._exit(EXIT_CANNOT_START)
    os.close(write)
    with contextlib.suppress(OSError):
        # the child does it too: whoever is first, a signal to the group cannot miss
        os.setpgid(pid, pid)
    return pid, read


def parse_report(data: bytes) -> list[dict[str, str | bool]]:
    """The lines of a report; what is cut off is left out."""
    found = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                found.append(entry)
    return found


def _report(write: int, what: str, why: str, *, fatal: bool = False) -> None:
    line = json.dumps({"what": what, "why": why, "fatal": fatal}).encode() + b"\n"
    with contextlib.suppress(OSError):
        os.write(write, line)


class _Refused(Protocol):
    """Says that the kernel refused ``what``; does not return when that is fatal."""

    def __call__(self, what: str, error: BaseException | str, *, always_go_on: bool = False) -> None: ...


class _Fatal(Exception):
    """The child cannot become the service; it was reported."""


def _child(
    plan: Launch, write: int
) -> None:  # pragma: no cover  # in a forked child, which coverage cannot see
    """Everything up to exec; returns only when that failed."""

    def refused(what: str, error: BaseException | str, *, always_go_on: bool = False) -> None:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        fatal = plan.strict and not always_go_on
        _report(write, what, why, fatal=fatal)
        if fatal:
            raise _Fatal

    # Python ignores SIGPIPE and Twisted catches others: a service gets what the kernel gives a first process
    signal.set_wakeup_fd(-1)
    for caught in signal.valid_signals():
        if caught not in (signal.SIGKILL, signal.SIGSTOP):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(caught, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])

    try:
        os.umask(0o077)
        environment = dict(plan.environment)
        sockets: set[int] = set()
        for spec in plan.sockets:
            descriptor = _make_socket(spec, plan, write)
            if descriptor is not None:
                environment[control_key(spec.name)] = str(descriptor)
                sockets.add(descriptor)
        pid = str(os.getpid())
        for path in plan.writepid:
            try:
                with open(path, "w", encoding="ascii") as file:
                    file.write(pid)
            except OSError as error:
                refused(f"writepid {path}", error, always_go_on=True)
        if plan.ioprio is not None:
            _set_ioprio(plan.ioprio, refused)
        for number, soft, hard in plan.limits:
            try:
                resource.setrlimit(number, (soft, hard))
            except (OSError, ValueError, OverflowError) as error:
                refused(f"setrlimit {number}", error, always_go_on=True)
        _standard_streams(plan)
        with contextlib.suppress(OSError):  # the leader of a session cannot, and need not
            os.setpgid(0, 0)
        for name in plan.unknown:
            refused(name, "no such user or group")
        if plan.gid and plan.gid != os.getgid():
            _try(refused, f"group {plan.gid}", lambda: os.setgid(plan.gid))
        if plan.groups:
            _try(
                refused, f"groups {' '.join(map(str, plan.groups))}", lambda: os.setgroups(list(plan.groups))
            )
        elif plan.uid or plan.gid:
            # Android's init has none that a service could inherit; ours may come from somebody's login
            with contextlib.suppress(OSError):
                os.setgroups([])
        if plan.uid and plan.uid != os.getuid():
            _try(refused, f"user {plan.uid}", lambda: os.setuid(plan.uid))
        if plan.seclabel:
            try:
                with open("/proc/self/attr/exec", "w", encoding="ascii") as file:
                    file.write(plan.seclabel)
            except OSError as error:
                # no SELinux, no labels: nothing is less safe than the host already is
                refused(f"seclabel {plan.seclabel}", error, always_go_on=True)
        # when process 1 of Android dies, all die with it; set last, for a change of user takes it away
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != plan.parent:
            os._exit(EXIT_CANNOT_START)
        _keep_only(sockets, write)
        if plan.failure:
            _report(write, f"arguments of {plan.argv[0]}", plan.failure, fatal=True)
            raise _Fatal
        try:
            os.execve(plan.argv[0], list(plan.argv), environment)  # noqa: S606  # that is what init does
        except OSError as error:
            _report(write, f"execve {plan.argv[0]}", error.strerror or str(error), fatal=True)
    except _Fatal:
        pass
    os._exit(EXIT_CANNOT_START)


def _try(refused: _Refused, what: str, call: Callable[[], None]) -> None:
    try:
        call()
    except OSError as error:
        refused(what, error)


def _keep_only(sockets: set[int], write: int) -> None:
    """A service gets its sockets and nothing else that we were given by whoever started us."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc here yet
        numbers = list(
            range(resource.getrlimit(resource.RLIMIT_NOFILE)[0] if not sockets else max(sockets) + 1024)
        )
    for number in numbers:
        if number > 2 and number not in sockets and number != write:
            with contextlib.suppress(OSError):
                os.set_inheritable(number, False)


def _make_socket(spec: SocketLaunch, plan: Launch, write: int) -> int | None:
    """One socket of the service; ``None`` when it cannot be had, which never keeps the service from starting."""
    what = f"socket {spec.name}"
    sock = None
    try:
        path = sun_path(spec.name, Namespace.RESERVED, socket_directory=plan.socket_directory)
        control_key(spec.name)
        sock = socket.socket(socket.AF_UNIX, SOCKET_TYPES[spec.type])
        unknown = spec.uid is None or spec.gid is None
        uid = -1 if spec.uid is None else spec.uid
        gid = -1 if spec.gid is None else spec.gid
        if unknown:
            _report(write, what, "no such user or group")
            if plan.strict:
                # Android's chown to an id that is none fails, and the socket with it
                return None
        failures = bind_path(sock, path, mode=spec.mode, uid=uid, gid=gid)
        wanted = {"owner": f"{uid}:{gid}", "mode": f"{spec.mode:o}"}
        for part, error in failures:
            _report(write, what, f"{part} {wanted[part]}: {error.strerror}")
        if failures and plan.strict:
            os.unlink(path)
            sock.close()
            return None
        os.set_inheritable(sock.fileno(), True)
        return sock.detach()
    except (OSError, AndroidError) as error:
        _report(write, what, str(error))
        if sock is not None:
            sock.close()
        return None


def _set_ioprio(ioprio: tuple[str, int], refused: _Refused) -> None:
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is None:
        refused(f"ioprio {ioprio[0]} {ioprio[1]}", "not known on this processor", always_go_on=True)
        return
    value = _IOPRIO_CLASSES[ioprio[0]] << 13 | ioprio[1]
    if _libc.syscall(number, 1, 0, value) != 0:  # IOPRIO_WHO_PROCESS, ourselves
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        refused(f"ioprio {ioprio[0]} {ioprio[1]}", error, always_go_on=True)


def _standard_streams(plan: Launch) -> None:
    if plan.console is not None:
        os.setsid()
        try:
            descriptor = os.open(plan.console, os.O_RDWR)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, termios.TIOCSCTTY, struct.pack("i", 0))
        targets: tuple[int, ...] = (0, 1, 2)
    else:
        descriptor = os.open(os.devnull, os.O_RDWR)
        targets = (0,) if plan.inherit_output else (0, 1, 2)
    for target in targets:
        os.dup2(descriptor, target)
    if plan.inherit_output and plan.console is None:
        for target in (1, 2):
            with contextlib.suppress(OSError):
                os.set_inheritable(target, True)
    if descriptor > 2:
        os.close(descriptor)
