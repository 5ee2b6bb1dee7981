"""Numbers that a peer writes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb._numbers import MAX_PORT, decimal, listen_port
from anbox_tw.errors import AdbError


class NumberTests(SynchronousTestCase):
    @given(st.integers(0, 1 << 70), st.integers(0, 30))
    def test_digits(self, value: int, zeros: int) -> None:
        found = decimal("0" * zeros + str(value), (1 << 64) - 1)
        self.assertEqual(found, value if value < 1 << 64 else None)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        found = decimal(text, MAX_PORT)
        self.assertTrue(found is None or (text.isascii() and int(text) == found <= MAX_PORT))

    def test_what_int_would_take_or_fail_at(self) -> None:
        for text in ("", "-1", "+1", " 1", "1_0", "\u0661", "\u00b2", "9" * 5000):
            self.assertIsNone(decimal(text, MAX_PORT), text)
        self.assertEqual(decimal("0" * 5000 + "7", MAX_PORT), 7)

    def test_listeners(self) -> None:
        for text, port in (("0", 0), ("5555", 5555), ("localhost:7", 7), ("127.0.0.1:7", 7)):
            self.assertEqual(listen_port(text), port)
        for text, words in (
            ("99999", "bad port number '99999'"),
            ("-1", "bad port number '-1'"),
            ("localhost:70000", "bad port number '70000'"),
            ("x", "listening on specified hostname currently unsupported"),
            ("0.0.0.0:7", "listening on specified hostname currently unsupported"),
            ("", "listening on specified hostname currently unsupported"),
        ):
            with self.assertRaises(AdbError) as caught:
                listen_port(text)
            self.assertEqual(caught.exception.cause, words)
