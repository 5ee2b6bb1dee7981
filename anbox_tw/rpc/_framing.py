"""Frames of the RPC links, without I/O.

A frame is a 24-bit big-endian payload size, one type byte (0 invocation, 1 response) and the
payload (``src/anbox/rpc/constants.h``, ``channel.cpp`` and ``message_processor.cpp`` of the Anbox
C++ original). The payload is a serialized ``Invocation`` or ``Result`` of ``anbox_rpc.proto``.
"""

from __future__ import annotations

from anbox_tw.errors import PeerError

__all__ = [
    "HEADER_BYTES",
    "INVOCATION",
    "MAX_PAYLOAD_BYTES",
    "OVERSIZE",
    "OVERSIZE_HEAD_BYTES",
    "PROTOCOL_VERSION",
    "RESPONSE",
    "Frame",
    "FrameReader",
    "FrameTooBig",
    "encode_event",
    "encode_invocation",
    "encode_response",
    "frame",
    "salvage_id",
]

HEADER_BYTES = 4
INVOCATION = 0
RESPONSE = 1
PROTOCOL_VERSION = 1

OVERSIZE = 0x100
"""Added to the type of a frame whose payload was dropped because it is over the reader's limit."""

OVERSIZE_HEAD_BYTES = 64
"""How much of a dropped payload is kept: enough to find the id of an invocation in it, so that its
caller gets an answer."""

MAX_PAYLOAD_BYTES = 0xFFFFFF
"""The size field has 24 bits. The original cuts a bigger size off silently; here it is an error."""

Frame = tuple[int, bytes]
"""A frame's type and payload."""


class FrameTooBig(ValueError):
    """A message does not fit into one frame; ``size`` is its bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"a message of {size} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        self.size = size


class FrameReader:
    """Cuts a byte stream into frames, in one pass by offset.

    Args:
        max_payload: a bigger payload is not stored: its frame comes out at once as type
            ``OVERSIZE + type`` with the first bytes of it, and the rest is dropped as it arrives.

    Attributes:
        failure: set when the stream holds a type byte that is neither 0 nor 1, so that the peer
            does not speak this protocol. Frames before it have come out; all after it is ignored.
    """

    def __init__(self, max_payload: int = MAX_PAYLOAD_BYTES) -> None:
        if not 0 < max_payload <= MAX_PAYLOAD_BYTES:
            raise ValueError(f"max_payload is 1 to {MAX_PAYLOAD_BYTES}, not {max_payload}")
        self.failure: PeerError | None = None
        self._max = max_payload
        self._rest = bytearray()
        # While less than this is in _rest there is nothing to parse.
        self._need = HEADER_BYTES
        # Of an oversize frame: its type, what is kept of its head, how many bytes are still to drop.
        self._dropping = -1
        self._head = b""
        self._to_drop = 0

    @property
    def partial(self) -> bool:
        """Whether the stream stands within a frame."""
        return bool(self._rest) or self._to_drop > 0

    def receive_data(self, data: bytes) -> list[Frame]:
        """Take the next bytes of the stream, cut at any place.

        Returns:
            The frames that are now complete, in their order.
        """
        frames: list[Frame] = []
        if self.failure is not None:
            return frames
        if self._to_drop:
            data = self._drop(data, frames)
        elif self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return frames
            data = bytes(self._rest)
            self._rest.clear()
        offset = 0
        end = len(data)
        limit = self._max
        need = HEADER_BYTES
        while end - offset >= HEADER_BYTES:
            size = data[offset] << 16 | data[offset + 1] << 8 | data[offset + 2]
            kind = data[offset + 3]
            if kind > RESPONSE:
                self.failure = PeerError(
                    f"the peer sent a frame of type {kind}, which does not exist"
                    f" (header {data[offset : offset + HEADER_BYTES]!r})",
                    "check that the program at the other end speaks Anbox RPC",
                )
                return frames
            start = offset + HEADER_BYTES
            stop = start + size
            if size > limit:
                self._dropping = OVERSIZE + kind
                self._to_drop = size
                offset = end
                self._head = b""
                rest = self._drop(data[start:], frames)
                if rest:
                    # Only when the whole dropped frame was in this chunk.
                    data, offset, end = rest, 0, len(rest)
                continue
            if stop > end:
                need = HEADER_BYTES + size
                break
            frames.append((kind, data[start:stop]))
            offset = stop
        if offset < end:
            self._rest += data[offset:] if offset else data
        self._need = need
        return frames

    def _drop(self, data: bytes, frames: list[Frame]) -> bytes:
        """Take ``data`` off what is to be dropped; returns what comes after it."""
        take = min(len(data), self._to_drop)
        if len(self._head) < OVERSIZE_HEAD_BYTES:
            self._head += data[: min(take, OVERSIZE_HEAD_BYTES - len(self._head))]
        self._to_drop -= take
        if self._dropping >= 0 and (len(self._head) == OVERSIZE_HEAD_BYTES or not self._to_drop):
            frames.append((self._dropping, self._head))
            self._dropping = -1
        return data[take:]


def frame(kind: int, payload: bytes) -> bytes:
    """The frame of one payload.

    Raises:
        FrameTooBig: the payload is over ``MAX_PAYLOAD_BYTES``.
    """
    size = len(payload)
    if size > MAX_PAYLOAD_BYTES:
        raise FrameTooBig(size)
    return (size << 8 | kind).to_bytes(HEADER_BYTES, "big") + payload


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def invocation_prefix(method_name: str) -> bytes:
    """Field 2 of an ``Invocation``, which callers of one method many times may keep."""
    name = method_name.encode()
    return b"\x12" + _varint(len(name)) + name + b"\x1a"


def encode_invocation(call_id: int, prefix: bytes, parameters: bytes) -> bytes:
    """The whole frame of an ``Invocation``: what ``SerializeToString`` gives, without its cost.

    Args:
        call_id: 32 bits, unsigned.
        prefix: of ``invocation_prefix``.
        parameters: the serialized request.

    Raises:
        FrameTooBig: it does not fit into a frame.
    """
    size = len(parameters)
    payload = b"".join(
        (
            b"\x08",
            bytes((call_id,)) if call_id < 0x80 else _varint(call_id),
            prefix,
            bytes((size,)) if size < 0x80 else _varint(size),
            parameters,
            b"\x20\x01",
        )
    )
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise FrameTooBig(length)
    return (length << 8).to_bytes(HEADER_BYTES, "big") + payload


def encode_response(call_id: int, response: bytes) -> bytes:
    """The whole frame of a ``Result`` that answers a call.

    Raises:
        FrameTooBig: it does not fit into a frame.
    """
    size = len(response)
    payload = b"".join(
        (
            b"\x08",
            bytes((call_id,)) if call_id < 0x80 else _varint(call_id),
            b"\x12",
            bytes((size,)) if size < 0x80 else _varint(size),
            response,
        )
    )
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise FrameTooBig(length)
    return (length << 8 | RESPONSE).to_bytes(HEADER_BYTES, "big") + payload


def encode_event(event: bytes) -> bytes:
    """The whole frame of a ``Result`` that carries one event and answers nothing.

    Raises:
        FrameTooBig: it does not fit into a frame.
    """
    return frame(RESPONSE, b"\x1a" + _varint(len(event)) + event)


def salvage_id(head: bytes) -> int | None:
    """The id of an ``Invocation`` of which only the first bytes are at hand, or that cannot be parsed.

    Every known sender writes the id first, as field 1 (tag 0x08).
    """
    if head[:1] != b"\x08":
        return None
    value = 0
    # A 32-bit varint has at most five bytes.
    for index, byte in enumerate(head[1:6]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value if value <= 0xFFFFFFFF else None
    return None
