"""What can go wrong for a client, each with a class of its own."""

from __future__ import annotations

from anbox_tw.errors import AdbError, ExitCode, NotRunning, PermissionRefused

__all__ = [
    "DeviceNotFound",
    "DeviceOffline",
    "DeviceUnauthorized",
    "InstallFailed",
    "MoreThanOneDevice",
    "RemoteFailure",
    "ServerNotRunning",
    "StreamEnded",
    "SyncFailure",
    "failure_for",
]


class RemoteFailure(AdbError):
    """The server or device answered FAIL; ``cause`` is its text."""


class DeviceNotFound(RemoteFailure):
    """No device has this serial, or there is none at all."""

    exit_code = ExitCode.NOT_RUNNING


class MoreThanOneDevice(RemoteFailure):
    """Several devices could be meant."""

    exit_code = ExitCode.USAGE


class DeviceOffline(RemoteFailure):
    """The device is known but does not answer."""

    exit_code = ExitCode.NOT_RUNNING


class DeviceUnauthorized(RemoteFailure, PermissionRefused):
    """The device does not allow our key."""

    exit_code = ExitCode.REFUSED


class ServerNotRunning(AdbError, NotRunning):
    """Nobody answers where the adb server should be."""

    exit_code = ExitCode.NOT_RUNNING


class StreamEnded(AdbError):
    """The other end closed the stream in the middle of something."""


class SyncFailure(RemoteFailure):
    """The device could not do a file operation; ``cause`` is its text."""


class InstallFailed(RemoteFailure):
    """The package manager refused; ``cause`` is what it said."""


_BEGINNINGS: tuple[tuple[str, type[RemoteFailure]], ...] = (
    ("no devices", DeviceNotFound),
    ("no emulators", DeviceNotFound),
    ("no device with", DeviceNotFound),
    ("more than one", MoreThanOneDevice),
    ("device offline", DeviceOffline),
    ("device still", DeviceOffline),
    ("device unauthorized", DeviceUnauthorized),
)


def failure_for(text: str) -> RemoteFailure:
    """The error for a server's FAIL text (AOSP ``transport.cpp``, ``acquire_one_transport``)."""
    for beginning, kind in _BEGINNINGS:
        if text.startswith(beginning):
            return kind(text)
    if text.startswith("device '") and text.endswith("' not found"):
        return DeviceNotFound(text)
    return RemoteFailure(text)
