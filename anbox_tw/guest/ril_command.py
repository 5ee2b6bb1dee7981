"""``ril``: the guest's phone from a shell, through the commands of Android's reference RIL. Output is a JSON object a line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import attrs

from anbox_tw.errors import AnboxError, ExitCode
from anbox_tw.guest.ril import Call, Ril

__all__ = ["main", "parse"]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line behind ``ril``.

    Raises:
        SystemExit: it is none; the usage was printed.
    """
    parser = argparse.ArgumentParser(prog="ril", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="wait at most so long for what the others do [%(default)s]",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="print SIM card, operator, registration, signal")
    commands.add_parser("calls", help="print all calls")
    call = commands.add_parser("call", help="call somebody, and print what comes of it until it is answered")
    call.add_argument("number")
    commands.add_parser("answer", help="wait for a call, and take it")
    commands.add_parser("reject", help="wait for a call, and refuse it")
    commands.add_parser("hangup", help="end all calls")
    sms = commands.add_parser("sms", help="send a message")
    sms.add_argument("--report", action="store_true", help="wait for the report that it has arrived")
    sms.add_argument("number")
    sms.add_argument("text")
    read = commands.add_parser("read", help="wait for messages, and print them")
    read.add_argument("-c", "--count", type=int, default=1, metavar="N", help="how many [%(default)s]")
    ussd = commands.add_parser("ussd", help="send a USSD text, and print the answer")
    ussd.add_argument("text")
    data = commands.add_parser("data", help="bring up a data context")
    data.add_argument("apn")
    return parser.parse_args(arguments)


def main(path: str, arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    Args:
        path: of the pipe's socket.
        arguments: behind ``ril``.
    """
    options = parse(arguments)
    try:
        with Ril(path, messages=options.command == "read") as ril:
            return int(_RUN[options.command](ril, options))
    except AnboxError as error:
        print(f"ril: {error}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130


def _tell(**values: Any) -> None:
    print(json.dumps(values, ensure_ascii=False), flush=True)  # noqa: T201


def _status(ril: Ril, options: argparse.Namespace) -> ExitCode:
    rssi, ber = ril.signal()
    operator = ril.operator()
    _tell(
        sim=ril.sim_status(),
        operator=operator[0] if operator else None,
        voice=ril.registration(),
        data=ril.data_registration(),
        rssi=rssi,
        ber=ber,
        imsi=ril.imsi(),
        network_time=ril.network_time,
    )
    return ExitCode.OK


def _calls(ril: Ril, options: argparse.Namespace) -> ExitCode:
    for call in ril.calls():
        _tell(**attrs.asdict(call))
    return ExitCode.OK


def _find(ril: Ril, number: str) -> Call | None:
    # The modem may list what was dialled with more before it: another emulator's port becomes a whole number.
    return next((call for call in ril.calls() if call.number.endswith(number) and not call.incoming), None)


def _call(ril: Ril, options: argparse.Namespace) -> ExitCode:
    if not ril.dial(options.number):
        print("ril: the modem refuses the call", file=sys.stderr)  # noqa: T201
        return ExitCode.REFUSED
    told = ""
    while True:
        call = _find(ril, options.number)
        state = call.state if call is not None else "ended"
        if state != told:
            told = state
            _tell(number=options.number, state=state)
        if call is None:
            return ExitCode.FAILED
        if state == "active":
            return ExitCode.OK
        ril.wait_for("ring", options.timeout)


def _ringing(ril: Ril, options: argparse.Namespace) -> Call:
    while True:
        for call in ril.calls():
            if call.state in ("incoming", "waiting"):
                return call
        ril.wait_for("ring", options.timeout)


def _answer(ril: Ril, options: argparse.Namespace) -> ExitCode:
    call = _ringing(ril, options)
    ril.answer()
    _tell(number=call.number, state=next(c.state for c in ril.calls() if c.id == call.id))
    return ExitCode.OK


def _reject(ril: Ril, options: argparse.Namespace) -> ExitCode:
    call = _ringing(ril, options)
    ril.reject()
    _tell(number=call.number, state="rejected")
    return ExitCode.OK


def _hang_up(ril: Ril, options: argparse.Namespace) -> ExitCode:
    for call in ril.calls():
        ril.hang_up(call.id)
        _tell(number=call.number, state="ended")
    return ExitCode.OK


def _sms(ril: Ril, options: argparse.Namespace) -> ExitCode:
    _tell(
        number=options.number, parts=ril.send_sms(options.number, options.text, status_report=options.report)
    )
    if options.report:
        report: Any = ril.wait_for("report", options.timeout)
        _tell(number=report.receiver, status=report.status)
    return ExitCode.OK


def _read(ril: Ril, options: argparse.Namespace) -> ExitCode:
    for _ in range(options.count):
        message: Any = ril.wait_for("sms", options.timeout)
        _tell(**attrs.asdict(message))
    return ExitCode.OK


def _ussd(ril: Ril, options: argparse.Namespace) -> ExitCode:
    if not ril.send_ussd(options.text):
        print("ril: the network refuses the text", file=sys.stderr)  # noqa: T201
        return ExitCode.REFUSED
    answer = ril.wait_for("ussd", options.timeout)
    _tell(answer=answer)
    return ExitCode.OK if answer is not None else ExitCode.TIMED_OUT


def _data(ril: Ril, options: argparse.Namespace) -> ExitCode:
    _tell(addresses=ril.start_data(options.apn))
    return ExitCode.OK


_RUN = {
    "status": _status,
    "calls": _calls,
    "call": _call,
    "answer": _answer,
    "reject": _reject,
    "hangup": _hang_up,
    "sms": _sms,
    "read": _read,
    "ussd": _ussd,
    "data": _data,
}
