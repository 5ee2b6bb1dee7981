"""Transports and links where something goes wrong: slow peers, floods, lies, cancellation, odd servers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import _wire as wire
from anbox_tw.adb import transport as transport_module
from anbox_tw.adb.auth import Authority
from anbox_tw.adb.banner import Banner
from anbox_tw.adb.client import (
    AdbClient,
    DeviceOffline,
    DeviceUnauthorized,
    MoreThanOneDevice,
    RemoteFailure,
    StreamEnded,
)
from anbox_tw.adb.client._errors import failure_for
from anbox_tw.adb.client.links import server_endpoint
from anbox_tw.adb.client.server import parse_devices, tcp_device_endpoint
from anbox_tw.adb.client.streams import ByteStream
from anbox_tw.adb.daemon.reverse import _ForwardFactory
from anbox_tw.adb.keys import AdbKey
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.transport import DeviceTransport, HostTransport, StreamRefused, TransportClosed
from anbox_tw.errors import AdbError, PeerError, TimedOut
from anbox_tw.testing.adb import Collector, MemoryLink
from tests.adb.real import DaemonTestCase, reactor

KEYS = [AdbKey.generate("one"), AdbKey.generate("two")]


def okay(text: str = "") -> bytes:
    return b"OKAY" + b"%04x" % len(text) + text.encode()


class Base(SynchronousTestCase):
    def join(self, handler: Any = None, host: dict[str, Any] | None = None, **options: Any) -> MemoryLink:
        self.clock = Clock()
        self.host = HostTransport(self.clock, **{"keys": KEYS[:1], **(host or {})})
        self.device = DeviceTransport(self.clock, open_handler=handler, **options)
        self.link = MemoryLink(self.host, self.device, clock=self.clock)
        return self.link


class TransportEdgeTests(Base):
    def test_guesses_of_a_signature_become_slow(self) -> None:
        self.patch(transport_module, "FREE_AUTH_FAILURES", 2)
        self.join(host={"keys": []}, authority=Authority("refuse")).pump()
        bad = wire.encode_header(wire.AUTH, wire.AUTH_SIGNATURE, 0, 256) + bytes(256)
        for _ in range(2):
            self.device.dataReceived(bad)
        challenges = len(self.link.transports[1].out)
        self.device.dataReceived(bad)
        self.assertEqual(len(self.link.transports[1].out), challenges)
        self.clock.advance(1.1)
        self.assertGreater(len(self.link.transports[1].out), challenges)
        self.link.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_question_is_forgotten_with_its_connection(self) -> None:
        cancelled: list[Any] = []
        question: Deferred[bool] = Deferred(cancelled.append)
        self.join(authority=Authority("ask", ask=lambda _: question)).pump()
        self.link.lose()
        self.assertEqual(len(cancelled), 1)

    def test_a_question_that_fails_lets_nobody_in(self) -> None:
        question: Deferred[bool] = Deferred()
        self.join(authority=Authority("ask", ask=lambda _: question)).pump()
        question.errback(RuntimeError("no screen"))
        self.link.pump()
        self.assertEqual(self.host.state, "unauthorized")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_only_real_tokens_are_signed(self) -> None:
        self.join(host={"keys": KEYS})
        self.link.transports[1].out.clear()
        self.host.dataReceived(wire.encode_header(wire.AUTH, wire.AUTH_TOKEN, 0, 40) + bytes(40))
        self.assertIsInstance(self.host._closing, PeerError)

    def test_handlers_that_fail_refuse(self) -> None:
        def handler(service: str, _stream: AdbStream) -> Any:
            if service == "raises":
                raise RuntimeError("broken")
            if service == "refuses":
                raise AdbError("no")
            failing: Deferred[Any] = Deferred()
            failing.errback(RuntimeError("later") if service == "later" else AdbError("no"))
            return failing

        self.join(handler).pump()
        for service in ("raises", "refuses", "later", "adberror"):
            opened = self.host.open_stream(service)
            self.link.pump()
            self.failureResultOf(opened, StreamRefused)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        self.assertEqual(self.device.connection.streams, {})

    def test_a_protocol_that_fails_ends_its_stream_alone(self) -> None:
        class Failing(Collector):
            def dataReceived(self, data: bytes) -> None:
                raise RuntimeError("broken")

        far = Failing()
        self.join(lambda *_: far).pump()
        near = Collector()
        opened = self.host.open_stream("x", near)
        self.link.pump()
        self.successResultOf(opened).write(b"data")
        self.link.pump()
        self.assertTrue(far.finished.called and near.finished.called)
        self.assertTrue(self.host.is_online)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_device_may_not_open_what_nobody_serves(self) -> None:
        self.join().pump()
        opened = self.device.open_stream("tcp:80")
        self.link.pump()
        self.failureResultOf(opened, StreamRefused)
        self.assertTrue(self.host.is_online)

    def test_who_asks_and_never_listens_is_cut_off(self) -> None:
        self.patch(transport_module, "MAX_BLOCKED_OUT", 1000)
        self.join().pump()
        self.device.pauseProducing()
        for index in range(100):
            self.device.dataReceived(wire.encode_header(wire.OPEN, 50 + index, 0, 2) + b"x\0")
        self.assertIsInstance(self.device._closing, PeerError)

    def test_blocked_transports_hold_their_streams(self) -> None:
        far = Collector()
        self.join(lambda *_: far).pump()
        opened = self.host.open_stream("x", Collector())
        self.link.pump()
        stream = self.successResultOf(opened)
        self.host.pauseProducing()
        stream.write(b"waits")
        self.link.pump()
        self.assertEqual(far.data, b"")
        self.host.resumeProducing()
        self.link.pump()
        self.assertEqual(far.data, b"waits")

    def test_reading_stops_when_too_much_waits(self) -> None:
        self.patch(transport_module, "MAX_BUFFERED_IN", 1000)
        far = Collector()
        self.join(lambda *_: far).pump()
        opened = self.host.open_stream("x", Collector())
        self.link.pump()
        far.transport.pauseProducing()
        self.successResultOf(opened).write(bytes(5000))
        self.link.pump()
        self.assertFalse(self.link.transports[1].reading)
        far.transport.resumeProducing()
        self.assertTrue(self.link.transports[1].reading)
        self.assertEqual(len(far.data), 5000)

    def test_reading_goes_on_when_the_full_stream_is_closed(self) -> None:
        self.patch(transport_module, "MAX_BUFFERED_IN", 1000)
        far = Collector()
        self.join(lambda *_: far).pump()
        opened = self.host.open_stream("x", Collector())
        self.link.pump()
        far.transport.pauseProducing()
        self.successResultOf(opened).write(bytes(5000))
        self.link.pump()
        far.transport.abortConnection()
        self.assertTrue(self.link.transports[1].reading)

    def test_waiters(self) -> None:
        self.join(authority=Authority("refuse"))
        online, closed = self.host.when_online(), self.host.when_closed()
        online.addErrback(lambda _: None)
        closed.addErrback(lambda _: None)
        online.cancel()
        closed.cancel()
        late = self.host.when_closed()
        self.link.lose()
        self.successResultOf(late)
        self.successResultOf(self.host.when_closed())
        self.failureResultOf(self.host.when_online(), TransportClosed)
        self.host.close()
        self.host.abort()

    def test_too_long_a_service_name(self) -> None:
        self.join().pump()
        self.failureResultOf(self.host.open_stream("x" * (1 << 20)), AdbError)

    def test_streams_without_a_protocol_keep_everything_for_it(self) -> None:
        far = Collector()
        self.join(lambda *_: far).pump()
        opened = self.host.open_stream("x")
        self.link.pump()
        far.transport.write(b"early")
        far.transport.loseConnection()
        self.link.pump()
        stream = self.successResultOf(opened)
        near = Collector()
        stream.start(near)
        self.assertEqual(self.successResultOf(near.finished), b"early")
        self.assertRaises(RuntimeError, stream.start, Collector())

    def test_a_writer_without_measure_is_cut_off(self) -> None:
        from anbox_tw.adb import streams

        self.patch(streams, "MAX_QUEUED", 3 << 20)
        far = Collector()
        self.join(lambda *_: far).pump()
        opened = self.host.open_stream("x", Collector())
        self.link.pump()
        far.transport.pauseProducing()
        stream = self.successResultOf(opened)
        for _ in range(6):
            stream.write(bytes(1 << 20))
        self.assertFalse(stream.connected)

    def test_state_words(self) -> None:
        self.join(banner=Banner("recovery"))
        self.assertEqual(self.host.state, "offline")
        self.link.pump()
        self.assertEqual(self.host.state, "recovery")
        self.host.close()
        self.assertEqual(self.host.state, "offline")
        self.link.pump()
        self.assertFalse(self.host.is_online)


class Scripted(Protocol):
    """A server that says what it is told to, whatever it is asked."""

    def __init__(self, answer: bytes, hold: bool) -> None:
        self._answer = answer
        self._hold = hold

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(self._answer)
        if not self._hold:
            self.transport.loseConnection()


class OddServerTests(DaemonTestCase):
    async def client(self, answer: bytes, *, hold: bool = False) -> AdbClient:
        factory = Factory()
        factory.buildProtocol = lambda _: Scripted(answer, hold)  # type: ignore[method-assign,assignment]
        listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(listening.stopListening)
        return AdbClient(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", listening.getHost().port))

    async def test_answers_that_are_none(self) -> None:
        for answer, kind in (
            (b"HTTP/1.1 400", PeerError),
            (b"OKAYzzzz", PeerError),
            (b"OKAY-001x", PeerError),
            (b"OKAY0x10" + bytes(16), PeerError),
            (b"OKAY00ffcut short", StreamEnded),
            (b"", StreamEnded),
            (b"FAIL0005short", RemoteFailure),
        ):
            client = await self.client(answer)
            await self.assertFailure(client.query("host:x"), kind)

    async def test_numbers_that_are_none(self) -> None:
        await self.assertFailure((await self.client(okay("version"))).version(), PeerError)
        for text in ("x", "1_0", "\u0662", "-1", "1" * 5000):
            device = (await self.client(b"OKAYOKAY" + okay(text)[4:])).device()
            await self.assertFailure(device.forward("tcp:0", "tcp:1"), PeerError)

    async def test_pairing_answers(self) -> None:
        for answer, error in (
            (okay("Successfully paired to x [guid=g]"), None),
            (okay("Failed: Unable to start pairing client."), RemoteFailure),
            (b"OKAYFAIL" + okay("Failed: Wrong password")[4:], RemoteFailure),
            (b"OKAYzzzz", PeerError),
        ):
            pairing = (await self.client(answer)).pair("localhost:1", "123456")
            if error is None:
                self.assertIn("guid=g", await pairing)
            else:
                await self.assertFailure(pairing, error)

    async def test_simple_requests(self) -> None:
        self.assertEqual(await (await self.client(okay("a,b"))).server_features(), {"a", "b"})
        self.assertEqual(await (await self.client(okay("done"))).reconnect(), "done")
        await (await self.client(b"OKAYOKAY")).remove_all_forwards()
        await (await self.client(b"OKAY")).kill()
        self.assertEqual(await (await self.client(okay("device"))).device(usb=True).state(), "device")
        self.assertEqual(await (await self.client(okay("x"))).device(local=True).serial(), "x")

    async def test_a_server_that_never_answers(self) -> None:
        client = await self.client(b"", hold=True)
        waiting = client.query("host:x")
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        await waiting
        stuck = ByteStream(reactor, 0.05)
        factory = Factory.forProtocol(lambda: stuck)
        await client.endpoint.connect(factory)
        await self.assertFailure(Deferred.fromCoroutine(stuck.read_exactly(1)), TimedOut)
        stuck.abort()
        await stuck.when_closed()
        stuck.write(b"after the end")
        await stuck.drain()


class ParsingTests(SynchronousTestCase):
    def test_where_the_server_is(self) -> None:
        for environment, port, host in (
            ({}, 5037, "127.0.0.1"),
            ({"ANDROID_ADB_SERVER_PORT": "6000"}, 6000, "127.0.0.1"),
            ({"ANDROID_ADB_SERVER_ADDRESS": "10.0.0.1"}, 5037, "10.0.0.1"),
            ({"ADB_SERVER_SOCKET": "tcp:localhost:7000"}, 7000, "127.0.0.1"),
            ({"ADB_SERVER_SOCKET": "tcp:8000"}, 8000, "127.0.0.1"),
        ):
            dialling = MemoryReactorClock()
            server_endpoint(dialling, environment).connect(Factory())
            self.assertEqual(dialling.tcpClients[0][:2], (host, port))
        self.assertIsInstance(
            server_endpoint(reactor, {"ADB_SERVER_SOCKET": "localfilesystem:/x"}), UNIXClientEndpoint
        )
        for bad in ({"ADB_SERVER_SOCKET": "vsock:1:2"}, {"ANDROID_ADB_SERVER_PORT": "x"}):
            self.assertRaises(AdbError, server_endpoint, reactor, bad)

    def test_addresses(self) -> None:
        for text, name in (("h", "h:5555"), ("h:6", "h:6"), ("[::1]:7", "[::1]:7"), ("[::1]", "[::1]:5555")):
            self.assertEqual(tcp_device_endpoint(reactor, text)[1], name)
        for bad in (":5", "h:x", "h:0", "h:99999"):
            self.assertRaises(AdbError, tcp_device_endpoint, reactor, bad)

    def test_device_lists(self) -> None:
        found = parse_devices("a\tdevice\nb                      offline usb:1-2 transport_id:7\n\nodd\n")
        self.assertEqual([(one.serial, one.state) for one in found], [("a", "device"), ("b", "offline")])
        self.assertEqual(found[1].properties, {"usb": "1-2", "transport_id": "7"})

    def test_failures_have_classes(self) -> None:
        for text, kind in (
            ("more than one device/emulator", MoreThanOneDevice),
            ("device offline (no transport)", DeviceOffline),
            ("device still authorizing", DeviceOffline),
            ("device unauthorized.\nThis adb server's", DeviceUnauthorized),
            ("something else", RemoteFailure),
        ):
            self.assertIs(type(failure_for(text)), kind)


class ReverseOrderTests(SynchronousTestCase):
    def test_the_host_is_asked_in_the_next_turn(self) -> None:
        # A stream of the same host that has connected here is acknowledged in this turn.
        asked: list[str] = []

        class Host:
            is_online = True

            def open_stream(self, name: str) -> Deferred[object]:
                asked.append(name)
                return Deferred()

        clock = Clock()
        factory = _ForwardFactory(clock, Host(), "tcp:1")  # type: ignore[arg-type]
        transport = StringTransport()
        factory.buildProtocol(None).makeConnection(transport)
        self.assertEqual((asked, transport.producerState), ([], "paused"))
        clock.advance(0)
        self.assertEqual(asked, ["tcp:1"])
