"""The errors of anbox-tw: one root, one base per domain, and what a user can do about each.

No caller matches on text: what must be told apart has a class or a ``code`` of its own.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "AdbError",
    "AlreadyRunning",
    "AnboxError",
    "ConfigError",
    "ContainerError",
    "ExitCode",
    "HostLacks",
    "NetdError",
    "NetworkError",
    "NotRunning",
    "PeerError",
    "PermissionRefused",
    "PipeError",
    "RpcError",
    "SessionError",
    "TimedOut",
]


class ExitCode(IntEnum):
    """Exit codes of every command of ours."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    TIMED_OUT = 4
    REFUSED = 5
    HOST_LACKS = 6


class AnboxError(Exception):
    """Root of all errors raised by anbox-tw on purpose.

    Attributes:
        cause: what went wrong, one sentence without a full stop.
        cure: what the user can do about it, or an empty string.
        code: stable identifier such as ``ANBOX-C012``, or an empty string.
        exit_code: how a command that ends with this error exits.
    """

    exit_code: ExitCode = ExitCode.FAILED
    default_code: str = ""

    def __init__(self, cause: str, cure: str = "", *, code: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.cure = cure
        self.code = code or self.default_code

    def __str__(self) -> str:
        text = f"{self.code}: {self.cause}" if self.code else self.cause
        return f"{text} ({self.cure})" if self.cure else text


class ConfigError(AnboxError):
    """An option, configuration file or environment variable cannot be used."""

    exit_code = ExitCode.USAGE


class NotRunning(AnboxError):
    """What should answer is not there."""

    exit_code = ExitCode.NOT_RUNNING


class AlreadyRunning(AnboxError):
    """Another live process already holds what we wanted to take."""


class TimedOut(AnboxError):
    """A wait ended without its event."""

    exit_code = ExitCode.TIMED_OUT


class PermissionRefused(AnboxError):
    """The peer, or the caller, may not do this."""

    exit_code = ExitCode.REFUSED


class HostLacks(AnboxError):
    """The host has no tool, kernel feature or privilege that this needs."""

    exit_code = ExitCode.HOST_LACKS


class PeerError(AnboxError):
    """The peer broke the protocol; its connection is closed with this as the reason."""


class NetworkError(AnboxError):
    """A listener, connector or relay failed."""


class RpcError(AnboxError):
    """A remote procedure call failed."""


class AdbError(AnboxError):
    """Base of the ADB stack's errors."""


class PipeError(AnboxError):
    """Base of the qemu pipe's errors."""


class ContainerError(AnboxError):
    """Base of the container manager's errors."""


class SessionError(AnboxError):
    """Base of the session manager's errors."""


class NetdError(AnboxError):
    """Base of netd's errors."""
