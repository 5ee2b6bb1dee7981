"""The session manager."""
