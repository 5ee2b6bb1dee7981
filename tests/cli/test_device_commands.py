"""The commands that change the device, against a session in the test's own reactor."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.cli.sessions import CommandCase
from tests.support import REPOSITORY


class DocumentedTests(CommandCase):
    async def test_the_commands_in_the_manual_work(self) -> None:
        """Those of docs/cli.md's "The device", as they stand there and in their order."""
        self.session.startService()
        (block,) = re.findall(
            r"^## The device\n\n```sh\n(.*?)^```$", (REPOSITORY / "docs/cli.md").read_text(), re.S | re.M
        )
        route = Path(self.runtime, "drive.gpx")
        route.write_text(
            '<gpx><trk><trkseg><trkpt lat="1" lon="2"/><trkpt lat="1.1" lon="2"/></trkseg></trk></gpx>'
        )
        lines = block.splitlines()
        self.assertGreater(len(lines), 10)
        for line in lines:
            await self.anbox(*shlex.split(line.replace("drive.gpx", str(route)))[1:])
        self.assertEqual(self.session.device.sensors.get("acceleration"), (0, 9.81, 0))
        self.assertEqual(self.session.device.battery.state.capacity, 15)


class DeviceCommandTests(CommandCase):
    async def test_sensors(self) -> None:
        await self.session.stopService()
        self.session = self.make(disabled_sensors=("light",))
        self.session.startService()
        listed = {entry["name"]: entry for entry in await self.json("sensor", "list")}
        self.assertEqual((listed["light"]["values"], listed["temperature"]["values"]), (None, [25.0]))
        self.assertIn("0:0:9.80665", await self.anbox("sensor", "list"))
        await self.anbox("sensor", "set", "acceleration", "-1::2.5")
        await self.anbox("sensor", "set", "orientation", "-10", "20", "30", "--instance", "default")
        self.assertEqual(await self.anbox("sensor", "get", "acceleration"), "-1:0:2.5\n")
        self.assertEqual((await self.json("sensor", "get", "orientation"))["values"], [-10, 20, 30])
        self.assertIn("light: disabled", await self.anbox("sensor", "status"))
        self.assertEqual((await self.json("sensor", "status"))["pressure"], True)
        self.assertIn("--disabled-sensors", await self.anbox("sensor", "set", "light", "1", code=5))
        await self.anbox("sensor", "set", "pressure", "1:2", code=2)
        for wrong in (("set", "smell", "1"), ("set", "pressure", "x"), ("get",)):
            self.wrong_usage("sensor", *wrong)

    async def test_battery_and_finger(self) -> None:
        self.session.startService()
        await self.anbox(
            "battery", "set", "--ac", "off", "--capacity", "15", "--status", "not-charging", "--present", "no"
        )
        found = await self.json("battery", "status")
        self.assertEqual(
            found, {"ac": False, "status": "not-charging", "health": "good", "present": False, "capacity": 15}
        )
        self.assertIn("ac: off\n", await self.anbox("battery", "status"))
        await self.anbox("battery", "set", "--health", "overheat")
        self.assertEqual(self.session.device.battery.state.health.value, "overheat")
        for wrong in (("--capacity", "101"), ("--health", "ill"), ()):
            self.wrong_usage("battery", "set", *wrong)
        await self.anbox("finger", "touch", "3")
        self.assertEqual(await self.anbox("finger", "status"), "3\n")
        await self.anbox("finger", "remove")
        self.assertEqual(await self.json("finger", "status"), {"finger": None})
        self.wrong_usage("finger", "touch", "0")

    async def test_location(self) -> None:
        self.session.startService()
        await self.anbox("geo", "fix", "-13.5", "-52.25", "-7", "--speed", "2", "--satellites", "5")
        fix = self.session.device.location.state
        self.assertEqual(
            (fix.longitude, fix.latitude, fix.altitude, fix.speed, fix.satellites), (-13.5, -52.25, -7, 2, 5)
        )
        self.assertIn("position: -13.5 -52.25 -7", await self.anbox("geo", "status"))
        await self.anbox("geo", "fix", "0", "91", code=2)
        told: list[str] = []
        self.addCleanup(
            self.session.device.location.observe(
                lambda change: told.append(change.value) if change.kind == "nmea" else None
            )
        )
        await self.anbox("geo", "nmea", "$GPGGA,1*00")
        self.assertEqual(told, ["$GPGGA,1*00"])
        file = Path(self.runtime, "route.csv")
        file.write_text("0,10,20\n3600,11,21\n")
        found = await self.json("geo", "route", str(file), "--rate", "10")
        self.assertEqual(found["route"]["state"], "playing")
        await self.anbox("geo", "pause")
        self.assertIn(
            "paused", await self.anbox("geo", "resume", "--help") + await self.anbox("geo", "status")
        )
        await self.anbox("geo", "stop")
        self.assertIn("no file", await self.anbox("geo", "route", "/nonexistent", code=2))

    async def test_phone(self) -> None:
        self.session.startService()
        await self.anbox("sms", "send", "+4912345", "hello ü\x1b[2J")
        (message,) = (await self.json("sms", "list"))["incoming"]
        self.assertEqual((message["number"], message["text"]), ("+4912345", "hello ü\x1b[2J"))
        self.assertIn("hello ü\N{REPLACEMENT CHARACTER}[2J", await self.anbox("sms", "list"))
        await self.anbox("sms", "pdu", "zz", code=2)
        self.assertIn("call 1 in 0301234: incoming", await self.anbox("call", "in", "0301234"))
        self.assertEqual([one["state"] for one in await self.json("call", "list")], ["incoming"])
        self.assertIn("0301234", await self.anbox("call", "list"))
        await self.anbox("call", "cancel", "0301234")
        self.assertEqual(await self.json("call", "list"), [])
        await self.anbox("call", "busy", "0301234", code=2)
        await self.anbox("gsm", "voice", "roaming")
        await self.anbox("gsm", "data", "off")
        await self.anbox("gsm", "signal", "20", "3")
        found = await self.json("gsm", "status")
        self.assertEqual(
            (found["voice"], found["data"], found["rssi"], found["ber"]), ("roaming", "unregistered", 20, 3)
        )
        await self.anbox("gsm", "signal", "--profile", "4")
        self.assertIn("voice: roaming", await self.anbox("gsm", "status"))
        for wrong in (
            ("signal",),
            ("signal", "5", "--profile", "1"),
            ("voice", "loud"),
            ("sim", "insert", "1234"),
        ):
            self.wrong_usage("gsm", *wrong)
        self.assertEqual(await self.anbox("gsm", "sim", "lock", "4711"), "pin\n")
        self.assertEqual(await self.anbox("gsm", "sim", "insert"), "ready\n")
        await self.anbox("gsm", "ussd", "your balance")
