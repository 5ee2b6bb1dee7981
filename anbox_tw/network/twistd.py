"""What all our twistd commands share: options from a file, exit codes, errors in words, systemd.

twistd itself ends with status 1 and a traceback whatever goes wrong at the start; users and scripts
are promised the codes of `anbox_tw.errors.ExitCode`.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python import usage

from anbox_tw.errors import AnboxError, ConfigError, ExitCode
from anbox_tw.network.systemd import notify

__all__ = ["CommandOptions", "CommandService", "options_from_file"]

MAX_CONFIG_BYTES = 1024 * 1024
"""A bigger configuration file is not one."""


def options_from_file(path: str, known: dict[str, bool]) -> list[str]:
    """Read a TOML file into command line arguments.

    Args:
        path: of the file.
        known: the long options that may stand in it, and whether each takes a value.

    Returns:
        Arguments in the order of the file: ``key = "value"`` gives ``--key=value``, a list gives one for
        each element, ``key = true`` gives ``--key`` and ``false`` nothing. ``_`` in a key is as ``-``.

    Raises:
        ConfigError: it cannot be read, is no TOML, or has a key or value that is no option's.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is over {MAX_CONFIG_BYTES} bytes", "name a configuration file")
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(
            f"the configuration file {path} cannot be read: {error.strerror}", "check --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the configuration file {path} is not TOML: {error}", "write lines such as backend = 'lxc'"
        ) from error
    arguments = []
    for key, value in table.items():
        option = key.replace("_", "-")
        if option not in known:
            raise ConfigError(
                f"{path}: there is no option {key!r}", f"the options are {', '.join(sorted(known))}"
            )
        for one in value if isinstance(value, list) else [value]:
            if not known[option]:
                if not isinstance(one, bool):
                    raise ConfigError(f"{path}: {key} is a switch", f"write {key} = true or {key} = false")
                if one:
                    arguments.append(f"--{option}")
            elif isinstance(one, bool) or not isinstance(one, (str, int, float)):
                raise ConfigError(f"{path}: {key} takes a text or a number", f"write {key} = 'value'")
            else:
                arguments.append(f"--{option}={one}")
    return arguments


class CommandOptions(usage.Options):
    """Options of a twistd command that may also come from a TOML file (``--config``).

    The command line has the last word. Under twistd a mistake is told on standard error and the process
    ends with `ExitCode.USAGE`; used otherwise, ``parseOptions`` raises ``UsageError`` as Twisted's does.
    """

    optParameters = [
        ["config", "c", None, "Read options from this TOML file: the long option names are its keys."],
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """See ``usage.Options``."""
        arguments = list(sys.argv[1:] if options is None else options)
        try:
            try:
                path = _config_of(arguments)
                if path is not None:
                    known = {name: takes for name, takes in self._known() if name != "config"}
                    arguments[:0] = options_from_file(path, known)
                super().parseOptions(arguments)
            except AnboxError as error:
                raise usage.UsageError(_in_words(error)) from error
        except usage.UsageError as error:
            self.refuse(error)

    def refuse(self, error: usage.UsageError) -> NoReturn:
        """Say on standard error what is wrong with the options, and end the process; without twistd, raise."""
        if self.parent is None:
            raise error
        command = self.parent.subCommand or "twistd"
        sys.stderr.write(f"{command}: {error}\ntry: twistd {command} --help\n")
        raise SystemExit(int(ExitCode.USAGE)) from error

    def _known(self) -> Iterator[tuple[str, bool]]:
        for name in self.longOpt:
            bare = name.rstrip("=")
            if bare not in ("help", "version"):
                yield bare, name.endswith("=")


def _config_of(arguments: list[str]) -> str | None:
    """The last ``--config`` on a command line; getopt has not looked at it yet."""
    found = None
    for place, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument in ("--config", "-c") and place + 1 < len(arguments):
            found = arguments[place + 1]
        elif argument.startswith("--config="):
            found = argument.partition("=")[2]
    return found


def _in_words(error: AnboxError) -> str:
    text = f"{error.code}: {error.cause}" if error.code else error.cause
    return f"{text}\n  cure: {error.cure}" if error.cure else text


class CommandService(MultiService):
    """The root of a command's services: an error at the start ends the process in words and with its code.

    Only for ``makeService`` of a twistd command; an application that embeds the services adds them to a
    parent of its own and handles what ``startService`` raises.
    """

    _log = Logger()

    def __init__(
        self,
        command: str,
        options: usage.Options,
        reactor: Any,
        *,
        when_ready: Callable[[], Deferred[Any]] | None = None,
    ) -> None:
        """Make the service.

        Args:
            command: its name in messages.
            options: as twistd parsed them; their parent says whether and where a pid file is.
            reactor: tells when the services run.
            when_ready: called then; systemd is told ``READY=1`` when its Deferred fires. None: at once.
        """
        super().__init__()
        self._command = command
        self._parent_options: Any = getattr(options, "parent", None)
        self._reactor = reactor
        self._when_ready = when_ready
        self._begun = False
        self._prepared = False

    def prepare(self) -> None:
        """Make the children; called once, before the start.

        For what only a start can check, so that a mistake is told like any other error of the start.

        Raises:
            AnboxError: it cannot start.
        """

    def privilegedStartService(self) -> None:
        """See ``IService``; ends the process when a child cannot start."""
        self._prepare_once()
        self._in_words(super().privilegedStartService)

    def startService(self) -> None:
        """See ``IService``; ends the process when a child cannot start."""
        self._prepare_once()
        self._in_words(super().startService)
        if not self._begun:
            self._begun = True
            self._reactor.callWhenRunning(self._announce)

    def stopService(self) -> Deferred[Any]:
        """See ``IService``."""
        notify("STOPPING=1")
        stopping: Deferred[Any] = super().stopService()
        return stopping

    def _announce(self) -> None:
        def ready(_: Any) -> None:
            if self.running:
                notify(f"READY=1\nMAINPID={os.getpid()}")

        if self._when_ready is None:
            ready(None)
        else:
            # Whoever made the Deferred logs its failure; not being ready is all there is to do here.
            self._when_ready().addCallbacks(ready, lambda _: None)

    def _prepare_once(self) -> None:
        if not self._prepared:
            self._prepared = True
            self._in_words(self.prepare)

    def _in_words(self, start: Callable[[], None]) -> None:
        try:
            start()
        except AnboxError as error:
            parent = self._parent_options
            if parent is not None and not parent["nodaemon"]:
                # twistd hands the exception's text on to the process that the user started.
                raise
            # sys.stderr is twistd's log by now.
            terminal = sys.__stderr__
            if terminal is not None:
                terminal.write(f"{self._command}: {_in_words(error)}\n")
                terminal.flush()
            if parent is not None and parent["logfile"]:
                self._log.critical("{command}: {error}", command=self._command, error=error)
            if parent is not None and parent["pidfile"]:
                try:
                    os.unlink(parent["pidfile"])
                except OSError:
                    pass
            raise SystemExit(int(error.exit_code)) from error
