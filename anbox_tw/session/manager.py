"""The session's way to the container manager."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString

from anbox_tw.container.client import ContainerClient, connect
from anbox_tw.errors import ConfigError
from anbox_tw.network import RuntimePaths
from anbox_tw.session.container import ContainerRequest, ManagerConnection

__all__ = ["Manager", "manager_connector"]


class Manager:
    """A connection to the manager, as the supervisor wants it.

    Args:
        client: connected.
    """

    def __init__(self, client: ContainerClient) -> None:
        self._client = client

    def start_container(self, request: ContainerRequest) -> Deferred[None]:
        """See `ManagerConnection`."""
        return self._client.start_container(
            request.instance,
            bind_mounts=request.bind_mounts,
            read_only=request.read_only,
            devices=request.devices,
            extra_properties=request.extra_properties,
            backend=request.backend,
            rootfs=request.rootfs,
            image=request.image,
            data_path=request.data_path,
            init=request.init,
            environment=request.environment,
        )

    def stop_container(self, instance: str) -> Deferred[None]:
        """See `ManagerConnection`."""
        return self._client.stop_container(instance)

    def info(self, instance: str) -> Deferred[dict[str, Any]]:
        """See `ManagerConnection`."""
        return self._client.container_info(instance).addCallback(_plain)

    def watch(self, instance: str, callback: Callable[[dict[str, Any]], object]) -> Deferred[dict[str, Any]]:
        """See `ManagerConnection`."""

        def news(event: dict[str, Any]) -> None:
            if event.get("instance") == instance:
                failure = {"failure": event["error"]} if event.get("error") else {}
                callback({"state": event["state"], "phase": event["phase"], **failure})

        def known(containers: list[dict[str, Any]]) -> dict[str, Any]:
            absent = {"state": "absent"}
            return next((_plain(one) for one in containers if one.get("instance") == instance), absent)

        return self._client.watch(news, instance).addCallback(known)

    def when_lost(self) -> Deferred[str]:
        """See `ManagerConnection`."""
        return self._client.when_lost()

    def close(self) -> Deferred[None]:
        """See `ManagerConnection`."""
        return self._client.close()


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    details = info.get("details")
    return {**info, "details": json.dumps(details)} if isinstance(details, dict) and details else info


def manager_connector(
    reactor: Any, where: str, paths: RuntimePaths
) -> Callable[[], Deferred[ManagerConnection]]:
    """What connects to the manager at ``where``.

    Args:
        reactor: connects.
        where: the path of a socket, a Twisted client endpoint string, or an empty string for the usual place:
            the manager of this user if there is one, else the system's.
        paths: of the instance.

    Raises:
        ConfigError: ``where`` is neither.
    """
    endpoint = None
    if where and not where.startswith(("/", ".")):
        try:
            endpoint = clientFromString(reactor, where)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{where!r} is neither a path nor a client endpoint: {error}",
                "give the path of the manager's socket, or an endpoint such as unix:/run/anbox-container.socket",
            ) from None

    def dial() -> Deferred[ManagerConnection]:
        place = endpoint or where or _usual(paths)
        return connect(reactor, place).addCallback(Manager)

    return dial


def _usual(paths: RuntimePaths) -> str:
    """The user's own manager if its socket is there, else the system's if that is, else where ours would be."""
    own, system = paths.manager_socket(), paths.manager_socket(privileged=True)
    return system if not os.path.exists(own) and os.path.exists(system) else own
