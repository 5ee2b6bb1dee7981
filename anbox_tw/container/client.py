"""Talking to a container manager.

`ContainerClient` is one connection; `ContainerClientService` keeps one, and comes back when the
manager does. Information comes as plain JSON-able dicts with the field names of
``protocols/rpc/anbox_container.proto``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.container.spec import DEFAULT_INSTANCE
from anbox_tw.errors import AnboxError, NotRunning
from anbox_tw.network import EndpointConnector, RetryPolicy, UnixConnector
from anbox_tw.rpc import CallTimedOut, Channel, RemoteError, parse_message
from anbox_tw.rpc._pb import anbox_container_pb2 as pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void
from anbox_tw.rpc.errors import from_wire

__all__ = ["ContainerClient", "ContainerClientService", "connect"]

STOP_TIMEOUT_S = 120.0
"""The manager gives init 10 s, and undoing all a minute; the original's 3 s are over before LXC is."""

CALL_TIMEOUT_S = 30.0
"""As the original's."""

GREETING_TIMEOUT_S = 5.0
"""A manager of ours answers within milliseconds; the original's does not answer what it does not know."""

Info = dict[str, Any]


class ContainerClient:
    """One connection to a manager.

    Containers that it starts, unless detached, end with it.
    """

    _log = Logger()

    def __init__(self, channel: Channel) -> None:
        """Args:
        channel: connected; its ``on_event`` becomes ours.
        """
        self.channel = channel
        self._callbacks: list[Callable[[Info], object]] = []
        channel.on_event = self._event

    def start_container(
        self,
        instance: str = DEFAULT_INSTANCE,
        *,
        bind_mounts: Iterable[tuple[str, str]] = (),
        read_only: Iterable[str] = (),
        devices: Iterable[tuple[str, int]] = (),
        extra_properties: Iterable[str] = (),
        backend: str = "",
        rootfs: str = "",
        image: str = "",
        data_path: str = "",
        detached: bool = False,
        privileged: bool = False,
        use_rootfs_overlay: bool = False,
        force_squashfuse: bool = False,
        init: Iterable[str] = (),
        environment: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        network: bool = True,
        timeout: float | None = None,
    ) -> Deferred[None]:
        """Start a container; what is empty is as the manager was started.

        Args:
            instance: its name.
            bind_mounts: pairs of a path on the host and one in the container.
            read_only: paths in the container, those of bind mounts that it cannot write to.
            devices: pairs of a device and its mode in the container.
            extra_properties: ``name=value`` for Android's ``default.prop``.
            backend: ``process`` or ``lxc``.
            rootfs: ``host`` or a directory.
            image: an Android image.
            data_path: where the instance's data is kept.
            detached: the container outlives this connection.
            privileged: no id map.
            use_rootfs_overlay: put the data path's ``rootfs-overlay`` over the rootfs.
            force_squashfuse: mount the image through FUSE.
            init: command line of init.
            environment: variables for init.
            network: False: loopback alone.
            timeout: seconds; None, as in the original, waits until the manager answers, whose phases
                all have their own limits.

        Returns:
            Fires when it runs; fails with ``RemoteError`` when it does not.
        """
        unwritable = frozenset(read_only)
        message = pb.StartContainer(
            configuration=pb.Configuration(
                bind_mounts=[
                    pb.Configuration.BindMount(
                        source=source, target=target, read_only=target in unwritable or None
                    )
                    for source, target in bind_mounts
                ],
                devices=[pb.Configuration.Devices(path=path, permission=mode) for path, mode in devices],
                extra_properties=list(extra_properties),
            ),
            instance=instance,
            init=list(init),
        )
        pairs = environment.items() if isinstance(environment, Mapping) else environment
        for name, value in pairs:
            message.environment.add(name=name, value=value)
        for field, text in (
            ("backend", backend),
            ("rootfs", rootfs),
            ("image", image),
            ("data_path", data_path),
        ):
            if text:
                setattr(message, field, text)
        for field, flag in (
            ("detached", detached),
            ("privileged", privileged),
            ("use_rootfs_overlay", use_rootfs_overlay),
            ("force_squashfuse", force_squashfuse),
        ):
            if flag:
                setattr(message, field, True)
        if not network:
            message.network = False
        return self.channel.call("start_container", message, Void, timeout).addCallback(_nothing)

    def stop_container(
        self, instance: str = DEFAULT_INSTANCE, force: bool = False, *, timeout: float | None = STOP_TIMEOUT_S
    ) -> Deferred[None]:
        """Stop a container; fires when nothing is left of it.

        Args:
            instance: its name.
            force: give init no time to end by itself.
            timeout: seconds.
        """
        message = pb.StopContainer(force=force, instance=instance)
        return self.channel.call("stop_container", message, Void, timeout).addCallback(_nothing)

    def list_containers(self) -> Deferred[list[Info]]:
        """The containers we may see, by name."""
        return self.channel.call("list_containers", pb.ListContainers(), pb.ContainerList).addCallback(_infos)

    def container_info(self, instance: str = DEFAULT_INSTANCE) -> Deferred[Info]:
        """One container; fails with ``RemoteError`` when there is none that we may see."""
        request = pb.ContainerInfoRequest(instance=instance)
        return self.channel.call("container_info", request, pb.ContainerInfo).addCallback(_info)

    def manager_info(self, *, timeout: float = CALL_TIMEOUT_S) -> Deferred[Info]:
        """Version, backends and defaults of the manager.

        Args:
            timeout: seconds; the original's manager never answers this.
        """
        call = self.channel.call("manager_info", pb.ManagerInfoRequest(), pb.ManagerInfo, timeout)
        return call.addCallback(lambda message: MessageToDict(message, preserving_proto_field_name=True))

    def watch(
        self, callback: Callable[[Info], object], instance: str = "", *, timeout: float = CALL_TIMEOUT_S
    ) -> Deferred[list[Info]]:
        """Have each change told.

        Args:
            callback: gets ``instance``, ``state``, ``phase``, ``detail``, ``timestamp``, and in a failure
                ``error`` and its ``code``, ``cause`` and ``cure``.
            instance: only of this one; empty: of all that we may see. The last watch of a connection
                says which are sent; with several callbacks each gets all.
            timeout: seconds; the original's manager never answers this.

        Returns:
            Fires with the containers as they are now.
        """
        # Before the call: events may come in the same moment as its answer.
        self._callbacks.append(callback)
        request = pb.WatchContainers(instance=instance) if instance else pb.WatchContainers()

        def failed(failure: Failure) -> Failure:
            self._callbacks.remove(callback)
            return failure

        answer = self.channel.call("watch_containers", request, pb.ContainerList, timeout)
        return answer.addErrback(failed).addCallback(_infos)

    def _event(self, data: bytes) -> None:
        try:
            message = parse_message(pb.ContainerEvent, data)
        except DecodeError as error:
            self._log.warn("the manager sent an event that cannot be parsed: {error}", error=error)
            return
        event: Info = {
            "instance": message.instance,
            "state": message.state,
            "phase": message.phase,
            "detail": message.detail,
            "timestamp": message.timestamp,
        }
        if message.HasField("error"):
            told = from_wire(message)
            event.update(error=message.error, code=told.code, cause=told.cause, cure=told.cure)
        for callback in list(self._callbacks):
            try:
                callback(dict(event))
            except Exception:
                self._log.failure("a watcher failed")

    def when_lost(self) -> Deferred[str]:
        """A Deferred of the caller's own: fires with the reason when the connection has ended."""
        return self.channel.when_closed().addCallback(lambda closed: closed.cause)

    def close(self) -> Deferred[None]:
        """End the connection, and with it the containers it started; fires when it has ended."""
        return self.channel.close().addCallback(_nothing)


def _nothing(_: object) -> None:
    return None


def _info(message: pb.ContainerInfo) -> Info:
    info: Info = MessageToDict(message, preserving_proto_field_name=True)
    try:
        info["details"] = json.loads(message.details or "{}")
    except ValueError:
        info["details"] = {}
    return info


def _infos(message: pb.ContainerList) -> list[Info]:
    return [_info(one) for one in message.containers]


def connector_for(
    reactor: Any, where: str | IStreamClientEndpoint, retry: RetryPolicy | None = None
) -> EndpointConnector:
    """A connector to a manager, by the path of its socket or by an endpoint.

    Raises:
        ConfigError: the path cannot be a socket's.
    """
    if isinstance(where, str):
        return UnixConnector(reactor, where, retry=retry)
    return EndpointConnector(reactor, where, retry=retry, description="the container manager")


def connect(
    reactor: Any, where: str | IStreamClientEndpoint, *, retry: RetryPolicy | None = None
) -> Deferred[ContainerClient]:
    """Connect to a manager.

    Args:
        reactor: an fd reactor.
        where: the path of its socket, or an endpoint.
        retry: None: one attempt.

    Returns:
        Fires with the client. Fails with `NotRunning` when nobody answers there, `PermissionRefused` when
        we may not connect.

    Raises:
        ConfigError: the path cannot be a socket's.
    """

    def explain(failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, NotRunning):
            raise NotRunning(
                f"no container manager answers: {error.cause}",
                "start one with 'twistd -n anbox-container', or use 'anbox up'",
            ) from error
        return failure

    connecting = connector_for(reactor, where, retry or RetryPolicy.once()).connect(
        lambda: Channel(reactor, name="the container manager")
    )
    return connecting.addErrback(explain).addCallback(ContainerClient)


class ContainerClientService(Service):
    """Keeps a connection to the manager, and makes a new one when it is lost.

    Args:
        reactor: an fd reactor.
        where: the path of the manager's socket, or an endpoint.
        on_connected: called with each new client, after its watch was made.
        on_lost: called with the reason each time the connection is lost.
        on_event: called with each event; its watch is made anew on each connection.
        retry: the waits between attempts.

    Attributes:
        client: the connected one, or None.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        where: str | IStreamClientEndpoint,
        *,
        on_connected: Callable[[ContainerClient], object] | None = None,
        on_lost: Callable[[str], object] | None = None,
        on_event: Callable[[Info], object] | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.client: ContainerClient | None = None
        self._reactor = reactor
        self._policy = retry or RetryPolicy()
        self._connector = connector_for(reactor, where, self._policy)
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_event = on_event
        self._task: Deferred[None] | None = None
        self._waiting: list[Deferred[ContainerClient]] = []

    def when_connected(self) -> Deferred[ContainerClient]:
        """A Deferred of the caller's own: fires with a connected client, now or when there is one."""
        if self.client is not None:
            return succeed(self.client)
        waiter: Deferred[ContainerClient] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def startService(self) -> None:
        """Begin to connect."""
        if not self.running:
            super().startService()
            self._task = ensureDeferred(self._run())
            self._task.addErrback(self._ended)

    def stopService(self) -> Deferred[None]:
        """Close the connection; fires when it is closed. Whoever waits for one is told so."""
        super().stopService()
        task, self._task = self._task, None
        client, self.client = self.client, None
        if task is not None:
            task.cancel()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.errback(NotRunning("the connection to the container manager was given up"))
        return client.close() if client is not None else succeed(None)

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("keeping the connection failed", failure)

    async def _run(self) -> None:
        failures = 0
        while True:
            channel = await self._connector.connect(
                lambda: Channel(self._reactor, name="the container manager")
            )
            client = ContainerClient(channel)
            try:
                await self._greet(client)
            except CancelledError:
                channel.abort("given up")
                raise
            except (AnboxError, ConnectionClosed) as error:
                self._log.info("the container manager does not answer: {error}", error=error)
                channel.abort("it does not answer")
            else:
                failures = 0
                self._connected(client)
                reason = await client.when_lost()
                self.client = None
                self._log.info("{reason}", reason=reason)
                if self._on_lost is not None:
                    self._on_lost(reason)
            failures += 1
            await deferLater(self._reactor, self._policy.delay(failures))

    async def _greet(self, client: ContainerClient) -> None:
        """A connection counts when the manager has answered on it."""
        try:
            greeting: Deferred[Any]
            if self._on_event is not None:
                greeting = client.watch(self._on_event, timeout=GREETING_TIMEOUT_S)
            else:
                greeting = client.manager_info(timeout=GREETING_TIMEOUT_S)
            await greeting
        except (RemoteError, CallTimedOut) as error:
            # One that knows no such method is a manager all the same; the original does not even say so.
            self._log.info("the container manager answers: {error}", error=error)

    def _connected(self, client: ContainerClient) -> None:
        self.client = client
        waiting, self._waiting = self._waiting, []
        if self._on_connected is not None:
            self._on_connected(client)
        for waiter in waiting:
            waiter.callback(client)
