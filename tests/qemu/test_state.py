"""The adb handshake: vectors at every cut, and each state against each input."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.qemu._state import (
    MAX_EARLY_BYTES,
    Accepted,
    AdbHandshake,
    GuestData,
    HandshakeState,
    Started,
)
from anbox_tw.qemu.errors import HandshakeError
from tests.support import REPOSITORY

VECTORS: dict[str, Any] = json.loads((REPOSITORY / "protocols/qemu/vectors/adb_handshake.json").read_text())


def run(guest: bytes, grant_after: int | None, size: int) -> tuple[list[object], bytes, bytes]:
    """Feed in pieces of ``size``; events without data, what the guest was told, the stream."""
    handshake = AdbHandshake()
    told, stream = b"", b""
    events: list[object] = []

    def take(found: list[Accepted | Started | GuestData]) -> None:
        nonlocal stream
        for event in found:
            if isinstance(event, GuestData):
                stream += event.data
            else:
                events.append(event)

    border = len(guest) if grant_after is None else grant_after
    for part in (guest[:border], guest[border:]):
        for start in range(0, len(part), size):
            take(handshake.receive_data(part[start : start + size]))
        if grant_after is not None and not told:
            told = handshake.grant()
            take(handshake.receive_data(b""))
    return events, told, stream


class VectorTests(SynchronousTestCase):
    def test_good_at_every_cut(self) -> None:
        for vector in VECTORS["good"]:
            guest = bytes.fromhex(vector["guest"])
            for size in range(1, len(guest) + 1):
                events, told, stream = run(guest, vector["grant_after"], size)
                self.assertEqual(events, [Accepted(), Started()], vector["name"])
                self.assertEqual(told, b"ok")
                self.assertEqual(stream.hex(), vector["stream"], vector["name"])

    def test_bad_at_every_cut(self) -> None:
        for vector in VECTORS["bad"]:
            guest = bytes.fromhex(vector["guest"])
            for size in range(1, len(guest) + 1):
                with self.assertRaises(HandshakeError, msg=vector["name"]):
                    run(guest, vector["grant_after"], size)


class StateTests(SynchronousTestCase):
    def in_state(self, state: HandshakeState) -> AdbHandshake:
        handshake = AdbHandshake()
        steps = [
            (HandshakeState.WAITING, lambda: handshake.receive_data(b"accept")),
            (HandshakeState.START, handshake.grant),
            (HandshakeState.OPEN, lambda: handshake.receive_data(b"start")),
        ]
        if state is HandshakeState.CLOSED:
            handshake.refuse()
            return handshake
        for reached, step in steps:
            if handshake.state is state:
                break
            step()
            self.assertIs(handshake.state, reached)
        self.assertIs(handshake.state, state)
        return handshake

    def test_grant_is_for_waiting_alone_and_sets_the_state_first(self) -> None:
        for state in HandshakeState:
            handshake = self.in_state(state)
            if state is HandshakeState.WAITING:
                self.assertEqual(handshake.grant(), b"ok")
                self.assertIs(handshake.state, HandshakeState.START)
            else:
                with self.assertRaises(AssertionError):
                    handshake.grant()

    def test_refuse_tells_only_a_guest_that_waits(self) -> None:
        for state in HandshakeState:
            handshake = self.in_state(state)
            self.assertEqual(handshake.refuse(), b"ko" if state is HandshakeState.WAITING else b"")
            self.assertIs(handshake.state, HandshakeState.CLOSED)

    def test_each_word_in_each_state(self) -> None:
        allowed = {
            (HandshakeState.ACCEPT, b"accept"): [Accepted()],
            (HandshakeState.WAITING, b"start"): [],
            (HandshakeState.START, b"start"): [Started()],
            (HandshakeState.OPEN, b"start"): [GuestData(b"start")],
            (HandshakeState.OPEN, b"accept"): [GuestData(b"accept")],
            (HandshakeState.OPEN, b"\0"): [GuestData(b"\0")],
            (HandshakeState.CLOSED, b"start"): [],
            (HandshakeState.CLOSED, b"accept"): [],
            (HandshakeState.CLOSED, b"\0"): [],
        }
        for state in HandshakeState:
            for word in (b"accept", b"start", b"\0"):
                handshake = self.in_state(state)
                if (state, word) in allowed:
                    self.assertEqual(handshake.receive_data(word), allowed[state, word], (state, word))
                else:
                    with self.assertRaises(HandshakeError, msg=str((state, word))):
                        handshake.receive_data(word)
                    self.assertIs(handshake.state, HandshakeState.CLOSED)

    def test_what_comes_before_ok_is_bounded(self) -> None:
        handshake = self.in_state(HandshakeState.WAITING)
        handshake.receive_data(b"start" + bytes(MAX_EARLY_BYTES - 5))
        with self.assertRaises(HandshakeError):
            handshake.receive_data(b"x")

    def test_nothing_is_no_data(self) -> None:
        self.assertEqual(self.in_state(HandshakeState.OPEN).receive_data(b""), [])
