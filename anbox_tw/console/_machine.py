"""``avd``, ``redir``, ``ping``, ``qemu``: the virtual device as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from anbox_tw.console._tree import Command, Ko, Lines
from anbox_tw.errors import AlreadyRunning, AnboxError
from anbox_tw.interfaces import IConsoleHost, IRedirections

__all__ = ["AVD", "AVD_NAME", "PING", "QEMU", "REDIR"]

_BAD_ADD = "bad redirection format, try (tcp|udp):hostport:guestport"
_BAD_DEL = "bad redirection format, try (tcp|udp):hostport"


def _ping(host: IConsoleHost, text: str) -> Lines:
    return ["I am alive!"]


def _monitor(host: IConsoleHost, text: str) -> None:
    raise Ko("QEMU support no longer available")


# -- avd --


def _name(host: IConsoleHost, text: str) -> Lines:
    return [host.name]


def _status(host: IConsoleHost, text: str) -> Lines:
    return [f"virtual device is {'running' if host.running else 'stopped'}"]


async def _stop(host: IConsoleHost, text: str) -> None:
    if not host.running:
        raise Ko("virtual device already stopped")
    await _done(host.pause)


async def _start(host: IConsoleHost, text: str) -> None:
    if host.running:
        raise Ko("virtual device already running")
    await _done(host.resume)


def _window_type(host: IConsoleHost, text: str) -> Lines:
    return ["windowtype=headless"]


# -- redir --


def _redirections(host: IConsoleHost) -> IRedirections:
    if host.redirections is None:
        raise Ko("network emulation disabled")
    found: IRedirections = host.redirections
    return found


def _list(host: IConsoleHost, text: str) -> Lines:
    listed = host.redirections.redirections() if host.redirections is not None else []
    if not listed:
        return ["no active redirections"]
    return [f"{protocol}:{port:<5d} => {guest:<5d}" for protocol, port, guest in listed]


def _ports(text: str, count: int, bad: str) -> tuple[str, list[int]]:
    protocol, *ports = text.split(":")
    if protocol not in ("tcp", "udp") or len(ports) != count:
        raise Ko(bad)
    if not all(re.fullmatch(r"\d{1,5}", port, re.ASCII) and 1 <= int(port) <= 65535 for port in ports):
        raise Ko(bad)
    return protocol, [int(port) for port in ports]


async def _add(host: IConsoleHost, text: str) -> None:
    redirections = _redirections(host)
    protocol, (port, guest) = _ports(text, 2, _BAD_ADD)
    if any(known[:2] == (protocol, port) for known in redirections.redirections()):
        raise Ko("host port already active, use 'redir del' to remove first")
    try:
        await _done(redirections.redirect, protocol, port, guest)
    except AlreadyRunning:
        raise Ko("can't setup redirection, port probably used by another program on host") from None


async def _del(host: IConsoleHost, text: str) -> None:
    protocol, (port,) = _ports(text, 1, _BAD_DEL)
    redirections = host.redirections
    if redirections is None or all(known[:2] != (protocol, port) for known in redirections.redirections()):
        raise Ko(f"can't remove unknown redirection ({protocol}:{port})")
    await _done(redirections.end_redirection, protocol, port)


async def _done(function: Callable[..., Any], *arguments: Any) -> None:
    """Call, and wait if that takes time."""
    try:
        result = function(*arguments)
        if isinstance(result, Deferred):
            await result
    except AlreadyRunning:
        raise
    except AnboxError as error:
        raise Ko(error.cause) from None


PING = Command("ping", "check if the emulator is alive", handler=_ping)

QEMU = Command(
    "qemu",
    "QEMU-specific commands",
    ("there is no QEMU here",),
    commands=(Command("monitor", "enter QEMU monitor", ("'qemu monitor' is no longer",), _monitor),),
)

AVD_NAME = Command("name", "query virtual device name", ("'avd name' says the name of the instance",), _name)

AVD = Command(
    "avd",
    "control virtual device execution",
    ("the virtual device as a whole",),
    commands=(
        Command(
            "stop",
            "stop the virtual device",
            ("'avd stop' stops the device where it is, until 'avd start'",),
            _stop,
        ),
        Command("start", "start/restart the virtual device", ("'avd start' lets it go on",), _start),
        Command(
            "status", "query virtual device status", ("'avd status' says whether the device runs",), _status
        ),
        AVD_NAME,
        Command("id", "query virtual device ID", ("'avd id' says the name of the instance too",), _name),
        Command(
            "windowtype",
            "query virtual device headless or qtwindow",
            ("'avd windowtype' says that the emulator has no window",),
            _window_type,
        ),
    ),
)

REDIR = Command(
    "redir",
    "manage port redirections",
    (
        "ports of this host that lead to ports of the guest",
        "'redir add tcp:5000:6000' leads connections to port 5000 here to port 6000 there",
    ),
    commands=(
        Command("list", "list current redirections", ("'redir list' lists them",), _list),
        Command(
            "add",
            "add new redirection",
            (
                "'redir add <protocol>:<host-port>:<guest-port>' adds one",
                "",
                "  <protocol>     tcp or udp",
                "  <host-port>    on this host's loopback, 1 to 65535",
                "  <guest-port>   on the guest, 1 to 65535",
            ),
            _add,
        ),
        Command(
            "del", "remove existing redirection", ("'redir del <protocol>:<host-port>' removes one",), _del
        ),
    ),
)
