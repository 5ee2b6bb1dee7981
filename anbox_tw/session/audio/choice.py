"""Sink and source by the words of ``--audio`` and ``--microphone``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from anbox_tw.device.pcm import RECORDING, PcmFormat
from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IAudioPlayback, IAudioSink, IAudioSource
from anbox_tw.session.audio.children import CommandSink, CommandSource, pacat, parec, pw_cat
from anbox_tw.session.audio.playback import NullSink
from anbox_tw.session.audio.sources import FileSource, SilenceSource, ToneSource
from anbox_tw.session.audio.wav import WavSink

__all__ = ["DEFAULT_LATENCY_S", "AutoSink", "check_audio", "check_microphone", "make_sink", "make_source"]

DEFAULT_LATENCY_S = 0.3
"""Of sound between the guest's write and the loudspeaker, as far as it is ours. The original has about 0.4 s. With 0.2 s a
machine all of whose processors are busy loses a moment now and then."""

SERVER_PART = 2 / 3
"""Of the latency, what the sound server holds: it goes on while we and the command wait for a processor."""

MICROPHONE_LATENCY_S = 0.02

SINKS = "auto, pulse, pipewire, wav:PATH or null"
SOURCES = "silence, tone, wav:PATH, raw:PATH, pulse, pipewire or none"


def check_audio(text: str) -> str:
    """Return a value of ``--audio`` if it is one, with an absolute path if it has any.

    Raises:
        ConfigError: it is none.
    """
    kind, _, path = text.partition(":")
    if text in ("auto", "pulse", "pipewire", "null"):
        return text
    if kind == "wav" and path:
        return f"{kind}:{os.path.abspath(path)}"
    raise ConfigError(f"--audio {text}: there is no such sink", f"it is {SINKS}")


def check_microphone(text: str) -> str:
    """Return a value of ``--microphone`` if it is one, with an absolute path if it has any.

    Raises:
        ConfigError: it is none.
    """
    kind, _, path = text.partition(":")
    if text in ("silence", "tone", "pulse", "pipewire", "none"):
        return text
    if kind in ("wav", "raw") and path:
        return f"{kind}:{os.path.abspath(path)}"
    raise ConfigError(f"--microphone {text}: there is no such source", f"it is {SOURCES}")


@implementer(IAudioSink)
class AutoSink:
    """Chooses anew for each stream: PulseAudio where a server answers for it, PipeWire likewise, else nothing is heard.

    Args:
        reactor: as the sinks want it.
        latency: seconds.
        environment: says where the servers are, and goes to the commands.
    """

    name = "auto"

    def __init__(self, reactor: Any, latency: float, environment: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._latency = latency
        self._environment = environment

    def choose(self) -> str:
        """``pulse``, ``pipewire`` or ``null``."""
        environment = self._environment
        runtime, path = environment.get("XDG_RUNTIME_DIR", ""), environment.get("PATH")
        pulse = environment.get("PULSE_RUNTIME_PATH") or f"{runtime}/pulse"
        pulse_there = bool(environment.get("PULSE_SERVER")) or os.path.exists(f"{pulse}/native")
        if pulse_there and shutil.which("pacat", path=path):
            return "pulse"
        if os.path.exists(f"{runtime}/{environment.get('PIPEWIRE_REMOTE') or 'pipewire-0'}") and shutil.which(
            "pw-cat", path=path
        ):
            return "pipewire"
        return "null"

    def open(self, form: PcmFormat, label: str) -> IAudioPlayback:
        """See `IAudioSink`."""
        sink = make_sink(self.choose(), self._reactor, self._latency, self._environment)
        return sink.open(form, label)


def make_sink(
    text: str, reactor: Any, latency: float = DEFAULT_LATENCY_S, environment: Mapping[str, str] = os.environ
) -> IAudioSink:
    """The sink that ``--audio`` names.

    Args:
        text: see `check_audio`.
        reactor: as the sink wants it.
        latency: seconds, in all.
        environment: of commands.

    Raises:
        ConfigError: there is no such sink.
    """
    check_audio(text)
    there = latency * SERVER_PART
    here = latency - there
    if text == "auto":
        return AutoSink(reactor, latency, environment)
    if text == "pulse":
        return CommandSink(reactor, "pulse", pacat(there), here, environment)
    if text == "pipewire":
        return CommandSink(reactor, "pipewire", pw_cat("--playback", there), here, environment)
    if text == "null":
        return NullSink(reactor, latency)
    return WavSink(reactor, os.path.abspath(text.partition(":")[2]), latency)


def make_source(text: str, reactor: Any, environment: Mapping[str, str] = os.environ) -> IAudioSource | None:
    """The source that ``--microphone`` names; ``None`` when there is none.

    Args:
        text: see `check_microphone`.
        reactor: as the source wants it.
        environment: of commands.

    Raises:
        ConfigError: there is no such source, or its file cannot be used.
    """
    check_microphone(text)
    kind, _, path = text.partition(":")
    if kind in ("wav", "raw"):
        return FileSource(reactor, os.path.abspath(path), RECORDING, raw=kind == "raw")
    if text == "pulse":
        return CommandSource(reactor, "pulse", parec(MICROPHONE_LATENCY_S), environment)
    if text == "pipewire":
        return CommandSource(reactor, "pipewire", pw_cat("--record", MICROPHONE_LATENCY_S), environment)
    if text == "tone":
        return ToneSource(reactor)
    return SilenceSource(reactor) if text == "silence" else None
