"""Scenario files: what they say, and what is wrong with them, by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import BadValue, Device
from anbox_tw.device import scenario as scenario_module
from anbox_tw.device.scenario import apply_changes, parse_scenario

DRIVE = """
name = "A drive"

[[step]]
at = 0
set = { battery = { capacity = 30, ac = false }, network = { speed = "edge" } }

[[ step ]]
at = "1:30"
do = "geo.fix"
longitude = 13.4
latitude = 52.5

[["step"]]
at = "+10"
every = 60
times = 3
do = "sensor.set"
name = "temperature"
values = [21.5]
"""


class ParseTests(SynchronousTestCase):
    def test_toml(self) -> None:
        found = parse_scenario(DRIVE)
        self.assertEqual((found.name, found.duration), ("A drive", 220))
        first, second, third = found.steps
        self.assertEqual(
            (first.at, first.where, first.changes["battery"]), (0, "line 4", {"capacity": 30, "ac": False})
        )
        self.assertEqual(
            (second.at, second.verb, second.arguments),
            (90, "geo.fix", {"longitude": 13.4, "latitude": 52.5}),
        )
        self.assertEqual((third.at, third.where, third.every, third.times), (100, "line 14", 60, 3))
        self.assertEqual(third.arguments, {"name": "temperature", "values": [21.5]})
        self.assertEqual(parse_scenario(DRIVE.replace("\n", "\r\n")), found)

    def test_json_lines(self) -> None:
        text = '\ufeff{"name": "A call"}\n# comment\n\n{"at": 1, "do": "call.in", "number": "5551"}\n{"at": "+2.5", "set": {"display": {"rotation": 1}}}'
        found = parse_scenario(text)
        self.assertEqual(
            (found.name, [(s.at, s.where) for s in found.steps]), ("A call", [(1, "line 4"), (3.5, "line 5")])
        )

    def test_inline_tables_have_numbers_instead_of_lines(self) -> None:
        found = parse_scenario('step = [{at = 1, do = "x.y"}, {at = 2, do = "x.y"}]')
        self.assertEqual([step.where for step in found.steps], ["step 1", "step 2"])

    def test_times(self) -> None:
        for written, seconds in (
            ("0", 0),
            ("90.25", 90.25),
            ("1:30", 90),
            ("1:00:00.5", 3600.5),
            ("120:00", 7200),
        ):
            self.assertEqual(parse_scenario(f'[[step]]\nat = "{written}"\ndo = "a.b"').steps[0].at, seconds)

    def test_occurrences_are_in_order(self) -> None:
        text = """
            {"at": 5, "do": "a.late"}
            {"at": 0, "every": 2, "times": 4, "do": "a.tick"}
            {"at": 2, "do": "a.same"}
        """
        found = [(at, step.verb) for at, step in parse_scenario(text).occurrences()]
        self.assertEqual(
            found,
            [(0, "a.tick"), (2, "a.tick"), (2, "a.same"), (4, "a.tick"), (5, "a.late"), (6, "a.tick")],
        )

    def test_what_is_wrong_is_told_with_its_line(self) -> None:
        for text, words in (
            ("", "line 1: the scenario has no step"),
            ("name = 5", "line 1: the name is a text"),
            ("[[step]]\nat = 1\ndo = \n", "line 3: no TOML"),
            ("speed = 5", "line 1: a scenario has no 'speed'"),
            ("step = 5", "line 1: 'step' is no list"),
            ("step = [5]", "step 1: a step is a table"),
            ("\n[[step]]\ndo = 'a.b'", "line 2: the step has no 'at'"),
            ("[[step]]\nat = -1\ndo = 'a.b'", "line 1: -1 is no time"),
            ("[[step]]\nat = true\ndo = 'a.b'", "line 1: True is no time"),
            ("[[step]]\nat = nan\ndo = 'a.b'", "line 1: nan is no time"),
            ("[[step]]\nat = '1:2:3:4'\ndo = 'a.b'", "is no time"),
            ("[[step]]\nat = 99999999\ndo = 'a.b'", "is no time"),
            ("[[step]]\nat = 1", "line 1: a step has either"),
            ("[[step]]\nat = 1\ndo = 'a.b'\nset = {a = {b = 1}}", "line 1: a step has either"),
            ("[[step]]\nat = 1\nset = {}", "line 1: 'set' is a table"),
            ("[[step]]\nat = 1\nset = {a = {b = 1}}\nname = 'x'", "line 1: 'name' does not belong"),
            ("[[step]]\nat = 1\ndo = 5", "line 1: 'do' is the name"),
            ("[[step]]\nat = 1\ndo = 'scenario.start'", "line 1: a scenario starts and stops no scenario"),
            ("[[step]]\nat = 1\ndo = 'a.b'\nevery = 1", "line 1: 'every' and 'times' belong together"),
            ("[[step]]\nat = 1\ndo = 'a.b'\nevery = 0\ntimes = 1", "line 1: 'every' is a number"),
            ("[[step]]\nat = 1\ndo = 'a.b'\nevery = 1\ntimes = 0", "line 1: 'times' is a whole number"),
            ("[[step]]\nat = 1\ndo = 'a.b'\nevery = 9e9\ntimes = 9", "longer than a month"),
            ('{"at": 1, "do": "a.b"}\n{"at": 1', "line 2: no JSON"),
            ('{"at": 1, "do": "a.b"}\n[]', "line 2: a step is a table"),
            ("{" + '"a":{' * 100_000, "line 1: no JSON"),
            ("a = " + "[" * 100_000, "line 1: no TOML"),
        ):
            with self.assertRaises(BadValue) as caught:
                parse_scenario(text)
            self.assertIn(words, str(caught.exception), text[:60])
        with self.assertRaises(BadValue):
            parse_scenario("", "yaml")
        self.patch(scenario_module, "MAX_STEPS", 1)
        with self.assertRaises(BadValue):
            parse_scenario('{"at": 1, "do": "a.b"}\n{"at": 1, "do": "a.b"}')

    @given(st.text(max_size=100), st.sampled_from(["", "toml", "jsonl"]))
    def test_any_text_is_a_scenario_or_a_bad_value(self, text: str, format: str) -> None:
        try:
            assert parse_scenario(text, format).steps
        except BadValue as error:
            assert str(error)


class CheckTests(SynchronousTestCase):
    def test_all_mistakes_are_told_with_their_lines(self) -> None:
        text = """{"at": 1, "set": {"battery": {"capacity": 200}}}
            {"at": 2, "set": {"warp": {"speed": 9}}}
            {"at": 3, "set": {"battery": 5}}
            {"at": 4, "set": {"battery": {"colour": 1}}}
            {"at": 5, "set": {"sensors": {"values": {"light": [1, 2]}}}}
            {"at": 6, "set": {"battery": {"capacity": 5}}}
            {"at": 7, "do": "known.verb", "a": 1}
            {"at": 8, "do": "other.verb"}"""
        asked: list[tuple[str, Mapping[str, Any]]] = []

        def check(verb: str, arguments: Mapping[str, Any]) -> None:
            asked.append((verb, arguments))
            if verb != "known.verb":
                raise BadValue("no such verb", "try another")

        wrong = parse_scenario(text).check(check)
        self.assertEqual(
            [line.partition(":")[0] for line in wrong], [f"line {n}" for n in (1, 2, 3, 4, 5, 8)]
        )
        self.assertEqual(wrong[-1], "line 8: no such verb (try another)")
        self.assertEqual(asked, [("known.verb", {"a": 1}), ("other.verb", {})])

    def test_sensors_are_set_one_by_one(self) -> None:
        device = Device(disabled_sensors=["humidity"])
        told: list[str] = []
        device.sensors.observe(lambda change: told.append(change.kind))
        apply_changes(device, {"sensors": {"values": {"light": 5, "acceleration": [1, None, 3]}}})
        self.assertEqual(device.sensors.get("light"), (5.0,))
        self.assertEqual(device.sensors.get("acceleration"), (1.0, 0.0, 3.0))
        self.assertEqual(told, ["state", "sensor", "sensor"])
        for values in (
            {"light": 1, "humidity": 5},
            {"light": 1, "warp": 5},
            {"light": "1"},
            {"light": ["1"]},
            {"light": [True]},
            5,
        ):
            with self.assertRaises(Exception) as caught:
                apply_changes(device, {"sensors": {"values": values}})
            self.assertIn("anbox_tw.device.errors", type(caught.exception).__module__)
        with self.assertRaises(Exception):
            device.sensors.update(colour=1)
        self.assertEqual(device.sensors.get("light"), (5.0,))
