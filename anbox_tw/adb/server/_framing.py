"""Smart socket framing (AOSP ``SERVICES.TXT``, ``sockets.cpp``): requests in, replies out. No I/O."""

from __future__ import annotations

__all__ = ["MAX_REQUEST_BYTES", "BadRequest", "RequestReader", "body", "fail", "okay"]

MAX_REQUEST_BYTES = 65535
"""Four hex digits say how long a request is."""

_HEX = frozenset(b"0123456789abcdefABCDEF")


class BadRequest(Exception):
    """The bytes are no smart socket request; adb closes such a connection without a reply."""


class RequestReader:
    """Collects the bytes of one request.

    Attributes:
        rest: what came behind the request, once it is complete.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.rest = b""

    @property
    def started(self) -> bool:
        """Whether part of a request is there."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> str | None:
        """Take bytes; returns the request when it is complete.

        Raises:
            BadRequest: the length is not four hex digits, or zero.
        """
        self._buffer += data
        digits = bytes(self._buffer[:4])
        if not _HEX.issuperset(digits):
            raise BadRequest(f"a request does not begin with four hex digits but {digits!r}")
        if len(digits) < 4:
            return None
        length = int(digits, 16)
        if length == 0:
            raise BadRequest("an empty request")
        if len(self._buffer) < 4 + length:
            return None
        request = bytes(self._buffer[4 : 4 + length])
        self.rest = bytes(self._buffer[4 + length :])
        self._buffer.clear()
        return request.decode("utf-8", "surrogateescape")


def body(text: str | bytes) -> bytes:
    """A text with its length in front, cut to what four hex digits can say."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    data = data[:MAX_REQUEST_BYTES]
    return b"%04x" % len(data) + data


def okay(text: str | bytes | None = None) -> bytes:
    """``OKAY``, with a text where one is given."""
    return b"OKAY" if text is None else b"OKAY" + body(text)


def fail(text: str) -> bytes:
    """``FAIL`` with its reason."""
    return b"FAIL" + body(text)
