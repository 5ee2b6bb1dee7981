"""What init would take and then fail on: checks beyond the grammar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from anbox_tw.android.aid import decode_id
from anbox_tw.android.errors import RcError
from anbox_tw.android.properties._wire import is_legal_name
from anbox_tw.android.rc.expand import references
from anbox_tw.android.rc.model import Command, Problem, RcConfig, RcService

__all__ = ["lint"]

MAX_SOCKET_PATH = 107
SOCKET_DIRECTORY = "/dev/socket"

_STATES = ("running", "stopping", "stopped", "restarting")

EVENTS = frozenset(
    {
        "early-init",
        "init",
        "late-init",
        "charger",
        "early-fs",
        "fs",
        "post-fs",
        "post-fs-data",
        "early-boot",
        "boot",
        "encrypt",
        "defaultcrypto",
        "nonencrypted",
        "verity-logging",
        "onrestart",
    }
)
"""Events that init or its ``mount_all`` trigger themselves; others need a ``trigger`` command."""


def lint(config: RcConfig, *, whole: bool = False) -> list[Problem]:
    """Look for lines that parse and yet cannot do what they say.

    Args:
        config: what was read.
        whole: the configuration is complete, so a service or event that nothing defines is a mistake.

    Returns:
        Warnings, in no promised order.
    """
    found: list[Problem] = []
    for service in config.services.values():
        found += [
            Problem(service.location, f"service '{service.name}': {text}", "warning")
            for text in _service(service)
        ]
        for command in service.onrestart:
            found += [Problem(command.location, text, "warning") for text in _command(config, command, whole)]
    triggered = {
        command.arguments[0]
        for action in config.actions
        for command in action.commands
        if command.name == "trigger"
    }
    for action in config.actions:
        event = action.trigger.event
        if whole and event is not None and event not in EVENTS and event not in triggered:
            found.append(Problem(action.location, f"nothing triggers '{event}'", "warning"))
        for name, value in action.trigger.properties:
            if name.startswith("init.svc.") and value not in (*_STATES, "*"):
                found.append(Problem(action.location, f"{name} is never '{value}'", "warning"))
        for command in action.commands:
            found += [Problem(command.location, text, "warning") for text in _command(config, command, whole)]
    return found


def _id(text: str, what: str) -> Iterator[str]:
    if text and decode_id(text) is None:
        yield (
            f"{what} '{text}' is not one of Android's: looked up on the host"
            if text[0].isalpha()
            else f"{what} '{text}' is not a number"
        )


def _references(arguments: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        try:
            references(argument)
        except RcError as error:
            yield error.cause


def _service(service: RcService) -> Iterator[str]:
    if len("init.svc." + service.name) >= 32:
        # PROP_NAME_MAX; cannot happen within the 16 characters of a name, but a made configuration can have it
        yield "the name is too long for init.svc.*"
    if not service.path.startswith("/"):
        yield f"the program '{service.path}' is not an absolute path"
    yield from _references(service.arguments[1:])
    yield from _id(service.user, "user")
    for group in (service.group, *service.supplementary):
        yield from _id(group, "group")
    if len(service.supplementary) > 12:
        yield "more than 12 supplementary groups"
    if service.critical and service.oneshot:
        yield "critical counts restarts, and a oneshot service is never restarted"
    names = [socket.name for socket in service.sockets]
    for socket in service.sockets:
        path = f"{SOCKET_DIRECTORY}/{socket.name}"
        if len(path.encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH:
            yield f"socket '{socket.name}' has a path longer than {MAX_SOCKET_PATH} bytes"
        if ".." in socket.name.split("/") or socket.name.startswith("/"):
            yield f"socket '{socket.name}' leaves the socket directory"
        if names.count(socket.name) > 1:
            yield f"socket '{socket.name}' is declared more than once"
        yield from _id(socket.user, f"user of socket '{socket.name}':")
        yield from _id(socket.group, f"group of socket '{socket.name}':")


def _command(config: RcConfig, command: Command, whole: bool) -> Iterator[str]:
    name, arguments = command.name, command.arguments
    yield from _references(arguments)
    if any("$" in argument for argument in arguments):
        return  # the rest can only be judged when it runs
    match name:
        case "start" | "stop" | "restart" | "enable":
            if whole and arguments[0] not in config.services:
                yield f"{name}: no such service '{arguments[0]}'"
        case "class_start" | "class_stop" | "class_reset":
            if whole and not any(True for _ in config.services_in_class(arguments[0])):
                yield f"{name}: no service is in class '{arguments[0]}'"
        case "chmod":
            if not _is_octal(arguments[0]):
                yield f"chmod: '{arguments[0]}' is not octal"
        case "mkdir":
            if len(arguments) > 1 and not _is_octal(arguments[1]):
                yield f"mkdir: '{arguments[1]}' is not octal"
            for owner in arguments[2:]:
                yield from _id(owner, "mkdir:")
        case "chown":
            for owner in arguments[:-1]:
                yield from _id(owner, "chown:")
        case "exec":
            if "--" in arguments and arguments.index("--") + 1 == len(arguments):
                yield "exec called without command"
        case "setprop":
            if not is_legal_name(arguments[0]):
                yield f"setprop: illegal property name '{arguments[0]}'"
            elif len(arguments[1].encode("utf-8", "surrogateescape")) >= 92:
                yield "setprop: the value is longer than 91 bytes"


def _is_octal(text: str) -> bool:
    return bool(text) and all(character in "01234567" for character in text)
