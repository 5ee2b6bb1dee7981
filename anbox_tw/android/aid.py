"""Android's fixed user and group ids, and how init turns a name into a number.

Source: ``include/private/android_filesystem_config.h`` and ``init/util.cpp`` (``decode_uid``) at
android-7.0.0_r1.
"""

from __future__ import annotations

import grp
import pwd

__all__ = ["AIDS", "APP_START", "PER_USER_RANGE", "SHARED_APP_GID_START", "decode_id", "name_of"]

AIDS: dict[str, int] = {
    "root": 0,
    "system": 1000,
    "radio": 1001,
    "bluetooth": 1002,
    "graphics": 1003,
    "input": 1004,
    "audio": 1005,
    "camera": 1006,
    "log": 1007,
    "compass": 1008,
    "mount": 1009,
    "wifi": 1010,
    "adb": 1011,
    "install": 1012,
    "media": 1013,
    "dhcp": 1014,
    "sdcard_rw": 1015,
    "vpn": 1016,
    "keystore": 1017,
    "usb": 1018,
    "drm": 1019,
    "mdnsr": 1020,
    "gps": 1021,
    "media_rw": 1023,
    "mtp": 1024,
    "drmrpc": 1026,
    "nfc": 1027,
    "sdcard_r": 1028,
    "clat": 1029,
    "loop_radio": 1030,
    "mediadrm": 1031,
    "package_info": 1032,
    "sdcard_pics": 1033,
    "sdcard_av": 1034,
    "sdcard_all": 1035,
    "logd": 1036,
    "shared_relro": 1037,
    "dbus": 1038,
    "tlsdate": 1039,
    "mediaex": 1040,
    "audioserver": 1041,
    "metrics_coll": 1042,
    "metricsd": 1043,
    "webserv": 1044,
    "debuggerd": 1045,
    "mediacodec": 1046,
    "cameraserver": 1047,
    "shell": 2000,
    "cache": 2001,
    "diag": 2002,
    "net_bt_admin": 3001,
    "net_bt": 3002,
    "inet": 3003,
    "net_raw": 3004,
    "net_admin": 3005,
    "net_bw_stats": 3006,
    "net_bw_acct": 3007,
    "net_bt_stack": 3008,
    "readproc": 3009,
    "wakelock": 3010,
    "everybody": 9997,
    "misc": 9998,
    "nobody": 9999,
}
"""Name to number, all of 7.0."""

PER_USER_RANGE = 100000
"""``AID_USER``: a uid is ``user * PER_USER_RANGE + application``."""

APP_START = 10000
"""``AID_APP``: the first application id."""

SHARED_APP_GID_START = 50000
"""``AID_SHARED_GID_START``: the group an application shares between all users is this plus ``appid - APP_START``."""

MAX_ID = 0xFFFFFFFE
"""4294967295 is "no id" to every system call that takes one."""

_NAMES = {number: name for name, number in AIDS.items()}


def name_of(number: int) -> str:
    """The Android name of ``number``, or its decimal digits."""
    return _NAMES.get(number, str(number))


def decode_id(text: str, *, group: bool = False, host: bool = False) -> int | None:
    """Turn a user or group of an rc file into its number.

    A word that begins with a letter is a name of the table; anything else is a number as C's
    ``strtoul`` reads it with base 0 (``010`` is eight, ``0x10`` sixteen).

    Args:
        text: what the rc file says.
        group: the name is a group's (matters on the host only: the Android table knows no difference).
        host: also ask the host's own user database, for services that no Android knows.

    Returns:
        The number, or ``None`` where Android would log an error and use 4294967295.
    """
    if text[:1].isalpha() and text[:1].isascii():
        known = AIDS.get(text)
        if known is None and host:
            try:
                known = grp.getgrnam(text).gr_gid if group else pwd.getpwnam(text).pw_uid
            except (KeyError, ValueError):
                return None
        return known
    octal = len(text) > 1 and text[0] == "0" and text[1] not in "xX"
    try:
        number = int(text, 8) if octal else int(text, 16 if text[:2] in ("0x", "0X") else 10)
    except ValueError:
        return None
    return number if 0 <= number <= MAX_ID else None
