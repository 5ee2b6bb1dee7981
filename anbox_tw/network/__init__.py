"""The network ground: listeners, connections, credentials, fd passing and the relay."""
