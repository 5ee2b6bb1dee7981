"""The text protocol of libsysutils against golden vectors, at every cut, and with generated input."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.netd import _framing as framing
from tests.support import REPOSITORY

VECTORS = json.loads((REPOSITORY / "protocols/netd/vectors/framing.json").read_text())

TOKENS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    min_size=1,
    max_size=26,
)


def command_of(text: str) -> framing.Command:
    return framing.parse_command(text.encode(), with_sequence=True)


class ParseTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        for text, (sequence, arguments) in VECTORS["parse"]:
            with self.subTest(text[:60]):
                self.assertEqual(command_of(text), framing.Command(sequence, arguments))

    def test_refusals(self) -> None:
        for text, said, sequence in VECTORS["refuse"]:
            with self.subTest(text[:60]):
                error = self.assertRaises(framing.CommandRefused, command_of, text)
                self.assertEqual((error.text, error.sequence), (said, sequence))

    def test_without_sequence_numbers_the_first_token_is_the_command(self) -> None:
        self.assertEqual(
            framing.parse_command(b"gethostbyname 0 a.b 2", with_sequence=False),
            framing.Command(None, ["gethostbyname", "0", "a.b", "2"]),
        )

    def test_bytes_that_are_no_utf8_come_back_the_same(self) -> None:
        word = framing.parse_command(b"1 a \xff\xfe", with_sequence=True).arguments[1]
        self.assertEqual(framing.encode_reply(200, 1, word), b"200 1 \xff\xfe\0")

    @settings(derandomize=True, deadline=None)
    @given(TOKENS)
    def test_what_a_client_joins_the_daemon_splits(self, tokens: list[str]) -> None:
        tokens[0] = tokens[0].replace(" ", "_") or "x"
        self.assertEqual(command_of("9 " + framing.join_command(tokens)), framing.Command(9, tokens))

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.binary(max_size=1100))
    def test_garbage_is_a_command_or_a_refusal(self, data: bytes) -> None:
        try:
            command = framing.parse_command(data, with_sequence=True)
        except framing.CommandRefused:
            return
        self.assertTrue(1 <= len(command.arguments) <= framing.MAX_ARGUMENTS)

    @settings(derandomize=True, deadline=None)
    @given(st.text(max_size=40))
    def test_strtol_never_raises_and_fits_an_int(self, text: str) -> None:
        value = framing.strtol(text)
        self.assertTrue(value is None or -(2**31) <= value < 2**31)


class SplitterTests(SynchronousTestCase):
    stream = b"1 a\x002 b c\0\0" + b"3 " + b"x" * 5000 + b"\x004 d\0"

    def collect(self, pieces: list[bytes]) -> list[object]:
        splitter = framing.CommandSplitter()
        out: list[object] = []
        for piece in pieces:
            for found in splitter.feed(piece):
                out.append(
                    (found.text, found.sequence) if isinstance(found, framing.CommandRefused) else found
                )
        self.assertEqual(splitter.pending, 0)
        return out

    expected = [b"1 a", b"2 b c", b"", ("Command too large for buffer", 3), b"4 d"]

    def test_whole(self) -> None:
        self.assertEqual(self.collect([self.stream]), self.expected)

    def test_byte_by_byte(self) -> None:
        self.assertEqual(self.collect([bytes([b]) for b in self.stream]), self.expected)

    def test_at_random_cuts(self) -> None:
        chance = random.Random(7)
        for _ in range(50):
            cuts = sorted(chance.sample(range(1, len(self.stream)), 9))
            pieces = [self.stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(self.stream)])]
            self.assertEqual(self.collect(pieces), self.expected)

    def test_an_endless_command_is_refused_once_and_not_kept(self) -> None:
        splitter = framing.CommandSplitter()
        found: list[Any] = [each for _ in range(100) for each in splitter.feed(b"z" * 1000)]
        self.assertEqual([(f.text, f.sequence) for f in found], [("Command too large for buffer", None)])
        self.assertEqual(splitter.pending, 0)


class EncodeTests(SynchronousTestCase):
    def test_replies(self) -> None:
        for (code, sequence, text, error), wire in VECTORS["replies"]:
            self.assertEqual(framing.encode_reply(code, sequence, text, error), wire.encode())

    def test_binary_and_codes(self) -> None:
        for code, payload, wire in VECTORS["binary"]:
            self.assertEqual(framing.encode_binary(code, bytes.fromhex(payload)).hex(), wire)
        for code, wire in VECTORS["codes"]:
            self.assertEqual(framing.encode_code(code).hex(), wire)

    def test_quote(self) -> None:
        for text, wire in VECTORS["quote"]:
            self.assertEqual(framing.quote_argument(text), wire)

    def test_commands(self) -> None:
        for sequence, words, wire in VECTORS["commands"]:
            self.assertEqual(framing.encode_command(sequence, words), wire.encode())

    def test_what_cannot_be_said(self) -> None:
        self.assertRaises(ValueError, framing.encode_reply, 200, 1, "a\0b")
        for words in ([], [""], ["a b"], ["a", "\0"], ["a", "x" * 5000]):
            self.assertRaises(ValueError, framing.encode_command, 1, words)


class MessageTests(SynchronousTestCase):
    def test_vectors_at_every_cut(self) -> None:
        for wire, (code, sequence, text, arguments) in VECTORS["messages"]:
            data = wire.encode()
            for cut in range(len(data)):
                decoder = framing.MessageDecoder()
                found = decoder.feed(data[:cut]) + decoder.feed(data[cut:])
                self.assertEqual(found, [framing.Message(code, sequence, text, arguments)])

    def test_what_is_no_message_does_not_stop_the_next(self) -> None:
        for wire in VECTORS["bad_messages"]:
            found: list[Any] = framing.MessageDecoder().feed(wire.encode() + b"200 1 ok\0")
            self.assertIsInstance(found[0], framing.MessageError)
            self.assertEqual(found[1].text, "ok")
        found = framing.MessageDecoder(max_bytes=10).feed(b"200 1 " + b"x" * 20 + b"\0")
        self.assertIsInstance(found[0], framing.MessageError)

    def test_classes(self) -> None:
        kinds = {
            100: "is_continue",
            200: "is_ok",
            400: "is_server_error",
            500: "is_client_error",
            600: "is_event",
        }
        for code, kind in kinds.items():
            message = framing.Message(code, 1, "")
            self.assertEqual([k for k in kinds.values() if getattr(message, k)], [kind])

    @settings(derandomize=True, deadline=None)
    @given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
    def test_a_quoted_argument_reads_back(self, text: str) -> None:
        self.assertEqual(
            framing.unescape_arguments("12 " + framing.quote_argument(text) + " z"), ["12", text, "z"]
        )
