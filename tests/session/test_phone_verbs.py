"""The phone's verbs, as the control socket runs them."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import BadValue, Device, UnknownName
from anbox_tw.errors import AnboxError
from anbox_tw.session.errors import BadRequest
from anbox_tw.session.hardware import Hardware, HardwareSettings
from anbox_tw.session.verbs import DeviceVerbs


class PhoneVerbsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.device = Device()
        self.told: list[tuple[str, str]] = []
        self.hardware = Hardware(
            self.clock,
            self.device,
            HardwareSettings(),
            lambda kind, name, detail: self.told.append((name, detail)),
        )
        self.verbs = DeviceVerbs(self.device)
        self.hardware.register(self.verbs)

    def run_verb(self, name: str, **arguments: Any) -> Any:
        return self.successResultOf(ensureDeferred(self.verbs.run(name, arguments)))

    def fails(self, kind: type[AnboxError], name: str, **arguments: Any) -> None:
        self.failureResultOf(ensureDeferred(self.verbs.run(name, arguments)), kind)

    def test_calls(self) -> None:
        call = self.run_verb("call.in", number="5551234")
        self.assertEqual(
            call,
            {"id": 1, "number": "5551234", "direction": "in", "state": "incoming", "multiparty": False},
        )
        self.assertEqual(self.run_verb("call.accept", number="5551234")["state"], "active")
        self.assertEqual(self.run_verb("call.hold", number="5551234")["state"], "held")
        self.assertEqual(len(self.run_verb("call.list")), 1)
        self.fails(UnknownName, "call.busy", number="5551234")
        self.run_verb("call.cancel", number="5551234")
        self.device.calls.dial("1")
        self.run_verb("call.busy", number="1")
        self.assertEqual(self.run_verb("call.list"), [])
        self.fails(BadValue, "call.in", number=5551234)
        self.fails(BadRequest, "call.in")
        self.assertIn(("calls.calls", "[]"), self.told)

    def test_messages(self) -> None:
        self.assertEqual(self.run_verb("sms.send", number="1", text="hi")["status"], "waiting")
        self.run_verb("sms.pdu", pdu="00ff")
        self.device.messages.sent("2", "ho")
        listing = self.run_verb("sms.list")
        self.assertEqual([m["text"] for m in listing["incoming"]], ["hi", "00FF"])
        self.assertEqual([(m["number"], m["status"]) for m in listing["outgoing"]], [("2", "sent")])
        self.assertEqual(
            [name for name, _ in self.told], ["messages.deliver", "messages.deliver", "messages.sent"]
        )
        self.fails(BadValue, "sms.send", number="x", text="hi")
        self.fails(BadValue, "sms.pdu", pdu="zz")

    def test_the_network(self) -> None:
        self.assertEqual(self.run_verb("gsm.voice", state="roaming")["operator"]["long"], "TelKila")
        self.assertEqual(self.run_verb("gsm.data", state="off")["data"], "unregistered")
        self.assertEqual(self.run_verb("gsm.voice", state="on")["voice"], "home")
        self.assertEqual(self.run_verb("gsm.signal", rssi=20)["ber"], 99)
        self.assertEqual(self.run_verb("gsm.signal", profile=4)["signal_profile"], 4)
        self.assertIsNone(self.run_verb("gsm.signal", rssi=1, ber=2)["signal_profile"])
        for wrong in ({}, {"rssi": 40}, {"profile": 1, "rssi": 1}, {"profile": 9}):
            self.fails(BadValue, "gsm.signal", **wrong)
        self.fails(BadValue, "gsm.voice", state="upside down")

    def test_ussd_and_sim(self) -> None:
        self.device.phone.dial_ussd("*100#")
        self.assertEqual(self.run_verb("ussd.status"), {"state": "network"})
        self.assertEqual(self.run_verb("ussd.reply", text="1: more", expect_reply=True), {"state": "guest"})
        self.assertIn(("phone.ussd", "*100#"), self.told)
        for verb, status in (("lock", "pin"), ("remove", "absent"), ("insert", "ready"), ("status", "ready")):
            self.assertEqual(self.run_verb(f"sim.{verb}"), {"status": status})
        self.fails(BadValue, "sim.lock", pin="12")

    def test_the_end_of_the_session_leaves_no_timer(self) -> None:
        self.device.calls.dial("1")
        self.device.phone.dial_ussd("*100#")
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)
        self.successResultOf(self.hardware.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.run_verb("call.list"), [])
