"""GSM 7 bit and the PDUs of short messages: known PDUs, every cut, and anything that goes in comes out."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.qemu.modem._gsm7 import decode_septets, encode_septets, pack, unpack
from anbox_tw.qemu.modem._pdu import Deliver, Part, PduError, StatusReport, Submit, parse_pdu, split_text
from tests.support import REPOSITORY

VECTORS = json.loads((REPOSITORY / "protocols/qemu/vectors/sms.json").read_text())

texts = st.text(max_size=400)  # no lone surrogates
gsm_texts = st.text(st.sampled_from("@£$¥èé\nabcXYZ019^{}\\[~]|€ ÄÖÑÜ§"), max_size=400)


class SmsTests(SynchronousTestCase):
    def test_known_deliveries(self) -> None:
        for vector in VECTORS["deliver"]:
            found = parse_pdu(bytes.fromhex(vector["pdu"]), to_network=False)
            assert isinstance(found, Deliver)
            self.assertEqual(
                (found.sender, found.part.text, found.time, found.zone, found.more, found.service_centre),
                tuple(vector[name] for name in ("sender", "text", "time", "zone", "more", "service_centre")),
                vector["source"],
            )

    def test_known_submissions(self) -> None:
        for vector in VECTORS["submit"]:
            data = bytes.fromhex(vector["pdu"])
            found = parse_pdu(data, to_network=True)
            assert isinstance(found, Submit)
            self.assertEqual(
                (found.receiver, found.part.text, found.reference, found.status_report, found.validity),
                tuple(
                    vector[name] for name in ("receiver", "text", "reference", "status_report", "validity")
                ),
                vector["source"],
            )
            self.assertEqual(found.encode(), data)

    def test_what_we_make(self) -> None:
        for vector in VECTORS["encoded"]:
            if vector["kind"] == "deliver":
                part = split_text(vector["text"], 1)[0]
                made = Deliver(vector["sender"], part, vector["time"], vector["zone"]).encode()
            else:
                made = StatusReport(
                    vector["receiver"], vector["reference"], vector["time"], vector["time"]
                ).encode()
            self.assertEqual(made, bytes.fromhex(vector["pdu"]), made.hex().upper())

    def test_cut_or_broken_pdus_are_errors(self) -> None:
        for vector in VECTORS["deliver"] + VECTORS["submit"]:
            data = bytes.fromhex(vector["pdu"])
            for size in range(len(data)):
                with self.assertRaises(PduError):
                    parse_pdu(data[:size], to_network="receiver" in vector)
        for text in VECTORS["broken"]:
            for to_network in (False, True):
                with self.assertRaises(PduError, msg=text):
                    parse_pdu(bytes.fromhex(text), to_network=to_network)

    def test_the_alphabet_is_whole(self) -> None:
        text = decode_septets(bytes(code for code in range(128) if code != 0x1B))
        self.assertEqual(len(set(text)), 127)
        codes = encode_septets(text)
        assert codes is not None
        self.assertEqual([code for (code,) in codes], [c for c in range(128) if c != 0x1B])
        self.assertEqual(decode_septets(b"\x1b\x65\x1b\x1b\x1b"), "€  ")
        self.assertIsNone(encode_septets("日"))

    def test_sizes_of_parts(self) -> None:
        for text, sizes in (
            ("x" * 160, [160]),
            ("x" * 161, [153, 8]),
            ("{" * 80, [80]),
            ("{" * 81, [76, 5]),
            ("日" * 70, [70]),
            ("日" * 71, [67, 4]),
            ("😀" * 35, [35]),
            ("😀" * 36, [33, 3]),
            ("", [0]),
        ):
            self.assertEqual([len(part.text) for part in split_text(text, 9)], sizes, text[:3])
        self.assertRaises(ValueError, split_text, "x" * (255 * 153 + 1), 1)
        self.assertEqual(len(split_text("x" * 255 * 153, 1)), 255)

    @given(texts | gsm_texts, st.integers(0, 255))
    def test_a_text_comes_through_in_its_parts(self, text: str, reference: int) -> None:
        parts = split_text(text, reference)
        found = []
        for part in parts:
            data = Deliver("+4912345", part, 1_000_000_000, -5).encode()
            assert len(data) <= 1 + 1 + 12 + 2 + 7 + 1 + 140
            read = parse_pdu(data, to_network=False)
            assert isinstance(read, Deliver)
            assert read.part == part
            assert (read.time, read.zone) == (1_000_000_000, -5)
            found.append(read.part.text)
            submitted = Submit("+4912345", part, reference=reference, status_report=True).encode()
            again = parse_pdu(submitted, to_network=True)
            assert isinstance(again, Submit)
            assert (again.part, again.reference, again.status_report) == (part, reference, True)
        assert "".join(found) == text

    @given(st.binary(max_size=200), st.booleans())
    def test_any_bytes_are_read_or_refused(self, data: bytes, to_network: bool) -> None:
        try:
            parse_pdu(data, to_network=to_network)
        except PduError:
            pass

    @given(st.binary(max_size=160).map(lambda data: bytes(octet & 0x7F for octet in data)), st.integers(0, 6))
    def test_packing(self, septets: bytes, fill: int) -> None:
        assert unpack(pack(septets, fill), len(septets), fill) == septets

    def test_wide_references_and_other_elements(self) -> None:
        head = bytes.fromhex("0041000481214300080C")
        data = head + bytes.fromhex("0908040102020124011A") + "h".encode("utf-16-be")
        found = parse_pdu(data, to_network=True)
        assert isinstance(found, Submit)
        self.assertEqual(found.part, Part("h", 0x0102, 2, 1, "ucs2"))

    def test_coding_schemes(self) -> None:
        for scheme, coding in (
            (0x00, "gsm7"), (0x04, "8bit"), (0x08, "ucs2"), (0x0C, "gsm7"), (0x11, "gsm7"), (0x19, "ucs2"), (0x48, "ucs2"),
            (0x90, "gsm7"), (0xC8, "gsm7"), (0xD0, "gsm7"), (0xE0, "ucs2"), (0xF0, "gsm7"), (0xF6, "8bit"),
        ):  # fmt: skip
            found = parse_pdu(
                bytes([0, 1, 0, 4, 0x81, 0x21, 0x43, 0, scheme, 2, 0x41, 0x61]), to_network=True
            )
            assert isinstance(found, Submit)
            self.assertEqual(found.part.coding, coding, hex(scheme))
        for scheme in (0x20, 0x60):
            with self.assertRaises(PduError):
                parse_pdu(bytes([0, 1, 0, 4, 0x81, 0x21, 0x43, 0, scheme, 2, 0x41, 0x61]), to_network=True)

    def test_validity_periods(self) -> None:
        for minutes in (5, 720, 750, 1440, 2880, 43_200, 50_400, 635_040):
            found = parse_pdu(Submit("1", Part("x"), validity=minutes).encode(), to_network=True)
            assert isinstance(found, Submit)
            self.assertEqual(found.validity, minutes)
        for first in (0x09, 0x19):  # enhanced, absolute
            pdu = bytes([0, first, 0, 4, 0x81, 0x21, 0x43, 0, 0, *range(7), 1, 0x41])
            found = parse_pdu(pdu, to_network=True)
            assert isinstance(found, Submit)
            self.assertEqual((found.validity, found.part.text), (None, "A"))

    def test_what_cannot_be_made(self) -> None:
        for number in ("", "1" * 21, "a name too long"):
            self.assertRaises(ValueError, Submit(number, Part("x")).encode)
        self.assertRaises(ValueError, Submit("1", Part("日")).encode)

    def test_a_time_that_is_none_does_not_cost_the_text(self) -> None:
        pdu = Deliver("1", Part("x"), 1_000_000_000).encode()
        at = pdu.index(bytes([0, 0])) + 2
        found = parse_pdu(pdu[:at] + b"\xff" * 7 + pdu[at + 7 :], to_network=False)
        assert isinstance(found, Deliver)
        self.assertEqual((found.time, found.part.text), (0.0, "x"))
