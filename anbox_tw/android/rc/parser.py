"""Logical lines into services, actions and imports: goes on after every error.

Source of the rules: ``init/init_parser.cpp``, ``init/service.cpp``, ``init/action.cpp`` and
``init/import_parser.cpp`` at android-7.0.0_r1. Nothing here reads a file: ``loader`` does.
"""

from __future__ import annotations

from anbox_tw.android.rc._keywords import COMMANDS, LATER_OPTIONS, OPTIONS, count_problem
from anbox_tw.android.rc._lexer import Line, lex
from anbox_tw.android.rc.model import (
    Action,
    Command,
    Import,
    Location,
    Problem,
    RcConfig,
    RcService,
    SocketSpec,
    Trigger,
)

__all__ = ["MAX_SERVICE_NAME", "SOCKET_TYPES", "RcParser", "parse"]

MAX_SERVICE_NAME = 16
"""``ServiceParser::IsValidName``: longest name of a service, characters."""

SOCKET_TYPES = ("dgram", "stream", "seqpacket")

MAX_SOCKET_MODE = 0o7777


class RcParser:
    """Reads any number of files into one ``RcConfig``, in the order they are given.

    Attributes:
        config: what was understood so far.
    """

    def __init__(self, config: RcConfig | None = None) -> None:
        self.config = RcConfig() if config is None else config
        self._file = ""
        self._section: RcService | Action | Import | None = None
        self._lost = "before the first section"
        self._lost_told = False

    def feed(self, text: str, file: str = "<rc>") -> RcConfig:
        """Read one whole file.

        Args:
            text: its contents.
            file: its name, for the problems' locations.

        Returns:
            The parser's ``config``, which now holds this file too.
        """
        self._file = file
        self._section = None
        self._lost, self._lost_told = "before the first section", False
        for item in lex(text):
            if isinstance(item, Line):
                self._line(item)
            else:
                self._problem(item.number, item.message)
        self._end_section()
        return self.config

    def _problem(self, line: int, message: str, severity: str = "error") -> None:
        self.config.problems.append(Problem(Location(self._file, line), message, severity))

    def _line(self, line: Line) -> None:
        keyword = line.words[0]
        if keyword in ("service", "on", "import"):
            self._end_section()
            begin = {"service": self._service, "on": self._action, "import": self._import}[keyword]
            error = begin(line)
            if error is not None:
                self._problem(line.number, error)
                self._section = None
                self._lost, self._lost_told = f"in the section refused in line {line.number}", False
            return
        if isinstance(self._section, RcService):
            error = self._option(self._section, line)
        elif isinstance(self._section, Action):
            error = count_problem(COMMANDS, keyword, len(line.words) - 1)
            if error is None:
                self._section.commands.append(Command(line.words, Location(self._file, line.number)))
        else:
            error = None
            if not self._lost_told:
                # init says nothing at all here; once for each run of such lines is enough
                self._lost_told = True
                self._problem(line.number, f"ignored: this line is {self._lost}", "warning")
        if error is not None:
            self._problem(line.number, error)

    def _end_section(self) -> None:
        section, self._section = self._section, None
        if isinstance(section, RcService):
            old = self.config.services.get(section.name)
            if old is None:
                self.config.services[section.name] = section
            else:
                self._problem(
                    section.location.line,
                    f"ignored duplicate definition of service '{section.name}', first defined at {old.location}",
                )
        elif isinstance(section, Action):
            if not section.commands:
                # ActionParser::EndSection drops it without a word
                self._problem(section.location.line, f"'on {section.trigger}' has no commands", "warning")
                return
            for old_action in self.config.actions:
                if _same(old_action.trigger, section.trigger):
                    old_action.commands.extend(section.commands)
                    return
            self.config.actions.append(section)

    def _service(self, line: Line) -> str | None:
        if len(line.words) < 3:
            return "services must have a name and a program"
        name = line.words[1]
        if len(name) > MAX_SERVICE_NAME or not all(_is_name_character(character) for character in name):
            return f"invalid service name '{name}'"
        self._section = RcService(name, line.words[2:], Location(self._file, line.number))
        return None

    def _import(self, line: Line) -> str | None:
        if len(line.words) != 2:
            return "single argument needed for import"
        self._section = Import(line.words[1], Location(self._file, line.number))
        self.config.imports.append(self._section)
        self._lost, self._lost_told = "behind an import, in no section", False
        return None

    def _action(self, line: Line) -> str | None:
        words = line.words[1:]
        if not words:
            return "actions must have a trigger"
        event: str | None = None
        properties: dict[str, str] = {}
        for index, word in enumerate(words):
            if index % 2:
                if word != "&&":
                    return "&& is the only symbol allowed to concatenate actions"
            elif word.startswith("property:"):
                name, equals, value = word.removeprefix("property:").partition("=")
                if not equals:
                    return "property trigger found without matching '='"
                if name in properties:
                    return "multiple property triggers found for same property"
                properties[name] = value
            elif event is not None:
                return "multiple event triggers are not allowed"
            else:
                event = word
        self._section = Action(
            Trigger(event, tuple(properties.items())), [], Location(self._file, line.number)
        )
        if len(words) % 2 == 0:
            self._problem(line.number, "nothing stands behind the last &&", "warning")
        return None

    def _option(self, service: RcService, line: Line) -> str | None:
        keyword, *arguments = line.words
        error = count_problem(OPTIONS, keyword, len(arguments))
        if error is not None:
            return f"{error}: releases after 7.0 know it" if keyword in LATER_OPTIONS else error
        match keyword:
            case "class":
                service.class_name = arguments[0]
            case "console" | "critical" | "disabled" | "oneshot":
                setattr(service, keyword, True)
            case "group":
                # a repeated line replaces the group and adds to the supplementary ones
                service.group = arguments[0]
                service.supplementary += tuple(arguments[1:])
            case "ioprio":
                return self._ioprio(service, arguments)
            case "keycodes":
                if not all(_is_integer(argument) for argument in arguments):
                    return "keycodes takes decimal numbers"
                service.keycodes += tuple(map(int, arguments))
            case "onrestart":
                error = count_problem(COMMANDS, arguments[0], len(arguments) - 1)
                if error is not None:
                    # HandleOnrestart ignores AddCommand's result: the line is taken, the command is not there
                    self._problem(line.number, f"onrestart command left out: {error}", "warning")
                else:
                    service.onrestart.append(Command(tuple(arguments), Location(self._file, line.number)))
            case "seclabel":
                service.seclabel = arguments[0]
            case "setenv":
                service.environment.append((arguments[0], arguments[1]))
            case "socket":
                return self._socket(service, arguments)
            case "user":
                service.user = arguments[0]
            case "writepid":
                service.writepid = tuple(arguments)
        return None

    def _ioprio(self, service: RcService, arguments: list[str]) -> str | None:
        level = _octal(arguments[1])
        if level is None or level > 7:
            return "priority value must be range 0 - 7"
        if arguments[0] not in ("rt", "be", "idle"):
            return "ioprio option usage: ioprio <rt|be|idle> <0-7>"
        service.ioprio = (arguments[0], level)
        return None

    def _socket(self, service: RcService, arguments: list[str]) -> str | None:
        name, kind, permissions, *owner = arguments
        if kind not in SOCKET_TYPES:
            return "socket type must be 'dgram', 'stream' or 'seqpacket'"
        mode = _octal(permissions)
        if mode is None or mode > MAX_SOCKET_MODE:
            return f"socket mode must be octal, at most {MAX_SOCKET_MODE:o}: '{permissions}'"
        if "" in (name, *owner[:2]):
            return "a socket's name, user and group must not be empty"
        service.sockets.append(SocketSpec(name, kind, mode, *owner))
        return None


def parse(text: str, file: str = "<rc>") -> RcConfig:
    """Read one file's text; ``problems`` of the result has what was wrong with it."""
    return RcParser().feed(text, file)


def _same(one: Trigger, other: Trigger) -> bool:
    """Equal triggers, whatever the order of their properties (the original keeps them in a sorted map)."""
    return one.event == other.event and dict(one.properties) == dict(other.properties)


def _is_name_character(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character in "_-")


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _octal(text: str) -> int | None:
    """An octal number of at most 11 digits; the original aborts on text without digits and ignores what follows them."""
    if not 0 < len(text) <= 11 or any(character not in "01234567" for character in text):
        return None
    return int(text, 8)
