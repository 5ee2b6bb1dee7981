"""Errors of the session manager."""

from __future__ import annotations

from anbox_tw.errors import ExitCode, SessionError

__all__ = ["BadRequest", "GuestNotConnected", "NotReadyYet", "UnknownTask"]


class GuestNotConnected(SessionError):
    """No guest is connected to the bridge, so nothing can be asked of Android."""

    exit_code = ExitCode.NOT_RUNNING
    default_code = "ANBOX-S001"


class NotReadyYet(SessionError):
    """The guest has not said that it has booted."""

    exit_code = ExitCode.NOT_RUNNING
    default_code = "ANBOX-S002"


class BadRequest(SessionError):
    """A request on the control socket that cannot be carried out as it is."""

    exit_code = ExitCode.USAGE
    default_code = "ANBOX-S003"


class UnknownTask(SessionError):
    """The guest has no task of this number."""

    exit_code = ExitCode.USAGE
    default_code = "ANBOX-S004"
