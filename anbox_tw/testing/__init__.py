"""Test doubles for users of anbox-tw, and the ones our own suite uses."""
