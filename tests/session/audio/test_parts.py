"""Audio without sockets: pace, buffer, WAV, sources, choices, against a clock of the test."""

from __future__ import annotations

import os
import struct
import subprocess
import wave
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.device import BadValue
from anbox_tw.device.pcm import PLAYBACK, RECORDING, PcmFormat, find_wav, wav_header
from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IAudioCapture, IAudioPlayback, IAudioSink, IAudioSource
from anbox_tw.session.audio._buffer import PcmBuffer
from anbox_tw.session.audio._pace import Pacer
from anbox_tw.session.audio.children import pacat, parec, pw_cat
from anbox_tw.session.audio.choice import AutoSink, make_sink, make_source
from anbox_tw.session.audio.playback import NullSink
from anbox_tw.session.audio.sources import Converter, FileSource, SilenceSource, ToneSource
from anbox_tw.session.audio.wav import MAX_DATA_BYTES, WavFile, WavSink


class Producer:
    """The guest's transport."""

    def __init__(self) -> None:
        self.paused = False
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.paused = True
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.paused = False
        self.calls.append("resume")


class Threads:
    """Runs at once, or when the test says so."""

    def __init__(self) -> None:
        self.held = False
        self.waiting: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self.held:
            done: Deferred[Any] = Deferred()
            self.waiting.append((done, function, arguments))
            return done
        try:
            return succeed(function(*arguments))
        except OSError:
            return fail()

    def go_on(self) -> None:
        self.held = False
        waiting, self.waiting = self.waiting, []
        for done, function, arguments in waiting:
            done.callback(function(*arguments))


def frames(count: int, first: int = 1) -> bytes:
    """So many frames of the playback format, each another."""
    return b"".join(struct.pack("<hh", (first + n) % 32768, -(first + n) % 32768) for n in range(count))


class WavTests(SynchronousTestCase):
    def test_header_is_what_others_read(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(wav_header(PLAYBACK, 400) + frames(100))
        with wave.open(path) as found:
            self.assertEqual(
                (found.getframerate(), found.getnchannels(), found.getsampwidth(), found.getnframes()),
                (44100, 2, 2, 100),
            )
            self.assertEqual(found.readframes(100), frames(100))
        with open(path, "rb") as file:
            self.assertEqual(find_wav(file.read()), (PLAYBACK, frames(100)))

    def test_other_chunks_and_odd_sizes(self) -> None:
        header = wav_header(RECORDING, 6)
        extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"
        self.assertEqual(find_wav(header[:12] + extra + header[12:] + b"abcdef"), (RECORDING, b"abcdef"))
        # a writer that was killed: the size is more than there is, and half a sample
        self.assertEqual(find_wav(wav_header(RECORDING, 1000) + b"abc"), (RECORDING, b"ab"))

    def test_what_is_no_wav(self) -> None:
        good = wav_header(PLAYBACK, 4) + bytes(4)
        for bad in (
            b"",
            b"RIFF",
            b"OggS" + good[4:],
            good[:20] + struct.pack("<H", 3) + good[22:],
            good[:34] + struct.pack("<H", 24) + good[36:],
            good[:22] + struct.pack("<H", 0) + good[24:],
            good[:36],
            good[:12] + (b"junk" + bytes(4)) * 100 + good[12:],
        ):
            self.assertRaises(BadValue, find_wav, bad)

    @given(st.binary(max_size=200))
    def test_any_bytes_end_well(self, data: bytes) -> None:
        try:
            find_wav(data)
        except BadValue:
            pass
        try:
            find_wav(wav_header(PLAYBACK, 4)[:12] + data)
        except BadValue:
            pass


class BufferTests(SynchronousTestCase):
    @given(st.lists(st.one_of(st.binary(max_size=9), st.integers(0, 12)), max_size=40))
    def test_first_in_first_out(self, steps: list[bytes | int]) -> None:
        buffer, model = PcmBuffer(PcmFormat(10, 1), 1), b""
        for step in steps:
            if isinstance(step, bytes):
                buffer.append(step)
                model += step
            else:
                self.assertEqual(buffer.take(step), model[:step])
                model = model[step:]
            self.assertEqual(len(buffer), len(model))
            self.assertEqual((buffer.full, buffer.low), (len(model) >= 20, len(model) <= 10))
        self.assertEqual(buffer.trim(), max(0, len(model) - 20))
        self.assertEqual(buffer.take(100), model[max(0, len(model) - 20) :])


class PaceTests(SynchronousTestCase):
    def test_exact_over_a_long_time_whatever_the_ticks_are(self) -> None:
        clock, total = Clock(), 0

        def due(count: int) -> None:
            nonlocal total
            self.assertEqual(count % 4, 0)
            total += count

        pacer = Pacer(clock, PLAYBACK, due)
        pacer.start()
        pacer.start()
        for step in [0.0137] * 500 + [0.3] * 10 + [0.001] * 150:
            clock.advance(step)
        self.assertLessEqual(abs(total - PLAYBACK.bytes_of(clock.seconds())), PLAYBACK.bytes_of(0.0201))
        pacer.stop()
        self.assertFalse(pacer.running)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_a_clock_that_leaps(self) -> None:
        clock, given_bytes = Clock(), list[int]()
        pacer = Pacer(clock, PLAYBACK, given_bytes.append)
        pacer.start()
        clock.advance(3600)
        self.assertEqual(given_bytes, [PLAYBACK.bytes_of(0.02)])
        clock.rightNow -= 5000
        clock.advance(0)
        for call in clock.getDelayedCalls():
            call.reset(0.02)
        clock.advance(0.02)
        clock.advance(0.02)
        self.assertLess(sum(given_bytes), PLAYBACK.bytes_of(0.1))
        pacer.stop()


class NullTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.stream = NullSink(self.clock, 0.1).open(PLAYBACK, "x")
        self.guest = Producer()
        self.stream.registerProducer(self.guest, True)

    def test_the_guest_keeps_its_time(self) -> None:
        verifyObject(IAudioPlayback, self.stream)
        verifyObject(IAudioSink, NullSink(self.clock, 0.1))
        written = 0
        for _ in range(1000):  # a guest that writes whenever it may
            while not self.guest.paused:
                self.stream.write(bytes(4096))
                written += 4096
            self.clock.advance(0.01)
        # Ten seconds were heard, and no more than the buffer is ahead of them.
        self.assertApproximates(self.stream.played / PLAYBACK.byte_rate, 10, 0.05)
        self.assertLessEqual(written - self.stream.played, PLAYBACK.bytes_of(0.1) + 4096)
        self.assertEqual(self.stream.underruns, 0)
        self.assertEqual(self.stream.describe()["dropped_ms"], 0)

    def test_a_pause_is_no_time_to_make_up_for(self) -> None:
        self.stream.write(bytes(PLAYBACK.bytes_of(0.05)))
        for _ in range(500):
            self.clock.advance(0.01)
        self.assertEqual((self.stream.underruns, self.clock.getDelayedCalls()), (1, []))
        self.stream.write(bytes(PLAYBACK.bytes_of(0.1)))
        self.clock.advance(0.021)
        self.assertEqual(self.stream.played, PLAYBACK.bytes_of(0.05) + PLAYBACK.bytes_of(0.021))

    def test_finish_plays_the_rest(self) -> None:
        self.stream.write(bytes(PLAYBACK.bytes_of(0.1)))
        done = self.stream.finish()
        self.stream.write(bytes(400))
        self.clock.pump([0.02] * 4)
        self.assertNoResult(done)
        self.clock.pump([0.02] * 3)
        self.successResultOf(done)
        self.successResultOf(self.stream.finish())
        self.successResultOf(self.stream.abort())
        self.assertEqual(self.stream.played, PLAYBACK.bytes_of(0.1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_abort_ends_at_once(self) -> None:
        self.stream.write(bytes(PLAYBACK.bytes_of(0.1)))
        finishing = self.stream.finish()
        self.successResultOf(self.stream.abort())
        self.successResultOf(finishing)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        empty = NullSink(self.clock, 0.1).open(PLAYBACK, "x")
        self.successResultOf(empty.finish())


class WavSinkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.path = self.mktemp() + ".wav"
        self.threads = Threads()
        self.sink = WavSink(self.clock, self.path, 0.1, self.threads)

    def content(self, path: str | None = None) -> bytes:
        with wave.open(path or self.path) as found:
            self.assertEqual((found.getframerate(), found.getnchannels()), (44100, 2))
            content: bytes = found.readframes(1 << 30)
            return content

    def test_right_after_every_write(self) -> None:
        sent = frames(10_000)
        stream = self.sink.open(PLAYBACK, "x")
        for place in range(0, len(sent), 4096):
            stream.write(sent[place : place + 4096])
            self.clock.advance(0.02)
            if os.path.exists(self.path):
                size = os.path.getsize(self.path)
                found = self.content()
                self.assertEqual(len(found) + 44, size)
                self.assertEqual(found, sent[: len(found)])
        done = stream.finish()
        self.clock.pump([0.02] * 30)
        self.successResultOf(done)
        self.assertEqual(self.content(), sent)

    def test_a_kill_between_samples_and_header(self) -> None:
        file = WavFile(self.path, PLAYBACK, self.threads)
        file.append(frames(100))
        with open(self.path, "r+b") as out:
            out.seek(0, os.SEEK_END)
            out.write(frames(50, 101))  # what the header does not know of yet
        self.assertEqual(self.content(), frames(100))
        self.successResultOf(file.close())

    def test_streams_one_after_another_and_at_once(self) -> None:
        for first in (1, 1001):
            stream = self.sink.open(PLAYBACK, "x")
            stream.write(frames(1000, first))
            done = stream.finish()
            self.clock.pump([0.02] * 5)
            self.successResultOf(done)
        one, two = self.sink.open(PLAYBACK, "x"), self.sink.open(PLAYBACK, "x")
        one.write(frames(10, 2001))
        two.write(frames(20, 7))
        for stream in (one, two):
            stream.finish()
        self.clock.pump([0.02] * 3)
        self.assertEqual(self.content(), frames(2010))
        self.assertEqual(self.content(self.path.replace(".wav", "-2.wav")), frames(20, 7))

    def test_a_stream_without_samples_is_a_file_without_samples(self) -> None:
        self.successResultOf(self.sink.open(PLAYBACK, "x").finish())
        self.assertEqual(self.content(), b"")

    def test_a_slow_disk_holds_nobody(self) -> None:
        stream = self.sink.open(PLAYBACK, "x")
        self.threads.held = True
        for first in range(1, 4001, 1000):
            stream.write(frames(1000, first))
            self.clock.advance(0.05)
        self.assertEqual(len(self.threads.waiting), 1)
        done = stream.finish()
        self.clock.pump([0.02] * 5)
        self.assertNoResult(done)
        self.threads.go_on()
        self.successResultOf(done)
        self.assertEqual(self.content(), frames(4000))

    def test_a_full_disk_is_told_and_the_guest_goes_on(self) -> None:
        sink = WavSink(self.clock, "/dev/full", 0.1, self.threads)
        stream = sink.open(PLAYBACK, "x")
        for _ in range(3):
            stream.write(frames(1000))
            self.clock.advance(0.05)
        self.assertEqual(stream.played, 3 * 4000)
        self.assertGreater(stream.describe()["dropped_ms"], 50)
        done = stream.finish()
        self.clock.pump([0.02] * 3)
        self.successResultOf(done)
        missing = WavSink(self.clock, f"{self.mktemp()}/no/such.wav", 0.1, self.threads).open(PLAYBACK, "x")
        missing.write(frames(10))
        done = missing.finish()
        self.clock.pump([0.02] * 3)
        self.successResultOf(done)

    def test_the_disk_that_takes_nothing_costs_no_more_than_its_limit(self) -> None:
        file = WavFile(self.path, PLAYBACK, self.threads)
        self.threads.held = True
        for _ in range(100):
            file.append(bytes(100_000))
        self.assertGreater(file.lost, 5_000_000)
        self.threads.go_on()
        self.assertEqual(len(self.content()) + file.lost, 10_000_000)
        self.successResultOf(file.close())

    def test_four_gigabytes_are_the_end(self) -> None:
        file = WavFile(self.path, PLAYBACK, self.threads)
        file.append(frames(10))
        file._written = MAX_DATA_BYTES - 6
        file.append(frames(10))
        self.assertEqual(file.lost, 36)
        self.successResultOf(file.close())


class SourceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.heard = b""

    def hear(self, data: bytes) -> None:
        self.assertEqual(len(data) % 2, 0)
        self.heard += data

    def test_silence(self) -> None:
        verifyObject(IAudioSource, SilenceSource(self.clock))
        capture = SilenceSource(self.clock).open(RECORDING, self.hear)
        verifyObject(IAudioCapture, capture)
        self.clock.pump([0.01] * 101)
        self.assertApproximates(len(self.heard), 16000, 640)
        self.assertEqual(self.heard.strip(bytes(1)), b"")
        self.successResultOf(capture.close())
        capture.resume()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tone(self) -> None:
        capture = ToneSource(self.clock).open(RECORDING, self.hear)
        self.clock.pump([0.02] * 100)
        capture.close()
        samples = struct.unpack(f"<{len(self.heard) // 2}h", self.heard)
        self.assertEqual((max(samples), min(samples)), (16384, -16384))
        rises = sum(a < 0 <= b for a, b in zip(samples, samples[1:], strict=False))
        self.assertApproximates(rises, 880, 20)

    def test_file_waits_for_its_guest(self) -> None:
        path = self.mktemp()
        data = os.urandom(8000)
        with open(path, "wb") as file:
            file.write(wav_header(RECORDING, len(data)) + data)
        source = FileSource(self.clock, path, RECORDING)
        capture = source.open(RECORDING, self.hear)
        self.clock.pump([0.01] * 20)
        capture.pause()
        count = len(self.heard)
        self.assertApproximates(count, 3200, 640)
        self.clock.pump([0.02] * 100)
        self.assertEqual(self.heard, data[:count])
        capture.resume()
        self.clock.pump([0.01] * 40)
        self.assertApproximates(len(self.heard), 9600, 1280)
        self.assertEqual(self.heard, (data + bytes(9600))[: len(self.heard)])
        capture.close()
        self.heard = b""
        again = source.open(RECORDING, self.hear)
        self.clock.advance(0.02)
        self.assertEqual(self.heard, data[:320])
        again.close()

    def test_raw_file_and_bad_ones(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"\1\2\3\4\5")
        capture = FileSource(self.clock, path, RECORDING, raw=True).open(RECORDING, self.hear)
        self.clock.advance(0.02)
        self.assertEqual(self.heard[:5], b"\1\2\3\4\0")
        capture.close()
        self.assertRaises(BadValue, FileSource, self.clock, path, RECORDING)
        self.assertRaises(ConfigError, FileSource, self.clock, self.mktemp(), RECORDING)
        with open(path, "wb") as file:
            file.truncate(65 << 20)
        self.assertRaises(ConfigError, FileSource, self.clock, path, RECORDING, raw=True)

    def test_conversion(self) -> None:
        def converted(form: PcmFormat, *samples: int, wanted: PcmFormat = RECORDING) -> tuple[int, ...]:
            data = struct.pack(f"<{len(samples)}h", *samples)
            whole = Converter(data, form, wanted)
            count = (whole.frames + 1) * wanted.frame_bytes
            made = whole(count)
            piecewise = Converter(data, form, wanted)
            pieces = b"".join(piecewise(wanted.frame_bytes) for _ in range(whole.frames + 1))
            self.assertEqual(pieces, made)
            return struct.unpack(f"<{count // 2}h", made)

        self.assertEqual(converted(RECORDING, 10, 20, -30), (10, 20, -30, 0))
        self.assertEqual(converted(PcmFormat(8000, 2), 10, 20, 30, 40), (15, 35, 0))
        self.assertEqual(converted(PcmFormat(4000, 1), 0, 100), (0, 50, 100, 100, 0))
        self.assertEqual(converted(PcmFormat(16000, 1), 1, 2, 3, 4), (1, 3, 0))
        self.assertEqual(converted(PcmFormat(8000, 1), 5, wanted=PcmFormat(8000, 2)), (5, 5, 0, 0))
        self.assertEqual(converted(PLAYBACK), (0,))

    def test_a_file_of_another_format(self) -> None:
        path = self.mktemp()
        tone = ToneSource(self.clock)._maker(PLAYBACK)(PLAYBACK.byte_rate)
        with open(path, "wb") as file:
            file.write(wav_header(PLAYBACK, len(tone)) + tone)
        capture = FileSource(self.clock, path, RECORDING).open(RECORDING, self.hear)
        self.clock.pump([0.02] * 60)
        capture.close()
        samples = struct.unpack(f"<{len(self.heard) // 2}h", self.heard)
        rises = sum(a < 0 <= b for a, b in zip(samples, samples[1:], strict=False))
        self.assertApproximates(rises, 440, 2)
        self.assertEqual(set(samples[8100:]), {0})


class ChoiceTests(SynchronousTestCase):
    def test_sinks(self) -> None:
        clock = Clock()
        for text, name in (("auto", "auto"), ("pulse", "pulse"), ("pipewire", "pipewire"), ("null", "null")):
            sink = make_sink(text, clock, 0.1, {})
            verifyObject(IAudioSink, sink)
            self.assertEqual(sink.name, name)
        self.assertEqual(make_sink("wav:/tmp/x.wav", clock).name, "wav")
        for bad in ("", "wav:", "wave", "pulse:x", "NULL"):
            self.assertRaises(ConfigError, make_sink, bad, clock)

    def test_sources(self) -> None:
        clock = Clock()
        for text in ("silence", "tone", "pulse", "pipewire"):
            source = make_source(text, clock, {})
            verifyObject(IAudioSource, source)
            assert source is not None
            self.assertEqual(source.name, text)
        self.assertIsNone(make_source("none", clock))
        for bad in ("", "raw:", "mic", "wav:/no/such/file"):
            self.assertRaises(ConfigError, make_source, bad, clock)

    def test_auto(self) -> None:
        directory = self.mktemp()
        os.makedirs(f"{directory}/bin")

        def tool(name: str) -> None:
            with open(f"{directory}/bin/{name}", "w") as file:
                file.write("#!/bin/sh\n")
            os.chmod(f"{directory}/bin/{name}", 0o755)

        environment = {"XDG_RUNTIME_DIR": directory, "PATH": f"{directory}/bin"}
        sink = AutoSink(Clock(), 0.1, environment)
        self.assertEqual(sink.choose(), "null")
        self.assertEqual(sink.open(PLAYBACK, "x").describe()["sink"], "null")
        with open(f"{directory}/pipewire-0", "w"):
            tool("pw-cat")
        self.assertEqual(sink.choose(), "pipewire")
        os.makedirs(f"{directory}/pulse")
        with open(f"{directory}/pulse/native", "w"):
            self.assertEqual(sink.choose(), "pipewire")
            tool("pacat")
        self.assertEqual(sink.choose(), "pulse")
        os.unlink(f"{directory}/pulse/native")
        self.assertEqual(AutoSink(Clock(), 0.1, {**environment, "PULSE_SERVER": "x"}).choose(), "pulse")

    def test_command_lines(self) -> None:
        self.assertIn("--rate=44100", pacat(0.1)(PLAYBACK, "label"))
        self.assertIn("--stream-name=label", pacat(0.1)(PLAYBACK, "label"))
        self.assertIn("--latency-msec=20", parec(0.02)(RECORDING, "label"))

    def test_both_kinds_of_pw_cat(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        tool = f"{directory}/pw-cat"
        for raw in ("", "--raw"):
            with open(tool, "w") as file:
                file.write(f'#!/bin/sh\n[ "$1" = --help ] && echo "  -a, {raw}" || echo "$@"\n')
            os.chmod(tool, 0o755)
            said = subprocess.run(
                pw_cat("--record", 0.02)(RECORDING, "x"),
                env={"PATH": f"{directory}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            expected = ["--record", "--format", "s16", "--rate", "8000", "--channels", "1"]
            self.assertEqual(said, [*([raw] if raw else []), *expected, "--latency", "20ms", "-"])
