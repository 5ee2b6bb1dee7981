"""Sockets made by somebody else: systemd's (with its readiness protocol) and those of Android's init, by real exec."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import Any

from twisted.internet.threads import deferToThread

from anbox_tw.netd.connector import NativeDaemonConnector
from tests.netd.daemon_case import DaemonTestCase
from tests.support import REPOSITORY

# As systemd does: the sockets from descriptor 3 on, and the pid of the process that is executed
EXEC = """
import os, sys
count = int(sys.argv[1])
given = []
for fd in map(int, sys.argv[2:2 + count]):
    # above all that they are to become
    while (copy := os.dup(fd)) < 3 + count:
        pass
    given.append(copy)
for number, fd in enumerate(given):
    os.dup2(fd, 3 + number, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *sys.argv[2 + count:]])
"""


class ActivationTests(DaemonTestCase):
    def bound(self, name: str, listening: bool) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        self.addCleanup(made.close)
        made.bind(os.path.join(self.directory, name))
        os.chmod(os.path.join(self.directory, name), 0o600)
        if listening:
            made.listen(8)
        os.set_inheritable(made.fileno(), True)
        return made

    async def ended(self, daemon: subprocess.Popen[bytes]) -> None:
        daemon.send_signal(signal.SIGTERM)
        try:
            output, _ = await deferToThread(daemon.communicate, None, 30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            output, _ = await deferToThread(daemon.communicate)
            self.fail(output.decode())
        self.assertNotIn(b"Traceback", output)

    async def asked(self, path: str) -> str:
        from twisted.internet import reactor

        client = NativeDaemonConnector(reactor, path)
        client.startService()
        try:
            await client.when_connected(30)
            return str((await client.execute("ipfwd", "status")).text)
        finally:
            await client.stopService()

    def options(self) -> list[str]:
        return [
            *("-n", "--pidfile=", "anbox-netd", "--netns", self.ns.path),
            *("--socket-dir", os.path.join(self.directory, "own")),
        ]

    def spawn(self, words: list[str], fds: list[int], **environment: str) -> Any:
        daemon = subprocess.Popen(
            words,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            pass_fds=fds,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.kill)
        return daemon

    async def test_systemd(self) -> None:
        before = await self.settled(self.ns)
        first, second = self.bound("a", True), self.bound("b", True)
        notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(notified.close)
        notified.bind(os.path.join(self.directory, "notify"))
        notified.settimeout(30)
        fds = [first.fileno(), second.fileno()]
        words = [sys.executable, "-c", EXEC, "2", *map(str, fds), *self.options(), "--sockets", "netd,mdns"]
        daemon = self.spawn(
            words,
            fds,
            LISTEN_FDS="2",
            LISTEN_FDNAMES="anbox-mdns.socket:anbox-netd.socket",
            NOTIFY_SOCKET=os.path.join(self.directory, "notify"),
        )
        said = await deferToThread(notified.recv, 4096)
        self.assertIn(b"READY=1", said)
        self.assertEqual(await self.asked(os.path.join(self.directory, "b")), "Forwarding disabled")
        # their maker's mode stays
        self.assertEqual(os.stat(os.path.join(self.directory, "b")).st_mode & 0o777, 0o600)
        # nothing of its own where all is given
        self.assertFalse(os.path.exists(os.path.join(self.directory, "own")))
        await self.ended(daemon)
        self.assertEqual(self.ns.state(), before)
        # they are systemd's: they stay for the next start
        for name in ("a", "b"):
            self.assertEqual(os.stat(os.path.join(self.directory, name)).st_mode & 0o777, 0o600)

    async def test_init(self) -> None:
        """Android's init binds, and leaves listening to the daemon."""
        given = self.bound("netd", False)
        words = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *self.options()]
        daemon = self.spawn(words, [given.fileno()], ANDROID_SOCKET_netd=str(given.fileno()))
        own = os.path.join(self.directory, "own")
        await self.answering(f"{own}/dnsproxyd")
        await self.answering(os.path.join(self.directory, "netd"))
        self.assertEqual(await self.asked(os.path.join(self.directory, "netd")), "Forwarding disabled")
        self.assertEqual(sorted(os.listdir(own)), ["dnsproxyd", "fwmarkd", "mdns"])
        await self.ended(daemon)
        self.assertFalse(os.path.exists(own))
        self.assertEqual(os.stat(os.path.join(self.directory, "netd")).st_mode & 0o777, 0o600)
