"""The syntax of AT commands (ITU-T V.250 section 5, 3GPP TS 27.007): lines, commands of a line, parameters, strings.

A line ends with CR or LF. After the prompt of ``+CMGS`` everything up to Ctrl-Z is the PDU, and ESC gives it up.
"""

from __future__ import annotations

import re
from enum import Enum

import attrs

from anbox_tw.errors import PeerError, PipeError
from anbox_tw.qemu.modem._gsm7 import decode_septets, encode_septets

__all__ = [
    "MAX_LINE_BYTES",
    "AtDecoder",
    "AtError",
    "Command",
    "Form",
    "Line",
    "Text",
    "decode_string",
    "encode_string",
    "parameters",
    "split_commands",
]

MAX_LINE_BYTES = 4096
"""Of a line or a PDU. The emulator keeps 1024 and drops longer ones silently; the longest that a RIL sends (``+CGLA``) is
a little over 512."""

CTRL_Z = 0x1A
ESCAPE = 0x1B


class AtError(PipeError, PeerError):
    """What the guest sends is no AT commands."""

    default_code = "ANBOX-Q010"


@attrs.frozen
class Line:
    """A line, without its end; never empty."""

    text: str


@attrs.frozen
class Text:
    """What followed a prompt, without Ctrl-Z; None if ESC gave it up."""

    text: str | None


class AtDecoder:
    """Cuts the guest's bytes into lines and texts.

    After each event the caller may say `expect_text`, so events are taken one by one.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._text = False

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes."""
        self._buffer += data

    def expect_text(self) -> None:
        """Take what comes next as the text of a prompt."""
        self._text = True

    def next_event(self) -> Line | Text | None:
        """The next line or text; None when more bytes are needed.

        Raises:
            AtError: a line or text is too long.
        """
        while True:
            ends = (CTRL_Z, ESCAPE) if self._text else (0x0D, 0x0A)
            found = [at for end in ends if (at := self._buffer.find(end, self._searched)) >= 0]
            at = min(found, default=-1)
            if (len(self._buffer) if at < 0 else at) > MAX_LINE_BYTES:
                what = "text" if self._text else "line"
                raise AtError(f"a {what} has more than {MAX_LINE_BYTES} bytes")
            if at < 0:
                self._searched = len(self._buffer)
                return None
            content = self._buffer[:at].decode("latin-1")
            end = self._buffer[at]
            del self._buffer[: at + 1]
            self._searched = 0
            if self._text:
                self._text = False
                return Text(None if end == ESCAPE else content)
            if content:
                return Line(content)


class Form(Enum):
    """What a command asks."""

    RUN = ""
    READ = "?"
    TEST = "=?"
    SET = "="


@attrs.frozen
class Command:
    """One command of a line.

    Attributes:
        name: ``+CREG``, ``%CTZV``, ``D``, ``A``, ``S0``, ...
        form: of it.
        value: behind ``=``, the number of a basic command, or what is dialled.
    """

    name: str
    form: Form = Form.RUN
    value: str = ""


_EXTENDED = re.compile(r"[+%*$^#&][A-Z0-9%]+", re.ASCII)


def split_commands(line: str) -> list[Command] | None:
    """The commands of a line, in order; None if it is no command line.

    Basic commands follow each other directly (``ATE0Q0V1``), extended ones are ended by ``;`` outside of quotes; ``D`` takes
    the rest of the line. What cannot be understood becomes a command with an empty name.
    """
    if line[:2].upper() != "AT":
        return None
    rest = line[2:].strip()
    commands: list[Command] = []
    while rest:
        if rest[0] == ";":
            rest = rest[1:].lstrip()
        elif rest[0] in "Dd":
            commands.append(Command("D", value=rest[1:]))
            break
        elif rest[0] in "+%*$^#":
            command, rest = _extended(rest)
            commands.append(command)
        else:
            basic = re.match(r"(S[0-9]+|&?[A-Z])", rest.upper(), re.ASCII)
            if basic is None:
                commands.append(Command(""))
                break
            name = basic[1]
            rest = rest[len(name) :]
            value = re.match(r"(=\?|\?|=?[0-9]*)", rest, re.ASCII)
            text = value[1] if value is not None else ""
            rest = rest[len(text) :].lstrip()
            if text in ("=?", "?"):
                commands.append(Command(name, Form(text)))
            elif text.startswith("="):
                commands.append(Command(name, Form.SET, text[1:]))
            else:
                commands.append(Command(name, value=text))
    return commands


def _extended(rest: str) -> tuple[Command, str]:
    quoted = False
    end = len(rest)
    for index, character in enumerate(rest):
        if character == '"':
            quoted = not quoted
        elif character == ";" and not quoted:
            end = index
            break
    text, rest = rest[:end].rstrip(), rest[end + 1 :].lstrip()
    head, equals, value = text.partition("=")
    if not equals and head.endswith("?"):
        head, form, value = head[:-1], Form.READ, ""
    elif not equals:
        form = Form.RUN
    elif value == "?":
        form, value = Form.TEST, ""
    else:
        form = Form.SET
    name = head.upper()
    return (Command(name, form, value) if _EXTENDED.fullmatch(name) else Command("")), rest


def parameters(value: str) -> list[str]:
    """The parameters of ``+NAME=...``: split at commas outside of quotes, quotes and blanks around them removed."""
    found: list[str] = []
    current = ""
    quoted = False
    for character in value:
        if character == '"':
            quoted = not quoted
        if character == "," and not quoted:
            found.append(current)
            current = ""
        else:
            current += character
    found.append(current)
    return [_unquoted(text.strip()) for text in found]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def decode_string(text: str, charset: str, scheme: int = 15) -> str:
    """A string parameter as a text.

    Args:
        text: as it was given.
        charset: as ``+CSCS`` has it: ``HEX``, ``UCS2``, ``GSM``, ``IRA``, ...
        scheme: the data coding scheme that goes with it: 72 is UCS-2.
    """
    if charset in ("HEX", "UCS2") and re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", text, re.ASCII):
        data = bytes.fromhex(text)
        if charset == "UCS2" or scheme & 0x0C == 0x08:
            return data.decode("utf-16-be", "replace")
        return decode_septets(data)
    return text


def encode_string(text: str, charset: str) -> tuple[str, int]:
    """The opposite; returns the string and the data coding scheme that goes with it."""
    coded = encode_septets(text)
    if charset == "UCS2":
        return text.encode("utf-16-be").hex().upper(), 15 if coded is not None else 72
    if charset == "HEX":
        if coded is not None:
            return bytes(code for pair in coded for code in pair).hex().upper(), 15
        return text.encode("utf-16-be").hex().upper(), 72
    plain = "".join(c if c.isascii() and c.isprintable() and c != '"' else " " for c in text)
    return plain, 15
