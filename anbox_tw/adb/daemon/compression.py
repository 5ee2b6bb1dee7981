"""The codecs of sync v2; each is there when its library is installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Protocol

__all__ = [
    "BROTLI",
    "FLAGS",
    "LZ4",
    "ZSTD",
    "Compressor",
    "Decompressor",
    "available",
    "compressor",
    "decompressor",
]

BROTLI = 1
LZ4 = 2
ZSTD = 4
FLAGS = {"brotli": BROTLI, "lz4": LZ4, "zstd": ZSTD}
"""Bits of the flags word in SND2 and RCV2 (``file_sync_protocol.h``)."""

_MODULES = {"brotli": "brotli", "lz4": "lz4.frame", "zstd": "zstandard"}


class Compressor(Protocol):
    """One continuous compressed stream."""

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        """The compressed bytes that are ready after ``data``."""

    def flush(self) -> bytes:
        """The end of the stream."""


class Decompressor(Protocol):
    """The reverse."""

    def decompress(self, data: memoryview) -> Iterator[bytes]:
        """What ``data`` gives, in pieces of bounded size. Raises an exception of the library on bad data."""

    def finished(self) -> bool:
        """Whether the stream has come to its own end."""


@functools.cache
def available() -> tuple[str, ...]:
    """Names of the codecs that can be used here."""
    found = []
    for name, module in _MODULES.items():
        try:
            if importlib.util.find_spec(module) is not None:
                found.append(name)
        except ImportError:
            continue
    return tuple(found)


class _Compressor:
    """Puts one face on three libraries."""

    def __init__(self, work: Callable[[Any], bytes], flush: Callable[[], bytes], start: bytes = b"") -> None:
        self._work = work
        self._start = start
        self.flush = flush

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        start, self._start = self._start, b""
        return start + self._work(data)


def compressor(name: str) -> Compressor:
    """A compressor for ``brotli``, ``lz4`` or ``zstd``, at the fast level that adbd uses."""
    if name == "brotli":
        import brotli

        codec = brotli.Compressor(quality=1)
        return _Compressor(lambda data: codec.process(bytes(data)), codec.finish)
    if name == "lz4":
        import lz4.frame

        frame = lz4.frame.LZ4FrameCompressor()
        return _Compressor(frame.compress, frame.flush, start=frame.begin())
    import zstandard

    stream = zstandard.ZstdCompressor(level=1).compressobj()
    return _Compressor(stream.compress, stream.flush)


OUTPUT_LIMIT = 1024 * 1024
"""Largest piece a decompressor gives out, in bytes, so that a bomb cannot fill the memory."""
_ZSTD_SLICE = 4096
"""python-zstandard has no output limit: what this much input can give (a block of 128 KiB for every four
bytes at worst) is the bound instead."""


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._codec = brotli.Decompressor()
        self.finished = self._codec.is_finished
        self._limited = hasattr(self._codec, "can_accept_more_data")

    def decompress(self, data: memoryview) -> Iterator[bytes]:
        codec = self._codec
        if not self._limited:
            # brotli before 1.2 cannot limit its output.
            for start in range(0, len(data), 256):
                yield codec.process(bytes(data[start : start + 256]))
            return
        output = codec.process(bytes(data), output_buffer_limit=OUTPUT_LIMIT)
        # It may say that it can accept more while it still has output to give.
        while output or not codec.can_accept_more_data():
            yield output
            if codec.is_finished():
                return
            output = codec.process(b"", output_buffer_limit=OUTPUT_LIMIT)


class _Lz4:
    def __init__(self) -> None:
        import lz4.frame

        self._codec = lz4.frame.LZ4FrameDecompressor()

    def finished(self) -> bool:
        return bool(self._codec.eof)

    def decompress(self, data: memoryview) -> Iterator[bytes]:
        codec = self._codec
        if codec.eof:
            raise ValueError("data after the end of the frame")
        yield codec.decompress(data, max_length=OUTPUT_LIMIT)
        while not codec.eof and not codec.needs_input:
            yield codec.decompress(b"", max_length=OUTPUT_LIMIT)
        if codec.eof and codec.unused_data:
            raise ValueError("data after the end of the frame")


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._codec = zstandard.ZstdDecompressor().decompressobj()

    def finished(self) -> bool:
        return bool(self._codec.eof)

    def decompress(self, data: memoryview) -> Iterator[bytes]:
        if self._codec.eof:
            raise ValueError("data after the end of the frame")
        for start in range(0, len(data), _ZSTD_SLICE):
            if self._codec.eof:
                raise ValueError("data after the end of the frame")
            yield self._codec.decompress(data[start : start + _ZSTD_SLICE])
        if self._codec.unused_data:
            raise ValueError("data after the end of the frame")


def decompressor(name: str) -> Decompressor:
    """A decompressor for ``brotli``, ``lz4`` or ``zstd``."""
    kinds: dict[str, Callable[[], Decompressor]] = {"brotli": _Brotli, "lz4": _Lz4, "zstd": _Zstd}
    return kinds[name]()
