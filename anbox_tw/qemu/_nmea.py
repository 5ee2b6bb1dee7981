"""NMEA 0183 sentences that a fix becomes, as the guest's GPS HAL (``gps_qemu.c``) reads them.

It takes GGA (time, position, altitude) and RMC (validity, position, speed, bearing, date) of any talker, latitude and longitude as
``dddmm.mmmm``, and lines of at most 83 bytes. It checks no checksum; other readers do, so they are right here, unlike the
emulator's constant ``*47``.
"""

from __future__ import annotations

import time

from anbox_tw.device import Fix

__all__ = ["checksum", "gga", "rmc", "sealed", "sentences"]

KNOTS_PER_M_S = 3600 / 1852

_MINUTE_DIGITS = 4
_MINUTE_SCALE = 10**_MINUTE_DIGITS


def checksum(body: str) -> str:
    """Of what stands between ``$`` and ``*``: two upper-case hexadecimal digits."""
    total = 0
    for byte in body.encode("ascii"):
        total ^= byte
    return f"{total:02X}"


def sealed(body: str) -> str:
    """The whole sentence, without a line end."""
    return f"${body}*{checksum(body)}"


def gga(fix: Fix, seconds: float) -> str:
    """Global positioning system fix data.

    Args:
        fix: what to tell.
        seconds: since 1970, where the fix has no time of its own.
    """
    clock, _ = _time(seconds)
    if not fix.satellites:
        # Readers take a position that is there for a fix, whatever the quality says: the guest's does.
        return sealed(f"GPGGA,{clock},,,,,0,00,,,M,,M,,")
    satellites = min(fix.satellites, 12)  # GGA counts to 12
    return sealed(f"GPGGA,{clock},{_position(fix)},1,{satellites:02d},1.0,{fix.altitude:.1f},M,0.0,M,,")


def rmc(fix: Fix, seconds: float) -> str:
    """Recommended minimum data; arguments as `gga`."""
    clock, date = _time(seconds)
    if not fix.satellites:
        return sealed(f"GPRMC,{clock},V,,,,,,,{date},,,N")
    speed = fix.speed * KNOTS_PER_M_S
    bearing = round(fix.bearing, 1) % 360
    return sealed(f"GPRMC,{clock},A,{_position(fix)},{speed:.1f},{bearing:.1f},{date},,,A")


def sentences(fix: Fix, seconds: float) -> bytes:
    """What a receiver reports at one moment: GGA and RMC, each with its line end."""
    return f"{gga(fix, seconds)}\n{rmc(fix, seconds)}\n".encode("ascii")


def _time(seconds: float) -> tuple[str, str]:
    hundredths = round(max(seconds, 0.0) * 100)
    moment = time.gmtime(hundredths // 100)
    return f"{time.strftime('%H%M%S', moment)}.{hundredths % 100:02d}", time.strftime("%d%m%y", moment)


def _position(fix: Fix) -> str:
    return (
        f"{_angle(fix.latitude, 2)},{'S' if fix.latitude < 0 else 'N'},"
        f"{_angle(fix.longitude, 3)},{'W' if fix.longitude < 0 else 'E'}"
    )


def _angle(degrees: float, width: int) -> str:
    # In whole units of the last digit, so that 59.99999 minutes become the next degree and not 60 minutes.
    units = round(abs(degrees) * 60 * _MINUTE_SCALE)
    whole, units = divmod(units, 60 * _MINUTE_SCALE)
    minutes, fraction = divmod(units, _MINUTE_SCALE)
    return f"{whole:0{width}d}{minutes:02d}.{fraction:0{_MINUTE_DIGITS}d}"
