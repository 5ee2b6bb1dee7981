"""Sinks and sources that are child processes: PulseAudio's ``pacat`` and ``parec``, PipeWire's ``pw-cat``.

They link the sound server's library, so that nothing of it is in this process, and mix in the server. A child that ends
(no server, or a server that is restarted) is started again after a while; meanwhile the guest keeps its time.
"""

from __future__ import annotations

import fcntl
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.device.pcm import PcmFormat
from anbox_tw.interfaces import IAudioCapture, IAudioSink, IAudioSource
from anbox_tw.session.audio._pace import Pacer
from anbox_tw.session.audio.playback import BufferedPlayback

__all__ = ["CommandSink", "CommandSource", "pacat", "parec", "pw_cat"]

CHUNK_BYTES = 4096
"""What is written to a child at once: 23 ms of what the guest plays."""

PIPE_BYTES = 8192
"""The pipe to a child holds 64 KiB unless told otherwise, which would be 370 ms more of delay."""

F_SETPIPE_SZ = 1031

RETRY_S = (0.5, 1.0, 2.0, 5.0)
"""Between the end of a child and the next one; from the beginning again once one has played for a while."""

STEADY_S = 10.0

DRAIN_S = 3.0
"""Beyond the length of what it has: how long a child may take to play the rest."""

KILL_S = 2.0
"""Between SIGTERM and SIGKILL."""

STDERR_BYTES = 2000

Command = Callable[[PcmFormat, str], Sequence[str]]
"""Makes the child's command line for a format and a label."""

_UNDERRUN = re.compile(rb"underrun", re.I)
_LATENCY = re.compile(rb"Latency: (\d+) usec")


def pacat(latency: float) -> Command:
    """PulseAudio's player, with so many seconds of latency."""

    def command(form: PcmFormat, label: str) -> Sequence[str]:
        # --verbose tells underruns
        return ["pacat", "--playback", "--verbose", *_pulse(form, label, latency)]

    return command


def parec(latency: float) -> Command:
    """PulseAudio's recorder, with so many seconds of latency."""

    def command(form: PcmFormat, label: str) -> Sequence[str]:
        return ["parec", "--record", *_pulse(form, label, latency)]

    return command


def _pulse(form: PcmFormat, label: str, latency: float) -> list[str]:
    return [
        "--raw",
        *("--format=s16le", f"--rate={form.rate}", f"--channels={form.channels}"),
        f"--latency-msec={max(1, round(latency * 1000))}",
        *("--client-name=anbox", f"--stream-name={label}"),
    ]


_PW_CAT = 'case $(pw-cat --help) in *--raw*) exec pw-cat --raw "$@";; *) exec pw-cat "$@";; esac'
"""From version 1.2 on pw-cat takes standard input for a sound file unless told otherwise; before, it knows no ``--raw``."""


def pw_cat(mode: str, latency: float) -> Command:
    """PipeWire's player (``--playback``) or recorder (``--record``), with so many seconds of latency."""

    def command(form: PcmFormat, label: str) -> Sequence[str]:
        return [
            *("sh", "-c", _PW_CAT, "pw-cat", mode, "--format", "s16"),
            *("--rate", str(form.rate), "--channels", str(form.channels)),
            *("--latency", f"{max(1, round(latency * 1000))}ms", "-"),
        ]

    return command


class _Child(ProcessProtocol):
    """A running child.

    Args:
        ended: called with how it ended.
        received: gets what it writes to standard output.
        ready: called when it can be written to, at first and each time it has taken everything.
        told: gets what it writes to standard error.
    """

    def __init__(
        self,
        ended: Callable[[str], object],
        *,
        received: Callable[[bytes], object] = lambda data: None,
        ready: Callable[[], object] | None = None,
        told: Callable[[bytes], object] = lambda data: None,
    ) -> None:
        self._ended = ended
        self._received = received
        self._ready = ready
        self._told = told
        self._errors = b""
        self._writing = False
        self.gone = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if self._ready is None:
            transport.closeStdin()
            return
        try:
            fcntl.fcntl(transport.pipes[0].fileno(), F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # an unprivileged user at his limit of pipe memory: there is more delay then
        self._writing = True
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """See ``IPullProducer``: the child has taken what was written."""
        if self._ready is not None and self._writing:
            self._ready()

    def stopProducing(self) -> None:
        """See ``IPullProducer``: its standard input is closed."""
        self._writing = False

    def write(self, data: bytes) -> None:
        """Write to its standard input."""
        transport: Any = self.transport
        if self._writing:
            transport.write(data)

    def end_input(self) -> None:
        """Nothing more will be written; it plays the rest and ends."""
        transport: Any = self.transport
        if self._writing:
            self._writing = False
            transport.unregisterProducer()
            transport.closeStdin()

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        transport: Any = self.transport
        if transport is not None and not self.gone:
            try:
                transport.signalProcess(number)
            except ProcessExitedAlready:
                pass

    def outReceived(self, data: bytes) -> None:
        self._received(data)

    def errReceived(self, data: bytes) -> None:
        self._told(data)
        self._errors = (self._errors + data)[-STDERR_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        self.gone = True
        self._writing = False
        # the progress that --verbose writes is no message
        lines = [
            line.strip()
            for line in re.split(r"[\r\n]+", self._errors.decode(errors="replace"))
            if line.strip() and not line.startswith("Time:")
        ]
        how = reason.getErrorMessage()
        self._ended(f"{lines[-1]} ({how})" if lines else how)


class _Keeper:
    """Keeps a child running: starts it, and starts it again after a while when it ends."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        make: Callable[[Callable[[str], object]], _Child],
        lost: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        self._arguments = list(arguments)
        self._environment = {**environment, "LC_ALL": "C"}
        self._make = make
        self._lost = lost
        self._failures = 0
        self._began = 0.0
        self._timer: IDelayedCall | None = None
        self._stopped: list[Deferred[None]] | None = None
        self.child: _Child | None = None
        self.failure = ""

    def start(self) -> None:
        """Start a child."""
        self._timer = None
        self._began = self._reactor.seconds()
        child = self._make(self._ended)
        self.child = child
        try:
            self._reactor.spawnProcess(
                child, self._arguments[0], self._arguments, env=self._environment, path="/"
            )
        except OSError as error:
            child.gone = True
            self._ended(str(error.strerror))

    def stop(self, *, after: float = 0.0) -> Deferred[None]:
        """Let the child end within ``after`` seconds, then make it; fires when it is gone."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self.child is None:
            self._stopped = self._stopped or []
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._stopped = [*(self._stopped or []), done]
        if after > 0:
            self._timer = self._reactor.callLater(after, self._terminate)
        else:
            self._terminate()
        return done

    def _terminate(self) -> None:
        self._timer = self._reactor.callLater(KILL_S, self._kill)
        if self.child is not None:
            self.child.signal(signal.SIGTERM)

    def _kill(self) -> None:
        self._timer = None
        if self.child is not None:
            self.child.signal(signal.SIGKILL)

    def _ended(self, how: str) -> None:
        self.child = None
        if self._stopped is not None:
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._timer = None
            stopped, self._stopped = self._stopped, []
            for done in stopped:
                done.callback(None)
            return
        if self._reactor.seconds() - self._began >= STEADY_S:
            self._failures = 0
        delay = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1
        if how != self.failure:
            self._log.warn(
                "{command} has ended: {how}; trying again in {delay:g} s",
                command=self._arguments[0],
                how=how,
                delay=delay,
            )
        self.failure = how
        self._timer = self._reactor.callLater(delay, self.start)
        self._lost()


class CommandPlayback(BufferedPlayback):
    """A stream into a child's standard input.

    While there is no child the samples are thrown away as fast as they would be heard, and counted.

    Args:
        reactor: spawns, and tells the time.
        sink: name for `describe`.
        form: of the samples.
        seconds: what the buffer holds.
        arguments: the child's.
        environment: the child's.
    """

    def __init__(
        self,
        reactor: Any,
        sink: str,
        form: PcmFormat,
        seconds: float,
        arguments: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        super().__init__(sink, form, seconds)
        self._hungry = False
        self._latency_ms: int | None = None
        self._pacer = Pacer(reactor, form, self._discard)
        self._keeper = _Keeper(
            reactor,
            arguments,
            environment,
            lambda ended: _Child(ended, ready=self._ready, told=self._told),
            self._lost,
        )
        self._keeper.start()

    def describe(self) -> dict[str, Any]:
        about = {**super().describe(), "connected": self._keeper.child is not None}
        if self._latency_ms is not None:
            about["server_latency_ms"] = self._latency_ms
        if self._keeper.failure:
            about["failure"] = self._keeper.failure
        return about

    def _ready(self) -> None:
        self._pacer.stop()
        data = self._take(CHUNK_BYTES - CHUNK_BYTES % self.form.frame_bytes)
        child = self._keeper.child
        if data and child is not None:
            self._hungry = False
            self.played += len(data)
            child.write(data)
        else:
            self._hungry = True
            if self._finishing and child is not None:
                child.end_input()

    def _told(self, data: bytes) -> None:
        self.underruns += len(_UNDERRUN.findall(data))
        for match in _LATENCY.finditer(data):
            self._latency_ms = round(int(match[1]) / 1000)

    def _filled(self) -> None:
        if self._hungry:
            self._ready()
        elif self._keeper.child is None:
            self._pacer.start()

    def _lost(self) -> None:
        self._hungry = False
        self._latency_ms = None
        if self._finishing:
            self._abort()
        elif len(self._buffer):
            self._pacer.start()

    def _discard(self, count: int) -> None:
        self.dropped += len(self._take(count))
        if not len(self._buffer):
            self._pacer.stop()

    def _finish(self) -> None:
        if self._keeper.child is None:
            self._abort()
            return
        left = self.form.seconds_of(len(self._buffer))
        self._keeper.stop(after=left + DRAIN_S).addCallback(lambda _: self._ended())
        if self._hungry:
            self._ready()

    def _abort(self) -> None:
        self._pacer.stop()
        self._take(len(self._buffer))
        self._keeper.stop().addCallback(lambda _: None if self._over else self._ended())


@implementer(IAudioSink)
class CommandSink:
    """Plays through a command.

    Args:
        reactor: spawns, and tells the time.
        name: for lists.
        command: makes its arguments.
        seconds: what a stream's buffer holds here, beside what the command and the server hold.
        environment: of the command.
    """

    def __init__(
        self, reactor: Any, name: str, command: Command, seconds: float, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._reactor = reactor
        self._command = command
        self._seconds = seconds
        self._environment = environment

    def open(self, form: PcmFormat, label: str) -> CommandPlayback:
        """See `IAudioSink`."""
        arguments = self._command(form, label)
        return CommandPlayback(self._reactor, self.name, form, self._seconds, arguments, self._environment)


@implementer(IAudioCapture)
class CommandCapture:
    """A stream from a child's standard output; silence while there is no child.

    Args:
        reactor: spawns, and tells the time.
        source: name for `describe`.
        form: of the samples.
        deliver: gets them.
        arguments: the child's.
        environment: the child's.
    """

    def __init__(
        self,
        reactor: Any,
        source: str,
        form: PcmFormat,
        deliver: Callable[[bytes], object],
        arguments: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self._source = source
        self._form = form
        self._deliver = deliver
        self._rest = b""
        self._closed = False
        self._pacer = Pacer(reactor, form, lambda count: deliver(bytes(count)))
        self._keeper = _Keeper(
            reactor,
            arguments,
            environment,
            lambda ended: _Child(ended, received=self._received),
            self._lost,
        )
        self._keeper.start()

    def pause(self) -> None:
        """See `IAudioCapture`; a microphone does not wait."""

    def resume(self) -> None:
        """See `IAudioCapture`."""

    def close(self) -> Deferred[None]:
        """See `IAudioCapture`."""
        self._closed = True
        self._pacer.stop()
        return self._keeper.stop()

    def describe(self) -> dict[str, Any]:
        """See `IAudioCapture`."""
        about: dict[str, Any] = {"source": self._source, "connected": self._keeper.child is not None}
        if self._keeper.failure:
            about["failure"] = self._keeper.failure
        return about

    def _received(self, data: bytes) -> None:
        if self._closed:
            return
        self._pacer.stop()
        data = self._rest + data
        whole = len(data) - len(data) % self._form.frame_bytes
        self._rest = data[whole:]
        if whole:
            self._deliver(data[:whole])

    def _lost(self) -> None:
        self._rest = b""
        if not self._closed:
            self._pacer.start()


@implementer(IAudioSource)
class CommandSource:
    """Records through a command; arguments as `CommandSink`."""

    def __init__(self, reactor: Any, name: str, command: Command, environment: Mapping[str, str]) -> None:
        self.name = name
        self._reactor = reactor
        self._command = command
        self._environment = environment

    def open(self, form: PcmFormat, deliver: Callable[[bytes], object]) -> CommandCapture:
        """See `IAudioSource`."""
        arguments = self._command(form, "microphone")
        return CommandCapture(self._reactor, self.name, form, deliver, arguments, self._environment)
