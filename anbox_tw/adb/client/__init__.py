"""The ADB client."""
