"""``anbox geo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._session import ask, json_option, print_json
from anbox_tw.errors import ConfigError

__all__ = ["geo"]

NEGATIVE = {"ignore_unknown_options": True}
"""An argument may be a negative number."""


@click.group()
def geo() -> None:
    """Say where the device is: a position, an NMEA sentence, or a route that it moves along."""


@geo.command(context_settings=NEGATIVE)
@instance_options
@click.option(
    "--satellites", type=click.IntRange(0, 32), default=8, show_default=True, help="In use; 0 is no fix."
)
@click.option("--speed", type=float, default=0.0, help="Metres per second over ground.")
@click.option("--bearing", type=float, default=0.0, help="Degrees from true north.")
@click.argument("longitude", type=float)
@click.argument("latitude", type=float)
@click.argument("altitude", type=float, default=0.0)
def fix(
    instance: str,
    runtime_dir: str | None,
    satellites: int,
    speed: float,
    bearing: float,
    longitude: float,
    latitude: float,
    altitude: float,
) -> None:
    """Be at LONGITUDE LATITUDE, in this order as in the emulator's console; degrees, ALTITUDE in metres."""
    ask(
        *(instance, runtime_dir, "geo.fix"),
        longitude=longitude,
        latitude=latitude,
        altitude=altitude,
        satellites=satellites,
        speed=speed,
        bearing=bearing,
    )


@geo.command()
@instance_options
@click.argument("sentence")
def nmea(instance: str, runtime_dir: str | None, sentence: str) -> None:
    """Give the guest's receiver an NMEA sentence as it is: at most 82 characters, '$GPGGA,...*47'."""
    ask(instance, runtime_dir, "geo.nmea", sentence=sentence)


@geo.command()
@instance_options
@click.option(
    "--format", "kind", type=click.Choice(["gpx", "nmea", "csv", "json"]), help="[default: found out]"
)
@click.option("--rate", type=float, default=1.0, show_default=True, help="Positions per second.")
@click.option("--speed", type=float, default=0.0, help="Metres per second, instead of the file's times.")
@click.option("--factor", type=float, default=1.0, show_default=True, help="2 plays twice as fast.")
@click.option("--repeat", is_flag=True, help="Begin again at the end.")
@json_option
@click.argument("file", type=click.Path())
def route(
    instance: str,
    runtime_dir: str | None,
    kind: str | None,
    rate: float,
    speed: float,
    factor: float,
    repeat: bool,
    as_json: bool,
    file: str,
) -> None:
    """Move along the route in FILE (GPX, NMEA, CSV or JSON); returns at once, the session goes on with it."""
    if not Path(file).is_file():
        raise ConfigError(f"there is no file {file}", "name a GPX, NMEA, CSV or JSON file")
    found = ask(
        *(instance, runtime_dir, "geo.route"),
        path=str(Path(file).absolute()),
        format=kind or "",
        rate=rate,
        speed=speed,
        factor=factor,
        repeat=repeat,
    )
    _show(found, as_json)


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    place, way = found["location"], found["route"]
    click.echo(f"position: {place['longitude']:g} {place['latitude']:g} {place['altitude']:g}")
    click.echo(f"satellites: {place['satellites']}")
    click.echo(f"speed: {place['speed']:g} m/s, bearing {place['bearing']:g}")
    click.echo(
        f"route: {', '.join(f'{name} {value}' for name, value in way.items() if value not in ('', None))}"
    )
    click.echo(f"guests that listen: {found['guests']}")


def _verb(name: str, text: str) -> None:
    @geo.command(name, help=text)
    @instance_options
    @json_option
    def command(instance: str, runtime_dir: str | None, as_json: bool) -> None:
        _show(ask(instance, runtime_dir, f"geo.{name}"), as_json)


_verb("status", "Print where the device is and how far on its route.")
_verb("pause", "Stand still on the route.")
_verb("resume", "Go on after 'anbox geo pause'.")
_verb("stop", "Leave the route; the device stays where it is.")
