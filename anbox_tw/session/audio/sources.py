"""Sources that are made here: silence, a tone, a file."""

from __future__ import annotations

import math
import os
import struct
import sys
from array import array
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from anbox_tw.device.pcm import SAMPLE_BYTES, PcmFormat, find_wav
from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IAudioCapture, IAudioSource
from anbox_tw.session.audio._pace import Pacer

__all__ = ["Converter", "FileSource", "SilenceSource", "ToneSource"]

TONE_HZ = 440
TONE_PEAK = 16384
"""Half of full scale."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Of a file that stands for the microphone; it is kept in memory. An hour of what the guest records."""


@implementer(IAudioCapture)
class PacedCapture:
    """Delivers made samples at the clock's pace.

    Args:
        clock: tells the time.
        source: name for `describe`.
        form: of the samples.
        deliver: gets them.
        make: makes so many bytes more.
        waits: whether the source stands still while the guest does not read.
    """

    def __init__(
        self,
        clock: IReactorTime,
        source: str,
        form: PcmFormat,
        deliver: Callable[[bytes], object],
        make: Callable[[int], bytes],
        *,
        waits: bool,
    ) -> None:
        self._source = source
        self._waits = waits
        self._closed = False
        self._pacer = Pacer(clock, form, lambda count: deliver(make(count)))
        self._pacer.start()

    def pause(self) -> None:
        """See `IAudioCapture`."""
        if self._waits:
            self._pacer.stop()

    def resume(self) -> None:
        """See `IAudioCapture`."""
        if not self._closed:
            self._pacer.start()

    def close(self) -> Deferred[None]:
        """See `IAudioCapture`."""
        self._closed = True
        self._pacer.stop()
        return succeed(None)

    def describe(self) -> dict[str, Any]:
        """See `IAudioCapture`."""
        return {"source": self._source}


class _Made:
    """Base of the sources here."""

    name = ""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def open(self, form: PcmFormat, deliver: Callable[[bytes], object]) -> PacedCapture:
        """See `IAudioSource`."""
        return PacedCapture(self._clock, self.name, form, deliver, self._maker(form), waits=self._waits())

    def _maker(self, form: PcmFormat) -> Callable[[int], bytes]:
        raise NotImplementedError

    def _waits(self) -> bool:
        return False


@implementer(IAudioSource)
class SilenceSource(_Made):
    """Nothing is heard."""

    name = "silence"

    def _maker(self, form: PcmFormat) -> Callable[[int], bytes]:
        return bytes


class _Reader:
    """Reads from samples in memory, over and over or with silence behind them."""

    def __init__(self, data: bytes, *, over_and_over: bool) -> None:
        self._data = data
        self._again = over_and_over
        self._place = 0

    def __call__(self, count: int) -> bytes:
        made = b""
        while len(made) < count:
            part = self._data[self._place : self._place + count - len(made)]
            if not part:
                if not self._again:
                    return made + bytes(count - len(made))
                self._place = 0
                continue
            made += part
            self._place += len(part)
        return made


@implementer(IAudioSource)
class ToneSource(_Made):
    """A sine of `TONE_HZ`, in every channel."""

    name = "tone"

    def _maker(self, form: PcmFormat) -> Callable[[int], bytes]:
        # A second has a whole number of periods.
        samples = (
            round(TONE_PEAK * math.sin(2 * math.pi * TONE_HZ * n / form.rate)) for n in range(form.rate)
        )
        data = b"".join(struct.pack("<h", sample) * form.channels for sample in samples)
        return _Reader(data, over_and_over=True)


class Converter:
    """Reads samples of one format as those of another, a piece at a time, with silence behind them.

    Channels are averaged, and the rate is changed by linear interpolation; what has the format already is unchanged.

    Args:
        data: whole frames.
        form: of them.
        wanted: of what is read.

    Attributes:
        frames: how many there are in the wanted format.
    """

    def __init__(self, data: bytes, form: PcmFormat, wanted: PcmFormat) -> None:
        self._samples = array("h", data)
        if sys.byteorder == "big":  # pragma: no cover
            self._samples.byteswap()
        self._channels = form.channels
        self._from, self._to, self._wanted = form.rate, wanted.rate, wanted
        self._length = len(self._samples) // self._channels
        self.frames = self._length * wanted.rate // form.rate
        self._place = 0

    def __call__(self, count: int) -> bytes:
        """The next ``count`` bytes, whole frames."""
        first = self._place
        self._place = last = first + count // self._wanted.frame_bytes
        made = [self._at(n) if n < self.frames else 0 for n in range(first, last)]
        return b"".join(struct.pack("<h", sample) * self._wanted.channels for sample in made)

    def _at(self, n: int) -> int:
        place, rest = divmod(n * self._from, self._to)
        here = self._mono(place)
        return here + (self._mono(min(place + 1, self._length - 1)) - here) * rest // self._to

    def _mono(self, place: int) -> int:
        frame = self._samples[place * self._channels : (place + 1) * self._channels]
        return sum(frame) // self._channels


@implementer(IAudioSource)
class FileSource(_Made):
    """Each recording hears the file from its beginning, and silence after its end. It waits for a guest that does not read.

    Args:
        clock: tells the time.
        path: a WAV file of 16-bit samples, or raw ones in the format that the guest records.
        form: what will be asked for.
        raw: which of them.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, clock: IReactorTime, path: str, form: PcmFormat, *, raw: bool = False) -> None:
        super().__init__(clock)
        self.name = f"{'raw' if raw else 'wav'}:{path}"
        try:
            if os.path.getsize(path) > MAX_FILE_BYTES:
                raise ConfigError(
                    f"{path} is too long for a microphone", f"give at most {MAX_FILE_BYTES >> 20} MiB"
                )
            with open(path, "rb") as file:
                data = file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise ConfigError(f"the microphone's file {path} cannot be read: {error.strerror}") from error
        if raw:
            found, samples = form, data[: len(data) - len(data) % SAMPLE_BYTES]
        else:
            found, samples = find_wav(data)
        self._form = found
        self._samples = samples

    def _maker(self, form: PcmFormat) -> Callable[[int], bytes]:
        if form == self._form:
            return _Reader(self._samples, over_and_over=False)
        return Converter(self._samples, self._form, form)

    def _waits(self) -> bool:
        return True
