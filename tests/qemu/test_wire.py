"""The identification, against vectors, at every cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.qemu._wire import (
    MAX_IDENTIFICATION_BYTES,
    Identified,
    PipeIdentifier,
    encode_identification,
    match_name,
)
from anbox_tw.qemu.errors import IdentificationError
from tests.support import REPOSITORY

VECTORS: dict[str, Any] = json.loads((REPOSITORY / "protocols/qemu/vectors/identification.json").read_text())


def feed(data: bytes, cuts: list[int]) -> tuple[Identified | None, int]:
    """Feed in pieces; what the identifier said, and how many bytes it had been given by then."""
    identifier = PipeIdentifier()
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        found = identifier.receive_data(data[start:cut])
        if found is not None:
            return found, cut
        start = cut
    return None, len(data)


class VectorTests(SynchronousTestCase):
    def test_good_whole_and_byte_by_byte(self) -> None:
        for vector in VECTORS["good"]:
            data = bytes.fromhex(vector["hex"])
            whole, _ = feed(data, [])
            self.assertEqual(whole, Identified(vector["text"], bytes.fromhex(vector["rest"])), vector["name"])
            single, taken = feed(data, list(range(len(data))))
            assert single is not None
            self.assertEqual((single.text, single.rest), (vector["text"], b""), vector["name"])
            self.assertEqual(data[taken:].hex(), vector["rest"], vector["name"])

    def test_bad_are_refused_no_later_than_said(self) -> None:
        for vector in VECTORS["bad"]:
            data = bytes.fromhex(vector["hex"])
            with self.assertRaises(IdentificationError, msg=vector["name"]):
                feed(data, [])
            with self.assertRaises(IdentificationError, msg=vector["name"]):
                feed(data[: vector["at"]], list(range(vector["at"])))

    def test_names_match_exactly_and_the_longest_first(self) -> None:
        for vector in VECTORS["good"]:
            expected = None if vector["service"] is None else (vector["service"], vector["argument"])
            self.assertEqual(match_name(vector["text"], VECTORS["registered"]), expected, vector["name"])


class LimitTests(SynchronousTestCase):
    def test_the_longest_name_fits(self) -> None:
        text = "n" * (MAX_IDENTIFICATION_BYTES - 6)
        data = b"pipe:" + text.encode() + b"\0"
        self.assertEqual(len(data), MAX_IDENTIFICATION_BYTES)
        self.assertEqual(feed(data + b"rest", [])[0], Identified(text, b"rest"))

    def test_one_byte_more_is_refused_at_the_limit(self) -> None:
        data = b"pipe:" + b"n" * (MAX_IDENTIFICATION_BYTES - 5)
        self.assertEqual(feed(data[:-1], list(range(255)))[0], None)
        for cuts in ([], [100], list(range(256))):
            with self.assertRaises(IdentificationError):
                feed(data, cuts)
        with self.assertRaises(IdentificationError):
            feed(data + b"\0", [])

    def test_a_flood_is_not_kept(self) -> None:
        identifier = PipeIdentifier()
        with self.assertRaises(IdentificationError):
            identifier.receive_data(b"pipe:" + b"x" * 10_000_000)
        self.assertLessEqual(len(identifier._buffer), MAX_IDENTIFICATION_BYTES)

    def test_the_encoder_keeps_the_limits(self) -> None:
        self.assertEqual(encode_identification("qemud:adb", "5555"), b"pipe:qemud:adb:5555\0")
        self.assertEqual(encode_identification("opengles"), b"pipe:opengles\0")
        for name in ("n" * 251, "a\0b"):
            with self.assertRaises(ValueError):
                encode_identification(name)


class PropertyTests(SynchronousTestCase):
    @settings(derandomize=True, deadline=None)
    @given(
        text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60),
        rest=st.binary(max_size=40),
        cuts=st.lists(st.integers(0, 300), max_size=8),
    )
    def test_what_is_encoded_is_identified_at_any_cut(self, text: str, rest: bytes, cuts: list[int]) -> None:
        data = encode_identification(text) + rest
        found, taken = feed(data, [min(cut, len(data)) for cut in cuts])
        assert found is not None
        self.assertEqual(found.text, text)
        self.assertEqual(found.rest + data[taken:], rest)

    @settings(derandomize=True, deadline=None)
    @given(data=st.binary(max_size=600), cuts=st.lists(st.integers(0, 600), max_size=8))
    def test_any_bytes_are_identified_or_refused_or_waited_for(self, data: bytes, cuts: list[int]) -> None:
        try:
            found, _ = feed(data, [min(cut, len(data)) for cut in cuts])
        except IdentificationError:
            return
        if found is None:
            self.assertLess(len(data), MAX_IDENTIFICATION_BYTES)
