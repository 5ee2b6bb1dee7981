"""The hardware of a whole session: verbs over the real control socket, guests at the real qemu_pipe."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
import time
from typing import Any

import psutil
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.guest import hal
from anbox_tw.qemu._framing import encode_frame
from anbox_tw.qemu._wire import encode_identification
from anbox_tw.rpc import RemoteError
from anbox_tw.session.client import SessionClient
from anbox_tw.session.hardware import HardwareSettings
from tests.session.guest import until
from tests.session.test_service import SessionCase
from tests.support import need_root, need_tool


class Pipe(Protocol):
    """A guest's connection to one service, by the real socket."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.data = b""
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.write(encode_identification(self.name))

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)

    def close(self) -> Deferred[None]:
        if not self.lost.called and self.transport is not None:
            self.transport.loseConnection()
        return self.lost


class HardwareCase(SessionCase):
    """A session with its control socket, and guests at its pipe."""

    control: SessionClient

    async def begin(self) -> None:
        self.session.startService()
        self.control = await self.client()

    async def verb(self, verb: str, **arguments: Any) -> Any:
        return await self.control.device(verb, **arguments)

    async def refused(self, verb: str, **arguments: Any) -> str:
        with self.assertRaises(RemoteError) as caught:
            await self.control.device(verb, **arguments)
        return str(caught.exception)

    async def pipe(self, name: str) -> Pipe:
        pipe = Pipe(name)
        await connectProtocol(UNIXClientEndpoint(reactor, self.session.paths.qemu_pipe), pipe)
        self.addCleanup(pipe.close)
        return pipe


class HardwareTests(HardwareCase):
    async def test_sensors(self) -> None:
        await self.begin()
        pipe = await self.pipe("qemud:sensors")
        pipe.write(
            encode_frame(b"list-sensors") + encode_frame(b"set-delay:20") + encode_frame(b"set:temperature:1")
        )
        await until(lambda: b"0003255000etemperature:25" in pipe.data)
        self.assertEqual(
            await self.verb("sensor.set", name="temperature", values=[-4.5]),
            {"name": "temperature", "values": [-4.5], "unit": "°C"},
        )
        await until(lambda: b"0010temperature:-4.5" in pipe.data)
        listed = {item["name"]: item for item in await self.verb("sensor.list")}
        self.assertEqual((listed["temperature"]["delay_ms"], listed["light"]["delay_ms"]), (20, None))
        self.assertEqual(listed["acceleration"]["values"], [0, 0, 9.80665])
        self.assertTrue((await self.verb("sensor.status"))["humidity"])
        self.assertEqual((await self.verb("sensor.get", name="light"))["values"], [1240])
        for arguments, words in (
            ({"name": "warp", "values": [1]}, "no sensor is called 'warp'"),
            ({"name": "light", "values": "1"}, "must be a list"),
            ({"name": "light", "values": ["1"]}, "is no number"),
            ({"name": "light", "values": [True]}, "is no number"),
            ({"name": "light", "values": [1, 2]}, "has 1 value"),
            ({"name": "light"}, "missing a required argument"),
        ):
            self.assertIn(words, await self.refused("sensor.set", **arguments))

    async def test_location_and_routes(self) -> None:
        await self.begin()
        pipe = await self.pipe("qemud:gps")
        fix = await self.verb("geo.fix", longitude=11.5, latitude=-48.25, altitude=3)
        self.assertEqual((fix["satellites"], fix["longitude"]), (8, 11.5))
        await until(lambda: b",4815.0000,S,01130.0000,E,1,08,1.0,3.0,M" in pipe.data)
        await self.verb("geo.nmea", sentence="$GPTXT,raw")
        await until(lambda: pipe.data.endswith(b"$GPTXT,raw\n"))
        status = await self.verb("geo.status")
        self.assertEqual((status["guests"], status["route"]), (1, {"state": "none"}))
        path = os.path.join(self.runtime, "route.csv")
        with open(path, "w") as file:
            file.write("time,latitude,longitude\n0,10,20\n2000,11,20\n")
        status = await self.verb("geo.route", path=path, factor=1000, rate=0.01)
        self.assertEqual((status["route"]["state"], status["route"]["duration"]), ("playing", 2000))
        await until(lambda: self.session.hardware.route.status()["state"] == "finished")
        self.assertEqual(self.session.device.location.state.latitude, 11)
        await until(lambda: b",1100.0000,N,02000.0000,E," in pipe.data)

        await self.verb("geo.route", text="0,1,1\n100,2,2", repeat=True)
        self.assertEqual((await self.verb("geo.pause"))["route"]["state"], "paused")
        self.assertEqual((await self.verb("geo.resume"))["route"]["state"], "playing")
        self.assertEqual((await self.verb("geo.stop"))["route"]["state"], "stopped")
        self.assertIn("no route plays", await self.refused("geo.pause"))
        await self.verb("geo.route", text="0,1,1\n100,2,2")
        await self.verb("geo.fix", longitude=1, latitude=1)
        self.assertEqual((await self.verb("geo.status"))["route"]["state"], "stopped")
        # one that still plays does not outlive the session
        await self.verb("geo.route", text="0,1,1\n100,2,2")

        fifo = os.path.join(self.runtime, "fifo")
        os.mkfifo(fifo)
        binary = os.path.join(self.runtime, "binary")
        with open(binary, "wb") as file:
            file.write(b"\xff\xfe")
        for verb, arguments, words in (
            ("geo.fix", {"longitude": 181, "latitude": 1}, "longitude must be"),
            ("geo.fix", {"longitude": "x", "latitude": 1}, "longitude must be"),
            ("geo.nmea", {"sentence": 1}, "must be a text"),
            ("geo.nmea", {"sentence": "x" * 83}, "at most 82"),
            ("geo.route", {}, "either a path or a text"),
            ("geo.route", {"path": "relative"}, "not absolute"),
            ("geo.route", {"path": "/nonexistent"}, "cannot be read"),
            ("geo.route", {"path": fifo}, "is no file"),
            ("geo.route", {"path": self.runtime}, "is no file"),
            ("geo.route", {"path": binary}, "no UTF-8"),
            ("geo.route", {"text": "1,1,1", "rate": 0}, "rate is above 0"),
            ("geo.route", {"text": "1,1,1", "factor": "2"}, "factor must be a number"),
            ("geo.route", {"text": "1,1,1", "speed": -1}, "speed is 0 to"),
            ("geo.route", {"text": "1,1,1", "repeat": True}, "takes no time"),
            ("geo.route", {"text": "1,1,100", "format": "kml"}, "no format"),
        ):
            self.assertIn(words, await self.refused(verb, **arguments))

    async def test_fingers_lights_and_events(self) -> None:
        await self.begin()
        events: list[tuple[str, str]] = []
        self.session.observe(
            lambda kind, name, detail: (
                events.append((name, detail)) if name.startswith(("display.", "fingerprint.")) else None
            )
        )
        finger = await self.pipe("qemud:fingerprintlisten")
        finger.write(encode_frame(b"listen"))
        await until(lambda: finger.data == b"0004off\0")
        self.assertEqual(await self.verb("finger.touch", finger=3), {"finger": 3})
        await until(lambda: finger.data.endswith(b"0005on:3\0"))
        self.assertEqual(await self.verb("finger.status"), {"finger": 3})
        await self.verb("finger.remove")
        await until(lambda: finger.data.endswith(b"0004off\0"))
        self.assertIn("finger must be", await self.refused("finger.touch", finger=0))

        lights = await self.pipe("qemud:hw-control")
        for command in (
            b"power:light:brightness:lcd_backlight:90",
            b"power:screen_state:standby",
            b"vibrator:35",
        ):
            lights.write(encode_frame(command))
        await until(lambda: ("display.vibrate", "35") in events)
        status = await self.verb("hw.status")
        self.assertEqual((status["on"], status["brightness"]), (False, {"lcd_backlight": 90}))
        self.assertEqual(
            events,
            [
                ("fingerprint.finger", "3"),
                ("fingerprint.finger", ""),
                ("display.brightness", '{"lcd_backlight": 90}'),
                ("display.on", "false"),
                ("display.vibrate", "35"),
            ],
        )

    async def test_one_guest_that_sends_garbage_ends_alone(self) -> None:
        await self.begin()
        good = await self.pipe("qemud:sensors")
        good.write(encode_frame(b"list-sensors"))
        warned: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event["log_level"] is LogLevel.warn:
                warned.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        flood = os.urandom(1024 * 1024).replace(b"0", b"x")
        for name in (
            "qemud:sensors",
            "qemud:hw-control",
            "qemud:fingerprintlisten",
            "qemud:boot-properties",
            "qemud:camera",
            "qemud:camera:name=anbox-back",
            "anbox:bootanimation",
            "qemud:adb",
        ):
            bad = await self.pipe(name)
            bad.write(b"garbage!" + flood)
            await bad.lost.addTimeout(30, reactor)
            self.assertTrue(warned, name)
            warned.clear()
        # these take anything, without keeping it
        for name in ("qemud:gps", "qemud:gsm"):
            bad = await self.pipe(name)
            bad.write(flood)
            await bad.close()
        await until(lambda: good.data == b"0003255")
        good.write(encode_frame(b"wake"))
        await until(lambda: good.data.endswith(b"wake"))

    async def test_cameras(self) -> None:
        await self.begin()
        factory = await self.pipe("qemud:camera")
        factory.write(b"list\0")
        await until(lambda: b"name=anbox-back" in factory.data)
        self.assertNotIn(b"dir=front", factory.data)
        back = await self.pipe("qemud:camera:name=anbox-back")
        # NV21, as the guest's HAL asks for preview
        back.write(b"connect\0start dim=320x240 pix=825382478\0frame video=115200 preview=307200\0")
        size = 2 * 11 + 8 + 3 + 115200 + 307200
        await until(lambda: len(back.data) == size)
        self.assertEqual(back.data[: 2 * 11 + 11], b"00000003ok\0" * 2 + b"%08x" % (3 + 422400) + b"ok:")
        (camera, front) = await self.verb("camera.list")
        self.assertEqual((camera["source"], camera["frames"], front["source"]), ("test-pattern", 1, "none"))
        self.assertEqual(camera["capture"], {"size": "320x240", "format": "NV21"})
        path = os.path.join(self.runtime, "a.ppm")
        with open(path, "wb") as file:
            file.write(b"P6 1 1 255\n\x40\x50\x60")
        self.assertEqual(
            (await self.verb("camera.set", camera="front", source=f"image:{path}"))["source"], f"image:{path}"
        )
        shown = await self.pipe("qemud:camera:name=anbox-front")
        shown.write(b"connect\0start dim=176x144 pix=842093913\0frame video=0 preview=101376\0")
        await until(lambda: shown.data.endswith(b"\x40\x50\x60\xff" * 100))
        for camera_name, source, words in (
            ("side", "none", "there is no camera 'side'"),
            ("back", "image:relative", "is not absolute"),
            ("back", "webcam", "is no camera"),
            ("back", "video:/nonexistent", "cannot be read"),
        ):
            self.assertIn(words, await self.refused("camera.set", camera=camera_name, source=source))

    async def test_scenarios(self) -> None:
        await self.begin()
        device = self.session.device
        self.assertEqual(await self.verb("scenario.status"), {"state": "none"})
        text = """
            {"name": "a day"}
            {"at": 0, "set": {"battery": {"capacity": 40, "ac": false}}}
            {"at": 1, "do": "sensor.set", "name": "light", "values": [7]}
            {"at": 2, "do": "finger.touch", "finger": 4}
            {"at": 3, "do": "geo.fix", "longitude": 500, "latitude": 0}
            {"at": 3, "do": "call.in", "number": "5551"}
            {"at": 3600, "set": {"battery": {"capacity": 39}}}
        """
        self.assertEqual(
            await self.verb("scenario.check", text=text), {"name": "a day", "steps": 6, "duration": 3600}
        )
        self.assertEqual(device.battery.state.capacity, 100)
        status = await self.verb("scenario.start", text=text, factor=1000)
        self.assertEqual((status["state"], device.battery.state.capacity), ("playing", 40))
        await until(lambda: self.session.hardware.scenario.status()["state"] == "finished")
        status = await self.verb("scenario.status")
        self.assertEqual((status["done"], status["failed"], status["position"]), (6, 1, 3600))
        self.assertIn("line 6: geo.fix: longitude must be", status["errors"][0])
        self.assertEqual(
            (device.battery.state.capacity, device.sensors.get("light"), device.fingerprint.state.finger),
            (39, (7.0,), 4),
        )
        self.assertEqual([call["number"] for call in await self.verb("call.list")], ["5551"])
        told = [(name, detail) for kind, name, detail in self.events if kind == "scenario"]
        self.assertEqual(told, [("playing", ""), ("finished", "all was played")])

        path = os.path.join(self.runtime, "a.toml")
        with open(path, "w") as file:
            file.write('[[step]]\nat = 1000\ndo = "finger.remove"\n')
        await self.verb("scenario.start", path=path, repeat=True)
        self.assertEqual((await self.verb("scenario.pause"))["state"], "paused")
        self.assertEqual((await self.verb("scenario.resume"))["state"], "playing")
        for arguments, words in (
            ({}, "either a path or a text"),
            ({"text": "x ="}, "line 1: no TOML"),
            ({"text": '{"at": 1, "do": "warp.go"}'}, "line 1: the device knows no 'warp.go'"),
            ({"text": '{"at": 1, "do": "geo.fix"}'}, "line 1: geo.fix: missing a required argument"),
            ({"text": '{"at": 1, "do": "finger.remove"}', "factor": 0}, "factor is above 0"),
            ({"text": '{"at": 1, "do": "finger.remove"}', "factor": "2"}, "factor must be a number"),
            ({"text": '{"at": 0, "do": "finger.remove"}', "repeat": True}, "takes no time"),
        ):
            self.assertIn(words, await self.refused("scenario.start", **arguments))
        # what was wrong has replaced nothing
        self.assertEqual((await self.verb("scenario.status"))["state"], "playing")
        self.assertEqual((await self.verb("scenario.stop"))["state"], "stopped")
        self.assertIn("no scenario plays", await self.refused("scenario.resume"))
        await self.verb("scenario.start", path=path)

    async def test_a_step_with_a_bug_does_not_end_the_scenario(self) -> None:
        await self.begin()
        self.session.verbs.register("broken.verb", lambda: 1 / 0)
        lines = '{"at": 0, "do": "broken.verb"}\n' * 25 + '{"at": 0, "do": "finger.touch"}'
        status = await self.verb("scenario.start", text=lines)
        self.assertEqual((status["state"], status["failed"], len(status["errors"])), ("finished", 25, 20))
        self.assertEqual(self.session.device.fingerprint.state.finger, 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 25)

    async def test_a_frame_is_all_there_for_one_read(self) -> None:
        # the camera HAL of Android 7 takes what one read() gives
        need_root()  # for a buffer beyond net.core.wmem_max
        await self.begin()
        size = 11 + 460_800 + 1_228_800

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX) as guest:
                guest.settimeout(30)
                guest.connect(self.session.paths.qemu_pipe)
                guest.sendall(encode_identification("qemud:camera:name=anbox-back"))
                guest.sendall(b"connect\0start dim=640x480 pix=825382478\0")
                replies = b""
                while len(replies) < 22:
                    replies += guest.recv(22 - len(replies))
                guest.sendall(b"frame video=460800 preview=1228800\0")
                queued = bytearray(4)
                for _ in range(3000):
                    fcntl.ioctl(guest, termios.FIONREAD, queued)
                    if int.from_bytes(queued, sys.byteorder) == size:
                        break
                    time.sleep(0.01)
                return guest.recv(size)

        self.assertEqual(len(await deferToThread(ask)), size)

    async def test_who_did_not_read_for_a_while_gets_whole_reports_of_now(self) -> None:
        await self.begin()
        sensors = self.session.device.sensors
        guest = await deferToThread(hal.SensorsDevice, self.session.paths.qemu_pipe)
        self.addCleanup(guest.close)
        sensors.set("light", [0])
        guest.set_delay(3_600_000)
        for name in ("acceleration", "light"):
            guest.activate(name)
        await until(lambda: len(self.session.hardware.sensors.listeners()) == 2)
        (connection,) = self.session.hardware.sensors._connections
        for number in range(1, 3001):
            sensors.set("light", [number])
            connection._report()
            if number % 10 == 0:
                await deferLater(reactor, 0)

        def read() -> list[float]:
            # as the HAL: one read for each header and one for each body
            found = []
            while guest.wait(0.5):
                found.append(guest.poll()[1].get("light", (0.0,))[0])
            return found

        found = await deferToThread(read)
        self.assertLess(len(found), 60)
        self.assertEqual(found, sorted(found))
        sensors.set("light", [9999])
        connection._report()
        self.assertEqual((await deferToThread(guest.poll))[1]["light"], (9999.0,))

    async def test_a_session_that_stops_leaves_no_ffmpeg(self) -> None:
        path = os.path.join(self.runtime, "grey.avi")
        made = await getProcessOutputAndValue(
            need_tool("ffmpeg"),
            ["-v", "error", "-f", "lavfi", "-i", "color=s=64x64:d=1", "-c:v", "rawvideo", path],
            env={"PATH": os.environ["PATH"]},
        )
        self.assertEqual(made[2], 0, made)
        self.session = self.make(hardware=HardwareSettings(cameras={"back": f"video:{path}"}))
        await self.begin()
        guest = await self.pipe("qemud:camera:name=anbox-back")
        guest.write(b"connect\0start dim=176x144 pix=825382478\0frame video=38016 preview=0\0")
        await until(lambda: len(guest.data) == 22 + 11 + 38016)
        children = lambda: [child for child in psutil.Process().children() if child.name() == "ffmpeg"]  # noqa: E731
        (child,) = children()
        self.assertIn(f"file:{path}", child.cmdline())
        await self.session.stopService()
        self.assertEqual(children(), [])

    async def test_who_watches_is_not_flooded(self) -> None:
        await self.begin()
        told: list[tuple[str, str]] = []
        await self.control.watch(lambda event: told.append((event["name"], event["detail"])))
        lights = await self.pipe("qemud:hw-control")
        for number in range(5000):
            lights.write(encode_frame(b"vibrator:%d" % number))
        last = ("display.vibrate", "4999")
        await until(lambda: last in told)
        # the session's own events of its start may have taken a few of the hundred
        numbers = [int(detail) for name, detail in told if name == "display.vibrate"]
        self.assertEqual(numbers[:50], list(range(50)))
        self.assertEqual(numbers, sorted(numbers))
        self.assertLess(len(told), 4000)
        # one that waits does not outlive the session
        for number in range(500):
            self.session.device.display.emit("vibrate", number)
        await self.session.stopService()
