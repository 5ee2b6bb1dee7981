"""The wire format of /dev/input against bytes that a C program wrote."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import BadValue, InputDevice, InputEvent
from anbox_tw.device.evdev import (
    EVENT_BYTES,
    INFO_BYTES,
    DeviceInfo,
    EventDecoder,
    encode_events,
    info_for,
)
from anbox_tw.device.event_codes import EVENT_CODES, EVENT_TYPES, code_number, type_number
from tests.support import REPOSITORY

VECTORS: dict[str, Any] = json.loads((REPOSITORY / "protocols/input/vectors/devices.json").read_text())

events = st.builds(
    InputEvent,
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(-0x8000_0000, 0x7FFF_FFFF),
)


class VectorTests(SynchronousTestCase):
    def test_info_of_each_device(self) -> None:
        for vector in VECTORS["info"]:
            device = InputDevice[vector["device"].upper()]
            info = info_for(device, vector["width"], vector["height"])
            self.assertEqual(info.encode().hex(), vector["hex"], vector["device"])
            self.assertEqual(DeviceInfo.decode(bytes.fromhex(vector["hex"])), info)
        self.assertEqual(len(VECTORS["info"]), len(InputDevice))

    def test_batches(self) -> None:
        for vector in VECTORS["batches"]:
            batch = [InputEvent(*numbers) for numbers in vector["events"]]
            data = encode_events(batch, vector["nanoseconds"])
            self.assertEqual(data.hex(), vector["hex"], vector["name"])
            self.assertEqual(len(data), EVENT_BYTES * len(batch))

    def test_decoder_at_every_cut(self) -> None:
        data = bytes.fromhex(VECTORS["info"][2]["hex"] + "".join(v["hex"] for v in VECTORS["batches"]))
        whole = EventDecoder()
        expected = whole.receive_data(data)
        self.assertEqual(
            [stamped.event for stamped in expected],
            [InputEvent(*numbers) for vector in VECTORS["batches"] for numbers in vector["events"]],
        )
        self.assertEqual(expected[0].microseconds, 12345_678901)
        self.assertEqual(whole.info, info_for(InputDevice.TOUCH, 1024, 768))
        for cut in range(len(data)):
            decoder = EventDecoder()
            self.assertEqual([*decoder.receive_data(data[:cut]), *decoder.receive_data(data[cut:])], expected)
        slowly = EventDecoder()
        self.assertEqual(
            [e for n in range(len(data)) for e in slowly.receive_data(data[n : n + 1])], expected
        )


class CodecTests(SynchronousTestCase):
    @given(st.lists(events, max_size=20), st.integers(0, 2**63))
    def test_events_come_back(self, batch: list[InputEvent], nanoseconds: int) -> None:
        decoder = EventDecoder()
        found = decoder.receive_data(bytes(INFO_BYTES) + encode_events(batch, nanoseconds))
        self.assertEqual([stamped.event for stamped in found], batch)
        self.assertTrue(all(stamped.microseconds == nanoseconds // 1000 for stamped in found))

    @given(st.binary(min_size=INFO_BYTES, max_size=INFO_BYTES))
    def test_any_bytes_are_an_info(self, data: bytes) -> None:
        DeviceInfo.decode(data)

    def test_what_does_not_fit(self) -> None:
        for bad in (
            InputEvent(1 << 16, 0, 0),
            InputEvent(0, -1, 0),
            InputEvent(0, 0, 1 << 31),
        ):
            self.assertRaises(BadValue, encode_events, [bad], 0)
        self.assertRaises(BadValue, DeviceInfo("x" * 80).encode)
        self.assertEqual(len(DeviceInfo("x" * 79).encode()), INFO_BYTES)
        self.assertRaises(BadValue, DeviceInfo("x", keys=frozenset({768})).encode)
        self.assertRaises(BadValue, DeviceInfo("x", vendor=1 << 16).encode)
        self.assertRaises(BadValue, DeviceInfo.decode, bytes(INFO_BYTES - 1))


class NameTests(SynchronousTestCase):
    def test_numbers_are_the_kernels(self) -> None:
        for kind, name, number in (
            ("EV_KEY", "KEY_A", 30),
            ("EV_KEY", "BTN_MOUSE", 0x110),
            ("EV_KEY", "BTN_LEFT", 0x110),
            ("EV_ABS", "ABS_MT_SLOT", 0x2F),
            ("EV_REL", "REL_WHEEL", 8),
            ("EV_SYN", "SYN_DROPPED", 3),
            ("EV_SW", "SW_LID", 0),
        ):
            self.assertEqual(EVENT_CODES[kind][name], number)
            self.assertEqual(code_number(kind, name), number)
        self.assertEqual(EVENT_TYPES["EV_FF_STATUS"], 0x17)

    def test_numbers_as_text(self) -> None:
        self.assertEqual([type_number(text) for text in ("EV_ABS", "3", "0x3", "03")], [3] * 4)
        self.assertEqual(code_number(1, "KEY_ENTER"), 28)
        self.assertEqual(code_number("EV_ABS", "010"), 8)
        for bad in ("KEY_NO", "-1", "65536", "0x", ""):
            self.assertRaises(ValueError, code_number, "EV_KEY", bad)
        self.assertRaises(ValueError, code_number, "EV_REL", "KEY_A")
