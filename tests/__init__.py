"""The trial suite; mirrors ``anbox_tw``."""
