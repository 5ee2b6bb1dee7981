"""The phone of the device model: calls against a table and a clock, SIM card, data contexts, USSD, messages."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import (
    BadValue,
    CallDirection,
    Calls,
    CallState,
    Change,
    DataContext,
    Device,
    Refused,
    Registration,
    SimStatus,
    UnknownName,
    UssdState,
)
from anbox_tw.device.calls import MAX_CALLS
from anbox_tw.device.messages import MAX_KEPT
from anbox_tw.device.phone import USSD_TIMEOUT_S


def shown(calls: Calls) -> str:
    """All calls in one line: id, state, whether in a conference."""
    return " ".join(f"{c.id}{c.state.value[0]}{'m' if c.multiparty else ''}" for c in calls)


class CallsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.device = Device(clock=self.clock)
        self.calls = self.device.calls
        self.told: list[Change] = []
        self.calls.observe(self.told.append)

    def tearDown(self) -> None:
        self.calls.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_dialled_call_rings_and_is_answered(self) -> None:
        call = self.calls.dial("5551234")
        self.assertEqual((call.direction, call.state), (CallDirection.OUTGOING, CallState.DIALING))
        self.clock.advance(0.99)
        self.assertEqual(shown(self.calls), "1d")
        self.clock.advance(0.01)
        self.assertEqual(self.calls.get("5551234").state, CallState.ALERTING)
        self.clock.advance(1)
        self.assertEqual(self.calls.get("5551234").state, CallState.ACTIVE)
        self.assertEqual(len(self.told), 3)

    def test_who_is_busy_or_never_answers(self) -> None:
        self.calls.update(answer_after=None)
        self.calls.dial("1")
        self.clock.advance(3600)
        self.assertEqual(self.calls.get("1").state, CallState.ALERTING)
        self.calls.busy("1")
        self.assertEqual(shown(self.calls), "")
        self.calls.ring("2")
        self.assertRaises(UnknownName, self.calls.busy, "2")
        self.calls.cancel("2")
        self.assertRaises(UnknownName, self.calls.cancel, "2")

    def test_the_network_answers_before_the_delay(self) -> None:
        self.calls.dial("1")
        self.calls.accept("1")
        self.clock.advance(10)
        self.assertEqual(shown(self.calls), "1a")

    def test_four_calls_and_the_smallest_free_id(self) -> None:
        for number in "1234":
            self.calls.ring(number)
        self.assertRaises(Refused, self.calls.ring, "5")
        self.assertRaises(Refused, self.calls.dial, "5")
        self.calls.cancel("2")
        self.assertEqual(self.calls.ring("6").id, 2)

    def test_numbers(self) -> None:
        for number in ("", "12a", "1 2", "*1", "1" * 33, "١"):
            self.assertRaises(BadValue, self.calls.ring, number)
        self.calls.ring("+49#1")
        self.assertRaises(BadValue, self.calls.dial, "")
        self.calls.dial("*21#")

    def test_a_phone_without_radio(self) -> None:
        self.device.phone.update(radio=False)
        self.assertRaises(Refused, self.calls.ring, "1")
        self.assertRaises(Refused, self.calls.dial, "1")

    def test_what_a_guest_can_do(self) -> None:
        for steps, expected in (
            ("ring answer", "1a"),
            ("ring hang_up", ""),
            ("ring answer ring answer", "1h 2a"),
            ("ring answer ring hang_up", "1a"),
            ("ring answer hang_up", ""),
            ("ring answer ring swap", "1h 2a"),
            ("ring answer ring swap swap", "1a 2h"),
            ("ring answer ring release_active", "2a"),
            ("ring answer ring swap release_active", "1a"),
            ("ring answer ring release_held", "1a"),
            ("ring answer ring swap release_held", "2a"),
            ("ring answer ring swap join", "1am 2am"),
            ("ring answer ring swap join ring swap", "1hm 2hm 3a"),
            ("ring answer ring swap join separate:1", "1am 2hm"),
            ("ring answer ring swap join release:1", "2a"),
            ("ring answer ring swap transfer", ""),
            ("ring answer transfer", "1a"),
            ("ring separate:1", "1i"),
            ("ring join", "1i"),
            ("ring release:7", "1i"),
            ("swap answer hang_up join release_held release_active", ""),
        ):
            device = Device()
            for number, step in enumerate(steps.split()):
                name, _, argument = step.partition(":")
                if name == "ring":
                    device.calls.ring(str(number))
                else:
                    getattr(device.calls, name)(*([int(argument)] if argument else []))
            self.assertEqual(shown(device.calls), expected, steps)

    def test_tones(self) -> None:
        self.calls.ring("1")
        self.calls.answer()
        self.calls.tone("#")
        self.assertEqual((self.told[-1].kind, self.told[-1].value), ("dtmf", (1, "#")))
        for tone in ("", "12", "E", "a"):
            self.assertRaises(BadValue, self.calls.tone, tone)

    def test_calls_are_not_set_as_text(self) -> None:
        self.assertRaises(BadValue, self.calls.update_from_text, {"calls": "1"})
        self.calls.update_from_text({"answer_after": "2.5", "alert_after": ""})
        self.assertEqual((self.calls.state.answer_after, self.calls.state.alert_after), (2.5, None))
        for wrong in (-1, True, "soon"):
            self.assertRaises(BadValue, self.calls.update, answer_after=wrong)

    @settings(max_examples=200)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("advance"), st.floats(0, 3)),
                st.tuples(
                    st.sampled_from(["ring", "dial", "accept", "hold", "busy", "cancel"]),
                    st.sampled_from("123456"),
                ),
                st.tuples(st.sampled_from(["release", "separate"]), st.integers(0, 5)),
                st.tuples(
                    st.sampled_from(
                        ["answer", "hang_up", "swap", "join", "transfer", "release_held", "release_active"]
                    ),
                    st.none(),
                ),
            ),
            max_size=30,
        )
    )
    def test_any_order_keeps_the_rules(self, steps: list[tuple[str, Any]]) -> None:
        clock = Clock()
        calls = Device(clock=clock).calls
        for name, argument in steps:
            before = calls.state.calls
            try:
                if name == "advance":
                    clock.advance(argument)
                elif argument is None:
                    getattr(calls, name)()
                else:
                    getattr(calls, name)(argument)
            except (Refused, UnknownName):
                assert calls.state.calls == before
            now = calls.state.calls
            assert len(now) <= MAX_CALLS
            assert len({call.id for call in now}) == len(now)
            assert sum(call.multiparty for call in now) != 1
            starting = [c for c in now if c.state in (CallState.DIALING, CallState.ALERTING)]
            assert len(clock.getDelayedCalls()) == len(starting)
        calls.stop()
        assert clock.getDelayedCalls() == []


class PhoneTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.device = Device(clock=self.clock)
        self.phone = self.device.phone

    def test_registration_decides_the_operator(self) -> None:
        def name() -> str | None:
            operator = self.phone.state.operator
            return operator.long if operator else None

        self.assertEqual(name(), "Android")
        self.phone.update(voice="roaming")
        self.assertEqual(name(), "TelKila")
        self.phone.update(voice=Registration.SEARCHING)
        self.assertEqual(name(), "TelKila")
        self.phone.update_from_text({"voice": "home"})
        self.assertEqual(name(), "Android")
        self.phone.update(selection=2)
        self.assertIsNone(name())
        self.phone.update(selection=0, radio=False)
        self.assertIsNone(name())
        self.assertRaises(BadValue, self.phone.update, voice="nowhere")
        self.assertEqual([r.number for r in Registration], [0, 1, 2, 3, 4, 5])

    def test_values_that_cannot_be(self) -> None:
        for wrong in (
            {"rssi": 32},
            {"rssi": -1},
            {"rssi": True},
            {"ber": 8},
            {"signal_profile": 5},
            {"number": "+1"},
            {"network_type": "6g"},
            {"contexts": "none"},
            {"operators": ["x"]},
            {"technology": "smoke"},
        ):
            self.assertRaises(BadValue, self.phone.update, **wrong)
        self.phone.update(rssi=99, ber=99)

    def test_the_type_of_network_follows_the_speed(self) -> None:
        for speed, kind in (("edge", "edge"), ("hscsd", "gprs"), ("full", "umts")):
            self.device.network.set_speed(speed)
            self.assertEqual(self.phone.state.network_type, kind)
        self.device.network.set_speed("100")
        self.assertEqual(self.phone.state.network_type, "umts")

    def test_pin_and_puk(self) -> None:
        self.phone.lock_sim("1234")
        self.assertFalse(self.phone.change_pin("1234", "1111"))
        self.assertFalse(self.phone.enter_pin("0000"))
        self.assertTrue(self.phone.enter_pin("1234"))
        self.assertEqual(self.phone.state.sim, SimStatus.READY)
        self.assertTrue(self.phone.change_pin("1234", "4321"))
        self.phone.lock_sim("4321")
        for _ in range(3):
            self.assertFalse(self.phone.enter_pin("9999"))
        self.assertEqual(self.phone.state.sim, SimStatus.PUK)
        self.assertFalse(self.phone.enter_puk("00000000", "1111"))
        self.assertTrue(self.phone.enter_puk("12345678", "1111"))
        self.assertEqual(self.phone.state.sim, SimStatus.READY)
        self.phone.update(sim="puk")
        for _ in range(6):
            self.phone.enter_puk("00000000", "1111")
        self.assertEqual(self.phone.state.sim, SimStatus.ABSENT)
        self.assertRaises(BadValue, self.phone.lock_sim, "12345")

    def test_contexts(self) -> None:
        self.phone.define_context(DataContext(2, "IP", "b"))
        self.phone.define_context(DataContext(1, "IP", "a"))
        self.phone.define_context(DataContext(2, "IPV6", "c"))
        self.assertTrue(self.phone.activate_context(1, False))
        self.assertFalse(self.phone.activate_context(4, True))
        self.assertEqual(
            [(c.id, c.apn, c.active) for c in self.phone.state.contexts], [(1, "a", False), (2, "c", True)]
        )
        self.phone.remove_context(1)
        self.phone.remove_context(1)
        self.assertEqual(len(self.phone.state.contexts), 1)
        for wrong in (DataContext(5, "IP", ""), DataContext(1, "X25", "")):
            self.assertRaises(BadValue, self.phone.define_context, wrong)

    def test_a_ussd_dialogue(self) -> None:
        told: list[tuple[str, Any]] = []
        self.phone.observe(
            lambda change: told.append((change.kind, change.value)) if change.kind != "state" else None
        )
        self.phone.dial_ussd("*100#")
        self.assertRaises(Refused, self.phone.dial_ussd, "*100#")
        self.phone.reply_ussd("1: credit", expect_reply=True)
        self.assertEqual(self.phone.state.ussd, UssdState.GUEST)
        self.phone.dial_ussd("1")
        self.phone.reply_ussd("12 EUR")
        self.assertEqual(self.phone.state.ussd, UssdState.IDLE)
        self.phone.dial_ussd("*101#")
        self.clock.advance(USSD_TIMEOUT_S)
        self.assertEqual(
            told,
            [
                ("ussd", "*100#"),
                ("ussd-reply", "1: credit"),
                ("ussd", "1"),
                ("ussd-reply", "12 EUR"),
                ("ussd", "*101#"),
                ("ussd-reply", None),
            ],
        )
        self.phone.dial_ussd("*102#")
        self.phone.cancel_ussd()
        self.assertEqual((self.phone.state.ussd, self.clock.getDelayedCalls()), (UssdState.IDLE, []))
        for wrong in ("", "x" * 183):
            self.assertRaises(BadValue, self.phone.reply_ussd, wrong)
        self.phone.update(radio=False)
        self.assertRaises(Refused, self.phone.dial_ussd, "*100#")


class MessagesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.messages = Device().messages
        self.told: list[Change] = []
        self.messages.observe(lambda c: self.told.append(c) if c.kind != "state" else None)

    def test_both_ways(self) -> None:
        message = self.messages.deliver("+491", "hello")
        self.assertEqual((message.id, message.status), (1, "waiting"))
        self.messages.mark(1, "acknowledged", 1)
        self.messages.sent("123", "hi", 2)
        self.messages.deliver_pdu("00a1")
        self.assertEqual(
            [(m.id, m.number, m.text, m.parts, m.status, m.pdu) for m in self.messages.state.incoming],
            [(1, "+491", "hello", 1, "acknowledged", False), (3, "", "00A1", 1, "waiting", True)],
        )
        self.assertEqual([m.text for m in self.messages.state.outgoing], ["hi"])
        self.assertEqual([c.kind for c in self.told], ["deliver", "sent", "deliver"])

    def test_what_cannot_be_sent(self) -> None:
        for number in ("", "+", "1+", "12a", "1#", "1" * 21):
            self.assertRaises(BadValue, self.messages.deliver, number, "x")
        for text in ("x" * (255 * 66 + 1), "😀" * (255 * 33 + 1), "\ud800"):
            self.assertRaises(BadValue, self.messages.deliver, "1", text)
        for pdu in ("", "0", "0g", "00" * 189):
            self.assertRaises(BadValue, self.messages.deliver_pdu, pdu)
        self.assertEqual(self.told, [])

    def test_old_ones_are_forgotten(self) -> None:
        for _ in range(MAX_KEPT + 5):
            self.messages.deliver("1", "x")
        self.assertEqual(len(self.messages.state.incoming), MAX_KEPT)
        self.assertIsNone(self.messages.get(1))
        self.messages.mark(1, "refused")
