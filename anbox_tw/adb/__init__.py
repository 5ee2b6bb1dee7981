"""The ADB stack, usable without the rest of anbox-tw."""

from __future__ import annotations

from anbox_tw.adb.auth import Authority
from anbox_tw.adb.banner import DEVICE_FEATURES, HOST_FEATURES, SERVER_FEATURES, Banner
from anbox_tw.adb.keys import AdbKey, AdbKeyError, PublicKey, load_user_keys
from anbox_tw.adb.streams import AdbAddress, AdbStream
from anbox_tw.adb.transport import (
    AdbTransport,
    DeviceTransport,
    HostTransport,
    StreamRefused,
    TransportClosed,
)

__all__ = [
    "DEVICE_FEATURES",
    "HOST_FEATURES",
    "SERVER_FEATURES",
    "AdbAddress",
    "AdbKey",
    "AdbKeyError",
    "AdbStream",
    "AdbTransport",
    "Authority",
    "Banner",
    "DeviceTransport",
    "HostTransport",
    "PublicKey",
    "StreamRefused",
    "TransportClosed",
    "load_user_keys",
]
