"""The network's time as ``%CTZV`` tells it, in the emulator's form, which is not quite that of TI's modems."""

from __future__ import annotations

import os
import time

__all__ = ["local_zone", "nitz"]


def nitz(seconds: float, quarters: int, summer: bool, name: str) -> str:
    """The line: UTC, quarters of an hour to local time, whether it is summer time, the zone's name with ``!`` for ``/``.

    ``:`` stands where others have ``,``, and ``!`` for ``/``, because the RIL takes both for the end of the field.

    Args:
        seconds: since 1970.
        quarters: of an hour, east of UTC.
        summer: whether summer time is in force.
        name: ``Europe/Berlin``.
    """
    when = time.gmtime(seconds)
    return (
        f"%CTZV: {when.tm_year % 100:02d}/{when.tm_mon:02d}/{when.tm_mday:02d}"
        f":{when.tm_hour:02d}:{when.tm_min:02d}:{when.tm_sec:02d}"
        f"{quarters:+d}:{int(summer)}:{name.replace('/', '!')}"
    )


def local_zone(seconds: float) -> tuple[int, bool, str]:
    """The host's zone at a time: quarters of an hour east of UTC, whether it is summer time, its name."""
    local = time.localtime(seconds)
    name = os.environ.get("TZ", "").lstrip(":")
    if "/" not in name:
        try:
            name = os.readlink("/etc/localtime").partition("zoneinfo/")[2]
        except OSError:
            name = ""
    return local.tm_gmtoff // 900, local.tm_isdst > 0, name or "Unknown/Unknown"
