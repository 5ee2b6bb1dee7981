"""What can go wrong with Android's local sockets, init and installd."""

from __future__ import annotations

from anbox_tw.errors import AnboxError, ConfigError, ExitCode

__all__ = [
    "AddressError",
    "AndroidError",
    "ControlSocketError",
    "InitError",
    "InstalldError",
    "PropertyError",
    "RcError",
]


class AndroidError(AnboxError):
    """Base of the errors of Android's socket side."""

    default_code = "ANBOX-A000"


class AddressError(AndroidError, ConfigError):
    """A local socket address cannot be built: the name is empty, too long, or leaves its directory."""

    default_code = "ANBOX-A001"


class ControlSocketError(AndroidError):
    """The socket that init should have handed over is not there, or is not what was asked for."""

    default_code = "ANBOX-A002"
    exit_code = ExitCode.USAGE


class RcError(AndroidError):
    """An rc file cannot be read, or text in it cannot be expanded."""

    default_code = "ANBOX-A003"
    exit_code = ExitCode.USAGE


class PropertyError(AndroidError):
    """A property cannot be set or read."""

    default_code = "ANBOX-A004"


class InitError(AndroidError):
    """The supervisor cannot do what it was asked."""

    default_code = "ANBOX-A005"


class InstalldError(AndroidError):
    """installd refused or failed a command, or its connection broke.

    Attributes:
        result: the number installd answered, or -1 when there was no answer.
    """

    default_code = "ANBOX-A006"

    def __init__(self, cause: str, cure: str = "", *, code: str = "", result: int = -1) -> None:
        super().__init__(cause, cure, code=code)
        self.result = result
