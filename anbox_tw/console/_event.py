"""``event``: what the guest reads from ``/dev/input``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from anbox_tw.console._text import ESCAPES, unescape
from anbox_tw.console._tree import Command, Ko, Lines
from anbox_tw.device import BadValue, InputDevice, InputEvent
from anbox_tw.device.event_codes import EVENT_CODES, EVENT_TYPES, code_number, type_number
from anbox_tw.device.keys import keystrokes
from anbox_tw.interfaces import IConsoleHost

__all__ = ["EVENT"]

_EV_SYN, _EV_KEY, _EV_REL, _EV_ABS = (EVENT_TYPES[name] for name in ("EV_SYN", "EV_KEY", "EV_REL", "EV_ABS"))
_BTN_MOUSE, _BTN_JOYSTICK, _BTN_DIGI, _KEY_OK = 0x110, 0x120, 0x140, 0x160


def _device_of(event: InputEvent, before: InputDevice) -> InputDevice:
    """Which of the three devices has such events; the emulator has one for all."""
    if event.type == _EV_REL:
        return InputDevice.POINTER
    if event.type == _EV_ABS:
        return InputDevice.TOUCH
    if event.type == _EV_KEY:
        if _BTN_MOUSE <= event.code < _BTN_JOYSTICK:
            return InputDevice.POINTER
        return InputDevice.TOUCH if _BTN_DIGI <= event.code < _KEY_OK else InputDevice.KEYBOARD
    return before


def _parse(word: str) -> InputEvent:
    kind, _, rest = word.partition(":")
    code, _, value = rest.partition(":")
    try:
        number = type_number(kind)
    except ValueError:
        raise Ko(f"invalid event type in '{word}', try 'event list types' for valid values") from None
    try:
        coded = code_number(number, code) if code else 0
    except ValueError:
        raise Ko(f"invalid event code in '{word}', try 'event list codes <type>' for valid values") from None
    if not re.fullmatch(r"[+-]?(?:0[xX][0-9A-Fa-f]{1,8}|\d{1,10})?", value, re.ASCII):
        raise Ko(f"invalid event value in '{word}', must be an integer")
    amount = int(value, 0 if "x" in value.lower() else 10) if value.strip("+-") else 0
    return InputEvent(number, coded, amount)


def _send(host: IConsoleHost, text: str) -> None:
    if not text.strip():
        raise Ko("Usage: event send <type>:<code>:<value> ...")
    failed: Ko | None = None
    batch: list[InputEvent] = []
    device = InputDevice.KEYBOARD
    for word in text.split():
        try:
            event = _parse(word)
        except Ko as ko:
            failed = ko
            break
        wanted = _device_of(event, device)
        if wanted is not device:
            _inject(host, device, batch)
            batch, device = [], wanted
        batch.append(event)
    # what stood before the mistake is sent, as in the emulator
    _inject(host, device, batch)
    if failed is not None:
        raise failed


def _inject(host: IConsoleHost, device: InputDevice, batch: Sequence[InputEvent]) -> None:
    try:
        host.injector.raw(device, batch)
    except BadValue as error:
        raise Ko(error.cause) from None


def _types(host: IConsoleHost, text: str) -> Lines:
    lines = ["event <type> can be an integer or one of the following aliases"]
    for name in EVENT_TYPES:
        codes = len(EVENT_CODES.get(name, {}))
        lines.append(f"    {name:<8}" + (f"  ({codes} code aliases)" if codes else ""))
    return lines


def _codes(host: IConsoleHost, text: str) -> Lines:
    if not text:
        raise Ko("argument missing, try 'event codes <type>'")
    try:
        number = type_number(text)
    except ValueError:
        raise Ko("bad argument, see 'event types' for valid values") from None
    names = [name for name, value in EVENT_TYPES.items() if value == number]
    if not names and number > EVENT_TYPES["EV_MAX"]:
        raise Ko("bad argument, see 'event types' for valid values")
    codes = EVENT_CODES.get(names[0], {}) if names else {}
    if not codes:
        return ["no code aliases defined for this type"]
    return [f"type '{text}' accepts the following <code> aliases:", *(f"    {name:<12}" for name in codes)]


async def _text(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("argument missing, try 'event text <message>'")
    typed = "".join(character for character in unescape(text) if _has_key(character))
    if typed:
        try:
            await host.injector.text(typed)
        except BadValue as error:
            raise Ko(error.cause) from None


def _has_key(character: str) -> bool:
    try:
        keystrokes(character)
    except BadValue:
        return False
    return True


def _mouse(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("argument missing, try 'event mouse <x> <y> <device> <buttonstate>'")
    words = text.split()
    if len(words) != 4 or not all(re.fullmatch(r"[+-]?\d{1,9}", word, re.ASCII) for word in words):
        raise Ko("Invalid arguments. Make sure you provide 4 integers.")
    try:
        host.injector.mouse_state(*map(int, words))
    except BadValue as error:
        raise Ko(error.cause) from None


EVENT = Command(
    "event",
    "simulate hardware events",
    ("keys, touches and the mouse",),
    commands=(
        Command(
            "send",
            "send a series of events to the kernel",
            (
                "'event send <type>:<code>:<value> ...' sends events as they are, EV_SYN:0:0 too where you want it",
                "types and codes are names or numbers",
            ),
            _send,
        ),
        Command("types", "list all <type> aliases", ("'event types' lists the names of types",), _types),
        Command(
            "codes",
            "list all <code> aliases for a given <type>",
            ("'event codes <type>' lists the names of codes of a type",),
            _codes,
        ),
        Command(
            "text",
            "simulate keystrokes from a given text",
            (
                "'event text <message>' types a text; characters that a US keyboard has not are left out",
                *ESCAPES,
            ),
            _text,
        ),
        Command(
            "mouse",
            "simulate a mouse event",
            (
                "'event mouse <x> <y> <device> <buttonstate>' says where the mouse is and what is pressed",
                "<device> is 0 for the touch screen, 1 for a trackball",
                "<buttonstate> is the sum of 1 left, 2 right, 4 middle, 8 wheel up, 16 wheel down",
            ),
            _mouse,
        ),
    ),
)
