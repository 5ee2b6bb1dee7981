"""Routes from four formats, and the way between their points."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device import BadValue, Fix
from anbox_tw.device import route as route_module
from anbox_tw.device.route import RoutePoint, direction, distance, parse_route, positions, timed

GPX = """<?xml version="1.0" encoding="UTF-8"?>
<gpx version="1.1" xmlns="http://www.topografix.com/GPX/1/1" xmlns:x="urn:x">
 <metadata><time>2026-01-01T00:00:00Z</time></metadata>
 <wpt lat="1" lon="1"/>
 <trk><name>t</name><trkseg>
  <trkpt lat="52.5" lon="13.4"><ele>34.5</ele><time>2026-01-01T00:00:00Z</time></trkpt>
  <trkpt lat="52.6" lon="13.5"><ele> 36 </ele><time>2026-01-01T00:01:40.500Z</time>
    <extensions><x:speed>5</x:speed><x:course>90</x:course></extensions></trkpt>
 </trkseg></trk>
</gpx>"""

NMEA = """$GPGGA,235959.00,4807.0380,N,01131.0000,W,1,08,0.9,545.4,M,46.9,M,,
$GPRMC,235959.00,A,4807.0380,N,01131.0000,W,10.0,084.4,311299,,,A
$GPGSV,1,1,00
garbage
$GNGGA,000000.50,4807.0380,S,01131.0000,E,1,04,0.9,1.5,M,46.9,M,,
$GPRMC,000001.00,V,,,,,,,010100,,,N
$GPGGA,000001.50,,,,,0,00,,,M,,M,,
"""


class FormatTests(SynchronousTestCase):
    def test_gpx(self) -> None:
        points = parse_route(GPX)
        self.assertEqual(points[0].fix, Fix(52.5, 13.4, 34.5, 8))
        self.assertEqual(points[1].fix, Fix(52.6, 13.5, 36, 8, 5, 90))
        self.assertEqual((points[0].has_motion, points[1].has_motion), (False, True))
        self.assertEqual([at for at, _ in timed(points)], [0, 100.5])

    def test_gpx_routes_and_way_points_where_there_is_no_track(self) -> None:
        points = parse_route('<gpx><wpt lat="9" lon="9"/><rte><rtept lat="1" lon="2"/></rte></gpx>')
        self.assertEqual([point.fix.latitude for point in points], [1])
        self.assertEqual(parse_route('<gpx><wpt lat="9" lon="8"/></gpx>')[0].fix.longitude, 8)

    def test_nmea(self) -> None:
        points = parse_route(NMEA)
        self.assertEqual(len(points), 2)
        first, second = points
        self.assertTrue(math.isclose(first.fix.latitude, 48.1173))
        self.assertTrue(math.isclose(first.fix.longitude, -11.516666666666667))
        self.assertEqual((first.fix.altitude, first.fix.satellites, first.fix.bearing), (545.4, 8, 84.4))
        self.assertTrue(math.isclose(first.fix.speed, 18.52 / 3.6))
        self.assertTrue(math.isclose(second.fix.latitude, -48.1173))
        # over midnight
        self.assertEqual([at for at, _ in timed(points)], [0, 1.5])

    def test_csv(self) -> None:
        points = parse_route("# a drive\n0,52.5,13.4\n\n10,52.6,13.5,100\n")
        self.assertEqual([point.time for point in points], [0, 10])
        self.assertEqual(points[1].fix.altitude, 100)
        named = parse_route("Longitude,Latitude,colour\n13.4,52.5,red\n")
        self.assertEqual((named[0].fix.latitude, named[0].time), (52.5, None))

    def test_json(self) -> None:
        points = parse_route("[[52.5, 13.4], [52.6, 13.5, 7]]")
        self.assertEqual(points[1].fix.altitude, 7)
        named = {
            "points": [{"latitude": 1, "longitude": 2, "time": 5, "speed": 3, "bearing": 4, "note": "x"}]
        }
        self.assertEqual(parse_route(json.dumps(named))[0], RoutePoint(Fix(1, 2, 0, 8, 3, 4), 5.0, True, 1))

    def test_what_is_wrong_is_told_with_its_line(self) -> None:
        for text, words in (
            ("", "no point"),
            ("<gpx></gpx>", "no point"),
            ("<gpx>\n<wpt lat='1'/></gpx>", "line 2: the point has no longitude"),
            ("<gpx>\n\n<wpt lat='91' lon='1'/></gpx>", "line 3: latitude must be"),
            ("<gpx>\n<wpt", "line 2: no XML"),
            ("<!DOCTYPE gpx [<!ENTITY a 'aaaa'>]><gpx/>", "no DOCTYPE"),
            ("0,1,2\n0,x,2\n", "line 2: could not convert"),
            ("0,1,2\n0,1,2,3,4,5,6\n", "line 2: 7 cells"),
            ("0,nan,2", "line 1: latitude must be"),
            ("inf,1,2", "line 1: a time is a finite number"),
            ("0,1\n", "line 1: the point has no longitude"),
            ("[[1]]", "point 1: it is an object"),
            ('[{"latitude": 1}]', "point 1: the point has no longitude"),
            ('[{"latitude": [1], "longitude": 2}]', "point 1: "),
            ("[1,\n}", "line 2: no JSON"),
            ("{}", "line 1: a route is a list"),
            ("[" * 100_000, "no JSON"),
            ("$GPGGA,1,4807.038,N,01131.000,E,1,08,0.9,5,M,,M,,", "line 1: '1' is no time"),
            (
                "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*48",
                "line 1: the checksum is 48",
            ),
            ("$GPGGA,123519,48,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,", "line 1: '48' is no angle"),
        ):
            with self.assertRaises(BadValue) as caught:
                parse_route(text)
            self.assertIn(words, str(caught.exception), text[:40])
        with self.assertRaises(BadValue):
            parse_route("1,2", "kml")
        with self.assertRaises(BadValue):
            timed(parse_route("5,1,1\n4,1,1"))

    def test_the_number_of_points_has_a_limit(self) -> None:
        self.patch(route_module, "MAX_POINTS", 2)
        wpt = '<wpt lat="1" lon="1"/>'
        gga = "".join(f"$GPGGA,00000{n},4807.038,N,01131.000,E,1,08,0.9,5,M,,M,,\n" for n in range(4))
        for text in ("1,1,1\n" * 3, "[[1,1],[1,1],[1,1]]", f"<gpx>{wpt * 3}</gpx>", gga):
            with self.assertRaises(BadValue) as caught:
                parse_route(text)
            self.assertIn("at most 2 points", str(caught.exception))

    @given(st.text(max_size=200), st.sampled_from(["", *route_module.FORMATS]))
    def test_any_text_is_a_route_or_a_bad_value(self, text: str, format: str) -> None:
        try:
            points = parse_route(text, format)
        except BadValue:
            return
        assert points


class WayTests(SynchronousTestCase):
    def test_distance_and_direction(self) -> None:
        # Paris to London, 343.5 km by published tables
        paris, london = Fix(48.8566, 2.3522), Fix(51.5074, -0.1278)
        self.assertLess(abs(distance(paris, london) - 343_560), 400)
        self.assertLess(abs(direction(paris, london) - 330), 1)
        self.assertEqual(distance(paris, paris), 0)
        self.assertTrue(math.isclose(direction(Fix(0, 179.5), Fix(0, -179.5)), 90))

    def test_positions_at_an_even_rate_and_the_end(self) -> None:
        route = timed(parse_route("0,0,0\n10,.01,.02,100\n12.25,.01,.02,100\n"))
        found = list(positions(route, 2))
        self.assertEqual([at for at, _ in found], [number / 2 for number in range(25)] + [12.25])
        middle = dict(found)[5.0]
        self.assertEqual((middle.latitude, middle.longitude, middle.altitude), (0.005, 0.01, 50.0))
        self.assertTrue(math.isclose(middle.speed, distance(Fix(0, 0), Fix(0.01, 0.02)) / 10))
        self.assertTrue(math.isclose(middle.bearing, direction(Fix(0, 0), Fix(0.01, 0.02))))
        self.assertEqual(found[-1][1].speed, 0)
        self.assertEqual([at for at, _ in positions(timed(parse_route("0,1,1")))], [0])

    def test_the_short_way_over_the_date_line_and_over_north(self) -> None:
        route = timed(parse_route("time,latitude,longitude,speed,bearing\n0,0,179,1,350\n2,0,-179,3,20\n"))
        middle = dict(positions(route))[1.0]
        self.assertEqual((abs(middle.longitude), middle.bearing, middle.speed), (180, 5, 2))

    def test_a_speed_instead_of_times(self) -> None:
        points = parse_route("[[0, 0], [0, 1], [0, 1]]")
        whole = distance(Fix(0, 0), Fix(0, 1))
        self.assertEqual([at for at, _ in timed(points, 100)], [0, whole / 100, whole / 100])
        self.assertEqual(timed(points)[1][0], whole / 13.9)

    @given(
        st.lists(
            st.tuples(st.floats(0, 100), st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=6
        ),
        st.floats(0.1, 10),
    )
    def test_the_way_begins_and_ends_where_the_route_does(
        self, rows: list[tuple[float, float, float]], rate: float
    ) -> None:
        rows.sort()
        points = [RoutePoint(Fix(lat, lon, satellites=8), at) for at, lat, lon in rows]
        found = list(positions(timed(points), rate))
        times = [at for at, _ in found]
        assert times == sorted(times)
        assert math.isclose(times[-1], rows[-1][0] - rows[0][0], abs_tol=1e-6)
        assert math.isclose(found[-1][1].latitude, rows[-1][1], abs_tol=1e-6)
