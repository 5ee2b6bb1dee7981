"""Descriptions of D-Bus interfaces, and their introspection data (D-Bus Specification, "Introspection Data Format")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from xml.sax.saxutils import quoteattr

import attrs

__all__ = ["STANDARD", "Argument", "Interface", "Method", "Property", "Signal", "introspection_xml"]

EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"

Argument = tuple[str, str]
"""Name and type."""


@attrs.frozen
class Method:
    """A method.

    Attributes:
        name: of the member.
        call: takes the arguments; returns the values, or a coroutine or Deferred of them.
        takes: its arguments.
        gives: its results.
    """

    name: str
    call: Callable[..., Any] = attrs.field(eq=False)
    takes: tuple[Argument, ...] = ()
    gives: tuple[Argument, ...] = ()

    @property
    def signature(self) -> str:
        """Of the arguments."""
        return "".join(kind for _, kind in self.takes)

    @property
    def result(self) -> str:
        """Signature of the results."""
        return "".join(kind for _, kind in self.gives)


@attrs.frozen
class Property:
    """A property.

    Attributes:
        name: of the member.
        kind: its type.
        get: returns the value.
        set: takes a new one; None makes it read-only.
        present: whether ``GetAll`` shows it now.
        emits: what introspection says of its changes: ``true``, ``const`` or ``false``.
    """

    name: str
    kind: str
    get: Callable[[], Any] = attrs.field(eq=False)
    set: Callable[[Any], object] | None = attrs.field(default=None, eq=False)
    present: Callable[[], bool] = attrs.field(default=lambda: True, eq=False)
    emits: str = "true"


@attrs.frozen
class Signal:
    """A signal, with the names and types of what it carries."""

    name: str
    carries: tuple[Argument, ...] = ()


@attrs.frozen
class Interface:
    """An interface of an object."""

    name: str
    methods: tuple[Method, ...] = ()
    properties: tuple[Property, ...] = ()
    signals: tuple[Signal, ...] = ()

    def method(self, name: str) -> Method | None:
        """The method of this name."""
        return next((method for method in self.methods if method.name == name), None)

    def property(self, name: str) -> Property | None:
        """The property of this name."""
        return next((one for one in self.properties if one.name == name), None)

    def to_xml(self) -> str:
        """Its part of the introspection data."""
        lines = [f"  <interface name={quoteattr(self.name)}>"]
        for method in self.methods:
            lines.append(f"    <method name={quoteattr(method.name)}>")
            lines += [_argument(argument, "in") for argument in method.takes]
            lines += [_argument(argument, "out") for argument in method.gives]
            lines.append("    </method>")
        for one in self.properties:
            access = "readwrite" if one.set else "read"
            lines += [
                f'    <property name={quoteattr(one.name)} type="{one.kind}" access="{access}">',
                f'      <annotation name="{EMITS}" value="{one.emits}"/>',
                "    </property>",
            ]
        for signal in self.signals:
            lines.append(f"    <signal name={quoteattr(signal.name)}>")
            lines += [_argument(argument) for argument in signal.carries]
            lines.append("    </signal>")
        lines.append("  </interface>")
        return "\n".join(lines)


def _argument(argument: Argument, direction: str = "") -> str:
    name, kind = argument
    way = f' direction="{direction}"' if direction else ""
    return f'      <arg name={quoteattr(name)} type="{kind}"{way}/>'


def _nothing() -> None:
    raise NotImplementedError  # the dispatcher answers these itself


STANDARD = (
    Interface(
        "org.freedesktop.DBus.Peer",
        (Method("Ping", _nothing), Method("GetMachineId", _nothing, (), (("machine_uuid", "s"),))),
    ),
    Interface(
        "org.freedesktop.DBus.Introspectable", (Method("Introspect", _nothing, (), (("xml_data", "s"),)),)
    ),
    Interface(
        "org.freedesktop.DBus.Properties",
        (
            Method("Get", _nothing, (("interface_name", "s"), ("property_name", "s")), (("value", "v"),)),
            Method("Set", _nothing, (("interface_name", "s"), ("property_name", "s"), ("value", "v"))),
            Method("GetAll", _nothing, (("interface_name", "s"),), (("props", "a{sv}"),)),
        ),
        signals=(
            Signal(
                "PropertiesChanged",
                (("interface_name", "s"), ("changed_properties", "a{sv}"), ("invalidated_properties", "as")),
            ),
        ),
    ),
)
"""What every object has."""

_HEAD = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>"""


def introspection_xml(interfaces: Iterable[Interface], children: Iterable[str] = ()) -> str:
    """The answer of ``Introspect`` of one node."""
    parts = [_HEAD, *(interface.to_xml() for interface in interfaces)]
    parts += [f"  <node name={quoteattr(child)}/>" for child in children]
    return "\n".join([*parts, "</node>\n"])
