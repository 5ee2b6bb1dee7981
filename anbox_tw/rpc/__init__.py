"""The RPC channel: framing, calls as Deferreds, dispatcher and generated messages."""
