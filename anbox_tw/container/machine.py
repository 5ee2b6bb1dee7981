"""The machine of one container's life.

::

    absent -> preparing -> starting -> running -> stopping -> stopped
                                                     |
                                                     +-----> failed(cause)

States and rules:

* ``preparing`` undoes what a killed manager left (phase *recover*), asks the backend whether the host
  has what it needs (*check*), and makes mounts, devices and network (*prepare*).
* ``starting`` starts the container's init (*start*); ``running`` lasts until somebody stops the
  container or its init ends.
* ``stopping`` ends the container (*stop*) and undoes everything (*undo*). Each way out of the three
  states above leads through it, a failure too: so ``stopped`` and ``failed`` both mean that nothing
  of the container is left, or that the cause says what is.
* `ContainerMachine.stop` may be called at any moment. It cancels the phase that runs.
* A start while the container lives is refused; a stop while it does not is done at once.
* Each phase has a name and a time limit, is written to the journal, and is told to the observers.

Who sends the inputs: ``start`` and ``stop`` come from the user, all others from the machine's own
phases and from the container's end. An input of a phase that is over is not sent at all: its
`_Phases` object, which the state owns, was abandoned when the state was left.

What the machine asks of a backend, besides `anbox_tw.interfaces.IContainerBackend`: when ``prepare``
or ``start`` is cancelled, its Deferred fires at once as cancelling always does, but a child process
may live on for a moment; ``IContainer.stop`` must not fire before all of that is over. It may be
called in each of these moments, also after a failed ``prepare``.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import attrs
from automat import TypeMachine, TypeMachineBuilder
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.container.diagnosis import CODES, DiagnosedError, Diagnosis, Probe, diagnose, log_tail
from anbox_tw.container.journal import Journal
from anbox_tw.container.spec import ContainerSpec
from anbox_tw.errors import AlreadyRunning
from anbox_tw.interfaces import IContainer, IContainerBackend

__all__ = ["LIVING", "ContainerMachine", "PhaseEvent", "PhaseLimits", "State"]


class State(enum.Enum):
    """States of a container; the value is the name users see."""

    ABSENT = "absent"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


LIVING = frozenset({State.PREPARING, State.STARTING, State.RUNNING, State.STOPPING})
"""States in which something of the container is, or may be, on the host."""


@attrs.frozen
class PhaseLimits:
    """Time limits of the phases, in seconds.

    Attributes:
        recover: undoing what an earlier manager left.
        check: the backend's probes.
        prepare: mounts, devices and network; a big image on a slow disk takes longest.
        start: until init runs.
        stop_grace: how long init may take to end before it is killed.
        stop: until it is gone, grace included.
        undo: undoing everything.
    """

    recover: float = 60.0
    check: float = 15.0
    prepare: float = 60.0
    start: float = 30.0
    stop_grace: float = 10.0
    stop: float = 30.0
    undo: float = 60.0


@attrs.frozen
class PhaseEvent:
    """Something happened in a container's life.

    Attributes:
        instance: the container's instance.
        state: the state it is in now.
        phase: name of the phase: ``recover``, ``check``, ``prepare``, ``start``, ``run``, ``stop``,
            ``undo``, or empty when the state has none.
        detail: what just happened in the phase, or an empty string when the phase itself is new.
        timestamp: seconds since the epoch.
        error: the diagnosis, when the state is ``failed`` or the container is on the way there.
    """

    instance: str
    state: State
    phase: str
    detail: str
    timestamp: float
    error: Diagnosis | None = None

    def as_dict(self) -> dict[str, Any]:
        """The event for ``--json``."""
        return {
            "instance": self.instance,
            "state": self.state.value,
            "phase": self.phase,
            "detail": self.detail,
            "timestamp": self.timestamp,
            "error": self.error.as_dict() if self.error else None,
        }


Observer = Callable[[PhaseEvent], None]
Waiter = Deferred[None]


class _Phases:
    """The phases of one state, run one after the other; abandoned when the state is left."""

    def __init__(self, core: _Core, run: Callable[[_Phases], Coroutine[Any, Any, None]]) -> None:
        self.core = core
        self.current = ""
        self.abandoned = False
        self._run = run
        self._running: Deferred[None] | None = None

    def begin(self, done: Callable[[], None], failed: Callable[[Diagnosis], None]) -> None:
        """Run them; exactly one of the two is called at the end, none after `abandon`."""

        def finish(result: Any) -> None:
            if self.abandoned:
                if isinstance(result, Failure):
                    self.core.log.debug("{phase}: {error}", phase=self.current, error=result.value)
                return
            if isinstance(result, Failure):
                failed(self.core.diagnose(result, self.current))
            else:
                done()

        self._running = ensureDeferred(self._run(self))
        self._running.addBoth(finish).addErrback(self._broken)

    def _broken(self, failure: Failure) -> None:
        self.core.log.failure("defect in the container's machine", failure)

    def abandon(self) -> None:
        """Cancel what runs, and tell nobody."""
        self.abandoned = True
        if self._running is not None:
            self._running.cancel()

    async def phase(self, name: str, limit: float, work: Callable[[], Any]) -> Any:
        """Run one phase.

        Args:
            name: its name.
            limit: seconds it may take.
            work: begins it; what it gives, or its Deferred's result, is given back.
        """
        self.current = name
        self.core.enter_phase(name)
        running = maybeDeferred(work)
        running.addTimeout(
            limit,
            self.core.reactor,
            lambda failure, _: _raise(DeferredTimeout(f"it had {limit:g} s"), failure),
        )
        return await running


def _raise(error: Exception, cause: Failure) -> Any:
    raise error from cause.value


class _Core:
    """What the machine knows, whatever its state."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        backend: IContainerBackend,
        spec: ContainerSpec,
        journal: Journal,
        *,
        limits: PhaseLimits,
        now: Callable[[], float],
    ) -> None:
        self.reactor = reactor
        self.backend = backend
        self.spec = spec
        self.journal = journal
        self.limits = limits
        self.now = now
        self.state = State.ABSENT
        self.phase = ""
        self.failure: Diagnosis | None = None
        self.container: IContainer | None = None
        self.probes: list[Probe] = []
        self.observers: list[Observer] = []
        self.start_waiters: list[Waiter] = []
        self.stop_waiters: list[Waiter] = []
        self.stop_grace = limits.stop_grace
        self.since = now()
        self.phases: _Phases | None = None
        self.leftover: Diagnosis | None = None

    # -- telling --

    def tell(self, detail: str = "") -> None:
        event = PhaseEvent(self.spec.instance, self.state, self.phase, detail, self.now(), self.failure)
        for observer in list(self.observers):
            try:
                observer(event)
            except Exception:
                self.log.failure("an observer of {instance} failed", instance=self.spec.instance)

    def enter(self, state: State) -> None:
        """Be in a new state; what it then does tells the observers."""
        self.log.info(
            "{instance}: {old} -> {new}", instance=self.spec.instance, old=self.state.value, new=state.value
        )
        self.state, self.phase, self.since = state, "", self.now()

    def enter_phase(self, name: str) -> None:
        self.phase = name
        try:
            self.journal.phase(name)
        except DiagnosedError as error:
            # The phase's name is only a hint for people. A full disk must not keep us from undoing.
            self.log.warn("{instance}: {error}", instance=self.spec.instance, error=error)
        self.tell()

    def diagnose(self, failure: Failure, phase: str) -> Diagnosis:
        diagnosis = diagnose(failure, phase, log_tail(self.spec.engine_log, self.spec.console_log))
        if diagnosis.code == "ANBOX-C024":
            self.log.failure(
                "{instance}: defect in the phase {phase}", failure, instance=self.spec.instance, phase=phase
            )
        return diagnosis

    def settle(self, waiters: list[Waiter], error: Exception | None) -> None:
        fired, waiters[:] = list(waiters), []
        for waiter in fired:
            if error is None:
                waiter.callback(None)
            else:
                waiter.errback(error)

    def fail(self) -> None:
        """The container has failed, and all that could be undone is."""
        cause = self.failure or Diagnosis("ANBOX-C024", "failed without a cause")
        self.enter(State.FAILED)
        self.log.error("{instance}: {cause}", instance=self.spec.instance, cause="\n".join(cause.lines()))
        self.tell()
        self.settle(self.start_waiters, DiagnosedError(cause))
        self.settle(self.stop_waiters, DiagnosedError(self.leftover) if self.leftover else None)

    # -- the work of the states --

    def run(
        self,
        work: Callable[[_Phases], Coroutine[Any, Any, None]],
        done: Callable[[], None],
        failed: Callable[[Diagnosis], None],
    ) -> None:
        """Begin the phases of a state that was just entered; those of the one before are abandoned."""
        if self.phases is not None:
            self.phases.abandon()
        self.phases = _Phases(self, work)
        self.phases.begin(done, failed)

    def watch(self, exited: Callable[[str], None]) -> None:
        """Tell the machine when the container ends; told again after a stop, it does not matter."""
        container = self.container
        if container is None:
            return

        def tell(description: str) -> None:
            if self.container is container:
                exited(description)

        container.when_exited().addCallback(tell).addErrback(
            lambda failure: self.log.failure(
                "{instance}: lost sight of its end", failure, instance=self.spec.instance
            )
        )

    def ended_by_itself(self, description: str) -> Diagnosis:
        return Diagnosis(
            "ANBOX-C014",
            "the container ended by itself",
            description,
            CODES["ANBOX-C014"].cure,
            log_tail(self.spec.engine_log, self.spec.console_log),
        )

    async def prepare(self, phases: _Phases) -> None:
        if self.journal.pending:
            await phases.phase("recover", self.limits.recover, self.journal.undo_all)
        probes = await phases.phase("check", self.limits.check, self.backend.probe)
        self.probes = list(probes)
        missing = [probe for probe in self.probes if not probe.ok and probe.required]
        if missing:
            raise DiagnosedError.of(
                "ANBOX-C006",
                f"the host lacks what the backend {self.backend.name} needs",
                "; ".join(f"{probe.name}: {probe.detail}" for probe in missing),
                "; ".join(probe.cure for probe in missing if probe.cure),
            )
        self.container = self.backend.create(self.spec, self.journal)
        await phases.phase("prepare", self.limits.prepare, self.container.prepare)

    async def start(self, phases: _Phases) -> None:
        if self.container is not None:
            await phases.phase("start", self.limits.start, self.container.start)

    async def end(self, phases: _Phases) -> None:
        broken: Diagnosis | None = None
        container = self.container
        if container is not None:
            try:
                await phases.phase("stop", self.limits.stop, lambda: container.stop(self.stop_grace))
            except Exception:
                # What it made must be undone all the same, as far as it goes.
                broken = self.diagnose(Failure(), "stop")
        self.container = None
        await phases.phase("undo", self.limits.undo, self.journal.undo_all)
        if broken is not None:
            raise DiagnosedError(broken)


class _Inputs(Protocol):
    """Inputs of the machine. The underscored ones come from the machine itself."""

    def start(self, waiter: Waiter) -> None:
        """The user wants the container; ``waiter`` is told when it runs or has failed."""

    def stop(self, waiter: Waiter) -> None:
        """The user does not want the container; ``waiter`` is told when nothing is left of it."""

    def _done(self) -> None:
        """All phases of the state are done."""

    def _done_after_failure(self) -> None:
        """All phases of ``stopping`` are done, and the container had failed before."""

    def _failed(self, cause: Diagnosis) -> None:
        """A phase of the state failed."""

    def _exited(self, description: str) -> None:
        """The container's init has ended without being asked."""


def _build() -> TypeMachine[_Inputs, _Core]:
    """The machine as a table; the documentation draws its diagram from it."""
    builder = TypeMachineBuilder(_Inputs, _Core)
    absent = builder.state("absent")
    preparing = builder.state("preparing")
    starting = builder.state("starting")
    running = builder.state("running")
    stopping = builder.state("stopping")
    stopped = builder.state("stopped")
    failed = builder.state("failed")
    idle = (absent, stopped, failed)

    def end(inputs: _Inputs, core: _Core, cause: Diagnosis | None) -> None:
        """What all ways into ``stopping`` do."""
        core.failure = cause
        core.enter(State.STOPPING)
        core.run(core.end, inputs._done if cause is None else inputs._done_after_failure, inputs._failed)

    for state in idle:

        @state.upon(_Inputs.start).to(preparing)
        def prepare(inputs: _Inputs, core: _Core, waiter: Waiter) -> None:
            core.failure = core.leftover = None
            core.start_waiters.append(waiter)
            core.enter(State.PREPARING)
            core.run(core.prepare, inputs._done, inputs._failed)

        @state.upon(_Inputs.stop).loop()
        def nothing_to_stop(inputs: _Inputs, core: _Core, waiter: Waiter) -> None:
            waiter.callback(None)

    for state in (preparing, starting, running, stopping):

        @state.upon(_Inputs.start).loop()
        def refuse(inputs: _Inputs, core: _Core, waiter: Waiter) -> None:
            waiter.errback(
                AlreadyRunning(
                    f"the container {core.spec.instance!r} is {core.state.value} already",
                    "stop it first, or choose another instance",
                    code="ANBOX-C007",
                )
            )

    @preparing.upon(_Inputs._done).to(starting)
    def start(inputs: _Inputs, core: _Core) -> None:
        core.enter(State.STARTING)
        core.run(core.start, inputs._done, inputs._failed)

    @starting.upon(_Inputs._done).to(running)
    def run(inputs: _Inputs, core: _Core) -> None:
        core.enter(State.RUNNING)
        core.enter_phase("run")
        core.settle(core.start_waiters, None)
        core.watch(inputs._exited)

    for state in (preparing, starting):

        @state.upon(_Inputs._failed).to(stopping)
        def give_up(inputs: _Inputs, core: _Core, cause: Diagnosis) -> None:
            end(inputs, core, cause)

    @running.upon(_Inputs._exited).to(stopping)
    def died(inputs: _Inputs, core: _Core, description: str) -> None:
        end(inputs, core, core.ended_by_itself(description))

    for state in (preparing, starting, running):

        @state.upon(_Inputs.stop).to(stopping)
        def stop(inputs: _Inputs, core: _Core, waiter: Waiter) -> None:
            core.stop_waiters.append(waiter)
            end(inputs, core, None)

    @stopping.upon(_Inputs.stop).loop()
    def join(inputs: _Inputs, core: _Core, waiter: Waiter) -> None:
        core.stop_waiters.append(waiter)

    @stopping.upon(_Inputs._done).to(stopped)
    def over(inputs: _Inputs, core: _Core) -> None:
        core.enter(State.STOPPED)
        core.tell()
        core.settle(
            core.start_waiters, DiagnosedError.of("ANBOX-C022", "the container was stopped while it started")
        )
        core.settle(core.stop_waiters, None)

    @stopping.upon(_Inputs._done_after_failure).to(failed)
    def over_after_failure(inputs: _Inputs, core: _Core) -> None:
        core.fail()

    @stopping.upon(_Inputs._failed).to(failed)
    def leftover(inputs: _Inputs, core: _Core, cause: Diagnosis) -> None:
        core.leftover = cause
        core.failure = core.failure or cause
        core.fail()

    # What cannot come in these states, for the phases that would send it are over: said here so that
    # a defect shows as a container that stays as it is, and not as a crash in the middle of a stop.
    for state in (*idle, running):
        state.upon(_Inputs._done).loop().returns(None)
        state.upon(_Inputs._failed).loop().returns(None)
    for state in (*idle, preparing, starting, running):
        state.upon(_Inputs._done_after_failure).loop().returns(None)
    for state in (*idle, preparing, starting, stopping):
        state.upon(_Inputs._exited).loop().returns(None)
    return builder.build()


MACHINE = _build()


class ContainerMachine:
    """One container from its start to its end, as often as wanted.

    Attributes:
        spec: what the container is to be.
        journal: the instance's undo journal, opened; the owner of the machine closes it.
    """

    def __init__(
        self,
        reactor: Any,
        backend: IContainerBackend,
        spec: ContainerSpec,
        journal: Journal,
        *,
        limits: PhaseLimits | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Set the machine up; the container is absent.

        Args:
            reactor: gives the time for the limits.
            backend: makes the container.
            spec: what to make.
            journal: opened; what an earlier manager left in it is undone by the first start.
            limits: time limits; the defaults suit a slow disk.
            now: seconds since the epoch, for events.
        """
        self.spec = spec
        self.journal = journal
        self._core = _Core(reactor, backend, spec, journal, limits=limits or PhaseLimits(), now=now)
        self._inputs = MACHINE(self._core)
        journal.on_record = self._core.tell

    @property
    def container(self) -> IContainer | None:
        """What the backend has made, while there is any."""
        return self._core.container

    @property
    def state(self) -> State:
        """The state now."""
        return self._core.state

    @property
    def phase(self) -> str:
        """Name of the phase that runs, or an empty string."""
        return self._core.phase

    @property
    def since(self) -> float:
        """When the state began, in seconds since the epoch."""
        return self._core.since

    @property
    def failure(self) -> Diagnosis | None:
        """Why the container has failed or is about to; ``None`` otherwise."""
        return self._core.failure

    @property
    def probes(self) -> list[Probe]:
        """What the last start found out about the host."""
        return list(self._core.probes)

    def info(self) -> dict[str, Any]:
        """What the backend knows of the container now; empty while there is none."""
        return dict(self._core.container.info()) if self._core.container is not None else {}

    def start(self) -> Deferred[None]:
        """Bring the container up.

        Returns:
            Fires when it runs. Fails with `DiagnosedError` when it does not, after everything is undone;
            with `anbox_tw.errors.AlreadyRunning` when it lives already. Cancelling it only stops
            the waiting; call `stop` to stop the container.
        """
        waiter: Waiter = Deferred(self._forget)
        self._inputs.start(waiter)
        return waiter

    def stop(self, grace: float | None = None) -> Deferred[None]:
        """Bring the container down, from whatever state.

        Args:
            grace: seconds that init gets to end by itself, 0 for none; None takes the limits' own. A stop
                that is under way already keeps its own.

        Returns:
            Fires when nothing of it is left; at once if there is none. Fails with `DiagnosedError` when
            something could not be ended or undone; that is then tried again by the next start.
        """
        waiter: Waiter = Deferred(self._forget)
        self._core.stop_grace = self._core.limits.stop_grace if grace is None else grace
        self._inputs.stop(waiter)
        return waiter

    def _forget(self, waiter: Waiter) -> None:
        for waiters in (self._core.start_waiters, self._core.stop_waiters):
            if waiter in waiters:
                waiters.remove(waiter)

    def observe(self, callback: Observer) -> Callable[[], None]:
        """Have each event told to ``callback``, on the reactor's thread and in order.

        Returns:
            A function that ends it; calling it twice does no harm.
        """
        self._core.observers.append(callback)

        def forget() -> None:
            if callback in self._core.observers:
                self._core.observers.remove(callback)

        return forget
