"""Two transports joined in memory: handshakes, streams, flow control, close rules, failures."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import _wire as wire
from anbox_tw.adb._state import Connection, Role
from anbox_tw.adb.auth import Authority
from anbox_tw.adb.banner import Banner
from anbox_tw.adb.keys import AdbKey
from anbox_tw.adb.streams import AdbStream
from anbox_tw.adb.transport import DeviceTransport, HostTransport, StreamRefused, TransportClosed
from anbox_tw.errors import PeerError, TimedOut
from anbox_tw.testing.adb import Collector, MemoryLink

KEYS = [AdbKey.generate("one@test"), AdbKey.generate("two@test")]
CUTS: dict[str, Any] = {
    "whole": lambda data: [data],
    "bytes": lambda data: [data[index : index + 1] for index in range(len(data))],
    "sevens": lambda data: [data[index : index + 7] for index in range(0, len(data), 7)],
}


class Base(SynchronousTestCase):
    def join(self, cut: str = "whole", **options: Any) -> MemoryLink:
        self.clock = Clock()
        self.services: dict[str, Any] = {}
        self.asked: list[str] = []

        def serve(service: str, stream: AdbStream) -> Any:
            self.asked.append(service)
            return self.services.get(service)

        self.states: list[str] = []
        host_options = {"keys": KEYS[:1], **options.pop("host", {})}
        self.host = HostTransport(
            self.clock, on_state=lambda host: self.states.append(host.state), **host_options
        )
        self.device = DeviceTransport(self.clock, open_handler=serve, **options)
        self.link = MemoryLink(self.host, self.device, CUTS[cut], self.clock)
        return self.link


class HandshakeTests(Base):
    def test_open_device(self) -> None:
        for cut in CUTS:
            link = self.join(cut)
            online = self.host.when_online(10)
            link.pump()
            self.assertEqual(self.successResultOf(online).type, "device")
            self.assertEqual(self.host.state, "device")
            self.assertEqual(self.host.connection.version, wire.VERSION)
            self.assertEqual(self.host.connection.max_payload, wire.MAX_PAYLOAD)

    def test_signature_by_the_second_key(self) -> None:
        authority = Authority("refuse", keys=[KEYS[1].public])
        for cut in CUTS:
            link = self.join(cut, host={"keys": KEYS}, authority=authority)
            link.pump()
            self.assertTrue(self.host.is_online)
            self.assertEqual(self.device.peer_public_key, KEYS[1].public)
            self.assertEqual(self.states, ["authorizing", "authorizing", "device"])

    def test_unknown_key_is_refused(self) -> None:
        self.join(authority=Authority("refuse")).pump()
        self.assertEqual(self.host.state, "unauthorized")
        self.assertEqual(self.states, ["authorizing", "unauthorized"])

    def test_user_is_asked(self) -> None:
        answer: Deferred[bool] = Deferred()
        asked = []

        def ask(key: Any) -> Deferred[bool]:
            asked.append(key)
            return answer

        self.join(authority=Authority("ask", ask=ask)).pump()
        self.assertEqual(self.host.state, "unauthorized")
        self.assertEqual(asked, [KEYS[0].public])
        self.clock.advance(1000)
        answer.callback(True)
        self.link.pump()
        self.assertEqual(self.host.state, "device")

    def test_tls(self) -> None:
        for cut in ("whole", "sevens"):
            authority = Authority("refuse", keys=[KEYS[0].public])
            self.join(cut, authority=authority, tls_key=KEYS[1]).pump()
            self.assertEqual(self.host.state, "device")
            self.assertEqual(self.device.peer_public_key, KEYS[0].public)
            self.services["x"] = echo = Collector()
            opened = self.host.open_stream("x", Collector())
            self.link.pump()
            self.successResultOf(opened).write(b"secret" * 1000)
            self.link.pump()
            self.assertEqual(bytes(echo.data), b"secret" * 1000)
            self.assertNotIn(b"secret", b"".join(data for _, data in self.link.log))
            self.host.close()
            self.link.pump()
            self.assertIsNotNone(self.device.closed_because)

    def test_tls_with_an_unknown_key(self) -> None:
        self.join(authority=Authority("refuse"), tls_key=KEYS[1])
        online = self.host.when_online()
        self.link.pump()
        self.failureResultOf(online, TransportClosed)
        self.assertIsNotNone(self.device.closed_because)

    def test_old_device_has_checksums_and_small_payloads(self) -> None:
        old = Connection(
            Role.DEVICE, Banner("device"), version=wire.VERSION_MIN, max_payload=4096, verify_checksums=True
        )
        self.join(connection=old).pump()
        self.assertEqual(self.host.connection.max_payload, 4096)
        self.services["x"] = sink = Collector()
        opened = self.host.open_stream("x", Collector())
        self.link.pump()
        self.successResultOf(opened).write(bytes(range(256)) * 100)
        self.link.pump()
        self.assertEqual(bytes(sink.data), bytes(range(256)) * 100)
        self.assertLessEqual(max(sink.chunks), 4096)

    def test_host_that_says_nothing_is_dropped(self) -> None:
        self.join()
        self.link.transports[0].out.clear()
        self.clock.advance(61)
        self.link.pump()
        self.assertIsInstance(self.device.closed_because, TimedOut)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_when_online_times_out(self) -> None:
        self.join(authority=Authority("refuse"))
        online = self.host.when_online(5)
        self.link.pump()
        self.clock.advance(6)
        self.failureResultOf(online, TimedOut)
        self.host.abort()
        self.link.pump()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StreamTests(Base):
    features: tuple[str, ...] = ("shell_v2",)

    def open(self, service: str = "x", cut: str = "whole") -> tuple[AdbStream, Collector, Collector]:
        banner = Banner("device", features=self.features)
        self.join(cut, banner=banner, host={"banner": Banner("host", features=self.features)}).pump()
        far, near = Collector(), Collector()
        self.services[service] = far
        opened = self.host.open_stream(service, near)
        self.link.pump()
        return self.successResultOf(opened), near, far

    def test_data_flows_both_ways(self) -> None:
        for cut in CUTS:
            stream, near, far = self.open(cut=cut)
            self.assertEqual(self.asked, ["x"])
            stream.write(b"hello")
            far.transport.write(b"there")
            self.link.pump()
            self.assertEqual((bytes(far.data), bytes(near.data)), (b"hello", b"there"))

    def test_long_writes_are_cut_to_payloads(self) -> None:
        stream, _, far = self.open()
        data = bytes(range(251)) * 20000
        stream.write(data)
        if not self.host.connection.delayed_ack:
            self.assertEqual(stream.queued, len(data) - wire.MAX_PAYLOAD)
        self.link.pump()
        self.assertEqual(bytes(far.data), data)
        self.assertEqual(max(far.chunks), wire.MAX_PAYLOAD)
        self.assertEqual(stream.queued, 0)

    def test_small_writes_wait_together(self) -> None:
        stream, _, far = self.open()
        for index in range(100):
            stream.write(b"%03d" % index)
        self.link.pump()
        self.assertEqual(far.chunks, [3, 297])

    def test_refused(self) -> None:
        self.join().pump()
        opened = self.host.open_stream("nothing")
        self.link.pump()
        self.failureResultOf(opened, StreamRefused)
        self.assertEqual(self.device.connection.streams, {})

    def test_unanswered_open_times_out_and_the_late_answer_is_closed(self) -> None:
        self.join().pump()
        answer: Deferred[Any] = Deferred()
        self.services["slow"] = answer
        opened = self.host.open_stream("slow", timeout=3)
        self.link.pump()
        self.clock.advance(4)
        self.failureResultOf(opened, TimedOut)
        late = Collector()
        answer.callback(late)
        self.link.pump()
        self.assertEqual(self.successResultOf(late.finished), b"")
        self.assertEqual((self.host.connection.streams, self.device.connection.streams), ({}, {}))

    def test_close_flushes_first(self) -> None:
        stream, near, far = self.open()
        stream.write(b"z" * 3_000_000)
        stream.loseConnection()
        self.link.pump()
        self.assertEqual(len(self.successResultOf(far.finished)), 3_000_000)
        self.assertEqual(self.successResultOf(near.finished), b"")
        assert near.reason is not None
        self.assertIsNotNone(near.reason.check(ConnectionDone))

    def test_paused_stream_holds_the_acknowledgement_and_still_gets_all(self) -> None:
        stream, _, far = self.open()
        far.transport.pauseProducing()
        stream.write(b"a" * 5_000_000)
        stream.loseConnection()
        self.link.pump()
        self.assertEqual(far.data, b"")
        if not self.host.connection.delayed_ack:
            self.assertEqual(self.device.connection.unacked, wire.MAX_PAYLOAD)
        far.transport.resumeProducing()
        self.link.pump()
        self.assertEqual(len(self.successResultOf(far.finished)), 5_000_000)

    def test_data_held_when_the_peer_closes_is_delivered(self) -> None:
        stream, _, far = self.open()
        far.transport.pauseProducing()
        stream.write(b"last words")
        stream.loseConnection()
        self.link.pump()
        self.assertNoResult(far.finished)
        far.transport.resumeProducing()
        self.assertEqual(self.successResultOf(far.finished), b"last words")

    def test_producer_is_paused_and_resumed(self) -> None:
        stream, _, far = self.open()

        class Producer:
            log: list[str] = []

            def pauseProducing(self) -> None:
                self.log.append("pause")

            def resumeProducing(self) -> None:
                self.log.append("resume")

            def stopProducing(self) -> None:
                self.log.append("stop")

        producer = Producer()
        far.transport.pauseProducing()
        stream.registerProducer(producer, True)  # type: ignore[arg-type]
        while not producer.log:
            stream.write(b"x" * 1_000_000)
        self.assertEqual(producer.log, ["pause"])
        far.transport.resumeProducing()
        self.link.pump()
        self.assertEqual(producer.log, ["pause", "resume"])
        self.host.abort()
        self.link.pump()
        self.assertEqual(producer.log, ["pause", "resume", "stop"])

    def test_transport_loss_ends_all(self) -> None:
        _, near, far = self.open()
        pending = self.host.open_stream("y")
        closed = self.host.when_closed()
        self.link.lose()
        self.assertEqual(self.successResultOf(near.finished), b"")
        self.assertEqual(self.successResultOf(far.finished), b"")
        self.failureResultOf(pending, TransportClosed)
        self.successResultOf(closed)
        self.failureResultOf(self.host.open_stream("z"), TransportClosed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_garbage_closes_with_its_reason(self) -> None:
        self.open()
        self.device.dataReceived(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n")
        self.link.pump()
        self.assertIsInstance(self.device.closed_because, PeerError)

    def test_second_greeting_ends_the_streams(self) -> None:
        _, _, far = self.open()
        self.device.dataReceived(wire.encode_header(wire.CNXN, wire.VERSION, wire.MAX_PAYLOAD, 6) + b"host::")
        self.assertTrue(far.finished.called)
        self.assertTrue(self.device.is_online)


class DelayedAckStreamTests(StreamTests):
    features = ("shell_v2", "delayed_ack")

    def test_windows_are_used(self) -> None:
        stream, _, far = self.open()
        self.assertTrue(self.host.connection.delayed_ack)
        far.transport.pauseProducing()
        stream.write(b"a" * 40_000_000)
        self.link.pump()
        self.assertEqual(self.device.connection.unacked, 32 << 20)
        far.transport.resumeProducing()
        self.link.pump()
        self.assertEqual(len(far.data), 40_000_000)

    def test_small_writes_wait_together(self) -> None:
        """With a window nothing has to wait."""

    def test_producer_is_paused_and_resumed(self) -> None:
        """The window takes 32 MiB before anything waits; see ``test_windows_are_used``."""
