"""The session's audio: what the guest plays and records through ``/dev/anbox_audio``."""

from __future__ import annotations

from anbox_tw.session.audio.choice import (
    DEFAULT_LATENCY_S,
    check_audio,
    check_microphone,
    make_sink,
    make_source,
)
from anbox_tw.session.audio.server import AudioServer

__all__ = [
    "DEFAULT_LATENCY_S",
    "AudioServer",
    "check_audio",
    "check_microphone",
    "make_sink",
    "make_source",
]
