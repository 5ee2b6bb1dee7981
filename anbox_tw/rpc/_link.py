"""What a channel keeps of its link: limits, calls under way, whether the peer reads."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from anbox_tw.rpc._framing import MAX_PAYLOAD_BYTES

__all__ = ["Call", "Limits", "Valve", "carries_error"]


@attrs.frozen
class Limits:
    """The caps of one link.

    Attributes:
        max_payload: bytes of one incoming message. A bigger invocation is answered with an error, a
            bigger response fails its call; neither is stored.
        max_calls: calls of ours without an answer; one more fails at once.
        max_served: calls of the peer that are being worked on; one more is answered with an error.
        max_unread: bytes of answers and events that the peer has not read; beyond it the link is cut.
            Reading from the peer does not stop before: two ends that both wait for the other to read
            would wait for ever.
        frame_timeout: seconds in which a message that has begun must be complete.
        close_timeout: seconds in which the peer must take what is queued when we close.
    """

    max_payload: int = MAX_PAYLOAD_BYTES
    max_calls: int = 4096
    max_served: int = 256
    max_unread: int = 4 * MAX_PAYLOAD_BYTES
    frame_timeout: float = 30.0
    close_timeout: float = 5.0


class Call:
    """A call of ours that has no answer yet."""

    __slots__ = ("deadline", "deferred", "method", "response_type", "timeout")

    def __init__(self, method: str, response_type: type[Any], timeout: float | None, deadline: float) -> None:
        self.method = method
        self.response_type = response_type
        self.timeout = timeout
        self.deadline = deadline
        self.deferred: Deferred[Any]


@implementer(IPushProducer)
class Valve:
    """Counts what is queued while the transport's buffer is full.

    Attributes:
        paused: the buffer is full.
        unread: bytes of answers and events since then.
    """

    def __init__(self) -> None:
        self.paused = False
        self.unread = 0

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self.unread = 0

    def stopProducing(self) -> None:
        self.paused = True


def carries_error(response_type: type[Any]) -> bool:
    """Whether messages of this type have the fields ``error`` and ``structured_error``."""
    fields = response_type.DESCRIPTOR.fields_by_number
    return 127 in fields and 128 in fields and fields[127].name == "error"
