"""A queue of samples with a limit in time."""

from __future__ import annotations

from collections import deque

from anbox_tw.device.pcm import PcmFormat

__all__ = ["PcmBuffer"]


class PcmBuffer:
    """First in, first out; bytes of whole frames.

    Args:
        form: of the samples.
        seconds: how much it is meant to hold; more is taken, and ``full`` then says so.
    """

    def __init__(self, form: PcmFormat, seconds: float) -> None:
        self.form = form
        self.limit = max(form.frame_bytes, form.bytes_of(seconds))
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def full(self) -> bool:
        """Whether it holds its limit."""
        return self._size >= self.limit

    @property
    def low(self) -> bool:
        """Whether it holds no more than half of its limit."""
        return self._size * 2 <= self.limit

    @property
    def milliseconds(self) -> int:
        """How long what it holds lasts."""
        return round(self.form.seconds_of(self._size) * 1000)

    def append(self, data: bytes) -> None:
        """Put in."""
        if data:
            self._chunks.append(data)
            self._size += len(data)

    def take(self, count: int) -> bytes:
        """Take out at most ``count`` bytes."""
        taken = []
        while count > 0 and self._chunks:
            chunk = self._chunks[0]
            if len(chunk) <= count:
                taken.append(self._chunks.popleft())
            else:
                taken.append(chunk[:count])
                self._chunks[0] = chunk[count:]
            count -= len(taken[-1])
            self._size -= len(taken[-1])
        return b"".join(taken)

    def trim(self) -> int:
        """Throw away the oldest frames beyond the limit; returns how many bytes those were."""
        return len(self.take(self._size - self.limit))
