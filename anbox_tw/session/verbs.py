"""What can be asked of the device through the control socket: verbs with JSON arguments.

A feature of the session registers its verbs here (``session.verbs.register("geo.fix", function)``); the command line and
other programs reach them by `anbox_tw.session.client.SessionClient.device`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred

from anbox_tw.device import Device
from anbox_tw.session.errors import BadRequest

__all__ = ["DeviceVerbs"]

Verb = Callable[..., Any]
"""Takes the arguments by name; returns something JSON-able, a coroutine or a Deferred of that."""


class DeviceVerbs:
    """The verbs of one session.

    Args:
        device: what ``get`` and ``set`` work on.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._verbs: dict[str, Verb] = {}
        self.register("get", self._get)
        self.register("set", self._set)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._verbs))

    def register(self, name: str, verb: Verb) -> None:
        """Add a verb.

        Raises:
            ValueError: there is one of this name.
        """
        if name in self._verbs:
            raise ValueError(f"the verb {name} is registered already")
        self._verbs[name] = verb

    def register_methods(self, owner: object) -> None:
        """Add each method named ``GROUP_VERB`` of ``owner`` as the verb ``GROUP.VERB``; further ``_`` stay.

        Raises:
            ValueError: there is one of such a name.
        """
        for name, method in inspect.getmembers(owner, inspect.ismethod):
            group, _, verb = name.partition("_")
            if group and verb:
                self.register(f"{group}.{verb}", method)

    def check(self, name: str, arguments: Mapping[str, Any]) -> Verb:
        """See that there is such a verb and that these are its arguments, and run nothing; returns the verb.

        Raises:
            BadRequest: there is none, or they are not.
        """
        verb = self._verbs.get(name)
        if verb is None:
            raise BadRequest(f"the device knows no {name!r}", f"it knows {', '.join(self)}")
        try:
            inspect.signature(verb).bind(**arguments)
        except TypeError as error:
            raise BadRequest(f"{name}: {error}") from error
        return verb

    async def run(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Run a verb.

        Raises:
            BadRequest: there is no such verb, or these are not its arguments.
            anbox_tw.errors.AnboxError: what the verb itself raised.
        """
        result = self.check(name, arguments)(**arguments)
        if isinstance(result, Deferred) or inspect.isawaitable(result):
            result = await result
        return result

    def _get(self, part: str = "") -> Any:
        """A part of the device, or all of it."""
        return self._device.part(part).as_dict() if part else self._device.as_dict()

    def _set(self, part: str, values: Mapping[str, Any]) -> Any:
        """Change fields of a part; the answer is its new state."""
        target = self._device.part(part)
        if not isinstance(values, Mapping):
            raise BadRequest("set: values must be an object of field and value")
        target.update_from_text(values)
        return target.as_dict()
