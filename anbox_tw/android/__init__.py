"""Android local sockets, init's socket activation and installd."""
