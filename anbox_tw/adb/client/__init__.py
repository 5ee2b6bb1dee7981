"""The ADB client: through a server, or straight to a device."""

from __future__ import annotations

from anbox_tw.adb.client._errors import (
    DeviceNotFound,
    DeviceOffline,
    DeviceUnauthorized,
    InstallFailed,
    MoreThanOneDevice,
    RemoteFailure,
    ServerNotRunning,
    StreamEnded,
    SyncFailure,
)
from anbox_tw.adb.client.device import Device
from anbox_tw.adb.client.server import AdbClient, DeviceInfo, connect_device, pair_device
from anbox_tw.adb.client.shell import ShellResult, ShellSession
from anbox_tw.adb.client.streams import ByteStream
from anbox_tw.adb.client.sync import Progress, RemoteStat, SyncSession

__all__ = [
    "AdbClient",
    "ByteStream",
    "Device",
    "DeviceInfo",
    "DeviceNotFound",
    "DeviceOffline",
    "DeviceUnauthorized",
    "InstallFailed",
    "MoreThanOneDevice",
    "Progress",
    "RemoteFailure",
    "RemoteStat",
    "ServerNotRunning",
    "ShellResult",
    "ShellSession",
    "StreamEnded",
    "SyncFailure",
    "SyncSession",
    "connect_device",
    "pair_device",
]
