"""A sink that writes WAV files whose headers are right at any moment, however the session ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.device.pcm import WAV_HEADER_BYTES, PcmFormat, wav_header
from anbox_tw.interfaces import IAudioSink
from anbox_tw.session.audio.playback import PacedPlayback

__all__ = ["WavFile", "WavSink"]

MAX_DATA_BYTES = 0xFFFF_FFFF - WAV_HEADER_BYTES
"""The header's sizes have 32 bits: 6 hours and 45 minutes of what the guest plays."""

MAX_PENDING_BYTES = 4 * 1024 * 1024
"""What may wait for a disk that does not take it: 23 seconds."""

InThread = Callable[..., Deferred[Any]]
"""Runs a function with arguments outside of the reactor's thread."""


class WavFile:
    """One file, written behind the reactor's back.

    The samples are written first and the header, in one call, after them: it never names more than there is.

    Args:
        path: of the file; it is made anew at the first write.
        form: of the samples.
        in_thread: writes.

    Attributes:
        lost: bytes that could not be written.
    """

    _log = Logger()

    def __init__(self, path: str, form: PcmFormat, in_thread: InThread) -> None:
        self.path = path
        self._form = form
        self._in_thread = in_thread
        self._descriptor: int | None = None
        self._written = 0
        self._made = False
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._writing = False
        self._closing: list[Deferred[None]] = []
        self._told = False
        self.in_use = False
        self.lost = 0

    def append(self, data: bytes) -> None:
        """Have samples written."""
        if self._pending_bytes + len(data) > MAX_PENDING_BYTES:
            self._lose(len(data), "the disk does not take it")
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        if not self._writing:
            self._write()

    def close(self) -> Deferred[None]:
        """Fires when all is written, or given up, and the file is closed. It may be written to again after that."""
        done: Deferred[None] = Deferred()
        self._closing.append(done)
        if not self._writing:
            self._write()
        return done

    def _lose(self, count: int, why: object) -> None:
        self.lost += count
        if not self._told:
            self._told = True
            self._log.error("{path}: sound is lost: {why}", path=self.path, why=why)

    def _write(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if self._made and not data and not self._closing:
            return
        room = MAX_DATA_BYTES - self._written
        room -= room % self._form.frame_bytes
        if len(data) > room:
            self._lose(len(data) - room, "a WAV file holds no more than 4 GiB")
            data = data[:room]
        self._writing = True
        writing = self._in_thread(self._write_now, data, bool(self._closing))
        writing.addErrback(self._failed, len(data))
        writing.addCallback(lambda _: self._wrote())

    def _write_now(self, data: bytes, last: bool) -> None:
        """In a thread, one at a time."""
        try:
            if self._descriptor is None and (data or not self._made):
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if self._made else os.O_TRUNC)
                self._descriptor = os.open(self.path, flags, 0o600)
                self._made = True
            if self._descriptor is not None and (data or not self._written):
                _write_all(self._descriptor, data, WAV_HEADER_BYTES + self._written)
                self._written += len(data)
                _write_all(self._descriptor, wav_header(self._form, self._written), 0)
        finally:
            if last and self._descriptor is not None:
                descriptor, self._descriptor = self._descriptor, None
                os.close(descriptor)

    def _failed(self, failure: Failure, count: int) -> None:
        if not failure.check(OSError):
            self._log.failure("{path}: writing failed", failure, path=self.path)
        self._lose(count, failure.value)

    def _wrote(self) -> None:
        self._writing = False
        if self._pending or (self._closing and self._descriptor is not None):
            self._write()
            return
        closing, self._closing = self._closing, []
        for done in closing:
            done.callback(None)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


class _WavPlayback(PacedPlayback):
    """A stream into a file."""

    def __init__(self, clock: Any, form: PcmFormat, seconds: float, file: WavFile) -> None:
        super().__init__(clock, f"wav:{file.path}", form, seconds, file.append)
        self._file = file
        self._file_closing = False
        file.in_use = True

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "dropped_ms": self._milliseconds(self._file.lost)}

    def _ended(self) -> None:
        if self._file_closing:
            return
        self._file_closing = True

        def closed(_: object) -> None:
            self._file.in_use = False
            super(_WavPlayback, self)._ended()

        self._file.close().addCallback(closed)


@implementer(IAudioSink)
class WavSink:
    """Writes what the guest plays, at the pace at which it would be heard; pauses of the guest are left out.

    Streams after one another are appended to one file. A stream that begins while another one plays gets the next file:
    ``out.wav``, ``out-2.wav``, ...: nothing is mixed. The files are made anew in each session.

    Args:
        reactor: tells the time, and has the threads that write.
        path: of the first file.
        seconds: what a stream's buffer holds.
        in_thread: for tests.
    """

    name = "wav"

    def __init__(self, reactor: Any, path: str, seconds: float, in_thread: InThread | None = None) -> None:
        self._reactor = reactor
        self._path = path
        self._seconds = seconds
        self._files: list[WavFile] = []
        self._in_thread = in_thread or self._in_pool

    def _in_pool(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)

    def open(self, form: PcmFormat, label: str) -> PacedPlayback:
        """See `IAudioSink`."""
        file = next((file for file in self._files if not file.in_use), None)
        if file is None:
            stem, extension = os.path.splitext(self._path)
            number = len(self._files) + 1
            path = self._path if number == 1 else f"{stem}-{number}{extension}"
            file = WavFile(path, form, self._in_thread)
            self._files.append(file)
        return _WavPlayback(self._reactor, form, self._seconds, file)
