"""Serves ``/dev/anbox_audio``: one byte says what the connection is, then samples flow without any framing."""

from __future__ import annotations

import socket
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.device.pcm import PLAYBACK, RECORDING, AudioKind
from anbox_tw.interfaces import IAudioCapture, IAudioPlayback, IAudioSink, IAudioSource, IConnectionCreator
from anbox_tw.network import Connections, UnixListener
from anbox_tw.session.audio._buffer import PcmBuffer

__all__ = ["MAX_STREAMS", "AudioServer"]

MAX_STREAMS = 16
"""Connections at once; a guest's HAL has one output and one input stream."""

SOCKET_MODE = 0o666
"""Android's audio server is neither root nor system. Nobody else on the host can pass the directory that the socket is in."""

HANDSHAKE_TIMEOUT_S = 5.0
"""The HAL sends its byte right after it has connected."""

READ_BYTES = 4096
"""Read at once: what the HAL writes at once. More would be delay."""

RECORDING_BUFFER_S = 0.1
"""What a guest that does not read may miss before the oldest samples are thrown away."""

RECORDING_SOCKET_BYTES = 2304
"""The socket's own buffer towards the guest, the smallest that the kernel gives. Its usual 208 KiB are 13 seconds."""


@implementer(IPushProducer)
class AudioConnection(Protocol):
    """One connection of the guest.

    Args:
        server: has sink and source.
        number: for labels.
    """

    _log = Logger()
    transport: Any = None

    def __init__(self, server: AudioServer, number: int) -> None:
        self._server = server
        self.number = number
        self.kind: AudioKind | None = None
        self._timer: IDelayedCall | None = None
        self._playback: IAudioPlayback | None = None
        self._capture: IAudioCapture | None = None
        self._rest = b""
        self._waiting = PcmBuffer(RECORDING, RECORDING_BUFFER_S)
        self._paused = False
        self.received = 0
        self.sent = 0
        self.dropped = 0

    def describe(self) -> dict[str, Any]:
        """What the connection is and how it goes; JSON-able."""
        about: dict[str, Any] = {
            "stream": self.number,
            "kind": self.kind.name.lower() if self.kind else "new",
        }
        if self._playback is not None:
            about |= self._playback.describe()
        if self._capture is not None:
            milliseconds = {
                "recorded_ms": round(RECORDING.seconds_of(self.sent) * 1000),
                "dropped_ms": round(RECORDING.seconds_of(self.dropped) * 1000),
                "buffered_ms": self._waiting.milliseconds,
            }
            about |= {**self._capture.describe(), **milliseconds}
        return about

    def connectionMade(self) -> None:
        self.transport.bufferSize = READ_BYTES
        self._server.streams[self] = None
        self._timer = self._server.clock.callLater(HANDSHAKE_TIMEOUT_S, self._refuse, "it says nothing")

    def dataReceived(self, data: bytes) -> None:
        if self.kind is None:
            self._begin(data[0])
            data = data[1:]
        if self._playback is not None:
            data = self._rest + data
            whole = len(data) - len(data) % PLAYBACK.frame_bytes
            self._rest = data[whole:]
            self.received += whole
            if whole:
                self._playback.write(data[:whole])
        elif self._capture is not None and data:
            self._refuse("a guest that records has nothing to send")

    def _begin(self, code: int) -> None:
        try:
            kind = AudioKind(code)
        except ValueError:
            self._refuse(f"there is no kind of stream {code}")
            return
        source = self._server.source
        if kind is AudioKind.RECORDING and source is None:
            self._refuse("there is no microphone")
            return
        self._end_timer()
        self.kind = kind
        if kind is AudioKind.PLAYBACK:
            self.transport.write(bytes([code]))
            self._playback = self._server.sink.open(PLAYBACK, f"{self._server.label} {self.number}")
            self._playback.registerProducer(self.transport, True)
        else:
            assert source is not None
            self._narrow()
            self.transport.write(bytes([code]))
            self.transport.registerProducer(self, True)
            self._capture = source.open(RECORDING, self._deliver)
        self._log.info("Audio stream {number}: {kind}", number=self.number, kind=kind.name.lower())

    def _narrow(self) -> None:
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if isinstance(handle, socket.socket):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, RECORDING_SOCKET_BYTES)

    def _refuse(self, why: str) -> None:
        self._end_timer()
        self._log.warn("Audio stream {number}: closing it: {why}", number=self.number, why=why)
        self.transport.abortConnection()

    def _end_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _deliver(self, data: bytes) -> None:
        """Samples from the source."""
        if self.transport is None:
            return
        self._waiting.append(data)
        self.dropped += self._waiting.trim()
        self._flush()

    def _flush(self) -> None:
        while len(self._waiting) and not self._paused:
            data = self._waiting.take(READ_BYTES)
            self.sent += len(data)
            self.transport.write(data)

    def pauseProducing(self) -> None:
        """The guest does not read what it records."""
        self._paused = True
        if self._capture is not None:
            self._capture.pause()

    def resumeProducing(self) -> None:
        """It reads again."""
        self._paused = False
        self._flush()
        if self._capture is not None and not self._paused:
            self._capture.resume()

    def stopProducing(self) -> None:
        """The connection ends."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end_timer()
        self.transport = None
        playback, capture = self._playback, self._capture
        if playback is not None:
            playback.unregisterProducer()
            # What the guest has written is still heard.
            self._server.wait_for(self, playback.finish())
        elif capture is not None:
            self._server.wait_for(self, capture.close())
        else:
            self._server.streams.pop(self, None)

    def abort(self) -> Deferred[None] | None:
        """End the sink's part at once; fires when it is gone."""
        return self._playback.abort() if self._playback is not None else None


@implementer(IConnectionCreator)
class AudioServer(Service):
    """The audio socket.

    Args:
        reactor: listens, and tells the time.
        path: of the socket.
        sink: where what the guest plays goes.
        source: where what it records comes from; ``None`` refuses recordings.
        label: what a mixer calls the streams.

    Attributes:
        streams: those that are open, or still play their rest.
        listener: of the socket.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, path: str, sink: IAudioSink, source: IAudioSource | None, *, label: str = "anbox"
    ) -> None:
        self.clock = reactor
        self.sink = sink
        self.source = source
        self.label = label
        self.streams: dict[AudioConnection, None] = {}
        self._ending: dict[AudioConnection, Deferred[None]] = {}
        self._count = 0
        self.listener = UnixListener(
            reactor,
            path,
            self,
            mode=SOCKET_MODE,
            registry=Connections(limit=MAX_STREAMS, name="anbox_audio", clock=reactor),
            name="anbox_audio",
            close_grace=0.5,
        )

    @property
    def listeners(self) -> list[UnixListener]:
        """The one of the socket."""
        return [self.listener]

    def create_connection_for(self, address: IAddress) -> AudioConnection | None:
        """See `IConnectionCreator`."""
        if len(self.streams) >= MAX_STREAMS:
            self._log.warn(
                "anbox_audio: refused {address}: {count} streams", address=address, count=MAX_STREAMS
            )
            return None
        self._count += 1
        return AudioConnection(self, self._count)

    def describe(self) -> dict[str, Any]:
        """Sink, source and streams; JSON-able."""
        return {
            "sink": self.sink.name,
            "source": self.source.name if self.source else "none",
            "streams": [stream.describe() for stream in self.streams],
        }

    def wait_for(self, stream: AudioConnection, end: Deferred[None]) -> None:
        """A stream whose guest is gone is listed until its end."""
        self._ending[stream] = end

        def ended(result: Any) -> None:
            self.streams.pop(stream, None)
            self._ending.pop(stream, None)
            if isinstance(result, Failure):
                self._log.failure("Audio stream {number} ended badly", result, number=stream.number)

        end.addBoth(ended)

    def startService(self) -> None:
        """Listen.

        Raises:
            AlreadyRunning: somebody else serves the socket.
            NetworkError: the socket cannot be made.
        """
        self.listener.startService()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Fires when the socket, all streams and all children are gone."""
        super().stopService()
        return self.listener.stopService().addCallback(lambda _: self._abort_all())

    def _abort_all(self) -> Deferred[None]:
        waiting = [end for stream in list(self.streams) if (end := stream.abort()) is not None]
        for end in self._ending.values():
            waiting.append(_shared(end))
        return DeferredList(waiting, consumeErrors=True).addCallback(lambda _: None)


def _shared(end: Deferred[None]) -> Deferred[None]:
    """A Deferred of our own that fires when another one does."""
    mine: Deferred[None] = Deferred()
    end.addCallback(lambda result: mine.callback(None))
    return mine
