"""The frame of qemud services: four hexadecimal digits of length, then that many bytes.

From the emulator's ``android/hw-qemud.c`` and the guest's ``hardware/qemud.h``: digits are lower case
when sent and of either case when read; a guest reads header and body with one ``read`` each, so a
frame must be sent in one write; nobody sends an empty frame, but it is a legal one.

Anbox's loop (``src/anbox/qemu/qemud_message_processor.cpp``) read bad digits as zero, had no maximum and
could leave a complete frame in its buffer; here digits are checked, and the loop runs while a frame is complete.
"""

from __future__ import annotations

from anbox_tw.qemu.errors import FramingError

__all__ = ["HEADER_BYTES", "MAX_FRAME_BYTES", "QemudDecoder", "encode_frame"]

HEADER_BYTES = 4

MAX_FRAME_BYTES = 0xFFFF
"""What four digits can say."""

_DIGITS = frozenset(b"0123456789abcdefABCDEF")


def encode_frame(body: bytes) -> bytes:
    """Header and body, to be sent in one write.

    Raises:
        ValueError: the body is longer than a header can say.
    """
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a qemud frame holds {MAX_FRAME_BYTES} bytes, not {len(body)}")
    return b"%04x" % len(body) + body


class QemudDecoder:
    """Cuts a stream into frames.

    Args:
        max_frame_bytes: a header that announces more is an error; what is buffered is at most this
            and a header, whatever the peer sends.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete frame."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> list[bytes]:
        """Take the next bytes; returns the bodies of the frames that they complete.

        Raises:
            FramingError: a header is not four hexadecimal digits, or announces too much. Frames
                completed by the same call are lost with it: the stream is out of step anyway.
        """
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            size = self._parse_header(bytes(self._buffer[start:body]))
            if len(self._buffer) - body < size:
                break
            frames.append(bytes(self._buffer[body : body + size]))
            start = body + size
        del self._buffer[:start]
        if 0 < len(self._buffer) < HEADER_BYTES and not _DIGITS.issuperset(self._buffer):
            raise FramingError(f"a frame header begins with {bytes(self._buffer)!r}")
        return frames

    def _parse_header(self, header: bytes) -> int:
        if not _DIGITS.issuperset(header):
            raise FramingError(f"the frame header {header!r} is not four hexadecimal digits")
        size = int(header, 16)
        if size > self.max_frame_bytes:
            raise FramingError(f"a frame of {size} bytes is announced, {self.max_frame_bytes} are allowed")
        return size
