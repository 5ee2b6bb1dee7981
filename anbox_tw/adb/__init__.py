"""The ADB stack, usable without the rest of anbox-tw."""
