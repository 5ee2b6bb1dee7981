"""The guest's HALs against a real session: in this process through its socket, and in a container through adb."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import Fix
from anbox_tw.errors import NotRunning, PeerError, TimedOut
from anbox_tw.guest import hal
from anbox_tw.guest.hal_command import main, parse
from anbox_tw.qemu._nmea import sentences
from anbox_tw.qemu.picture import colour_bars, to_video
from tests.guest.test_whole import WholeCase
from tests.session.guest import until
from tests.session.test_hardware import HardwareCase

T = TypeVar("T")


class HalTests(HardwareCase):
    """Blocking clients in threads, the session in the reactor."""

    async def begin(self) -> None:
        await super().begin()
        self.path = self.session.paths.qemu_pipe

    async def blocking(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return await deferToThread(function, *arguments, **named)

    async def test_sensors(self) -> None:
        await self.begin()
        self.assertEqual(
            await self.blocking(hal.list_sensors, self.path),
            [*self.session.device.sensors.state.values],
        )
        device = await self.blocking(hal.SensorsDevice, self.path)
        self.addCleanup(device.close)
        device.set_delay(20)
        device.activate("acceleration")
        _, values = await self.blocking(device.poll)
        self.assertEqual(values, {"acceleration": (0.0, 0.0, 9.80665)})
        device.activate("magnetic-field")
        self.session.device.sensors.set("magnetic-field", [1e-7, -12345.678, 3])
        times: list[int] = []
        while True:
            moment, values = await self.blocking(device.poll)
            times.append(moment)
            if values.get("magnetic-field", (0.0,))[0] == 1e-7:
                break
        self.assertEqual(values["magnetic-field"], (1e-7, -12345.7, 3.0))  # %g
        self.assertEqual(times, sorted(times))
        device.activate("acceleration", False)
        device.activate("magnetic-field", False)
        device.wake()

        def until_woken() -> None:
            while device.poll() != (-1, {}):
                pass

        await self.blocking(until_woken)

    async def test_lights_and_screen(self) -> None:
        await self.begin()
        display = self.session.device.display
        await self.blocking(hal.set_light, self.path, "lcd_backlight", 33)
        await self.blocking(hal.set_screen, self.path, False)
        await until(lambda: not display.state.on and display.state.brightness == {"lcd_backlight": 33})
        await self.blocking(hal.set_screen, self.path, True)
        await until(lambda: display.state.on)

    async def test_fingerprints(self) -> None:
        await self.begin()
        listener = await self.blocking(hal.Fingerprints, self.path)
        self.addCleanup(listener.close)
        self.assertIsNone(await self.blocking(listener.next))
        await self.verb("finger.touch", finger=7)
        self.assertEqual(await self.blocking(listener.next), 7)
        await self.verb("finger.remove")
        self.assertIsNone(await self.blocking(listener.next))

    async def test_gps(self) -> None:
        await self.begin()
        await self.verb("geo.fix", longitude=-70.5, latitude=-33.25, altitude=520.5, speed=10, bearing=45)
        reader = await self.blocking(hal.GpsReader, self.path)
        self.addCleanup(reader.close)
        fixes = reader.fixes()
        first, second = await self.blocking(next, fixes), await self.blocking(next, fixes)
        self.assertEqual((first.latitude, first.longitude, first.altitude), (-33.25, -70.5, 520.5))
        self.assertEqual((second.latitude, second.speed, second.bearing), (-33.25, 19.4, 45.0))
        # and again, a second later
        third = await self.blocking(next, fixes)
        self.assertEqual((third.latitude, third.altitude), (-33.25, 520.5))

    async def test_camera(self) -> None:
        await self.begin()
        (camera,) = await self.blocking(hal.list_cameras, self.path)
        self.assertEqual((camera.name, camera.direction, camera.sizes[0]), ("anbox-back", "back", (640, 480)))
        device = await self.blocking(hal.CameraDevice, self.path, camera.name)
        self.addCleanup(device.close)
        with self.assertRaises(PeerError) as caught:
            await self.blocking(hal.CameraDevice, self.path, camera.name)
        self.assertEqual(str(caught.exception), "Unable to open camera device.")
        with self.assertRaises(PeerError) as caught:
            await self.blocking(device.start, 641, 480)
        self.assertEqual(str(caught.exception), "Cannot start the camera")
        await self.blocking(device.start, 640, 480, "NV21")
        video, preview = await self.blocking(device.frame)
        self.assertEqual((len(video), len(preview)), (460_800, 1_228_800))
        # the pattern depends on the time alone: the frame is one of the first 300 of it
        self.assertIn(video, (to_video(colour_bars(640, 480, number / 30), "NV21") for number in range(300)))
        dark, nothing = await self.blocking(device.frame, preview=False, exposure=0.0)
        self.assertEqual((dark, nothing), (b"\x10" * 307_200 + b"\x80" * 153_600, b""))
        await self.blocking(device.stop)

    async def test_the_command(self) -> None:
        await self.begin()
        told: list[dict[str, Any]] = []
        self.patch(hal_command_module(), "_tell", lambda **values: told.append(values))
        path = os.path.join(self.runtime, "frame")
        for line, code in (
            ("sensors", 0),
            ("sensors --delay 20 -c 2 light", 0),
            ("camera list", 0),
            (f"camera frame --size 176x144 --format YU12 -c 2 {path}", 0),
            (f"camera frame --size 176x144 --preview {path}.rgb", 0),
            (f"camera frame --camera front {path}", 3),
            (f"camera frame {self.runtime}/no/such", 1),
            ("fingerprint -c 1", 0),
            ("light lcd_backlight 5", 0),
            ("screen standby", 0),
        ):
            self.assertEqual(await self.blocking(main, self.path, line.split()), code, line)
        self.assertEqual([item["name"] for item in told[:2]], ["acceleration", "magnetic-field"])
        self.assertEqual([item["light"] for item in told if "light" in item], [[1240.0]] * 2)
        self.assertEqual((os.path.getsize(path), os.path.getsize(f"{path}.rgb")), (2 * 38016, 101_376))
        self.assertEqual(told[-1], {"finger": None})
        await until(lambda: self.session.device.display.state.brightness == {"lcd_backlight": 5})
        self.assertEqual(await self.blocking(main, f"{self.runtime}/none", ["gps"]), 3)
        with self.assertRaises(SystemExit):
            parse(["camera", "frame", "--size", "large", "x"])


def hal_command_module() -> Any:
    from anbox_tw.guest import hal_command

    return hal_command


class FaithTests(SynchronousTestCase):
    """What the real HALs do not forgive is not forgiven here."""

    def serve(self, *writes: bytes) -> str:
        """A host that says this, each in a write of its own, whatever it is asked; then it waits for the guest's end."""
        directory = tempfile.mkdtemp(prefix="hal-")
        self.addCleanup(shutil.rmtree, directory)
        path = os.path.join(directory, "pipe")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, listener:
                ready = connection.recv(1000)
                for write in writes:
                    connection.sendall(write)
                with contextlib.suppress(ConnectionError):
                    while ready:
                        ready = connection.recv(1000)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 30)
        return path

    def receive(self, *writes: bytes, limit: int = 255) -> bytes:
        with hal.QemudChannel(self.serve(*writes), "sensors", 0.3) as channel:
            assert isinstance(channel, hal.QemudChannel)
            if writes:
                channel.wait(30)
            return channel.receive(limit)

    def test_messages(self) -> None:
        self.assertEqual(self.receive(b"0004wake"), b"wake")
        self.assertEqual(self.receive(b"0000"), b"")
        for data in (b"00", b"zzzz", b"0005wak", b"0100" + b"x" * 256):
            with self.assertRaises(PeerError, msg=data):
                self.receive(data)
        with self.assertRaises(TimedOut):
            self.receive(b"0004")
        with self.assertRaises(TimedOut):
            self.receive()

    def test_a_host_that_is_not_there_or_leaves(self) -> None:
        with self.assertRaises(NotRunning):
            hal.list_sensors("/nonexistent")

    def test_replies_of_cameras(self) -> None:
        for data, words in (
            (b"\n", "a header of 1 bytes"),  # Anbox's own answer
            (b"0000zzzz", "is no length"),
            (b"00000002ok", "a reply of 2 bytes"),
            (b"ffffffffok:", "a reply of 4294967295 bytes"),
            (b"00000005no:x\0", "neither ok nor ko"),
            (b"00000005ok;x\0", "neither ok nor ko"),
            (b"00000003ok:", "neither ok nor ko"),
            (b"00000005ok:\n\n", "does not end as one"),
            (b"00000006ok:x\n\0", "is no camera"),
            (b"00000016ko:Unknown query name\0", "Unknown query name"),
        ):
            with self.assertRaises(PeerError, msg=data) as caught:
                hal.list_cameras(self.serve(data))
            self.assertIn(words, str(caught.exception))
        self.assertEqual(hal.list_cameras(self.serve(b"00000005ok:\n\0")), [])

    def test_reports_of_no_sensor(self) -> None:
        for text in (b"warp:1", b"acceleration:1:2", b"light:x", b"magnetic-field:1:2:3"):
            device = hal.SensorsDevice(self.serve(b"%04x" % len(text) + text))
            with self.assertRaises(PeerError):
                device.poll()
            device.close()

    def test_touches(self) -> None:
        for text, finger in ((b"0005on:1\0", 1), (b"0004off\0", None), (b"0003off", None)):
            listener = hal.Fingerprints(self.serve(text))
            self.assertEqual(listener.next(), finger)
            listener.close()
        for text in (b"0005on:0\0", b"0005on:x\0", b"0001\0"):
            listener = hal.Fingerprints(self.serve(text))
            with self.assertRaises(PeerError):
                listener.next()
            listener.close()


class NmeaTests(SynchronousTestCase):
    @given(
        st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=4),
        st.lists(st.integers(0, 600), max_size=6),
    )
    def test_what_the_session_says_is_what_the_hal_reads(
        self, places: list[tuple[float, float]], cuts: list[int]
    ) -> None:
        data = b"".join(sentences(Fix(lat, lon, satellites=5), 0) for lat, lon in places)
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        reader = hal.NmeaReader()
        fixes = [
            fix
            for start, end in zip(edges, edges[1:], strict=False)
            for fix in reader.receive_data(data[start:end])
        ]
        assert len(fixes) == 2 * len(places)
        for (latitude, longitude), fix in zip(places, fixes[::2], strict=True):
            assert fix.latitude is not None and abs(fix.latitude - latitude) < 1e-6
            assert fix.longitude is not None and abs(fix.longitude - longitude) < 1e-6

    def test_long_lines_are_dropped_to_their_end(self) -> None:
        reader = hal.NmeaReader()
        good = b"$GPGGA,1,4807.0380,N,01131.0000,E,1,08,1.0,5.0,M,,,,\n"
        self.assertEqual(len(reader.receive_data(b"$" + b"x" * 83 + b"\n" + good)), 1)
        self.assertEqual(reader.receive_data(b"$GP\n$GPTXT,hello there\n"), [])
        (fix,) = reader.receive_data(b"$GPGGA,12xx,nonsens,N,too long for a number,E,,,,x,M\r\n")
        self.assertEqual((fix.time, fix.altitude), (None, 0.0))

    @given(st.binary(max_size=200))
    def test_no_bytes_break_the_reader(self, data: bytes) -> None:
        hal.NmeaReader().receive_data(data + b"\n$GPGGA," + data + b"\n$GPRMC,1,A," + data + b"\n")


class ContainerTests(WholeCase):
    """The same from inside a container of the process backend: the hardware in the guest's shell."""

    async def hal(self, line: str) -> list[Any]:
        said, code = await self.adb.run("shell", f"hal {line}")
        self.assertEqual(code, 0, said)
        return [json.loads(each) for each in said.splitlines()]

    async def test_hardware_in_a_container(self) -> None:
        manager = self.start_manager()
        session = self.start_session()
        await self.adb.run("start-server")
        try:
            await until(lambda: session.state.levels.ready and session.state.levels.booted, 30)
        except AssertionError:
            self.fail(f"{session.state.waiting_for}\n{manager.output.decode()}")
        self.assertEqual(len(await self.hal("sensors")), 8)
        session.device.sensors.set("light", [321.5])
        reports = await self.hal("sensors --delay 20 -c 3 light temperature")
        # each activation has a report of its own
        self.assertEqual(list(reports[0]), ["time_ns", "light"])
        self.assertEqual((reports[2]["light"], reports[2]["temperature"]), ([321.5], [25.0]))
        session.device.location.set_fix(Fix(52.5, 13.4, satellites=7))
        (fix,) = await self.hal("gps -c 1")
        self.assertEqual((fix["latitude"], fix["longitude"]), (52.5, 13.4))
        session.device.fingerprint.touch(2)
        self.assertEqual(await self.hal("fingerprint -c 1"), [{"finger": 2}])
        await self.hal("light keyboard_backlight 200")
        await self.hal("screen standby")
        await until(lambda: not session.device.display.state.on)
        self.assertEqual(session.device.display.state.brightness, {"keyboard_backlight": 200})
        (camera,) = await self.hal("camera list")
        self.assertEqual(camera["name"], "anbox-back")
        said, code = await self.adb.run(
            "shell", "hal camera frame --size 320x240 -c 3 /data/local/tmp/f && wc -c < /data/local/tmp/f"
        )
        self.assertEqual((said.strip(), code), (str(3 * 115_200), 0))
        await session.stopService()
        self.assertNotIn(b"Traceback", manager.output)
