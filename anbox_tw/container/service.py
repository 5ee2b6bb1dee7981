"""The manager's RPC methods, and the service that listens for them.

``start_container`` and ``stop_container`` are those of the Anbox C++ original
(``src/anbox/container/management_api_message_processor.cpp``), so its session manager can use this
manager; the other methods, and all fields from 10 on, are ours (``protocols/rpc``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from anbox_tw._version import __version__
from anbox_tw.container.authority import Caller
from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.machine import PhaseEvent
from anbox_tw.container.manager import ContainerManager, Instance, StartRequest
from anbox_tw.container.spec import DEFAULT_INSTANCE
from anbox_tw.network import check_instance_name
from anbox_tw.rpc import Dispatcher, Limits, Peer, RpcFactory
from anbox_tw.rpc._pb import anbox_container_pb2 as pb
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Void
from anbox_tw.rpc.errors import to_wire

__all__ = ["ManagerApi", "ManagerService"]

MAX_REQUEST_BYTES = 256 * 1024
"""A start with every list full has about 100 kB."""

MAX_UNREAD_BYTES = 4 * 1024 * 1024
"""Some 20 000 events: a watcher that is so far behind does not read at all."""

MAX_CALLS = 32
"""Calls of one peer at a time; a session makes one."""

MAX_CLIENTS = 256
"""The original serves one. A session each, and tools."""


def start_request(message: pb.StartContainer) -> StartRequest:
    """What a ``StartContainer`` asks for."""
    configuration = message.configuration
    return StartRequest(
        instance=message.instance or DEFAULT_INSTANCE,
        bind_mounts=tuple((mount.source, mount.target) for mount in configuration.bind_mounts),
        read_only=tuple(mount.target for mount in configuration.bind_mounts if mount.read_only),
        devices=tuple((device.path, device.permission) for device in configuration.devices),
        extra_properties=tuple(configuration.extra_properties),
        backend=message.backend,
        rootfs=message.rootfs,
        image=message.image,
        data_path=message.data_path,
        detached=message.detached,
        privileged=message.privileged,
        use_rootfs_overlay=message.use_rootfs_overlay,
        force_squashfuse=message.force_squashfuse,
        init=tuple(message.init),
        environment=tuple((variable.name, variable.value) for variable in message.environment),
        network=message.network if message.HasField("network") else True,
    )


def info_message(instance: Instance, guest_sockets: str = "") -> pb.ContainerInfo:
    """What is told of an instance.

    Args:
        instance: which.
        guest_sockets: path of the socket for those who want sockets in a container, or empty.
    """
    described = instance.describe()
    if guest_sockets and instance.gate is not None and instance.gate.ready:
        described["guest_sockets"] = guest_sockets
    described["details"] = json.dumps(described["details"], default=str)
    return pb.ContainerInfo(**described)


def event_message(event: PhaseEvent) -> pb.ContainerEvent:
    """What is told of an event."""
    message = pb.ContainerEvent(
        instance=event.instance,
        state=event.state.value,
        phase=event.phase,
        detail=event.detail,
        timestamp=event.timestamp,
    )
    if event.error is not None:
        told = to_wire(DiagnosedError(event.error))
        message.error = told.error
        message.structured_error.ParseFromString(told.structured_error.SerializeToString())
    return message


class ManagerApi:
    """The methods of a `ContainerManager`, for a dispatcher."""

    _log = Logger()

    def __init__(self, manager: ContainerManager) -> None:
        self.manager = manager
        self._watches: dict[Peer, Callable[[], None]] = {}

    def register(self, dispatcher: Dispatcher) -> None:
        """Offer the methods."""
        # A start or stop goes on when its caller leaves: the manager itself ends what is then not wanted.
        dispatcher.register("start_container", pb.StartContainer, self.start, cancel_on_disconnect=False)
        dispatcher.register("stop_container", pb.StopContainer, self.stop, cancel_on_disconnect=False)
        dispatcher.register("list_containers", pb.ListContainers, self.list)
        dispatcher.register("container_info", pb.ContainerInfoRequest, self.info)
        dispatcher.register("watch_containers", pb.WatchContainers, self.watch)
        dispatcher.register("manager_info", pb.ManagerInfoRequest, self.about)

    async def start(self, message: pb.StartContainer, peer: Peer) -> Void:
        """``start_container``: answers when the container runs; it lives as long as the connection."""
        caller = Caller.of(peer)
        request = start_request(message)
        self._log.info("{peer} starts {instance!r}", peer=peer.name, instance=request.instance)

        def bind_life(instance: Instance) -> None:
            if not instance.detached:
                instance.forget_peer = peer.on_disconnect(lambda: self.manager.abandon(instance))

        await self.manager.start(caller, request, created=bind_life)
        return Void()

    async def stop(self, message: pb.StopContainer, peer: Peer) -> Void:
        """``stop_container``: answers when nothing is left of the container."""
        name = message.instance or DEFAULT_INSTANCE
        self._log.info("{peer} stops {instance!r}", peer=peer.name, instance=name)
        await self.manager.stop(Caller.of(peer), name, force=message.force)
        return Void()

    def list(self, message: pb.ListContainers, peer: Peer) -> pb.ContainerList:
        """``list_containers``: those the caller may see."""
        return pb.ContainerList(containers=map(info_message, self.manager.list(Caller.of(peer))))

    def info(self, message: pb.ContainerInfoRequest, peer: Peer) -> pb.ContainerInfo:
        """``container_info``."""
        instance = self.manager.info(Caller.of(peer), message.instance or DEFAULT_INSTANCE)
        return info_message(instance, self.manager.guest_sockets)

    def watch(self, message: pb.WatchContainers, peer: Peer) -> pb.ContainerList:
        """``watch_containers``: what is now; each change follows as an event."""
        caller = Caller.of(peer)
        only = check_instance_name(message.instance) if message.instance else ""
        authority = self.manager.authority

        def tell(event: PhaseEvent, owner_uid: int) -> None:
            if (not only or event.instance == only) and authority.may_see(caller, owner_uid):
                peer.send_event(event_message(event))

        # A second watch of a connection replaces the first, or a client could have us keep any number.
        first = peer not in self._watches
        self._unwatch(peer)
        self._watches[peer] = self.manager.watch(tell)
        if first:
            peer.on_disconnect(lambda: self._unwatch(peer))
        return pb.ContainerList(
            containers=[
                info_message(instance)
                for instance in self.manager.list(caller)
                if not only or instance.spec.instance == only
            ]
        )

    def _unwatch(self, peer: Peer) -> None:
        forget = self._watches.pop(peer, None)
        if forget is not None:
            forget()

    def about(self, message: pb.ManagerInfoRequest, peer: Peer) -> pb.ManagerInfo:
        """``manager_info``."""
        manager = self.manager
        return pb.ManagerInfo(
            version=__version__,
            pid=os.getpid(),
            default_backend=manager.settings.backend,
            backends=sorted(manager.backends),
            data_path=manager.settings.data_path,
            root=os.geteuid() == 0,
        )


class ManagerService(Service):
    """A manager that listens: undoes what was left, serves, and ends its containers when it stops.

    Args:
        clock: for the connections' timeouts.
        manager: serves the calls.
        make_listener: given the connection creator, makes the service that listens: a
            `anbox_tw.network.UnixListener`, or another one with ``startService`` and ``stopService``.

    Attributes:
        manager: as given.
        factory: its ``channels`` are the clients.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        manager: ContainerManager,
        make_listener: Callable[[RpcFactory], Any],
    ) -> None:
        self.manager = manager
        self.setName("container-manager")
        dispatcher = Dispatcher()
        ManagerApi(manager).register(dispatcher)
        self.factory = RpcFactory(
            clock,
            dispatcher,
            limits=Limits(max_payload=MAX_REQUEST_BYTES, max_unread=MAX_UNREAD_BYTES, max_served=MAX_CALLS),
            max_channels=MAX_CLIENTS,
        )
        self.listener = make_listener(self.factory)
        self._stopping = False
        self._waiting_for_stop: list[Deferred[None]] = []

    def startService(self) -> None:
        """Listen, and undo what a killed manager left.

        Raises:
            AlreadyRunning: a live manager has the socket.
            AnboxError: it cannot listen.
        """
        if self.running:
            return
        self.listener.startService()
        super().startService()
        self.manager.recover()

    def stopService(self) -> Deferred[None]:
        """End the containers, then the connections, then the listener's rest.

        Returns:
            Fires when nothing is left.
        """
        done: Deferred[None] = Deferred()
        self._waiting_for_stop.append(done)
        if self._stopping:
            return done
        if not self.running:
            self._end_stop()
            return done
        self._stopping = True
        super().stopService()
        # Containers first: their owners are told by events and keep their connection until then.
        stopping = self.manager.shut_down()
        stopping.addCallback(lambda _: self.factory.close_all("the container manager is shutting down"))
        stopping.addCallback(lambda _: self.listener.stopService())
        stopping.addErrback(lambda failure: self._log.failure("the manager did not stop well", failure))
        stopping.addCallback(lambda _: self._end_stop())
        return done

    def _end_stop(self) -> None:
        self._stopping = False
        waiting, self._waiting_for_stop = self._waiting_for_stop, []
        for waiter in waiting:
            waiter.callback(None)
