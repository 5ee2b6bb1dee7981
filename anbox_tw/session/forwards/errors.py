"""Errors of forwards."""

from __future__ import annotations

from anbox_tw.errors import ExitCode, SessionError

__all__ = ["BadSpec", "ForwardError", "NoSuchForward"]


class ForwardError(SessionError):
    """A forward cannot be made, or its target not be reached."""

    default_code = "ANBOX-S010"


class BadSpec(ForwardError):
    """What is to be forwarded cannot be understood."""

    exit_code = ExitCode.USAGE
    default_code = "ANBOX-S011"


class NoSuchForward(ForwardError):
    """Nothing listens there."""

    exit_code = ExitCode.NOT_RUNNING
    default_code = "ANBOX-S012"
