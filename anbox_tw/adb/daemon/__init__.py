"""adbd: what runs in the device and serves hosts."""

from __future__ import annotations

from anbox_tw.adb.daemon.adbd import AdbDaemon
from anbox_tw.adb.daemon.config import DaemonConfig

__all__ = ["AdbDaemon", "DaemonConfig"]
