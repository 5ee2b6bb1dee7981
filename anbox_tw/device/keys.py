"""Names of keys, and how text is typed on a US keyboard.

Android's names mean the scan codes to which its ``Generic.kl`` gives them; that is the layout of a keyboard it does not
know by name.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from types import MappingProxyType

from anbox_tw.device.errors import BadValue, UnknownName
from anbox_tw.device.event_codes import EVENT_CODES

__all__ = ["ANDROID_KEYS", "MAX_TEXT", "US_KEYMAP", "key_code", "keystrokes"]

KEYS = EVENT_CODES["EV_KEY"]

MAX_TEXT = 4096
"""Characters that are typed in one go."""

MAX_CODE = 0x2FF
"""KEY_MAX"""

LEFT_SHIFT = KEYS["KEY_LEFTSHIFT"]

ANDROID_KEYS: Mapping[str, int] = MappingProxyType(
    {
        "HOME": KEYS["KEY_HOMEPAGE"],
        "BACK": KEYS["KEY_BACK"],
        "MENU": KEYS["KEY_MENU"],
        "APP_SWITCH": 580,
        "SEARCH": KEYS["KEY_SEARCH"],
        "POWER": KEYS["KEY_POWER"],
        "SLEEP": KEYS["KEY_SLEEP"],
        "WAKEUP": KEYS["KEY_WAKEUP"],
        "CAMERA": KEYS["KEY_CAMERA"],
        "EXPLORER": KEYS["KEY_WWW"],
        "CALL": KEYS["KEY_PHONE"],
        "VOLUME_UP": KEYS["KEY_VOLUMEUP"],
        "VOLUME_DOWN": KEYS["KEY_VOLUMEDOWN"],
        "VOLUME_MUTE": KEYS["KEY_MUTE"],
        "DPAD_UP": KEYS["KEY_UP"],
        "DPAD_DOWN": KEYS["KEY_DOWN"],
        "DPAD_LEFT": KEYS["KEY_LEFT"],
        "DPAD_RIGHT": KEYS["KEY_RIGHT"],
        "DPAD_CENTER": KEYS["KEY_SELECT"],
        "ENTER": KEYS["KEY_ENTER"],
        "DEL": KEYS["KEY_BACKSPACE"],
        "FORWARD_DEL": KEYS["KEY_DELETE"],
        "ESCAPE": KEYS["KEY_ESC"],
        "TAB": KEYS["KEY_TAB"],
        "SPACE": KEYS["KEY_SPACE"],
        "CLEAR": KEYS["KEY_CLEAR"],
        "INSERT": KEYS["KEY_INSERT"],
        "MOVE_HOME": KEYS["KEY_HOME"],
        "MOVE_END": KEYS["KEY_END"],
        "PAGE_UP": KEYS["KEY_PAGEUP"],
        "PAGE_DOWN": KEYS["KEY_PAGEDOWN"],
        "SHIFT_LEFT": KEYS["KEY_LEFTSHIFT"],
        "SHIFT_RIGHT": KEYS["KEY_RIGHTSHIFT"],
        "CTRL_LEFT": KEYS["KEY_LEFTCTRL"],
        "CTRL_RIGHT": KEYS["KEY_RIGHTCTRL"],
        "ALT_LEFT": KEYS["KEY_LEFTALT"],
        "ALT_RIGHT": KEYS["KEY_RIGHTALT"],
        "META_LEFT": KEYS["KEY_LEFTMETA"],
        "META_RIGHT": KEYS["KEY_RIGHTMETA"],
        "CAPS_LOCK": KEYS["KEY_CAPSLOCK"],
        "NUM_LOCK": KEYS["KEY_NUMLOCK"],
        "SCROLL_LOCK": KEYS["KEY_SCROLLLOCK"],
        "SYSRQ": KEYS["KEY_SYSRQ"],
        "BREAK": KEYS["KEY_PAUSE"],
        "CUT": KEYS["KEY_CUT"],
        "COPY": KEYS["KEY_COPY"],
        "PASTE": KEYS["KEY_PASTE"],
        "MEDIA_PLAY_PAUSE": KEYS["KEY_PLAYPAUSE"],
        "MEDIA_PLAY": KEYS["KEY_PLAYCD"],
        "MEDIA_STOP": KEYS["KEY_STOPCD"],
        "MEDIA_NEXT": KEYS["KEY_NEXTSONG"],
        "MEDIA_PREVIOUS": KEYS["KEY_PREVIOUSSONG"],
        "MEDIA_REWIND": KEYS["KEY_REWIND"],
        "MEDIA_FAST_FORWARD": KEYS["KEY_FASTFORWARD"],
        "GRAVE": KEYS["KEY_GRAVE"],
        "MINUS": KEYS["KEY_MINUS"],
        "EQUALS": KEYS["KEY_EQUAL"],
        "LEFT_BRACKET": KEYS["KEY_LEFTBRACE"],
        "RIGHT_BRACKET": KEYS["KEY_RIGHTBRACE"],
        "BACKSLASH": KEYS["KEY_BACKSLASH"],
        "SEMICOLON": KEYS["KEY_SEMICOLON"],
        "APOSTROPHE": KEYS["KEY_APOSTROPHE"],
        "COMMA": KEYS["KEY_COMMA"],
        "PERIOD": KEYS["KEY_DOT"],
        "SLASH": KEYS["KEY_SLASH"],
        **{name: KEYS[f"KEY_{name}"] for name in string.ascii_uppercase + string.digits},
        **{f"F{number}": KEYS[f"KEY_F{number}"] for number in range(1, 13)},
    }
)
"""Android's key names, without ``KEYCODE_``, to Linux codes."""

_SHORT = MappingProxyType(
    {"SHIFT": "SHIFT_LEFT", "CTRL": "CTRL_LEFT", "ALT": "ALT_LEFT", "META": "META_LEFT", "BACKSPACE": "DEL"}
)


def key_code(name: str | int) -> int:
    """The Linux code of a key.

    Args:
        name: ``KEY_A`` or ``BTN_LEFT``; ``KEYCODE_HOME``; without a prefix Android's meaning first (so ``HOME`` is the
            home screen, and ``KEY_HOME`` the start of the line), in any case of letters; a single digit is the key
            with that digit. A number, or text of two digits and more, is a Linux code itself.

    Raises:
        UnknownName: no key is called so.
    """
    text = str(name).strip().upper()
    if isinstance(name, int) or (text.isascii() and text.isdigit() and 1 < len(text) < 5):
        if 0 < int(text) <= MAX_CODE:
            return int(text)
        raise UnknownName(f"there is no key {int(text)}", f"codes are 1 to {MAX_CODE}")
    if text.startswith("KEYCODE_") and text[8:] in ANDROID_KEYS:
        return ANDROID_KEYS[text[8:]]
    text = _SHORT.get(text, text)
    for found in (ANDROID_KEYS.get(text), KEYS.get(text), KEYS.get(f"KEY_{text}")):
        if found is not None:
            return found
    from difflib import get_close_matches

    near = get_close_matches(text, [*ANDROID_KEYS, *KEYS], n=3)
    raise UnknownName(
        f"no key is called {str(name)[:40]!r}",
        f"did you mean {', '.join(near)}?"
        if near
        else "use names such as HOME, BACK, KEY_A, or a Linux code",
    )


def _us_keymap() -> Mapping[str, tuple[int, bool]]:
    table: dict[str, tuple[int, bool]] = {
        " ": (KEYS["KEY_SPACE"], False),
        "\t": (KEYS["KEY_TAB"], False),
        "\n": (KEYS["KEY_ENTER"], False),
    }
    for letter in string.ascii_lowercase:
        table[letter] = (KEYS[f"KEY_{letter.upper()}"], False)
        table[letter.upper()] = (KEYS[f"KEY_{letter.upper()}"], True)
    for digit, shifted in zip("1234567890", "!@#$%^&*()", strict=True):
        table[digit] = (KEYS[f"KEY_{digit}"], False)
        table[shifted] = (KEYS[f"KEY_{digit}"], True)
    for name, plain, shifted in (
        ("MINUS", "-", "_"),
        ("EQUAL", "=", "+"),
        ("LEFTBRACE", "[", "{"),
        ("RIGHTBRACE", "]", "}"),
        ("BACKSLASH", "\\", "|"),
        ("SEMICOLON", ";", ":"),
        ("APOSTROPHE", "'", '"'),
        ("GRAVE", "`", "~"),
        ("COMMA", ",", "<"),
        ("DOT", ".", ">"),
        ("SLASH", "/", "?"),
    ):
        table[plain] = (KEYS[f"KEY_{name}"], False)
        table[shifted] = (KEYS[f"KEY_{name}"], True)
    return MappingProxyType(table)


US_KEYMAP: Mapping[str, tuple[int, bool]] = _us_keymap()
"""Each character that a US keyboard types: the key's code, and whether Shift is held."""


def keystrokes(text: str) -> list[tuple[int, bool]]:
    """How ``text`` is typed: for each character the key's code, and whether Shift is held.

    Raises:
        BadValue: it is too long, or has a character that a US keyboard cannot type. Nothing of it is typed then.
    """
    if len(text) > MAX_TEXT:
        raise BadValue(f"{len(text)} characters are too many to type", f"type at most {MAX_TEXT} at once")
    text = text.replace("\r\n", "\n")
    bad = "".join(dict.fromkeys(character for character in text if character not in US_KEYMAP))
    if bad:
        raise BadValue(
            f"a US keyboard cannot type {bad[:20]!r}",
            "put the text on the clipboard instead and press the PASTE key",
        )
    return [US_KEYMAP[character] for character in text]
