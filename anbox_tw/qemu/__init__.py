"""The qemu pipe: identification, qemud framing and one module per pipe service."""
