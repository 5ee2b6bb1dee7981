"""The container manager."""
