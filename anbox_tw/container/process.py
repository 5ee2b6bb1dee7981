"""The process backend: containers without root, without an image and without an engine.

The container is a tree of processes in user, mount, pid, ipc, uts, cgroup and net namespaces of its
own, with a root built of read-only bind mounts. Where the kernel refuses that, init runs as a
supervised process without isolation; `IContainer.info` says which it is and why.

The work is done by the launcher (`anbox_tw.container._launch`), one child process per container.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.container.commands import Commands, find_tool
from anbox_tw.container.datatree import ensure_data_tree
from anbox_tw.container.diagnosis import CODES, DiagnosedError, Probe, log_tail
from anbox_tw.container.guest_sockets.gate import GuestGate
from anbox_tw.container.idmap import BASE_ID
from anbox_tw.container.journal import Entry, Journal
from anbox_tw.container.probes import HostView, launcher_command, run_checks
from anbox_tw.container.process_plan import PythonFacts, list_root, make_plan
from anbox_tw.container.spec import HOST_ROOTFS, ContainerSpec
from anbox_tw.container.undo import TOKEN_VARIABLE, boot_id, make_directories, process_start_time
from anbox_tw.errors import ConfigError, PermissionRefused
from anbox_tw.interfaces import IContainerBackend, IReachableContainer

__all__ = ["ISOLATIONS", "ProcessBackend", "ProcessContainer"]

ISOLATIONS = ("auto", "namespaces", "plain")

LOG_LIMIT_BYTES = 4 * 1024 * 1024  # of init's log; as much again is kept of the one before
MAX_EVENT_BYTES = 64 * 1024  # of one line from the launcher
MAX_ERROR_BYTES = 8192  # of what the launcher writes to its standard error: a traceback
KILL_WAIT_S = 8.0  # from the order to kill until the launcher itself is killed; it waits for up to 5 s
GONE_WAIT_S = 5.0  # from then until we give up


class _Launcher(ProcessProtocol):
    """The pipe to and from the launcher."""

    transport: Any  # set before connectionMade

    def __init__(
        self,
        plan: dict[str, Any],
        told: Callable[[dict[str, Any]], None],
        ended: Callable[[Failure, str], None],
    ) -> None:
        self.plan = plan
        self.told = told
        self.ended = ended
        self.buffer = b""
        self.errors = b""

    def connectionMade(self) -> None:
        self.transport.write(json.dumps(self.plan).encode() + b"\n")

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == 2:
            self.errors = (self.errors + data)[-MAX_ERROR_BYTES:]
            return
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        if len(self.buffer) > MAX_EVENT_BYTES:
            self.kill()
            return
        for line in lines:
            self.told(json.loads(line))

    def order(self, letter: bytes) -> None:
        self.transport.write(letter)

    def kill(self) -> None:
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def processExited(self, reason: Failure) -> None:
        # Nothing but the launcher has its pipes for longer than it lives, unless it was killed in the
        # middle of a start; whatever is left then dies with it.
        self.transport.loseConnection()

    def processEnded(self, reason: Failure) -> None:
        self.ended(reason, self.errors.decode("utf-8", "replace"))


@implementer(IReachableContainer)
class ProcessContainer:
    """One container of the process backend."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        spec: ContainerSpec,
        journal: Journal,
        *,
        isolation: str,
        log_limit: int,
        python: PythonFacts,
        uid: int,
        gid: int,
    ) -> None:
        self._reactor = reactor
        self._spec = spec
        self._journal = journal
        self._isolation = isolation
        self._log_limit = log_limit
        self._python = python
        self._uid, self._gid = uid, gid
        self._token = uuid.uuid4().hex
        self._plan: dict[str, Any] = {}
        self._launcher: _Launcher | None = None
        self._entry: Entry | None = None
        self._starting: Deferred[None] | None = None
        self._gone_waiters: list[Deferred[None]] = []
        self._exit_waiters: list[Deferred[str]] = []
        self._exit: str | None = None
        self._started: dict[str, Any] = {}
        self._stopping = False
        self.gate: GuestGate | None = None

    # -- IContainer --

    def prepare(self) -> Deferred[None]:
        """Make the data tree and the plan."""
        try:
            self._prepare()
        except Exception:
            return fail()
        return succeed(None)

    def _prepare(self) -> None:
        spec = self._spec
        ensure_data_tree(spec, self._uid, self._gid)
        make_directories(self._journal, spec.run_path, shared=os.path.dirname(spec.run_path))
        if self._isolation != "namespaces":
            self._journal.record("directory", path=f"{spec.run_path}/container-root", recursive=True)
        path = "/" if spec.rootfs == HOST_ROOTFS else spec.rootfs
        try:
            entries = list_root(path)
        except OSError as error:
            raise DiagnosedError.of("ANBOX-C002", f"the rootfs {path} cannot be used", str(error)) from error
        self._plan = make_plan(
            spec,
            python=self._python,
            root_entries=entries,
            uid=self._uid,
            gid=self._gid,
            token=self._token,
            isolation=self._isolation,
            log_limit=self._log_limit,
            as_root=os.geteuid() == 0,
            slirp=self._slirp(),
            resolv_conf=_resolv_conf(spec.rootfs),
        )
        self._plan["manager"] = os.getpid()
        self._plan["owner_is_launcher"] = spec.owner_uid == os.geteuid()
        self._plan["plain"]["switch_user"] = os.geteuid() == 0 and spec.owner_uid != 0

    @staticmethod
    def _slirp() -> str | None:
        return find_tool("slirp4netns") if os.access("/dev/net/tun", os.R_OK | os.W_OK) else None

    def start(self) -> Deferred[None]:
        """Start the launcher; fires when init was executed."""
        if self._launcher is not None or not self._plan:
            raise RuntimeError("start comes once, after prepare")
        entry = self._journal.record("process", token=self._token, what="of the container's launcher")
        self._entry = entry
        gate = self.gate = GuestGate(self._reactor, self._spec.instance)
        launcher = _Launcher({**self._plan, "gate": True}, self._told, self._ended)
        # The launcher is ours and gets our environment; init gets only what the plan says.
        environment = {**os.environ, TOKEN_VARIABLE: self._token}
        self._starting = Deferred()
        starting = self._starting
        try:
            transport = self._reactor.spawnProcess(
                launcher,
                self._python.executable,
                launcher_command(self._python),
                env=environment,
                path="/",
                childFDs={0: "w", 1: "r", 2: "r", 3: gate.child_fd},
            )
        except OSError as error:
            self._starting = None
            gate.close("the launcher cannot be run")
            raise DiagnosedError.of("ANBOX-C012", "the launcher cannot be run", str(error)) from error
        finally:
            gate.started()
        self._launcher = launcher
        pid = transport.pid
        if pid is not None:
            context = self._journal.context
            self._entry = self._journal.more(
                entry, pid=pid, start_time=process_start_time(pid, context), boot_id=boot_id(context)
            )
        return starting.addCallback(lambda _: self._wait_for_gate(gate))

    def _wait_for_gate(self, gate: GuestGate) -> Deferred[Any]:
        """Whoever hears that the container runs may open sockets in it at once, if anybody ever may."""
        if self._started.get("gate"):
            return gate.when_ready()
        gate.close("the launcher has started no helper")
        return succeed(None)

    def stop(self, timeout: float) -> Deferred[None]:
        """Ask init to end with SIGTERM, kill it after ``timeout`` seconds; fires when all is gone."""
        launcher = self._launcher
        if launcher is None:
            return succeed(None)
        self._stopping = True
        launcher.order(b"T")
        timers = [
            self._reactor.callLater(timeout, launcher.order, b"K"),
            self._reactor.callLater(timeout + KILL_WAIT_S, launcher.kill),
        ]
        gone: Deferred[None] = Deferred()
        self._gone_waiters.append(gone)

        def give_up() -> None:
            if gone in self._gone_waiters:
                self._gone_waiters.remove(gone)
                gone.errback(DiagnosedError.of("ANBOX-C018", "the container's processes do not end"))

        timers.append(self._reactor.callLater(timeout + KILL_WAIT_S + GONE_WAIT_S, give_up))

        def forget_timers(result: Any) -> Any:
            for timer in timers:
                if timer.active():
                    timer.cancel()
            return result

        return gone.addBoth(forget_timers)

    def when_exited(self) -> Deferred[str]:
        """A Deferred of the caller's own: how init ended."""
        if self._exit is not None:
            return succeed(self._exit)
        waiter: Deferred[str] = Deferred(
            lambda d: self._exit_waiters.remove(d) if d in self._exit_waiters else None
        )
        self._exit_waiters.append(waiter)
        return waiter

    def info(self) -> dict[str, Any]:
        """What is known now.

        Returns:
            ``backend``, ``isolation`` (``namespaces``, ``plain`` or empty before the start), ``pid`` of the
            container's first process and ``supervisor_pid`` of the launcher (on the host), ``uid``
            and ``gid`` on the host, ``namespaces``, ``refused`` (namespace to reason), ``address``,
            ``log_files``, ``notes``, ``exit``.
        """
        launcher = self._launcher
        return {
            "backend": "process",
            "isolation": self._started.get("isolation", ""),
            "pid": self._started.get("pid") if self._exit is None else None,
            "supervisor_pid": launcher.transport.pid if launcher is not None else None,
            "uid": self._uid,
            "gid": self._gid,
            "namespaces": self._started.get("namespaces", []),
            "refused": self._started.get("refused", {}),
            "address": self._started.get("address"),
            "log_files": [self._spec.console_log],
            "notes": [*self._notes(), *self._started.get("notes", [])],
            "exit": self._exit,
        }

    def _notes(self) -> list[str]:
        notes = []
        spec = self._spec
        if spec.use_rootfs_overlay:
            notes.append("the rootfs overlay is not used: this backend's root is read only")
        if spec.image is not None:
            notes.append("the Android image is not used: this backend runs directories only")
        if spec.network.address or spec.network.gateway:
            notes.append("the network address is not used: this backend has no bridge")
        namespaced = self._started.get("isolation") == "namespaces"
        if namespaced and not self._plan["slirp"] and spec.network.mode == "auto":
            notes.append("no network beyond the container: slirp4netns or /dev/net/tun is missing")
        if self._started.get("isolation") == "plain":
            reason = self._started.get("refused", {}).get("all", "")
            uid = spec.owner_uid if self._plan["plain"]["switch_user"] else os.geteuid()
            notes.append(f"no isolation: init is an ordinary process of uid {uid} ({reason})")
        return notes

    # -- from the launcher --

    def _told(self, event: dict[str, Any]) -> None:
        name = event.pop("event")
        if name == "started":
            self._started = event
            for key, why in event["refused"].items():
                self._log.info(
                    "{instance}: no namespace {key}: {why}", instance=self._spec.instance, key=key, why=why
                )
            self._settle_start(None)
        elif name == "failed":
            code = event["code"] if event["code"] in CODES else "ANBOX-C024"
            self._settle_start(
                DiagnosedError.of(
                    code, event["what"], event["why"], event["cure"], log_tail(self._spec.console_log)
                )
            )
        elif name == "exited":
            self._exit = _describe_exit(event, self._stopping)

    def _settle_start(self, error: Exception | None) -> None:
        starting, self._starting = self._starting, None
        if starting is not None and not starting.called:
            starting.callback(None) if error is None else starting.errback(error)

    def _ended(self, reason: Failure, errors: str) -> None:
        """The launcher is gone, and with it the container."""
        self._launcher = None
        if self.gate is not None:
            self.gate.close()
        if self._exit is None:
            self._exit = "its launcher was killed" if self._started else "it never ran"
        if errors:
            self._log.error(
                "the launcher of {instance}: {errors}", instance=self._spec.instance, errors=errors
            )
        self._settle_start(
            DiagnosedError.of(
                "ANBOX-C012",
                "the launcher ended before the container ran",
                errors.strip().rpartition("\n")[2] or str(reason.value),
                "",
                log_tail(self._spec.console_log),
            )
        )
        exited, self._exit_waiters = self._exit_waiters, []
        gone, self._gone_waiters = self._gone_waiters, []
        for exit_waiter in exited:
            exit_waiter.callback(self._exit)
        for gone_waiter in gone:
            gone_waiter.callback(None)


def _is_mapped(number: int, path: str) -> bool:
    """Whether an id exists in our own user namespace."""
    try:
        with open(path) as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except OSError:
        return True  # a kernel without user namespaces
    return any(first <= number < first + count for first, _, count in ranges)


def _resolv_conf(rootfs: str) -> str:
    """What ``/etc/resolv.conf`` is in the container, when all links are followed."""
    if rootfs == HOST_ROOTFS:
        return os.path.realpath("/etc/resolv.conf")
    try:
        link = os.readlink(f"{rootfs}/etc/resolv.conf")
    except OSError:
        return "/etc/resolv.conf"
    return os.path.normpath(os.path.join("/etc", link))


def _describe_exit(event: dict[str, Any], stopping: bool) -> str:
    if "signal" in event:
        number = event["signal"]
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        killed = " on request" if event.get("killed") and stopping else ""
        return f"init was killed by {name}{killed}"
    return f"init ended with status {event.get('status', '?')}"


@implementer(IContainerBackend)
class ProcessBackend:
    """Makes containers that are process trees.

    Attributes:
        name: ``process``.
    """

    name = "process"

    def __init__(
        self,
        reactor: Any,
        *,
        isolation: str = "auto",
        log_limit: int = LOG_LIMIT_BYTES,
        python: PythonFacts | None = None,
    ) -> None:
        """Set the backend up; the host is not looked at yet.

        Args:
            reactor: spawns the launcher and gives the time.
            isolation: ``auto`` uses namespaces where the kernel allows, ``namespaces`` refuses to run
                without them, ``plain`` never uses them.
            log_limit: bytes of init's log before it is rotated; twice that is kept.
            python: where Python and our package are; found out if not given.

        Raises:
            ConfigError: there is no such isolation.
        """
        if isolation not in ISOLATIONS:
            raise ConfigError(
                f"{isolation!r} is not an isolation", f"use {', '.join(ISOLATIONS)}", code="ANBOX-C001"
            )
        self._reactor = reactor
        self.isolation = isolation
        self._log_limit = log_limit
        self._python = python or PythonFacts.here()

    def probe(self) -> Deferred[list[Probe]]:
        """Run the checks without which this backend cannot run; whether there are namespaces shows at the start."""
        return run_checks(
            HostView(Commands(self._reactor), python=self._python), self.name, required_only=True
        )

    def create(self, spec: ContainerSpec, journal: Journal) -> ProcessContainer:
        """Make a container object; nothing on the host changes yet.

        Raises:
            ConfigError: an Android image is asked for, which this backend cannot run.
            PermissionRefused: it would have to run as another user, and we are not root.
        """
        if not spec.rootfs:
            raise ConfigError(
                "the process backend runs no Android image",
                "use --backend lxc, or --rootfs host or --rootfs DIR",
                code="ANBOX-C001",
            )
        uid, gid = self.host_ids(spec)
        return ProcessContainer(
            self._reactor,
            spec,
            journal,
            isolation=self.isolation,
            log_limit=self._log_limit,
            python=self._python,
            uid=uid,
            gid=gid,
        )

    @staticmethod
    def host_ids(spec: ContainerSpec, proc: str = "/proc") -> tuple[int, int]:
        """The host's uid and gid of the container's root.

        It is the owner. For an owner who is root it is `BASE_ID` in root's group, for the
        container's guest must not read what only root may; ``privileged`` makes it root after all, and so
        does a root who is one only in a user namespace without that id (a rootless Docker or Podman).

        Raises:
            PermissionRefused: only root can run a container as somebody else.
        """
        if os.geteuid() != 0:
            if (spec.owner_uid, spec.owner_gid) != (os.geteuid(), os.getegid()):
                raise PermissionRefused(
                    f"a container of uid {spec.owner_uid} cannot be run by uid {os.geteuid()}",
                    "run the manager as root, or as that user",
                    code="ANBOX-C021",
                )
            return spec.owner_uid, spec.owner_gid
        if spec.owner_uid == 0 and not spec.privileged and _is_mapped(BASE_ID, f"{proc}/self/uid_map"):
            return BASE_ID, spec.owner_gid
        return spec.owner_uid, spec.owner_gid
