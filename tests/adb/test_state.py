"""The connection's state: every phase against every command, acknowledgement rules, limits, close rules."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import _events as ev
from anbox_tw.adb import _wire as wire
from anbox_tw.adb._state import HANDLERS, UNACKED_BURST, Connection, LocalProtocolError, Phase, Role
from anbox_tw.adb.banner import Banner

HOST = b"host::features=shell_v2"
DEVICE = b"device::features=shell_v2"
WINDOWED = b"host::features=shell_v2,delayed_ack"


def packet(command: int, arg0: int = 0, arg1: int = 0, payload: bytes = b"") -> bytes:
    return wire.encode_header(command, arg0, arg1, len(payload), wire.checksum(payload)) + payload


def greeting(text: bytes, version: int = wire.VERSION, size: int = wire.MAX_PAYLOAD) -> bytes:
    return packet(wire.CNXN, version, size, text)


def sent(connection: Connection) -> list[tuple[str, int, int, bytes]]:
    reader = wire.PacketReader(wire.MAX_PAYLOAD)
    reader.feed(b"".join(map(bytes, connection.data_to_send())))
    found = []
    while (one := reader.next_packet()) is not None:
        found.append((wire.command_name(one.command), one.arg0, one.arg1, bytes(one.payload)))
    return found


def feed(connection: Connection, *packets: bytes) -> list[ev.Event]:
    connection.receive_data(b"".join(packets))
    return list(connection.events())


def device(phase: Phase) -> Connection:
    connection = Connection(Role.DEVICE, Banner("device", features=("shell_v2", "delayed_ack")))
    if phase is not Phase.WAITING:
        feed(connection, greeting(HOST))
    if phase is Phase.CHALLENGED:
        connection.challenge(bytes(20))
    elif phase is Phase.TLS_OFFERED:
        connection.offer_tls()
    elif phase is Phase.TLS_HANDSHAKE:
        connection.offer_tls()
        feed(connection, packet(wire.STLS, wire.STLS_VERSION))
    elif phase is Phase.ONLINE:
        connection.accept()
    elif phase is Phase.CLOSED:
        connection.close()
    connection.data_to_send()
    assert connection.phase is phase
    return connection


def host(phase: Phase) -> Connection:
    connection = Connection(Role.HOST, Banner("host", features=("shell_v2", "delayed_ack")))
    connection.start()
    if phase in (Phase.AUTHORIZING, Phase.UNAUTHORIZED):
        feed(connection, packet(wire.AUTH, wire.AUTH_TOKEN, 0, bytes(20)))
        if phase is Phase.UNAUTHORIZED:
            connection.send_public_key(b"key")
    elif phase is Phase.TLS_HANDSHAKE:
        feed(connection, packet(wire.STLS, wire.STLS_VERSION))
    elif phase is Phase.ONLINE:
        feed(connection, greeting(DEVICE))
    elif phase is Phase.CLOSED:
        connection.close()
    connection.data_to_send()
    assert connection.phase is phase
    return connection


DEVICE_PHASES = (
    Phase.WAITING,
    Phase.GREETED,
    Phase.CHALLENGED,
    Phase.TLS_OFFERED,
    Phase.TLS_HANDSHAKE,
    Phase.ONLINE,
    Phase.CLOSED,
)
HOST_PHASES = (
    Phase.CONNECTING,
    Phase.AUTHORIZING,
    Phase.UNAUTHORIZED,
    Phase.TLS_HANDSHAKE,
    Phase.ONLINE,
    Phase.CLOSED,
)
MAKERS: list[tuple[Callable[[Phase], Connection], Phase]] = [
    *((device, phase) for phase in DEVICE_PHASES),
    *((host, phase) for phase in HOST_PHASES),
]
INPUTS = {
    wire.SYNC: packet(wire.SYNC, 1, 1),
    wire.CNXN: greeting(b"device::"),
    wire.AUTH: packet(wire.AUTH, wire.AUTH_TOKEN, 0, bytes(20)),
    wire.OPEN: packet(wire.OPEN, 7, 0, b"shell:\0"),
    wire.OKAY: packet(wire.OKAY, 7, 1),
    wire.CLSE: packet(wire.CLSE, 7, 1),
    wire.WRTE: packet(wire.WRTE, 7, 1, b"x"),
    wire.STLS: packet(wire.STLS, wire.STLS_VERSION),
    0x12345678: packet(0x12345678, 1, 2, b"unknown"),
}


class EveryPhaseTests(SynchronousTestCase):
    def test_what_is_not_in_the_table_changes_nothing(self) -> None:
        for (make, phase), command in itertools.product(MAKERS, INPUTS):
            connection = make(phase)
            if command in HANDLERS.get((connection.role, phase), {}):
                continue
            self.assertEqual(feed(connection, INPUTS[command]), [], (phase, hex(command)))
            self.assertEqual((connection.phase, sent(connection)), (phase, []))

    def test_what_is_in_the_table_is_answered(self) -> None:
        expected = {
            (Role.HOST, Phase.CONNECTING, wire.CNXN): (Phase.ONLINE, ev.Online, []),
            (Role.HOST, Phase.CONNECTING, wire.AUTH): (Phase.AUTHORIZING, ev.AuthTokenReceived, []),
            (Role.HOST, Phase.CONNECTING, wire.STLS): (Phase.TLS_HANDSHAKE, ev.TlsRequested, ["STLS"]),
            (Role.HOST, Phase.AUTHORIZING, wire.CNXN): (Phase.ONLINE, ev.Online, []),
            (Role.HOST, Phase.AUTHORIZING, wire.AUTH): (Phase.AUTHORIZING, ev.AuthTokenReceived, []),
            (Role.HOST, Phase.UNAUTHORIZED, wire.CNXN): (Phase.ONLINE, ev.Online, []),
            (Role.HOST, Phase.ONLINE, wire.CNXN): (Phase.ONLINE, ev.Online, []),
            (Role.HOST, Phase.ONLINE, wire.OPEN): (Phase.ONLINE, ev.OpenRequested, []),
            (Role.HOST, Phase.ONLINE, wire.OKAY): (Phase.ONLINE, None, ["CLSE"]),
            (Role.HOST, Phase.ONLINE, wire.WRTE): (Phase.ONLINE, None, []),
            (Role.HOST, Phase.ONLINE, wire.CLSE): (Phase.ONLINE, None, []),
            (Role.DEVICE, Phase.WAITING, wire.CNXN): (Phase.GREETED, ev.PeerGreeted, []),
            (Role.DEVICE, Phase.GREETED, wire.CNXN): (Phase.GREETED, ev.PeerGreeted, []),
            (Role.DEVICE, Phase.CHALLENGED, wire.CNXN): (Phase.GREETED, ev.PeerGreeted, []),
            (Role.DEVICE, Phase.CHALLENGED, wire.AUTH): (Phase.CHALLENGED, None, []),
            (Role.DEVICE, Phase.TLS_OFFERED, wire.CNXN): (Phase.GREETED, ev.PeerGreeted, []),
            (Role.DEVICE, Phase.TLS_OFFERED, wire.STLS): (Phase.TLS_HANDSHAKE, ev.TlsRequested, []),
            (Role.DEVICE, Phase.ONLINE, wire.CNXN): (Phase.GREETED, ev.PeerGreeted, []),
            (Role.DEVICE, Phase.ONLINE, wire.OPEN): (Phase.ONLINE, ev.OpenRequested, []),
            (Role.DEVICE, Phase.ONLINE, wire.OKAY): (Phase.ONLINE, None, ["CLSE"]),
            (Role.DEVICE, Phase.ONLINE, wire.WRTE): (Phase.ONLINE, None, []),
            (Role.DEVICE, Phase.ONLINE, wire.CLSE): (Phase.ONLINE, None, []),
        }
        table = {(role, phase, command) for (role, phase), row in HANDLERS.items() for command in row}
        self.assertEqual(set(expected), table)
        for make, phase in MAKERS:
            for command, data in INPUTS.items():
                connection = make(phase)
                if (connection.role, phase, command) not in expected:
                    continue
                new_phase, event, answers = expected[connection.role, phase, command]
                events = feed(connection, data)
                self.assertEqual(
                    [type(one) for one in events], [event] if event else [], (phase, hex(command))
                )
                self.assertEqual(connection.phase, new_phase)
                self.assertEqual([one[0] for one in sent(connection)], answers)

    def test_garbage_ends_every_phase_with_its_reason(self) -> None:
        for make, phase in MAKERS:
            connection = make(phase)
            events = feed(connection, b"x" * 24, greeting(HOST))
            if phase in (Phase.CLOSED, Phase.TLS_HANDSHAKE):
                self.assertEqual(events, [])
                continue
            (event,) = events
            assert isinstance(event, ev.ProtocolFailed)
            self.assertEqual(event.error.code, "ANBOX-A001")
            self.assertEqual(connection.phase, Phase.CLOSED)
            self.assertEqual(feed(connection, greeting(HOST)), [])

    def test_calls_in_the_wrong_phase_are_refused(self) -> None:
        calls: list[tuple[str, tuple[object, ...], set[tuple[Role, Phase]]]] = [
            ("accept", (), {(Role.DEVICE, Phase.GREETED), (Role.DEVICE, Phase.CHALLENGED)}),
            ("challenge", (bytes(20),), {(Role.DEVICE, Phase.GREETED), (Role.DEVICE, Phase.CHALLENGED)}),
            ("offer_tls", (), {(Role.DEVICE, Phase.GREETED)}),
            ("tls_established", (), {(Role.DEVICE, Phase.TLS_HANDSHAKE), (Role.HOST, Phase.TLS_HANDSHAKE)}),
            ("start", (), {(Role.HOST, Phase.CONNECTING)}),
            ("send_signature", (b"s",), {(Role.HOST, Phase.AUTHORIZING)}),
            ("send_public_key", (b"k",), {(Role.HOST, Phase.AUTHORIZING)}),
            ("open_stream", (b"x",), {(Role.HOST, Phase.ONLINE), (Role.DEVICE, Phase.ONLINE)}),
        ]
        for (make, phase), (name, arguments, allowed) in itertools.product(MAKERS, calls):
            connection = make(phase)
            if (connection.role, phase) in allowed:
                getattr(connection, name)(*arguments)
            else:
                self.assertRaises(LocalProtocolError, getattr(connection, name), *arguments)


class NegotiationTests(SynchronousTestCase):
    def test_lower_version_and_size_count(self) -> None:
        for theirs, size, version, agreed in (
            (0x01000000, 4096, 0x01000000, 4096),
            (0x01000001, 256 * 1024, 0x01000001, 256 * 1024),
            (0x02000000, 8 << 20, 0x01000001, 1 << 20),
        ):
            connection = Connection(Role.DEVICE, Banner("device"))
            feed(connection, greeting(HOST, theirs, size))
            connection.accept()
            (answer,) = sent(connection)
            self.assertEqual(
                (connection.version, connection.max_payload, answer[2]), (version, agreed, agreed)
            )

    def test_sums_until_both_can_do_without(self) -> None:
        connection = Connection(Role.HOST, Banner("host"))
        connection.start()
        header = connection.data_to_send()[0]
        self.assertNotEqual(bytes(header[16:20]), bytes(4))
        feed(connection, greeting(DEVICE))
        connection.open_stream(b"x")
        header = connection.data_to_send()[0]
        self.assertEqual(bytes(header[16:20]), bytes(4))
        feed(connection, greeting(DEVICE, 0x01000000, 4096))
        connection.open_stream(b"x")
        header = connection.data_to_send()[0]
        self.assertNotEqual(bytes(header[16:20]), bytes(4))

    def test_no_payload_at_all_is_refused(self) -> None:
        (event,) = feed(Connection(Role.DEVICE, Banner("device")), greeting(HOST, size=0))
        self.assertIsInstance(event, ev.ProtocolFailed)

    def test_unknown_peers_cannot_make_us_hold_much(self) -> None:
        connection = Connection(Role.DEVICE, Banner("device"))
        (event,) = feed(connection, wire.encode_header(wire.CNXN, wire.VERSION, 4096, 1 << 20))
        assert isinstance(event, ev.ProtocolFailed)
        self.assertEqual(event.error.code, "ANBOX-A002")

    def test_limits_of_our_own(self) -> None:
        self.assertRaises(LocalProtocolError, Connection, Role.HOST, Banner(), max_payload=100)
        long = Banner("device", model="m" * 5000)
        self.assertRaises(LocalProtocolError, Connection, Role.DEVICE, long)

    def test_a_signature_counts_once(self) -> None:
        connection = device(Phase.CHALLENGED)
        signature = packet(wire.AUTH, wire.AUTH_SIGNATURE, 0, b"s" * 256)
        self.assertEqual(len(feed(connection, signature, signature)), 1)

    def test_offered_key_is_text_up_to_nul(self) -> None:
        connection = device(Phase.CHALLENGED)
        (event,) = feed(connection, packet(wire.AUTH, wire.AUTH_RSAPUBLICKEY, 0, b"QAAA @vm\0junk"))
        self.assertEqual(event, ev.AuthKeyOffered("QAAA @vm"))

    def test_inside_tls_nothing_of_auth(self) -> None:
        connection = device(Phase.TLS_HANDSHAKE)
        connection.tls_established()
        self.assertRaises(LocalProtocolError, connection.challenge, bytes(20))
        self.assertRaises(LocalProtocolError, connection.offer_tls)
        connection.accept()
        connection = host(Phase.TLS_HANDSHAKE)
        connection.tls_established()
        self.assertRaises(LocalProtocolError, connection.start)
        feed(connection, packet(wire.STLS, wire.STLS_VERSION))
        self.assertEqual(connection.phase, Phase.CONNECTING)


class StreamRuleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.connection = device(Phase.ONLINE)
        (event,) = feed(self.connection, packet(wire.OPEN, 7, 0, b"shell:\0\0"))
        assert isinstance(event, ev.OpenRequested)
        self.assertEqual(event.service, b"shell:")
        self.stream = event.stream

    def accept(self) -> None:
        self.connection.accept_stream(self.stream)
        self.assertEqual(sent(self.connection), [("OKAY", self.stream, 7, b"")])

    def test_refusal(self) -> None:
        self.connection.refuse_stream(self.stream)
        self.assertEqual(sent(self.connection), [("CLSE", 0, 7, b"")])
        self.assertRaises(LocalProtocolError, self.connection.accept_stream, self.stream)

    def test_opens_that_make_no_sense(self) -> None:
        self.assertEqual(feed(self.connection, packet(wire.OPEN, 0, 0, b"x\0")), [])
        self.assertEqual(sent(self.connection), [])
        self.assertEqual(feed(self.connection, packet(wire.OPEN, 8, 0, b"\0")), [])
        self.assertEqual(feed(self.connection, packet(wire.OPEN, 9, 1000, b"x\0")), [])
        self.assertEqual(sent(self.connection), [("CLSE", 0, 8, b""), ("CLSE", 0, 9, b"")])

    def test_one_write_at_a_time(self) -> None:
        self.accept()
        self.assertEqual(self.connection.sendable(self.stream), wire.MAX_PAYLOAD)
        self.connection.send_data(self.stream, b"x")
        self.assertEqual(self.connection.sendable(self.stream), 0)
        self.assertRaises(LocalProtocolError, self.connection.send_data, self.stream, b"y")
        self.assertEqual(feed(self.connection, packet(wire.OKAY, 8, self.stream)), [])
        self.assertEqual(feed(self.connection, packet(wire.OKAY, 7, self.stream, b"abcd")), [])
        (event,) = feed(self.connection, packet(wire.OKAY, 7, self.stream))
        self.assertEqual(event, ev.StreamWritable(self.stream))
        self.connection.send_data(self.stream, b"y")

    def test_nothing_empty_is_ever_sent(self) -> None:
        self.accept()
        self.assertRaises(LocalProtocolError, self.connection.send_data, self.stream, b"")

    def test_empty_writes_are_acknowledged_and_not_reported(self) -> None:
        self.accept()
        self.assertEqual(feed(self.connection, packet(wire.WRTE, 7, self.stream)), [])
        self.assertEqual(sent(self.connection), [("OKAY", self.stream, 7, b"")])

    def test_data_before_the_answer_or_from_a_stranger_is_dropped(self) -> None:
        self.assertEqual(feed(self.connection, packet(wire.WRTE, 7, self.stream, b"x")), [])
        self.accept()
        self.assertEqual(feed(self.connection, packet(wire.WRTE, 8, self.stream, b"x")), [])
        self.assertEqual(feed(self.connection, packet(wire.WRTE, 7, 99, b"x")), [])
        self.assertEqual(sent(self.connection), [])

    def test_acknowledged_when_told_so(self) -> None:
        self.accept()
        (event,) = feed(self.connection, packet(wire.WRTE, 7, self.stream, b"abc"))
        self.assertEqual((event, sent(self.connection)), (ev.StreamData(self.stream, b"abc"), []))
        self.assertEqual(list(self.connection.unacknowledged()), [(self.stream, 3)])
        self.connection.acknowledge(self.stream, 3)
        self.assertEqual(sent(self.connection), [("OKAY", self.stream, 7, b"")])
        self.connection.acknowledge(self.stream, 3)
        self.assertEqual(sent(self.connection), [])

    def test_closes(self) -> None:
        self.accept()
        self.assertEqual(feed(self.connection, packet(wire.CLSE, 9, self.stream)), [])
        (event,) = feed(self.connection, packet(wire.CLSE, 7, self.stream))
        self.assertEqual(event, ev.StreamClosed(self.stream))
        self.assertEqual(sent(self.connection), [("CLSE", self.stream, 7, b"")])
        self.assertEqual(feed(self.connection, packet(wire.CLSE, 7, self.stream)), [])
        self.assertEqual(sent(self.connection), [])

    def test_close_with_id_zero_of_a_live_stream(self) -> None:
        self.accept()
        self.assertEqual(
            feed(self.connection, packet(wire.CLSE, 0, self.stream)), [ev.StreamClosed(self.stream)]
        )

    def test_late_acknowledgement_of_a_closed_stream_is_closed(self) -> None:
        self.accept()
        self.connection.close_stream(self.stream)
        self.connection.close_stream(self.stream)
        feed(self.connection, packet(wire.OKAY, 7, self.stream))
        self.assertEqual(
            sent(self.connection), [("CLSE", self.stream, 7, b""), ("CLSE", self.stream, 7, b"")]
        )

    def test_a_flood_without_acknowledgement_ends_the_connection(self) -> None:
        self.accept()
        write = packet(wire.WRTE, 7, self.stream, bytes(wire.MAX_PAYLOAD))
        for _ in range(UNACKED_BURST):
            self.assertEqual(len(feed(self.connection, write)), 1)
        closed, failed = feed(self.connection, write)
        self.assertIsInstance(closed, ev.StreamClosed)
        assert isinstance(failed, ev.ProtocolFailed)
        self.assertEqual(failed.error.code, "ANBOX-A005")

    def test_too_many_streams_are_refused(self) -> None:
        connection = Connection(Role.DEVICE, Banner("device"), max_streams=3)
        feed(connection, greeting(HOST))
        connection.accept()
        sent(connection)
        opens = [packet(wire.OPEN, index, 0, b"x\0") for index in range(1, 6)]
        self.assertEqual(len(feed(connection, *opens)), 3)
        self.assertEqual(sent(connection), [("CLSE", 0, 4, b""), ("CLSE", 0, 5, b"")])
        self.assertRaises(LocalProtocolError, connection.open_stream, b"x")

    def test_ids_wrap_and_are_never_zero_or_taken(self) -> None:
        self.connection._next_id = 0xFFFFFFFF
        self.assertEqual(self.connection.open_stream(b"a"), 0xFFFFFFFF)
        self.assertEqual(self.connection.open_stream(b"a"), 2)
        self.assertRaises(LocalProtocolError, self.connection.open_stream, b"x" * wire.MAX_PAYLOAD)

    def test_restart_ends_streams(self) -> None:
        self.accept()
        closed, greeted = feed(self.connection, greeting(HOST))
        assert isinstance(closed, ev.StreamClosed)
        self.assertEqual(closed.stream, self.stream)
        self.assertIsInstance(greeted, ev.PeerGreeted)
        self.assertEqual((self.connection.streams, self.connection.unacked), ({}, 0))


class WindowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.connection = Connection(Role.DEVICE, Banner("device", features=("delayed_ack",)), window=1000)
        feed(self.connection, greeting(WINDOWED))
        self.connection.accept()
        self.assertTrue(self.connection.delayed_ack)
        (event,) = feed(self.connection, packet(wire.OPEN, 7, 500, b"x\0"))
        assert isinstance(event, ev.OpenRequested)
        self.stream = event.stream
        sent(self.connection)
        self.connection.accept_stream(self.stream)

    def test_open_without_a_window_is_refused(self) -> None:
        sent(self.connection)
        self.assertEqual(feed(self.connection, packet(wire.OPEN, 8, 0, b"x\0")), [])
        self.assertEqual(sent(self.connection), [("CLSE", 0, 8, b"")])

    def test_windows_both_ways(self) -> None:
        self.assertEqual(sent(self.connection), [("OKAY", self.stream, 7, (1000).to_bytes(4, "little"))])
        self.connection.send_data(self.stream, bytes(400))
        self.connection.send_data(self.stream, bytes(400))
        self.assertEqual(self.connection.sendable(self.stream), 0)
        grant = packet(wire.OKAY, 7, self.stream, (300).to_bytes(4, "little"))
        self.assertEqual(feed(self.connection, grant), [])
        self.assertEqual(feed(self.connection, packet(wire.OKAY, 7, self.stream)), [])
        self.assertEqual(feed(self.connection, grant), [ev.StreamWritable(self.stream)])
        negative = packet(wire.OKAY, 7, self.stream, (-500).to_bytes(4, "little", signed=True))
        self.assertEqual(feed(self.connection, negative), [])
        self.assertEqual(self.connection.sendable(self.stream), 0)

    def test_acknowledgements_carry_what_was_consumed(self) -> None:
        sent(self.connection)
        feed(self.connection, packet(wire.WRTE, 7, self.stream, bytes(600)))
        self.connection.acknowledge(self.stream, 600)
        self.assertEqual(sent(self.connection), [("OKAY", self.stream, 7, (600).to_bytes(4, "little"))])

    def test_overrun_window_ends_the_connection(self) -> None:
        write = packet(wire.WRTE, 7, self.stream, bytes(wire.MAX_PAYLOAD))
        feed(self.connection, write)
        self.assertIsInstance(feed(self.connection, write)[-1], ev.ProtocolFailed)


class AnyCutTests(SynchronousTestCase):
    SCRIPT = (
        greeting(HOST)
        + packet(wire.OPEN, 7, 0, b"a\0")
        + packet(wire.WRTE, 7, 1, b"data" * 50)
        + packet(wire.OKAY, 7, 1)
        + packet(wire.CLSE, 7, 1)
        + packet(wire.OPEN, 8, 0, b"b\0")
        + greeting(b"host::")
    )

    def run_with(self, pieces: list[bytes]) -> tuple[list[str], bytes]:
        connection = Connection(Role.DEVICE, Banner("device"))
        events: list[str] = []
        out = b""
        for piece in pieces:
            connection.receive_data(piece)
            for event in connection.events():
                events.append(repr(event))
                if isinstance(event, ev.PeerGreeted):
                    connection.accept()
                elif isinstance(event, ev.OpenRequested):
                    connection.accept_stream(event.stream)
                elif isinstance(event, ev.StreamData):
                    connection.acknowledge(event.stream, len(event.data))
        out += b"".join(map(bytes, connection.data_to_send()))
        return [event.replace("bytearray(b", "").replace("')", "'") for event in events], out

    @settings(derandomize=True, deadline=None, max_examples=80)
    @given(st.lists(st.integers(0, 2000), max_size=10))
    def test_cuts_make_no_difference(self, cuts: list[int]) -> None:
        data = self.SCRIPT
        places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
        pieces = [data[one:other] for one, other in zip(places, places[1:], strict=False)]
        events, out = self.run_with(pieces)
        whole_events, whole_out = self.run_with([data])
        self.assertEqual((len(events), out), (len(whole_events), whole_out))
