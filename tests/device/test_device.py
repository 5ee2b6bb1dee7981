"""The device model: all or nothing, told once, in words that name the cure."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import (
    SENSORS,
    BadValue,
    BatteryHealth,
    BatteryStatus,
    Change,
    Device,
    Fix,
    InputDevice,
    InputEvent,
    SensorDisabled,
    UnknownName,
)


class PartTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.device = Device()
        self.told: list[Change] = []
        self.stop = self.device.observe(self.told.append)

    def test_a_change_is_told_once_with_what_changed(self) -> None:
        state = self.device.battery.update(capacity=50, ac=False, present=True)
        self.assertEqual(
            self.told, [Change("battery", "state", frozenset({"capacity", "ac"}), self.device.battery.state)]
        )
        self.assertEqual((state.capacity, state.ac), (50, False))

    def test_a_change_that_changes_nothing_is_not_told(self) -> None:
        self.device.battery.update(capacity=100)
        self.assertEqual(self.told, [])

    def test_all_or_nothing(self) -> None:
        with self.assertRaises(BadValue):
            self.device.battery.update(ac=False, capacity=101)
        with self.assertRaises(UnknownName):
            self.device.battery.update(ac=False, colour="red")
        self.assertTrue(self.device.battery.state.ac)
        self.assertEqual(self.told, [])

    def test_nobody_is_told_after_the_end(self) -> None:
        self.stop()
        self.stop()
        self.device.battery.update(capacity=1)
        self.assertEqual(self.told, [])

    def test_an_observer_that_fails_does_not_keep_the_others(self) -> None:
        device = Device()
        told: list[Change] = []

        def fails(change: Change) -> None:
            raise RuntimeError("mine")

        device.battery.observe(fails)
        device.battery.observe(told.append)
        device.battery.update(capacity=3)
        self.assertEqual(len(told), 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_text(self) -> None:
        battery = self.device.battery
        battery.update_from_text({"ac": "off", "status": "Discharging", "capacity": "7", "health": "dead"})
        self.assertEqual(
            (battery.state.ac, battery.state.status, battery.state.capacity, battery.state.health),
            (False, BatteryStatus.DISCHARGING, 7, BatteryHealth.DEAD),
        )
        self.device.location.update_from_text({"latitude": 52, "longitude": "13.4", "time": ""})
        self.assertEqual(self.device.location.state, Fix(latitude=52.0, longitude=13.4, satellites=8))
        self.device.fingerprint.update_from_text({"finger": "3"})
        self.device.fingerprint.update_from_text({"finger": ""})
        self.assertIsNone(self.device.fingerprint.state.finger)
        for values in ({"ac": "perhaps"}, {"capacity": "x"}, {"status": "asleep"}, {"capacity": "-1"}):
            with self.assertRaises(BadValue):
                battery.update_from_text(values)

    def test_json(self) -> None:
        plain = json.loads(json.dumps(self.device.as_dict()))
        self.assertEqual(plain["battery"]["status"], "charging")
        self.assertEqual(plain["sensors"]["values"]["temperature"], [25.0])

    def test_parts_by_name(self) -> None:
        self.assertIs(self.device.part("network"), self.device.network)
        with self.assertRaises(UnknownName):
            self.device.part("warp-drive")


class LocationTests(SynchronousTestCase):
    def test_each_fix_is_told_and_a_sentence_as_it_is(self) -> None:
        device = Device()
        told: list[Change] = []
        device.location.observe(told.append)
        fix = Fix(latitude=1, longitude=2)
        device.location.set_fix(fix)
        device.location.set_fix(fix)
        device.location.push_sentence("$GPGGA,1\r\n")
        self.assertEqual([change.kind for change in told], ["state", "fix", "fix", "nmea"])
        self.assertEqual(told[-1].value, "$GPGGA,1")

    def test_fields_make_a_fix_too(self) -> None:
        location = Device().location
        told: list[Change] = []
        location.observe(told.append)
        location.update(latitude=1)
        location.update(altitude=5)
        self.assertEqual([change.kind for change in told], ["state", "fix", "state", "fix"])
        self.assertEqual(told[-1].value, Fix(latitude=1, altitude=5, satellites=8))
        location.update(satellites=0)
        location.update(altitude=6)
        self.assertEqual(location.state.satellites, 0)
        with self.assertRaises(BadValue):
            location.update(latitude=91)
        self.assertEqual(len(told), 8)

    def test_what_no_guest_can_take(self) -> None:
        location = Device().location
        for sentence in ("", "\n", "a\nb", "x" * 83, "ä"):
            with self.assertRaises(BadValue):
                location.push_sentence(sentence)
        with self.assertRaises(ValueError):
            Fix(latitude=91)
        with self.assertRaises(ValueError):
            Fix(longitude=float("nan"))


class SensorTests(SynchronousTestCase):
    def test_all_and_disabled(self) -> None:
        self.assertEqual(Device().sensors.mask, 0xFF)
        sensors = Device(disabled_sensors=["light", "nonsense", "acceleration"]).sensors
        self.assertEqual(sensors.mask, 0xFF & ~(1 << 5) & ~1)
        with self.assertRaises(SensorDisabled):
            sensors.get("light")
        with self.assertRaises(UnknownName):
            sensors.get("nonsense")

    def test_partial_values(self) -> None:
        sensors = Device().sensors
        told: list[Change] = []
        sensors.observe(told.append)
        sensors.set("acceleration", [1, None, 3])
        self.assertEqual(sensors.get("acceleration"), (1.0, 0.0, 3.0))
        sensors.set("acceleration", [2])
        self.assertEqual(sensors.get("acceleration"), (2.0, 0.0, 3.0))
        self.assertEqual([c.value for c in told if c.kind == "sensor"], ["acceleration", "acceleration"])
        for values in ([1, 2, 3, 4], [float("inf")], [float("nan")]):
            with self.assertRaises(BadValue):
                sensors.set("acceleration", values)

    @given(
        st.sampled_from(sorted(SENSORS)),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=1),
    )
    def test_what_is_set_is_read(self, name: str, values: list[float]) -> None:
        sensors = Device().sensors
        sensors.set(name, values)
        self.assertEqual(sensors.get(name)[: len(values)], tuple(values))


class NetworkTests(SynchronousTestCase):
    def test_profiles_and_numbers(self) -> None:
        network = Device().network
        network.set_speed("edge")
        network.set_delay("umts")
        state = network.state
        self.assertEqual((state.upload, state.download), (118_400, 236_800))
        self.assertEqual((state.min_delay, state.max_delay), (35, 200))
        network.set_speed("10:20")
        network.set_delay("5")
        state = network.state
        self.assertEqual((state.upload, state.download, state.speed), (10_000, 20_000, ""))
        self.assertEqual((state.min_delay, state.max_delay, state.delay), (5, 5, ""))

    def test_refused(self) -> None:
        network = Device().network
        for text in ("", "warp", "-1", "1:", ":1", "1:2:3", "9" * 40, "²"):
            with self.assertRaises(BadValue):
                network.set_speed(text)
        for text in ("9:1", "99999999", "x"):
            with self.assertRaises(BadValue):
                network.set_delay(text)


class ScreenTests(SynchronousTestCase):
    def test_lights(self) -> None:
        display = Device().display
        display.set_brightness("lcd_backlight", 10)
        self.assertEqual(display.state.brightness, {"lcd_backlight": 10})
        with self.assertRaises(UnknownName):
            display.set_brightness("sun", 1)
        with self.assertRaises(BadValue):
            display.set_brightness("lcd_backlight", 256)

    def test_fingers(self) -> None:
        fingerprint = Device().fingerprint
        fingerprint.touch(7)
        self.assertEqual(fingerprint.state.finger, 7)
        with self.assertRaises(BadValue):
            fingerprint.touch(0)
        fingerprint.remove()
        self.assertIsNone(fingerprint.state.finger)

    def test_input_is_handed_on(self) -> None:
        device = Device()
        told: list[Change] = []
        device.input.observe(told.append)
        device.input.inject(InputDevice.KEYBOARD, [InputEvent(1, 30, 1)])
        device.input.inject(InputDevice.KEYBOARD, [])
        self.assertEqual([c.value for c in told], [(InputDevice.KEYBOARD, (InputEvent(1, 30, 1),))])
