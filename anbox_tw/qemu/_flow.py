"""Backpressure for protocols that answer what they read."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["read_no_faster_than_answers_leave"]


@implementer(IPushProducer)
class _Reading:
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def pauseProducing(self) -> None:
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._transport.resumeProducing()

    def stopProducing(self) -> None:
        pass


def read_no_faster_than_answers_leave(transport: Any) -> None:
    """Stop reading from ``transport`` while what was written to it has not left.

    A peer that asks without reading the answers then waits, where it would fill our memory.
    ``transport`` must be ended by ``abortConnection``, or its producer unregistered before
    ``loseConnection``.
    """
    transport.registerProducer(_Reading(transport), True)
