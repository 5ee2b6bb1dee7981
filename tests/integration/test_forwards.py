"""Forwards into real containers: of ordinary users and of root, with namespaces and without, and LXC's."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.container.nobody import NOBODY
from tests.integration.support import Sandbox, eventually
from tests.support import need_root, need_tool

WAIT_S = 30

SERVICES = r"""
import os, socket, sys, threading

def serve(listening, answer):
    while True:
        link, _ = listening.accept()
        threading.Thread(target=answer, args=(link,), daemon=True).start()

def echo(link):
    # the end of the input is answered, so a half-close is seen on both sides
    while data := link.recv(65536):
        link.sendall(data)
    link.sendall(b"end")
    link.close()

def who(link):
    link.sendall(b"%d" % link.getsockopt(socket.SOL_SOCKET, 17, 12)[4])
    link.close()

def listen(family, address, answer=echo):
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(address)
    listening.listen(128)
    threading.Thread(target=serve, args=(listening, answer), daemon=True).start()

path = sys.argv[1]
if os.path.exists(path):
    os.unlink(path)
listen(socket.AF_INET, ("127.0.0.1", int(sys.argv[2])))
listen(socket.AF_UNIX, path)
listen(socket.AF_UNIX, "\0" + sys.argv[3], who)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", int(sys.argv[2])))
print("serving", os.getpid(), flush=True)
while True:
    data, peer = datagrams.recvfrom(65536)
    datagrams.sendto(data[::-1], peer)
"""


class Guest:
    """The services in the container."""

    port = 5999
    name = "anbox-tw-test"
    path = "/data/local/tmp/echo"

    def __init__(self, box: Sandbox, directory: str) -> None:
        self.box = box
        with open(f"{directory}/services.py", "w") as file:
            file.write(SERVICES)
        self.source = f"{directory}/services.py"

    def start(self) -> None:
        """Start them through the guest's shell; they live on when it ends."""
        program = "cat > /data/local/tmp/services.py"
        with open(self.source) as file:
            done = self.box.run(self.box.command("shell", program), stdin=file.read())
        assert done.returncode == 0, done.stderr
        said = self.box.anbox(
            "shell",
            f"setsid python3 /data/local/tmp/services.py {self.path} {self.port} {self.name} "
            "> /data/local/tmp/out 2>&1 < /dev/null & "
            "for i in $(seq 200); do grep -q serving /data/local/tmp/out && break; sleep 0.05; done; cat /data/local/tmp/out",
        )
        assert "serving" in said.stdout, said

    def kill(self) -> None:
        """Kill them all at once."""
        self.box.anbox("shell", "kill -9 $(sed -n 's/serving //p' /data/local/tmp/out)")


class ForwardCase(SynchronousTestCase):
    backend = "process"
    options: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.box = Sandbox(self)

    def forward(self, *arguments: str) -> list[dict[str, Any]]:
        done = self.box.anbox("forward", "--json", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        told: list[dict[str, Any]] = json.loads(done.stdout)
        return told

    def port(self, target: str) -> int:
        done = self.box.anbox("forward", "tcp:0", target)
        self.assertEqual(done.returncode, 0, done.stderr)
        return int(done.stdout)

    def connect(self, port: int) -> socket.socket:
        link = socket.create_connection(("127.0.0.1", port), WAIT_S)
        self.addCleanup(link.close)
        return link

    def echo(self, port: int, data: bytes = b"x" * 100_000) -> None:
        try:
            link = self.connect(port)
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            got = b""
            while more := link.recv(65536):
                got += more
        except OSError as error:
            listed = self.box.anbox("forward", "--list", "--json").stdout
            self.fail(f"{error!r}\n{listed}\n{self.box.anbox('logs').stdout[-10000:]}")
        self.assertEqual(got, data + b"end")

    def assert_reset(self, port: int) -> None:
        # the reset may come before the caller has returned from connecting
        self.assertRaises(ConnectionResetError, lambda: self.connect(port).recv(1))

    def by_adb(self, guest: Guest) -> int:
        """The same by the guest's adbd; ADB knows no half-close."""
        (added,) = self.forward("tcp:0", f"tcp:{guest.port}", "--via", "adb")
        port = int(added["listen"].rpartition(":")[2])
        data = os.urandom(1_000_000)
        with self.connect(port) as link:
            sending = threading.Thread(target=link.sendall, args=(data,))
            sending.start()
            got = b""
            while len(got) < len(data) and (more := link.recv(65536)):
                got += more
            sending.join()
            self.assertEqual(got, data)
        nobody = self.box.anbox("forward", "tcp:0", "tcp:9", "--via", "adb")
        self.assert_reset(int(nobody.stdout))
        self.assertEqual(len(self.forward("--remove", f"tcp:{nobody.stdout.strip()}")), 1)
        return port

    def check(self) -> None:
        """All kinds of targets, and what goes wrong with them."""
        guest = Guest(self.box, str(self.box.directory))
        guest.start()
        tcp, path, abstract = (
            self.port(target)
            for target in (
                f"tcp:{guest.port}",
                f"localfilesystem:{guest.path}",
                f"localabstract:{guest.name}",
            )
        )
        for port in (tcp, path):
            self.echo(port)
        # the guest sees its own root
        self.assertEqual(self.connect(abstract).recv(16), b"0")
        (added,) = self.forward("udp:0", f"udp:{guest.port}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.settimeout(WAIT_S)
            link.connect(("127.0.0.1", int(added["listen"].rpartition(":")[2])))
            link.send(b"abc")
            self.assertEqual(link.recv(16), b"cba")
        self.assert_reset(self.port("tcp:9"))
        self.assert_reset(self.port("localabstract:nobody"))
        self.assert_reset(self.port("localfilesystem:/data/missing"))
        links = [self.connect(tcp) for _ in range(100)]
        for number, link in enumerate(links):
            link.sendall(b"%03d" % number)
        for number, link in enumerate(links):
            self.assertEqual(link.recv(3), b"%03d" % number)
        adb = self.by_adb(guest)
        listed = {entry["listen"]: entry for entry in self.forward("--list")}
        self.assertEqual(listed[f"tcp:{tcp}"]["connections"], 100)
        self.assertEqual(listed.pop(f"tcp:{adb}")["way"], "adb")
        self.assertEqual({entry["way"] for entry in listed.values()}, {"direct"})
        self.assertEqual(listed[f"tcp:{tcp}"]["bytes_to_guest"], 100_300)
        guest.kill()
        for link in links:
            # in whatever way: at once
            try:
                self.assertEqual(link.recv(1), b"")
            except ConnectionResetError:
                pass
        self.assert_reset(tcp)
        self.assertEqual(len(self.forward("--remove", f"tcp:{tcp}")), 1)
        self.assertRaises(ConnectionRefusedError, self.connect, tcp)


class ProcessTests(ForwardCase):
    def check_usage(self) -> None:
        for arguments, code, text in (
            (("tcp:1",), 2, "LISTEN and TARGET"),
            (("--list", "--remove-all"), 2, "LISTEN and TARGET"),
            (("tcp:x", "tcp:1"), 2, "no port"),
            (("tcp:0", "tcp:1", "--via", "pigeon"), 2, "pigeon"),
            (("--remove", "tcp:1"), 3, "nothing is forwarded"),
        ):
            done = self.box.anbox("forward", *arguments)
            self.assertEqual((done.returncode, text in done.stderr), (code, True), done.stderr)

    def test_all_kinds(self) -> None:
        self.assertEqual(self.box.anbox("forward", "tcp:0", "tcp:1").returncode, 3)
        self.box.up()
        self.box.booted()
        self.check_usage()
        self.check_network()
        self.check()
        self.assertEqual(self.box.anbox("down").returncode, 0)
        eventually(lambda: not self.box.processes(), f"no process left: {self.box.processes()}")
        self.assertEqual(self.box.leftovers(), [])

    def check_network(self) -> None:
        """One state behind the command and the console."""
        self.assertEqual(self.box.anbox("network", "speed", "slow").returncode, 2)
        done = self.box.anbox("network", "speed", "edge", "--json")
        self.assertEqual(json.loads(done.stdout)["download"], 236_800, done.stderr)
        self.assertEqual(self.box.anbox("network", "delay", "40:40").returncode, 0)
        said = self.box.anbox("network", "status").stdout
        self.assertIn("download 236800 bits/s (edge)", said)
        self.assertIn("latency  40 to 40 ms", said)
        guest = Guest(self.box, str(self.box.directory))
        guest.start()
        port = self.port(f"tcp:{guest.port}")
        link = self.connect(port)
        start = time.monotonic()
        link.sendall(b"x" * 10_000)
        got = 0
        while got < 10_000:
            got += len(link.recv(65536))
        # at least 10 kB at 29.6 kB/s, and half of 40 ms each way
        self.assertGreater(time.monotonic() - start, 0.3)
        for name in ("speed full", "delay none"):
            self.assertEqual(self.box.anbox("network", *name.split()).returncode, 0)
        guest.kill()

    def test_restarts(self) -> None:
        """A forward outlives its container, and with --persist the session."""
        self.box.up()
        told = self.box.booted()
        guest = Guest(self.box, str(self.box.directory))
        guest.start()
        (added,) = self.forward("tcp:0", f"tcp:{guest.port}", "--persist")
        port = int(added["listen"].rpartition(":")[2])
        self.echo(port)
        os.kill(told["container"]["pid"], signal.SIGKILL)

        def another() -> bool:
            done = self.box.anbox("wait", "--for", "booted", "--timeout", "1", "--json")
            return (
                done.returncode == 0
                and json.loads(done.stdout)["container"]["pid"] != told["container"]["pid"]
            )

        eventually(another, "the container is there again", 60)
        guest.start()
        self.echo(port)
        self.assertEqual(self.box.anbox("down").returncode, 0)
        self.assertRaises(ConnectionRefusedError, self.connect, port)
        self.box.up()
        self.box.booted()
        guest.start()
        self.echo(port)
        self.assertEqual(self.forward("--list")[0]["persistent"], True)
        self.assertEqual(len(self.forward("--remove-all")), 1)
        self.assertEqual(self.forward("--list"), [])


class UserSandbox(Sandbox):
    """A sandbox of the user nobody."""

    def __init__(self, case: SynchronousTestCase) -> None:
        super().__init__(case)
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        self.environment["ANBOX_RUNTIME_DIR"] = str(self.runtime)

    def command(self, *arguments: str) -> list[str]:
        wrapper = [sys.executable, "-m", "tests.container.nobody", str(self.directory)]
        return [*wrapper, *super().command(*arguments)]


class UserTests(ForwardCase):
    """No root anywhere."""

    def setUp(self) -> None:
        need_root()
        self.box = UserSandbox(self)

    def test_all_kinds(self) -> None:
        self.box.up()
        self.box.booted()
        self.check()
        self.assertEqual(self.box.anbox("down").returncode, 0)


class LxcTests(ForwardCase):
    def setUp(self) -> None:
        need_root()
        for tool in ("lxc-start", "ip", "nft"):
            need_tool(tool)
        super().setUp()

    def test_all_kinds(self) -> None:
        self.box.up("--backend", "lxc")
        self.box.booted()
        self.check()
        self.assertEqual(self.box.anbox("down").returncode, 0)
        eventually(lambda: not self.box.processes(), f"no process left: {self.box.processes()}")
