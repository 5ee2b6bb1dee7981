"""The messages between a client and the helper that opens sockets in a container; see ``protocols/guest-sockets``.

A request is an id, a kind and a text of limited length; a reply is the id and an errno. With the errno 0 or
``EINPROGRESS`` one descriptor travels with the reply.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "MAX_TEXT_BYTES",
    "REPLY_BYTES",
    "Kind",
    "MessageError",
    "Replies",
    "Reply",
    "Request",
    "Requests",
    "decode_address",
    "encode_address",
    "encode_reply",
    "encode_request",
    "has_descriptor",
]

MAX_TEXT_BYTES = 1024
"""A path of a socket; the kernel itself takes 107 bytes, but a path in a container may be resolved in steps."""

_REQUEST = struct.Struct("!IBH")
_REPLY = struct.Struct("!II")
_PORT = struct.Struct("!H")
REPLY_BYTES = _REPLY.size


class Kind(IntEnum):
    """What is asked for."""

    HELLO = 0
    """The first request of a connection; the text is the instance. Answered without a descriptor."""
    TCP = 1
    """A TCP connection; the text is a port (two bytes) and an IP address."""
    UDP = 2
    """A UDP socket that is connected to; text as of TCP."""
    ABSTRACT = 3
    """A stream connection to a UNIX socket in the abstract namespace; the text is its name without the NUL."""
    PATH = 4
    """A stream connection to a UNIX socket at an absolute path of the container."""


class Request(NamedTuple):
    """One request.

    Attributes:
        id: chosen by the client.
        kind: what is asked for; an unknown number is kept as it is.
        text: see `Kind`.
    """

    id: int
    kind: int
    text: bytes


class Reply(NamedTuple):
    """One reply.

    Attributes:
        id: of the request.
        errno: Linux's number; 0 is success.
    """

    id: int
    errno: int


class MessageError(Exception):
    """The peer sends what is no message."""


def encode_request(id: int, kind: int, text: bytes) -> bytes:
    """The bytes of a request.

    Raises:
        MessageError: the text is too long.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise MessageError(f"a text of {len(text)} bytes; the limit is {MAX_TEXT_BYTES}")
    return _REQUEST.pack(id, kind, len(text)) + text


def encode_reply(id: int, number: int) -> bytes:
    """The bytes of a reply."""
    return _REPLY.pack(id, number)


def has_descriptor(number: int) -> bool:
    """Whether a descriptor travels with a reply of this errno, if it is no reply to a hello."""
    return number in (0, errno.EINPROGRESS)


def encode_address(address: str, port: int) -> bytes:
    """The text of an IP address and a port."""
    return _PORT.pack(port) + address.encode("ascii")


def decode_address(text: bytes) -> tuple[str, int]:
    """The reverse of `encode_address`.

    Raises:
        MessageError: it is too short, or no ASCII.
    """
    if len(text) <= _PORT.size:
        raise MessageError("an address that is too short")
    try:
        return text[_PORT.size :].decode("ascii"), _PORT.unpack_from(text)[0]
    except UnicodeDecodeError:
        raise MessageError("an address that is no ASCII") from None


class Requests:
    """Takes the bytes of a client in, cut anywhere, and gives its requests."""

    def __init__(self) -> None:
        self._buffer = b""

    def receive_data(self, data: bytes) -> Iterator[Request]:
        """The requests that are complete now.

        Raises:
            MessageError: a text is announced that is too long.
        """
        self._buffer += data
        while len(self._buffer) >= _REQUEST.size:
            number, kind, length = _REQUEST.unpack_from(self._buffer)
            if length > MAX_TEXT_BYTES:
                raise MessageError(f"a text of {length} bytes; the limit is {MAX_TEXT_BYTES}")
            end = _REQUEST.size + length
            if len(self._buffer) < end:
                return
            text, self._buffer = self._buffer[_REQUEST.size : end], self._buffer[end:]
            yield Request(number, kind, text)


class Replies:
    """Takes the bytes of a helper in, cut anywhere, and gives its replies."""

    def __init__(self) -> None:
        self._buffer = b""

    def receive_data(self, data: bytes) -> Iterator[Reply]:
        """The replies that are complete now."""
        self._buffer += data
        while len(self._buffer) >= REPLY_BYTES:
            reply = Reply(*_REPLY.unpack_from(self._buffer))
            self._buffer = self._buffer[REPLY_BYTES:]
            yield reply
