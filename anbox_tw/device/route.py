"""Routes: where the device is, moment by moment, from GPX, NMEA, CSV or JSON.

`parse_route` reads a file's text into points with times; `positions` walks along them at an even rate, with the points between
interpolated. Points that have no times are walked at a speed.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from calendar import timegm
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.parsers import expat

import attrs

from anbox_tw.device.errors import BadValue
from anbox_tw.device.location import GOOD_SATELLITES, Fix

__all__ = ["FORMATS", "MAX_POINTS", "RoutePoint", "parse_route", "positions", "timed"]

MAX_POINTS = 200_000
"""Two days at one point a second; each point takes some hundred bytes."""

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of WGS 84."""

DEFAULT_SPEED_M_S = 13.9
"""50 km/h, for points without times."""

KNOT_M_S = 1852 / 3600


@attrs.frozen
class RoutePoint:
    """One point of a route.

    Attributes:
        fix: where; its ``speed`` and ``bearing`` count when `has_motion` says so.
        time: seconds, from any beginning; None where the file has no time.
        has_motion: whether the file gave speed and bearing.
        line: in the file, for messages.
    """

    fix: Fix
    time: float | None
    has_motion: bool = False
    line: int = 0


def parse_route(text: str, format: str = "") -> list[RoutePoint]:
    """Read a route.

    Args:
        text: of the file.
        format: ``gpx``, ``nmea``, ``csv`` or ``json``; found out from the text when it is empty.

    Raises:
        BadValue: it is none of these, has no point, too many, or is wrong in a line that is named.
    """
    chosen = format or _recognised(text)
    reader = FORMATS.get(chosen)
    if reader is None:
        raise BadValue(f"{format!r} is no format of routes", f"there are {', '.join(FORMATS)}")
    points = reader(text)
    if not points:
        raise BadValue(f"the route has no point ({chosen})")
    return points


def _recognised(text: str) -> str:
    start = text.lstrip("\ufeff \t\r\n")[:1]
    return {"<": "gpx", "$": "nmea", "[": "json", "{": "json"}.get(start, "csv")


def timed(points: Sequence[RoutePoint], speed: float = 0.0) -> list[tuple[float, RoutePoint]]:
    """Each point with its seconds from the first.

    Args:
        points: of a route.
        speed: metres per second, for all of the route; 0 takes the points' own times where all have them.

    Raises:
        BadValue: times go backwards.
    """
    if not speed and all(point.time is not None for point in points):
        first = points[0].time or 0.0
        found = [((point.time or 0.0) - first, point) for point in points]
        for (before, _), (after, point) in itertools.pairwise(found):
            if after < before:
                raise BadValue(f"line {point.line}: the route's time goes back by {before - after:g} s")
        return found
    pace = speed or DEFAULT_SPEED_M_S
    at = 0.0
    result = [(0.0, points[0])]
    for before_point, point in itertools.pairwise(points):
        at += distance(before_point.fix, point.fix) / pace
        result.append((at, point))
    return result


def positions(route: Sequence[tuple[float, RoutePoint]], rate: float = 1.0) -> Iterator[tuple[float, Fix]]:
    """Walk along a route.

    Args:
        route: of `timed`.
        rate: positions per second.

    Yields:
        Seconds from the beginning, and where the device is then; the last is the route's end.
    """
    end = route[-1][0]
    index = 0
    for number in range(math.floor(end * rate) + 1):
        at = number / rate
        while index + 1 < len(route) - 1 and route[index + 1][0] <= at:
            index += 1
        yield at, _between(route, index, at)
    if len(route) > 1 and math.floor(end * rate) / rate < end:
        yield end, _between(route, len(route) - 2, end)


def _between(route: Sequence[tuple[float, RoutePoint]], index: int, at: float) -> Fix:
    start, a = route[index]
    if index + 1 >= len(route):
        return a.fix
    end, b = route[index + 1]
    part = min(max((at - start) / (end - start), 0.0), 1.0) if end > start else 1.0
    turn = b.fix.longitude - a.fix.longitude
    if abs(turn) > 180:  # the short way is across 180 degrees
        turn -= math.copysign(360, turn)
    longitude = a.fix.longitude + turn * part
    if abs(longitude) > 180:
        longitude -= math.copysign(360, longitude)
    speed, bearing = a.fix.speed, a.fix.bearing
    if a.has_motion and b.has_motion:
        speed = _mix(a.fix.speed, b.fix.speed, part)
        bearing = (a.fix.bearing + ((b.fix.bearing - a.fix.bearing + 540) % 360 - 180) * part) % 360
    elif not a.has_motion:
        speed = min(distance(a.fix, b.fix) / (end - start), 20_000.0) if end > start else 0.0
        bearing = direction(a.fix, b.fix)
    times = a.fix.time, b.fix.time
    return Fix(
        latitude=_mix(a.fix.latitude, b.fix.latitude, part),
        longitude=longitude,
        altitude=_mix(a.fix.altitude, b.fix.altitude, part),
        satellites=a.fix.satellites if part < 1 else b.fix.satellites,
        speed=speed,
        bearing=bearing,
        time=None if times[0] is None or times[1] is None else _mix(times[0], times[1], part),
    )


def _mix(a: float, b: float, part: float) -> float:
    return b if part >= 1 else a + (b - a) * part


def distance(a: Fix, b: Fix) -> float:
    """Metres along the great circle."""
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    half = (
        math.sin((lat_b - lat_a) / 2) ** 2
        + math.cos(lat_a) * math.cos(lat_b) * math.sin(math.radians(b.longitude - a.longitude) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(half)))


def direction(a: Fix, b: Fix) -> float:
    """Degrees from true north, from ``a`` towards ``b``; 0 where they are one."""
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    east = math.radians(b.longitude - a.longitude)
    y = math.sin(east) * math.cos(lat_b)
    x = math.cos(lat_a) * math.sin(lat_b) - math.sin(lat_a) * math.cos(lat_b) * math.cos(east)
    return math.degrees(math.atan2(y, x)) % 360


# -- one reader per format --


def _point(line: int, values: dict[str, Any]) -> RoutePoint:
    """A point from texts or numbers; ``values`` has no empty ones."""
    try:
        numbers = {name: float(value) for name, value in values.items() if name != "time"}
        moment = _moment(values["time"]) if "time" in values else None
        satellites = int(numbers.get("satellites", GOOD_SATELLITES))
        fix = Fix(
            latitude=numbers["latitude"],
            longitude=numbers["longitude"],
            altitude=numbers.get("altitude", 0.0),
            satellites=satellites,
            speed=numbers.get("speed", 0.0),
            bearing=numbers.get("bearing", 0.0),
        )
    except KeyError as error:
        raise BadValue(f"line {line}: the point has no {error.args[0]}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise BadValue(f"line {line}: {error}") from None
    if moment is not None and not math.isfinite(moment):
        raise BadValue(f"line {line}: a time is a finite number")
    return RoutePoint(fix, moment, "speed" in numbers and "bearing" in numbers, line)


def _moment(value: Any) -> float:
    """Seconds, from a number or an ISO 8601 time."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _limited(points: list[RoutePoint]) -> None:
    if len(points) >= MAX_POINTS:
        raise BadValue(f"a route has at most {MAX_POINTS} points")


_GPX_POINTS = {"trkpt", "rtept", "wpt"}
_GPX_FIELDS = {"ele": "altitude", "time": "time", "speed": "speed", "course": "bearing", "sat": "satellites"}


class _Gpx:
    """Collects the points of a GPX file: of its tracks, else of its routes, else its way points."""

    def __init__(self) -> None:
        self.points: dict[str, list[RoutePoint]] = {"trkpt": [], "rtept": [], "wpt": []}
        self._values: dict[str, Any] | None = None
        self._field = ""
        self._text: list[str] = []
        self._line = 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype

    def read(self, text: str) -> None:
        try:
            self._parser.Parse(text.encode(), True)
        except expat.ExpatError as error:
            raise BadValue(f"line {error.lineno}: no XML: {expat.errors.messages[error.code]}") from None

    def _doctype(self, *_: Any) -> None:
        # entities could make a small file a large one
        raise BadValue(f"line {self._parser.CurrentLineNumber}: a GPX file has no DOCTYPE")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(":")[2]
        if name in _GPX_POINTS:
            self._line = self._parser.CurrentLineNumber
            self._values = {
                full: attributes[short]
                for short, full in (("lat", "latitude"), ("lon", "longitude"))
                if short in attributes
            }
        elif self._values is not None and name in _GPX_FIELDS:
            self._field, self._text = _GPX_FIELDS[name], []

    def _characters(self, text: str) -> None:
        if self._field:
            self._text.append(text)

    def _end(self, name: str) -> None:
        name = name.rpartition(":")[2]
        if self._field and name in _GPX_FIELDS and self._values is not None:
            text = "".join(self._text).strip()
            if text:
                self._values[self._field] = text
            self._field = ""
        elif name in _GPX_POINTS and self._values is not None:
            _limited(self.points[name])
            self.points[name].append(_point(self._line, self._values))
            self._values = None


def _read_gpx(text: str) -> list[RoutePoint]:
    gpx = _Gpx()
    gpx.read(text)
    return gpx.points["trkpt"] or gpx.points["rtept"] or gpx.points["wpt"]


def _read_csv(text: str) -> list[RoutePoint]:
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    names = ["time", "latitude", "longitude", "altitude", "speed", "bearing"]
    points: list[RoutePoint] = []
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if not points and "latitude" in (header := [cell.lower() for cell in cells]):
                names = header
                continue
            if len(cells) > len(names):
                raise BadValue(f"line {rows.line_num}: {len(cells)} cells, and {len(names)} columns")
            _limited(points)
            known = {
                name: cell
                for name, cell in zip(names, cells, strict=False)
                if cell and name in {field.name for field in attrs.fields(Fix)}
            }
            points.append(_point(rows.line_num, known))
    except csv.Error as error:
        raise BadValue(f"line {rows.line_num}: {error}") from None
    return points


def _read_json(text: str) -> list[RoutePoint]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadValue(f"line {getattr(error, 'lineno', 1)}: no JSON: {error}") from None
    if isinstance(data, dict):
        data = data.get("points")
    if not isinstance(data, list):
        raise BadValue("line 1: a route is a list of points, or an object with the list 'points'")
    known = {field.name for field in attrs.fields(Fix)}
    points: list[RoutePoint] = []
    for number, item in enumerate(data, 1):
        # JSON has no lines to name: the number of the point says as much
        if isinstance(item, list) and 2 <= len(item) <= 3:
            item = dict(zip(("latitude", "longitude", "altitude"), item, strict=False))
        if not isinstance(item, dict):
            raise BadValue(f"point {number}: it is an object, or a list of latitude, longitude and altitude")
        _limited(points)
        try:
            points.append(
                _point(
                    number, {name: item[name] for name in item if name in known and item[name] is not None}
                )
            )
        except BadValue as error:
            raise BadValue(error.cause.replace("line ", "point ", 1)) from None
    return points


def _read_nmea(text: str) -> list[RoutePoint]:
    """GGA and RMC of one moment are one point; other sentences are passed over, wrong checksums are not."""
    points: list[RoutePoint] = []
    clock = ""
    values: dict[str, Any] = {}
    day: int | None = None
    last_of_day = 0.0
    for line, raw in enumerate(text.splitlines(), 1):
        sentence = raw.strip()
        if not sentence.startswith("$"):
            continue
        body, star, sum_text = sentence[1:].partition("*")
        if star and _sum(body) != sum_text[:2].upper():
            raise BadValue(f"line {line}: the checksum is {sum_text[:2]}, and should be {_sum(body)}")
        fields = body.split(",")
        kind = fields[0][2:]
        if kind not in ("GGA", "RMC") or len(fields) < 10:
            continue
        if (kind == "GGA" and fields[6] in ("", "0")) or (kind == "RMC" and fields[2] != "A"):
            continue
        try:
            seconds = _of_day(fields[1])
            found = _gga_values(fields) if kind == "GGA" else _rmc_values(fields)
            if kind == "RMC" and len(fields[9]) == 6:
                date = datetime.strptime(fields[9], "%d%m%y").replace(tzinfo=UTC)
                day = timegm(date.timetuple())
            elif seconds < last_of_day - 43_200:
                day = (day or 0) + 86_400  # midnight has passed
        except ValueError as error:
            raise BadValue(f"line {line}: {error}") from None
        last_of_day = seconds
        if fields[1] != clock and values:
            _limited(points)
            points.append(_point(line - 1, values))
            values = {}
        clock = fields[1]
        values.update(found, time=(day or 0) + seconds)
    if values:
        points.append(_point(line, values))
    return points


def _sum(body: str) -> str:
    total = 0
    for byte in body.encode("latin-1", "replace"):
        total ^= byte
    return f"{total:02X}"


def _of_day(text: str) -> float:
    if len(text) < 6 or not text[:6].isdigit():
        raise ValueError(f"{text!r} is no time")
    return int(text[:2]) * 3600 + int(text[2:4]) * 60 + float(text[4:])


def _angle(text: str, side: str, width: int) -> float:
    if len(text) < width + 2:
        raise ValueError(f"{text!r} is no angle")
    value = int(text[:width]) + float(text[width:]) / 60
    return -value if side in ("S", "W") else value


def _gga_values(fields: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "latitude": _angle(fields[2], fields[3], 2),
        "longitude": _angle(fields[4], fields[5], 3),
    }
    if fields[7]:
        found["satellites"] = max(int(fields[7]), 1)
    if fields[9]:
        found["altitude"] = float(fields[9])
    return found


def _rmc_values(fields: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "latitude": _angle(fields[3], fields[4], 2),
        "longitude": _angle(fields[5], fields[6], 3),
    }
    if fields[7] and fields[8]:
        found["speed"] = float(fields[7]) * KNOT_M_S
        found["bearing"] = float(fields[8]) % 360
    return found


FORMATS: dict[str, Callable[[str], list[RoutePoint]]] = {
    "gpx": _read_gpx,
    "nmea": _read_nmea,
    "csv": _read_csv,
    "json": _read_json,
}
"""Name to reader."""
