"""``anbox sms``, ``anbox call`` and ``anbox gsm``: the mobile network as the guest's modem sees it."""

from __future__ import annotations

import time
from typing import Any

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._session import ask, json_option, print_json, print_table, printable

__all__ = ["call", "gsm", "sms"]

REGISTRATIONS = ("on", "off", "home", "roaming", "searching", "denied", "unregistered", "unknown")


@click.group()
def sms() -> None:
    """Send the guest short messages, and read those that it has sent."""


@sms.command("send")
@instance_options
@json_option
@click.argument("number")
@click.argument("text")
def sms_send(instance: str, runtime_dir: str | None, as_json: bool, number: str, text: str) -> None:
    """Send the guest TEXT from NUMBER, in as many parts as it takes."""
    found = ask(instance, runtime_dir, "sms.send", number=number, text=text)
    if as_json:
        print_json(found)


@sms.command("pdu")
@instance_options
@json_option
@click.argument("pdu")
def sms_pdu(instance: str, runtime_dir: str | None, as_json: bool, pdu: str) -> None:
    """Send the guest a PDU in hexadecimal as it is, with the service centre's address in front."""
    found = ask(instance, runtime_dir, "sms.pdu", pdu=pdu)
    if as_json:
        print_json(found)


@sms.command("list")
@instance_options
@json_option
def sms_list(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """List the last messages to the guest (in) and from it (out), the oldest first."""
    found = ask(instance, runtime_dir, "sms.list")
    if as_json:
        print_json(found)
        return
    both = [("in", one) for one in found["incoming"]] + [("out", one) for one in found["outgoing"]]
    print_table(
        ("TIME", "WAY", "NUMBER", "STATUS", "TEXT"),
        (
            (_when(one["time"]), way, one["number"], one["status"], one["text"])
            for way, one in sorted(both, key=lambda pair: pair[1]["time"])
        ),
        "there is no message",
    )


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@click.group()
def call() -> None:
    """Call the guest, and do what the other side of its calls does."""


def _print_call(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(found)
    elif found:
        click.echo(f"call {found['id']} {found['direction']} {printable(found['number'])}: {found['state']}")


def _call_verb(name: str, text: str) -> None:
    @call.command(name, help=text)
    @instance_options
    @json_option
    @click.argument("number")
    def command(instance: str, runtime_dir: str | None, as_json: bool, number: str) -> None:
        _print_call(ask(instance, runtime_dir, f"call.{name}", number=number), as_json)


_call_verb("in", "Call the guest from NUMBER; its phone rings.")
_call_verb("accept", "Answer the guest's call to NUMBER, or take a call off hold.")
_call_verb("busy", "Answer the guest's call to NUMBER with busy, which ends it.")
_call_verb("hold", "Put the call to or from NUMBER on hold.")
_call_verb("cancel", "Hang up on the other side of the call to or from NUMBER.")


@call.command("list")
@instance_options
@json_option
def call_list(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """List the calls under way."""
    found = ask(instance, runtime_dir, "call.list")
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "WAY", "NUMBER", "STATE"),
        ((one["id"], one["direction"], one["number"], one["state"]) for one in found),
        "there is no call",
    )


@click.group()
def gsm() -> None:
    """Change the mobile network: registration, signal, SIM card, USSD."""


def _print_gsm(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items() if item not in ("", None))
        click.echo(f"{name}: {printable(str('-' if value in (None, '', [], ()) else value))}")


@gsm.command("status")
@instance_options
@json_option
def gsm_status(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """Print registration, operator, signal, SIM card and data connections."""
    _print_gsm(ask(instance, runtime_dir, "gsm.status"), as_json)


def _registration_verb(name: str, what: str) -> None:
    @gsm.command(name, help=f"Set the registration for {what}.")
    @instance_options
    @click.argument("state", type=click.Choice(REGISTRATIONS))
    def command(instance: str, runtime_dir: str | None, state: str) -> None:
        ask(instance, runtime_dir, f"gsm.{name}", state=state)


_registration_verb("voice", "calls")
_registration_verb("data", "packet data")


@gsm.command()
@instance_options
@click.option("--profile", type=click.IntRange(0, 4), help="0 (none) to 4 (great), instead of RSSI and BER.")
@click.argument("rssi", type=int, required=False)
@click.argument("ber", type=int, required=False)
def signal(
    instance: str, runtime_dir: str | None, profile: int | None, rssi: int | None, ber: int | None
) -> None:
    """Set the signal: RSSI 0 (-113 dBm) to 31 (-51 dBm), bit error rate BER 0 to 7; 99 is unknown."""
    if (profile is None) == (rssi is None):
        raise click.UsageError("give either RSSI or --profile")
    ask(instance, runtime_dir, "gsm.signal", rssi=rssi, ber=ber, profile=profile)


@gsm.command()
@instance_options
@click.argument("what", type=click.Choice(["status", "insert", "remove", "lock"]))
@click.argument("pin", required=False)
def sim(instance: str, runtime_dir: str | None, what: str, pin: str | None) -> None:
    """Look at the SIM card, put one in, take it out, or have it want a PIN (four digits, 0000 when none is given)."""
    if pin is not None and what != "lock":
        raise click.UsageError("a PIN goes with 'lock' alone")
    arguments = {} if pin is None else {"pin": pin}
    click.echo(ask(instance, runtime_dir, f"sim.{what}", **arguments)["status"])


@gsm.command()
@instance_options
@click.option("--expect-reply", is_flag=True, help="The guest may answer.")
@click.argument("text")
def ussd(instance: str, runtime_dir: str | None, expect_reply: bool, text: str) -> None:
    """Answer the guest's USSD request, or send it a text of the network's own."""
    ask(instance, runtime_dir, "ussd.reply", text=text, expect_reply=expect_reply)
