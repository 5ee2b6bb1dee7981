"""``anbox sensor``, ``anbox finger`` and ``anbox battery``."""

from __future__ import annotations

from typing import Any

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._session import ask, json_option, print_json, print_table
from anbox_tw.device import SENSORS, BatteryHealth, BatteryStatus

__all__ = ["battery", "finger", "sensor"]

SENSOR = click.Choice(list(SENSORS))


@click.group()
def sensor() -> None:
    """Read and set what the guest's sensors measure.

    A sensor that the session was started without (--disabled-sensors) can be neither read nor set: exit code 5.
    """


def _values(values: list[float] | None) -> str:
    return "disabled" if values is None else ":".join(f"{value:g}" for value in values)


@sensor.command("list")
@instance_options
@json_option
def sensor_list(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """List all sensors: what they measure now, and how often the guest reads them."""
    found = ask(instance, runtime_dir, "sensor.list")
    if as_json:
        print_json(found)
        return
    print_table(
        ("SENSOR", "VALUES", "UNIT", "READ EVERY"),
        (
            (
                entry["name"],
                _values(entry["values"]),
                entry["unit"],
                "-" if entry["delay_ms"] is None else f"{entry['delay_ms']} ms",
            )
            for entry in found
        ),
        "there is no sensor",
    )


@sensor.command("status")
@instance_options
@json_option
def sensor_status(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """Tell which sensors the device has."""
    found = ask(instance, runtime_dir, "sensor.status")
    if as_json:
        print_json(found)
        return
    for name, enabled in found.items():
        click.echo(f"{name}: {'enabled' if enabled else 'disabled'}")


@sensor.command("get")
@instance_options
@json_option
@click.argument("name", type=SENSOR)
def sensor_get(instance: str, runtime_dir: str | None, as_json: bool, name: str) -> None:
    """Print what a sensor measures, as VALUE or X:Y:Z."""
    found = ask(instance, runtime_dir, "sensor.get", name=name)
    print_json(found) if as_json else click.echo(_values(found["values"]))


@sensor.command("set", context_settings={"ignore_unknown_options": True})  # a value may be negative
@instance_options
@click.argument("name", type=SENSOR)
@click.argument("values", nargs=-1, required=True, metavar="VALUE | X:Y:Z | X Y Z")
def sensor_set(instance: str, runtime_dir: str | None, name: str, values: tuple[str, ...]) -> None:
    """Have a sensor measure something else; an empty part of X:Y:Z stays as it is.

    \b
    anbox sensor set light 300
    anbox sensor set acceleration 0:9.81:0
    """
    parts = [part for value in values for part in value.split(":")]
    try:
        numbers = [float(part) if part.strip() else None for part in parts]
    except ValueError:
        raise click.BadParameter(f"{' '.join(values)} are no numbers", param_hint="VALUE") from None
    ask(instance, runtime_dir, "sensor.set", name=name, values=numbers)


@click.group()
def finger() -> None:
    """Touch the guest's fingerprint sensor."""


@finger.command()
@instance_options
@click.argument("finger", type=click.IntRange(1, 0x7FFF_FFFF), default=1, metavar="[FINGER]")
def touch(instance: str, runtime_dir: str | None, finger: int) -> None:
    """Put a finger on the sensor, by its number from 1. It stays until 'anbox finger remove'."""
    ask(instance, runtime_dir, "finger.touch", finger=finger)


@finger.command()
@instance_options
def remove(instance: str, runtime_dir: str | None) -> None:
    """Take the finger away."""
    ask(instance, runtime_dir, "finger.remove")


@finger.command("status")
@instance_options
@json_option
def finger_status(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """Tell which finger is on the sensor."""
    found = ask(instance, runtime_dir, "finger.status")
    print_json(found) if as_json else click.echo(found["finger"] or "none")


@click.group()
def battery() -> None:
    """Read and set the guest's battery and charger."""


@battery.command("status")
@instance_options
@json_option
def battery_status(instance: str, runtime_dir: str | None, as_json: bool) -> None:
    """Print the state of the battery."""
    found: dict[str, Any] = ask(instance, runtime_dir, "get", part="battery")
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        click.echo(f"{name}: {('off', 'on')[value] if isinstance(value, bool) else value}")


@battery.command("set")
@instance_options
@click.option("--ac", type=click.Choice(["on", "off"]), help="Whether the charger is plugged in.")
@click.option("--present", type=click.Choice(["yes", "no"]), help="Whether there is a battery.")
@click.option("--capacity", type=click.IntRange(0, 100), help="Charge in per cent.")
@click.option(
    "--status", type=click.Choice([one.value for one in BatteryStatus]), help="What happens to the charge."
)
@click.option("--health", type=click.Choice([one.value for one in BatteryHealth]), help="How well it is.")
def battery_set(instance: str, runtime_dir: str | None, **values: Any) -> None:
    """Change the battery; what is not named stays as it is.

    \b
    anbox battery set --ac off --status discharging --capacity 15
    """
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to change is named; see 'anbox battery set --help'")
    ask(instance, runtime_dir, "set", part="battery", values=given)
