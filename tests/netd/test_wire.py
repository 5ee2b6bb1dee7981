"""The binary layouts of dnsproxyd and fwmarkd against golden vectors, and cut anywhere."""

from __future__ import annotations

import json
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from anbox_tw.netd import _wire as wire
from anbox_tw.netd.networks import Fwmark, parse_net_id, parse_uid_ranges
from tests.support import REPOSITORY

VECTORS = json.loads((REPOSITORY / "protocols/netd/vectors/binary.json").read_text())


class WireTests(SynchronousTestCase):
    def setUp(self) -> None:
        if sys.byteorder != "little":
            raise SkipTest("the vectors are of a little-endian host")

    def test_getaddrinfo(self) -> None:
        for vector in VECTORS["getaddrinfo"]:
            entries, data = (
                [wire.AddressEntry(*each) for each in vector["entries"]],
                bytes.fromhex(vector["wire"]),
            )
            self.assertEqual(wire.encode_address_entries(entries), data)
            self.assertEqual(wire.decode_address_entries(data), (entries, len(data)))
            self.assertEqual(wire.decode_address_entries(data + b"more"), (entries, len(data)))
            for cut in range(len(data)):
                self.assertRaises(wire.WireError, wire.decode_address_entries, data[:cut])

    def test_the_older_layout(self) -> None:
        for vector in VECTORS["getaddrinfo_legacy"]:
            entries = [wire.AddressEntry(*each) for each in vector["entries"]]
            self.assertEqual(wire.encode_address_entries(entries, legacy=True).hex(), vector["wire"])

    def test_gethostby(self) -> None:
        for vector in VECTORS["gethostby"]:
            name, aliases, family, addresses = vector["entry"]
            entry, data = (
                wire.HostEntry(name, tuple(aliases), family, tuple(addresses)),
                bytes.fromhex(vector["wire"]),
            )
            self.assertEqual(wire.encode_host_entry(entry), data)
            self.assertEqual(wire.decode_host_entry(data), (entry, len(data)))
            for cut in range(len(data)):
                self.assertRaises(wire.WireError, wire.decode_host_entry, data[:cut])

    def test_fwmark(self) -> None:
        for vector in VECTORS["fwmark"]:
            request = wire.FwmarkRequest(*vector["request"])
            self.assertEqual(wire.encode_fwmark_request(request).hex(), vector["wire"])
            self.assertEqual(wire.decode_fwmark_request(bytes.fromhex(vector["wire"])), request)
        for fields, number in VECTORS["marks"]:
            self.assertEqual(Fwmark(*fields).to_int(), number)
            self.assertEqual(Fwmark.from_int(number), Fwmark(*fields))

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.binary(max_size=300))
    def test_garbage_is_refused_in_one_way(self, data: bytes) -> None:
        for decode in (wire.decode_address_entries, wire.decode_host_entry):
            try:
                decode(data)
            except wire.WireError:
                pass

    def test_what_is_too_much(self) -> None:
        for data in (
            b"\0\0\0\x01" + bytes(16) + b"\0\0\0\x05abcde" + bytes(8),
            b"\0\0\x10\0" + bytes(5000),
        ):
            self.assertRaises(wire.WireError, wire.decode_address_entries, b"\0\0\0\1" + data)
        self.assertRaises(wire.WireError, wire.decode_host_entry, b"\0\0\x10\0" + bytes(5000))
        self.assertRaises(
            wire.WireError, wire.decode_host_entry, bytes(8) + b"\0\0\0\x02\0\0\0\x07" + bytes(4)
        )
        one = b"\0\0\0\x02a\0"
        self.assertRaises(wire.WireError, wire.decode_host_entry, bytes(4) + one * 5000)
        addresses = (b"\0\0\0\x10" + bytes(16)) * 5000
        self.assertRaises(
            wire.WireError, wire.decode_host_entry, bytes(8) + b"\0\0\0\x02\0\0\0\x04" + addresses
        )


class NumbersTests(SynchronousTestCase):
    def test_net_ids(self) -> None:
        for text, number in (
            ("100", 100),
            ("0x64", 100),
            ("0144", 100),
            ("local", 99),
            ("oem1", 2),
            ("oem50", 51),
            ("oem51", 0),
            ("oem0", 0),
            ("", 0),
            ("x", 0),
            ("12abc", 12),
            ("-1", 0),
            ("99999999999999999999", 99999999999999999999 & 0xFFFFFFFF),
        ):
            self.assertEqual(parse_net_id(text), number, text)

    def test_uid_ranges(self) -> None:
        self.assertEqual(parse_uid_ranges(["5-9", "1"]), [(1, 1), (5, 9)])
        self.assertEqual(parse_uid_ranges([]), [])
        for wrong in ("9-5", "x", "1-", "-1", "4294967295", "99999999999"):
            self.assertIsNone(parse_uid_ranges([wrong]), wrong)
