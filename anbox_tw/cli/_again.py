"""Starting an instance in the background, and once more as it was started last.

Each ``anbox up`` leaves its command line, its directory and its own environment variables in the user's state directory;
``anbox launch --start``, which launchers run, begins with them again.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys
from pathlib import Path
from typing import Any

import click
from twisted.internet.defer import Deferred

from anbox_tw.cli._child import Child
from anbox_tw.cli._instance import Instance
from anbox_tw.cli._run import first_of
from anbox_tw.errors import AnboxError
from anbox_tw.session._files import write_atomically

__all__ = ["IN_FRONT", "remember", "start_again", "start_in_background"]

IN_FRONT = "_ANBOX_UP_IN_FRONT"
"""Set for the ``up`` that runs in the background: there it does not detach, whatever its command line says."""

MAX_BYTES = 1 << 20
"""Of what was remembered; a command line has some hundred."""

OWN_VARIABLES = ("ANBOX_", "ADB_", "ANDROID_")

OUTPUT_LINES = 40


def _home() -> Path:
    """The user's home; an empty or relative ``HOME`` would lead into the current directory."""
    home = os.environ.get("HOME", "")
    return Path(home if os.path.isabs(home) else pwd.getpwuid(os.getuid()).pw_dir)


def _path(where: Instance) -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if os.path.isabs(state) else _home() / ".local/state"
    return home / "anbox" / "up" / f"{where.name}.json"


def remember(where: Instance) -> None:
    """Leave how this process was started. A state directory that cannot be written is no reason not to run."""
    words = sys.argv[1:]
    if "up" not in words:
        return  # it was not started from a command line
    told = {
        "arguments": words,
        "directory": os.getcwd(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(OWN_VARIABLES)},
        "runtime_dir": where.paths.runtime_dir,
    }
    path = _path(where)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(str(path), json.dumps(told).encode(errors="surrogateescape"))
    except OSError:
        pass


def recall(where: Instance) -> list[str]:
    """The command line for another start; what goes with it is made this process's own.

    Without a memory, or with one of another runtime directory, it is a plain ``up`` of the instance.
    """
    plain = ["up", "--instance", where.name, "--runtime-dir", where.paths.runtime_dir]
    try:
        with _path(where).open("rb") as file:
            told = json.loads(file.read(MAX_BYTES))
        words, directory, environment = told["arguments"], told["directory"], told["environment"]
        if told["runtime_dir"] != where.paths.runtime_dir or not all(isinstance(word, str) for word in words):
            return plain
        os.chdir(directory)
        os.environ.update(environment)
    except (OSError, ValueError, KeyError, TypeError):
        return plain
    return list(words)


async def start_in_background(
    reactor: Any, where: Instance, arguments: list[str], log_path: Path, seconds: float
) -> Child | None:
    """Run ``anbox`` with these arguments as a process of its own until the guest has booted.

    Returns:
        None when it has; the process when it ended before.

    Raises:
        TimedOut: the guest has not booted within ``seconds``; the process was told to end.
    """
    from anbox_tw.cli.wait import wait_for

    os.environ[IN_FRONT] = "1"
    child = Child(reactor, "up", [sys.executable, "-m", "anbox_tw.cli", *arguments], log_path)
    child.start(leash=False)
    try:
        place, _ = await first_of(
            child.when_ended(), Deferred.fromCoroutine(wait_for(reactor, where, "booted", seconds))
        )
    except BaseException:
        child.signal(signal.SIGTERM)
        raise
    finally:
        del os.environ[IN_FRONT]
    return child if place == 0 else None


async def start_again(reactor: Any, where: Instance, seconds: float) -> None:
    """Start an instance that does not run as it was started last, and wait for its boot.

    Raises:
        AnboxError: it does not come up; what it said is on standard error.
    """
    from anbox_tw.cli.wait import wait_for

    if where.holder() is not None:
        # Somebody starts it just now.
        await wait_for(reactor, where, "booted", seconds)
        return
    click.echo(f"instance '{where.name}' does not run: starting it", err=True)
    arguments = recall(where)
    child = await start_in_background(reactor, where, arguments, where.log_dir() / "up.log", seconds)
    if child is not None:
        for line in child.output(OUTPUT_LINES):
            click.echo(line, err=True)
        raise AnboxError(
            f"'anbox {' '.join(arguments)}' {child.exit_description}",
            "the lines above say why; start it by hand",
        )
