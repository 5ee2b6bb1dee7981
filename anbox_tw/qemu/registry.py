"""The pipe services of a session, by name."""

from __future__ import annotations

from collections.abc import Iterator

from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._wire import match_name
from anbox_tw.qemu.errors import PipeServiceExists, UnknownPipeService

__all__ = ["PipeServiceRegistry"]


class PipeServiceRegistry:
    """Knows which service a guest means; services may come and go while guests are connected."""

    def __init__(self) -> None:
        self._services: dict[str, IPipeService] = {}

    def register(self, service: IPipeService) -> None:
        """Serve guests that ask for ``service.name`` from now on.

        Raises:
            PipeServiceExists: another service has this name.
            TypeError: ``service`` does not provide ``IPipeService``.
        """
        try:
            verifyObject(IPipeService, service)
        except Invalid as error:
            raise TypeError(str(error)) from error
        if service.name in self._services:
            raise PipeServiceExists(
                f"the pipe service {service.name} is registered already", "unregister it first"
            )
        self._services[service.name] = service

    def unregister(self, service: IPipeService) -> None:
        """Refuse new guests of ``service``; those that it serves stay. Harmless if it is not there."""
        if self._services.get(service.name) is service:
            del self._services[service.name]

    def find(self, text: str) -> tuple[IPipeService, str]:
        """The service that an identification means, and its argument.

        Args:
            text: what the guest wrote behind ``pipe:``.

        Raises:
            UnknownPipeService: no registered service has this name.
        """
        found = match_name(text, self._services)
        if found is None:
            raise UnknownPipeService(
                f"no pipe service is named {text[:64]!r}",
                f"this session has {', '.join(sorted(self._services)) or 'none'}",
            )
        name, argument = found
        return self._services[name], argument

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._services))

    def __len__(self) -> int:
        return len(self._services)
