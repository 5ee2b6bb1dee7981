"""What of the D-Bus service needs no bus: addresses, names, descriptions, dispatch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device.errors import BadValue, SensorDisabled
from anbox_tw.errors import NotRunning
from anbox_tw.session.dbus import objects
from anbox_tw.session.dbus.addresses import SYSTEM_BUS, BusAddress, addresses_of, parse_addresses
from anbox_tw.session.dbus.anbox import bus_name, error_name
from anbox_tw.session.dbus.interfaces import Interface, Method, Property, Signal
from anbox_tw.session.dbus.objects import BusError, Call, ObjectTree, Variant


class AddressTests(SynchronousTestCase):
    def test_what_is_understood(self) -> None:
        for text, expected in (
            ("unix:path=/run/x,guid=ab", ["/run/x"]),
            ("unix:abstract=/tmp/y", ["@/tmp/y"]),
            ("unix:path=/a%20b%3bc", ["/a b;c"]),
            ("tcp:host=h,port=12;unix:path=/z", ["h:12", "/z"]),
            ("tcp:port=7", ["localhost:7"]),
            ("autolaunch:;unixexec:path=x;unix:tmpdir=/tmp;tcp:host=h;tcp:port=99999;;junk", []),
        ):
            self.assertEqual([str(address) for address in parse_addresses(text)], expected)

    def test_where_the_buses_are(self) -> None:
        runtime = tempfile.mkdtemp()
        self.assertEqual(addresses_of("session", {}), [])
        self.assertEqual(addresses_of("session", {"XDG_RUNTIME_DIR": runtime}), [])
        Path(runtime, "bus").touch()
        self.assertEqual(
            addresses_of("session", {"XDG_RUNTIME_DIR": runtime}), [BusAddress("unix", f"{runtime}/bus")]
        )
        given = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/x", "XDG_RUNTIME_DIR": runtime}
        self.assertEqual(addresses_of("session", given), [BusAddress("unix", "/x")])
        self.assertEqual(addresses_of("system", {}), parse_addresses(SYSTEM_BUS))
        self.assertEqual(
            addresses_of("system", {"DBUS_SYSTEM_BUS_ADDRESS": "tcp:host=h,port=1"})[0].host, "h"
        )

    def test_endpoints(self) -> None:
        made: list[Any] = []

        class Reactor:
            def connectUNIX(self, path: str, *arguments: Any, **options: Any) -> None:
                made.append(path)

            def connectTCP(self, host: str, port: int, *arguments: Any, **options: Any) -> None:
                made.append((host, port))

        for address in parse_addresses("unix:abstract=x;tcp:host=h,port=1"):
            address.endpoint(Reactor()).connect(None)
        self.assertEqual(made, ["\0x", ("h", 1)])


class NameTests(SynchronousTestCase):
    def test_names_of_instances(self) -> None:
        for instance, name in (("default", "org.anbox"), ("two", "org.anbox.two"), ("9x", "org.anbox._9x")):
            self.assertEqual(bus_name(instance), name)

    def test_names_of_errors(self) -> None:
        for error, name in (
            (SensorDisabled("x"), "org.anbox.SensorDisabled"),
            (BadValue("x"), "org.anbox.InvalidArgument"),
            (NotRunning("x"), "org.anbox.InternalError"),
            (RuntimeError("x"), "org.anbox.InternalError"),
        ):
            self.assertEqual(error_name(error), name)


class TreeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.allowed = True
        self.value = 1.5
        self.later: Deferred[tuple[int, str]] = Deferred()
        self.tree = ObjectTree(error_name, lambda sender: succeed(self.allowed))
        interface = Interface(
            "a.b",
            (
                Method("Add", lambda x, y: x + y, (("x", "i"), ("y", "i")), (("sum", "i"),)),
                Method("Both", lambda: self.later, (), (("n", "i"), ("s", "s"))),
                Method("Nothing", lambda: None),
            ),
            (
                Property("Real", "d", lambda: self.value, lambda value: setattr(self, "value", value)),
                Property("Flag", "b", lambda: True, lambda value: None),
                Property("Word", "s", lambda: "w", lambda value: None, lambda: False, "const"),
            ),
            (Signal("Told", (("what", "s"),)),),
        )
        self.tree.add("/a/b", [interface])

    def ask(
        self, member: str, *body: Any, signature: str = "", interface: str = "a.b", path: str = "/a/b"
    ) -> Any:
        return self.successResultOf(
            ensureDeferred(self.tree.handle(Call(path, interface, member, signature, body, ":1.1")))
        )

    def refused(self, member: str, *body: Any, **where: str) -> str:
        call = Call(
            where.get("path", "/a/b"), where.get("interface", "a.b"), member, where.get("signature", ""), body
        )
        failure = self.failureResultOf(ensureDeferred(self.tree.handle(call)), BusError)
        error: Any = failure.value
        return str(error.code.rpartition(".")[2])

    def test_methods(self) -> None:
        self.assertEqual(self.ask("Add", 1, 2, signature="ii"), ("i", [3]))
        self.assertEqual(self.ask("Add", 1, 2, signature="ii", interface=""), ("i", [3]))
        self.assertEqual(self.ask("Nothing"), ("", []))
        waiting = ensureDeferred(self.tree.handle(Call("/a/b", "a.b", "Both")))
        self.assertNoResult(waiting)
        self.later.callback((1, "x"))
        self.assertEqual(self.successResultOf(waiting), ("is", [1, "x"]))
        self.assertEqual(self.refused("Add", 1, signature="i"), "InvalidArgs")
        self.assertEqual(self.refused("Missing"), "UnknownMethod")
        self.assertEqual(self.refused("Missing", interface=""), "UnknownMethod")

    def test_properties(self) -> None:
        name = "org.freedesktop.DBus.Properties"
        self.assertEqual(
            self.ask("Get", "a.b", "Real", signature="ss", interface=name), ("v", [Variant("d", 1.5)])
        )
        self.assertEqual(
            self.ask("Get", "", "Real", signature="ss", interface=""), ("v", [Variant("d", 1.5)])
        )
        self.ask("Set", "a.b", "Real", 7, signature="ssv", interface=name)
        self.assertIsInstance(self.value, float)
        everything = {"Real": Variant("d", 7.0), "Flag": Variant("b", True)}
        self.assertEqual(self.ask("GetAll", "", signature="s", interface=name), ("a{sv}", [everything]))
        for property_name, value in (
            ("Flag", 1),
            ("Word", 1),
            ("Real", "x"),
            ("Real", True),
            ("Real", [1.0]),
        ):
            arguments = ("a.b", property_name, value)
            self.assertEqual(self.refused("Set", *arguments, signature="ssv", interface=name), "InvalidArgs")
        self.assertEqual(self.refused("Get", "a.b", signature="s", interface=name), "InvalidArgs")

    def test_introspection_is_for_everybody_and_the_rest_is_not(self) -> None:
        self.allowed = False
        introspectable, peer = "org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer"
        for path, children in (("/", ["a"]), ("/a", ["b"]), ("/a/b", [])):
            _, (xml,) = self.ask("Introspect", interface=introspectable, path=path)
            root = ElementTree.fromstring(xml)
            self.assertEqual([node.get("name") for node in root.findall("node")], children)
        found = root.find("interface[@name='a.b']/property[@name='Word']/annotation")
        assert found is not None
        self.assertEqual(found.get("value"), "const")
        self.assertEqual(self.ask("Ping", interface=peer, path="/nowhere"), ("", []))
        self.assertEqual(self.refused("Introspect", interface=introspectable, path="/ab"), "UnknownObject")
        self.assertEqual(self.refused("Nothing"), "AccessDenied")
        self.assertEqual(self.refused("Nothing", path="/a"), "UnknownObject")

    def test_the_machine_has_an_id_or_says_that_it_has_none(self) -> None:
        peer = "org.freedesktop.DBus.Peer"
        file = tempfile.mktemp()
        self.patch(objects, "MACHINE_ID_FILES", ("/nonexistent", file))
        self.assertEqual(self.refused("GetMachineId", interface=peer), "FileNotFound")
        Path(file).write_text("0123456789abcdef0123456789abcdef\n")
        self.assertEqual(
            self.ask("GetMachineId", interface=peer), ("s", ["0123456789abcdef0123456789abcdef"])
        )
