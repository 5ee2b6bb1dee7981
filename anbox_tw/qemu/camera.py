"""``qemud:camera``: cameras for the guest's camera HAL.

A connection without an argument is the factory, which lists the cameras; one with ``name=<camera>`` is a device. Queries and replies are
in :mod:`anbox_tw.qemu._camera_wire`. A device goes through ``connect``, ``start``, ``frame`` (as often as the guest wants a picture),
``stop``, ``disconnect``; whatever it is, its end gives the camera free.

Anbox answered ``list`` with a bare line feed and nothing else, so that the guest waited for ever. The emulator answered a second ``start`` the
wrong way round: ok where the parameters differ.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import PeerError
from anbox_tw.interfaces import ICameraSource, ICameraStream, IPipeService
from anbox_tw.qemu._camera_wire import (
    FORMATS,
    PREVIEW_BYTES_PER_PIXEL,
    Query,
    QueryDecoder,
    fourcc,
    parse_floats,
    parse_number,
    parse_size,
    reply_data,
    reply_text,
    video_bytes,
)
from anbox_tw.qemu._guest_connection import GuestConnection
from anbox_tw.qemu.picture import Picture, to_preview, to_video

__all__ = ["SIZES", "Camera", "CameraService"]

SIZES = ((640, 480), (352, 288), (320, 240), (176, 144), (1280, 720))
"""Width and height of frames; the first is what the guest takes by default."""

FRAME_TIMEOUT_S = 2.0
"""What the emulator waits for a frame."""

HEADER_BYTES = 11
"""Length, ``ok`` and ``:``."""

SO_SNDBUFFORCE = 32
"""``asm-generic/socket.h``; the socket module does not name it."""

START_TIMEOUT_S = 15.0
"""For a source to begin; a video's own limit is shorter."""


class Camera:
    """One camera of the device.

    Attributes:
        name: as the guest knows it.
        direction: ``back`` or ``front``.
        source: what it shows from the next ``start`` on; None is no camera.
        user: the connection that has connected it.
        capture: what it does at the moment, or None.
        frames: given to guests since the session began.
    """

    def __init__(self, direction: str, source: ICameraSource | None) -> None:
        self.name = f"anbox-{direction}"
        self.direction = direction
        self.source = source
        self.user: object | None = None
        self.capture: Capture | None = None
        self.frames = 0

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "direction": self.direction,
            "source": "none" if self.source is None else self.source.name,
            "sizes": [f"{width}x{height}" for width, height in SIZES],
            "connected": self.user is not None,
            "capture": None if self.capture is None else self.capture.describe(),
            "frames": self.frames,
        }

    def line(self) -> str:
        """Its line in the factory's list."""
        sizes = ",".join(f"{width}x{height}" for width, height in SIZES)
        # the guest reads neither channel nor pix; the emulator sends both
        return f"name={self.name} channel=0 pix={fourcc('YU12')} dir={self.direction} framedims={sizes}\n"


@attrs.frozen
class Capture:
    """What a guest has started: size, format of the video."""

    width: int
    height: int
    format: str

    def describe(self) -> dict[str, Any]:
        return {"size": f"{self.width}x{self.height}", "format": self.format}


def send_whole(transport: Any, size: int) -> None:
    """Have messages of ``size`` bytes sent by one system call, into a socket that holds all of it.

    The camera HAL of Android 7 (and of Anbox) reads a frame with a single ``read`` and gives up when it gets less; a goldfish pipe
    hands over all of it, a socket what is queued. Twisted sends 128 KiB at a time, and the kernel queues 208 KiB.
    Where the kernel does not allow so much (``net.core.wmem_max``), larger frames reach HALs that read on, and no others.
    """
    handle = getattr(transport, "getHandle", None)
    if handle is None:
        return
    transport.SEND_LIMIT = max(transport.SEND_LIMIT, size)
    for option in (SO_SNDBUFFORCE, socket.SO_SNDBUF):
        try:
            handle().setsockopt(socket.SOL_SOCKET, option, size)
        except OSError:
            continue  # only root may go beyond the limit
        return


class _Connection(GuestConnection):
    """Answers one query after the other: what comes meanwhile waits, up to a limit."""

    service = "qemud:camera"

    def __init__(self) -> None:
        super().__init__()
        self._queries = QueryDecoder()
        self._busy = False
        self._looping = False

    def guest_sent(self, data: bytes) -> None:
        self._queries.receive_data(data)
        self._answer_next()

    def caught_up(self) -> None:
        self._answer_next()

    def _answer_next(self) -> None:
        if self._looping:
            return
        self._looping = True
        try:
            # A guest that does not read its answers gets no more of them: frames are large.
            while not self._busy and not self.blocked:
                query = self._queries.next_query()
                if query is None:
                    break
                self._busy = True
                answering: Deferred[bytes] = maybeDeferred(self.answer, query)
                answering.addCallbacks(self._answered, self._failed)
        except PeerError as error:
            self.end(error)
        finally:
            self._looping = False

    def _answered(self, reply: bytes) -> None:
        self._busy = False
        self.write(reply)
        self._answer_next()

    def _failed(self, failure: Failure) -> None:
        self._busy = False
        self._log.failure("{service}: a query failed", failure, service=self.service)
        self.end("a query failed here")

    def answer(self, query: Query) -> Any:
        """The reply, or a Deferred of it."""
        raise NotImplementedError


class _Factory(_Connection):
    def __init__(self, cameras: Callable[[], list[Camera]]) -> None:
        super().__init__()
        self._cameras = cameras

    def answer(self, query: Query) -> bytes:
        if not query.name:
            return reply_text(False, "Invalid query format")
        if query.name != "list":
            return reply_text(False, "Unknown query name")
        return reply_text(True, "".join(camera.line() for camera in self._cameras()) or "\n")


class _Device(_Connection):
    """One guest at one camera."""

    def __init__(self, camera: Camera, reactor: Any, stopping: set[Deferred[None]]) -> None:
        super().__init__()
        self._camera = camera
        self._reactor = reactor
        self._stopping = stopping
        self._stream: ICameraStream | None = None
        self._capture: Capture | None = None
        self.on_lost(self._lost)

    def answer(self, query: Query) -> Any:
        handler: Callable[[Query], Any] | None = {
            "connect": self._connect,
            "disconnect": self._disconnect,
            "start": self._start,
            "stop": self._stop,
            "frame": self._frame,
        }.get(query.name)
        if handler is None:
            return reply_text(False, "Unknown query" if query.name else "Invalid query")
        return handler(query)

    @property
    def _connected(self) -> bool:
        return self._camera.user is self

    def _connect(self, query: Query) -> bytes:
        camera = self._camera
        if self._connected:
            return reply_text(True, "Camera is already connected")
        if camera.user is not None or camera.source is None:
            return reply_text(False, "Unable to open camera device.")
        camera.user = self
        return reply_text(True)

    def _disconnect(self, query: Query) -> bytes:
        if not self._connected:
            return reply_text(True, "Camera is not connected")
        if self._stream is not None:
            return reply_text(False, "Camera is not stopped")
        self._camera.user = None
        return reply_text(True)

    def _start(self, query: Query) -> Any:
        if not self._connected:
            return reply_text(False, "Camera is not connected")
        if not query.has_params:
            return reply_text(False, "Missing parameters for the query")
        if "dim" not in query.params:
            return reply_text(False, "Invalid or missing 'dim' parameter")
        pixels = parse_number(query.params.get("pix"))
        if pixels is None:
            return reply_text(False, "Invalid or missing 'pix' parameter")
        size = parse_size(query.params["dim"])
        if size is None:
            return reply_text(False, "Invalid 'dim' parameter")
        format = FORMATS.get(pixels)
        if self._capture is not None:
            if format is not None and self._capture == Capture(*size, format):
                return reply_text(True, "Camera is already started")
            return reply_text(False, "Camera is already started with different capturing parameters")
        if format is None:
            return reply_text(False, "Pixel format is unknown")
        source = self._camera.source
        if size not in SIZES or source is None:
            return reply_text(False, "Cannot start the camera")
        starting = source.start(*size).addTimeout(START_TIMEOUT_S, self._reactor)
        return starting.addCallbacks(self._started, self._not_started, callbackArgs=(Capture(*size, format),))

    def _started(self, stream: ICameraStream, capture: Capture) -> Any:
        if self._ended:
            # the guest left while the source began
            self._stop_stream(stream)
            return b""
        pixels = capture.width * capture.height
        send_whole(self.transport, video_bytes(pixels, 1) + pixels * PREVIEW_BYTES_PER_PIXEL + HEADER_BYTES)
        self._stream, self._capture = stream, capture
        self._camera.capture = capture
        return reply_text(True)

    def _not_started(self, failure: Failure) -> bytes:
        self.note(f"the camera {self._camera.name} does not start: {failure.value}")
        return reply_text(False, "Cannot start the camera")

    def _stop(self, query: Query) -> Any:
        if self._stream is None:
            return reply_text(True, "Camera is not started")
        return self._end_stream().addCallback(lambda _: reply_text(True))

    def _frame(self, query: Query) -> Any:
        stream, capture = self._stream, self._capture
        if stream is None or capture is None:
            return reply_text(False, "Camera is not started")
        if not query.has_params:
            return reply_text(False, "Missing parameters for the query")
        video, preview = (parse_number(query.params.get(name)) for name in ("video", "preview"))
        if video is None or preview is None:
            return reply_text(False, "Invalid or missing 'video', or 'preview' parameter")
        if video not in (0, video_bytes(capture.width, capture.height)) or preview not in (
            0,
            capture.width * capture.height * PREVIEW_BYTES_PER_PIXEL,
        ):
            return reply_text(False, "Frame size mismatch")
        if not video and not preview:
            return reply_text(True)
        balance = parse_floats(query.params.get("whiteb"), 3) or (1.0, 1.0, 1.0)
        (exposure,) = parse_floats(query.params.get("expcomp"), 1) or (1.0,)
        gains = tuple(gain * exposure for gain in balance)
        waiting = stream.next_picture().addTimeout(FRAME_TIMEOUT_S, self._reactor)
        # the pixels are worked on in a thread: a large frame would hold everybody up
        waiting.addCallback(
            lambda picture: deferToThread(
                _frame_reply, picture, gains, capture.format if video else "", bool(preview)
            )
        )
        return waiting.addCallbacks(self._framed, self._no_frame)

    def _framed(self, reply: bytes) -> bytes:
        self._camera.frames += 1
        return reply

    def _no_frame(self, failure: Failure) -> bytes:
        if not self._ended:
            self.note(f"the camera {self._camera.name} has no frame: {failure.value}")
        return reply_text(False, "Unable to obtain video frame from the camera")

    def _end_stream(self) -> Deferred[None]:
        stream, self._stream, self._capture = self._stream, None, None
        if self._connected:
            self._camera.capture = None
        return succeed(None) if stream is None else self._stop_stream(stream)

    def _stop_stream(self, stream: ICameraStream) -> Deferred[None]:
        stopping = stream.stop()
        self._stopping.add(stopping)

        def stopped(result: Any) -> Any:
            self._stopping.discard(stopping)
            return result

        stopping.addBoth(stopped)
        waiter: Deferred[None] = Deferred()
        stopping.addErrback(lambda failure: self._log.failure("A camera's source does not stop", failure))
        stopping.addCallback(waiter.callback)
        return waiter

    def _lost(self) -> None:
        self._end_stream()
        if self._connected:
            self._camera.user = None


def _frame_reply(picture: Picture, gains: tuple[float, ...], format: str, preview: bool) -> bytes:
    shown = picture.adjusted(gains)
    return reply_data(True, to_video(shown, format) if format else b"", to_preview(shown) if preview else b"")


@implementer(IPipeService)
class CameraService:
    """Serves the guest's camera HAL.

    Args:
        reactor: for timeouts.
        sources: ``back`` and ``front`` to what they show; None, or a name that is missing, is no camera.

    Attributes:
        cameras: by direction.
    """

    name = "qemud:camera"
    _log = Logger()

    def __init__(self, reactor: Any, sources: Mapping[str, ICameraSource | None]) -> None:
        self._reactor = reactor
        self.cameras = {
            direction: Camera(direction, sources.get(direction)) for direction in ("back", "front")
        }
        self._stopping: set[Deferred[None]] = set()

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """The factory, or the camera that is named."""
        if not argument:
            return _Factory(lambda: [camera for camera in self.cameras.values() if camera.source is not None])
        words = dict(word.partition("=")[::2] for word in argument.split())
        for camera in self.cameras.values():
            if camera.name == words.get("name") and camera.source is not None:
                return _Device(camera, self._reactor, self._stopping)
        self._log.warn("qemud:camera: there is no camera {argument!r}", argument=argument)
        return None

    def stop(self) -> Deferred[None]:
        """Fires when nothing is left of sources whose guests have gone."""
        waiting = list(self._stopping)
        done: Deferred[Any] = DeferredList(waiting)
        return done.addCallback(lambda _: None)
