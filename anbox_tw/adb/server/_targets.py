"""Which device a host request means (AOSP ``adb.cpp``, ``transport.cpp``). No I/O."""

from __future__ import annotations

from enum import Enum

import attrs

from anbox_tw.adb._numbers import decimal
from anbox_tw.adb.server._framing import BadRequest

__all__ = ["ANY", "Kind", "Target", "matches", "parse_host_request", "parse_transport_request"]


class Kind(Enum):
    """How a device is chosen."""

    ANY = "any"
    USB = "usb"
    LOCAL = "local"
    SERIAL = "serial"
    ID = "id"


@attrs.frozen
class Target:
    """A choice of device.

    Attributes:
        kind: how it is chosen.
        serial: for ``SERIAL``.
        transport_id: for ``ID``; ``None`` is one that cannot be read.
    """

    kind: Kind = Kind.ANY
    serial: str = ""
    transport_id: int | None = None


ANY = Target()

_WORDS = {"any": Kind.ANY, "usb": Kind.USB, "local": Kind.LOCAL}
_PLAIN_PREFIXES = ("usb:", "product:", "model:", "device:", "localfilesystem:")


def parse_id(text: str) -> int | None:
    """A transport id: decimal digits, at most 64 bits; ``None`` for anything else."""
    return decimal(text, (1 << 64) - 1)


def split_serial(text: str) -> tuple[str, str]:
    """Cut ``SERIAL:COMMAND``, where the serial may have colons itself.

    Raises:
        BadRequest: there is no command behind it.
    """
    for prefix in _PLAIN_PREFIXES:
        if text.startswith(prefix):
            end = text.find(":", len(prefix))
            return _cut(text, end)
    at = 0
    if text.startswith(("tcp:", "udp:")):
        at = 4
    elif text.startswith("vsock:"):
        at = 6
    if text.startswith("[", at) and "]" in text[at:]:
        end = text.index("]", at) + 1
        if not text.startswith(":", end):
            raise BadRequest("no command behind the address")
    else:
        end = text.find(":", at)
        if end < 0:
            raise BadRequest("no command behind the serial")
    after = text.find(":", end + 1)
    if after > end + 1 and text[end + 1 : after].isdigit():
        end = after  # a port belongs to the serial
    return _cut(text, end)


def _cut(text: str, end: int) -> tuple[str, str]:
    if end <= 0 or not text.startswith(":", end):
        raise BadRequest("no command behind the serial")
    return text[:end], text[end + 1 :]


def parse_host_request(request: str) -> tuple[Target, str] | None:
    """Read the prefix of a host request.

    Returns:
        The target and the command behind it, or ``None`` when the request is one for the device.

    Raises:
        BadRequest: a prefix with a serial or id that is not well formed.
    """
    if request.startswith("host:"):
        return ANY, request[5:]
    if request.startswith("host-usb:"):
        return Target(Kind.USB), request[9:]
    if request.startswith("host-local:"):
        return Target(Kind.LOCAL), request[11:]
    if request.startswith("host-serial:"):
        serial, command = split_serial(request[12:])
        return Target(Kind.SERIAL, serial), command
    if request.startswith("host-transport-id:"):
        number, colon, command = request[18:].partition(":")
        if not colon or parse_id(number) is None:
            raise BadRequest("no transport id in front of the command")
        return Target(Kind.ID, transport_id=parse_id(number)), command
    return None


def parse_transport_request(command: str) -> tuple[Target, bool] | None:
    """Read a request that switches the connection to a device.

    Returns:
        The target and whether its transport id is part of the reply, or ``None`` for other commands.
    """
    if command.startswith("tport:"):
        how = command[6:]
        if how.startswith("serial:"):
            return Target(Kind.SERIAL, how[7:]), True
        return (Target(_WORDS[how]), True) if how in _WORDS else None
    if command.startswith("transport-id:"):
        return Target(Kind.ID, transport_id=parse_id(command[13:])), False
    if command.startswith("transport:"):
        return Target(Kind.SERIAL, command[10:]) if command[10:] else ANY, False
    if command.startswith("transport-"):
        how = command[10:]
        return (Target(_WORDS[how]), False) if how in _WORDS else None
    return None


def matches(
    wanted: str, *, serial: str, devpath: str, product: str, model: str, device: str, is_tcp: bool
) -> bool:
    """Whether a serial, as users write it, means a device (AOSP ``atransport::MatchesTarget``)."""
    if not wanted:
        return False
    if serial and wanted == serial:
        return True
    if is_tcp and _same_address(wanted, serial):
        return True
    return (
        bool(devpath and wanted == devpath)
        or _qualified(wanted, "product:", product, clean=False)
        or _qualified(wanted, "model:", model, clean=True)
        or _qualified(wanted, "device:", device, clean=False)
    )


def _same_address(wanted: str, serial: str) -> bool:
    # "tcp:" and "udp:" in front are for fastboot users; without a port any port of the host is meant.
    if wanted.startswith(("tcp:", "udp:")):
        wanted = wanted[4:]
    host, _, port = serial.rpartition(":")
    if not host or not port.isdigit():
        return False
    return wanted in (serial, host, host.strip("[]"))


def _qualified(wanted: str, prefix: str, value: str, *, clean: bool) -> bool:
    if not value:
        return False
    wanted = wanted.removeprefix(prefix)
    return wanted == (cleaned(value) if clean else value)


def cleaned(model: str) -> str:
    """A model's name as listings show it: what is not a letter or digit becomes ``_``."""
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in model)
