"""``twistd anbox-adbd``: its options and the services it builds."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.adb.client import connect_device, pair_device
from anbox_tw.adb.client.links import DirectLink, ILink, ServerLink
from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig, announce
from anbox_tw.adb.keys import AdbKey
from anbox_tw.adb.tap import Options, makeService
from anbox_tw.adb.transport import HostTransport
from tests.adb.real import Command, DaemonTestCase, free_port, reactor
from tests.support import REPOSITORY


class OptionTests(SynchronousTestCase):
    def parse(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(list(arguments))
        return options

    def test_defaults(self) -> None:
        options = self.parse()
        self.assertEqual((options["listen"], options["auth"]), (["tcp:5555:interface=127.0.0.1"], "open"))
        self.assertEqual(self.parse("--tls-listen", "tcp:1")["listen"], [])

    def test_mistakes(self) -> None:
        for arguments in (
            ("--auth", "ask"),
            ("--auth", "nonsense"),
            ("--root", "/nonexistent"),
            ("--cwd", "/nonexistent"),
            ("--shell", "/nonexistent"),
            ("--keys", "/nonexistent"),
            ("--pairing-code", "123456"),
            ("--property", "novalue"),
        ):
            self.assertRaises((UsageError, SystemExit), self.parse, *arguments)
        self.assertRaises(UsageError, makeService, self.parse("--listen", "nonsense:1"))

    def test_help_is_readable(self) -> None:
        text = str(Options())
        for word in ("--listen", "--tls-listen", "--pair-listen", "--auth", "--root", "--packages"):
            self.assertIn(word, text)


class AnnouncementTests(DaemonTestCase):
    async def test_ports_are_announced_and_withdrawn(self) -> None:
        log: list[Any] = []

        class Library:
            @staticmethod
            def Zeroconf(**options: Any) -> Any:
                log.append(options)
                return Library

            @staticmethod
            def ServiceInfo(kind: str, name: str, **fields: Any) -> Any:
                return (kind, name, fields["port"], fields["properties"])

            @staticmethod
            def register_service(info: Any) -> None:
                log.append(info)

            @staticmethod
            def close() -> None:
                log.append("closed")

        ports = [(announce.TLS, 5), (announce.PAIRING, 6)]
        service = announce.AnnouncementService(reactor, "adb-x", ports, "Model T", ["127.0.0.1"], Library)
        service.startService()
        await service.stopService()
        properties = {"v": "1", "name": "Model T"}
        self.assertEqual(
            log,
            [
                {"interfaces": ["127.0.0.1"]},
                ("_adb-tls-connect._tcp.local.", "adb-x._adb-tls-connect._tcp.local.", 5, properties),
                ("_adb-tls-pairing._tcp.local.", "adb-x._adb-tls-pairing._tcp.local.", 6, properties),
                "closed",
            ],
        )

    def test_only_known_ports(self) -> None:
        for endpoint in ("unix:/x", "tcp:0"):
            options = Options()
            options.parseOptions(["--mdns", "--listen", endpoint])
            self.assertRaises(UsageError, makeService, options)


class ProcessTests(DaemonTestCase):
    async def test_it_runs_and_ends_on_sigterm(self) -> None:
        folder = self.folder()
        port, tls_port, pair_port = free_port(), free_port(), free_port()
        Path(folder, "hello").write_bytes(b"hello")
        arguments = [
            sys.executable,
            "-c",
            "from twisted.scripts.twistd import run; run()",
            "-n",
            "--pidfile=",
            "anbox-adbd",
            f"--listen=tcp:{port}:interface=127.0.0.1",
            f"--tls-listen=tcp:{tls_port}:interface=127.0.0.1",
            f"--pair-listen=tcp:{pair_port}:interface=127.0.0.1",
            "--pairing-code=123456",
            "--auth=refuse",
            f"--key-store={folder}/store",
            f"--device-key={folder}/device",
            f"--root={folder}",
            "--property=ro.a=b",
            "--guid=adb-me",
        ]
        running = Command(None)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": folder}
        process: Any = reactor.spawnProcess(running, sys.executable, arguments, environment, path=folder)
        await running.said(b"pairing code: 123456")
        await running.said(f"starting on {pair_port}".encode())
        key = AdbKey.generate("me")
        self.assertEqual(await pair_device(reactor, f"localhost:{pair_port}", "123456", key=key), "adb-me")
        for one in (port, tls_port):
            device = await connect_device(reactor, f"localhost:{one}", keys=[key])
            self.assertEqual(await device.read_file("/hello"), b"hello")
            self.assertEqual(await device.getprop("ro.a"), "b")
            await device.close()
        process.signalProcess(signal.SIGTERM)
        result = await running.done.addTimeout(20, reactor)
        # twistd ends by the signal itself once everything is shut down.
        self.assertIn(result.code, (0, 128 + signal.SIGTERM), result.text)
        self.assertIn("Server Shut Down", result.text)
        self.assertNotIn("Traceback", result.text)


class InterfaceTests(DaemonTestCase):
    def test_links(self) -> None:
        self.assertTrue(verifyObject(ILink, ServerLink(reactor, None, "host", "host:transport-any", "x")))  # type: ignore[arg-type]
        transport = HostTransport(reactor)
        self.assertTrue(verifyObject(ILink, DirectLink(reactor, transport, "x")))

    async def test_a_daemon_that_never_ran_stops(self) -> None:
        await AdbDaemon(reactor, DaemonConfig()).stop()
