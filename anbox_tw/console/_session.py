"""One client's dialogue: greeting, authentication, commands; lines in, bytes out, and no socket."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import attrs
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from anbox_tw.console._auth import AuthToken
from anbox_tw.console._event import EVENT
from anbox_tw.console._hardware import FINGER, GEO, NETWORK, POWER, ROTATE, SENSOR
from anbox_tw.console._lines import forbidden
from anbox_tw.console._machine import AVD, AVD_NAME, PING, QEMU, REDIR
from anbox_tw.console._phone import CDMA, GSM, SMS
from anbox_tw.console._tree import Command, Ko, find, help_for, help_lines, short_help, verbose_help
from anbox_tw.errors import AnboxError, PermissionRefused
from anbox_tw.interfaces import IConsoleHost

__all__ = ["ConsoleSession", "Reply"]

MAX_FAILURES = 5
"""Wrong tokens until the connection is closed; the emulator takes any number."""

HINT = "Android Console: type 'help' for a list of commands"

_HELP = Command("help|h|?", "print a list of commands")
_HELP_VERBOSE = Command("help-verbose", "print a list of commands with descriptions")
_QUIT = Command("quit|exit", "quit control session")
_KILL = Command("kill", "kill the emulator instance")
_AUTH = Command(
    "auth",
    "user authentication for the emulator console",
    ("'auth <auth_token>' opens the console; the token is in the file that the greeting names",),
)

ALL = (
    _HELP,
    _HELP_VERBOSE,
    PING,
    EVENT,
    GEO,
    GSM,
    CDMA,
    _KILL,
    NETWORK,
    POWER,
    _QUIT,
    REDIR,
    SMS,
    AVD,
    QEMU,
    SENSOR,
    FINGER,
    ROTATE,
)
"""In the emulator's order."""

BEFORE_AUTH = (
    _HELP,
    _HELP_VERBOSE,
    PING,
    attrs.evolve(AVD, commands=(AVD_NAME,)),
    _AUTH,
    _QUIT,
)
"""What a client may say before it has said the token."""


@attrs.frozen
class Reply:
    """What a line brings about.

    Attributes:
        lines: to be sent, each with CR LF behind it.
        close: whether the connection ends then, and why; empty: it goes on.
        kill: whether the session shall end.
    """

    lines: Sequence[str] = ()
    close: str = ""
    kill: bool = False


class ConsoleSession:
    """One client.

    Args:
        host: what it is the console of.
        token: the secret.
    """

    _log = Logger()

    def __init__(self, host: IConsoleHost, token: AuthToken) -> None:
        self._host = host
        self._token = token
        self._commands: Sequence[Command] = BEFORE_AUTH
        self._failures = 0

    def greet(self) -> Reply:
        """What is said first; a token that cannot be read shuts the console."""
        try:
            required = bool(self._token.load())
        except PermissionRefused as error:
            return Reply(close=str(error))
        if not required:
            self._commands = ALL
            return Reply((HINT, "OK"))
        # Android Studio looks for the first line exactly.
        return Reply(
            (
                "Android Console: Authentication required",
                "Android Console: type 'auth <auth_token>' to authenticate",
                "Android Console: you can find your <auth_token> in ",
                f"'{self._token.path}'",
                "OK",
            )
        )

    async def receive_line(self, raw: bytes) -> Reply:
        """Run one line."""
        why = forbidden(raw)
        if why:
            return Reply((f"KO: {why}. Aborting",), close=why)
        # C's strings end at a NUL
        line = raw.decode("utf-8").partition("\0")[0]
        command, argument = find(self._commands, line)
        if command is None:
            return Reply(("KO: unknown command, try 'help'",))
        if command is _QUIT:
            return Reply(close="the client quits")
        if command is _KILL:
            return Reply(("OK: killing emulator, bye bye",), close="the session is killed", kill=True)
        if command is _AUTH:
            return self._authenticate(argument)
        try:
            return Reply((*await self._run(command, argument), "OK"))
        except Ko as ko:
            return Reply((*ko.lines, f"KO: {ko.text}"))
        except AnboxError as error:
            return Reply((f"KO: {error.cause}",))
        except CancelledError:
            raise
        except Exception:
            self._log.failure("A console command failed: {name}", name=command.names)
            return Reply(("KO: internal error",))

    async def _run(self, command: Command, argument: str) -> Sequence[str]:
        if command is _HELP:
            return help_for(self._commands, argument) if argument else short_help(self._commands)
        if command is _HELP_VERBOSE:
            return verbose_help(self._commands)
        while command.handler is None:
            group = command
            if not argument:
                raise Ko("missing sub-command", help_lines(group))
            found, argument = find(group.commands, argument)
            if found is None:
                raise Ko(" bad sub-command", help_lines(group))
            command = found
        result = command.handler(self._host, argument)
        if inspect.isawaitable(result):
            result = await result
        return result or ()

    def _authenticate(self, argument: str) -> Reply:
        if not argument:
            return Reply(("KO: missing authentication token",))
        try:
            right = self._token.matches(argument)
        except PermissionRefused:
            return Reply(("KO: unable to read ~/.emulator_console_auth_token",))
        if right:
            self._commands = ALL
            return Reply((HINT, "OK"))
        self._failures += 1
        return Reply(
            ("KO: authentication token does not match ~/.emulator_console_auth_token",),
            close="too many wrong tokens" if self._failures >= MAX_FAILURES else "",
        )
