"""What a camera can show: a test pattern, image files, a video through ffmpeg."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import shutil
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import ICameraSource, ICameraStream
from anbox_tw.qemu._camera_video import VideoStream
from anbox_tw.qemu.errors import CameraError
from anbox_tw.qemu.picture import MAX_PIXELS, Picture, colour_bars, cover, from_interleaved, read_netpbm

__all__ = ["ImageFiles", "TestPattern", "Video", "make_source", "parse_source"]

PATTERN_FPS = 30.0
"""Of sources that can make any number: what a good webcam does."""

IMAGE_S = 1.0
"""Each image of a directory is shown for so long."""

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_IMAGES = 1000
"""Of one directory."""


@implementer(ICameraStream)
class _PacedStream:
    """Pictures that are made when they are asked for, at most so many a second.

    They are due at fixed distances from the beginning; whoever asks late gets one at once and loses those in between.
    """

    def __init__(self, clock: IReactorTime, fps: float, make: Callable[[float], Deferred[Picture]]) -> None:
        self._clock = clock
        self._interval = 1 / fps
        self._make = make
        self._base = clock.seconds()
        self._last = -1
        self._waiting: Deferred[Any] | None = None
        self._stopped = False

    def next_picture(self) -> Deferred[Picture]:
        """See `ICameraStream`."""
        if self._stopped:
            return fail(CameraError("the camera is stopped"))
        now = self._clock.seconds() - self._base
        number = max(self._last + 1, math.floor(now / self._interval))
        self._last = number
        wait = number * self._interval - now
        if wait <= 0:
            return self._make(number * self._interval)
        waiting: Deferred[Any] = deferLater(self._clock, wait, self._make, number * self._interval)
        self._waiting = waiting
        return waiting.addErrback(self._explain)

    def _explain(self, failure: Any) -> Any:
        if self._stopped:
            raise CameraError("the camera is stopped") from failure.value
        return failure

    def stop(self) -> Deferred[None]:
        """See `ICameraStream`."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()
        return succeed(None)


@implementer(ICameraSource)
class TestPattern:
    """Moving colour bars: what an application sees changes, and a test knows what it is.

    Args:
        clock: for the pace.
    """

    name = "test-pattern"

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def start(self, width: int, height: int) -> Deferred[ICameraStream]:
        """See `ICameraSource`."""
        return succeed(
            _PacedStream(
                self._clock, PATTERN_FPS, lambda seconds: succeed(colour_bars(width, height, seconds))
            )
        )


@implementer(ICameraSource)
class ImageFiles:
    """An image, or the images of a directory in turn.

    Binary PPM and PGM are read by this module, everything else by Pillow where it is installed.

    Args:
        clock: for the pace.
        path: of a file or a directory.
    """

    def __init__(self, clock: IReactorTime, path: str) -> None:
        self.name = f"image:{path}"
        self._clock = clock
        self._path = path

    def start(self, width: int, height: int) -> Deferred[ICameraStream]:
        """See `ICameraSource`; the files are looked for anew each time."""

        def found(paths: list[str]) -> ICameraStream:
            return _PacedStream(
                self._clock, PATTERN_FPS, _Slides(paths, lambda path: _load(path, width, height)).at
            )

        return deferToThread(_images, self._path).addCallback(found)


class _Slides:
    """Shows one file after the other; each is read once when it is alone, and each time when there are more."""

    def __init__(self, paths: list[str], load: Callable[[str], Picture]) -> None:
        self._paths = paths
        self._load = load
        self._shown = ""
        self._picture: Picture | None = None

    def at(self, seconds: float) -> Deferred[Picture]:
        path = self._paths[int(seconds / IMAGE_S) % len(self._paths)]
        if path == self._shown and self._picture is not None:
            return succeed(self._picture)

        def loaded(picture: Picture) -> Picture:
            self._shown, self._picture = path, picture
            return picture

        return deferToThread(self._load, path).addCallback(loaded)


def _images(path: str) -> list[str]:
    try:
        if not os.path.isdir(path):
            return [path]
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
    except OSError as error:
        raise CameraError(f"{path} cannot be read: {error.strerror}") from error
    found = [os.path.join(path, name) for name in names if not name.startswith(".")][:MAX_IMAGES]
    if not found:
        raise CameraError(f"the directory {path} has no images")
    return found


def _load(path: str, width: int, height: int) -> Picture:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise CameraError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise CameraError(f"{path} has more than {MAX_IMAGE_BYTES} bytes")
    try:
        if data[:2] in (b"P5", b"P6"):
            return cover(read_netpbm(data), width, height)
        return _with_pillow(data, width, height)
    except CameraError as error:
        raise CameraError(f"{path}: {error.cause}", error.cure) from error


def _with_pillow(data: bytes, width: int, height: int) -> Picture:
    if importlib.util.find_spec("PIL") is None:
        raise CameraError(
            "only binary PPM and PGM files can be read here", "pip install 'anbox-tw[camera]' for the others"
        )
    import io

    image_module: Any = importlib.import_module("PIL.Image")
    ops: Any = importlib.import_module("PIL.ImageOps")
    try:
        with image_module.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise CameraError(f"an image of {image.width}x{image.height} is too large")
            upright = ops.exif_transpose(image).convert("RGB")
            fitted = ops.fit(upright, (width, height))
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        # SyntaxError is what Pillow raises for a broken PNG
        raise CameraError(f"it is no image that Pillow can read: {error}") from error
    return from_interleaved(width, height, fitted.tobytes())


@implementer(ICameraSource)
class Video:
    """A video file in an endless loop, at its own pace, decoded by ffmpeg.

    Args:
        reactor: runs ffmpeg.
        path: of the file; anything that ffmpeg can read.
    """

    def __init__(self, reactor: Any, path: str) -> None:
        self.name = f"video:{path}"
        self._reactor = reactor
        self._path = path

    def start(self, width: int, height: int) -> Deferred[ICameraStream]:
        """See `ICameraSource`."""
        program = shutil.which("ffmpeg")
        if program is None:
            return fail(
                CameraError("there is no ffmpeg on PATH", "install ffmpeg, for example: apt install ffmpeg")
            )
        stream = VideoStream(self._reactor, program, self._path, width, height)
        return stream.started.addCallback(lambda _: stream)


def parse_source(text: str) -> tuple[str, str]:
    """Kind and path of ``test-pattern``, ``none``, ``image:PATH`` or ``video:PATH``; the path becomes absolute.

    Raises:
        ConfigError: it is something else.
    """
    kind, colon, path = text.partition(":")
    if text in ("none", "test-pattern"):
        return text, ""
    if kind in ("image", "video") and colon and path:
        return kind, os.path.abspath(path)
    raise ConfigError(
        f"{text!r} is no camera", "a camera shows test-pattern, image:PATH or video:PATH, or it is none"
    )


def make_source(reactor: Any, text: str) -> ICameraSource | None:
    """The source that ``text`` names; None for ``none``.

    Args:
        reactor: for pace and processes.
        text: as `parse_source` takes it.

    Raises:
        ConfigError: there is no such source, or its file cannot be read.
    """
    kind, path = parse_source(text)
    if kind == "none":
        return None
    if kind == "test-pattern":
        source: ICameraSource = TestPattern(reactor)
        return source
    if not os.access(path, os.R_OK):
        raise ConfigError(f"the camera's file {path} cannot be read")
    if kind == "image":
        return ImageFiles(reactor, path)
    if shutil.which("ffmpeg") is None:
        raise ConfigError(
            "a video needs ffmpeg, which is not on PATH", "install it, for example: apt install ffmpeg"
        )
    return Video(reactor, path)
