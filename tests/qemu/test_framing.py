"""qemud frames, against vectors, at every cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.qemu._framing import MAX_FRAME_BYTES, QemudDecoder, encode_frame
from anbox_tw.qemu.errors import FramingError
from tests.support import REPOSITORY

VECTORS: dict[str, Any] = json.loads((REPOSITORY / "protocols/qemu/vectors/framing.json").read_text())


def feed(data: bytes, cuts: list[int]) -> list[bytes]:
    decoder = QemudDecoder()
    frames = []
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        frames += decoder.receive_data(data[start:cut])
        start = cut
    return frames


class VectorTests(SynchronousTestCase):
    def test_good_whole_and_byte_by_byte(self) -> None:
        for vector in VECTORS["good"]:
            data = bytes.fromhex(vector["hex"])
            bodies = [bytes.fromhex(body) for body in vector["bodies"]]
            self.assertEqual(feed(data, []), bodies, vector["name"])
            self.assertEqual(feed(data, list(range(len(data)))), bodies, vector["name"])
            if vector["canonical"]:
                self.assertEqual(b"".join(map(encode_frame, bodies)), data, vector["name"])

    def test_bad_are_refused_no_later_than_said(self) -> None:
        for vector in VECTORS["bad"]:
            data = bytes.fromhex(vector["hex"])
            with self.assertRaises(FramingError, msg=vector["name"]):
                feed(data, [])
            with self.assertRaises(FramingError, msg=vector["name"]):
                feed(data[: vector["at"]], list(range(vector["at"])))


class LimitTests(SynchronousTestCase):
    def test_the_largest_frame(self) -> None:
        body = bytes(MAX_FRAME_BYTES)
        self.assertEqual(feed(encode_frame(body), [3, 1000, 65537]), [body])
        with self.assertRaises(ValueError):
            encode_frame(body + b"x")

    def test_a_smaller_limit_is_kept_before_anything_is_buffered_for_it(self) -> None:
        decoder = QemudDecoder(max_frame_bytes=10)
        self.assertEqual(decoder.receive_data(b"000a0123456789"), [b"0123456789"])
        with self.assertRaises(FramingError):
            decoder.receive_data(b"000b")

    def test_an_incomplete_frame_is_all_that_is_kept(self) -> None:
        decoder = QemudDecoder()
        decoder.receive_data(b"0001a" * 1000 + b"0003bc")
        self.assertEqual(decoder.buffered, 6)


class PropertyTests(SynchronousTestCase):
    @settings(derandomize=True, deadline=None)
    @given(
        bodies=st.lists(st.binary(max_size=300), max_size=6), cuts=st.lists(st.integers(0, 2000), max_size=8)
    )
    def test_frames_survive_any_cut(self, bodies: list[bytes], cuts: list[int]) -> None:
        data = b"".join(map(encode_frame, bodies))
        self.assertEqual(feed(data, [min(cut, len(data)) for cut in cuts]), bodies)

    @settings(derandomize=True, deadline=None)
    @given(data=st.binary(max_size=100))
    def test_any_bytes_give_frames_or_an_error(self, data: bytes) -> None:
        try:
            frames = feed(data, [])
        except FramingError:
            return
        self.assertTrue(data.lower().startswith(b"".join(map(encode_frame, frames)).lower()))
