"""Keeps the session's container running: asks the manager for it, again and again when it or the manager is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, maybeDeferred, succeed
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import AnboxError, NetworkError, RpcError
from anbox_tw.rpc import RemoteError
from anbox_tw.session._state import Input, Phase, SessionState

__all__ = ["ContainerRequest", "ContainerSupervisor", "ManagerConnection"]

RETRY_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Waits between attempts to get a container; the last one repeats."""

UNREACHED_RETRY_S = 2.0
"""The longest wait for a manager that cannot be reached: asking costs next to nothing, and whoever starts one wants
the container soon."""

STEADY_S = 30.0
"""A container that ran for so long was a good one: the waits begin anew."""

STOP_TIMEOUT_S = 30.0
"""A manager's own ladder (ask, wait, kill) is shorter; after this the session ends without its answer."""


@attrs.frozen
class ContainerRequest:
    """What the session asks the manager for.

    Attributes:
        instance: its name.
        bind_mounts: pairs of a host path and a path in the container, without a leading slash.
        read_only: the latter of those that the container cannot write to.
        devices: pairs of a device path and its permission bits.
        extra_properties: ``name=value`` for the guest's default.prop.
        backend: ``process``, ``lxc``, or empty for the manager's default.
        rootfs: a directory, ``host``, or empty for the manager's default.
        image: an Android image, or empty.
        data_path: or empty for the manager's default.
        init: command line of the guest's init, or empty for the backend's default.
        environment: pairs for the guest's init.
    """

    instance: str
    bind_mounts: tuple[tuple[str, str], ...] = ()
    read_only: tuple[str, ...] = ()
    devices: tuple[tuple[str, int], ...] = ()
    extra_properties: tuple[str, ...] = ()
    backend: str = ""
    rootfs: str = ""
    image: str = ""
    data_path: str = ""
    init: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class ManagerConnection(Protocol):
    """One connection to the container manager, as the supervisor needs it."""

    def start_container(self, request: ContainerRequest) -> Deferred[None]:
        """Fires when the container runs; fails with the manager's error."""

    def stop_container(self, instance: str) -> Deferred[None]:
        """Fires when the container is gone."""

    def watch(self, instance: str, callback: Callable[[dict[str, Any]], object]) -> Deferred[dict[str, Any]]:
        """Fires with what the manager knows of the container; changes go to ``callback``, with ``state``."""

    def info(self, instance: str) -> Deferred[dict[str, Any]]:
        """Fires with what the manager knows of the container: the fields of its ``ContainerInfo`` that are set."""

    def when_lost(self) -> Deferred[str]:
        """Fires with the reason when the connection has ended; a Deferred of the caller's own."""

    def close(self) -> Deferred[None]:
        """Fires when the connection has ended."""


class ContainerSupervisor(Service):
    """Runs through the phases of :mod:`anbox_tw.session._state` until it is stopped.

    Args:
        clock: for the waits.
        connect: reaches the manager.
        request: what to ask for.
        state: is fed.
        on_info: called with each news of the container: the fields of the manager's ``ContainerInfo``.

    Attributes:
        failure: why there is no container, with its cure, or an empty string.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[], Deferred[ManagerConnection]],
        request: ContainerRequest,
        state: SessionState,
        on_info: Callable[[dict[str, Any]], object],
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._request = request
        self._state = state
        self._on_info = on_info
        self._task: Deferred[None] | None = None
        self._reached = False
        self.failure = ""

    def startService(self) -> None:
        if self.running:
            return
        super().startService()
        self._state.feed(Input.START)
        self._task = ensureDeferred(self._run())
        self._task.addErrback(self._died)

    def stopService(self) -> Deferred[None]:
        """Stop the container, and wait until it is gone, at most for a while."""
        if not self.running:
            return succeed(None)
        super().stopService()
        self._state.feed(Input.STOP)
        task, self._task = self._task, None
        assert task is not None
        stopped: Deferred[None] = Deferred()
        task.addBoth(lambda _: self._state.feed(Input.GONE)).addBoth(lambda _: stopped.callback(None))
        task.cancel()
        return stopped

    def _died(self, failure: Failure) -> None:
        if not failure.check(CancelledError, ConnectingCancelledError):
            self._log.failure("The container's supervision failed", failure)

    async def _run(self) -> None:
        attempt = 0
        while True:
            began = self._clock.seconds()
            self._reached = False
            error = await self._attempt()
            if not self.running:
                # Cancelled while the old connection was being closed, which has swallowed it.
                return
            if self._clock.seconds() - began >= STEADY_S:
                attempt = 0
            delay = RETRY_S[min(attempt, len(RETRY_S) - 1)]
            attempt += 1
            if not self._reached:
                delay = min(delay, UNREACHED_RETRY_S)
            if str(error) != self.failure:
                self._log.warn("No container: {error}; trying again in {delay:g} s", error=error, delay=delay)
            self.failure = str(error)
            self._on_info({})
            await deferLater(self._clock, delay)
            self._state.feed(Input.RETRY)

    async def _attempt(self) -> Exception:
        """One round, from connecting to the loss; returns why it ended, and has fed that."""
        try:
            manager = await self._connect()
        except (AnboxError, ConnectError, OSError) as error:
            self._state.feed(Input.LOST, str(error))
            return error
        except (CancelledError, ConnectingCancelledError):
            raise
        except Exception as error:
            return self._defect(error)
        try:
            self._reached = True
            self._state.feed(Input.CONNECTED)
            return await self._hold(manager)
        except (CancelledError, ConnectingCancelledError):
            raise
        except Exception as error:
            return self._defect(error)
        finally:
            await maybeDeferred(manager.close).addErrback(self._ignore)

    def _defect(self, error: Exception) -> Exception:
        """What should not happen is logged with its traceback, and tried again like everything else."""
        self._log.failure("A defect while getting a container")
        self._state.feed(Input.LOST, repr(error))
        return error

    async def _hold(self, manager: ManagerConnection) -> Exception:
        ended: Deferred[tuple[Input, Exception]] = Deferred()

        def end(event: Input, error: Exception) -> None:
            if not ended.called:
                ended.callback((event, error))

        def news(info: dict[str, Any]) -> None:
            self._on_info(info)
            if self._state.phase is Phase.RUNNING and info.get("state") in ("failed", "stopped", "absent"):
                why = info.get("failure") or info.get("detail") or "its init has ended"
                end(Input.ENDED, NetworkError(f"the container has ended: {why}"))

        manager.when_lost().addCallback(
            lambda why: end(Input.LOST, NetworkError(f"lost the connection to the container manager: {why}"))
        )
        # Not waited for: the original's manager never answers what it does not know. What it was before is no news.
        self._learn(manager.watch(self._request.instance, news), lambda before: None)
        try:
            await manager.start_container(self._request)
        except CancelledError:
            await self._stop(manager)
            raise
        except (AnboxError, ConnectionClosed) as error:
            lost = ended.called and not isinstance(error, RemoteError)
            self._state.feed(Input.LOST if lost else Input.FAILED, str(error))
            return error
        self.failure = ""
        self._state.feed(Input.STARTED)
        self._log.info("The container runs")
        self._learn(manager.info(self._request.instance), news)
        try:
            event, why = await ended
        except CancelledError:
            await self._stop(manager)
            raise
        self._state.feed(event, str(why))
        return why

    def _learn(self, answer: Deferred[dict[str, Any]], news: Callable[[dict[str, Any]], None]) -> None:
        """Take what the manager knows; one that cannot tell, as the original's, is none the worse."""

        def failed(failure: Failure) -> None:
            failure.trap(RpcError, ConnectionClosed)
            self._log.debug("The manager tells nothing of the container: {error}", error=failure.value)

        answer.addCallbacks(news, failed).addErrback(
            lambda failure: self._log.failure("A defect in what the manager tells", failure)
        )

    async def _stop(self, manager: ManagerConnection) -> None:
        try:
            await manager.stop_container(self._request.instance).addTimeout(STOP_TIMEOUT_S, self._clock)
        except Exception as error:
            # Its connection is closed next, at which the manager ends the container anyway.
            self._log.info("stop_container: {error!r}", error=error)

    def _ignore(self, failure: Failure) -> None:
        self._log.debug("Closing the manager's connection: {error}", error=failure.value)
