"""Objects on a bus: what the standard interfaces answer, who may call, and errors by name.

Nothing here knows a connection: `ObjectTree.handle` gets what a call says and gives what the answer is.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anbox_tw.errors import AnboxError
from anbox_tw.session.dbus.interfaces import STANDARD, Interface, Property, introspection_xml

__all__ = ["BusError", "Call", "ObjectTree", "Variant"]

FREEDESKTOP = "org.freedesktop.DBus.Error."

MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")


class BusError(AnboxError):
    """An error with a D-Bus name, which is its ``code``."""


@attrs.frozen
class Variant:
    """A value of a variant, with its type."""

    kind: str
    value: Any


@attrs.frozen
class Call:
    """A method call.

    Attributes:
        path: of the object.
        interface: or an empty string, where any that has the member will do.
        member: name of the method.
        signature: of the body.
        body: the arguments.
        sender: unique name of who calls.
    """

    path: str
    interface: str
    member: str
    signature: str = ""
    body: tuple[Any, ...] = ()
    sender: str = ""


class ObjectTree:
    """The objects of one connection.

    Args:
        name_of: the D-Bus name for an error that a method raised.
        may_call: fires with whether a sender may; asked for everything but ``Peer`` and ``Introspectable``.
    """

    _log = Logger()

    def __init__(
        self, name_of: Callable[[Exception], str], may_call: Callable[[str], Awaitable[bool] | Deferred[bool]]
    ) -> None:
        self._name_of = name_of
        self._may_call = may_call
        self._objects: dict[str, tuple[Interface, ...]] = {}

    def add(self, path: str, interfaces: Iterable[Interface]) -> None:
        """Export an object."""
        self._objects[path] = (*STANDARD, *interfaces)

    async def handle(self, call: Call) -> tuple[str, list[Any]]:
        """Carry out a call.

        Returns:
            Signature and values of the answer. A value of type ``v`` is a `Variant`.

        Raises:
            BusError: the call fails.
        """
        if call.interface == "org.freedesktop.DBus.Peer":
            return self._peer(call)
        interfaces = self._objects.get(call.path)
        if call.member == "Introspect" and call.interface in ("", "org.freedesktop.DBus.Introspectable"):
            self._check_signature(call, "")
            return "s", [self._introspect(call.path)]
        if interfaces is None:
            raise BusError(f"there is no object {call.path}", code=FREEDESKTOP + "UnknownObject")
        if not await self._may_call(call.sender):
            raise BusError("this session belongs to another user", code=FREEDESKTOP + "AccessDenied")
        try:
            return await self._dispatch(interfaces, call)
        except BusError:
            raise
        except Exception as error:
            name = self._name_of(error)
            if not isinstance(error, AnboxError):
                self._log.failure("D-Bus: {member} failed", member=call.member)
                raise BusError("an error in the session; its log tells it", code=name) from error
            raise BusError(error.cause, error.cure, code=name) from error

    async def _dispatch(self, interfaces: tuple[Interface, ...], call: Call) -> tuple[str, list[Any]]:
        if call.interface == "org.freedesktop.DBus.Properties" or (
            not call.interface and call.member in ("Get", "Set", "GetAll")
        ):
            return self._properties(interfaces, call)
        candidates = [one for one in interfaces if not call.interface or one.name == call.interface]
        if not candidates:
            raise BusError(
                f"{call.path} has no interface {call.interface}", code=FREEDESKTOP + "UnknownInterface"
            )
        method = next((found for one in candidates if (found := one.method(call.member))), None)
        if method is None:
            raise BusError(
                f"there is no method {call.member} in {call.interface or call.path}",
                code=FREEDESKTOP + "UnknownMethod",
            )
        self._check_signature(call, method.signature)
        result = method.call(*call.body)
        if isinstance(result, Deferred) or inspect.isawaitable(result):
            result = await result
        if not method.gives:
            return "", []
        return method.result, [result] if len(method.gives) == 1 else list(result)

    @staticmethod
    def _check_signature(call: Call, expected: str) -> None:
        if call.signature != expected:
            raise BusError(
                f"{call.member} takes ({expected}), not ({call.signature})", code=FREEDESKTOP + "InvalidArgs"
            )

    # -- org.freedesktop.DBus.Peer, Introspectable --

    def _peer(self, call: Call) -> tuple[str, list[Any]]:
        if call.member == "Ping":
            return "", []
        if call.member == "GetMachineId":
            return "s", [_machine_id()]
        raise BusError(
            f"there is no method {call.member} in {call.interface}", code=FREEDESKTOP + "UnknownMethod"
        )

    def _introspect(self, path: str) -> str:
        below = path.rstrip("/") + "/"
        children = sorted(
            {
                one[len(below) :].partition("/")[0]
                for one in self._objects
                if one.startswith(below) and one != path
            }
        )
        interfaces = self._objects.get(path)
        if interfaces is None and not children:
            raise BusError(f"there is no object {path}", code=FREEDESKTOP + "UnknownObject")
        # A node on the way to an object can be asked what is below it.
        return introspection_xml(interfaces or STANDARD[:2], children)

    # -- org.freedesktop.DBus.Properties --

    def _properties(self, interfaces: tuple[Interface, ...], call: Call) -> tuple[str, list[Any]]:
        expected = {"Get": "ss", "Set": "ssv", "GetAll": "s"}.get(call.member)
        if expected is None:
            raise BusError(
                f"there is no method {call.member} in {call.interface}", code=FREEDESKTOP + "UnknownMethod"
            )
        self._check_signature(call, expected)
        wanted = call.body[0]
        chosen = [one for one in interfaces if not wanted or one.name == wanted]
        if not chosen:
            raise BusError(f"{call.path} has no interface {wanted}", code=FREEDESKTOP + "UnknownInterface")
        if call.member == "GetAll":
            return "a{sv}", [
                {
                    one.name: Variant(one.kind, one.get())
                    for interface in chosen
                    for one in interface.properties
                    if one.present()
                }
            ]
        found = self._find(chosen, call.body[1], wanted)
        if call.member == "Get":
            return "v", [Variant(found.kind, found.get())]
        if found.set is None:
            raise BusError(f"the property {found.name} cannot be set", code=FREEDESKTOP + "PropertyReadOnly")
        found.set(checked(found, call.body[2]))
        return "", []

    @staticmethod
    def _find(chosen: Iterable[Interface], name: str, wanted: str) -> Property:
        for interface in chosen:
            found = interface.property(name)
            if found is not None:
                return found
        raise BusError(
            f"there is no property {name} in {wanted or 'this object'}", code=FREEDESKTOP + "UnknownProperty"
        )


def checked(one: Property, value: Any) -> Any:
    """A value that a caller gave for a property, as the property holds it.

    A whole number does where a real one is wanted. txdbus does not tell a variant's type, so what is checked is the value.

    Raises:
        BusError: it is of another type.
    """
    kinds = one.kind.strip("()")
    values = list(value) if one.kind.startswith("(") and isinstance(value, list | tuple) else [value]
    good = len(values) == len(kinds)
    for kind, each in zip(kinds, values, strict=False):
        number = isinstance(each, int | float) and not isinstance(each, bool)
        good = good and (number if kind == "d" else isinstance(each, {"b": bool, "s": str}.get(kind, object)))
    if not good:
        raise BusError(f"the property {one.name} is a {one.kind}", code=FREEDESKTOP + "InvalidArgs")
    converted = [float(each) if kind == "d" else each for kind, each in zip(kinds, values, strict=True)]
    return tuple(converted) if one.kind.startswith("(") else converted[0]


def _machine_id() -> str:
    for path in MACHINE_ID_FILES:
        try:
            with open(path) as file:
                found = file.read(64).strip()
        except OSError:
            continue
        if len(found) == 32:
            return found
    raise BusError("this machine has no id", code=FREEDESKTOP + "FileNotFound")
