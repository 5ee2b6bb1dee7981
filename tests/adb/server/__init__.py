"""The adb server."""
