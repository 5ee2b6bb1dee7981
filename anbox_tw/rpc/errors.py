"""What can go wrong with a call, and how an error travels over the wire.

An error goes as text in field 127 (``error``), which every peer shows, and as a
``StructuredError`` in field 128, whose fields from 10 on carry cause, cure, the stable identifier
and the exit code for peers that know them.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError

from anbox_tw.errors import AnboxError, ExitCode, PermissionRefused, RpcError, TimedOut
from anbox_tw.rpc._pb.anbox_rpc_pb2 import StructuredError, Void

if TYPE_CHECKING:
    from twisted.python.failure import Failure

__all__ = [
    "BadParameters",
    "CallTimedOut",
    "ChannelClosed",
    "Domain",
    "MessageTooBig",
    "RemoteError",
    "RpcCode",
    "TooManyCalls",
    "UnknownMethod",
    "WrongVersion",
]

MAX_TEXT_CHARS = 8192
"""Longest error text that is sent or kept: enough for the tail of an engine's log."""


class Domain(IntEnum):
    """``StructuredError.domain``: which part of anbox-tw the code belongs to."""

    UNKNOWN = 0
    RPC = 1
    CONTAINER = 2
    SESSION = 3
    BRIDGE = 4
    ADB = 5
    NETWORK = 6


class RpcCode(IntEnum):
    """``StructuredError.code`` in ``Domain.RPC``."""

    INTERNAL = 1
    UNKNOWN_METHOD = 2
    BAD_PARAMETERS = 3
    WRONG_VERSION = 4
    TOO_BIG = 5
    TOO_MANY_CALLS = 6
    REFUSED = 7
    TIMED_OUT = 8
    CANCELLED = 9
    CLOSED = 10


class UnknownMethod(RpcError):
    """The peer has no such method."""

    default_code = f"ANBOX-R{RpcCode.UNKNOWN_METHOD:03}"


class BadParameters(RpcError):
    """The parameters are not the message the method takes."""

    default_code = f"ANBOX-R{RpcCode.BAD_PARAMETERS:03}"


class WrongVersion(RpcError):
    """The invocation's ``protocol_version`` is not 1."""

    default_code = f"ANBOX-R{RpcCode.WRONG_VERSION:03}"


class MessageTooBig(RpcError):
    """A message is over the limit of a frame, or of the peer that should take it."""

    default_code = f"ANBOX-R{RpcCode.TOO_BIG:03}"


class TooManyCalls(RpcError):
    """More calls are outstanding than this link allows."""

    default_code = f"ANBOX-R{RpcCode.TOO_MANY_CALLS:03}"


class CallTimedOut(RpcError, TimedOut):
    """No answer came in time. The peer may still be at it."""

    exit_code = ExitCode.TIMED_OUT
    default_code = f"ANBOX-R{RpcCode.TIMED_OUT:03}"


class ChannelClosed(RpcError):
    """The link is gone, and with it every call without an answer.

    Attributes:
        reason: why, as Twisted told it; None when it was never connected.
    """

    default_code = f"ANBOX-R{RpcCode.CLOSED:03}"

    def __init__(self, cause: str, cure: str = "", *, reason: Failure | None = None) -> None:
        super().__init__(cause, cure)
        self.reason = reason


class RemoteError(RpcError):
    """The peer answered with an error.

    Attributes:
        domain: of the ``StructuredError``, 0 when there was none; see ``Domain``.
        number: its ``code``, 0 when there was none.
        cause: the peer's own words.
        cure: what it says can be done, or an empty string.
        code: its stable identifier, or an empty string.
    """

    def __init__(
        self,
        cause: str,
        cure: str = "",
        *,
        code: str = "",
        domain: int = 0,
        number: int = 0,
        exit_code: ExitCode = ExitCode.FAILED,
    ) -> None:
        super().__init__(cause, cure, code=code)
        self.domain = domain
        self.number = number
        self.exit_code = exit_code


_IDENTIFIER = re.compile(r"ANBOX-([A-Z]+)0*(\d{1,6})\Z")

_DOMAIN_LETTERS = {
    "R": Domain.RPC,
    "C": Domain.CONTAINER,
    "S": Domain.SESSION,
    "B": Domain.BRIDGE,
    "A": Domain.ADB,
    "N": Domain.NETWORK,
}


def to_wire(error: BaseException) -> Void:
    """The answer that tells a peer about ``error``; every answer with fields 127 and 128 parses it."""
    answer = Void()
    structured = answer.structured_error
    if isinstance(error, AnboxError):
        answer.error = _shortened(str(error))
        structured.cause = _shortened(error.cause)
        if error.cure:
            structured.cure = _shortened(error.cure)
        if error.code:
            structured.identifier = error.code[:64]
        structured.exit_code = int(error.exit_code)
        if isinstance(error, RemoteError) and error.domain:
            structured.domain, structured.code = error.domain, error.number
        elif match := _IDENTIFIER.match(error.code):
            structured.domain = _DOMAIN_LETTERS.get(match[1], Domain.UNKNOWN)
            structured.code = int(match[2])
        elif isinstance(error, PermissionRefused):
            structured.domain, structured.code = Domain.RPC, RpcCode.REFUSED
    else:
        cancelled = isinstance(error, CancelledError)
        words = "it was cancelled" if cancelled else f"{type(error).__name__}: {error}"
        # The original's words for an exception in a handler.
        answer.error = _shortened(f"Error processing request: {words}")
        structured.cause = answer.error
        structured.domain = Domain.RPC
        structured.code = RpcCode.CANCELLED if cancelled else RpcCode.INTERNAL
        structured.identifier = f"ANBOX-R{structured.code:03}"
    return answer


def from_wire(answer: Any) -> RemoteError:
    """The error in an answer whose field 127 or 128 is set.

    Args:
        answer: any message with the fields ``error`` and ``structured_error``. The original's
            ``StructuredError`` has only domain and code, so the rest may be missing.
    """
    structured: StructuredError = answer.structured_error
    text = answer.error[:MAX_TEXT_CHARS]
    try:
        exit_code = ExitCode(structured.exit_code) or ExitCode.FAILED
    except ValueError:
        exit_code = ExitCode.FAILED
    return RemoteError(
        structured.cause[:MAX_TEXT_CHARS] or text or "the peer answered with an error without words",
        structured.cure[:MAX_TEXT_CHARS],
        code=structured.identifier[:64],
        domain=structured.domain,
        number=structured.code,
        exit_code=exit_code,
    )


def _shortened(text: str) -> str:
    if len(text) > MAX_TEXT_CHARS:
        text = text[: MAX_TEXT_CHARS - 3] + "..."
    # A lone surrogate (from a file name that is not UTF-8) cannot be put into a protobuf string.
    return text.encode("utf-8", "backslashreplace").decode()
