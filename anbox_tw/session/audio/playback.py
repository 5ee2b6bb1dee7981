"""Streams to sinks that live here: the buffer with backpressure, and what takes from it at the clock's pace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from anbox_tw.device.pcm import PcmFormat
from anbox_tw.interfaces import IAudioPlayback, IAudioSink
from anbox_tw.session.audio._buffer import PcmBuffer
from anbox_tw.session.audio._pace import Pacer

__all__ = ["BufferedPlayback", "NullSink", "PacedPlayback"]


@implementer(IAudioPlayback)
class BufferedPlayback:
    """Base of the streams: holds up to a time's worth of samples, and pauses the guest above that.

    Nothing is ever dropped to keep up: a guest that is faster than the sink is held by its own writes, and so follows
    the sink's clock; one that is slower leaves gaps, which the sink fills with silence.

    Args:
        sink: name for `describe`.
        form: of the samples.
        seconds: what the buffer holds.
    """

    def __init__(self, sink: str, form: PcmFormat, seconds: float) -> None:
        self.form = form
        self._sink = sink
        self._buffer = PcmBuffer(form, seconds)
        self._producer: Any = None
        self._paused = False
        self._ending: list[Deferred[None]] = []
        self._finishing = False
        self._over = False
        self.played = 0
        self.dropped = 0
        self.underruns = 0

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See ``IConsumer``; a push producer."""
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        """See ``IConsumer``."""
        self._producer = None
        self._paused = False

    def write(self, data: bytes) -> None:
        """See `IAudioPlayback`."""
        if self._over or self._finishing:
            return
        self._buffer.append(data)
        if self._buffer.full and not self._paused and self._producer is not None:
            self._paused = True
            self._producer.pauseProducing()
        self._filled()

    def finish(self) -> Deferred[None]:
        """See `IAudioPlayback`."""
        if self._over:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._ending.append(done)
        self._finishing = True
        self._finish()
        return done

    def abort(self) -> Deferred[None]:
        """See `IAudioPlayback`."""
        if self._over:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._ending.append(done)
        self._finishing = True
        self._buffer.take(len(self._buffer))
        self._abort()
        return done

    def describe(self) -> dict[str, Any]:
        """See `IAudioPlayback`."""
        return {
            "sink": self._sink,
            "buffered_ms": self._buffer.milliseconds,
            "played_ms": self._milliseconds(self.played),
            "dropped_ms": self._milliseconds(self.dropped),
            "underruns": self.underruns,
        }

    def _milliseconds(self, count: int) -> int:
        return round(self.form.seconds_of(count) * 1000)

    def _take(self, count: int) -> bytes:
        """Take samples out, and let the guest go on when there is room."""
        data = self._buffer.take(count)
        if self._paused and self._buffer.low:
            self._paused = False
            self._producer.resumeProducing()
        return data

    def _ended(self) -> None:
        """Everything of the stream is gone."""
        self._over = True
        self.unregisterProducer()
        ending, self._ending = self._ending, []
        for done in ending:
            done.callback(None)

    # -- what a stream does --

    def _filled(self) -> None:
        """There are samples in the buffer."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Play the rest, then call ``_ended``."""
        raise NotImplementedError

    def _abort(self) -> None:
        """The buffer is empty: call ``_ended`` soon."""
        raise NotImplementedError


class PacedPlayback(BufferedPlayback):
    """Takes samples as fast as they would be heard, so that the guest keeps its time without a sound card.

    Args:
        clock: tells the time.
        sink: name for `describe`.
        form: of the samples.
        seconds: what the buffer holds.
        consume: called with the samples that are due.
    """

    def __init__(
        self,
        clock: IReactorTime,
        sink: str,
        form: PcmFormat,
        seconds: float,
        consume: Callable[[bytes], object] = lambda data: None,
    ) -> None:
        super().__init__(sink, form, seconds)
        self._pacer = Pacer(clock, form, self._due)
        self._consume = consume

    def _filled(self) -> None:
        self._pacer.start()

    def _due(self, count: int) -> None:
        data = self._take(count)
        if data:
            self.played += len(data)
            self._consume(data)
        if len(data) < count and not len(self._buffer):
            # The next sample begins a schedule of its own: a pause of the guest is no time that it could make up for.
            self._pacer.stop()
            if self._finishing:
                self._ended()
            else:
                self.underruns += 1

    def _finish(self) -> None:
        if not len(self._buffer):
            self._abort()

    def _abort(self) -> None:
        self._pacer.stop()
        self._ended()


@implementer(IAudioSink)
class NullSink:
    """Nobody hears it, but it takes its time. Each stream has a pace of its own.

    Args:
        clock: tells the time.
        seconds: what a stream's buffer holds.
    """

    name = "null"

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds

    def open(self, form: PcmFormat, label: str) -> PacedPlayback:
        """See `IAudioSink`."""
        return PacedPlayback(self._clock, self.name, form, self._seconds)
