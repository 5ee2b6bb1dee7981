"""The instances of one container manager: who owns them, how long they live, what is told of them.

No sockets here: `anbox_tw.container.service` brings the calls, tests bring them directly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.container.authority import Authority, Caller, GuardedBackend, SourceOpener
from anbox_tw.container.commands import Commands
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.journal import Journal, UndoContext, UndoKinds
from anbox_tw.container.machine import LIVING, ContainerMachine, PhaseEvent, State
from anbox_tw.container.spec import (
    DEFAULT_INSTANCE,
    HOST_ROOTFS,
    BindMount,
    ContainerSpec,
    Device,
    NetworkSpec,
)
from anbox_tw.container.undo import default_kinds
from anbox_tw.errors import AlreadyRunning, AnboxError, ConfigError, NotRunning
from anbox_tw.interfaces import IContainerBackend, IGuestGate, IReachableContainer
from anbox_tw.network import check_instance_name

__all__ = ["ContainerManager", "Instance", "ManagerSettings", "StartRequest"]

MAX_INSTANCES = 128
"""Living instances and the last states of ended ones; each has its journal, subnet and processes."""

MAX_LEFTOVER_JOURNALS = 1024
"""Directories looked into at the start for what a killed manager left."""


@attrs.frozen
class ManagerSettings:
    """What the manager gives to containers whose request does not say otherwise.

    Attributes:
        data_path: of the instance ``default``; others have ``instances/NAME`` in it.
        run_path: below which each instance has a directory for what ends with the run.
        backend: name of the default backend.
        rootfs: ``host``, a directory, or empty for the image.
        image: an Android image; empty: ``android.img`` in the data path where there is one.
        privileged: no id map.
        use_rootfs_overlay: put ``rootfs-overlay`` over the rootfs.
        force_squashfuse: mount images through FUSE.
        network: of the instance ``default``; others get the name servers alone.
    """

    data_path: str
    run_path: str
    backend: str
    rootfs: str = ""
    image: str = ""
    privileged: bool = False
    use_rootfs_overlay: bool = False
    force_squashfuse: bool = False
    network: NetworkSpec = NetworkSpec()

    def data_of(self, instance: str) -> str:
        """The data path of an instance."""
        return self.data_path if instance == DEFAULT_INSTANCE else f"{self.data_path}/instances/{instance}"

    def run_of(self, instance: str) -> str:
        """The run path of an instance."""
        return f"{self.run_path}/{instance}"


@attrs.frozen
class StartRequest:
    """What a caller asks for; empty means: as the manager was started.

    Attributes:
        instance: its name.
        bind_mounts: pairs of source and target.
        read_only: targets of those that the container cannot write to.
        devices: pairs of path and permission.
        extra_properties: ``name=value``.
        backend: its name.
        rootfs: ``host`` or a directory.
        image: an Android image.
        data_path: a directory.
        detached: the container outlives the connection.
        privileged: no id map.
        use_rootfs_overlay: see `ManagerSettings`.
        force_squashfuse: likewise.
        init: command line of init.
        environment: pairs for init.
        network: False: loopback alone.
    """

    instance: str = DEFAULT_INSTANCE
    bind_mounts: tuple[tuple[str, str], ...] = ()
    read_only: tuple[str, ...] = ()
    devices: tuple[tuple[str, int], ...] = ()
    extra_properties: tuple[str, ...] = ()
    backend: str = ""
    rootfs: str = ""
    image: str = ""
    data_path: str = ""
    detached: bool = False
    privileged: bool = False
    use_rootfs_overlay: bool = False
    force_squashfuse: bool = False
    init: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    network: bool = True


class Instance:
    """One container that is, or was, on this manager."""

    def __init__(self, spec: ContainerSpec, caller: Caller, *, detached: bool) -> None:
        self.spec = spec
        self.owner = caller
        self.detached = detached
        self.machine: ContainerMachine | None = None
        self.journal: Journal | None = None
        self.guard: GuardedBackend | None = None
        self.started_at = 0.0
        # Set when the container is not wanted any more, also before its machine exists.
        self.unwanted = False
        self.refusal = ""
        self.forget_peer: Callable[[], None] = lambda: None
        # The start, from the call to its end; None when it is over.
        self.starting: Deferred[None] | None = None

    @property
    def living(self) -> bool:
        """Whether anything of it is, or may be, on the host."""
        return self.starting is not None or (self.machine is not None and self.machine.state in LIVING)

    @property
    def gate(self) -> IGuestGate | None:
        """The way to sockets inside it, while it runs and there is one."""
        container = self.machine.container if self.machine is not None else None
        return container.gate if IReachableContainer.providedBy(container) else None

    @property
    def state(self) -> State:
        """The state users see."""
        if self.machine is not None and self.machine.state is not State.ABSENT:
            return self.machine.state
        if self.refusal:
            return State.FAILED
        return State.PREPARING if self.starting is not None else State.ABSENT

    def describe(self) -> dict[str, Any]:
        """Everything known of it, JSON-able, with the names of ``ContainerInfo``."""
        machine = self.machine
        details = machine.info() if machine is not None else {}
        failure = machine.failure if machine is not None else None
        described: dict[str, Any] = {
            "instance": self.spec.instance,
            "backend": self.spec.backend,
            "state": self.state.value,
            "phase": machine.phase if machine is not None else "",
            "owner_uid": self.owner.uid,
            "owner_gid": self.owner.gid,
            "rootfs": self.spec.image or self.spec.rootfs,
            "data_path": self.spec.data_path,
            "detached": self.detached,
            "started_at": self.started_at,
            "failure": str(DiagnosedError(failure)) if failure is not None else self.refusal,
        }
        for name in ("pid", "address"):
            if details.get(name):
                described[name] = details[name]
        if failure is not None:
            details = {**details, "diagnosis": failure.as_dict()}
        if machine is not None and machine.probes:
            details = {**details, "probes": [probe.as_dict() for probe in machine.probes]}
        described["details"] = details
        return described


Watcher = Callable[[PhaseEvent, int], None]
"""Called with each event and the uid of the container's owner."""


class ContainerManager:
    """Starts, stops and lists containers for its callers.

    Attributes:
        settings: the defaults.
        authority: the rules.
        backends: by name.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: ManagerSettings,
        backends: Mapping[str, IContainerBackend],
        *,
        authority: Authority | None = None,
        kinds: UndoKinds | None = None,
        opener: SourceOpener | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make the manager; nothing is touched before `recover`.

        Args:
            reactor: time and processes.
            settings: the defaults.
            backends: by name; the settings' backend must be one of them.
            authority: the rules; the usual ones when it is None.
            kinds: how what was made is undone; the usual ones when it is None.
            opener: opens sources as their caller.
            now: seconds since the epoch.

        Raises:
            ConfigError: there is no such backend.
        """
        self.settings = settings
        self.authority = authority or Authority()
        self.backends = dict(backends)
        self._reactor = reactor
        self._commands = Commands(reactor)
        self._kinds = kinds or default_kinds()
        self._opener = opener or SourceOpener(reactor)
        self._now = now
        self._instances: dict[str, Instance] = {}
        self._watchers: dict[object, Watcher] = {}
        self._recovering: Deferred[None] | None = None
        self._recovered = False
        self._waiting_for_recovery: list[Deferred[None]] = []
        self._stopping = False
        self._backend(settings.backend)
        self.guest_sockets = ""
        """Path of the socket for those who want sockets in a container; empty: there is none."""

    # -- what a killed manager left ----------------------------------------------------------

    def recover(self) -> Deferred[None]:
        """Undo what a killed manager left below the data path; no start goes on before.

        Returns:
            Fires when all is tried. What cannot be undone is logged, and tried again by the next start.
        """
        # A service that was stopped may be started again; a shut-down ends before the next start.
        self._stopping = False
        if self._recovering is None and not self._recovered:
            self._recovering = ensureDeferred(self._recover())
            self._recovering.addErrback(
                lambda failure: self._log.failure("undoing what was left failed", failure)
            )
            self._recovering.addBoth(lambda _: self._recovery_done())
        return self._when_recovered()

    def _recovery_done(self) -> None:
        self._recovered, self._recovering = True, None
        waiting, self._waiting_for_recovery = self._waiting_for_recovery, []
        for waiter in waiting:
            waiter.callback(None)

    def _when_recovered(self) -> Deferred[None]:
        if self._recovering is None:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiting_for_recovery.remove)
        self._waiting_for_recovery.append(waiter)
        return waiter

    async def _recover(self) -> None:
        root = self.settings.data_path
        places = [root]
        try:
            with os.scandir(f"{root}/instances") as entries:
                for _, entry in zip(range(MAX_LEFTOVER_JOURNALS), entries, strict=False):
                    places.append(entry.path)
        except OSError:
            pass
        for place in places:
            path = f"{place}/state/undo.journal"
            if not os.path.isfile(path):
                continue
            journal = self._journal(path)
            try:
                journal.open()
            except AnboxError as error:
                # Another manager of ours holds it, or the disk is broken; the next start will say so.
                self._log.info("left alone: {error}", error=error)
                continue
            try:
                if journal.pending:
                    self._log.warn(
                        "undoing what a killed manager left of {place} (phase {phase})",
                        place=place,
                        phase=journal.last_phase or "unknown",
                    )
                    await journal.undo_all()
            except AnboxError as error:
                self._log.error("{place}: {error}", place=place, error=error)
            finally:
                journal.close()

    def _journal(self, path: str) -> Journal:
        return Journal(path, UndoContext(self._reactor, self._commands), self._kinds)

    # -- the calls ---------------------------------------------------------------------------

    async def start(
        self,
        caller: Caller,
        request: StartRequest,
        created: Callable[[Instance], object] = lambda instance: None,
    ) -> Instance:
        """Start a container.

        Args:
            caller: who asks.
            request: what for.
            created: called with the instance when it is taken and before anything is done for it.

        Returns:
            The instance, when it runs.

        Raises:
            AlreadyRunning: it does already.
            ConfigError: the request is not valid.
            PermissionRefused: the caller may not have this.
            DiagnosedError: it did not start; nothing is left of it.
        """
        name = check_instance_name(request.instance)
        present = self._instances.get(name)
        if present is not None and present.living:
            seen = self.authority.may_see(caller, present.owner.uid)
            raise AlreadyRunning(
                f"Container is already running: the instance {name!r} is {present.state.value}"
                + (f", started by {present.owner}" if not seen or present.owner.uid != caller.uid else ""),
                "stop it first, or choose another instance",
                code="ANBOX-C007",
            )
        if self._stopping:
            raise NotRunning("the manager is shutting down", "start it again")
        if present is None and len(self._instances) >= MAX_INSTANCES:
            self._forget_ended()
        spec = self._spec(caller, request)
        instance = Instance(spec, caller, detached=request.detached)
        self._instances[name] = instance
        starting: Deferred[None] = Deferred()
        instance.starting = starting
        created(instance)
        done: Deferred[Instance] = Deferred()

        def over(result: Any) -> None:
            instance.starting = None
            starting.callback(None)
            if isinstance(result, Failure):
                self._refused(instance, result)
                done.errback(result)
            else:
                done.callback(instance)

        ensureDeferred(self._bring_up(instance)).addBoth(over)
        return await done

    def _refused(self, instance: Instance, failure: Failure) -> None:
        if instance.machine is None:
            # It never came to a machine, which would have told by itself.
            instance.refusal = str(failure.value)
            self._tell(
                instance,
                PhaseEvent(instance.spec.instance, State.FAILED, "", instance.refusal, self._now()),
            )
        instance.forget_peer()
        self._release(instance)

    async def _bring_up(self, instance: Instance) -> None:
        """All of a start that may take time."""
        await self._when_recovered()
        spec, caller = instance.spec, instance.owner
        backend = self._backend(spec.backend)
        self.authority.claim_data(caller, spec.state_dir, spec.instance)
        if self.authority.needs_opening(caller):
            opened = await self._opener.open(caller, spec.bind_mounts)
            instance.guard = backend = GuardedBackend(backend, opened)
        if instance.unwanted:
            raise DiagnosedError.of("ANBOX-C022", "the container was stopped while it started")
        journal = instance.journal = self._journal(spec.journal_path)
        journal.open()
        machine = instance.machine = ContainerMachine(self._reactor, backend, spec, journal, now=self._now)
        machine.observe(lambda event: self._observed(instance, event))
        await machine.start()
        instance.started_at = self._now()

    async def stop(self, caller: Caller, name: str, *, force: bool = False) -> None:
        """Stop a container.

        Args:
            caller: who asks.
            name: the instance.
            force: do not give init time to end by itself.

        Raises:
            NotRunning: there is none, or the caller may not know of it.
            PermissionRefused: it is another's.
            DiagnosedError: something of it could not be undone.
        """
        instance = self._instances.get(check_instance_name(name))
        if instance is None or not instance.living:
            seen = instance is not None and self.authority.may_see(caller, instance.owner.uid)
            what = f"the instance {name!r} is {instance.state.value}" if instance is not None and seen else ""
            raise NotRunning(
                f"Container is not running: {what or f'there is no instance {name!r}'}", "see anbox ps"
            )
        self.authority.check_owner(caller, instance.owner.uid, name)
        await self._end(instance, 0.0 if force else None)

    def list(self, caller: Caller) -> list[Instance]:
        """The instances the caller may see, by name."""
        return [
            instance
            for _, instance in sorted(self._instances.items())
            if self.authority.may_see(caller, instance.owner.uid)
        ]

    def find(self, name: str) -> Instance | None:
        """One instance, whoever asks."""
        return self._instances.get(name)

    def info(self, caller: Caller, name: str) -> Instance:
        """One instance.

        Raises:
            NotRunning: there is none that the caller may see.
        """
        instance = self._instances.get(check_instance_name(name))
        if instance is None or not self.authority.may_see(caller, instance.owner.uid):
            raise NotRunning(f"there is no instance {name!r}", "see anbox ps")
        return instance

    def guest_gate(self, caller: Caller, name: str) -> IGuestGate:
        """The way to sockets inside a container.

        Raises:
            NotRunning: there is no such container that the caller may know of, or no way into it.
            PermissionRefused: it is another's.
        """
        instance = self.info(caller, name)
        self.authority.check_owner(caller, instance.owner.uid, name)
        gate = instance.gate
        if gate is None:
            raise NotRunning(f"sockets inside the container {name!r} cannot be opened", "is it running?")
        return gate

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have each event told to ``watcher``.

        Returns:
            A function that ends it.
        """
        key = object()
        self._watchers[key] = watcher

        def forget() -> None:
            self._watchers.pop(key, None)

        return forget

    def abandon(self, instance: Instance) -> None:
        """End a container because the connection that started it is lost."""
        if instance.living and not instance.detached:
            self._log.info(
                "{instance}: the connection that started it is lost", instance=instance.spec.instance
            )
            self._end_logged(instance)

    def shut_down(self) -> Deferred[None]:
        """End all containers; no new ones are started.

        Returns:
            Fires when nothing of them is left, or cannot be undone, which is logged.
        """
        self._stopping = True
        ending = [
            self._end_logged(instance) for instance in list(self._instances.values()) if instance.living
        ]
        if self._recovering is not None:
            ending.append(self._when_recovered())
        done: Deferred[Any] = DeferredList(ending)
        done.addCallback(lambda _: self._commands.settle())
        return done.addCallback(lambda _: None)

    def _end_logged(self, instance: Instance) -> Deferred[None]:
        def failed(failure: Failure) -> None:
            self._log.error("{instance}: {error}", instance=instance.spec.instance, error=failure.value)

        return ensureDeferred(self._end(instance)).addErrback(failed)

    # -- inside ------------------------------------------------------------------------------

    async def _end(self, instance: Instance, grace: float | None = None) -> None:
        instance.unwanted = True
        instance.forget_peer()
        machine = instance.machine
        starting = instance.starting
        if machine is None and starting is not None:
            # Sources are being opened, or recovery is going on: it ends by itself at the next step.
            waiter: Deferred[None] = Deferred()
            starting.addCallback(waiter.callback)
            await waiter
            machine = instance.machine
        if machine is not None:
            try:
                await machine.stop(grace)
            finally:
                self._release(instance)

    def _release(self, instance: Instance) -> None:
        """Give back what an ended container holds of ours."""
        if instance.living and instance.machine is not None:
            return
        if instance.guard is not None:
            instance.guard.close()
        if instance.journal is not None:
            instance.journal.close()

    def _observed(self, instance: Instance, event: PhaseEvent) -> None:
        self._tell(instance, event)
        if event.state in (State.STOPPED, State.FAILED):
            instance.forget_peer()
            self._release(instance)

    def _tell(self, instance: Instance, event: PhaseEvent) -> None:
        for watcher in list(self._watchers.values()):
            watcher(event, instance.owner.uid)

    def _forget_ended(self) -> None:
        for name, instance in list(self._instances.items()):
            if not instance.living:
                del self._instances[name]
        if len(self._instances) >= MAX_INSTANCES:
            raise ConfigError(
                f"{MAX_INSTANCES} containers are running, which is the limit", "stop some of them"
            )

    def _backend(self, name: str) -> IContainerBackend:
        try:
            return self.backends[name]
        except KeyError:
            raise ConfigError(
                f"there is no backend {name[:32]!r}", f"choose one of {', '.join(sorted(self.backends))}"
            ) from None

    def _spec(self, caller: Caller, request: StartRequest) -> ContainerSpec:
        settings = self.settings
        backend = request.backend or settings.backend
        self._backend(backend)
        self.authority.check_request(
            caller,
            backend=backend,
            rootfs=request.rootfs,
            image=request.image,
            data_path=request.data_path,
            privileged=request.privileged,
        )
        name = request.instance
        data_path = request.data_path or settings.data_of(name)
        rootfs, image = request.rootfs, request.image
        if not rootfs and not image:
            rootfs, image = settings.rootfs, settings.image
        if not rootfs and not image:
            present = f"{settings.data_path}/android.img"
            rootfs, image = ("", present) if os.path.isfile(present) else (HOST_ROOTFS, "")
        network = settings.network
        if not request.network:
            network = NetworkSpec(mode="none")
        elif name != DEFAULT_INSTANCE:
            network = NetworkSpec(mode=network.mode, dns=network.dns, host_loopback=network.host_loopback)
        spec = ContainerSpec(
            instance=name,
            backend=backend,
            rootfs="" if image else rootfs,
            image=image or None,
            data_path=data_path,
            run_path=settings.run_of(name),
            bind_mounts=[
                BindMount(source, target, read_only=target in request.read_only)
                for source, target in request.bind_mounts
            ],
            devices=[Device(path, permission) for path, permission in request.devices],
            extra_properties=request.extra_properties,
            owner_uid=caller.uid,
            owner_gid=caller.gid,
            network=network,
            privileged=request.privileged or settings.privileged,
            use_rootfs_overlay=request.use_rootfs_overlay or settings.use_rootfs_overlay,
            force_squashfuse=request.force_squashfuse or settings.force_squashfuse,
            init=request.init,
            environment=dict(request.environment),
        )
        for device in spec.devices:
            self.authority.check_device(caller, device)
        return spec
