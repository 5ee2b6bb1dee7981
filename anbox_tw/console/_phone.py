"""``gsm``, ``cdma``, ``sms``: the phone, from the network's side."""

from __future__ import annotations

import re

from anbox_tw.console._text import ESCAPES, c_integer, numbers, unescape
from anbox_tw.console._tree import Command, Ko, Lines
from anbox_tw.device import BadValue, CallDirection, CallState, Refused, Registration, UnknownName
from anbox_tw.interfaces import IConsoleHost

__all__ = ["CDMA", "GSM", "SMS"]

_CALL_STATES = {
    CallState.ACTIVE: "active",
    CallState.HELD: "held",
    CallState.ALERTING: "ringing",
    CallState.WAITING: "waiting",
    CallState.INCOMING: "incoming",
}

_STATES = {
    "unregistered": (Registration.UNREGISTERED, "no network available"),
    "home": (Registration.HOME, "on local network, non-roaming"),
    "roaming": (Registration.ROAMING, "on roaming network"),
    "searching": (Registration.SEARCHING, "searching networks"),
    "denied": (Registration.DENIED, "emergency calls only"),
    "off": (Registration.UNREGISTERED, "same as 'unregistered'"),
    "on": (Registration.HOME, "same as 'home'"),
}

_STATE_LINES = tuple(f"  {name:<15} {meaning}" for name, (_, meaning) in _STATES.items())

_SOURCES = {"nv": 0, "ruim": 1}


def _number(text: str, example: str) -> str:
    if not text:
        raise Ko(f"missing argument, try '{example}'")
    if not re.fullmatch(r"[0-9+#]+", text, re.ASCII):
        raise Ko("bad phone number format, use digits, # and + only")
    return text


def _list(host: IConsoleHost, text: str) -> Lines:
    return [
        f"{'outbound to ' if call.direction is CallDirection.OUTGOING else 'inbound from'} {call.number:<10} : "
        f"{_CALL_STATES.get(call.state, 'unknown')}"
        for call in host.device.calls
    ]


def _call(host: IConsoleHost, text: str) -> None:
    try:
        host.device.calls.ring(_number(text, "gsm call <phonenumber>"))
    except BadValue:
        raise Ko("bad phone number format, use digits, # and + only") from None
    except Refused as refused:
        raise Ko(refused.cause) from None


def _busy(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing argument, try 'gsm busy <phonenumber>'")
    try:
        with host.device.calls.by_other():
            host.device.calls.busy(text)
    except UnknownName:
        raise Ko(f"no current outbound call to number '{text}'") from None


def _hold(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing argument, try 'gsm out hold <phonenumber>'")
    try:
        with host.device.calls.by_other():
            host.device.calls.hold(text)
    except UnknownName:
        raise Ko(f"no current call to/from number '{text}'") from None


def _accept(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing argument, try 'gsm accept <phonenumber>'")
    try:
        with host.device.calls.by_other():
            host.device.calls.accept(text)
    except UnknownName:
        raise Ko(f"no current call to/from number '{text}'") from None


def _cancel(host: IConsoleHost, text: str) -> None:
    number = _number(text, "gsm call <phonenumber>")
    try:
        with host.device.calls.by_other():
            host.device.calls.cancel(number)
    except UnknownName:
        raise Ko("could not cancel this number") from None


def _state(text: str, what: str) -> Registration:
    if not text:
        raise Ko(f"missing argument, try 'gsm {what} <state>'")
    if text not in _STATES:
        raise Ko(f"bad GSM data state name, try 'help gsm {what}' for list of valid values")
    return _STATES[text][0]


def _data(host: IConsoleHost, text: str) -> None:
    host.device.phone.update(data=_state(text, "data"))


def _voice(host: IConsoleHost, text: str) -> None:
    host.device.phone.update(voice=_state(text, "voice"))


def _status(host: IConsoleHost, text: str) -> Lines:
    if text:
        raise Ko("no argument required")
    state = host.device.phone.state
    return [f"gsm voice state: {state.voice.value}", f"gsm data state:  {state.data.value}"]


def _signal(host: IConsoleHost, text: str) -> None:
    given = [int(number) for number in numbers(text, 2, whole=True)]
    if not given:
        raise Ko("not enough arguments: see 'help gsm signal' for details")
    rssi, ber = given[0], given[1] if len(given) > 1 else host.device.phone.state.ber
    if not (0 <= rssi <= 31 or rssi == 99):
        raise Ko("invalid RSSI - must be 0..31 or 99")
    if not (0 <= ber <= 7 or ber == 99):
        raise Ko("invalid BER - must be 0..7 or 99")
    host.device.phone.update(rssi=rssi, ber=ber, signal_profile=None)


def _profile(host: IConsoleHost, text: str) -> None:
    given = c_integer(text)
    if given is None:
        raise Ko(f"argument '{text}' is not a number")
    if not 0 <= given <= 4:
        raise Ko("invalid signal strength - must be 0..4")
    host.device.phone.update(signal_profile=given)


def _meter(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing argument, try 'gsm meter <on|off>'")
    if text not in ("on", "off"):
        raise Ko("bad GSM meter state name, try 'help gsm meter' for list of valid values")
    host.device.phone.update(metered=text == "on")


def _source(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing argument, try 'cdma ssource <source>'")
    if text.lower() not in _SOURCES:
        raise Ko(f"Don't know source {text}")
    host.device.phone.update(subscription=_SOURCES[text.lower()])


def _prl_version(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing argument, try 'cdma prl_version <version>'")
    version = c_integer(text)
    if version is not None and 0 <= version <= 0x7FFFFFFF:  # others are ignored
        host.device.phone.update(prl_version=version)


def _send(host: IConsoleHost, text: str) -> None:
    number, blank, message = text.partition(" ")
    if not blank:
        raise Ko("missing argument, try 'sms send <phonenumber> <text message>'")
    number = re.sub(r"[-./()]", "", number)
    if not re.fullmatch(r"\+?[0-9]{1,20}", number, re.ASCII):
        raise Ko("bad phone number format, must be [+](0-9)*")
    try:
        host.device.messages.deliver(number, unescape(message))
    except BadValue:
        raise Ko("badly formatted text", ESCAPES) from None


def _pdu(host: IConsoleHost, text: str) -> None:
    if not text:
        raise Ko("missing argument, try 'sms sendpdu <hexstring>'")
    try:
        host.device.messages.deliver_pdu(text)
    except BadValue:
        raise Ko("badly formatted <hexstring>") from None


GSM = Command(
    "gsm",
    "GSM related commands",
    ("calls to and from the guest, and the state of its network",),
    commands=(
        Command("list", "list current phone calls", ("'gsm list' lists all calls and their states",), _list),
        Command(
            "call",
            "create inbound phone call",
            ("'gsm call <phonenumber>' lets somebody call the guest from this number",),
            _call,
        ),
        Command(
            "busy",
            "close waiting outbound call as busy",
            ("'gsm busy <phonenumber>' ends the guest's call to this number, which was busy",),
            _busy,
        ),
        Command(
            "hold",
            "change the state of a call to 'held'",
            ("'gsm hold <phonenumber>' puts the call to or from this number on hold",),
            _hold,
        ),
        Command(
            "accept",
            "change the state of a call to 'active'",
            ("'gsm accept <phonenumber>' makes the call to or from this number active: it is answered",),
            _accept,
        ),
        Command(
            "cancel",
            "disconnect an inbound or outbound phone call",
            ("'gsm cancel <phonenumber>' ends the call to or from this number: the other side hangs up",),
            _cancel,
        ),
        Command(
            "data",
            "modify data connection state",
            (
                "'gsm data <state>' sets the registration for packet data; <state> is one of:",
                "",
                *_STATE_LINES,
                "",
            ),
            _data,
        ),
        Command(
            "voice",
            "modify voice connection state",
            (
                "'gsm voice <state>' sets the registration for calls; <state> is one of:",
                "",
                *_STATE_LINES,
                "",
            ),
            _voice,
        ),
        Command("status", "display GSM status", ("'gsm status' shows both registrations",), _status),
        Command(
            "signal",
            "set the rssi and ber",
            (
                "'gsm signal <rssi> [<ber>]' sets strength and error rate; the guest sees them when it next asks",
                "rssi is 0 to 31, or 99 for unknown",
                "ber is 0 to 7, or 99 for unknown",
            ),
            _signal,
        ),
        Command(
            "signal-profile",
            "set the signal strength profile",
            (
                "'gsm signal-profile <strength>' sets the strength for all kinds of networks, 0 (none) to 4 (great)",
            ),
            _profile,
        ),
        Command(
            "meter",
            "set whether data costs",
            ("'gsm meter <on|off>' says whether the network is a metered one",),
            _meter,
        ),
    ),
)

CDMA = Command(
    "cdma",
    "CDMA related commands",
    ("what a CDMA phone has and a GSM phone has not",),
    commands=(
        Command(
            "ssource",
            "set the current CDMA subscription source",
            (
                "'cdma ssource <source>' sets where the subscription is read from; <source> is one of:",
                "    nv: the phone's own memory",
                "    ruim: the card",
            ),
            _source,
        ),
        Command(
            "prl_version",
            "set the current PRL version",
            ("'cdma prl_version <version>' sets the version of the preferred roaming list",),
            _prl_version,
        ),
    ),
)

SMS = Command(
    "sms",
    "SMS related commands",
    ("messages to the guest",),
    commands=(
        Command(
            "send",
            "send inbound SMS text message",
            ("'sms send <phonenumber> <message>' sends the guest a message", *ESCAPES),
            _send,
        ),
        Command(
            "pdu",
            "send inbound SMS PDU",
            ("'sms pdu <hexstring>' sends the guest a PDU as it is, the service centre's address in front",),
            _pdu,
        ),
    ),
)
