"""What the guest's audio HAL does: plays and records through ``/dev/anbox_audio``.

As the HAL's, these calls block: they are for a process or thread of their own.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

from anbox_tw.device.pcm import PLAYBACK, RECORDING, AudioKind, find_wav, wav_header
from anbox_tw.errors import NotRunning, PeerError, TimedOut

__all__ = ["AudioInput", "AudioOutput", "play", "record"]

OUTPUT_BYTES = 4096
"""What the HAL writes at once."""

INPUT_BYTES = 320
"""What it reads at once: 20 ms."""

SEND_BUFFER_BYTES = 16 * 1024
"""The kernel's usual 208 KiB would be more than a second between what is written and what is heard."""

TIMEOUT_S = 10.0
"""A session that takes or gives nothing for so long is stuck."""

MAX_WAV_BYTES = 256 * 1024 * 1024


class _Stream:
    def __init__(self, path: str, kind: AudioKind) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise NotRunning(f"no audio at {path}: {error.strerror}", "a session must serve it") from error
        hello = bytes([kind.value])
        try:
            self._socket.sendall(hello)
            answer = self._socket.recv(1)
        except TimeoutError as error:
            raise TimedOut("the session does not answer the audio handshake") from error
        except OSError as error:
            raise NotRunning(f"the session has closed the audio stream: {error.strerror}") from error
        if answer != hello:
            self._socket.close()
            raise PeerError(f"the session refuses a {kind.name.lower()} stream", "its log says why")

    def close(self) -> None:
        """End the stream."""
        self._socket.close()


class AudioOutput(_Stream):
    """The HAL's output stream: 44100 Hz, 16 bits, two channels.

    Args:
        path: of the socket.

    Raises:
        NotRunning: no session serves it.
        PeerError: the session refuses.
        TimedOut: it does not answer.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, AudioKind.PLAYBACK)

    def write(self, data: bytes) -> None:
        """Play samples; blocks while the session has enough of them.

        Raises:
            NotRunning: the session is gone.
            TimedOut: it takes nothing.
        """
        try:
            for place in range(0, len(data), OUTPUT_BYTES):
                self._socket.sendall(data[place : place + OUTPUT_BYTES])
        except TimeoutError as error:
            raise TimedOut("the session takes no samples") from error
        except OSError as error:
            raise NotRunning(f"the session has closed the audio stream: {error.strerror}") from error


class AudioInput(_Stream):
    """The HAL's input stream: 8000 Hz, 16 bits, one channel; arguments and errors as `AudioOutput`."""

    def __init__(self, path: str) -> None:
        super().__init__(path, AudioKind.RECORDING)

    def read(self) -> bytes:
        """The next `INPUT_BYTES`; blocks until they are there. Less at the end of the stream.

        Raises:
            TimedOut: nothing comes.
        """
        data = b""
        try:
            while len(data) < INPUT_BYTES:
                part = self._socket.recv(INPUT_BYTES - len(data))
                if not part:
                    break
                data += part
        except TimeoutError as error:
            raise TimedOut("the session gives no samples") from error
        except OSError as error:
            raise NotRunning(f"the session has closed the audio stream: {error.strerror}") from error
        return data


def _samples(path: str) -> Iterator[bytes]:
    if path == "-":
        while data := sys.stdin.buffer.read(OUTPUT_BYTES):
            yield data
        return
    with open(path, "rb") as file:
        if file.read(4) == b"RIFF":
            file.seek(0)
            form, samples = find_wav(file.read(MAX_WAV_BYTES))
            if form != PLAYBACK:
                raise PeerError(
                    f"{path} has {form.channels} channels of {form.rate} Hz",
                    f"the HAL plays {PLAYBACK.channels} channels of {PLAYBACK.rate} Hz",
                )
            yield samples
            return
        file.seek(0)
        while data := file.read(OUTPUT_BYTES):
            yield data


def play(path: str, file: str) -> int:
    """What ``python -m anbox_tw.guest play`` does.

    Args:
        path: of the audio socket.
        file: WAV or raw samples in the HAL's format, ``-`` for standard input.

    Returns:
        How many bytes were played.

    Raises:
        AnboxError: as `AudioOutput`.
    """
    count = 0
    stream = AudioOutput(path)
    try:
        for data in _samples(file):
            stream.write(data)
            count += len(data)
    finally:
        stream.close()
    return count


def record(path: str, file: str, seconds: float) -> int:
    """What ``python -m anbox_tw.guest record`` does.

    Args:
        path: of the audio socket.
        file: what is written: a WAV file, or raw samples to standard output when it is ``-``.
        seconds: how much.

    Returns:
        How many bytes were recorded.

    Raises:
        AnboxError: as `AudioInput`.
    """
    wanted = RECORDING.bytes_of(seconds)
    stream = AudioInput(path)
    data = b""
    try:
        while len(data) < wanted and (part := stream.read()):
            data += part
    finally:
        stream.close()
    data = data[:wanted]
    if file == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as out:
            out.write(wav_header(RECORDING, len(data)) + data)
    return len(data)
