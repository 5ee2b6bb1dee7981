"""Generated and mutated input for whole ends over memory: transports, the server's sockets, the client's streams."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import AdbKey, _sync
from anbox_tw.adb.auth import Authority
from anbox_tw.adb.client.links import SmartSocket
from anbox_tw.adb.client.server import parse_devices
from anbox_tw.adb.client.streams import ByteStream
from anbox_tw.adb.client.sync import SyncSession
from anbox_tw.adb.server.server import AdbServer
from anbox_tw.adb.server.smartsocket import SmartSocket as ServerSocket
from anbox_tw.adb.transport import DeviceTransport, HostTransport
from anbox_tw.errors import AnboxError
from tests.adb.fuzz import COUNT, Growth, Mutator, packets

KEY = AdbKey.generate("fuzz@test")


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]


class Wire(StringTransport):
    """A transport that tells its protocol of the end, as real ones do."""

    protocol: Any = None

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.disconnecting = True

    def end(self) -> None:
        protocol, self.protocol = self.protocol, None
        protocol.connectionLost(Failure(ConnectionDone()))


class Inline:
    """A thread pool without threads."""

    def callInThreadWithCallback(self, done: Any, function: Any, *arguments: Any) -> None:
        try:
            result = function(*arguments)
        except BaseException:
            done(False, Failure())
        else:
            done(True, result)


class Reactor(MemoryReactorClock):
    """In memory, and its threads too."""

    def getThreadPool(self) -> Any:
        return Inline()

    def callFromThread(self, function: Any, *arguments: Any, **keywords: Any) -> None:
        function(*arguments, **keywords)


class Base(SynchronousTestCase):
    def fuzz(self, count: int, once: Callable[[], None]) -> None:
        """Do it ``count`` times; nothing may be logged as an error and no memory kept."""
        growth = Growth(self, count)
        for index in range(count):
            once()
            growth.look(index)
            if not index % 1000:
                self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.flushLoggedErrors(), [])
        growth.check()


class TransportTests(Base):
    def talk(self, make: Callable[[Reactor], Any]) -> None:
        mutator = Mutator(packets())

        def once() -> None:
            reactor = Reactor()
            end, wire = make(reactor), Wire()
            wire.protocol = end
            end.makeConnection(wire)
            for piece in mutator.cut(mutator.next()):
                if not wire.disconnecting:
                    end.dataReceived(piece)
                wire.clear()
            if end.is_online and mutator.random.random() < 0.5:
                end.open_stream("x").addErrback(lambda failure: failure.trap(AnboxError))
            wire.end()
            self.assertEqual((len(end._streams), end.connection.unacked), (0, 0))
            self.assertEqual(reactor.getDelayedCalls(), [])

        self.fuzz(COUNT, once)

    def test_open_device(self) -> None:
        self.talk(lambda reactor: DeviceTransport(reactor, open_handler=lambda _service, _stream: Echo()))

    def test_device_with_keys(self) -> None:
        authority = Authority("accept")
        self.talk(
            lambda reactor: DeviceTransport(
                reactor, authority=authority, open_handler=lambda _service, _stream: Echo()
            )
        )

    def test_device_with_tls(self) -> None:
        self.talk(lambda reactor: DeviceTransport(reactor, tls_key=KEY))

    def test_host(self) -> None:
        self.talk(
            lambda reactor: HostTransport(reactor, keys=[KEY], open_handler=lambda _service, _stream: Echo())
        )


class ServerTests(Base):
    def test_client_sockets(self) -> None:
        reactor = Reactor()
        server = AdbServer(reactor, TCP4ServerEndpoint(reactor, 5037), keys=[KEY])
        words = [
            "host:version",
            "host:devices",
            "host:devices-l",
            "host:track-devices",
            "host:track-devices-proto-text",
            "host:features",
            "host:transport-any",
            "host:tport:any",
            "host:tport:serial:x",
            "host-serial:x:get-state",
            "host:wait-for-any-device",
            "host-transport-id:1:get-state",
            "host:transport-id:1",
            "host:list-forward",
            "host:killforward-all",
            "host:server-status",
            "host:forward:tcp:0;tcp:1",
            "host:killforward:tcp:1",
            "host:disconnect:",
            "host:disconnect:x",
            "host:reconnect",
            "host:reconnect-offline",
            "host:pair:1:x",
            "host:mdns:check",
            "host:mdns:services",
            "host:emulator:x",
            "shell:x",
            "host:attach",
        ]
        mutator = Mutator(
            [b"%04x" % len(word.encode()) + word.encode() for word in words] + [b"0000", b"zzzz"]
        )

        def once() -> None:
            end, wire = ServerSocket(server), Wire()
            wire.protocol = end
            end.makeConnection(wire)
            for piece in mutator.cut(mutator.next()):
                if not wire.disconnecting:
                    end.dataReceived(piece)
            reactor.advance(0)
            wire.end()
            self.assertEqual(len(server.sockets), 0)
            for port in list(server.forwards.listing().split("\n")):
                self.assertEqual(port, "")

        self.fuzz(COUNT, once)


class ClientTests(Base):
    def hear(self, seeds: list[bytes], *uses: Callable[[Reactor, ByteStream], Any]) -> None:
        """Give mutated words to a stream that each of ``uses`` reads."""
        mutator = Mutator(seeds)

        def once() -> None:
            for use in uses:
                reactor = Reactor()
                stream, wire = ByteStream(reactor), Wire()
                wire.protocol = stream
                stream.makeConnection(wire)
                done: Deferred[Any] = Deferred.fromCoroutine(use(reactor, stream))
                for piece in mutator.cut(mutator.next()):
                    if not wire.disconnecting:
                        stream.dataReceived(piece)
                wire.end()
                # What fails does so with our own errors, and nothing waits for ever.
                done.addErrback(lambda failure: failure.trap(AnboxError))
                self.successResultOf(done)
                self.assertEqual(reactor.getDelayedCalls(), [])

        self.fuzz(COUNT, once)

    def test_server_answers(self) -> None:
        async def ask(_: Reactor, stream: ByteStream) -> None:
            smart = SmartSocket(stream)
            await smart.request("host:devices-l")
            parse_devices((await smart.body()).decode("utf-8", "replace"))

        line = b"emulator-5554 device product:p model:m transport_id:1\nx\tdevice\n"
        self.hear([b"OKAY", b"%04x" % len(line), line, b"FAIL", b"0005hello", b"-001", b"0x10"], ask)

    def test_sync_answers(self) -> None:
        folder = os.path.abspath(self.mktemp())
        os.makedirs(folder)
        features = frozenset({"stat_v2", "ls_v2", "sendrecv_v2", "sendrecv_v2_zstd"})
        with open(f"{folder}/source", "wb") as file:
            file.write(b"content")
        dent = _sync.DENT_V1_FIELDS.pack(_sync.DENT_V1, 33188, 5, 1, 3) + b"abc"
        seeds = [
            _sync.STAT_V1.pack(_sync.LSTAT_V1, 33188, 5, 1),
            _sync.pack_stat_v2(_sync.STAT_V2, os.stat(folder)),
            dent,
            _sync.pack_stat_v2(_sync.DENT_V2, os.stat(folder)) + b"\3\0\0\0abc",
            _sync.DONE + bytes(16),
            _sync.DONE + bytes(72),
            _sync.header(_sync.DATA, 5) + b"hello" + _sync.header(_sync.DONE, 0),
            _sync.header(_sync.OKAY, 0),
            _sync.header(_sync.FAIL, 4) + b"text",
        ]

        def session(reactor: Reactor, stream: ByteStream, known: bool) -> SyncSession:
            return SyncSession(reactor, stream, features if known else frozenset())

        async def look(reactor: Reactor, stream: ByteStream) -> None:
            sync = session(reactor, stream, known=False)
            await sync.stat("/x")
            await sync.listdir("/x")

        async def look_v2(reactor: Reactor, stream: ByteStream) -> None:
            sync = session(reactor, stream, known=True)
            await sync.stat("/x", follow=False)
            for entry in await sync.listdir("/x"):
                assert "/" not in entry.name

        async def pull(reactor: Reactor, stream: ByteStream) -> None:
            await session(reactor, stream, known=True).receive("/x", f"{folder}/there", codec="zstd")

        async def pull_small(reactor: Reactor, stream: ByteStream) -> None:
            sync = session(reactor, stream, known=False)
            await sync.receive_small([("/x", f"{folder}/a"), ("/y", f"{folder}/b")], lambda _: None)

        async def push(reactor: Reactor, stream: ByteStream) -> None:
            sync = session(reactor, stream, known=True)
            await sync.send(f"{folder}/source", "/x")
            await sync.finish()

        self.hear(seeds, look, look_v2, pull, pull_small, push)
        self.assertLessEqual(set(os.listdir(folder)), {"source", "there", "a", "b"})
