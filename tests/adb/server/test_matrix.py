"""Host services by unmodified clients, and devices that misbehave beside one that does not."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from anbox_tw.adb import _wire
from anbox_tw.adb.daemon import AdbDaemon
from tests.adb.real import reactor
from tests.adb.server.test_real_clients import Echo, ServerTestCase, ask


def packet(command: int, arg0: int, arg1: int, payload: bytes = b"") -> bytes:
    check = sum(payload) & 0xFFFFFFFF
    return struct.pack("<6I", command, arg0, arg1, len(payload), check, command ^ 0xFFFFFFFF) + payload


HELLO = packet(_wire.CNXN, 0x01000001, 1 << 20, b"device::ro.product.model=Bad;features=shell_v2,cmd")


class BadDevice(Protocol):
    """Greets, then does harm; never answers."""

    def __init__(self, words: list[bytes], forever: bytes = b"", reads: bool = True) -> None:
        self._words = words
        self._forever = forever
        self._reads = reads
        self.sent = 0
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if not self._reads:
            transport.pauseProducing()
        for words in self._words:
            transport.write(words)
        if self._forever:
            transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.sent += len(self._forever)
        self.transport.write(self._forever)  # type: ignore[union-attr]

    def stopProducing(self) -> None:
        self._forever = b""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.lost.called:
            self.lost.callback(None)


class Adb36Matrix(ServerTestCase):
    async def second(self, interface: str = "127.0.0.1") -> str:
        """Another good device; its serial."""
        daemon = AdbDaemon(reactor)
        factory = Factory()
        factory.buildProtocol = lambda _: daemon.build_transport()  # type: ignore[method-assign,assignment]
        listening = await serverFromString(
            reactor, f"tcp:0:interface={quoteStringArgument(interface)}"
        ).listen(factory)

        async def stop() -> None:
            await listening.stopListening()
            await daemon.stop()

        self.addCleanup(stop)
        serial = f"localhost:{listening.getHost().port}"
        await self.server.links.connect(serial)
        return serial

    async def test_several_devices(self) -> None:
        adb = await self.connected()
        first, adb.serial = adb.serial, ""
        other = await self.second()
        self.assertIn("more than one device/emulator", (await adb.run("shell", "id")).text)
        self.assertIn("more than one emulator", (await adb.run("-e", "shell", "id")).text)
        self.assertIn("no devices found", (await adb.run("-d", "shell", "id")).text)
        # Waiting makes them no fewer: said at once, as adb's own server does.
        said = await adb.run("wait-for-device")
        self.assertIn("more than one device/emulator", said.text)
        self.assertNotEqual(said.code, 0)
        self.assertEqual(
            await deferToThread(ask, adb.port, "host:wait-for-any-device"),
            b"OKAYFAIL001dmore than one device/emulator",
        )
        self.assertIn(
            "more than one device with serial", (await adb.run("-s", "device:anbox", "shell", "id")).text
        )
        for serial in (first, other):
            self.assertEqual((await adb.run("-s", serial, "shell", "echo one")).out, b"one\n")
        number = self.server.devices.by_serial(other).transport_id  # type: ignore[union-attr]
        self.assertEqual((await adb.run("-t", str(number), "shell", "echo two")).out, b"two\n")
        self.assertIn("no device with transport id '99'", (await adb.run("-t", "99", "shell", "id")).text)
        self.assertEqual((await adb.run("-t", str(number), "get-serialno")).text.strip(), other)
        await adb.run("disconnect", other)
        self.assertEqual((await adb.run("-e", "shell", "echo three")).out, b"three\n")

    async def test_reverse(self) -> None:
        adb = await self.connected()
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(
            Factory.forProtocol(Echo)
        )
        self.addCleanup(listening.stopListening)
        target = f"tcp:{listening.getHost().port}"
        port = int((await adb.run("reverse", "tcp:0", target)).out)

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
                link.sendall(b"back")
                return link.recv(64)

        self.assertEqual(await deferToThread(talk), b"BACK")
        self.assertIn(f"tcp:{port} {target}", (await adb.run("reverse", "--list")).text)
        self.assertEqual((await adb.run("reverse", "--remove", f"tcp:{port}")).code, 0)
        self.assertNotEqual((await adb.run("reverse", "--remove", f"tcp:{port}")).code, 0)
        await adb.run("reverse", "tcp:0", target)
        self.assertEqual((await adb.run("reverse", "--remove-all")).code, 0)
        self.assertEqual((await adb.run("reverse", "--list")).text.strip(), "")

    async def test_reconnect_attach_and_kill(self) -> None:
        adb = await self.connected()
        self.assertIn(f"reconnecting {adb.serial} [device]", (await adb.run("reconnect")).text)
        self.assertEqual((await adb.start("wait-for-device").done).code, 0)
        serial = adb.serial
        for request, answer in (
            (f"host-serial:{serial}:attach", b"attach/detach not supported"),
            (f"host-serial:{serial}:detach", b"attach/detach not supported!"),
            ("host:reconnect-offline", b"OKAY0000"),
            ("host:connect:emu:5554", b"unable to parse '5554' as <console port>,<adb port>"),
            (
                f"host:connect:emu:{self.device_port - 1},{self.device_port}",
                b"Connected to emulator on ports",
            ),
            (f"host:connect:emu:{self.device_port - 1},{self.device_port}", b"Emulator already registered"),
            ("host:connect:emu:1,1", b"Could not connect to emulator on ports 1,1: Connection refused"),
        ):
            self.assertIn(answer, await deferToThread(ask, adb.port, request), request)
        self.patch(os, "environ", {**os.environ, "ADB_REJECT_KILL_SERVER": "1"})
        self.assertEqual(
            await deferToThread(ask, adb.port, "host:kill"), b"FAIL0025kill-server rejected by remote server"
        )
        self.assertEqual(self.killed, [])

    async def test_bad_devices_hurt_nobody(self) -> None:
        adb = await self.connected()
        flood = b"".join(packet(_wire.OPEN, number + 1, 0, b"tcp:1\0") for number in range(10_000))
        bad = [
            BadDevice([HELLO, b"\xff" * 100_000]),  # garbage behind its greeting
            BadDevice([HELLO], packet(_wire.WRTE, 7, 7, bytes(65536)) * 4),  # writes for ever to nobody
            BadDevice([HELLO, flood]),  # opens what it may not
            BadDevice([HELLO], flood, reads=False),  # and never reads the refusals
            BadDevice([]),  # says nothing
            BadDevice([HELLO]),  # never answers an OPEN
        ]
        waiting = list(bad)
        factory = Factory()
        factory.buildProtocol = lambda _: waiting.pop(0) if waiting else None  # type: ignore[method-assign,assignment]
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(listening.stopListening)
        port = listening.getHost().port
        connecting = [
            Deferred.fromCoroutine(self.server.links.connect_service(f"bad-{number}", "127.0.0.1", port))
            for number in range(len(bad))
        ]
        for number in range(3):
            said = await adb.run("shell", f"echo {number}")
            self.assertEqual(said.out, f"{number}\n".encode())
        # Who opens thousands of streams that nobody asked for is cut off, whether or not it reads.
        for one in (bad[2], bad[3]):
            await one.lost.addTimeout(10, reactor)
        self.assertEqual((await adb.run("shell", "echo still")).out, b"still\n")
        for device in list(self.server.devices):
            if device.serial.startswith("bad"):
                self.server.devices.remove(device)
        for connect in connecting:
            await connect
        for device_end in bad:
            if device_end.transport is not None and device_end.connected:
                device_end.transport.abortConnection()  # type: ignore[attr-defined]
        self.assertEqual((await adb.run("get-state")).out, b"device\n")

    async def test_a_client_that_does_not_read_hurts_nobody(self) -> None:
        adb = await self.connected()

        def idle() -> socket.socket:
            link = socket.create_connection(("127.0.0.1", adb.port), timeout=20)
            for request in (f"host:transport:{adb.serial}", "exec:cat /dev/zero"):
                link.sendall(b"%04x" % len(request) + request.encode())
                self.assertEqual(link.recv(4), b"OKAY")
            return link

        link = await deferToThread(idle)
        self.addCleanup(link.close)
        (busy,) = self.server.sockets
        held: list[int] = []
        for number in range(3):
            said = await adb.run("shell", f"echo {number}")
            self.assertEqual(said.out, f"{number}\n".encode())
            held.append(len(busy.transport.dataBuffer) + busy.transport._tempDataLen)  # type: ignore[union-attr]
        self.assertLess(max(held), 8 << 20)
        link.close()

    async def test_a_slow_client_gets_every_byte_in_order(self) -> None:
        adb = await self.connected()
        there = os.path.join(self.folder(), "there")
        data = b"".join(
            number.to_bytes(4, "big") for number in range(3 << 20)
        )  # 12 MiB, no block like another
        with open(there, "wb") as file:
            file.write(data)

        def read() -> bytes:
            with socket.create_connection(("127.0.0.1", adb.port), timeout=20) as link:
                for request in (f"host:transport:{adb.serial}", f"exec:cat {there}"):
                    link.sendall(b"%04x" % len(request) + request.encode())
                    self.assertEqual(link.recv(4), b"OKAY")
                got = bytearray()
                size = 1
                while piece := link.recv(size):
                    got += piece
                    size = size % 300_000 + 99_991  # never in step with payloads or buffers
                return bytes(got)

        self.assertEqual(await deferToThread(read), data)

    async def test_silence_is_noticed(self) -> None:
        await self.connected()
        (device,) = self.server.devices
        handle = device.transport.transport.socket  # type: ignore[union-attr]
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 10)):
            self.assertEqual(handle.getsockopt(socket.IPPROTO_TCP, option), value)

    async def test_localhost_is_ipv6_too(self) -> None:
        # AOSP's test_adb.py, test_connect_ipv4_ipv6
        await self.connected()
        serial = await self.second("::1")
        self.assertIn(serial, [device.serial for device in self.server.devices])
        self.assertEqual(await self.server.links.connect(serial), f"already connected to {serial}")

    async def test_two_connects_at_once_make_one_device(self) -> None:
        await self.attach()
        where = f"localhost:{self.device_port}"
        first, second = (Deferred.fromCoroutine(self.server.links.connect(where)) for _ in range(2))
        self.assertEqual(
            {await first, await second}, {f"connected to {where}", f"already connected to {where}"}
        )
        self.assertEqual(len(self.server.devices), 1)

    async def test_connect_while_the_server_is_about_to(self) -> None:
        await self.connected()
        (device,) = self.server.devices
        device.kick("the test cuts the line")
        while device.transport is not None:
            await self.server.devices.next_change()
        self.assertIn("connected to", await self.server.links.connect(device.serial))
        mine = device.transport
        await deferLater(reactor, 0.6)  # past the moment of the server's own attempt
        self.assertIs(device.transport, mine)
        self.assertEqual(len(self.daemon.transports), 1)


class Adb29Matrix(Adb36Matrix):
    version = "29"
