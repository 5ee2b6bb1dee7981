"""One ffmpeg child that decodes a video: planes of each picture come through its standard output."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.interfaces import ICameraStream
from anbox_tw.qemu.errors import CameraError
from anbox_tw.qemu.picture import Picture

__all__ = ["VIDEO_FPS", "VideoStream"]

VIDEO_FPS = 15
"""Pictures a second: 640x480 at 15 are 14 MB/s through the pipe."""

START_TIMEOUT_S = 10.0
"""Until the first picture: ffmpeg looks through the beginning of the file."""

KILL_AFTER_S = 2.0
"""Between SIGTERM and SIGKILL."""

MAX_ERROR_BYTES = 4096
"""Kept of the end of what ffmpeg says."""


@implementer(ICameraStream)
class VideoStream(ProcessProtocol):
    """Reads pictures as ffmpeg makes them, and keeps the newest.

    ffmpeg goes at the video's own pace. While nobody takes pictures it goes on, so that a guest that comes back sees where the
    video is then.

    Args:
        reactor: starts the child.
        program: path of ffmpeg.
        path: of the video.
        width: of the pictures.
        height: of the pictures.

    Attributes:
        started: fires when the first picture is there; fails with `CameraError`.
    """

    _log = Logger()

    def __init__(self, reactor: Any, program: str, path: str, width: int, height: int) -> None:
        self._reactor = reactor
        self._path = path
        self._size = width, height
        self._plane = width * height
        self._buffer = bytearray()
        self._newest: bytes | None = None
        self._error = b""
        self._waiting: Deferred[Picture] | None = None
        self._ended: Deferred[None] | None = None
        self._gone = False
        self._why = ""
        self.started: Deferred[None] = Deferred(lambda _: self._end("cancelled"))
        self._timer: IDelayedCall | None = reactor.callLater(
            START_TIMEOUT_S, lambda: self._end(f"no picture within {START_TIMEOUT_S:g} s")
        )
        scaled = f"scale={width}:{height}:force_original_aspect_ratio=increase,crop={width}:{height}"
        arguments = [
            *("ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error"),
            # a playlist may not lead to other places
            *("-protocol_whitelist", "file,pipe,crypto,data"),
            *("-re", "-stream_loop", "-1", "-i", f"file:{path}", "-map", "0:v:0"),
            *("-vf", f"{scaled},fps={VIDEO_FPS},format=gbrp", "-f", "rawvideo", "pipe:1"),
        ]
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        try:
            reactor.spawnProcess(self, program, arguments, env=environment, path="/")
        except OSError as error:
            self._gone = True
            self._fail(f"ffmpeg cannot be started: {error}")

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._buffer += data
        size = 3 * self._plane
        while len(self._buffer) >= size:
            self._newest = bytes(self._buffer[:size])
            del self._buffer[:size]
        if self._newest is None:
            return
        self._end_timer()
        if not self.started.called:
            self.started.callback(None)
        # who waited for the start may have taken it
        if self._waiting is not None and self._newest is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self._take())

    def errReceived(self, data: bytes) -> None:
        self._error = (self._error + data)[-MAX_ERROR_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        self._gone = True
        said = self._error.decode("utf-8", "replace").strip().replace("\n", "; ")
        self._fail(self._why or f"ffmpeg ended: {said or reason.getErrorMessage()}")
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.callback(None)

    def next_picture(self) -> Deferred[Picture]:
        """See `ICameraStream`."""
        if self._why:
            return fail(CameraError(self._why))
        if self._newest is not None:
            return succeed(self._take())
        waiting: Deferred[Picture] = Deferred(self._forget)
        self._waiting = waiting
        return waiting

    def stop(self) -> Deferred[None]:
        """See `ICameraStream`."""
        self._end("the camera is stopped")
        if self._gone:
            return succeed(None)
        if self._ended is None:
            self._ended = Deferred()
        waiter: Deferred[None] = Deferred()
        self._ended.chainDeferred(waiter)
        return waiter

    def _take(self) -> Picture:
        pixels, self._newest = self._newest, None
        assert pixels is not None
        plane = self._plane
        # ffmpeg's gbrp: green, blue, red
        return Picture(*self._size, pixels[2 * plane :], pixels[:plane], pixels[plane : 2 * plane])

    def _forget(self, waiting: Deferred[Picture]) -> None:
        if self._waiting is waiting:
            self._waiting = None

    def _end(self, why: str) -> None:
        """End the child, first by asking."""
        self._why = self._why or why
        self._end_timer()
        if self._gone:
            return
        self._signal("TERM")
        self._timer = self._reactor.callLater(KILL_AFTER_S, self._signal, "KILL")

    def _signal(self, name: str) -> None:
        try:
            if self.transport is not None:
                self.transport.signalProcess(name)
        except ProcessExitedAlready:
            pass

    def _fail(self, why: str) -> None:
        self._end_timer()
        self._why = self._why or why
        error = CameraError(f"{self._path}: {self._why}")
        for waiting in (self.started, self._waiting):
            if waiting is not None and not waiting.called:
                waiting.errback(error)
        self._waiting = None

    def _end_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
