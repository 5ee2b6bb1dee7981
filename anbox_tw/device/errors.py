"""What is wrong with a change that somebody asked of the device."""

from __future__ import annotations

from anbox_tw.errors import AnboxError, ExitCode

__all__ = ["BadValue", "DeviceError", "Refused", "SensorDisabled", "UnknownName"]


class DeviceError(AnboxError):
    """Base of the device model's errors; nothing was changed."""


class BadValue(DeviceError):
    """A value is out of its range or of the wrong kind."""

    exit_code = ExitCode.USAGE


class UnknownName(DeviceError):
    """There is no part, field, sensor or profile of this name."""

    exit_code = ExitCode.USAGE


class SensorDisabled(DeviceError):
    """The sensor exists, but this device was started without it."""

    exit_code = ExitCode.REFUSED


class Refused(DeviceError):
    """What was asked is right, but the device cannot do it now."""

    exit_code = ExitCode.REFUSED
