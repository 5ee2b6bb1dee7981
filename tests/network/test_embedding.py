"""tap/embedding.tac runs, serves each part, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.network import receive_fds
from tests.support import REPOSITORY

START_S = 30


class EmbeddingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="ground")
        self.addCleanup(self.directory.cleanup)
        self.log = f"{self.directory.name}/log"
        environ = {**os.environ, "XDG_RUNTIME_DIR": self.directory.name}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from twisted.scripts.twistd import run; run()",
                "-n",
                "--pidfile=",
                "-l",
                self.log,
                "-y",
                str(REPOSITORY / "tap" / "embedding.tac"),
            ],
            env=environ,
            cwd=self.directory.name,
        )
        self.addCleanup(self.stop)
        self.sockets = f"{self.directory.name}/anbox/instances/embedding/sockets"

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(START_S)
        finally:
            self.process.kill()

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + START_S
        text = ""
        while time.monotonic() < deadline and self.process.poll() is None:
            if os.path.exists(self.log):
                with open(self.log) as file:
                    text = file.read()
                found = re.search(pattern, text)
                if found:
                    return found
            time.sleep(0.02)
        raise AssertionError(f"{pattern} never came:\n{text}")

    def unix(self, name: str) -> Any:
        sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(sock.close)
        sock.settimeout(10)
        sock.connect(f"{self.sockets}/{name}")
        return sock

    def test_each_part(self) -> None:
        port = int(self.wait_for(r"forward: nc 127.0.0.1 (\d+)")[1])
        self.wait_for(r'answer: .*"line": "the standing connection"')
        asker = self.unix("who")
        asker.sendall(b"hel")
        asker.sendall(b"lo\n")
        answer = json.loads(asker.makefile().readline())
        self.assertEqual((answer["uid"], answer["line"]), (os.geteuid(), "hello"))
        self.assertIn(f"pid {os.getpid()}, ", answer["process"])
        self.assertEqual(os.stat(f"{self.sockets}/who").st_mode & 0o777, 0o600)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as forwarded:
            forwarded.sendall(b"through\n")
            self.assertIn("through", forwarded.makefile().readline())
            with urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/", timeout=10) as response:
                status = json.load(response)
            self.assertEqual(len(status["askers"]), 3)
            self.assertEqual(
                [(one["name"], one["strategy"]) for one in status["relays"]], [("forward", "sockets")]
            )
            forwarded.shutdown(socket.SHUT_WR)
            self.assertEqual(forwarded.recv(1), b"")
        self.wait_for("forward ended: .*FINISHED")
        self.assertEqual(self.unix("one").makefile().readline(), "you are the only one\n")
        self.assertEqual(self.unix("null").recv(1), b"")
        data, fds = receive_fds(self.unix("file"))
        self.assertEqual((data, [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]), (b"h", [os.devnull]))
        for fd in fds:
            os.close(fd)
        endpoint = self.unix("endpoint")
        endpoint.sendall(b"x\n")
        self.assertIn('"line": "x"', endpoint.makefile().readline())
        # twistd stops cleanly, then ends itself by the signal that it got
        self.assertIn(self.stop(), (0, -signal.SIGTERM))
        self.assertEqual(os.listdir(self.sockets), [])
        with open(self.log) as file:
            self.assertNotIn("Traceback", file.read())
