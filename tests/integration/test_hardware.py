"""Hardware of a real container of each backend: HALs inside, the command line outside."""

from __future__ import annotations

import json
import socket
import sys
import threading
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support import Sandbox
from tests.support import need_root, need_tool

ASK = """
import sys
from anbox_tw.guest.hal import QemuPipe
with QemuPipe("/dev/qemu_pipe", sys.argv[1]) as pipe:
    pipe.write(b"who is there?")
    print(pipe.read(100).decode())
"""


class _HardwareCase(SynchronousTestCase):
    """What both backends are to show."""

    backend = ""

    def setUp(self) -> None:
        need_tool("adb")
        self.box = Sandbox(self)
        self.port = self.serve()
        picture = self.box.directory / "grey.pgm"
        picture.write_bytes(b"P5 1 1 255\n\x80")
        self.box.up(
            *("--backend", self.backend, "--rootfs", "host", "--disabled-sensors", "humidity"),
            *("--camera", "none", "--camera", f"front=image:{picture}"),
            *("--allow-outward", f"tcp:{self.port}"),
        )
        self.box.booted()

    def serve(self) -> int:
        """A server of the host's loopback that answers once; returns its port."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(60)

        def answer() -> None:
            with listener:
                connection, _ = listener.accept()
                with connection:
                    asked = connection.recv(100)
                    connection.sendall(b"the host, asked: " + asked)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 60)
        return int(listener.getsockname()[1])

    def say(self, *arguments: str, code: int = 0) -> str:
        done = self.box.anbox(*arguments)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout

    def guest(self, line: str) -> list[Any]:
        return [json.loads(each) for each in self.say("shell", f"hal {line}").splitlines()]

    def check(self) -> None:
        self.assertEqual(len(self.guest("sensors")), 7)
        scenario = self.box.directory / "day.jsonl"
        steps = [
            {"at": 0, "do": "sensor.set", "name": "light", "values": [12.5]},
            {"at": "+5", "do": "geo.fix", "longitude": 2.5, "latitude": 48.75},
            {"at": "+5", "do": "finger.touch", "finger": 9},
        ]
        scenario.write_text("\n".join(map(json.dumps, steps)))
        self.assertEqual(
            self.say("scenario", "run", "--factor", "100", str(scenario)), "finished: 3 steps, 0 failed\n"
        )
        self.assertEqual(self.guest("sensors -c 1 light")[0]["light"], [12.5])
        (fix,) = self.guest("gps -c 1")
        self.assertEqual((fix["latitude"], fix["longitude"]), (48.75, 2.5))
        self.assertEqual(self.guest("fingerprint -c 1"), [{"finger": 9}])
        self.assertEqual([camera["direction"] for camera in self.guest("camera list")], ["front"])
        told = self.say(
            "shell",
            "hal camera frame --size 176x144 --preview /data/local/tmp/f && md5sum < /data/local/tmp/f",
        )
        grey = self.say("shell", "printf '\\200\\200\\200\\377%.0s' $(seq 25344) | md5sum")
        self.assertEqual(told, grey)
        # what was allowed is reached from the container's own network, nothing else is
        ask = ("shell", "--", sys.executable, "-c", ASK)
        self.assertEqual(self.say(*ask, f"tcp:{self.port}"), "the host, asked: who is there?\n")
        refused = self.box.anbox(*ask, f"tcp:{self.port - 1}")
        self.assertEqual(refused.returncode, 1, refused.stdout)
        self.assertIn("the session has closed the pipe", refused.stderr)


class ProcessTests(_HardwareCase):
    backend = "process"

    def test_hardware(self) -> None:
        self.check()


class LxcTests(_HardwareCase):
    backend = "lxc"

    def setUp(self) -> None:
        need_root()
        need_tool("lxc-start")
        super().setUp()

    def test_hardware(self) -> None:
        self.check()
