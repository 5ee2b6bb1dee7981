"""Where the device is."""

from __future__ import annotations

from typing import Any

import attrs

from anbox_tw.device.errors import BadValue
from anbox_tw.device.part import Part, in_range

__all__ = ["GOOD_SATELLITES", "MAX_SENTENCE_BYTES", "Fix", "Location"]

MAX_SENTENCE_BYTES = 82
"""Of an NMEA sentence without its line end: the guest's HAL (``gps_qemu.c``, ``NMEA_MAX_SIZE`` 83) drops longer lines."""

GOOD_SATELLITES = 8
"""Of a fix whose maker does not say: a clear sky."""


@attrs.frozen
class Fix:
    """A position, WGS 84.

    Attributes:
        latitude: degrees, north positive.
        longitude: degrees, east positive.
        altitude: metres above mean sea level.
        satellites: in use; 0 is "no fix".
        speed: metres per second over ground.
        bearing: degrees from true north.
        time: seconds since 1970, or None for now.
    """

    latitude: float = attrs.field(default=0.0, validator=in_range(-90, 90))
    longitude: float = attrs.field(default=0.0, validator=in_range(-180, 180))
    altitude: float = attrs.field(default=0.0, validator=in_range(-12_000, 1_000_000))
    satellites: int = attrs.field(default=0, validator=in_range(0, 32))
    speed: float = attrs.field(default=0.0, validator=in_range(0, 20_000))
    bearing: float = attrs.field(default=0.0, validator=in_range(0, 360))
    time: float | None = None


class Location(Part[Fix]):
    """The last fix; events: ``fix`` (each fix, also one equal to the last) and ``nmea`` (``str``, a raw sentence)."""

    name = "location"

    def __init__(self) -> None:
        super().__init__(Fix())

    def update(self, **changes: Any) -> Fix:
        """As that of any part, and a new fix; one that has a place and no satellites gets `GOOD_SATELLITES`."""
        if changes.keys() & {"latitude", "longitude"} and not self.state.satellites:
            changes.setdefault("satellites", GOOD_SATELLITES)
        fix = super().update(**changes)
        self.emit("fix", fix)
        return fix

    def set_fix(self, fix: Fix) -> None:
        """Take a new fix and tell it, even where it is equal to the last one: a receiver reports at a pace."""
        self.replace(fix)
        self.emit("fix", fix)

    def push_sentence(self, sentence: str) -> None:
        """Give the guest an NMEA sentence as it is; line ends at its end are dropped.

        Raises:
            BadValue: it is empty, longer than `MAX_SENTENCE_BYTES`, has line ends inside or is not ASCII.
        """
        text = sentence.rstrip("\r\n")
        if not text:
            raise BadValue("the NMEA sentence is empty")
        if not text.isascii() or not text.isprintable():
            raise BadValue("an NMEA sentence is one line of printable ASCII")
        if len(text) > MAX_SENTENCE_BYTES:
            raise BadValue(
                f"an NMEA sentence has at most {MAX_SENTENCE_BYTES} characters, this one has {len(text)}"
            )
        self.emit("nmea", text)
