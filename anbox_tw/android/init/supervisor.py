"""Init itself: reads the files, runs the actions, keeps the services.

Source: ``main`` in ``init/init.cpp`` at android-7.0.0_r1. One command runs at a time, and the reactor gets its
turn between any two; while an ``exec`` or ``wait`` is under way no further command runs and nothing is restarted,
but children are reaped and properties set.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.android._text import printable
from anbox_tw.android._wire import SOCKET_DIRECTORY, Namespace, sun_path
from anbox_tw.android.errors import AddressError, InitError, PropertyError, RcError
from anbox_tw.android.init._actions import ActionQueue, Builtin
from anbox_tw.android.init._directory import SocketDirectory
from anbox_tw.android.init._report import ReportReader
from anbox_tw.android.init._state import Flag, ServiceState
from anbox_tw.android.init.builtins import Builtins
from anbox_tw.android.init.plan import has_every_id, plan_launch
from anbox_tw.android.init.reaper import Reaper, describe_exit
from anbox_tw.android.init.spawn import Launch, launch
from anbox_tw.android.properties.service import PropertyService
from anbox_tw.android.properties.store import PropertyStore
from anbox_tw.android.rc import Location, Problem, RcLoader, RcService, expand

__all__ = ["DEFAULT_PATH", "Init", "PowerCommand"]

DEFAULT_PATH = (
    "/sbin:/vendor/bin:/system/sbin:/system/bin:/system/xbin:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
)
"""``PATH`` of services: Android's, then a Linux rootfs's."""

SHUTDOWN_TIMEOUT_S = 5.0
"""How long services may take to end after SIGTERM before they are killed."""

KILL_TIMEOUT_S = 5.0
"""How long to wait for the kernel to end what was killed (a process in an uninterruptible wait can keep it)."""

ORPHAN_POLL_S = 0.02
"""How often orphans are looked for while shutting down."""

MAX_NOTES = 200
"""Notes kept; later ones are logged only."""

_FALLBACK_BOOT = ("early-fs", "fs", "post-fs", "post-fs-data", "early-boot", "boot")
"""What ``late-init`` triggers in AOSP's ``init.rc``; done by us where no file defines ``late-init``."""


class PowerCommand(tuple[str, str]):
    """What ``powerctl`` was asked for: ``shutdown`` or ``reboot``, and the target behind the comma."""

    __slots__ = ()

    @property
    def command(self) -> str:
        """``shutdown`` or ``reboot``."""
        return self[0]

    @property
    def target(self) -> str:
        """For example ``recovery``, or an empty string."""
        return self[1]


class Init(Service):
    """The supervisor.

    Attributes:
        store: the properties.
        actions: what is still to be run.
        services: all services by name, in order of definition.
        limits: resource limits that services get, by number.
        notes: what could not be done as written, for users to read.
        observers: called with a dict for each thing that happens.
        before_release: called at the very end, before the socket directory is given up; may return Deferreds.
        stopping: the end has begun.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        files: Sequence[str] = (),
        texts: Sequence[tuple[str, str]] = (),
        socket_directory: str = SOCKET_DIRECTORY,
        properties: Mapping[str, str] | None = None,
        persistent_directory: str | None = None,
        root: str = "/",
        system: bool = False,
        strict: bool | None = None,
        environment: Mapping[str, str] | None = None,
        console: str | None = None,
        inherit_output: bool = False,
        adopt_orphans: bool = False,
        shutdown_timeout: float = SHUTDOWN_TIMEOUT_S,
        on_power: Callable[[PowerCommand], None] | None = None,
        launcher: Callable[[Launch], tuple[int, int]] = launch,
    ) -> None:
        """Prepare; nothing is read or made before ``startService``.

        Args:
            reactor: an ``IReactorFDSet`` and ``IReactorTime``.
            files: rc files and directories, read in order.
            texts: names and texts of rc files that are not on disk, read before the files.
            socket_directory: where sockets are made; made itself when it is missing.
            properties: set before the files are read.
            persistent_directory: where ``persist.*`` are kept, or ``None``.
            root: directory that stands for ``/`` in imports and file commands (not for services' programs).
            system: the system is ours to change (see ``builtins``).
            strict: what the kernel refuses a service ends it, as on Android; by default so for a full root.
            environment: what every service gets; by default only ``PATH``.
            console: the terminal for services with ``console``.
            inherit_output: services keep our standard output and error.
            adopt_orphans: processes whose parents are gone become ours, and end with us.
            shutdown_timeout: seconds between SIGTERM and SIGKILL when we stop.
            on_power: called when ``powerctl`` or a critical service asks for a shutdown or reboot.
            launcher: makes processes.
        """
        self.clock = reactor
        self.files = list(files)
        self.texts = list(texts)
        self.socket_directory = os.path.abspath(socket_directory)
        self.store = PropertyStore(persistent_directory)
        self._initial = dict(properties or {})
        self._root = "" if root == "/" else os.path.abspath(root)
        self.strict = has_every_id() if strict is None else strict
        self.environment = {"PATH": DEFAULT_PATH} if environment is None else dict(environment)
        if self.socket_directory != SOCKET_DIRECTORY:
            self.environment["ANBOX_SOCKET_DIR"] = self.socket_directory
        self._console = console
        self._inherit_output = inherit_output
        self._adopt = adopt_orphans
        self._shutdown_timeout = shutdown_timeout
        self._on_power = on_power
        self._launch = launcher
        self._loader = RcLoader(
            get=self.store.get, root=self._root, strict_modes=self.strict and os.geteuid() == 0
        )
        self.actions = ActionQueue(self.store.get)
        self.actions.actions = self._loader.config.actions
        self.builtins = Builtins(self, root=root, system=system)
        self.services: dict[str, ServiceState] = {}
        self.limits: dict[int, tuple[int, int, int]] = {}
        self.notes: list[str] = []
        self.observers: list[Callable[[dict[str, Any]], None]] = []
        self.before_release: list[Callable[[], Any]] = []
        self.stopping = False
        self.reaper: Reaper | None = None
        self.property_service = PropertyService(
            reactor, self.store, self.socket_directory, control=self.control
        )
        self._running: dict[int, ServiceState] = {}
        self._reports: set[ReportReader] = set()
        self._executions = 0
        self._exec_done: dict[int, Deferred[None]] = {}
        self._blocked: Deferred[None] | None = None
        self._call: Any = None
        self._triggers_enabled = False
        self._location = Location("<init>", 0)
        self._told_problems = 0
        self._directory = SocketDirectory(self.socket_directory)
        self._idle: list[Deferred[None]] = []
        self._stop: list[Deferred[None]] | None = None

    # -- starting ---------------------------------------------------------------------------------------

    def startService(self) -> None:
        """Take the socket directory, read the files, begin the boot sequence.

        Raises:
            AlreadyRunning: another init holds the directory.
            RcError: a file that was named cannot be read.
            AddressError: the directory's path is too long for its sockets.
            InitError: others may write the directory, or this init was stopped before.
        """
        if self.stopping:
            raise InitError("this init has been stopped", "make a new one")
        sun_path("property_service", Namespace.RESERVED, socket_directory=self.socket_directory)
        self._directory.take()
        try:
            for name, value in self._initial.items():
                self.store.set(name, value)
            for name, text in self.texts:
                self._loader.feed(text, name)
                self._take_definitions()
            for path in self.files:
                self.load(path)
            self.property_service.startService()
            self.reaper = Reaper(self.clock, adopt_orphans=self._adopt)
        except BaseException:
            self.property_service.stopService()
            self._directory.leave()
            raise
        super().startService()
        self.store.changed.append(self._property_changed)
        if self._adopt:
            # not before the reactor runs: it sets its own handler of SIGCHLD then
            self.clock.callWhenRunning(self.reaper.start)
        self.actions.queue_event("early-init")
        self.actions.queue_event("init")
        if self.store.get("ro.bootmode") == "charger":
            self.actions.queue_event("charger")
        elif any(action.trigger.event == "late-init" for action in self.actions.actions):
            self.actions.queue_event("late-init")
        else:
            for event in _FALLBACK_BOOT:
                self.actions.queue_event(event)
        self.actions.queue_builtin("queue_property_triggers", self._enable_triggers)
        self._schedule()

    def load(self, path: str) -> None:
        """Read a file or directory and what it imports; problems are logged, and kept in ``problems``.

        Raises:
            RcError: the path itself cannot be read.
        """
        try:
            self._loader.load(path)
        finally:
            self._take_definitions()

    def _take_definitions(self) -> None:
        config = self._loader.config
        for problem in config.problems[self._told_problems :]:
            self.log.warn("{problem}", problem=printable(problem))
        self._told_problems = len(config.problems)
        for name, spec in config.services.items():
            if name not in self.services:
                self.services[name] = ServiceState(spec, self)

    @property
    def problems(self) -> list[Problem]:
        """What was wrong with the files."""
        return self._loader.config.problems

    # -- what commands use ------------------------------------------------------------------------------

    def find(self, name: str) -> ServiceState:
        """One service.

        Raises:
            InitError: there is none of that name.
        """
        state = self.services.get(name)
        if state is None:
            raise InitError(f"no such service '{name}'")
        return state

    def in_class(self, name: str) -> list[ServiceState]:
        """The services of a class, in order."""
        return [state for state in self.services.values() if state.spec.class_name == name]

    def current_location(self) -> Location:
        """Where the command that runs now stands."""
        return self._location

    def export(self, name: str, value: str) -> None:
        """Set a variable in the environment of all services started from now on.

        Raises:
            InitError: it is no name of a variable.
        """
        if not name or "=" in name or "\0" in name + value:
            raise InitError(f"'{name}' is no name of an environment variable")
        self.environment[name] = value

    def note(self, what: str, why: str) -> None:
        """Something could not be done as written."""
        what, why = printable(what), printable(why)
        self.log.warn("{what}: {why}", what=what, why=why)
        if len(self.notes) < MAX_NOTES:
            self.notes.append(f"{what}: {why}")
        self._event("note", what=what, why=why)

    def run_exec(self, spec: RcService) -> Deferred[None] | None:
        """Run a command to its end before any other; fires when it has ended, however it ended.

        Raises:
            InitError: it could not be started.
        """
        self._executions += 1
        spec.name = f"exec {self._executions} ({spec.path})"
        state = ServiceState(spec, self, exec_command=True)
        if not state.start():
            raise InitError(f"'{spec.path}' was not started")
        done: Deferred[None] = Deferred()
        self._exec_done[id(state)] = done
        return done

    def control(self, verb: str, name: str) -> None:
        """What ``ctl.VERB`` = ``name`` asks for.

        Raises:
            InitError: no such service, or no such verb.
        """
        state = self.find(name)
        if verb == "start":
            state.start()
        elif verb == "stop":
            state.stop()
        elif verb == "restart":
            state.restart()
        else:
            raise InitError(f"unknown control msg '{verb}'")
        self._schedule()

    def power(self, text: str) -> None:
        """What ``powerctl`` asks for: ``shutdown[,userrequested]`` or ``reboot[,target]``.

        Raises:
            InitError: anything else.
        """
        command, _, target = text.partition(",")
        if command not in ("shutdown", "reboot"):
            raise InitError(f"powerctl: unrecognized command '{text}'")
        if command == "shutdown":
            target = ""
        self.log.info("power: {command} {target}", command=command, target=target)
        self._event("power", command=command, target=target)
        if self._on_power is not None:
            self._on_power(PowerCommand((command, target)))
        else:
            self.stopService().addErrback(lambda failure: self.log.failure("stopping failed", failure))

    # -- the turn ---------------------------------------------------------------------------------------

    def _schedule(self, delay: float = 0) -> None:
        if not self.running or self.stopping or self._blocked is not None:
            return
        if self._call is not None and self._call.active():
            if self._call.getTime() <= self.clock.seconds() + delay:
                return
            self._call.cancel()
        self._call = self.clock.callLater(delay, self._turn)

    def _turn(self) -> None:
        self._call = None
        if self.stopping or self._blocked is not None:
            return
        item = self.actions.next()
        if isinstance(item, Builtin):
            item.function()
        elif item is not None:
            self._run_command(item[1])
        if self.stopping or self._blocked is not None:
            return
        due = [when for when in [state.restart_if_due() for state in list(self.services.values())] if when]
        if self.actions.busy:
            self._schedule()
        elif due:
            self._schedule(max(0.0, min(due) - self.clock.seconds()))

    def _run_command(self, command: Any) -> None:
        self._location = command.location
        try:
            words = [command.name, *(expand(word, self.store.get) for word in command.arguments)]
            result = self.builtins.run(command, words)
        except (InitError, RcError, PropertyError, AddressError) as error:
            self._command_failed(command, error.cause)
            return
        except (OSError, ValueError, OverflowError) as error:
            self._command_failed(command, str(error))
            return
        except Exception as error:
            # whatever else a command does wrong must not end the turn: init would never take another
            self.log.failure("{name} failed", name=command.name)
            self._command_failed(command, f"{type(error).__name__}: {error}")
            return
        if result is not None:
            self._wait_for(command, result)

    def _wait_for(self, command: Any, result: Deferred[None]) -> None:
        self._blocked = result

        def ended(outcome: Failure | None) -> None:
            self._blocked = None
            if isinstance(outcome, Failure):
                self._command_failed(command, str(outcome.value))
            self._schedule()

        result.addBoth(ended)

    def _command_failed(self, command: Any, why: str) -> None:
        # most of a device's init.rc fails in a container: told, but not as a warning each
        where, why = printable(command.location), printable(why)
        self.log.info("{location}: {name}: {why}", location=where, name=command.name, why=why)
        self._event("command-failed", location=where, command=list(command.words), why=why)

    def _enable_triggers(self) -> None:
        self.actions.queue_all_properties()
        self._triggers_enabled = True

    def _property_changed(self, name: str, value: str) -> None:
        self._event("property", name=name, value=value)
        if name == "sys.powerctl" and not any(
            name in dict(action.trigger.properties) for action in self.actions.actions
        ):
            self.clock.callLater(0, self._power_property, value)
        if self._triggers_enabled:
            self.actions.queue_property(name, value)
            self._schedule()

    def _power_property(self, value: str) -> None:
        try:
            self.power(value)
        except InitError as error:
            self.log.warn("sys.powerctl: {cause}", cause=printable(error.cause))

    # -- ServiceHost ------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds of the reactor's clock."""
        return float(self.clock.seconds())

    def check(self, service: ServiceState) -> str | None:
        """Why a service cannot be started."""
        if service.flags & Flag.CONSOLE and self._console is None:
            return f"service '{service.name}' requires console"
        try:
            os.stat(service.spec.path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return f"cannot find '{service.spec.path}' ({reason}), disabling '{service.name}'"
        return None

    def refused(self, service: ServiceState, reason: str) -> None:
        """A service was not started."""
        self.note(service.name, reason)

    def spawn(self, service: ServiceState) -> int | None:
        """Make a service's process."""
        if self.stopping or self.reaper is None:
            return None
        plan = plan_launch(
            service.spec,
            environment=self.environment,
            socket_directory=self.socket_directory,
            console=self._console,
            inherit_output=self._inherit_output,
            limits=list(self.limits.values()),
            strict=self.strict,
            # the words of an exec command were expanded with the command
            get_property=None if service.flags & Flag.EXEC else self.store.get,
        )
        try:
            pid, report = self._launch(plan)
        except OSError as error:
            self.note(service.name, f"failed to start: {error.strerror}")
            return None
        self._running[pid] = service
        self._reports.add(
            ReportReader(self.clock, report, lambda entries: self._reported(service, entries), self._reports)
        )
        self.reaper.watch(pid, self._ended)
        self.log.info("Starting service '{name}' (pid {pid})", name=service.name, pid=pid)
        return pid

    def _reported(self, service: ServiceState, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            text = f"{entry.get('what')}: {entry.get('why')}"
            service.grants.append(text)
            self.note(f"{service.name}: {entry.get('what')}", str(entry.get("why")))

    def kill_group(self, service: ServiceState, number: int) -> None:
        """Signal a service's process group."""
        if service.pid > 1:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(service.pid, number)

    def remove_sockets(self, service: ServiceState) -> None:
        """Unlink a service's sockets."""
        for socket in service.spec.sockets:
            with contextlib.suppress(OSError, AddressError):
                path = sun_path(socket.name, Namespace.RESERVED, socket_directory=self.socket_directory)
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)

    def notify(self, service: ServiceState, state: str) -> None:
        """A service's state has changed."""
        self._event("service", name=service.name, state=state, pid=service.pid, last_exit=service.last_exit)
        self.store.try_set(f"init.svc.{service.name}", state)
        if state == "restarting":
            self._schedule()

    def run_onrestart(self, service: ServiceState) -> None:
        """Run a service's ``onrestart`` commands, all at once."""
        for command in service.spec.onrestart:
            self._run_command(command)

    def critical(self, service: ServiceState) -> None:
        """A critical service ended too often."""
        self.log.critical(
            "critical process '{name}' exited too often within four minutes; rebooting into recovery mode",
            name=service.name,
        )
        self._event("critical", name=service.name)
        self.power("reboot,recovery")

    def _ended(self, pid: int, status: int) -> None:
        service = self._running.pop(pid, None)
        if service is None:
            return
        service.last_exit = describe_exit(status)
        self.log.info("Service '{name}' (pid {pid}) {how}", name=service.name, pid=pid, how=service.last_exit)
        self._event("exit", name=service.name, pid=pid, how=service.last_exit)
        if self.stopping:
            # a oneshot's group outlives it, but not us
            self.kill_group(service, signal.SIGKILL)
        if service.reap():
            done = self._exec_done.pop(id(service), None)
            if done is not None:
                done.callback(None)
        if not self._running:
            idle, self._idle = self._idle, []
            for deferred in idle:
                deferred.callback(None)
        self._schedule()

    # -- looking ----------------------------------------------------------------------------------------

    def _event(self, kind: str, **details: Any) -> None:
        event = {"event": kind, "time": self.now(), **details}
        for observer in list(self.observers):
            observer(event)

    def describe(self) -> dict[str, Any]:
        """All that is known now, as JSON-able values."""
        return {
            "pid": os.getpid(),
            "socket_directory": self.socket_directory,
            "strict": self.strict,
            "stopping": self.stopping,
            "adopts_orphans": bool(self.reaper and self.reaper.adopts),
            "services": {
                name: {
                    "state": state.state,
                    "pid": state.pid,
                    "class": state.spec.class_name,
                    "disabled": bool(state.flags & Flag.DISABLED),
                    "oneshot": state.spec.oneshot,
                    "critical": state.spec.critical,
                    "starts": state.starts,
                    "last_exit": state.last_exit,
                    "not_granted": list(state.grants),
                    "sockets": [socket.name for socket in state.spec.sockets],
                    "defined": str(state.spec.location),
                }
                for name, state in self.services.items()
            },
            "problems": [str(problem) for problem in self.problems],
            "notes": list(self.notes),
            "properties": dict(self.store.items()),
        }

    def forward_signal(self, number: int) -> None:
        """Send a signal to the main process of every service that runs."""
        for state in self._alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, number)

    def _alive(self) -> Iterator[ServiceState]:
        return (state for state in list(self._running.values()) if state.pid > 1)

    # -- stopping ---------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:
        """End every service (SIGTERM, then SIGKILL), every orphan, and take the sockets away.

        Returns:
            Fires when all of it is gone. Calling it again gives another such Deferred.
        """
        if self._stop is not None:
            again: Deferred[None] = Deferred()
            self._stop.append(again)
            return again
        if self.reaper is None:
            return succeed(None)
        self._stop = []
        self.stopping = True
        super().stopService()
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._event("stopping")
        if self._blocked is not None and not self._exec_done:
            self._blocked.cancel()

        def finished(result: Any) -> Any:
            waiting, self._stop = self._stop or [], None
            for deferred in waiting:
                deferred.callback(None)
            return result

        return ensureDeferred(self._shut_down()).addBoth(finished)

    async def _shut_down(self) -> None:
        assert self.reaper is not None
        for state in self.services.values():
            state.terminate()
        for state in self._alive():
            self.kill_group(state, signal.SIGTERM)  # exec commands have no state to terminate
        await self._wait_idle(self._shutdown_timeout)
        for state in self._alive():
            self.log.warn("service '{name}' did not end in time: killed", name=state.name)
            self.kill_group(state, signal.SIGKILL)
        await self._wait_idle(KILL_TIMEOUT_S)
        deadline = self.now() + KILL_TIMEOUT_S
        while self.reaper.kill_orphans() and self.now() < deadline:
            await deferLater(self.clock, ORPHAN_POLL_S)
        for state in self._alive():
            self.log.error("pid {pid} of '{name}' cannot be ended", pid=state.pid, name=state.name)
        self.reaper.stop()
        self.reaper = None
        for reader in list(self._reports):
            reader.close()
        self._running.clear()
        with contextlib.suppress(ValueError):
            self.store.changed.remove(self._property_changed)
        await self.property_service.stopService()
        for state in self.services.values():
            self.remove_sockets(state)
        self._event("stopped")
        for release in self.before_release:
            await maybeDeferred(release)
        self._directory.leave()

    async def _wait_idle(self, timeout: float) -> None:
        if not self._running:
            return
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)

        def late() -> None:
            if idle in self._idle:
                self._idle.remove(idle)
                idle.callback(None)

        call = self.clock.callLater(timeout, late)
        await idle
        if call.active():
            call.cancel()
