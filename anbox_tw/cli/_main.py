"""The root of the ``anbox`` command: subcommands by name, errors to exit codes."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from anbox_tw._version import __version__
from anbox_tw.errors import AnboxError, ExitCode

__all__ = ["cli", "main"]

COMMANDS = {
    "up": ("anbox_tw.cli.up", "up", "Start a container and its session, in the foreground."),
    "down": ("anbox_tw.cli.down", "down", "Stop an instance and leave nothing of it behind but its data."),
    "ps": ("anbox_tw.cli.ps", "ps", "List the instances of this user."),
    "top": ("anbox_tw.cli.top", "top", "Watch the instances: connections, bytes per second, memory."),
    "wait": ("anbox_tw.cli.wait", "wait", "Wait until an instance is live, ready or booted."),
    "wait-ready": (
        "anbox_tw.cli.wait",
        "wait_ready",
        "Wait until the guest has booted, as the original's command.",
    ),
    "shell": ("anbox_tw.cli.shell", "shell", "Run a command, or a shell, in the container."),
    "launch": ("anbox_tw.cli.launch", "launch", "Launch an application, or whatever an intent names."),
    "apps": ("anbox_tw.cli.launch", "apps", "List the guest's applications."),
    "tasks": ("anbox_tw.cli.tasks", "tasks", "List, focus, move and end the guest's tasks."),
    "clipboard": (
        "anbox_tw.cli.clipboard",
        "clipboard",
        "Read and set the clipboard that host and guest share.",
    ),
    "scenario": (
        "anbox_tw.cli.scenario",
        "scenario",
        "Play what happens to the device from a file: a drive, a day, a call.",
    ),
    "image": ("anbox_tw.cli.image", "image", "Fetch, import, list and remove images of Android."),
    "input": ("anbox_tw.cli.input", "input_commands", "Touch, type and click in the guest."),
    "sensor": ("anbox_tw.cli.sensor", "sensor", "Read and set what the sensors measure."),
    "geo": ("anbox_tw.cli.geo", "geo", "Say where the device is: a position, or a route."),
    "battery": ("anbox_tw.cli.sensor", "battery", "Read and set battery and charger."),
    "camera": ("anbox_tw.cli.camera", "camera", "See and change what the device's cameras show."),
    "finger": ("anbox_tw.cli.sensor", "finger", "Touch the fingerprint sensor."),
    "call": ("anbox_tw.cli.phone", "call", "Call the guest, and answer its calls."),
    "sms": ("anbox_tw.cli.phone", "sms", "Send and read short messages."),
    "gsm": ("anbox_tw.cli.phone", "gsm", "Change the mobile network: registration, signal, SIM card."),
    "forward": (
        "anbox_tw.cli.forward",
        "forward",
        "Forward a port or socket of the host to one of the guest.",
    ),
    "network": (
        "anbox_tw.cli.network",
        "network",
        "Make the guest's network as slow as a mobile one.",
    ),
    "logs": ("anbox_tw.cli.logs", "logs", "Show what the manager, the session and the container logged."),
    "doctor": (
        "anbox_tw.cli.doctor",
        "doctor",
        "Look at the host: what works here, what is missing, how to mend it.",
    ),
    "check-features": (
        "anbox_tw.cli.host",
        "check_features",
        "Check that this computer's processor can run Android's programs.",
    ),
    "system-info": ("anbox_tw.cli.host", "system_info", "Print what matters of this host."),
    "bugreport": (
        "anbox_tw.cli.bugreport",
        "bugreport",
        "Put what a report of a defect needs into one file.",
    ),
    "completion": ("anbox_tw.cli.completion", "completion", "Print the shell's completion for this command."),
    "man": ("anbox_tw.cli.man", "man", "Write the manual pages."),
    "version": ("anbox_tw.cli.version", "version", "Show the versions of anbox-tw and of what it stands on."),
    "adb": (
        "anbox_tw.cli.adb",
        "adb",
        "Talk ADB without an adb program: shell, push, pull, forward, install, ...",
    ),
    "ndc": ("anbox_tw.cli.ndc", "ndc", "Send a command to netd, or watch its events."),
    "rc": ("anbox_tw.cli.rc", "rc", "Check and print Android init rc files."),
}
"""Name to (module, attribute, one line of help). A module is imported when its command runs, so that the
command line answers at once."""


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own, imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order users meet them."""
        return [name for name in COMMANDS if importlib.util.find_spec(COMMANDS[name][0]) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS or importlib.util.find_spec(COMMANDS[cmd_name][0]) is None:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin so, without importing any of them."""
        found = [
            CompletionItem(name, help=COMMANDS[name][2])
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        # The options of the group itself, from the class above Group.
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is a usage error that names its neighbours."""
        name = click.utils.make_str(args[0])
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else " 'anbox --help' lists the commands."
            ctx.fail(f"no such command '{name}'.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, "-V", "--version", prog_name="anbox", message="%(prog)s %(version)s")
def cli() -> None:
    """Android containers: start, stop, look and talk to them.

    Exit codes: 0 done; 1 it failed; 2 wrong usage; 3 not running; 4 timed out; 5 refused;
    6 the host lacks something ('anbox doctor' says what).
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit."""
    _open_missing()
    try:
        code: Any = cli.main(args=argv, prog_name="anbox", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except AnboxError as error:
        report(error)
        sys.exit(int(error.exit_code))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        # a file of the user's, on a command line or on a disk that is full
        if error.strerror is None:
            raise
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        click.echo(f"anbox: {f'{name}: ' if name else ''}{error.strerror}", err=True)
        sys.exit(ExitCode.FAILED)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _open_missing() -> None:
    """Open the null device where a standard stream is closed.

    Otherwise the next file opened, the reactor's own, would be taken for standard input or output.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
        if descriptor == 1:
            sys.stdout = open(descriptor, "w", closefd=False)  # noqa: SIM115  # for the life of the process
        elif descriptor == 2:
            sys.stderr = open(descriptor, "w", closefd=False)  # noqa: SIM115
    os.close(descriptor)


def report(error: AnboxError) -> None:
    """Print an error on standard error: the cause, then the cure."""
    label = f"anbox: {error.code}: " if error.code else "anbox: "
    click.echo(f"{label}{error.cause}", err=True)
    if error.cure:
        click.echo(f"  {error.cure}", err=True)
