"""The adb server: smart sockets for adb clients, transports to devices."""
