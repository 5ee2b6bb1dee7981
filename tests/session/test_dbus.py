"""The session on a real bus, asked by busctl, gdbus and dbus-send."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from txdbus import message

from anbox_tw.device import Change
from anbox_tw.network import RuntimePaths
from anbox_tw.session.dbus import connection as connection_module
from anbox_tw.session.dbus import service as service_module
from anbox_tw.session.dbus.connection import BusCallFailed
from anbox_tw.session.dbus.service import DBusService
from anbox_tw.session.service import SessionService
from tests.session.buses import SYSTEM, Bus
from tests.session.guest import BridgeGuest, until
from tests.session.test_service import SessionCase
from tests.support import REPOSITORY, need_root

PROPERTIES = "org.freedesktop.DBus.Properties"
NOBODY = 65534


class BusCase(SessionCase):
    """A session on a bus of its own."""

    policy = ""
    kind = "session"

    def setUp(self) -> None:
        self.bus = Bus(self, *([self.policy] if self.policy else []))
        super().setUp()

    def make(self, **settings: Any) -> SessionService:
        session = super().make(**settings)
        session.dbus = DBusService(session._reactor, session, self.kind, self.bus.environment())
        return session

    async def on_bus(self) -> None:
        self.session.startService()
        await until(lambda: self.session.dbus is not None and self.session.dbus.state == "owner")

    async def booted(self) -> BridgeGuest:
        await self.on_bus()
        guest = await self.guest()
        guest.booted()
        await until(lambda: self.session.state.levels.booted)
        return guest

    async def busctl(self, *arguments: str) -> str:
        out, err, code = await self.bus.run("busctl", f"--address={self.bus.address}", *arguments)
        self.assertEqual(code, 0, err)
        return out

    async def call(self, member: str, *arguments: str, code: int = 0) -> str:
        """By gdbus: what it prints, or the error."""
        out, err, status = await self.bus.run(
            *(
                "gdbus",
                "call",
                "--address",
                self.bus.address,
                "--dest",
                "org.anbox",
                "--object-path",
                "/org/anbox",
            ),
            *("--method", member, *arguments),
        )
        self.assertEqual(bool(status), bool(code), out + err)
        return (err if code else out).strip()


class InterfaceTests(BusCase):
    async def test_introspection_by_busctl(self) -> None:
        await self.on_bus()
        said = await self.busctl("introspect", "org.anbox", "/org/anbox")
        rows = {tuple(re.split(r"\s+", line)[:3]) for line in said.splitlines()}
        expected = {
            (".Launch", "method", "a{sv}s"),
            (".Ready", "property", "b"),
            (".PushSentence", "method", "s"),
            (".Ping", "method", "-"),
            (".Introspect", "method", "-"),
            (".GetAll", "method", "s"),
            (".PropertiesChanged", "signal", "sa{sv}as"),
            (".Changed", "signal", "ss"),
        }
        expected |= {
            (f".{name}", "property", "(ddd)") for name in ("Acceleration", "MagneticField", "Orientation")
        }
        expected |= {
            (f".{name}", "property", "d")
            for name in ("Temperature", "Proximity", "Light", "Pressure", "Humidity")
        }
        self.assertEqual(expected - rows, set())
        self.assertIn("writable", next(line for line in said.splitlines() if ".Light" in line))
        self.assertRegex(said, r"\.Ready\s+property\s+b\s+false")
        self.assertIn("/org/anbox", await self.busctl("tree", "--list", "org.anbox"))

    async def test_the_commands_in_the_manual_work(self) -> None:
        guest = await self.booted()
        (block,) = re.findall(
            r"^```sh\n(busctl.*?)^```$", (REPOSITORY / "docs/dbus.md").read_text(), re.S | re.M
        )
        for line in block.splitlines():
            _, err, code = await self.bus.run(*shlex.split(line))
            self.assertEqual((code, err), (0, ""), line)
        self.assertEqual(guest.calls[-1][1].intent.package, "org.example.notes")
        self.assertEqual(self.session.device.sensors.get("light"), (300.0,))
        self.assertEqual(self.session.device.battery.state.capacity, 15)

    async def test_introspection_by_gdbus_and_the_way_down(self) -> None:
        await self.on_bus()
        out, err, code = await self.bus.run(
            *("gdbus", "introspect", "--address", self.bus.address, "--dest", "org.anbox"),
            *("--object-path", "/", "--recurse"),
        )
        self.assertEqual((err, code), ("", 0))
        for words in (
            "node /org/anbox {",
            "readwrite (ddd) Orientation = (0.0, 0.0, 0.0);",
            "Launch(in  a{sv} intent,",
        ):
            self.assertIn(words, out)
        out, _, code = await self.bus.run(
            *("dbus-send", f"--bus={self.bus.address}", "--print-reply", "--dest=org.anbox", "/org/anbox"),
            "org.freedesktop.DBus.Peer.GetMachineId",
        )
        self.assertIn("string" if code == 0 else "", out)
        self.assertEqual(await self.call("org.freedesktop.DBus.Peer.Ping"), "()")

    async def test_launch_and_ready(self) -> None:
        await self.on_bus()
        launch, package = "org.anbox.ApplicationManager.Launch", "{'package': <'org.a'>}"
        self.assertIn(
            "org.anbox.InternalError: Anbox not yet ready to launch applications",
            await self.call(launch, package, "''", code=1),
        )
        guest = await self.booted()
        intent = "{'package': <'org.a'>, 'component': <'.M'>, 'action': <'a'>, 'uri': <'u:'>, 'type': <'t'>, 'other': <7>}"
        self.assertEqual(await self.call(launch, intent, "'fullscreen'"), "()")
        request = guest.calls[-1][1]
        self.assertEqual(
            (request.intent.package, request.intent.component, request.intent.action, request.intent.uri),
            ("org.a", ".M", "a", "u:"),
        )
        self.assertEqual((request.intent.type, request.stack), ("t", 2))
        for arguments, error in (
            (("{'uri': <'x'>}", "''"), "org.anbox.InvalidArgument: No package specified"),
            (("@a{sv} {}", "''"), "org.anbox.InvalidArgument: No package specified"),
            (("{'package': <7>}", "''"), "org.anbox.InvalidArgument: package"),
        ):
            self.assertIn(error, await self.call(launch, *arguments, code=1))

        def refuse(request: Any) -> None:
            raise ValueError("Failed to execute process")

        guest.answer = refuse
        self.assertRegex(
            await self.call(launch, package, "'default'", code=1),
            r"org\.anbox\.InternalError: .*Failed to execute process",
        )
        self.flushLoggedErrors(ValueError)
        ready = ("org.anbox.ApplicationManager", "Ready")
        self.assertEqual(await self.call(f"{PROPERTIES}.Get", *ready), "(<true>,)")
        self.assertIn("PropertyReadOnly", await self.call(f"{PROPERTIES}.Set", *ready, "<false>", code=1))
        await guest.channel.close()
        await until(lambda: not self.session.bridge.connected)
        self.assertIn(
            "org.anbox.InternalError: No remote client connected",
            await self.call(launch, package, "''", code=1),
        )

    async def test_sensors(self) -> None:
        await self.on_bus()
        sensors = ("org.anbox.Sensors",)
        self.session.device.sensors.set("acceleration", (0, 0, 9.75))
        self.assertEqual(
            await self.call(f"{PROPERTIES}.Get", *sensors, "Acceleration"), "(<(0.0, 0.0, 9.75)>,)"
        )
        await self.busctl(
            "set-property",
            "org.anbox",
            "/org/anbox",
            "org.anbox.Sensors",
            "Acceleration",
            "(ddd)",
            "1",
            "2.5",
            "3",
        )
        self.assertEqual(self.session.device.sensors.get("acceleration"), (1.0, 2.5, 3.0))
        for name, value, sensor in (
            ("MagneticField", "<(1.0, 2.0, 3.0)>", "magnetic-field"),
            ("Temperature", "<-7.25>", "temperature"),
            ("Humidity", "<3>", "humidity"),
        ):
            self.assertEqual(await self.call(f"{PROPERTIES}.Set", *sensors, name, value), "()")
            values = self.session.device.sensors.get(sensor)
            self.assertEqual(
                values, {"magnetic-field": (1, 2, 3), "temperature": (-7.25,), "humidity": (3,)}[sensor]
            )
        self.assertIn("'Temperature': <-7.25>", await self.call(f"{PROPERTIES}.GetAll", *sensors))
        self.assertIn("'Ready': <false>", await self.call(f"{PROPERTIES}.GetAll", ""))
        for arguments, error in (
            (("Set", *sensors, "Light", "<'bright'>"), "InvalidArgs"),
            (("Set", *sensors, "Light", "<true>"), "InvalidArgs"),
            (("Set", *sensors, "Light", "<(1.0, 2.0)>"), "InvalidArgs"),
            (("Set", *sensors, "Orientation", "<(1.0, 2.0)>"), "InvalidArgs"),
            (("Set", *sensors, "Orientation", "<1.0>"), "InvalidArgs"),
            (("Set", *sensors, "Light", "<nan>"), "org.anbox.InvalidArgument"),
            (("Get", *sensors, "Smell"), "UnknownProperty"),
            (("Get", "org.anbox.Nose", "Smell"), "UnknownInterface"),
            (("GetAll", "org.anbox.Nose"), "UnknownInterface"),
        ):
            member, *rest = arguments
            self.assertIn(error, await self.call(f"{PROPERTIES}.{member}", *rest, code=1))

    async def test_disabled_sensors(self) -> None:
        await self.session.stopService()
        self.session = self.make(disabled_sensors=("light", "orientation"))
        await self.on_bus()
        for arguments in (("Get", "Light"), ("Set", "Light", "<1.0>"), ("Get", "Orientation")):
            member, name, *value = arguments
            self.assertIn(
                f"org.anbox.SensorDisabled: {name} sensor is disabled",
                await self.call(f"{PROPERTIES}.{member}", "org.anbox.Sensors", name, *value, code=1),
            )
        everything = await self.call(f"{PROPERTIES}.GetAll", "org.anbox.Sensors")
        self.assertIn("Pressure", everything)
        self.assertNotIn("Light", everything)
        self.assertIn("Pressure", await self.busctl("introspect", "org.anbox", "/org/anbox"))

    async def test_gps(self) -> None:
        await self.on_bus()
        told: list[Change] = []
        self.addCleanup(self.session.device.location.observe(told.append))
        sentence = "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47"
        self.assertEqual(await self.call("org.anbox.Gps.PushSentence", sentence), "()")
        self.assertEqual([(change.kind, change.value) for change in told], [("nmea", sentence)])
        for bad in ("", "x" * 100, "two\\nlines"):
            self.assertIn(
                "org.anbox.InvalidArgument", await self.call("org.anbox.Gps.PushSentence", f'"{bad}"', code=1)
            )

    async def test_the_device(self) -> None:
        await self.on_bus()
        client = await self.bus.client(self)

        async def ask(member: str, signature: str, *body: Any) -> Any:
            answer = await client.call(
                "org.anbox", "/org/anbox", "org.anbox.Device", member, signature, *body
            )
            return json.loads(answer.body[0])

        self.assertEqual((await ask("Get", "s", "battery"))["capacity"], 100)
        self.assertIn("sensors", await ask("Get", "s", ""))
        self.assertEqual((await ask("Set", "ss", "battery", '{"capacity": 5}'))["capacity"], 5)
        self.assertEqual(await ask("Call", "ss", "tasks.list", ""), [])
        for member, signature, body, name in (
            ("Get", "s", ("wings",), "org.anbox.InvalidArgument"),
            ("Set", "ss", ("battery", "[]"), "org.anbox.InvalidArgument"),
            ("Set", "ss", ("battery", "{"), "org.anbox.InvalidArgument"),
            ("Call", "ss", ("warp", "{}"), "org.anbox.InvalidArgument"),
            ("Call", "ss", ("get", " " * (1 << 19)), "org.anbox.InvalidArgument"),
            ("Call", "s", ("get",), "org.freedesktop.DBus.Error.InvalidArgs"),
            ("Fly", "", (), "org.freedesktop.DBus.Error.UnknownMethod"),
        ):
            with self.assertRaises(BusCallFailed) as caught:
                await client.call("org.anbox", "/org/anbox", "org.anbox.Device", member, signature, *body)
            self.assertEqual(caught.exception.code, name)
        for path, interface, name in (
            ("/org", "org.anbox.Device", "UnknownObject"),
            ("/org/anbox", "org.example.No", "UnknownInterface"),
            ("/org/anbox", "org.freedesktop.DBus.Peer", "UnknownMethod"),
            ("/org/anbox", "org.freedesktop.DBus.Properties", "UnknownMethod"),
        ):
            with self.assertRaises(BusCallFailed) as caught:
                await client.call("org.anbox", path, interface, "Fly")
            self.assertTrue(caught.exception.code.endswith(name), caught.exception.code)

        def broken() -> None:
            raise RuntimeError("a mistake of ours")

        self.session.verbs.register("broken", broken)
        with self.assertRaises(BusCallFailed) as caught:
            await ask("Call", "ss", "broken", "{}")
        self.assertEqual(caught.exception.code, "org.anbox.InternalError")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class SignalTests(BusCase):
    async def listen(self) -> list[Any]:
        signals: list[Any] = []
        client = await self.bus.client(self, signals)
        await client.call(*service_module.BUS, "AddMatch", "s", "type='signal',sender='org.anbox'")
        return signals

    async def test_changes_are_told_with_their_types(self) -> None:
        await self.on_bus()
        signals = await self.listen()
        self.session.device.sensors.set("acceleration", (1, 2, 3))
        self.session.device.sensors.set("light", (7,))
        await until(lambda: len(signals) >= 2)
        changed = {signal.member: signal for signal in signals}
        self.assertEqual(
            (changed["Changed"].interface, changed["Changed"].body[0]), ("org.anbox.Device", "sensors")
        )
        body = changed["PropertiesChanged"].body
        self.assertEqual(
            (body[0], body[1], body[2]), ("org.anbox.Sensors", {"Acceleration": [1, 2, 3], "Light": 7.0}, [])
        )
        self.assertEqual(changed["PropertiesChanged"].signature, "sa{sv}as")
        guest = await self.guest()
        guest.booted()
        await until(lambda: any(signal.body[0] == "org.anbox.ApplicationManager" for signal in signals))
        self.assertEqual(signals[-1].body[1], {"Ready": True})

    async def test_gdbus_sees_them(self) -> None:
        await self.on_bus()
        out, err, code = await self.bus.run(
            "bash",
            "-c",
            f"gdbus monitor --address {self.bus.address} --dest org.anbox > out & "
            # its first line says that it listens
            "for i in $(seq 600); do grep -q 'is owned' out && break; sleep 0.1; done; "
            f"busctl --address={self.bus.address} set-property org.anbox /org/anbox org.anbox.Sensors Light d 11; "
            "for i in $(seq 600); do grep -q PropertiesChanged out && break; sleep 0.1; done; cat out; kill %1",
        )
        self.assertEqual(code, 0, err)
        self.assertIn("PropertiesChanged ('org.anbox.Sensors', {'Light': <11.0>}, @as [])", out)

    async def test_a_flood_of_changes_is_few_signals(self) -> None:
        await self.on_bus()
        signals = await self.listen()
        for number in range(1000):
            self.session.device.sensors.set("light", (number,))
        await until(
            lambda: any(
                signal.member == "PropertiesChanged" and signal.body[1]["Light"] == 999.0
                for signal in signals
            )
        )
        self.assertLess(len(signals), 10)


class LifeTests(BusCase):
    async def test_the_bus_goes_and_comes(self) -> None:
        await self.on_bus()
        assert self.session.dbus is not None
        self.bus.end()
        await until(lambda: self.session.dbus.state == "connecting")  # type: ignore[union-attr]
        self.session.device.sensors.set("light", (3,))
        self.bus.start()
        await until(lambda: self.session.dbus.state == "owner")  # type: ignore[union-attr]
        self.assertEqual(await self.call(f"{PROPERTIES}.Get", "org.anbox.Sensors", "Light"), "(<3.0>,)")

    async def test_no_bus_is_said_once_and_harms_nothing(self) -> None:
        self.bus.end()
        self.patch(service_module, "FIRST_RETRY_S", 0.01)
        self.patch(service_module, "MAX_RETRY_S", 0.01)
        said: list[str] = []
        tries: list[object] = []
        log = type("Log", (), {"info": lambda log, text, **fields: said.append(text.format(**fields))})()
        self.patch(DBusService, "_log", log)
        assert self.session.dbus is not None
        connect = self.session.dbus._connect

        async def counted() -> Any:
            tries.append(None)
            return await connect()

        self.patch(self.session.dbus, "_connect", counted)
        self.session.startService()
        client = await self.client()
        await until(lambda: len(tries) > 5)
        self.assertEqual(len(said), 1, said)
        self.assertIn("the session bus cannot be used", said[0])
        self.assertEqual(
            (await client.info())["details"]["dbus"], {"name": "org.anbox", "state": "connecting"}
        )

    async def test_no_address_and_no_txdbus(self) -> None:
        for environ, missing, words in (({}, False, "no address is known"), (None, True, "pip install")):
            session = SessionCase.make(self, paths=RuntimePaths(self.runtime, f"x{len(words)}"))
            said: list[str] = []
            log = type(
                "Log", (), {"info": lambda log, text, said=said, **fields: said.append(text.format(**fields))}
            )()
            self.patch(DBusService, "_log", log)
            dbus = session.dbus = DBusService(
                session._reactor, session, "session", environ or self.bus.environment()
            )
            if environ is not None:
                dbus._environ = {}
            if missing:
                name = "anbox_tw.session.dbus.connection"
                self.addCleanup(sys.modules.__setitem__, name, sys.modules[name])
                sys.modules[name] = None  # type: ignore[assignment]
            session.startService()
            await until(lambda: said)
            self.assertIn(words, said[0])
            await session.stopService()
            self.assertEqual(dbus.state, "off")

    async def test_stopping_while_it_connects(self) -> None:
        assert self.session.dbus is not None
        for wait in range(12):
            self.session.startService()
            for _ in range(wait):
                await deferLater(self.session._reactor, 0)
            await self.session.stopService()
        names = (await self.bus.run("busctl", f"--address={self.bus.address}", "list", "--no-legend"))[0]
        self.assertNotIn("org.anbox", names)

    async def test_the_name_goes_to_the_next(self) -> None:
        await self.on_bus()
        first = self.session
        other_runtime = tempfile.mkdtemp(prefix="as-", dir=self.runtime)
        second = self.make(paths=RuntimePaths(other_runtime))
        second.startService()
        await until(lambda: second.dbus is not None and second.dbus.state == "waiting")
        await first.stopService()
        await until(lambda: second.dbus is not None and second.dbus.state == "owner")
        third = self.make(paths=RuntimePaths(self.runtime, "9-lives"))
        third.startService()
        await until(lambda: third.dbus is not None and third.dbus.state == "owner")
        self.assertIn("org.anbox._9-lives", await self.busctl("list", "--acquired", "--no-legend"))

    async def test_activation(self) -> None:
        """The bus starts what tap/org.anbox.service names, and the call that asked for it is answered."""
        services = Path(tempfile.mkdtemp(prefix="sv-", dir=self.runtime))
        text = (REPOSITORY / "tap/org.anbox.service").read_text()
        self.assertIn("Exec=/usr/bin/anbox up --launchers\n", text)
        pid_file = services / "pid"
        command = (
            f"/usr/bin/env PYTHONPATH={REPOSITORY} {sys.executable} -c \"import os; open('{pid_file}', 'w').write(str(os.getpid())); "
            'from twisted.scripts.twistd import run; run()" '
            f"-n --pidfile= anbox-session --standalone --experimental --runtime-dir {services} --adb-server 127.0.0.1:1"
        )
        (services / "org.anbox.service").write_text(re.sub(r"Exec=.*", lambda _: f"Exec={command}", text))
        self.bus.end()
        self.bus = Bus(self, services=str(services))
        self.assertEqual(
            await self.call(f"{PROPERTIES}.Get", "org.anbox.ApplicationManager", "Ready"), "(<false>,)"
        )
        os.kill(int(pid_file.read_text()), 15)
        await until(lambda: not (services / "anbox").exists())


class FloodTests(BusCase):
    async def test_thousands_of_calls_at_once(self) -> None:
        await self.on_bus()
        client = await self.bus.client(self)
        where = ("org.anbox", "/org/anbox")
        calls = [client.call(*where, "org.freedesktop.DBus.Peer", "Ping") for _ in range(3000)]
        self.assertEqual(len(await gatherResults(calls)), 3000)
        calls = [client.call(*where, "org.anbox.Device", "Get", "s", "battery") for _ in range(2000)]

        def name(failure: Failure) -> str:
            error: Any = failure.value
            return str(error.code.rpartition(".")[2])

        results = await gatherResults([call.addErrback(name) for call in calls])
        refused = [result for result in results if isinstance(result, str)]
        self.assertEqual(set(refused) - {"LimitsExceeded"}, set())
        self.assertGreaterEqual(len(results) - len(refused), service_module.MAX_CALLS)
        assert self.session.dbus is not None
        self.assertEqual((self.session.dbus.state, self.session.dbus._calls), ("owner", 0))

    async def test_a_huge_message_is_read_past(self) -> None:
        await self.on_bus()
        client = await self.bus.client(self)
        self.patch(connection_module, "MAX_MESSAGE_BYTES", 100_000)
        client.call("org.anbox", "/org/anbox", "org.anbox.Device", "Get", "s", "x" * 500_000).addErrback(
            lambda _: None
        )
        answer = await client.call("org.anbox", "/org/anbox", "org.anbox.Device", "Get", "s", "battery")
        self.assertIn("capacity", answer.body[0])

    async def test_a_call_that_wants_no_answer_gets_none(self) -> None:
        await self.on_bus()
        client = await self.bus.client(self)
        answered: list[int] = []
        made = message.MethodCallMessage(
            *("/org/anbox", "Set"),
            interface="org.anbox.Device",
            destination="org.anbox",
            signature="ss",
            body=["battery", '{"capacity": 7}'],
            expectReply=False,
        )
        take = client._message

        def noted(received: Any, flags: int) -> None:
            answered.append(getattr(received, "reply_serial", 0))
            take(received, flags)

        self.patch(client, "_message", noted)
        client.send(made)
        await client.call("org.anbox", "/org/anbox", "org.anbox.Device", "Get", "s", "battery")
        self.assertEqual(self.session.device.battery.state.capacity, 7)
        self.assertNotIn(made.serial, answered)

    async def test_text_that_the_bus_would_not_take(self) -> None:
        await self.on_bus()
        client = await self.bus.client(self)
        self.session.verbs.register("odd", lambda: "a\0b\udc80")
        answer = await client.call("org.anbox", "/org/anbox", "org.anbox.Device", "Call", "ss", "odd", "{}")
        self.assertEqual(json.loads(answer.body[0])[:1], "a")


class AccessTests(BusCase):
    """Another user reaches the bus, and not the session."""

    kind = "system"

    async def nobody_asks(self, member: str, *arguments: str) -> str:
        need_root()
        out, err, code = await self.bus.run(
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
            *("gdbus", "call", "--address", self.bus.address, "--dest", "org.anbox"),
            *("--object-path", "/org/anbox", "--method", member, *arguments),
        )
        return err if code else f"ok {out}"

    async def test_the_session_checks_by_itself(self) -> None:
        await self.on_bus()
        self.assertEqual((await self.nobody_asks("org.freedesktop.DBus.Peer.Ping")).strip(), "ok ()")
        for member, arguments in (
            ("org.anbox.Device.Get", ("battery",)),
            ("org.freedesktop.DBus.Properties.GetAll", ("org.anbox.Sensors",)),
            ("org.anbox.Gps.PushSentence", ("$x",)),
        ):
            self.assertIn(
                "AccessDenied: this session belongs to another user",
                await self.nobody_asks(member, *arguments),
            )
        assert self.session.dbus is not None
        self.session.dbus._allowed.add(NOBODY)
        self.assertIn("capacity", await self.nobody_asks("org.anbox.Device.Get", "battery"))


class PolicyTests(AccessTests):
    """The same with the policy for the system bus."""

    @property
    def policy(self) -> str:  # type: ignore[override]
        text = (REPOSITORY / "tap/org.anbox.conf").read_text()
        group = r'<policy group="anbox">.*?</policy>'
        self.assertRegex(text, re.compile(group, re.S))
        body = re.search(r"<busconfig>(.*)</busconfig>", text, re.S)
        assert body is not None
        # The group need not exist here.
        return SYSTEM + re.sub(group, "", body[1], flags=re.S)

    async def test_the_session_checks_by_itself(self) -> None:
        await self.on_bus()
        self.assertIn(
            "AccessDenied: Rejected send message", await self.nobody_asks("org.anbox.Device.Get", "battery")
        )
        self.assertIn("100", await self.call("org.anbox.Device.Get", "battery"))

    async def test_without_the_policy_it_may_not_be_there(self) -> None:
        self.bus.end()
        need_root()
        self.bus = Bus(self, SYSTEM)
        self.session = self.make(paths=RuntimePaths(self.runtime, "other"))
        said: list[str] = []
        log = type("Log", (), {"info": lambda log, text, **fields: said.append(text.format(**fields))})()
        self.patch(DBusService, "_log", log)
        self.session.startService()
        await until(lambda: said)
        self.assertIn("tap/org.anbox.conf", said[0])
