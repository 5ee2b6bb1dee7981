"""The audio socket: the handshake, floods and garbage, and the guest's HAL client as a program of its own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import wave
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from anbox_tw.device.pcm import PLAYBACK, RECORDING, wav_header
from anbox_tw.interfaces import IAudioSink, IConnectionCreator
from anbox_tw.network import RuntimePaths, free_port
from anbox_tw.qemu.adb_server_address import AdbServerAddress
from anbox_tw.session.audio import DEFAULT_LATENCY_S, AudioServer, make_sink, make_source
from anbox_tw.session.audio import server as server_module
from anbox_tw.session.audio.server import MAX_STREAMS
from anbox_tw.session.service import SessionService, SessionSettings
from tests.session.audio.pulse import PulseServer, Running, start
from tests.session.guest import until
from tests.session.programs import start_twistd
from tests.session.test_service import SessionCase
from tests.support import REPOSITORY


class Guest(Protocol):
    """A guest's connection, byte by byte."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class AudioCase(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="aa-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.path = f"{self.directory}/anbox_audio"
        self.wav = f"{self.directory}/out.wav"

    def serve(
        self,
        sink: str = "null",
        source: str = "silence",
        environment: dict[str, str] | None = None,
        latency: float = 0.3,
    ) -> AudioServer:
        server = AudioServer(
            reactor,
            self.path,
            make_sink(sink, reactor, latency, environment or {}),
            make_source(source, reactor, environment or {}),
        )
        server.startService()
        self.addCleanup(server.stopService)
        return server

    async def connect(self) -> Guest:
        guest = Guest()
        await connectProtocol(UNIXClientEndpoint(reactor, self.path), guest)
        self.addCleanup(
            lambda: None if guest.lost.called else (guest.transport.abortConnection(), guest.lost)[1]
        )
        return guest

    def program(self, *arguments: str) -> Running:
        """The guest's own program."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "anbox_tw.guest", "--dev", self.directory, *arguments]
        return start(self, command, environment)

    def file(self, name: str, data: bytes) -> str:
        path = f"{self.directory}/{name}"
        with open(path, "wb") as file:
            file.write(data)
        return path

    async def ended(self, program: Running) -> None:
        await until(lambda: program.ended.called, 200)
        self.assertEqual(bytes(program.errors), b"")

    def heard(self, path: str | None = None) -> bytes:
        with wave.open(path or self.wav) as found:
            content: bytes = found.readframes(1 << 30)
            return content


class HandshakeTests(AudioCase):
    async def test_the_byte_comes_back(self) -> None:
        server = self.serve()
        self.assertTrue(IConnectionCreator.providedBy(server))
        guest = await self.connect()
        self.assertEqual(guest.received, b"")
        guest.transport.write(b"\0")
        await until(lambda: guest.received)
        self.assertEqual(guest.received, b"\0")
        (stream,) = server.describe()["streams"]
        self.assertEqual((stream["kind"], stream["sink"]), ("playback", "null"))
        recorder = await self.connect()
        recorder.transport.write(b"\1")
        await until(lambda: len(recorder.received) > 321)
        self.assertEqual(recorder.received[:321], b"\1" + bytes(320))
        self.assertEqual(server.describe()["streams"][1]["source"], "silence")

    async def test_samples_behind_the_byte_and_cut_anywhere(self) -> None:
        server = self.serve(f"wav:{self.wav}")
        data = os.urandom(4000)
        for cut in (1, 2, 3, 5, 1000, 4001):
            guest = await self.connect()
            guest.transport.write((b"\0" + data)[:cut])
            await until(lambda guest=guest: guest.received)  # type: ignore[misc]
            guest.transport.write((b"\0" + data)[cut:] + b"\7\7")  # half a frame at the end is nothing
            guest.transport.loseConnection()
            await until(lambda: not server.streams)
        self.assertEqual(self.heard(), data * 6)

    async def test_what_is_refused(self) -> None:
        server = self.serve(source="none")
        for bad in (b"\1", b"\2", b"\xff", os.urandom(1000).replace(b"\0", b"x").replace(b"\1", b"y")):
            guest = await self.connect()
            guest.transport.write(bad)
            await guest.lost
            self.assertEqual(guest.received, b"")
        self.assertEqual(server.describe()["streams"], [])

    async def test_a_guest_that_says_nothing(self) -> None:
        self.patch(server_module, "HANDSHAKE_TIMEOUT_S", 0.05)
        self.serve()
        guest = await self.connect()
        await guest.lost
        gone = await self.connect()
        gone.transport.loseConnection()
        await gone.lost

    async def test_a_recorder_that_writes_is_closed_and_nobody_else_notices(self) -> None:
        server = self.serve()
        good, bad = await self.connect(), await self.connect()
        for guest in (good, bad):
            guest.transport.write(b"\1")
            await until(lambda guest=guest: guest.received)  # type: ignore[misc]
        bad.transport.write(os.urandom(100_000))
        await bad.lost
        count = len(good.received)
        await until(lambda: len(good.received) > count)
        self.assertEqual(len(server.streams), 1)

    async def test_streams_have_a_limit(self) -> None:
        server = self.serve()
        guests = [await self.connect() for _ in range(MAX_STREAMS)]
        refused = await self.connect()
        await refused.lost
        guests[0].transport.abortConnection()
        await until(lambda: len(server.streams) == MAX_STREAMS - 1)
        again = await self.connect()
        again.transport.write(b"\0")
        await until(lambda: again.received == b"\0")


class PlaybackTests(AudioCase):
    async def test_the_hal_is_held_at_the_pace_and_nothing_is_lost(self) -> None:
        server = self.serve(f"wav:{self.wav}")
        data = os.urandom(PLAYBACK.bytes_of(1.5))
        began = reactor.seconds()
        program = self.program("play", self.file("in.wav", wav_header(PLAYBACK, len(data)) + data))
        most = 0

        def played() -> bool:
            nonlocal most
            for stream in server.describe()["streams"]:
                most = max(most, stream.get("buffered_ms", 0))
            return program.ended.called and not server.streams

        await until(played, 60)
        self.assertGreater(reactor.seconds() - began, 1.4)
        self.assertLess(most, 300 + 24)  # the limit, and one write of the HAL
        self.assertEqual(self.heard(), data)

    async def test_two_streams_at_once(self) -> None:
        server = self.serve(f"wav:{self.wav}")
        one, two = os.urandom(100_000), os.urandom(80_000)
        programs = [
            self.program("play", self.file(name, data)) for name, data in (("one", one), ("two", two))
        ]
        for program in programs:
            await self.ended(program)
        await until(lambda: not server.streams)
        heard = [self.heard()]
        if os.path.exists(self.wav.replace(".wav", "-2.wav")):
            heard.append(self.heard(self.wav.replace(".wav", "-2.wav")))
        # either they met, or one came after the other
        self.assertIn(sorted(heard), [sorted([one, two]), [one + two], [two + one]])

    async def test_a_killed_guest_is_heard_to_its_end(self) -> None:
        server = self.serve(f"wav:{self.wav}")
        data = bytes(range(1, 201)) * 10_000
        program = self.program("play", self.file("in", data))
        await until(lambda: os.path.exists(self.wav) and os.path.getsize(self.wav) > 50_000)
        program.kill()
        await until(lambda: not server.streams)
        heard = self.heard()
        self.assertEqual(heard, data[: len(heard)])
        self.assertGreater(len(heard), 50_000)

    async def test_a_stop_ends_everything_at_once(self) -> None:
        server = self.serve(f"wav:{self.wav}")
        guest = await self.connect()
        guest.transport.write(b"\0" + bytes(1_000_000))
        await until(lambda: os.path.exists(self.wav))
        await server.stopService()
        self.assertEqual(server.streams, {})
        await guest.lost
        self.assertFalse(os.path.exists(self.path))
        self.heard()

    async def test_no_session(self) -> None:
        program = self.program("play", "/dev/null")
        await until(lambda: program.ended.called)
        self.assertIn(b"no audio at", bytes(program.errors))


class ProgramTests(AudioCase):
    async def test_the_file_of_a_killed_session_is_right(self) -> None:
        data = os.urandom(PLAYBACK.bytes_of(20))
        path = self.file("in", data)
        session = start_twistd(
            self,
            self.directory,
            "anbox-session",
            *(
                "--standalone",
                "--experimental",
                "--runtime-dir",
                self.directory,
                "--audio",
                f"wav:{self.wav}",
            ),
        )
        socket_path = f"{self.directory}/anbox/sockets/anbox_audio"
        await until(lambda: os.path.exists(socket_path) or session.ended.called)
        self.assertFalse(session.ended.called, session.output.decode())
        os.symlink(socket_path, self.path)
        self.program("play", path)
        await until(lambda: os.path.exists(self.wav) and os.path.getsize(self.wav) > 100_000, 60)
        session.kill(9)
        await session.ended
        heard = self.heard()
        self.assertGreater(len(heard), 50_000)
        self.assertTrue(heard == data[: len(heard)])


class RecordingTests(AudioCase):
    async def test_a_file_is_recorded_exactly(self) -> None:
        data = os.urandom(RECORDING.bytes_of(1))
        source = self.file("mic.wav", wav_header(RECORDING, len(data)) + data)
        self.serve(source=f"wav:{source}")
        await self.ended(self.program("record", "--seconds", "1.1", f"{self.directory}/rec.wav"))
        recorded = self.heard(f"{self.directory}/rec.wav")
        self.assertEqual(recorded, data + bytes(RECORDING.bytes_of(1.1) - len(data)))

    async def test_a_guest_that_does_not_read_misses_the_oldest(self) -> None:
        server = self.serve(source="tone")
        slow = socket.socket(socket.AF_UNIX)
        self.addCleanup(slow.close)
        slow.connect(self.path)
        slow.sendall(b"\1")
        await until(lambda: server.streams and server.describe()["streams"][0].get("dropped_ms", 0) > 200, 60)
        (stream,) = server.describe()["streams"]
        self.assertLessEqual(stream["buffered_ms"], 100)
        # What it finds is bounded as well: the kernel's part is small.
        slow.setblocking(False)
        self.assertLess(len(slow.recv(1 << 20)), RECORDING.byte_rate)
        began = stream["recorded_ms"]

        def read() -> bool:
            try:
                slow.recv(1 << 20)
            except BlockingIOError:
                pass
            return bool(server.describe()["streams"][0]["recorded_ms"] > began + 300)

        await until(read)


class PulseTests(AudioCase):
    timeout = 300

    async def test_playback_is_exact_at_the_monitor(self) -> None:
        pulse = await PulseServer(self).start()
        recorder = pulse.record()
        # Beside other tests on a busy machine: so much that nothing can make a gap. By hand: what users have.
        seconds = float(os.environ.get("ANBOX_TW_AUDIO_SECONDS", "0"))
        latency = DEFAULT_LATENCY_S if seconds else 2.0
        server = self.serve("pulse", environment=pulse.environment, latency=latency)
        data = b"\1\0\1\0" + os.urandom(PLAYBACK.bytes_of(seconds or 2) - 8) + b"\1\0\1\0"
        await until(lambda: recorder.output)
        await self.ended(self.program("play", self.file("in", data)))
        await until(lambda: not server.streams)
        await until(lambda: recorder.output.find(data[-400:]) >= 0)
        place = recorder.output.find(data[:400])
        self.assertGreaterEqual(place, 0)
        self.assertTrue(
            recorder.output[place : place + len(data)] == data, "the monitor heard something else"
        )

    async def test_the_server_is_restarted_meanwhile(self) -> None:
        pulse = await PulseServer(self).start()
        server = self.serve("pulse", environment=pulse.environment)
        program = self.program("play", "/dev/zero")

        def connected() -> bool:
            return any(
                stream.get("connected") and stream["played_ms"] > 200
                for stream in server.describe()["streams"]
            )

        await until(connected)
        await pulse.running.kill()
        await until(lambda: server.describe()["streams"][0].get("failure"))
        await until(lambda: server.describe()["streams"][0]["dropped_ms"] > 100)
        self.assertFalse(program.ended.called)
        played = server.describe()["streams"][0]["played_ms"]
        for name in os.listdir(pulse.directory):
            if name == "native":
                os.unlink(f"{pulse.directory}/{name}")
        again = await pulse.start()
        await until(lambda: server.describe()["streams"][0]["played_ms"] > played + 300)
        self.assertIn("anbox", await again.pactl("list", "sink-inputs"))
        await server.stopService()
        self.assertNotIn("anbox", await again.pactl("list", "sink-inputs"))

    async def test_the_microphone(self) -> None:
        pulse = await PulseServer(self).start()
        self.serve(source="pulse", environment=pulse.environment)
        # what plays in the null sink is what its monitor, the only source, hears
        # a square wave of 441 Hz, 0x2000 high
        tone = self.file("tone", (b"\0\x20" * 100 + b"\0\xe0" * 100) * 20_000)
        start(
            self,
            [
                "pacat",
                "--playback",
                "--raw",
                "--latency-msec=50",
                "--rate=44100",
                "--channels=2",
                "--format=s16le",
                tone,
            ],
            pulse.environment,
        )
        await deferLater(reactor, 0)
        guest = await self.connect()
        guest.transport.write(b"\1")

        def heard() -> list[int]:
            data = guest.received[1:]
            return [abs(sample) for (sample,) in struct.iter_unpack("<h", data[: len(data) // 2 * 2])]

        await until(lambda: sum(0x1800 < sample < 0x2800 for sample in heard()[-1600:]) > 1200)

    async def test_no_server_and_no_command(self) -> None:
        server = self.serve("pulse", "pulse", {"PATH": self.directory, "XDG_RUNTIME_DIR": self.directory})
        program = self.program("play", "/dev/zero")
        guest = await self.connect()
        guest.transport.write(b"\1")
        await until(lambda: len(guest.received) > 3200)
        await until(lambda: any(s.get("dropped_ms", 0) > 200 for s in server.describe()["streams"]))
        self.assertFalse(program.ended.called)
        await server.stopService()
        await until(lambda: program.ended.called)


class EmbeddingTests(SessionCase):
    async def test_the_sink_of_the_manual(self) -> None:
        page = (REPOSITORY / "docs/audio.md").read_text()
        (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
        names: dict[str, Any] = {"reactor": reactor}
        exec(code, names)
        meter = names["Meter"]()
        session = SessionService(
            reactor,
            SessionSettings(paths=RuntimePaths(self.runtime), adb_server=AdbServerAddress(port=free_port())),
            self.managers.connect,
            audio_sink=meter,
        )
        verifyObject(IAudioSink, meter)
        session.startService()
        self.addCleanup(session.stopService)
        guest = Guest()
        await connectProtocol(UNIXClientEndpoint(reactor, session.paths.anbox_audio), guest)
        guest.transport.write(b"\0" + struct.pack("<4h", 5, -700, 30, 0) * 1000)
        await until(lambda: meter.peak == 700)
        (stream,) = session.details()["audio"]["streams"]
        self.assertEqual(stream["sink"], "meter")
        guest.transport.abortConnection()
        await guest.lost
