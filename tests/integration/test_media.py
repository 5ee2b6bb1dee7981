"""Sound and input of a real container of each backend: the guest's HAL client and evdev reader inside, the command line outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import wave
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device.pcm import PLAYBACK, RECORDING, wav_header
from tests.integration.support import Sandbox, eventually
from tests.support import need_root, need_tool


class _MediaCase(SynchronousTestCase):
    """What both backends are to show."""

    backend = ""

    def setUp(self) -> None:
        need_tool("adb")
        self.box = Sandbox(self)
        self.out = self.box.directory / "out.wav"
        self.spoken = os.urandom(RECORDING.bytes_of(0.6))
        spoken = self.box.directory / "mic.wav"
        spoken.write_bytes(wav_header(RECORDING, len(self.spoken)) + self.spoken)
        self.box.up(
            *("--backend", self.backend, "--rootfs", "host"),
            *("--audio", f"wav:{self.out}", "--microphone", f"wav:{spoken}"),
        )
        told = self.box.booted()
        self.shared = Path(told["container"]["data_path"]) / "data"

    def guest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the guest's own command in the container."""
        return self.box.anbox("shell", "--", sys.executable, "-m", "anbox_tw.guest", *arguments)

    def check(self) -> None:
        # what the guest plays is what is heard
        played = os.urandom(PLAYBACK.bytes_of(1))
        (self.shared / "tune.raw").write_bytes(played)
        done = self.box.anbox("shell", "--", "tinyplay", "/data/tune.raw")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

        def heard() -> bytes:
            with wave.open(str(self.out)) as found:
                content: bytes = found.readframes(1 << 30)
                return content

        eventually(lambda: self.out.exists() and len(heard()) >= len(played), "the sound is heard to its end")
        self.assertTrue(heard() == played)
        # what it records is what the microphone hears
        done = self.guest("record", "--seconds", "0.6", "/data/rec.wav")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        with wave.open(str(self.shared / "rec.wav")) as found:
            self.assertTrue(found.readframes(1 << 30) == self.spoken)
        # 1,000 positions a second, in order
        watching = subprocess.Popen(
            [
                *(sys.executable, "-m", "anbox_tw.cli", "shell", "--", sys.executable),
                *("-m", "anbox_tw.guest", "getevent", "-c", "3003", "event2"),
            ],
            env=self.box.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            readers = lambda: self.box.anbox("input", "devices", "--json").stdout  # noqa: E731
            eventually(
                lambda: re.search(r'"event2",\s*"kind": "touch",\s*"readers": 1', readers()), "a reader"
            )
            swiped = self.box.anbox(
                "input", "swipe", "0", "0", "1000", "0", "--duration", "1", "--rate", "1000"
            )
            self.assertEqual(swiped.returncode, 0, swiped.stdout + swiped.stderr)
            output, _ = watching.communicate(timeout=60)
        finally:
            watching.kill()
            watching.wait()
        self.assertIn("anbox-touch", output)
        values = [int(value, 16) for value in re.findall(r"ABS_MT_POSITION_X +([0-9a-f]{8})", output)]
        self.assertEqual(values, list(range(1001))[: len(values)])
        self.assertGreaterEqual(len(values), 1000)
        stamps = [float(stamp) for stamp in re.findall(r"^\[ *([0-9.]+)\]", output, re.M)]
        self.assertEqual(stamps, sorted(stamps))
        described = self.box.anbox("shell", "--", "getevent", "-p")
        self.assertIn("ABS_MT_POSITION_X: min 0, max 1024", described.stdout, described.stderr)
        # it can read there, and change nothing
        done = self.box.anbox(
            "shell", "--", "sh", "-c", "rm /dev/input/event0; touch /dev/input/x; ls /dev/input"
        )
        self.assertEqual(done.stdout.split()[-3:], ["event0", "event1", "event2"], done.stdout + done.stderr)
        self.assertEqual(self.box.anbox("down").returncode, 0)


class ProcessMediaTests(_MediaCase):
    backend = "process"

    def test_sound_and_input(self) -> None:
        self.check()


class LxcMediaTests(_MediaCase):
    backend = "lxc"

    def setUp(self) -> None:
        need_root()
        need_tool("lxc-start")
        super().setUp()

    def test_sound_and_input(self) -> None:
        self.check()
