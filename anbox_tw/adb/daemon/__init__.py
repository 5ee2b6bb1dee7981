"""adbd: the device side of ADB."""
