"""The codecs: golden bytes both ways, fed whole, byte by byte and at every cut; generated input."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import _jdwp, _shell
from anbox_tw.adb import _wire as wire
from anbox_tw.adb.banner import DEVICE_FEATURES, HOST_FEATURES, Banner
from anbox_tw.errors import PeerError
from tests.support import REPOSITORY

VECTORS = REPOSITORY / "protocols" / "adb" / "vectors"
SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def read(reader: wire.PacketReader, *pieces: bytes) -> list[wire.Packet]:
    found = []
    for piece in pieces:
        reader.feed(piece)
        while (packet := reader.next_packet()) is not None:
            found.append(packet)
    return found


def read_into(reader: wire.PacketReader, data: bytes, size: int) -> list[wire.Packet]:
    """As a socket reader does it, at most ``size`` bytes at a time."""
    found = []
    while data:
        buffer = reader.get_buffer()
        count = min(len(buffer), size, len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        reader.buffer_updated(count)
        while (packet := reader.next_packet()) is not None:
            found.append(packet)
    return found


class PacketTests(SynchronousTestCase):
    vectors = load("packets.json")["packets"]
    stream = b"".join(bytes.fromhex(item["header"] + item["payload"]) for item in vectors)

    def expected(self) -> list[wire.Packet]:
        return [
            wire.Packet(
                getattr(wire, item["command"]), item["arg0"], item["arg1"], bytes.fromhex(item["payload"])
            )
            for item in self.vectors
        ]

    def test_headers_are_encoded_as_adb_does(self) -> None:
        for item, packet in zip(self.vectors, self.expected(), strict=True):
            check = wire.checksum(packet.payload) if item["sum"] else 0
            header = wire.encode_header(packet.command, packet.arg0, packet.arg1, len(packet.payload), check)
            self.assertEqual(header.hex(), item["header"], item["name"])

    def test_decoded_whole_byte_by_byte_and_in_place(self) -> None:
        expected = self.expected()
        data = self.stream
        self.assertEqual(read(wire.PacketReader(), data), expected)
        self.assertEqual(read(wire.PacketReader(), *(data[i : i + 1] for i in range(len(data)))), expected)
        for size in (1, 7, 24, 25, 100, 65536):
            self.assertEqual(read_into(wire.PacketReader(), data, size), expected)

    def test_every_single_cut(self) -> None:
        expected = self.expected()
        for cut in range(len(self.stream)):
            self.assertEqual(read(wire.PacketReader(), self.stream[:cut], self.stream[cut:]), expected)

    @SETTINGS
    @given(st.lists(st.integers(0, 4000), max_size=12))
    def test_any_cuts(self, cuts: list[int]) -> None:
        places = sorted({0, len(self.stream), *(cut % len(self.stream) for cut in cuts)})
        pieces = [self.stream[one:other] for one, other in zip(places, places[1:], strict=False)]
        self.assertEqual(read(wire.PacketReader(), *pieces), self.expected())

    def test_large_payload_over_both_ways_in(self) -> None:
        payload = bytes(range(256)) * 4096
        data = wire.encode_header(wire.WRTE, 1, 2, len(payload)) + payload
        for size in (1 << 20, 65536, 4095):
            reader = wire.PacketReader(wire.MAX_PAYLOAD)
            packets = read_into(reader, data * 2, size) + read(reader, data[:100], data[100:])
            self.assertEqual([bytes(packet.payload) for packet in packets], [payload] * 3)

    def test_rest_is_handed_over_exactly(self) -> None:
        reader = wire.PacketReader()
        reader.feed(wire.encode_header(wire.STLS, wire.STLS_VERSION, 0) + b"\x16\x03\x01hello")
        packet = reader.next_packet()
        assert packet is not None
        self.assertEqual((packet.command, reader.take_rest()), (wire.STLS, b"\x16\x03\x01hello"))
        self.assertEqual(reader.take_rest(), b"")

    def test_malformed_headers(self) -> None:
        good = wire.encode_header(wire.WRTE, 1, 2, 3)
        for bad, code in (
            (b"GET / HTTP/1.1\r\nHost: there\r\n\r\n", "ANBOX-A001"),
            (bytes(24), "ANBOX-A001"),
            (good[:20] + b"\0\0\0\0", "ANBOX-A001"),
            (wire.encode_header(wire.WRTE, 1, 2, wire.MAX_PAYLOAD + 1), "ANBOX-A002"),
            (wire.encode_header(wire.WRTE, 1, 2, 0xFFFFFFFF), "ANBOX-A002"),
        ):
            reader = wire.PacketReader(wire.MAX_PAYLOAD)
            reader.feed(bad)
            error = self.assertRaises(PeerError, reader.next_packet)
            self.assertEqual(error.code, code)

    def test_sums_are_checked_on_request(self) -> None:
        data = wire.encode_header(wire.WRTE, 1, 2, 3, 0xDB) + b"hi\n"
        self.assertEqual(len(read(wire.PacketReader(verify=True), data)), 1)
        reader = wire.PacketReader(verify=True)
        reader.feed(data[:-1] + b"x")
        self.assertEqual(self.assertRaises(PeerError, reader.next_packet).code, "ANBOX-A003")
        self.assertEqual(len(read(wire.PacketReader(), data[:-1] + b"x")), 1)

    @SETTINGS
    @given(st.binary(max_size=2000))
    def test_sum(self, data: bytes) -> None:
        self.assertEqual(wire.checksum(data), sum(data) & 0xFFFFFFFF)

    def test_sum_of_much(self) -> None:
        self.assertEqual(wire.checksum(b"\xff" * 1_000_000), 255_000_000)

    def test_names(self) -> None:
        self.assertEqual(wire.command_name(wire.CNXN), "CNXN")
        self.assertEqual(wire.command_name(5), "0x00000005")


class BannerTests(SynchronousTestCase):
    def test_golden(self) -> None:
        payload = bytes.fromhex(load("packets.json")["packets"][1]["payload"])
        banner = Banner("device", "p", "m", "d", ("shell_v2", "cmd"))
        self.assertEqual(Banner.parse(payload), banner)
        self.assertEqual(banner.encode(), payload)
        host = bytes.fromhex(load("packets.json")["packets"][0]["payload"])
        self.assertEqual(Banner("host", features=("shell_v2", "cmd")).encode(), host)

    def test_odd_banners(self) -> None:
        for text, expected in (
            (b"", Banner()),
            (b"host::\0", Banner()),
            (b"device::\0", Banner("device")),
            (b"bootloader::", Banner("bootloader")),
            (b"teapot::features=a", Banner("host", features=("a",))),
            (b"device:serial:ro.product.name=x:y;features=cut", Banner("device", "x")),
            (b"device::a=b=c;;x;=;features=one,,two,one,", Banner("device", features=("one", "two"))),
            (b"device::ro.product.model=Model T;features=;", Banner("device", model="Model T")),
        ):
            self.assertEqual(Banner.parse(text), expected, text)

    def test_values_cannot_break_out(self) -> None:
        banner = Banner("device", model="a;features=evil:b=c")
        self.assertEqual(Banner.parse(banner.encode()).features, ())

    def test_feature_names_are_checked(self) -> None:
        for name in ("", "a,b", "a;b", "a:b", "a=b"):
            self.assertRaises(ValueError, Banner, "device", features=(name,))

    def test_ours_fit_every_peer(self) -> None:
        for features in (HOST_FEATURES, DEVICE_FEATURES):
            self.assertLess(len(Banner("device", "x" * 100, "y" * 100, "z" * 100, features).encode()), 4096)

    @SETTINGS
    @given(st.binary(max_size=200))
    def test_anything_can_be_parsed(self, data: bytes) -> None:
        banner = Banner.parse(data)
        self.assertEqual(Banner.parse(banner.encode()).features, banner.features)


class ShellPacketTests(SynchronousTestCase):
    def test_golden(self) -> None:
        for item in load("shell.json")["streams"]:
            data = bytes.fromhex(item["hex"])
            expected = [(kind, bytes.fromhex(payload)) for kind, payload in item["packets"]]
            self.assertEqual(_shell.ShellReader().feed(data), expected, item["name"])
            reader = _shell.ShellReader()
            joined: list[tuple[int, bytes]] = []
            for index in range(len(data)):
                for kind, piece in reader.feed(data[index : index + 1]):
                    if joined and kind < 3 and joined[-1][0] == kind:
                        joined[-1] = (kind, joined[-1][1] + bytes(piece))
                    else:
                        joined.append((kind, bytes(piece)))
            self.assertEqual(joined, expected, item["name"])

    def test_hostile_lengths_cost_nothing(self) -> None:
        self.assertEqual(_shell.ShellReader().feed(struct.pack("<BI", 0, 0xFFFFFFFF) + b"x"), [(0, b"x")])
        self.assertRaises(PeerError, _shell.ShellReader().feed, struct.pack("<BI", 5, 0xFFFFFFFF))
        self.assertRaises(PeerError, _shell.ShellReader().feed, struct.pack("<BI", 200, 5000))

    def test_window_size(self) -> None:
        data = _shell.encode_window_size(24, 80, 640, 480)
        self.assertEqual(data, b"\x05\x0e\0\0\x0024x80,640x480\0")
        self.assertEqual(_shell.parse_window_size(data[5:]), (24, 80, 640, 480))
        for bad in (b"", b"24x80", b"24,80", b"axb,cxd\0", b"-1x2,3x4", b"99999x1,1x1"):
            self.assertIsNone(_shell.parse_window_size(bad))


class JdwpTests(SynchronousTestCase):
    def test_golden(self) -> None:
        for item in load("jdwp.json")["hellos"]:
            info = _jdwp.parse_hello(bytes.fromhex(item["hex"]))
            self.assertEqual((info.pid, info.debuggable), (item["pid"], item["debuggable"]), item["name"])
            self.assertEqual(info.attach_byte.hex(), item["byte"])
            for name in ("architecture", "process_name", "uid"):
                if name in item:
                    self.assertEqual(getattr(info, name), item[name])

    def test_round_trip(self) -> None:
        info = _jdwp.ProcessInfo(77, True, True, "x86_64", 10, "a.b", ("c", "d"), True, 10077)
        self.assertEqual(_jdwp.parse_hello(info.encode()), info)
        self.assertEqual(_jdwp.encode_app_processes([]), b"")
        self.assertEqual(_jdwp.encode_app_processes([_jdwp.ProcessInfo(5)]), b"\x0a\x04\x08\x05\x10\x01")

    @SETTINGS
    @given(st.binary(max_size=64))
    def test_anything(self, data: bytes) -> None:
        try:
            info = _jdwp.parse_hello(data)
        except PeerError:
            return
        self.assertGreater(info.pid, 0)
