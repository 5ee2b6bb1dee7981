from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.rpc._framing import (
    HEADER_BYTES,
    INVOCATION,
    MAX_PAYLOAD_BYTES,
    OVERSIZE,
    OVERSIZE_HEAD_BYTES,
    RESPONSE,
    Frame,
    FrameReader,
    FrameTooBig,
    encode_event,
    encode_invocation,
    encode_response,
    frame,
    invocation_prefix,
    salvage_id,
)
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Invocation, Result
from tests.rpc.vectors import FRAMES, message_of

U32 = st.integers(0, 0xFFFFFFFF)
FRAME_LISTS = st.lists(
    st.tuples(st.sampled_from([INVOCATION, RESPONSE]), st.binary(max_size=300)), max_size=8
)
pure = settings(derandomize=True, deadline=None, max_examples=60)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[a:b] for a, b in zip(edges, edges[1:])]


def read(reader: FrameReader, chunks: list[bytes]) -> list[Frame]:
    return [one for chunk in chunks for one in reader.receive_data(chunk)]


class VectorTests(SynchronousTestCase):
    def test_our_encoders_give_the_golden_frames(self) -> None:
        for vector in FRAMES:
            message = message_of(vector).SerializeToString()
            self.assertEqual(message.hex(), vector["message_hex"], vector["name"])
            if vector["kind"] == "invocation":
                ours = encode_invocation(vector["id"], invocation_prefix(vector["method"]), message)
            elif vector["kind"] == "response":
                ours = encode_response(vector["id"], message)
            else:
                ours = encode_event(message)
            self.assertEqual(ours.hex(), vector["frame_hex"], vector["name"])

    def test_golden_frames_read_back(self) -> None:
        for vector in FRAMES:
            [(kind, payload)] = FrameReader().receive_data(bytes.fromhex(vector["frame_hex"]))
            if vector["kind"] == "invocation":
                self.assertEqual(kind, INVOCATION)
                invocation = Invocation.FromString(payload)
                self.assertEqual(
                    (invocation.id, invocation.method_name, invocation.protocol_version),
                    (vector["id"], vector["method"], 1),
                )
                body = invocation.parameters
            else:
                self.assertEqual(kind, RESPONSE)
                result = Result.FromString(payload)
                self.assertEqual(result.HasField("id"), vector["kind"] == "response")
                body = result.response if vector["kind"] == "response" else result.events[0]
            self.assertEqual(type(message_of(vector)).FromString(body), message_of(vector), vector["name"])

    def test_every_cut_gives_the_same_frames(self) -> None:
        stream = b"".join(bytes.fromhex(vector["frame_hex"]) for vector in FRAMES)
        whole = FrameReader().receive_data(stream)
        self.assertEqual(len(whole), len(FRAMES))
        self.assertEqual(read(FrameReader(), [bytes([byte]) for byte in stream]), whole)
        for place in range(len(stream)):
            self.assertEqual(read(FrameReader(), cut(stream, [place])), whole)
        rng = random.Random(7)
        for _ in range(200):
            places = [rng.randrange(len(stream)) for _ in range(rng.randrange(12))]
            self.assertEqual(read(FrameReader(), cut(stream, places)), whole)


class FrameReaderTests(SynchronousTestCase):
    @pure
    @given(FRAME_LISTS, st.lists(st.integers(0, 5000)))
    def test_what_was_framed_comes_out_at_any_cut(self, frames: list[Frame], places: list[int]) -> None:
        stream = b"".join(frame(kind, payload) for kind, payload in frames)
        reader = FrameReader()
        self.assertEqual(read(reader, cut(stream, places)), frames)
        self.assertFalse(reader.partial)

    @pure
    @given(FRAME_LISTS, st.lists(st.integers(0, 5000)), st.integers(1, 200))
    def test_an_oversize_frame_is_dropped_and_told_at_any_cut(
        self, frames: list[Frame], places: list[int], limit: int
    ) -> None:
        stream = b"".join(frame(kind, payload) for kind, payload in frames)
        expected = [
            (kind, payload) if len(payload) <= limit else (OVERSIZE + kind, payload[:OVERSIZE_HEAD_BYTES])
            for kind, payload in frames
        ]
        self.assertEqual(read(FrameReader(limit), cut(stream, places)), expected)

    @pure
    @given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
    def test_garbage_is_read_alike_at_any_cut(self, garbage: bytes, places: list[int]) -> None:
        whole = FrameReader(64)
        expected = whole.receive_data(garbage)
        pieces = FrameReader(64)
        self.assertEqual(read(pieces, cut(garbage, places)), expected)
        self.assertEqual(pieces.failure is None, whole.failure is None)
        self.assertEqual(pieces.partial, whole.partial)

    def test_an_unknown_type_is_told_with_its_header_alone(self) -> None:
        reader = FrameReader()
        frames = reader.receive_data(frame(INVOCATION, b"ok") + b"GET / HTTP/1.1\r\n")
        self.assertEqual(frames, [(INVOCATION, b"ok")])
        self.assertIn("type 32", str(reader.failure))
        self.assertEqual(reader.receive_data(frame(INVOCATION, b"no")), [])

    def test_a_long_frame_in_single_bytes_is_not_copied_each_time(self) -> None:
        reader = FrameReader()
        for byte in frame(RESPONSE, bytes(200_000))[:-1]:
            self.assertEqual(reader.receive_data(bytes([byte])), [])
        self.assertEqual(reader.receive_data(b"\0"), [(RESPONSE, bytes(200_000))])

    def test_the_largest_frame(self) -> None:
        payload = bytes(MAX_PAYLOAD_BYTES)
        data = frame(RESPONSE, payload)
        self.assertEqual(data[:HEADER_BYTES], b"\xff\xff\xff\x01")
        reader = FrameReader()
        self.assertEqual(read(reader, [data[:1000], data[1000:]]), [(RESPONSE, payload)])

    def test_one_byte_more_is_an_error(self) -> None:
        self.assertRaises(FrameTooBig, frame, RESPONSE, bytes(MAX_PAYLOAD_BYTES + 1))
        big = bytes(MAX_PAYLOAD_BYTES)
        self.assertRaises(FrameTooBig, encode_invocation, 0, invocation_prefix("m"), big)
        self.assertRaises(FrameTooBig, encode_response, 0, big)
        self.assertRaises(FrameTooBig, encode_event, big)

    def test_limit_must_fit_the_size_field(self) -> None:
        self.assertRaises(ValueError, FrameReader, 0)
        self.assertRaises(ValueError, FrameReader, MAX_PAYLOAD_BYTES + 1)


class EncoderTests(SynchronousTestCase):
    @pure
    @given(U32, st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.binary(max_size=400))
    def test_invocation_is_what_protobuf_gives(self, call_id: int, method: str, parameters: bytes) -> None:
        theirs = Invocation(id=call_id, method_name=method, parameters=parameters, protocol_version=1)
        ours = encode_invocation(call_id, invocation_prefix(method), parameters)
        self.assertEqual(ours, frame(INVOCATION, theirs.SerializeToString()))
        self.assertEqual(salvage_id(ours[HEADER_BYTES:]), call_id)

    @pure
    @given(U32, st.binary(max_size=400))
    def test_response_is_what_protobuf_gives(self, call_id: int, response: bytes) -> None:
        theirs = Result(id=call_id, response=response)
        self.assertEqual(encode_response(call_id, response), frame(RESPONSE, theirs.SerializeToString()))

    @pure
    @given(st.binary(max_size=400))
    def test_event_is_what_protobuf_gives(self, event: bytes) -> None:
        self.assertEqual(encode_event(event), frame(RESPONSE, Result(events=[event]).SerializeToString()))

    def test_an_id_that_is_none_is_not_salvaged(self) -> None:
        cases: list[Any] = [
            b"",
            b"\x08",
            b"\x12\x01",
            b"\x08\xff\xff",
            b"\x08\xff\xff\xff\xff\x7f",
            b"\x08" + b"\xff" * 9,
        ]
        for head in cases:
            self.assertIsNone(salvage_id(head), head)
