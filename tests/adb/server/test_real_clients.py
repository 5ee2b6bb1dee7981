"""Unmodified adb clients, 29 and 36, with our server in the place of their own; the device is our adbd."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from anbox_tw.adb.daemon import DaemonConfig
from anbox_tw.adb.server import AdbServer
from tests.adb.real import DaemonTestCase, RealAdb, reactor


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data.upper())


def ask(port: int, request: str) -> bytes:
    """One raw smart socket request, answered to the end of file."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall(b"%04x" % len(request) + request.encode())
        answer = b""
        while data := link.recv(65536):
            answer += data
        return answer


class ServerTestCase(DaemonTestCase):
    version = "36"

    async def attach(self, config: DaemonConfig | None = None, **environment: str) -> RealAdb:
        self.adb = adb = RealAdb(self, self.version, **environment)
        self.killed: list[int] = []
        self.server = AdbServer(
            reactor,
            TCP4ServerEndpoint(reactor, adb.port, interface="127.0.0.1"),
            on_kill=lambda: self.killed.append(1),
        )
        self.server.startService()
        self.addCleanup(self.server.stopService)
        self.device_port = await self.serve(config)
        return adb

    async def connected(self, config: DaemonConfig | None = None) -> RealAdb:
        adb = await self.attach(config)
        self.assertEqual(
            (await adb.connect(self.device_port)).text, f"connected to localhost:{self.device_port}\n"
        )
        return adb


class Adb36Tests(ServerTestCase):
    async def test_connect_list_disconnect(self) -> None:
        adb = await self.connected(DaemonConfig(product="p", model="A model", device="d"))
        self.assertIn("already connected to", (await adb.run("connect", adb.serial)).text)
        listed = await adb.run("devices", "-l")
        self.assertRegex(listed.text, r"device product:p model:A_model device:d transport_id:1\n")
        self.assertEqual((await adb.run("get-state")).out, b"device\n")
        self.assertIn("Connection refused", (await adb.run("connect", "localhost:1")).text)
        self.assertIn(f"disconnected {adb.serial}", (await adb.run("disconnect", adb.serial)).text)
        self.assertIn("not found", (await adb.run("shell", "id")).text)
        self.assertEqual(len(self.server.devices), 0)

    async def test_shell_and_files(self) -> None:
        adb = await self.connected()
        said = await adb.run("shell", "echo out; echo err >&2; exit 7")
        self.assertEqual((said.out, said.err, said.code), (b"out\n", b"err\n", 7))
        folder = Path(self.folder())
        (folder / "there").write_bytes(os.urandom(1 << 20) * 20)
        self.assertEqual((await adb.run("push", str(folder / "there"), str(folder / "device"))).code, 0)
        self.assertEqual((await adb.run("pull", str(folder / "device"), str(folder / "back"))).code, 0)
        digests = {
            hashlib.sha256((folder / name).read_bytes()).digest() for name in ("there", "device", "back")
        }
        self.assertEqual(len(digests), 1)
        self.assertEqual(len(self.server.sockets), 0)

    async def test_forward(self) -> None:
        adb = await self.connected()
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(
            Factory.forProtocol(Echo)
        )
        self.addCleanup(listening.stopListening)
        target = f"tcp:{listening.getHost().port}"
        port = int((await adb.run("forward", "tcp:0", target)).out)

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
                link.sendall(b"through")
                return link.recv(64)

        self.assertEqual(await deferToThread(talk), b"THROUGH")
        self.assertIn(f"{adb.serial} tcp:{port} {target}", (await adb.run("forward", "--list")).text)
        self.assertIn("cannot rebind", (await adb.run("forward", "--no-rebind", f"tcp:{port}", "tcp:1")).text)
        self.assertEqual((await adb.run("forward", f"tcp:{port}", target)).code, 0)
        self.assertEqual((await adb.run("forward", "--remove", f"tcp:{port}")).code, 0)
        self.assertIn("not found", (await adb.run("forward", "--remove", f"tcp:{port}")).text)
        self.assertIn("Address already in use", (await adb.run("forward", f"tcp:{adb.port}", target)).text)

    async def test_wait_for_and_trackers(self) -> None:
        adb = await self.attach()
        waiting = adb.start("wait-for-device")
        tracking = adb.start("track-devices", stdin=None)
        await tracking.said(b"0000")
        adb.serial = ""
        await adb.run("connect", f"localhost:{self.device_port}")
        self.assertEqual((await waiting.done).code, 0)
        await tracking.said(f"localhost:{self.device_port}\tdevice".encode())
        gone = adb.start("wait-for-disconnect")
        await adb.run("disconnect")
        self.assertEqual((await gone.done).code, 0)
        tracking.process.signalProcess("TERM")  # type: ignore[attr-defined]
        await tracking.done

    async def test_many_shells_at_once(self) -> None:
        adb = await self.connected()
        said = await gatherResults([adb.start("shell", f"echo {number}").done for number in range(20)])
        self.assertEqual([result.out for result in said], [f"{number}\n".encode() for number in range(20)])

    async def test_texts_of_refusals(self) -> None:
        adb = await self.attach()
        for request, answer in (
            ("host:nosuch", b"FAIL001dunknown host service 'nosuch'"),
            ("host-usb:get-state", b"FAIL0010no devices found"),
            ("host:get-state", b"FAIL001ano devices/emulators found"),
            ("host-serial:nosuch:get-state", b"FAIL0019device 'nosuch' not found"),
            ("shell:id", b"FAIL001ddevice offline (no transport)"),
            ("host:transport-id:x", b"FAIL0014invalid transport id"),
            ("host:wait-for-x", b"OKAYFAIL0012short wait-for-: x"),
            ("host:connect:", b"OKAY000dempty address"),
            ("host:version", b"OKAY00040029"),
            ("host:devices", b"OKAY0000"),
            ("host:emulator:1", b""),
            ("host-serial:x", b""),
        ):
            self.assertEqual(await deferToThread(ask, adb.port, request), answer, request)

    async def test_kill_server(self) -> None:
        adb = await self.attach()
        self.assertEqual((await adb.run("kill-server")).code, 0)
        self.assertEqual(self.killed, [1])

    async def test_an_emulator_announces_itself(self) -> None:
        adb = await self.attach()
        await deferToThread(ask, adb.port, f"host:emulator:{self.device_port}")
        await adb.start("wait-for-device").done
        self.assertIn(f"emulator-{self.device_port - 1}\tdevice", (await adb.run("devices")).text)

    async def test_a_device_that_opens_unasked_hurts_nobody(self) -> None:
        # The real server aborts here, and takes every device and client with it.
        adb = await self.connected()
        (transport,) = self.daemon.transports
        refused: Deferred[Any] = transport.open_stream("tcp:1")
        await self.assertFailure(refused, Exception)
        self.assertEqual((await adb.run("shell", "echo still here")).out, b"still here\n")

    async def test_a_lost_device_comes_back(self) -> None:
        adb = await self.connected()
        (transport,) = self.daemon.transports
        transport.abort("the test cuts the line")
        await adb.start("wait-for-device").done
        said = await adb.run("shell", "echo again")
        self.assertEqual((said.out, said.code), (b"again\n", 0))


class Adb29Tests(Adb36Tests):
    version = "29"
