"""The modem at the guest's end of the pipe, on a clock of the test's."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.device import Device, Refused
from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu.gsm import MAX_LATE, MAX_PENDING, GsmService
from anbox_tw.qemu.modem._at import (
    MAX_LINE_BYTES,
    AtDecoder,
    Command,
    Form,
    decode_string,
    encode_string,
    parameters,
    split_commands,
)
from anbox_tw.qemu.modem._nitz import local_zone
from anbox_tw.qemu.modem._pdu import Deliver, Part, StatusReport, Submit, parse_pdu, split_text
from tests.qemu.guests import Guest, ServiceCase
from tests.support import REPOSITORY

VECTORS = json.loads((REPOSITORY / "protocols/qemu/vectors/gsm.json").read_text())
FIXED = VECTORS["fixed"]


class GsmCase(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.make()

    def make(self) -> None:
        self.clock = Clock()
        self.device = Device(clock=self.clock)
        self.service = GsmService(self.device, lambda: FIXED["time"], lambda seconds: tuple(FIXED["zone"]))

    def connect(self) -> Guest:
        guest = Guest(self.service)
        self.addCleanup(guest.leave)
        return guest

    def say(self, guest: Guest, *lines: str) -> list[str]:
        """What comes back, in lines without their ends."""
        guest.feed("".join(f"{line}\r" for line in lines).encode("latin-1"))
        return self.lines(guest)

    def lines(self, guest: Guest) -> list[str]:
        return [line for line in re.split(r"[\r\n]+", guest.received().decode("latin-1")) if line]


class ExchangeTests(GsmCase):
    def test_vectors(self) -> None:
        verifyObject(IPipeService, self.service)
        for exchange in VECTORS["exchanges"]:
            self.make()
            guest = self.connect()
            for line in exchange["lines"]:
                self.assertEqual(self.exchange(guest, line), line, exchange["name"])

    def exchange(self, guest: Guest, line: list[str]) -> list[str]:
        """Send a line, and what the guest says behind prompts; returns all that was said."""
        said = [line[0]]
        guest.feed(line[0].encode() + b"\r")
        said += self.lines(guest)
        while said[-1] == "> " and len(said) < len(line):
            said.append(line[len(said)])
            guest.feed(said[-1].encode())
            said += self.lines(guest)
        return said

    def test_every_cut_gives_the_same(self) -> None:
        data = "".join(
            line[0] + "\r" + (line[2] if line[1] == "> " else "")
            for exchange in VECTORS["exchanges"]
            for line in exchange["lines"]
        ).encode()
        self.make()
        guest = self.connect()
        guest.feed(data)
        whole = guest.received()
        for size in (1, 2, 3, 7, 100):
            self.make()
            guest = self.connect()
            for at in range(0, len(data), size):
                guest.feed(data[at : at + size])
            self.assertEqual(guest.received(), whole)

    def test_shapes_of_lines(self) -> None:
        guest = self.connect()
        guest.feed(b"\r\n\nAT+CFUN?\r\nhello\rATE0\n")
        self.assertEqual(guest.received(), b"+CFUN: 1\rOK\rOK\r")
        guest.feed(b"ATE1\rAT\rATE0\rAT\r")
        self.assertEqual(guest.received(), b"OK\rAT\rOK\rATE0\rOK\rOK\r")
        guest.feed(b"AT+CMGS=5\r\n")
        self.assertEqual(guest.received(), b"> \r")
        self.device.calls.ring("1")
        guest.feed(b"\n00\r\n01\x1aAT\r")
        self.assertEqual(guest.received(), b"RING\r+CMS ERROR: INVALID SMS PDU\rOK\r")


class NetworkTests(GsmCase):
    def test_registration_is_told_as_wanted(self) -> None:
        one, two = self.connect(), self.connect()
        self.say(one, "AT+CREG=1", "AT+CGREG=0")
        self.device.phone.update(voice="searching", data="denied")
        self.assertEqual(one.received(), b"+CREG: 1,2\r")
        self.assertEqual(two.received(), b'+CREG: 2,2, "0003", "005b"\r+CGREG: 2,3,"0003","005b","0003"\r')
        self.device.phone.update(voice="searching")
        self.assertEqual(one.received(), b"")

    def test_what_a_connection_does_is_told_to_the_others(self) -> None:
        one, two = self.connect(), self.connect()
        self.assertEqual(self.say(one, "AT+COPS=1,0,TelKila"), ["OK"])
        self.assertIn(b'+CREG: 2,5, "0003", "005b"\r', two.received())
        self.assertEqual(self.say(one, "ATD1;"), ["OK"])
        self.assertEqual(two.received(), b"RING\r")

    def test_the_type_of_the_network_follows_its_speed(self) -> None:
        guest = self.connect()
        self.device.network.set_speed("edge")
        self.assertEqual(self.lines(guest), ['+CGREG: 2,1,"0003","005b","0002"'])
        self.device.phone.set_speed("lte")
        self.assertEqual(self.lines(guest), ['+CGREG: 2,1,"0003","005b","000e"', "+CTEC: 4"])

    def test_signal_profiles(self) -> None:
        guest = self.connect()
        self.device.phone.update(rssi=31, ber=3)
        self.assertIn("+CSQ: 31,3,85,130", self.say(guest, "AT+CSQ")[0])
        self.device.phone.update(signal_profile=4)
        self.assertEqual(self.say(guest, "AT+CSQ")[0], "+CSQ: 30,0,70,80,60,80,7,60,80,20,200,15,50")

    def test_cdma(self) -> None:
        guest = self.connect()
        self.device.phone.update(subscription=0)
        self.device.phone.update(prl_version=7)
        self.assertEqual(self.lines(guest), ["+CCSS: 0", "+WPRL: 7"])

    def test_pin(self) -> None:
        guest = self.connect()
        self.device.phone.lock_sim("1234")
        for line, answer in (
            ("AT+CPIN?", "+CPIN: SIM PIN"),
            ("AT+CPIN=1111", "+CME ERROR: BAD PIN"),
            ("AT+CPIN=1111", "+CME ERROR: BAD PIN"),
            ("AT+CPIN=1111", "+CME ERROR: BAD PIN"),
            ("AT+CPIN?", "+CPIN: SIM PUK"),
            ("AT+CPIN=1,1", "+CME ERROR: BAD PUK"),
            ("AT+CPIN=12345678,4321", "+CPIN: READY"),
        ):
            self.assertEqual(self.say(guest, line)[0], answer)
        self.device.phone.update(sim="absent")
        self.assertEqual(self.say(guest, "AT+CPIN?"), ["+CPIN: ABSENT", "OK"])
        self.assertEqual(self.say(guest, "AT+CPIN=1"), ["+CME ERROR: SIM ABSENT"])
        self.assertEqual(self.say(guest, "AT+CRSM=176,28433,0,0,1"), ["ERROR: BAD COMMAND"])


class CallTests(GsmCase):
    def test_a_call_out(self) -> None:
        guest = self.connect()
        self.assertEqual(self.say(guest, "ATD5551234;"), ["OK"])
        states = []
        for _ in range(3):
            states += [line[11] for line in self.say(guest, "AT+CLCC") if line != "OK"]
            self.clock.advance(1)
            states += [line for line in self.lines(guest)]
        self.assertEqual(states, ["2", "RING", "3", "RING", "0"])
        self.device.calls.cancel("5551234")
        self.assertEqual(self.lines(guest), ["RING"])
        self.assertEqual(self.say(guest, "AT+CLCC"), ["OK"])

    def test_a_call_in(self) -> None:
        guest = self.connect()
        self.device.calls.ring("+4912")
        self.assertEqual(self.lines(guest), ["RING"])
        self.assertEqual(self.say(guest, "AT+CLCC"), ['+CLCC: 1,1,4,0,0,"+4912",129', "OK"])
        self.assertEqual(self.say(guest, "ATA"), ["OK"])
        self.assertEqual(self.say(guest, "AT+CLCC")[0], '+CLCC: 1,1,0,0,0,"+4912",129')
        self.device.calls.ring("2")
        self.assertEqual(self.say(guest, "AT+CHLD=2"), ["RING", "OK"])
        self.assertEqual(self.say(guest, "AT+CHLD=3"), ["OK"])
        self.assertEqual([line[15] for line in self.say(guest, "AT+CLCC")[:2]], ["1", "1"])

    def test_a_radio_that_is_off_ends_calls(self) -> None:
        guest = self.connect()
        self.device.calls.ring("1")
        self.assertEqual(self.say(guest, "AT+CFUN=0", "AT+CLCC"), ["RING", "OK", "OK"])
        self.assertEqual(self.say(guest, "ATD1;"), ["ERROR"])
        self.assertRaises(Refused, self.device.calls.ring, "1")


class MessageTests(GsmCase):
    def delivered(self, guest: Guest) -> list[str]:
        """The texts of what came with +CMT."""
        found = []
        lines = self.lines(guest)
        for head, body in zip(lines, lines[1:], strict=False):
            if head == "+CMT: 0":
                pdu = parse_pdu(bytes.fromhex(body), to_network=False)
                assert isinstance(pdu, Deliver)
                found.append(pdu.part.text)
        return found

    def statuses(self) -> list[tuple[str, int]]:
        return [(m.status, m.parts) for m in self.device.messages.state.incoming]

    def test_the_bytes_of_a_message(self) -> None:
        guest = self.connect()
        message = self.device.messages.deliver_pdu("00aaff")
        self.assertEqual(guest.received(), b"+CMT: 0\r\n00AAFF\r\n")
        self.assertEqual(message.status, "delivered")

    def test_parts_and_acknowledgements(self) -> None:
        guest = self.connect()
        self.device.messages.deliver("+491", "x" * 200)
        self.device.messages.deliver("+491", "日")
        self.assertEqual(self.delivered(guest), ["x" * 153, "x" * 47, "日"])
        self.assertEqual(self.statuses(), [("delivered", 2), ("delivered", 1)])
        self.say(guest, "AT+CNMA=1")
        self.assertEqual(self.statuses(), [("delivered", 2), ("delivered", 1)])
        self.say(guest, "AT+CNMA=1", "AT+CNMA=2", "AT+CNMA=1")
        self.assertEqual(self.statuses(), [("acknowledged", 2), ("refused", 1)])

    def test_messages_wait_for_a_guest_that_wants_them(self) -> None:
        self.device.messages.deliver("1", "early")
        guest = self.connect()
        self.assertEqual(self.say(guest, "ATE0", "AT+CNMI=1,0"), ["OK", "OK"])
        self.device.messages.deliver("1", "later")
        self.assertEqual(self.statuses(), [("waiting", 1), ("waiting", 1)])
        guest.feed(b"AT+CNMI=1,2,2,1,1\r")
        self.assertTrue(guest.transport.value().startswith(b"OK\r+CMT: 0\r\n"))
        self.assertEqual(self.delivered(guest), ["early", "later"])
        plain = self.connect()
        self.device.messages.deliver("1", "third")
        self.assertEqual((self.delivered(guest), self.delivered(plain)), (["third"], []))

    def test_messages_wait_for_radio_and_card(self) -> None:
        guest = self.connect()
        self.say(guest, "AT+CFUN=0")
        self.device.messages.deliver("1", "a")
        self.assertEqual(self.lines(guest), [])
        self.device.phone.update(sim="absent")
        self.say(guest, "AT+CFUN=1")
        self.assertEqual(self.statuses(), [("waiting", 1)])
        self.device.phone.update(sim="ready")
        self.assertEqual(self.delivered(guest), ["a"])

    def test_the_longest_texts(self) -> None:
        guest = self.connect()
        for text in ("x" * (255 * 66), "{" * (255 * 66), "日" * (255 * 66), "😀" * (255 * 33)):
            self.device.messages.deliver("1", text)
            self.assertEqual("".join(self.delivered(guest)), text)
        self.assertEqual(self.statuses()[-1], ("delivered", 255))

    def test_too_many_are_refused(self) -> None:
        for _ in range(MAX_PENDING):
            self.device.messages.deliver("1", "x")
        self.assertEqual(self.device.messages.deliver("1", "x").status, "refused")

    def submit(self, guest: Guest, pdu: Submit) -> list[str]:
        text = pdu.encode().hex().upper()
        return self.say(guest, f"AT+CMGS={len(text) // 2 - 1}", text + "\x1a")

    def test_messages_of_the_guest(self) -> None:
        guest = self.connect()
        first, second = split_text("y" * 200, 3)
        self.assertEqual(self.submit(guest, Submit("+4917", second)), ["> ", "+CMGS: 0", "OK"])
        self.submit(guest, Submit("+4918", Part("h€llo", coding="gsm7")))
        self.submit(guest, Submit("+4917", first))
        self.assertEqual(
            [(m.number, m.text, m.parts) for m in self.device.messages.state.outgoing],
            [("+4918", "h€llo", 1), ("+4917", "y" * 200, 2)],
        )

    def test_parts_that_never_end_are_forgotten(self) -> None:
        guest = self.connect()
        for reference in range(256):
            self.submit(guest, Submit("1", Part("x", reference, 2, 1)))
        for reference in range(256):
            self.submit(guest, Submit("1", Part("x", reference, 2, 2)))
        self.assertLessEqual(len(self.device.messages.state.outgoing), 32)

    def test_a_report_is_given_when_it_was_asked_for(self) -> None:
        guest = self.connect()
        self.say(guest, "AT+CNMI=1,2,2,1,1")
        lines = self.submit(guest, Submit("123", Part("x"), reference=9, status_report=True))
        self.assertEqual(lines[:4], ["> ", "+CMGS: 0", "OK", "+CDS: 21"])
        report = parse_pdu(bytes.fromhex(lines[4]), to_network=False)
        assert isinstance(report, StatusReport)
        self.assertEqual((report.receiver, report.reference, report.status), ("123", 9, 0))

    def test_a_message_to_oneself_comes_back(self) -> None:
        guest = self.connect()
        for number in ("5554", "+15555215554"):
            guest.received()
            self.submit(guest, Submit(number, Part("me")))
        self.assertEqual([m.text for m in self.device.messages.state.incoming], ["me", "me"])

    def test_without_a_network_nothing_is_sent(self) -> None:
        guest = self.connect()
        self.say(guest, "AT+COPS=2")
        self.assertEqual(self.submit(guest, Submit("1", Part("x")))[1], "+CMS ERROR: 331")
        self.assertEqual(self.device.messages.state.outgoing, ())

    def test_a_guest_that_does_not_read(self) -> None:
        guest, other = self.connect(), self.connect()
        self.say(guest, "AT+CNMI=1,2,2,1,1")
        guest.stop_reading()
        for number in range(50):
            self.device.phone.update(area=number)
            self.device.messages.deliver("1", str(number))
        self.device.calls.ring("1")
        self.assertEqual(guest.received(), b"")
        self.assertEqual(self.statuses().count(("waiting", 1)), 50)
        guest.read_on()
        text = guest.received().decode()
        self.assertEqual(text.count("+CREG"), 1)
        self.assertIn('+CREG: 2,1, "0031", "005b"\r', text)
        self.assertEqual(text.count("RING"), 1)
        self.assertEqual(text.count("+CMT: 0"), 50)
        guest.stop_reading()
        for _ in range(MAX_LATE + 1):
            self.device.phone.reply_ussd("x")
        self.assertTrue(guest.closed)
        self.assertFalse(other.closed)


class UssdTests(GsmCase):
    def test_a_dialogue(self) -> None:
        guest = self.connect()
        asked: list[str] = []
        self.device.phone.observe(lambda c: asked.append(c.value) if c.kind == "ussd" else None)
        self.assertEqual(self.say(guest, 'AT+CUSD=1,"2A31303023",15'), ["OK"])
        self.assertEqual(self.say(guest, 'AT+CUSD=1,"2A31303023",15'), ["+CME ERROR: 30"])
        self.device.phone.reply_ussd("1: more", expect_reply=True)
        self.assertEqual(self.lines(guest), ['+CUSD: 1,"313A206D6F7265",15'])
        self.assertEqual(self.say(guest, 'AT+CSCS="GSM"', 'AT+CUSD=1,"1"'), ["OK", "OK"])
        self.device.phone.reply_ussd("done")
        self.assertEqual(self.lines(guest), ['+CUSD: 0,"done",15'])
        self.say(guest, 'AT+CSCS="UCS2"', 'AT+CUSD=1,"002A0031"')
        self.device.phone.reply_ussd("日")
        self.assertEqual(self.lines(guest), ['+CUSD: 0,"65E5",72'])
        self.assertEqual(asked, ["*100#", "1", "*1"])
        self.say(guest, 'AT+CUSD=1,"002A0031"')
        self.clock.advance(60)
        self.assertEqual(self.lines(guest), ["+CUSD: 5"])
        self.assertEqual(self.say(guest, 'AT+CUSD=1,"002A0031"', "AT+CUSD=2"), ["OK", "OK"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for line in ("AT+CUSD=3", 'AT+CUSD=1,""', 'AT+CUSD=1,"2A",999'):
            self.assertEqual(self.say(guest, line), ["ERROR"])
        self.assertEqual(
            self.say(guest, "AT+CUSD?", "AT+CUSD=?", "AT+CUSD=0"),
            ["+CUSD: 1", "OK", "+CUSD: (0-2)", "OK", "OK"],
        )


class AtTests(SynchronousTestCase):
    def test_commands_of_a_line(self) -> None:
        for line, expected in (
            ("AT", []),
            ("hello", None),
            ("ate0Q0V1", [Command("E", value="0"), Command("Q", value="0"), Command("V", value="1")]),
            ("ATS0=1", [Command("S0", Form.SET, "1")]),
            ("ATD*99***1#", [Command("D", value="*99***1#")]),
            ("ATD1;+CFUN?", [Command("D", value="1;+CFUN?")]),
            ('AT+A="x;y",1;+B?', [Command("+A", Form.SET, '"x;y",1'), Command("+B", Form.READ)]),
            ("AT+A=?;;+B", [Command("+A", Form.TEST), Command("+B")]),
            ("AT%CTZV=1", [Command("%CTZV", Form.SET, "1")]),
            ("AT?", [Command("")]),
        ):
            self.assertEqual(split_commands(line), expected, line)
        self.assertEqual(parameters('1, "a,b",,x'), ["1", "a,b", "", "x"])

    def test_strings(self) -> None:
        self.assertEqual(encode_string("a€", "HEX"), ("611B65", 15))
        self.assertEqual(decode_string("611B65", "HEX"), "a€")
        self.assertEqual(encode_string("日", "HEX"), ("65E5", 72))
        self.assertEqual(decode_string("65E5", "HEX", 72), "日")
        self.assertEqual(encode_string('a"日', "GSM"), ("a  ", 15))
        self.assertEqual(decode_string("*100#", "HEX"), "*100#")

    def test_the_hosts_zone(self) -> None:
        quarters, summer, name = local_zone(0)
        self.assertTrue(-56 <= quarters <= 56 and isinstance(summer, bool) and "/" in name)

    @given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
    def test_any_bytes_at_any_cut(self, data: bytes, cuts: list[int]) -> None:
        def fed(pieces: list[bytes]) -> tuple[Any, bytes]:
            device = Device()
            guest = Guest(GsmService(device, lambda: 0.0, lambda seconds: (0, False, "A/B")))
            for piece in pieces:
                guest.feed(piece)
            answer = guest.received()
            guest.leave()
            return device.as_dict(), answer

        edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        pieces = [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]
        assert fed(pieces)[1] == fed([data])[1]

    @given(st.text(st.sampled_from('ATDHSE+CMGSOP=?;,"01 x\r'), max_size=60))
    def test_any_line_is_answered(self, text: str) -> None:
        guest = Guest(GsmService(Device()))
        guest.feed(f"\rAT{text}".encode())
        guest.feed(b"\r\x1a\rAT+CFUN?\r")
        assert b"+CFUN: " in guest.received()
        guest.leave()


class GarbageTests(GsmCase):
    def test_a_line_without_an_end(self) -> None:
        bad, good = self.connect(), self.connect()
        for _ in range(MAX_LINE_BYTES // 64 + 1):
            bad.feed(b"A" * 64)
        self.assertTrue(bad.closed)
        self.assertEqual(self.say(good, "AT"), ["OK"])
        self.assertEqual(self.service.guests, 1)
        bad = self.connect()
        self.say(bad, "AT+CMGS=20")
        bad.feed(b"\r" * (MAX_LINE_BYTES + 1))
        self.assertTrue(bad.closed)

    def test_noise_costs_nothing(self) -> None:
        guest = self.connect()
        guest.feed(b"\xff\x00garbage\r\n" * 10_000)
        self.assertEqual(guest.received(), b"")
        self.assertEqual(self.say(guest, "AT"), ["OK"])

    def test_a_decoder_searches_each_byte_once(self) -> None:
        decoder = AtDecoder()
        for _ in range(MAX_LINE_BYTES):
            decoder.receive_data(b"x")
            self.assertIsNone(decoder.next_event())
        decoder.receive_data(b"\r")
        self.assertIsNotNone(decoder.next_event())
