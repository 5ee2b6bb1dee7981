"""Endpoints over the kernel's real sockets: all namespaces and types, credentials, descriptors, control sockets."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.endpoints import clientFromString, connectProtocol, serverFromString
from twisted.internet.error import CannotListenError, ConnectionDone, TimeoutError, UserError
from twisted.internet.interfaces import IFileDescriptorReceiver, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from anbox_tw.android import endpoints, localsocket, transports
from anbox_tw.android._wire import Namespace
from anbox_tw.android.errors import AddressError, AndroidError, ControlSocketError


@implementer(IFileDescriptorReceiver)
class Recorder(Protocol):
    """Keeps what it gets and wakes whoever waits for it."""

    transport: Any

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.descriptors: list[int] = []
        self.lost: Any = None
        self._waiters: list[tuple[Any, defer.Deferred[None]]] = []
        self.echo = False

    def fileDescriptorReceived(self, descriptor: int) -> None:
        self.descriptors.append(descriptor)

    def dataReceived(self, data: bytes) -> None:
        self.chunks.append(data)
        if self.echo:
            self.transport.write(data)
        self._wake()

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason
        self._wake()

    def _wake(self) -> None:
        for condition, deferred in list(self._waiters):
            if condition(self):
                self._waiters.remove((condition, deferred))
                deferred.callback(None)

    def until(self, condition: Any) -> defer.Deferred[None]:
        deferred: defer.Deferred[None] = defer.Deferred()
        self._waiters.append((condition, deferred))
        self._wake()
        return deferred.addTimeout(10, reactor)


class RecorderFactory(Factory):
    noisy = False

    def __init__(self, echo: bool = False) -> None:
        self.made: list[Recorder] = []
        self.echo = echo

    def buildProtocol(self, addr: Any) -> Recorder:
        protocol = Recorder()
        protocol.echo = self.echo
        self.made.append(protocol)
        return protocol


class EndpointCase(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.directory = Path("/tmp") / f"atw-{os.getpid()}-{id(self):x}"
        self.directory.mkdir()
        self.addCleanup(lambda: self.directory.rmdir())

    async def listen(self, text: str, factory: Any) -> Any:
        port = await serverFromString(reactor, text).listen(factory)
        self.addCleanup(port.stopListening)
        return port

    async def connect(self, text: str) -> Recorder:
        protocol = Recorder()
        await connectProtocol(clientFromString(reactor, text), protocol)
        return protocol


class StreamTests(EndpointCase):
    def names(self) -> list[str]:
        return [
            f"android:anbox-tw-{os.getpid()}:namespace=abstract",
            f"android:anbox-tw-{os.getpid()}",
            f"android:daemon:namespace=reserved:socketDir={self.directory}",
            f"android:{self.directory}/plain:namespace=filesystem",
        ]

    async def test_a_client_meets_the_server_in_each_namespace(self) -> None:
        for text in self.names():
            for kind in ("", ":type=stream", ":type=seqpacket"):
                factory = RecorderFactory(echo=True)
                port = await self.listen(text + kind, factory)
                verifyObject(IListeningPort, port)
                client = await self.connect(text + kind)
                client.transport.write(b"hello")
                await client.until(lambda p: b"".join(p.chunks) == b"hello")
                self.assertEqual(client.transport.peer_credentials().pid, os.getpid())
                self.assertEqual(factory.made[0].transport.peer_credentials()[1:], (os.getuid(), os.getgid()))
                client.transport.loseConnection()
                await factory.made[0].until(lambda p: p.lost)
                await client.until(lambda p: p.lost)
                self.assertTrue(client.lost.check(ConnectionDone), client.lost)
                await port.stopListening()
        self.assertEqual(os.listdir(self.directory), [])

    async def test_a_plain_client_finds_the_same_address(self) -> None:
        """What a Java LocalSocket does, in system calls."""
        addresses = [
            b"\0anbox-tw-%d" % os.getpid(),
            b"\0anbox-tw-%d" % os.getpid(),
            f"{self.directory}/daemon",
            f"{self.directory}/plain",
        ]
        for text, address in zip(self.names(), addresses, strict=True):
            assert isinstance(address, str | bytes)
            factory = RecorderFactory(echo=True)
            port = await self.listen(text, factory)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address)
                client.sendall(b"x")
                await deferLater(reactor, 0, lambda: None)
                while not factory.made:
                    await deferLater(reactor, 0.001, lambda: None)
                await factory.made[0].until(lambda p: p.chunks)
                client.setblocking(False)
                reply = b""
                while not reply:
                    await deferLater(reactor, 0.001, lambda: None)
                    with contextlib.suppress(BlockingIOError):
                        reply = client.recv(10)
                self.assertEqual(reply, b"x")
                client.shutdown(socket.SHUT_WR)
                await factory.made[0].until(lambda p: p.lost)
            await port.stopListening()

    async def test_a_stale_socket_goes_and_another_file_stays(self) -> None:
        path = self.directory / "plain"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        text = f"android:{path}:namespace=filesystem:mode=640"
        port = await self.listen(text, RecorderFactory())
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
        await port.stopListening()
        self.assertFalse(path.exists())
        path.write_text("precious")
        with self.assertRaises(CannotListenError):
            await serverFromString(reactor, text).listen(RecorderFactory())
        self.assertEqual(path.read_text(), "precious")
        path.unlink()

    async def test_a_successors_file_is_not_removed(self) -> None:
        text = f"android:{self.directory}/plain:namespace=filesystem"
        first = await self.listen(text, RecorderFactory())
        second = await self.listen(text, RecorderFactory())
        await first.stopListening()
        self.assertTrue((self.directory / "plain").exists())
        await second.stopListening()
        self.assertFalse((self.directory / "plain").exists())

    async def test_a_protocol_that_fails_on_a_descriptor_leaks_none(self) -> None:
        class Failing(Recorder):
            def fileDescriptorReceived(self, descriptor: int) -> None:
                os.close(descriptor)
                raise RuntimeError("no")

        factory = Factory.forProtocol(Failing)
        factory.noisy = False
        name = f"anbox-tw-failing-{os.getpid()}"
        await self.listen(f"android:{name}", factory)
        path = self.directory / "sent"
        path.touch()

        def open_now() -> int:
            found = 0
            for number in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):
                    found += os.readlink(f"/proc/self/fd/{number}") == str(path)
            return found

        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(b"\0" + name.encode())
            with path.open() as file:
                socket.send_fds(sock, [b"x"], [file.fileno()] * 5)
            sock.setblocking(False)
            while True:
                await deferLater(reactor, 0.001)
                with contextlib.suppress(BlockingIOError):
                    if sock.recv(1) == b"":
                        break
        self.assertEqual(open_now(), 0)
        path.unlink()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_owner_refused_leaves_nothing(self) -> None:
        endpoint = endpoints.AndroidServerEndpoint(
            reactor, localsocket.LocalAddress(f"{self.directory}/x", Namespace.FILESYSTEM)
        )
        self.patch(
            endpoints,
            "bind_path",
            lambda sock, path, **_: (sock.bind(path), [("owner", PermissionError("no"))])[1],
        )
        with self.assertRaises(CannotListenError):
            await endpoint.listen(RecorderFactory())
        self.assertEqual(os.listdir(self.directory), [])

    async def test_a_full_backlog_is_waited_for_and_then_times_out(self) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            name = f"anbox-tw-full-{os.getpid()}"
            server.bind(b"\0" + name.encode())
            server.listen(0)
            held = await self.connect(f"android:{name}")
            with self.assertRaises(TimeoutError):
                await self.connect(f"android:{name}:timeout=0.1")
            waiting = defer.ensureDeferred(self.connect(f"android:{name}"))
            accepted, _ = server.accept()
            late = await waiting
            for protocol in (held, late):
                protocol.transport.loseConnection()
                await protocol.until(lambda p: p.lost)
            accepted.close()
            cancelled = defer.ensureDeferred(self.connect(f"android:{name}"))
            third = await cancelled if cancelled.called else None
            cancelled.addErrback(lambda _: None)
            cancelled.cancel()
            if third is not None:
                third.transport.loseConnection()
                await third.until(lambda p: p.lost)

    async def test_no_descriptors_left_to_accept_with(self) -> None:
        self.patch(endpoints, "ACCEPT_PAUSE_S", 0.02)
        name = f"anbox-tw-emfile-{os.getpid()}"
        port = await self.listen(f"android:{name}", factory := RecorderFactory(echo=True))
        real, failures = port.socket, [errno.EMFILE, errno.EMFILE, errno.EPERM]

        class Failing:
            def accept(self) -> Any:
                if failures:
                    raise OSError(failures.pop(), "no")
                return real.accept()

            def __getattr__(self, attribute: str) -> Any:
                return getattr(real, attribute)

        port.socket = Failing()
        client = await self.connect(f"android:{name}")
        client.transport.write(b"x")
        await client.until(lambda p: p.chunks)
        self.assertEqual(failures, [])
        client.transport.abortConnection()
        await factory.made[0].until(lambda p: p.lost)

    async def test_factories_that_refuse_or_fail(self) -> None:
        class Refusing(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> Any:
                if self.fails:
                    raise RuntimeError("no")
                return None

            fails = False

        factory = Refusing()
        name = f"anbox-tw-refusing-{os.getpid()}"
        await self.listen(f"android:{name}", factory)
        for fails in (False, True):
            factory.fails = fails
            client = await self.connect(f"android:{name}")
            await client.until(lambda p: p.lost)
            with self.assertRaises((UserError, RuntimeError)):
                await clientFromString(reactor, f"android:{name}").connect(factory)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    async def test_nobody_there(self) -> None:
        with self.assertRaises(ConnectionRefusedError):
            await self.connect(f"android:anbox-tw-nobody-{os.getpid()}")
        with self.assertRaises(FileNotFoundError):
            await self.connect(f"android:{self.directory}/none:namespace=filesystem")

    def test_bad_strings(self) -> None:
        for text in (
            "android:x:namespace=elsewhere",
            "android:x:type=raw",
            f"android:{'x' * 108}",
            "android:/a/../b:namespace=reserved",
        ):
            with self.assertRaises((ValueError, AddressError)):
                serverFromString(reactor, text)
            with self.assertRaises((ValueError, AddressError)):
                clientFromString(reactor, text)

    async def test_descriptors_travel_together_on_the_first_byte(self) -> None:
        name = f"anbox-tw-fds-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(b"\0" + name.encode())
            server.listen(4)
            client = await self.connect(f"android:{name}")
            peer, _ = server.accept()
        read, write = os.pipe()
        sent: list[str] = []
        client.transport.write(b"before")
        client.transport.send_with_descriptors(b"twelve bytes", [read, write], lambda: sent.append("a"))
        client.transport.write(b"after")
        client.transport.sendFileDescriptor(write)
        client.transport.write(b"!")
        await deferLater(reactor, 0.05, lambda: None)
        self.assertEqual(sent, ["a"])
        got: list[tuple[bytes, int]] = []
        peer.settimeout(5)
        for _ in range(4):
            data, ancillary, _flags, _ = peer.recvmsg(100, 1000)
            count = sum(len(payload) // 4 for _, _, payload in ancillary)
            for _, _, payload in ancillary:
                localsocket.close_descriptors(array.array("i", payload))
            got.append((data, count))
            if sum(len(data) for data, _ in got) == 24:
                break
        # the kernel may join what has no descriptors to its neighbours, but never splits or joins the sets
        self.assertEqual(b"".join(data for data, _ in got), b"beforetwelve bytesafter!")
        self.assertEqual([count for _, count in got if count], [2, 1])
        self.assertTrue(all(b"twelve bytes" in data for data, count in got if count == 2), got)
        # and the other way: they arrive close-on-exec, before their data
        socket.send_fds(peer, [b"fd"], [read])
        await client.until(lambda p: p.chunks)
        (received,) = client.descriptors
        self.assertFalse(os.get_inheritable(received))
        localsocket.close_descriptors([received, read, write])
        with self.assertRaises(AndroidError):
            client.transport.send_with_descriptors(b"", [0])
        with self.assertRaises(AndroidError):
            client.transport.send_with_descriptors(b"x", [0] * 65)
        socket.send_fds(peer, [b"many"], [0] * 65)
        await client.until(lambda p: p.lost)
        self.assertIn("64", str(client.lost.value))
        done: list[str] = []
        client.transport.send_with_descriptors(b"x", [0], lambda: done.append("told"))
        self.assertEqual(done, ["told"])
        peer.close()


class PacketTests(EndpointCase):
    async def test_packets_keep_their_bounds(self) -> None:
        text = f"android:anbox-tw-packets-{os.getpid()}:type=seqpacket"
        factory = RecorderFactory(echo=True)
        await self.listen(text, factory)
        client = await self.connect(text)
        client.transport.write(b"")  # no packet, and not our end
        for size in (1, 2, 70000, 3):
            client.transport.write(b"p" * size)
        await client.until(lambda p: len(p.chunks) == 4)
        self.assertEqual([len(chunk) for chunk in client.chunks], [1, 2, 70000, 3])
        with self.assertRaises(AndroidError):
            client.transport.write(b"x" * (1 << 20))
        read, write = os.pipe()
        client.transport.send_with_descriptors(b"fd", [read])
        await factory.made[0].until(lambda p: p.descriptors and p.chunks[-1] == b"fd")
        localsocket.close_descriptors([read, write, *factory.made[0].descriptors])
        client.transport.abortConnection()
        await client.until(lambda p: p.lost)
        await factory.made[0].until(lambda p: p.lost)

    async def test_a_packet_too_long_to_be_taken_whole_is_refused(self) -> None:
        self.patch(transports, "MAX_PACKET_BYTES", 100)
        for kind, survives in (("seqpacket", False), ("dgram", True)):
            name = f"anbox-tw-long-{kind}-{os.getpid()}"
            factory = RecorderFactory()
            await self.listen(f"android:{name}:type={kind}", factory)
            with socket.socket(socket.AF_UNIX, localsocket.SOCKET_TYPES[kind]) as sock:
                sock.connect(b"\0" + name.encode())
                sock.send(b"x" * 200)
                sock.send(b"short")
                while not factory.made:
                    await deferLater(reactor, 0.001)
                server = factory.made[0]
                await server.until(lambda p: p.lost or p.chunks)
                self.assertEqual(
                    (server.chunks, server.lost is None), ([b"short"] if survives else [], survives)
                )

    async def test_a_paused_protocol_gets_nothing_until_it_goes_on(self) -> None:
        text = f"android:anbox-tw-pause-{os.getpid()}:type=seqpacket"
        factory = RecorderFactory()
        await self.listen(text, factory)
        client = await self.connect(text)
        while not factory.made:
            await deferLater(reactor, 0.001)
        server = factory.made[0]
        server.transport.pauseProducing()
        client.transport.writeSequence([b"one ", b"packet"])
        await deferLater(reactor, 0.05)
        self.assertEqual(server.chunks, [])
        server.transport.resumeProducing()
        await server.until(lambda p: p.chunks)
        self.assertEqual(server.chunks, [b"one packet"])
        self.assertEqual(client.transport.getPeer().name, b"\0anbox-tw-pause-%d" % os.getpid())
        self.assertIsNone(client.transport.getHost().name)
        with self.assertRaises(AndroidError):
            client.transport.send_with_descriptors(b"x", [0] * 65)
        client.transport.loseConnection()
        client.transport.write(b"too late")
        await server.until(lambda p: p.lost)

    async def test_datagrams_to_nobody_are_dropped_and_the_next_arrives(self) -> None:
        path = self.directory / "sink"
        sink = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sink.bind(str(path))
        port = await self.listen(
            f"android:anbox-tw-source-{os.getpid()}:type=dgram", factory := RecorderFactory()
        )
        source = factory.made[0]
        with self.assertRaises(AndroidError):
            source.transport.write(b"to whom?")
        address = os.fsencode(path)
        source.transport.send_with_descriptors(b"x", (), b"\0anbox-tw-nobody")
        source.transport.send_with_descriptors(b"there", (), address)
        sink.setblocking(False)
        while True:
            await deferLater(reactor, 0.001)
            with contextlib.suppress(BlockingIOError):
                self.assertEqual(sink.recv(10), b"there")
                break
        self.assertEqual(source.transport.dropped, 1)
        sink.close()
        path.unlink()
        await port.stopListening()

    async def test_a_peer_that_does_not_read_pauses_the_producer_and_then_is_refused(self) -> None:
        name = f"anbox-tw-slow-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.bind(b"\0" + name.encode())
            server.listen(4)
            client = await self.connect(f"android:{name}:type=seqpacket")
            peer, _ = server.accept()
        events: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                events.append("pause")

            def resumeProducing(self) -> None:
                events.append("resume")

            def stopProducing(self) -> None:
                events.append("stop")

        client.transport.registerProducer(Producer(), True)
        for _ in range(40):
            client.transport.write(b"x" * 50000)
        self.assertEqual(events[0], "pause")
        with self.assertRaises(AndroidError):
            for _ in range(40):
                client.transport.write(b"x" * 50000)
        peer.setblocking(False)
        received = 0
        while "resume" not in events:
            try:
                received += len(peer.recv(60000))
            except BlockingIOError:
                await deferLater(reactor, 0, lambda: None)
        self.assertGreater(received, 1 << 20)
        client.transport.unregisterProducer()
        client.transport.loseConnection()
        peer.close()
        await client.until(lambda p: p.lost)

    async def test_datagrams_with_their_senders(self) -> None:
        got: list[tuple[bytes, bytes, Any]] = []

        class Datagrams(Protocol):
            transport: Any

            def datagramReceived(self, data: bytes, address: bytes, credentials: Any) -> None:
                got.append((data, address, credentials))
                if address:
                    self.transport.send_with_descriptors(b"re:" + data, (), address)

        factory = Factory.forProtocol(Datagrams)
        factory.noisy = False
        text = f"android:log:namespace=reserved:socketDir={self.directory}:type=dgram"
        port = await self.listen(text + ":passcred=1:mode=222", factory)
        self.assertEqual(stat.S_IMODE((self.directory / "log").stat().st_mode), 0o222)
        client = await self.connect(text)
        client.transport.write(b"one")
        while not got:
            await deferLater(reactor, 0.001, lambda: None)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as named:
            named.bind(str(self.directory / "me"))
            named.sendto(b"two", str(self.directory / "log"))
            named.settimeout(5)
            while len(got) < 2:
                await deferLater(reactor, 0.001, lambda: None)
            await deferLater(reactor, 0.01, lambda: None)
            self.assertEqual(named.recv(10), b"re:two")
        (self.directory / "me").unlink()
        self.assertEqual([data for data, _, _ in got], [b"one", b"two"])
        self.assertEqual(got[0][1], b"")
        self.assertTrue(got[1][1].endswith(b"/me"))
        self.assertEqual({entry[2] for entry in got}, {(os.getpid(), os.getuid(), os.getgid())})
        client.transport.loseConnection()
        await client.until(lambda p: p.lost)
        await port.stopListening()
        self.assertEqual(os.listdir(self.directory), [])


class ControlSocketTests(EndpointCase):
    def hand_over(self, name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, kind)
        path = self.directory / name
        sock.bind(str(path))
        os.set_inheritable(sock.fileno(), True)
        self.patch(os, "environ", {**os.environ, f"ANDROID_SOCKET_{name}": str(sock.fileno())})
        self.addCleanup(sock.close)
        self.addCleanup(path.unlink)
        return sock

    async def test_the_handed_over_socket_serves_again_and_again(self) -> None:
        sock = self.hand_over("installd")
        os.chmod(self.directory / "installd", 0o600)
        for _ in range(2):
            factory = RecorderFactory(echo=True)
            port = await serverFromString(reactor, "android-control:installd:backlog=5").listen(factory)
            client = await self.connect(f"android:installd:namespace=reserved:socketDir={self.directory}")
            client.transport.write(b"x")
            await client.until(lambda p: p.chunks)
            client.transport.loseConnection()
            await factory.made[0].until(lambda p: p.lost)
            await port.stopListening()
            # mode and file are init's business
            self.assertEqual(stat.S_IMODE((self.directory / "installd").stat().st_mode), 0o600)
        self.assertFalse(os.get_inheritable(sock.fileno()))

    async def test_a_datagram_socket(self) -> None:
        self.hand_over("logdw", socket.SOCK_DGRAM)
        factory = RecorderFactory()
        port = await serverFromString(reactor, "android-control:logdw:type=dgram").listen(factory)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"line", str(self.directory / "logdw"))
        await factory.made[0].until(lambda p: p.chunks)
        await port.stopListening()
        self.assertIsNotNone(factory.made[0].lost)

    async def test_what_is_not_that_socket_is_refused_with_the_reason(self) -> None:
        sock = self.hand_over("a")
        descriptor = sock.fileno()
        read, write = os.pipe()
        inet = socket.socket()
        self.addCleanup(inet.close)
        self.addCleanup(localsocket.close_descriptors, [read, write])
        cases = {
            None: "not set",
            "x": "no descriptor number",
            "-1": "no descriptor number",
            "999": "not open",
            str(read): "not a socket",
            str(inet.fileno()): "not a UNIX socket",
            str(descriptor): "not to 'b'",
        }
        for value, expected in cases.items():
            environment = {} if value is None else {"ANDROID_SOCKET_b": value}
            with self.assertRaisesRegex(ControlSocketError, expected):
                localsocket.adopt_control_socket("b", environment=environment)
        with self.assertRaisesRegex(ControlSocketError, "not a dgram socket"):
            await serverFromString(reactor, "android-control:a:type=dgram").listen(RecorderFactory())
        with self.assertRaises(ControlSocketError):
            await serverFromString(reactor, "android-control:none").listen(RecorderFactory())
        with self.assertRaises(ControlSocketError):
            localsocket.adopt_control_socket("n" * 60)
        os.fstat(descriptor)
