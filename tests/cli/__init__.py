"""The anbox command."""
