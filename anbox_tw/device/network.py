"""How fast the guest's network is meant to be."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from anbox_tw.device.errors import BadValue
from anbox_tw.device.part import Part, in_range

__all__ = ["DELAYS", "SPEEDS", "Network", "NetworkState"]

SPEEDS: Mapping[str, tuple[int, int]] = {
    "gsm": (14_400, 14_400),
    "hscsd": (14_400, 43_200),
    "gprs": (40_000, 80_000),
    "edge": (118_400, 236_800),
    "umts": (128_000, 1_920_000),
    "hsdpa": (348_000, 14_400_000),
    "full": (0, 0),
}
"""The emulator's profiles: up and down, bits per second; 0 is no limit."""

DELAYS: Mapping[str, tuple[int, int]] = {
    "gprs": (150, 550),
    "edge": (80, 400),
    "umts": (35, 200),
    "none": (0, 0),
}
"""The emulator's profiles: least and most milliseconds."""

MAX_BITS_PER_S = 1 << 40
MAX_DELAY_MS = 60_000


@attrs.frozen
class NetworkState:
    """What is asked of the shaper.

    Attributes:
        upload: guest to host, bits per second; 0 is no limit.
        download: host to guest, bits per second; 0 is no limit.
        min_delay: milliseconds added at least.
        max_delay: milliseconds added at most.
        speed: the profile's name, or empty for plain numbers.
        delay: likewise.
    """

    upload: int = attrs.field(default=0, validator=in_range(0, MAX_BITS_PER_S))
    download: int = attrs.field(default=0, validator=in_range(0, MAX_BITS_PER_S))
    min_delay: int = attrs.field(default=0, validator=in_range(0, MAX_DELAY_MS))
    max_delay: int = attrs.field(default=0, validator=in_range(0, MAX_DELAY_MS))
    speed: str = "full"
    delay: str = "none"


class Network(Part[NetworkState]):
    """Speed and delay; whatever shapes the traffic observes it."""

    name = "network"

    def __init__(self) -> None:
        super().__init__(NetworkState())

    def set_speed(self, text: str) -> None:
        """Take a profile's name, ``KBITS`` or ``UP:DOWN`` in kilobits (1000 bits) per second.

        Raises:
            BadValue: it is none of these.
        """
        if text in SPEEDS:
            up, down = SPEEDS[text]
            self.update(upload=up, download=down, speed=text)
            return
        first, second = _pair(text, "speed", SPEEDS)
        self.update(upload=first * 1000, download=second * 1000, speed="")

    def set_delay(self, text: str) -> None:
        """Take a profile's name, ``MS`` or ``MIN:MAX`` in milliseconds.

        Raises:
            BadValue: it is none of these.
        """
        if text in DELAYS:
            low, high = DELAYS[text]
            self.update(min_delay=low, max_delay=high, delay=text)
            return
        low, high = _pair(text, "delay", DELAYS)
        if low > high:
            raise BadValue(f"the least delay {low} is above the most, {high}")
        self.update(min_delay=low, max_delay=high, delay="")


def _pair(text: str, what: str, profiles: Mapping[str, object]) -> tuple[int, int]:
    first, colon, second = text.partition(":")
    if not colon:
        second = first
    if not (first.isascii() and first.isdigit() and second.isascii() and second.isdigit()) or len(text) > 30:
        raise BadValue(
            f"{text!r} is no network {what}", f"give a number, two as A:B, or one of {', '.join(profiles)}"
        )
    return int(first), int(second)
