"""``anbox bugreport``."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from twisted.internet.defer import ensureDeferred

from anbox_tw._version import __version__
from anbox_tw.cli._control import as_dict, open_control
from anbox_tw.cli._instance import Instance, runtime_option
from anbox_tw.cli._run import run
from anbox_tw.cli.host import system_information
from anbox_tw.cli.logs import log_files
from anbox_tw.container.backends import BACKENDS
from anbox_tw.container.commands import Commands
from anbox_tw.container.doctor import examine
from anbox_tw.container.probes import HostView
from anbox_tw.errors import AnboxError, ConfigError
from anbox_tw.session.client import SessionClient

__all__ = ["bugreport", "scrub"]

MAX_LOG_BYTES = 1 << 20
"""The end of each log; what led to a failure is there."""

PARTS = ("battery", "display", "fingerprint", "network", "sensors")
"""Parts of the device that go into a report. Where it is, whom it calls and what it writes do not."""

CONSOLE_TOKEN = ".emulator_console_auth_token"  # noqa: S105  # the name of a file

README = """A report of anbox-tw {version}, made {when}.

report.json           versions, and what could not be looked at
system-info.json      the host
doctor.json           what 'anbox doctor' says
instances/NAME/       for each instance: its session, statistics, device, and the ends of its logs

Left out: the environment, keys and tokens, the clipboard, positions, calls, messages, the names of applications. The home
directory is written as ~. Logs may still tell what you did: look through them before you hand this on.
"""


@click.command()
@runtime_option
@click.option(
    "-o", "--output", type=click.Path(), metavar="FILE", help="[default: anbox-bugreport-DATE-TIME.zip here]"
)
@click.option("--no-logs", is_flag=True, help="Leave the logs out.")
def bugreport(runtime_dir: str | None, output: str | None, no_logs: bool) -> None:
    """Put what a report of a defect needs into one ZIP file: the host, the instances, the ends of their logs.

    Secrets stay out: no environment, keys, tokens, clipboard, positions, calls or messages. Nothing is sent anywhere.
    """
    path = Path(output or time.strftime("anbox-bugreport-%Y%m%d-%H%M%S.zip"))
    try:
        # Never over something: who guesses a name of ours gains nothing by a link there.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", "choose another file with --output"
        ) from error
    try:
        with open(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            run(lambda reactor: ensureDeferred(_write(reactor, archive, runtime_dir, no_logs)))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    click.echo(path)


async def _write(reactor: Any, archive: zipfile.ZipFile, runtime_dir: str | None, no_logs: bool) -> None:
    clean = scrub(os.path.expanduser("~"))
    problems: list[str] = []

    def put(name: str, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
        archive.writestr(name, clean(text))

    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    put("README.txt", README.format(version=__version__, when=when))
    put("system-info.json", system_information())
    try:
        host = HostView(Commands(reactor), os.environ.get("XDG_RUNTIME_DIR"))
        put("doctor.json", (await examine(host, list(BACKENDS))).as_dict())
    except Exception as error:
        problems.append(f"doctor: {error!r}")
    for where in Instance.all(runtime_dir):
        folder = f"instances/{where.name}"
        try:
            for name, content in (await _session(reactor, where)).items():
                put(f"{folder}/{name}", content)
        except AnboxError as error:
            problems.append(f"{where.name}: {error}")
        if not no_logs:
            for name, log in log_files(where).items():
                try:
                    put(f"{folder}/logs/{name}.log", _end_of(log))
                except OSError as error:
                    problems.append(f"{log}: {error.strerror}")
    put("report.json", {"version": __version__, "made": when, "python": sys.version, "problems": problems})


async def _session(reactor: Any, where: Instance) -> dict[str, Any]:
    """What a session tells of itself, by the name of the file it goes to."""
    link = await open_control(reactor, where)
    try:
        client = SessionClient(link.channel)
        return {
            "session.json": as_dict(await link.info()),
            "stats.json": await client.device("stats"),
            "device.json": {part: await client.device("get", part=part) for part in PARTS},
        }
    finally:
        await link.close()


def _end_of(path: Path) -> str:
    with path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_LOG_BYTES))
        return log.read(MAX_LOG_BYTES).decode(errors="replace")


def scrub(home: str) -> Callable[[str], str]:
    """What takes secrets out of a text.

    Args:
        home: the home directory, where the console's token is.
    """
    try:
        token = Path(home, CONSOLE_TOKEN).read_text().strip()
    except (OSError, UnicodeDecodeError):
        token = ""

    # Every repetition in these has an end: a log may have lines of any length.
    def clean(text: str) -> str:
        if token:
            text = text.replace(token, "[console token]")
        text = re.sub(
            r"(?i)\b(authorization|bearer|token|password|passwd|secret)(\"?\s{0,8}[:= ]\s{0,8}\"?)[^\s\",;]{6,}",
            r"\1\2[left out]",
            text,
        )
        text = re.sub(r"(\w{1,32}://)[^/\s:@]{1,256}:[^/\s@]{1,256}@", r"\1[left out]@", text)
        text = re.sub(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
            "[key left out]",
            text,
            flags=re.S,
        )
        return re.sub(rf"{re.escape(home)}(?=[/\s\"',:;)]|$)", "~", text) if len(home) > 1 else text

    return clean
