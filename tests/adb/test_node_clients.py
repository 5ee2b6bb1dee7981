"""Node's clients: @devicefarmer/adbkit through our server, @yume-chan/adb through it and straight to our adbd.

``.ci/node.sh`` installs them. Each script in ``node/`` does everything its library can, and prints what came of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory

from anbox_tw.adb import AdbKey, Authority
from anbox_tw.adb.daemon import DaemonConfig
from anbox_tw.adb.daemon.control import DeviceControl
from anbox_tw.adb.daemon.logs import LogBuffer
from anbox_tw.adb.daemon.screen import Picture
from anbox_tw.adb.pairing import PairingServer
from anbox_tw.adb.server import AdbServer
from anbox_tw.adb.server.known_hosts import KnownHosts
from anbox_tw.adb.server.pairing import Pairer
from tests.adb.real import Command, DaemonTestCase, Result, free_port, reactor
from tests.adb.server.test_real_clients import Echo
from tests.support import missing, need_tool

SCRIPTS = Path(__file__).parent / "node"
MODULES = Path(sys.prefix) / "node"
TIMEOUT_S = 100


class NodeTestCase(DaemonTestCase):
    timeout = 120

    async def world(self, authority: Authority | None = None) -> dict[str, Any]:
        """Our adbd and our server, an echo on TCP and on an abstract socket, a package, a process to debug."""
        self.node = need_tool("node")
        if not (MODULES / ".ready").exists():
            missing("Node's ADB clients; sh .ci/node.sh installs them")
        # A short name: sockets are below it.
        folder = tempfile.mkdtemp(prefix="anbox-tw-node-")
        self.addCleanup(shutil.rmtree, folder)
        os.mkdir(f"{folder}/bin")
        program = Path(folder, "bin", "getprop")
        # A program as on a device, so that it can stand in the middle of a shell's loop.
        program.write_text('#!/bin/sh\n[ $# = 0 ] && echo "[ro.product.model]: [Model T]" || echo 1\n')
        program.chmod(0o755)
        self.control: list[object] = []
        logs = LogBuffer()
        logs.write("a line", tag="test")
        port = await self.serve(
            DaemonConfig(
                authority=authority or Authority("open"),
                product="teapot",
                model="Model T",
                device="pot",
                packages=f"{folder}/packages",
                environment={"PATH": f"{folder}/bin:{os.environ['PATH']}"},
                logs=logs,
                jdwp=f"\0anbox-tw-node-{os.getpid()}-{id(self)}",
                screen=lambda: Picture(3, 2, bytes(range(24))),
                control=DeviceControl(
                    reboot=self.control.append,
                    tcpip=self.control.append,
                    usb=lambda: self.control.append("usb"),
                    remount=lambda _: "remount succeeded\n",
                ),
            )
        )
        self.killed: list[bool] = []
        self.server_port = free_port()
        self.pairer = Pairer(reactor, AdbKey.generate(), KnownHosts(f"{folder}/known"))
        server = AdbServer(
            reactor,
            TCP4ServerEndpoint(reactor, self.server_port, interface="127.0.0.1"),
            keys=[AdbKey.generate()],
            on_kill=lambda: self.killed.append(True),
            pairing=self.pairer,
        )
        server.startService()
        self.addCleanup(server.stopService)
        echoes = []
        for where in ("tcp:0:interface=127.0.0.1", f"unix:{folder}/echo:lockfile=0"):
            echoes.append(await serverFromString(reactor, where).listen(Factory.forProtocol(Echo)))
            self.addCleanup(echoes[-1].stopListening)
        Path(folder, "source").write_bytes(os.urandom(1_500_000))
        os.utime(f"{folder}/source", (1_600_000_000, 1_600_000_000))
        os.symlink("source", f"{folder}/link")
        with zipfile.ZipFile(f"{folder}/x.apk", "w") as apk:
            apk.writestr("AndroidManifest.xml", '<manifest package="org.example.x"/>')
        return {
            "modules": str(MODULES),
            "port": self.server_port,
            "device": f"127.0.0.1:{port}",
            "device_port": port,
            "folder": folder,
            "echo": echoes[0].getHost().port,
            "local": f"localfilesystem:{folder}/echo",
            "apk": f"{folder}/x.apk",
        }

    async def run_script(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        command = Command(None)
        arguments = [self.node, str(SCRIPTS / name), json.dumps(settings)]
        process = reactor.spawnProcess(command, self.node, arguments, dict(os.environ))

        def end() -> None:
            try:
                process.signalProcess(signal.SIGKILL)
            except ProcessExitedAlready:
                pass

        self.addCleanup(end)
        result: Result = await command.done.addTimeout(TIMEOUT_S, reactor)
        self.assertEqual(result.code, 0, result.text)
        answers: dict[str, Any] = json.loads(result.out)
        return answers

    def assert_answers(self, answers: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> None:
        """Each operation of ``wanted`` answered so; a callable judges."""
        for name, value in wanted.items():
            answer = answers.pop(prefix + name)
            if callable(value):
                self.assertTrue(value(answer), f"{prefix}{name}: {answer}")
            else:
                self.assertEqual(answer, value, f"{prefix}{name}")


class AdbkitTests(NodeTestCase):
    async def test_everything_it_does(self) -> None:
        settings = await self.world()
        vm = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(vm.close)
        assert self.daemon.config.jdwp is not None
        vm.connect(self.daemon.config.jdwp)
        vm.send((4321).to_bytes(4, "little"))
        answers = await self.run_script("adbkit.cjs", settings)
        folder, serial, echo = settings["folder"], settings["device"], f"tcp:{settings['echo']}"
        gone = "Failure: 'closed'"
        self.assert_answers(
            answers,
            {
                "version": 41,
                "connect": serial,
                "connect again": serial,
                "connect to nobody": "failed to connect to '127.0.0.1:1': Connection refused",
                "devices": [{"id": serial, "type": "device"}],
                "paths": [[serial, "device", "product:teapot"]],
                "track": [serial, serial, serial, "offline"],
                "wait": serial,
                # Its index exports the command for the path under both names.
                "serial": "unknown",
                "path": "unknown",
                "state": "device",
                "attach": "Failure: 'attach/detach not supported'",
                "detach": "Failure: 'attach/detach not supported!'",
                "properties": {"ro.product.model": "Model T"},
                "booted": True,
                "shell": "hi\nerr\n",
                "shell array": "a b|c'd|",
                "shell large": 1_000_000,
                "tcp": "THROUGH",
                "tcp refused": gone,
                "local": "THROUGH",
                "log": gone,
                "framebuffer": [3, 2, "rgba", list(range(24))],
                "proc stat": True,
                "push": [1_500_000, True],
                "push a stream": True,
                "push refused": "Failure: 'couldn't create file: No such file or directory'",
                "pull missing": "Failure: 'open failed: No such file or directory'",
                "stat": [True, 1_500_000, 1_600_000_000_000],
                "stat missing": f"ENOENT, no such file or directory '{folder}/missing'",
                "list": ["back", "bin", "echo", "link", "made", "source", "streamed", "x.apk"],
                "one stream": [1_500_000, ["there"]],
                "forward": ["THROUGH", [[serial, echo]]],
                "reverse": [True, [echo], "THROUGH"],
                "install": True,
                "packages": ["org.example.x"],
                "installed": True,
                "clear": True,
                "uninstall": True,
                "not installed": False,
                "install remote": True,
                "install nonsense": lambda text: (
                    "could not be installed [INSTALL_PARSE_FAILED_NOT_APK" in text
                ),
                "jdwp": "4321",
                "logcat": True,
                "bridge": [True, "bridged\n", 300_000, True],
                "root": lambda text: "running as root" in text or "production builds" in text,
                "remount": True,
                "tcpip": 5557,
                "usb": True,
                "reboot": True,
                "kill": True,
            },
        )
        self.assertEqual(answers, {})
        self.assertEqual(self.control, [5557, "usb", ""])
        self.assertEqual(self.killed, [True])


class YaWebAdbTests(NodeTestCase):
    def operations(self) -> dict[str, Any]:
        """What every operation of an ``Adb`` object must answer."""
        refused = ("closed", "Socket open failed")  # through a server, and straight
        return {
            "banner": lambda found: found[0] == "teapot" and found[2:] == ["pot", True],
            "shell": ["out\n", "err\n", 7],
            "shell large": 3_000_000,
            "shell stdin": ["500000", 0],
            "shell killed": lambda pid: pid > 1,
            "pty": 4,
            "shell v1": lambda text: sorted(text.split()) == ["err", "v1"],
            "pty v1": "terminal\n",
            "property": "1",
            "stat": [True, 1_500_000, True, "ENOENT"],
            "list": [".", "link", "source"],
            "push and pull": [True, 1_600_000_000_000, False],
            "push refused": "couldn't create file: No such file or directory",
            "pull missing": "open failed: No such file or directory",
            "remove": ["", False],
            "tcp": "THROUGH",
            "local": "THROUGH",
            "refused": lambda text: text in refused,
            "unknown": lambda text: text in refused,
            "reverse": lambda found: (
                found[:4] == [True, "from the host", True, 0] and "not found" in found[4]
            ),
            "reverse port": ["THROUGH", 0],
            "framebuffer": [3, 2, 32, list(range(24))],
            "source": 500_000,
            "root": lambda text: "running as root" in text or "production builds" in text,
            "tcpip": "restarting in TCP mode port: 5557\n",
            "tcpip disable": "restarting in USB mode\n",
            "many shells": True,
            "reboot": "",
        }

    async def test_everything_through_the_server(self) -> None:
        settings = await self.world()
        pairing = PairingServer(reactor, AdbKey.generate(), "123456", "adb-test-abcdef", lambda _: None)
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(pairing)
        self.addCleanup(listening.stopListening)
        settings |= {"mode": "server", "pairing": f"127.0.0.1:{listening.getHost().port}"}
        answers = await self.run_script("yaadb.mjs", settings)
        serial = settings["device"]
        self.assert_answers(
            answers,
            {
                "version": 41,
                "features": True,
                "connect again": f"already connected to {serial}",
                "connect to nobody": "failed to connect to '127.0.0.1:1': Connection refused",
                "devices": [[serial, "device", "Model_T"]],
                "selectors": [True, True, True, True, "no devices found"],
                "wait": "no failure: undefined",
                "track": [[serial], [serial], [serial]],
                "mdns": [False, []],
                "pair with a wrong code": "Failed: Wrong password or connection was dropped.",
                **self.operations(),
            },
        )
        # connect, reconnect, pair, close, disconnect and kill answer nothing when they succeed.
        self.assertEqual(answers, {})
        self.assertEqual(self.control, [5557, "usb", "recovery"])
        self.assertEqual(self.killed, [True])
        await pairing.paired

    async def test_everything_straight(self) -> None:
        key = AdbKey.generate("ya")
        settings = await self.world(Authority("refuse", keys=[key.public]))
        file = f"{settings['folder']}/key"
        Path(file).write_bytes(key.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
        settings |= {"mode": "device", "port": settings["device_port"], "key": file}
        answers = await self.run_script("yaadb.mjs", settings)
        # First with its default window of delayed acknowledgements, then without.
        self.assert_answers(answers, self.operations())
        self.assert_answers(answers, self.operations(), "one by one: ")
        self.assertEqual(answers, {})
        self.assertEqual(self.control, [5557, "usb", "recovery"] * 2)
