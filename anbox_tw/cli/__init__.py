"""The anbox command."""

from anbox_tw.cli._main import cli, main

__all__ = ["cli", "main"]
