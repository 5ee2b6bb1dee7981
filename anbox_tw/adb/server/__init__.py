"""The adb server: smart sockets for adb clients, transports to devices."""

from anbox_tw.adb.server.devices import Device, DeviceRegistry
from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.adb.server.server import AdbServer, emulator_ports
from anbox_tw.adb.server.services import SERVER_VERSION

__all__ = ["SERVER_VERSION", "AdbServer", "Device", "DeviceRegistry", "RequestFailed", "emulator_ports"]
