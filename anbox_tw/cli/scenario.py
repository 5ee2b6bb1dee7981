"""``anbox scenario``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from anbox_tw.cli._instance import instance_options
from anbox_tw.cli._run import first_of
from anbox_tw.cli._session import ask, json_option, print_json, with_session
from anbox_tw.device import BadValue
from anbox_tw.errors import ConfigError, ExitCode, NotRunning
from anbox_tw.session.client import SessionClient

__all__ = ["scenario"]


@click.group()
def scenario() -> None:
    """Play what happens to the device from a file: a drive, a day, a call; see docs/device.md."""


def read(file: str) -> str:
    """The text of a scenario file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(file).read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no UTF-8 text: {error}") from None


@scenario.command()
@json_option
@click.argument("file", type=click.Path())
def check(as_json: bool, file: str) -> None:
    """Look for mistakes in FILE (TOML or JSON lines), without a session; each is told with its line."""
    from twisted.internet.task import Clock

    from anbox_tw.device import Device
    from anbox_tw.device.scenario import parse_scenario
    from anbox_tw.session.hardware import Hardware, HardwareSettings
    from anbox_tw.session.verbs import DeviceVerbs

    # the session's own verbs, on a device that nobody sees and a clock that stands still
    device = Device()
    verbs = DeviceVerbs(device)
    Hardware(Clock(), device, HardwareSettings()).register(verbs)
    try:
        found = parse_scenario(read(file))
    except BadValue as error:
        wrong = [str(error)]
    else:
        wrong = found.check(verbs.check)
    if wrong:
        for line in wrong:
            click.echo(f"{file}: {line}", err=True)
        raise click.exceptions.Exit(int(ExitCode.USAGE))
    steps = sum(step.times for step in found.steps)
    if as_json:
        print_json({"name": found.name, "steps": steps, "duration": found.duration})
    else:
        click.echo(f"{found.name or file}: {steps} steps in {found.duration:g} s")


@scenario.command("run")
@instance_options
@click.option(
    "--factor", type=click.FloatRange(0, 1000, min_open=True), default=1.0, help="2 plays twice as fast."
)
@click.option("--repeat", is_flag=True, help="Begin again at the end, until it is stopped.")
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@click.argument("file", type=click.Path())
def run_(
    instance: str, runtime_dir: str | None, factor: float, repeat: bool, detach: bool, file: str
) -> None:
    """Play FILE on the device, and wait for its end; Ctrl-C stops it. Exit code 1 when a step failed."""
    text = read(file)

    async def work(reactor: Any, client: SessionClient) -> int:
        from twisted.internet.defer import CancelledError, Deferred

        ended: Deferred[tuple[str, str]] = Deferred()

        def event(told: dict[str, Any]) -> None:
            over = told["kind"] == "scenario" and told["name"] in ("finished", "stopped")
            if over and begun and not ended.called:
                ended.callback((told["name"], told["detail"]))

        begun: list[bool] = []
        await client.watch(event)
        try:
            status = await client.device("scenario.start", text=text, factor=factor, repeat=repeat)
            if detach:
                click.echo(f"{status['name'] or file}: {status['steps']} steps in {status['duration']:g} s")
                return ExitCode.OK
            begun.append(True)
            if status["state"] == "playing":
                place, _ = await first_of(ended, client.when_lost())
                if place == 1:
                    raise NotRunning("the session has ended")
                status = await client.device("scenario.status")
        except CancelledError:
            # Ctrl-C
            await client.device("scenario.stop")
            raise
        for line in status["errors"]:
            click.echo(f"{file}: {line}", err=True)
        click.echo(f"{status['state']}: {status['done']} steps, {status['failed']} failed")
        return ExitCode.FAILED if status["failed"] or status["state"] != "finished" else ExitCode.OK

    code = with_session(instance, runtime_dir, work)
    if code:
        raise click.exceptions.Exit(int(code))


def _simple(name: str, verb: str, text: str) -> None:
    @scenario.command(name, help=text)
    @instance_options
    @json_option
    def command(instance: str, runtime_dir: str | None, as_json: bool) -> None:
        status = ask(instance, runtime_dir, verb)
        if as_json:
            print_json(status)
            return
        line = str(status["state"])
        if line != "none":
            line += f": {status['name'] or 'scenario'}, {status['position']:g} of {status['duration']:g} s"
            line += f", {status['done']} of {status['steps']} steps, {status['failed']} failed"
        click.echo(line)
        for error in status.get("errors", []):
            click.echo(f"  {error}")


_simple("status", "scenario.status", "How far the scenario is.")
_simple("stop", "scenario.stop", "End it; the device stays as it is.")
_simple("pause", "scenario.pause", "Hold the scenario that plays.")
_simple("resume", "scenario.resume", "Go on after 'anbox scenario pause'.")
