"""Sound as the guest's audio HAL has it: the formats, the handshake's kinds, and WAV headers."""

from __future__ import annotations

import struct
from enum import Enum

import attrs

from anbox_tw.device.errors import BadValue

__all__ = [
    "PLAYBACK",
    "RECORDING",
    "SAMPLE_BYTES",
    "WAV_HEADER_BYTES",
    "AudioKind",
    "PcmFormat",
    "find_wav",
    "wav_header",
]

SAMPLE_BYTES = 2
"""Everything here is signed 16 bits, little-endian."""

WAV_HEADER_BYTES = 44

MAX_WAV_CHUNKS = 64
"""Before the samples of a WAV file: names, comments, broadcast data."""

PCM, EXTENSIBLE = 1, 0xFFFE


class AudioKind(Enum):
    """The byte that a guest sends when it has connected to ``/dev/anbox_audio``, and that is sent back."""

    PLAYBACK = 0
    RECORDING = 1


@attrs.frozen
class PcmFormat:
    """Samples of 16 bits, interleaved.

    Attributes:
        rate: frames a second.
        channels: samples a frame.
    """

    rate: int
    channels: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return SAMPLE_BYTES * self.channels

    @property
    def byte_rate(self) -> int:
        """Bytes of one second."""
        return self.frame_bytes * self.rate

    def bytes_of(self, seconds: float) -> int:
        """Bytes of whole frames that last ``seconds``, rounded down."""
        # 0.29 s of 100 frames a second are 29 of them, not 28.999999999999996
        return int(seconds * self.rate + 1e-6) * self.frame_bytes

    def seconds_of(self, count: int) -> float:
        """How long ``count`` bytes last."""
        return count / self.byte_rate


PLAYBACK = PcmFormat(44100, 2)
"""What the guest plays; its HAL knows no other."""

RECORDING = PcmFormat(8000, 1)
"""What it records, 320 bytes at a time."""


def wav_header(form: PcmFormat, data_bytes: int) -> bytes:
    """The first `WAV_HEADER_BYTES` of a WAV file with so many bytes of samples."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", WAV_HEADER_BYTES - 8 + data_bytes, b"WAVE"),
        *(b"fmt ", 16, PCM, form.channels, form.rate, form.byte_rate, form.frame_bytes, 8 * SAMPLE_BYTES),
        *(b"data", data_bytes),
    )


def find_wav(data: bytes) -> tuple[PcmFormat, bytes]:
    """The format and the samples of a WAV file.

    Raises:
        BadValue: it is no WAV file of 16-bit samples.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadValue(
            "that is no WAV file", "convert it: ffmpeg -i FILE -ar 8000 -ac 1 -c:a pcm_s16le OUT.wav"
        )
    place, form = 12, None
    for _ in range(MAX_WAV_CHUNKS):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        body = data[place + 8 : place + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
            if kind not in (PCM, EXTENSIBLE) or bits != 8 * SAMPLE_BYTES:
                raise BadValue(
                    f"the WAV file has samples of kind {kind} with {bits} bits", "convert it to 16-bit PCM"
                )
            if not 1 <= channels <= 32 or not 1000 <= rate <= 768_000:
                raise BadValue(f"the WAV file has {channels} channels of {rate} Hz")
            form = PcmFormat(rate, channels)
        elif name == b"data" and form is not None:
            return form, body[: len(body) - len(body) % form.frame_bytes]
        elif len(name) < 4:
            break
        place += 8 + size + size % 2
    raise BadValue("the WAV file has no samples")
