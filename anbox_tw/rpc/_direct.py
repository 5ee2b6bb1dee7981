"""Sending without waiting for the reactor's next turn."""

from __future__ import annotations

from typing import Any

__all__ = ["send_directly", "send_queued"]


def send_queued(transport: Any, data: bytes) -> None:
    """Send the ordinary way: the transport writes when its descriptor is reported writable."""
    transport.write(data)


def send_directly(transport: Any, data: bytes) -> None:
    """Write what the kernel takes at once, and leave the rest to the transport.

    ``FileDescriptor.write`` only queues: the bytes leave one turn of the reactor later, after two changes of
    the poll set. An answer to what has just been read can nearly always be written at once; that is
    a third of a small call's cost. ``writeSomeData`` is the transport's own method for it. It is used only
    while the transport has nothing queued, so the order of bytes stays.

    Args:
        transport: a ``twisted.internet.abstract.FileDescriptor`` with ``writeSomeData``.
        data: what to send.
    """
    if (
        transport.connected
        and not transport.dataBuffer
        and not transport._tempDataBuffer
        and not transport.disconnecting
        and not transport._writeDisconnecting
    ):
        sent = transport.writeSomeData(data)
        # A lost connection is an exception object here; the queue below, or the next read, finds out too.
        if isinstance(sent, int) and sent > 0:
            if sent == len(data):
                return
            data = data[sent:]
    transport.write(data)
