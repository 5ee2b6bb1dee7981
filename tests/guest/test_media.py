"""The guest's input and audio libraries against sockets that the test plays."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import InputDevice, InputEvent
from anbox_tw.device.evdev import EV_ABS, EV_KEY, EV_SYN, SYN, SYN_DROPPED, encode_events, info_for
from anbox_tw.device.pcm import PLAYBACK, wav_header
from anbox_tw.errors import NotRunning, PeerError
from anbox_tw.guest import audio
from anbox_tw.guest import input as guest_input
from anbox_tw.guest.__main__ import main

LIMIT_S = 30.0


class PlayedCase(SynchronousTestCase):
    """A session that is one function in a thread, for one connection."""

    def setUp(self) -> None:
        self.dev = tempfile.mkdtemp(prefix="ag-")
        self.addCleanup(shutil.rmtree, self.dev, ignore_errors=True)
        os.mkdir(f"{self.dev}/input")
        self.threads: list[threading.Thread] = []

    def play(self, path: str, session: Callable[[socket.socket], None]) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.settimeout(LIMIT_S)
        listening.bind(f"{self.dev}/{path}")
        listening.listen()

        def serve() -> None:
            with listening:
                peer, _ = listening.accept()
            with peer:
                peer.settimeout(LIMIT_S)
                session(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        self.threads.append(thread)
        self.addCleanup(thread.join, LIMIT_S)

    def run_main(self, *arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["--dev", self.dev, *arguments])
        return code, out.getvalue(), err.getvalue()


class InputTests(PlayedCase):
    def test_events_that_come_with_the_description_and_a_loss(self) -> None:
        info = info_for(InputDevice.TOUCH, 10, 20)
        first = [InputEvent(EV_ABS, 0x39, 1), SYN]
        later = [InputEvent(EV_SYN, SYN_DROPPED, 0), SYN, InputEvent(EV_KEY, 30, 1), InputEvent(99, 5, -1)]

        def session(peer: socket.socket) -> None:
            peer.sendall(info.encode() + encode_events(first, 1_500_000_000))
            peer.sendall(encode_events(later, 2_000_000_000))

        self.play("input/event2", session)
        reader = guest_input.InputReader(f"{self.dev}/input/event2")
        self.assertEqual(reader.info, info)
        seen = []
        while (events := reader.read()) is not None:
            seen += events
        reader.close()
        self.assertEqual([one.event for one in seen], [*first, *later])
        self.assertEqual(reader.dropped, 1)
        self.assertIn("SYN_DROPPED", guest_input.name_of(seen[2]))
        self.assertIn("DOWN", guest_input.name_of(seen[4]))
        self.assertTrue(guest_input.name_of(seen[5]).startswith("0063"))

    def test_getevent(self) -> None:
        def session(peer: socket.socket) -> None:
            peer.sendall(info_for(InputDevice.KEYBOARD, 1, 1).encode())
            peer.sendall(encode_events([InputEvent(EV_KEY, 30, 1), SYN], 12_345_000_000))

        self.play("input/event1", session)
        with open(f"{self.dev}/input/eventX", "w"):
            pass  # no device
        code, out, _ = self.run_main("getevent", "-lt")
        self.assertEqual(code, 0)
        self.assertEqual(
            [line.split() for line in out.splitlines()][1:],
            [
                ["[", "12.345000]", f"{self.dev}/input/event1:", "EV_KEY", "KEY_A", "DOWN"],
                ["[", "12.345000]", f"{self.dev}/input/event1:", "EV_SYN", "SYN_REPORT", "00000000"],
            ],
        )
        self.play("input/event0", lambda peer: peer.sendall(info_for(InputDevice.POINTER, 1, 1).encode()))
        code, out, _ = self.run_main("getevent", "-p", "/dev/input/event0")
        self.assertEqual(code, 0)
        self.assertIn("EV_REL REL_WHEEL", out)

    def test_nobody_there(self) -> None:
        self.assertRaises(NotRunning, guest_input.InputReader, f"{self.dev}/input/event0")
        self.play("input/event0", lambda peer: peer.sendall(b"half"))
        self.assertRaises(NotRunning, guest_input.InputReader, f"{self.dev}/input/event0")
        os.unlink(f"{self.dev}/input/event0")
        code, _, err = self.run_main("getevent")
        self.assertEqual(code, 3)
        self.assertIn("no input devices", err)


class AudioTests(PlayedCase):
    def test_play_and_record(self) -> None:
        heard = bytearray()

        def listen(peer: socket.socket) -> None:
            peer.sendall(peer.recv(1))
            while data := peer.recv(65536):
                heard.extend(data)

        samples = os.urandom(10_000)
        path = f"{self.dev}/in.wav"
        with open(path, "wb") as file:
            file.write(wav_header(PLAYBACK, len(samples)) + samples)
        self.play("anbox_audio", listen)
        self.assertEqual(self.run_main("play", path)[0], 0)
        for thread in self.threads:
            thread.join(LIMIT_S)
        self.assertEqual(bytes(heard), samples)

        def speak(peer: socket.socket) -> None:
            assert peer.recv(1) == b"\1"
            peer.sendall(b"\1" + samples)

        os.unlink(f"{self.dev}/anbox_audio")
        self.play("anbox_audio", speak)
        self.assertEqual(self.run_main("record", "-T", "0.5", f"{self.dev}/out.wav")[0], 0)
        with open(f"{self.dev}/out.wav", "rb") as found:
            self.assertEqual(found.read()[44:], samples[:8000])

    def test_what_fails(self) -> None:
        self.assertEqual(self.run_main("play", "/dev/null")[0], 3)
        self.play("anbox_audio", lambda peer: None)
        with self.assertRaises((PeerError, NotRunning)):
            audio.AudioOutput(f"{self.dev}/anbox_audio")
        os.unlink(f"{self.dev}/anbox_audio")
        self.play("anbox_audio", lambda peer: peer.sendall(peer.recv(1)))
        code, _, err = self.run_main("play", f"{self.dev}/no-such-file")
        self.assertEqual(code, 1)
        self.assertIn("No such file", err)
        os.unlink(f"{self.dev}/anbox_audio")
        self.play("anbox_audio", lambda peer: peer.sendall(peer.recv(1)))
        bad = f"{self.dev}/mono.wav"
        with open(bad, "wb") as file:
            file.write(wav_header(PLAYBACK, 4).replace(b"\2\0\x44\xac", b"\1\0\x44\xac") + bytes(4))
        self.assertIn("1 channels", self.run_main("play", bad)[2])
