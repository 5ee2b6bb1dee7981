"""Scenario files: what happens to the device, and when.

A scenario is TOML with ``[[step]]`` tables, or JSON lines with one step each. A step has a time and one of two actions::

    name = "Home by bus"

    [[step]]
    at = 0
    set = { battery = { capacity = 30, ac = false } }

    [[step]]
    at = "1:30"
    do = "geo.fix"
    longitude = 13.4
    latitude = 52.5

    [[step]]
    at = "+10"
    every = 60
    times = 5
    do = "sensor.set"
    name = "temperature"
    values = [21.5]

``at`` is seconds from the beginning (a number, ``M:SS`` or ``H:MM:SS``), or with ``+`` from the step before. ``set`` gives parts of the device
new fields; ``do`` runs a verb with the other keys as its arguments. ``every`` and ``times`` repeat a step.
This module reads and checks; `anbox_tw.session.players.ScenarioPlayer` plays.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from anbox_tw.device.errors import BadValue, DeviceError
from anbox_tw.device.model import Device

__all__ = ["MAX_STEPS", "Scenario", "Step", "parse_scenario"]

MAX_STEPS = 100_000
"""Written ones; repetitions are made while it plays."""

MAX_SECONDS = 30 * 86_400.0
"""A month."""

_OWN_KEYS = frozenset({"at", "set", "do", "every", "times"})
_TIME = re.compile(r"(?:(\d{1,4}):)?(\d{1,5}):(\d{1,2}(?:\.\d{1,6})?)|(\d{1,9}(?:\.\d{1,6})?)", re.ASCII)
_STEP_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*(?:step|\"step\"|'step')[ \t]*\]\]", re.MULTILINE)


@attrs.frozen
class Step:
    """One step.

    Attributes:
        at: seconds from the beginning.
        where: ``line N`` or ``step N``, for messages.
        changes: part name to fields, for ``set``.
        verb: for ``do``; empty for ``set``.
        arguments: of the verb.
        every: seconds between repetitions; 0 for none.
        times: how often it is done in all.
    """

    at: float
    where: str
    changes: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    verb: str = ""
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    every: float = 0.0
    times: int = 1

    @property
    def end(self) -> float:
        """When it is done for the last time."""
        return self.at + self.every * (self.times - 1)


@attrs.frozen
class Scenario:
    """What a file says.

    Attributes:
        name: or empty.
        steps: as they stand in the file.
    """

    name: str
    steps: tuple[Step, ...]

    @property
    def duration(self) -> float:
        """Seconds until the last step."""
        return max((step.end for step in self.steps), default=0.0)

    def occurrences(self) -> Iterator[tuple[float, Step]]:
        """Each step as often as it is done, in the order of their times; equal times keep the file's order."""
        import heapq

        # one entry per step, whatever its repetitions
        queue = [(step.at, number, 0) for number, step in enumerate(self.steps)]
        heapq.heapify(queue)
        while queue:
            at, number, count = heapq.heappop(queue)
            step = self.steps[number]
            yield at, step
            if count + 1 < step.times:
                heapq.heappush(queue, (step.at + (count + 1) * step.every, number, count + 1))

    def check(self, check_verb: Callable[[str, Mapping[str, Any]], object]) -> list[str]:
        """What would go wrong, each with its line; an empty list when nothing would.

        Changes are tried on a device of its own, one after the other.

        Args:
            check_verb: raises an `AnboxError` where a verb does not exist or does not take the arguments.
        """
        from anbox_tw.errors import AnboxError

        device = Device()
        wrong = []
        for step in sorted(self.steps, key=lambda step: step.at):
            try:
                if step.verb:
                    check_verb(step.verb, step.arguments)
                else:
                    apply_changes(device, step.changes)
            except AnboxError as error:
                wrong.append(f"{step.where}: {error.cause}{f' ({error.cure})' if error.cure else ''}")
        return wrong


def apply_changes(device: Device, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Give parts of the device new fields.

    Raises:
        DeviceError: a part, field or value that cannot be.
    """
    for name, fields in changes.items():
        if not isinstance(fields, Mapping):
            raise BadValue(f"{name}: it takes a table of fields, not {fields!r}")
        device.part(name).update_from_text(fields)


def parse_scenario(text: str, format: str = "") -> Scenario:
    """Read a scenario.

    Args:
        text: of the file.
        format: ``toml`` or ``jsonl``; found out from the text when it is empty.

    Raises:
        BadValue: it is none; the message begins with the line.
    """
    chosen = format or ("jsonl" if text.lstrip("\ufeff \t\r\n")[:1] == "{" else "toml")
    if chosen == "toml":
        name, found = _read_toml(text)
    elif chosen == "jsonl":
        name, found = _read_json_lines(text)
    else:
        raise BadValue(f"{format!r} is no format of scenarios", "there are toml and jsonl")
    if not found:
        raise BadValue("line 1: the scenario has no step")
    if len(found) > MAX_STEPS:
        raise BadValue(f"a scenario has at most {MAX_STEPS} steps")
    steps: list[Step] = []
    for where, table in found:
        try:
            steps.append(_step(where, table, steps[-1].at if steps else 0.0))
        except DeviceError as error:
            raise BadValue(f"{where}: {error.cause}", error.cure) from None
    return Scenario(name, tuple(steps))


def _read_toml(text: str) -> tuple[str, list[tuple[str, Any]]]:
    try:
        data = tomllib.loads(text.removeprefix("\ufeff").replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"line {line[1]}" if line else f"line {text.count(chr(10)) + 1}"
        raise BadValue(f"{where}: no TOML: {error}") from None
    except RecursionError:
        raise BadValue("line 1: no TOML: it is nested too deeply") from None
    unknown = sorted(set(data) - {"name", "step"})
    if unknown:
        raise BadValue(f"line 1: a scenario has no {unknown[0]!r}", "it has name and [[step]]")
    tables = data.get("step", [])
    if not isinstance(tables, list):
        raise BadValue("line 1: 'step' is no list of tables", "write [[step]]")
    headers = [text.count("\n", 0, match.start()) + 1 for match in _STEP_HEADER.finditer(text)]
    if len(headers) == len(tables):
        found = [(f"line {line}", table) for line, table in zip(headers, tables, strict=True)]
    else:  # a list of inline tables, or a text that looks like a header
        found = [(f"step {number}", table) for number, table in enumerate(tables, 1)]
    return _name(data.get("name", "")), found


def _read_json_lines(text: str) -> tuple[str, list[tuple[str, Any]]]:
    name = ""
    found: list[tuple[str, Any]] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            table = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadValue(f"line {number}: no JSON: {error}") from None
        if isinstance(table, dict) and set(table) == {"name"} and not found:
            name = _name(table["name"])
        else:
            found.append((f"line {number}", table))
    return name, found


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise BadValue("line 1: the name is a text of at most 200 characters")
    return value


def _step(where: str, table: Any, before: float) -> Step:
    if not isinstance(table, dict):
        raise BadValue("a step is a table")
    if "at" not in table:
        raise BadValue("the step has no 'at'", "at = 5 is five seconds from the beginning")
    at = _time(table["at"], before)
    rest = {key: value for key, value in table.items() if key not in _OWN_KEYS}
    every, times = _repetition(table, at)
    if ("set" in table) == ("do" in table):
        raise BadValue("a step has either 'set' or 'do'")
    if "set" in table:
        changes = table["set"]
        if not isinstance(changes, dict) or not changes:
            raise BadValue("'set' is a table of parts", "set = { battery = { capacity = 30 } }")
        if rest:
            raise BadValue(f"{sorted(rest)[0]!r} does not belong beside 'set'")
        return Step(at, where, changes=changes, every=every, times=times)
    verb = table["do"]
    if not isinstance(verb, str) or not verb:
        raise BadValue("'do' is the name of a verb")
    if verb.startswith("scenario."):
        raise BadValue("a scenario starts and stops no scenario")
    return Step(at, where, verb=verb, arguments=rest, every=every, times=times)


def _time(value: Any, before: float) -> float:
    seconds: float | None = None
    base = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip()
        base = before if text.startswith("+") else 0.0
        match = _TIME.fullmatch(text.removeprefix("+"))
        if match:
            hours, minutes, rest, plain = match.groups()
            seconds = float(plain) if plain else int(hours or 0) * 3600 + int(minutes) * 60 + float(rest)
    if seconds is None or not 0 <= base + seconds <= MAX_SECONDS:
        raise BadValue(
            f"{value!r} is no time", "write seconds, '1:30', '1:00:00', or '+5' after the step before"
        )
    return base + seconds


def _repetition(table: Mapping[str, Any], at: float) -> tuple[float, int]:
    if "every" not in table and "times" not in table:
        return 0.0, 1
    if "every" not in table or "times" not in table:
        raise BadValue("'every' and 'times' belong together")
    every, times = table["every"], table["times"]
    if isinstance(every, bool) or not isinstance(every, int | float) or not 0 < every < math.inf:
        raise BadValue(f"'every' is a number of seconds above 0, not {every!r}")
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise BadValue(f"'times' is a whole number from 1, not {times!r}")
    if at + every * (times - 1) > MAX_SECONDS:
        raise BadValue("the repetitions take longer than a month")
    return float(every), times
