"""Backpressure for protocols that answer what they read, and for those that report unasked."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["Flow", "handle_little_at_once", "keep_fresh", "read_no_faster_than_answers_leave"]

FRESH_KERNEL_BYTES = 4096
"""The kernel makes it 8 KiB, which hold some ten reports; by default it would queue two minutes of a sensor's."""

LITTLE_BYTES = 1024
"""Read in one turn of the reactor: some fifty commands, so that a guest that floods takes no more than its share.

It is also what may wait to be written before the guest counts as not reading. With one more report that is less than half of the
kernel's buffer, so what waits leaves in one piece: a frame is never cut, which the guest's HALs could not read.
"""


@implementer(IPushProducer)
class Flow:
    """What a transport says of its peer's reading.

    Attributes:
        blocked: what was written before has not left: reports are better left out than queued.
    """

    def __init__(self, transport: Any, resumed: Callable[[], object] | None = None) -> None:
        self._transport = transport
        self._resumed = resumed
        self.blocked = False

    def pauseProducing(self) -> None:
        self.blocked = True
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.blocked = False
        self._transport.resumeProducing()
        if self._resumed is not None:
            self._resumed()

    def stopProducing(self) -> None:
        self.blocked = True


def read_no_faster_than_answers_leave(transport: Any, resumed: Callable[[], object] | None = None) -> Flow:
    """Stop reading from ``transport`` while what was written to it has not left.

    A peer that asks without reading the answers then waits, where it would fill our memory.
    ``transport`` must be ended by ``abortConnection``, or its producer unregistered before
    ``loseConnection``. ``resumed`` is called when the peer has read all that was queued.
    """
    flow = Flow(transport, resumed)
    transport.registerProducer(flow, True)
    return flow


def handle_little_at_once(transport: Any) -> None:
    """Take and queue no more than `LITTLE_BYTES` in one turn."""
    transport.bufferSize = LITTLE_BYTES


def keep_fresh(transport: Any) -> None:
    """Let little wait in the kernel for a guest that is told of changes: what it reads is to be of now."""
    handle = getattr(transport, "getHandle", None)
    if handle is not None:
        handle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FRESH_KERNEL_BYTES)
