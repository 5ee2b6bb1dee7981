"""Sensors, lights, fingers and GPS at the guest's end of the pipe, on a clock of the test's."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.device import Change, Device, Fix
from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._flow import LITTLE_BYTES
from anbox_tw.qemu._framing import encode_frame
from anbox_tw.qemu._guest_connection import MAX_NOTES
from anbox_tw.qemu._nmea import checksum, gga, rmc, sealed, sentences
from anbox_tw.qemu.fingerprint import FingerprintService
from anbox_tw.qemu.gps import GpsService
from anbox_tw.qemu.hw_control import HwControlService
from anbox_tw.qemu.sensors import SensorsService
from tests.qemu.guests import Guest, ServiceCase
from tests.support import REPOSITORY

VECTORS = json.loads((REPOSITORY / "protocols/qemu/vectors/hardware.json").read_text())


class SensorsTests(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.device = Device(disabled_sensors=["light"])
        self.service = SensorsService(
            self.device.sensors, self.clock, lambda: round(self.clock.seconds() * 1e6)
        )
        verifyObject(IPipeService, self.service)

    def connect(self) -> Guest:
        guest = Guest(self.service)
        self.addCleanup(guest.leave)
        return guest

    def times_until(self, guest: Guest, end: float, step: float) -> list[float]:
        """When reports came, by what their sync says."""
        found = []
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(step)
            found += [int(f[5:]) / 1e6 for f in guest.frames() if f.startswith(b"sync:")]
        return found

    def test_vectors(self) -> None:
        for vector in VECTORS["sensors"]:
            device = Device(disabled_sensors=vector.get("disabled", []))
            service = SensorsService(device.sensors, self.clock, lambda: 1_000_000)
            for name, values in vector.get("values", {}).items():
                device.sensors.set(name, values)
            data = b"".join(encode_frame(text.encode()) for text in vector["guest"])
            expected = vector["host"].encode()
            for cut in range(len(data)):
                guest = Guest(service)
                guest.feed(data[:cut])
                guest.feed(data[cut:])
                self.assertEqual(guest.received(), expected, vector["name"])
                guest.leave()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_report_is_one_write(self) -> None:
        guest = self.connect()
        guest.send(b"set:acceleration:1", b"set:temperature:1")
        self.assertEqual(len(guest.transport.writes), 2)
        self.assertEqual(
            guest.transport.writes[1],
            encode_frame(b"acceleration:0:0:9.80665")
            + encode_frame(b"temperature:25")
            + encode_frame(b"sync:0"),
        )

    def test_the_rate_does_not_drift(self) -> None:
        guest = self.connect()
        guest.send(b"set-delay:20", b"set:pressure:1")
        guest.frames()
        # a clock that is always late: lateness must not add up
        times = self.times_until(guest, 2.0, 0.0071)
        self.assertEqual(len(times), 100)
        for number, at in enumerate(times, 1):
            self.assertLess(at - number * 0.02, 0.0072)
            self.assertGreaterEqual(at - number * 0.02, -1e-6)

    def test_missed_reports_are_left_out_and_not_bunched(self) -> None:
        guest = self.connect()
        guest.send(b"set-delay:100", b"set:pressure:1")
        guest.frames()
        self.clock.advance(0.95)  # the reactor was busy for 9 reports
        self.assertEqual(guest.frames(), [b"pressure:1013.25", b"sync:950000"])
        self.clock.advance(0.04)
        self.assertEqual(guest.frames(), [])
        self.clock.advance(0.0101)
        self.assertEqual(len(guest.frames()), 2)

    def test_the_delay_is_clamped_and_read_strictly(self) -> None:
        guest = self.connect()
        guest.send(b"set:pressure:1")
        for text, expected in (
            (b"0", 0.02),
            (b"-5", 0.02),
            (b"19", 0.02),
            (b"250", 0.25),
            (b"9999999999", 3600.0),
        ):
            guest.send(b"set-delay:" + text)
            self.assertEqual(self.service.listeners(), {"pressure": expected})
        for text in (b"", b"x", b"1.5", b"0x10", b"99999999999"):
            guest.send(b"set-delay:" + text)
            self.assertEqual(self.service.listeners(), {"pressure": 3600.0})

    def test_nothing_enabled_costs_nothing(self) -> None:
        guest = self.connect()
        guest.send(b"set-delay:20", b"set:light:1", b"set:nonsense:1", b"set:acceleration", b"nonsense", b"")
        self.assertEqual((guest.frames(), self.clock.getDelayedCalls()), ([], []))
        guest.send(b"set:acceleration:1")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        guest.send(b"set:acceleration:0")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_connection_has_its_own_mask_and_delay_and_sees_changes(self) -> None:
        one, two = self.connect(), self.connect()
        one.send(b"set-delay:50", b"set:temperature:1")
        two.send(b"set:proximity:1")
        one.frames(), two.frames()
        self.device.sensors.set("temperature", [-3.5])
        self.clock.advance(0.05)
        self.assertEqual(one.frames()[0], b"temperature:-3.5")
        self.assertEqual(two.frames(), [])
        self.assertEqual(self.service.listeners(), {"temperature": 0.05, "proximity": 0.8})

    def test_a_guest_that_does_not_read_gets_no_growing_buffer(self) -> None:
        guest = self.connect()
        guest.send(b"set-delay:20", b"set:temperature:1")
        guest.frames()
        guest.stop_reading()
        for _ in range(1000):
            self.clock.advance(0.02)
        self.assertEqual(guest.received(), b"")
        guest.read_on()
        self.clock.advance(0.02)
        self.assertEqual(len(guest.frames()), 2)

    def test_garbage(self) -> None:
        self.assert_framed_garbage_ends_it(self.service)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_closed_guest_leaves_no_timer(self) -> None:
        guest = self.connect()
        guest.send(b"set:temperature:1")
        guest.feed(b"!!!!")
        self.assertTrue(guest.closed)
        self.assertEqual((self.clock.getDelayedCalls(), self.service.listeners()), ([], {}))

    @given(st.binary(max_size=64))
    def test_no_bytes_break_the_service(self, data: bytes) -> None:
        clock = Clock()
        guest = Guest(SensorsService(Device().sensors, clock))
        guest.feed(data)
        guest.leave()
        assert clock.getDelayedCalls() == []


class HwControlTests(ServiceCase):
    def test_vectors(self) -> None:
        for vector in VECTORS["hw_control"]:
            device = Device()
            told: list[Change] = []
            device.display.observe(told.append)
            guest = Guest(HwControlService(device.display))
            guest.send(*[text.encode() for text in vector["guest"]])
            display = device.display.as_dict()
            self.assertEqual(
                {name: display[name] for name in vector["display"]}, vector["display"], vector["name"]
            )
            self.assertEqual([c.value for c in told if c.kind == "vibrate"], vector.get("vibrate", []))
            self.assertEqual((guest.received(), guest.closed), (b"", False))

    def test_what_cannot_be_obeyed_changes_nothing(self) -> None:
        device = Device()
        told: list[Change] = []
        device.observe(told.append)
        guest = Guest(HwControlService(device.display))
        for command in (
            "power:light:brightness:moon:1",
            "power:light:brightness:lcd_backlight:256",
            "power:light:brightness:lcd_backlight:-1",
            "power:light:brightness:lcd_backlight:",
            "power:screen_state:asleep",
            "set_led_state:00ff00:1",
            "set_led_state:xyz:1:1",
            "set_led_state:000000000:1:1",
            "vibrator:soon",
            "vibrator",
            "",
            "\xff",
        ):
            guest.send(command.encode("latin-1"))
        self.assertEqual((told, guest.closed), ([], False))

    def test_a_guest_cannot_fill_the_log(self) -> None:
        guest = Guest(HwControlService(Device().display))
        guest.send(*[b"nonsense %d" % number for number in range(1000)])
        self.assertEqual(len(self.logged), MAX_NOTES + 1)
        self.assertIn("ignored the command b'nonsense 9'", self.logged[-2])
        self.assertFalse(guest.closed)

    def test_a_flood_takes_no_more_than_its_share_of_a_turn(self) -> None:
        guest = Guest(HwControlService(Device().display))
        # what a socket transport reads at once
        self.assertEqual(guest.transport.bufferSize, LITTLE_BYTES)

    def test_garbage(self) -> None:
        self.assert_framed_garbage_ends_it(HwControlService(Device().display))


class FingerprintTests(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.finger = Device().fingerprint
        self.service = FingerprintService(self.finger)

    def test_the_nul_is_inside_the_frame(self) -> None:
        guest = Guest(self.service)
        guest.send(b"listen")
        self.finger.touch(1)
        self.finger.touch(12)
        self.finger.remove()
        self.assertEqual(guest.received().hex(" "), VECTORS["fingerprint"]["host"])
        guest.leave()
        self.finger.touch(3)
        self.assertEqual(guest.received(), b"")

    def test_the_state_is_told_at_once_and_only_after_listen(self) -> None:
        self.finger.touch(7)
        guest = Guest(self.service)
        self.assertEqual(guest.received(), b"")
        guest.send(b"listen\0", b"listen")
        self.assertEqual(guest.frames(), [b"on:7\0"])

    def test_a_guest_that_did_not_read_hears_what_is_and_not_what_was(self) -> None:
        guest = Guest(self.service)
        guest.send(b"listen")
        guest.frames()
        guest.stop_reading()
        for number in range(1, 10_000):
            self.finger.touch(number)
        self.assertEqual(guest.received(), b"")
        guest.read_on()
        self.assertEqual(guest.frames(), [b"on:9999\0"])
        guest.stop_reading()
        self.finger.remove()
        self.finger.touch(9999)
        guest.read_on()
        self.assertEqual(guest.frames(), [])

    def test_garbage(self) -> None:
        self.assert_framed_garbage_ends_it(self.service)


class NmeaTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        for vector in VECTORS["nmea"]:
            fix = Fix(**vector["fix"])
            self.assertEqual(gga(fix, vector["time"]), vector["gga"])
            self.assertEqual(rmc(fix, vector["time"]), vector["rmc"])

    def test_checksums_are_those_of_others(self) -> None:
        # sentences of real receivers, from the NMEA pages of gpsd's manual and Wikipedia
        for sentence in (
            "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47",
            "$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A",
            "$GPGLL,4916.45,N,12311.12,W,225444,A,*1D",
        ):
            body = sentence[1:].partition("*")[0]
            self.assertEqual(sealed(body), sentence)
        self.assertEqual(checksum(""), "00")

    @given(
        st.builds(
            Fix,
            latitude=st.floats(-90, 90),
            longitude=st.floats(-180, 180),
            altitude=st.floats(-12_000, 1_000_000),
            satellites=st.integers(0, 32),
            speed=st.floats(0, 20_000),
            bearing=st.floats(0, 360),
        ),
        st.floats(0, 4e9),
    )
    def test_every_fix_fits_a_line_and_reads_back(self, fix: Fix, seconds: float) -> None:
        for line in sentences(fix, seconds).decode("ascii").splitlines():
            self.assertLessEqual(len(line), 82)
            body, _, digits = line[1:].partition("*")
            self.assertEqual(digits, checksum(body))
            fields = body.split(",")
            if not fix.satellites:
                continue
            first = 2 if fields[0] == "GPGGA" else 3
            self.assertLess(abs(degrees(fields[first], fields[first + 1]) - fix.latitude), 1e-6)
            self.assertLess(abs(degrees(fields[first + 2], fields[first + 3]) - fix.longitude), 1e-6)


def degrees(text: str, side: str) -> float:
    """As the guest's HAL reads it."""
    value = float(text)
    whole = int(value / 100)
    assert value - whole * 100 < 60, text
    return (whole + (value - whole * 100) / 60) * (-1 if side in "SW" else 1)


class GpsTests(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.location = Device().location
        self.service = GpsService(self.location, self.clock, lambda: 1_000_000_000 + self.clock.seconds())

    def connect(self) -> Guest:
        guest = Guest(self.service)
        self.clock.advance(0)
        self.addCleanup(guest.leave)
        return guest

    def kinds(self, guest: Guest) -> list[str]:
        return [line[1:6] for line in guest.received().decode().splitlines()]

    def test_a_fix_is_reported_at_once_and_every_second(self) -> None:
        guest = self.connect()
        self.clock.advance(5)
        self.assertEqual(guest.received(), b"")
        self.location.set_fix(Fix(latitude=1, longitude=2, satellites=5))
        self.assertEqual(self.kinds(guest), ["GPGGA", "GPRMC"])
        for _ in range(3):
            self.clock.advance(0.6)
        self.assertEqual(self.kinds(guest), ["GPGGA", "GPRMC"])
        # each repetition has a time of its own
        self.clock.advance(1)
        self.assertIn(b"GPGGA,014647.80,", guest.received())

    def test_the_repetition_does_not_drift_and_begins_anew_with_each_fix(self) -> None:
        guest = self.connect()
        self.location.set_fix(Fix(satellites=5))
        for _ in range(335):  # 100.5 s, always late
            self.clock.advance(0.3)
        self.assertEqual(len(self.kinds(guest)), 2 * 101)
        for _ in range(50):
            self.clock.advance(0.25)
            self.location.set_fix(Fix(satellites=5))
        self.assertEqual(len(self.kinds(guest)), 2 * 50)

    def test_a_late_guest_hears_the_last_fix(self) -> None:
        self.location.set_fix(Fix(latitude=-33.8, longitude=151.2, satellites=4))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        guest = self.connect()
        self.assertIn(b",3348.0000,S,15112.0000,E,1,04,", guest.received())
        self.assertEqual(self.service.guests, 1)
        guest.leave()
        self.assertEqual((self.clock.getDelayedCalls(), self.service.guests), ([], 0))

    def test_raw_sentences_pass_and_end_the_repetition(self) -> None:
        guest = self.connect()
        self.location.set_fix(Fix(satellites=5))
        guest.received()
        self.location.push_sentence("$GPTXT,hello")
        self.assertEqual(guest.received(), b"$GPTXT,hello\n")
        self.clock.advance(10)
        self.assertEqual(guest.received(), b"")
        self.location.set_fix(Fix(satellites=5))
        self.clock.advance(1)
        self.assertEqual(len(self.kinds(guest)), 4)

    def test_a_lost_fix_is_told_once_without_a_position(self) -> None:
        guest = self.connect()
        self.location.set_fix(Fix(latitude=1, longitude=2, satellites=0))
        self.clock.advance(3)
        lines = guest.received().decode().splitlines()
        self.assertEqual(len(lines), 2)
        self.assertIn(",,,,,0,00,", lines[0])
        self.assertIn(",V,,,,,,,", lines[1])

    def test_a_time_of_the_fix_goes_on(self) -> None:
        guest = self.connect()
        self.location.set_fix(Fix(satellites=5, time=0.0))
        self.clock.advance(1)
        self.assertEqual(
            [line.split(",")[1] for line in guest.received().decode().splitlines()],
            ["000000.00", "000000.00", "000001.00", "000001.00"],
        )

    def test_a_guest_that_talks_or_does_not_read(self) -> None:
        guest = self.connect()
        guest.feed(b"anything" * 100)
        self.assertFalse(guest.closed)
        guest.stop_reading()
        for _ in range(1000):
            self.location.set_fix(Fix(satellites=5))
        self.assertEqual(guest.received(), b"")
        guest.read_on()
        self.location.set_fix(Fix(satellites=5))
        self.assertEqual(len(self.kinds(guest)), 2)
