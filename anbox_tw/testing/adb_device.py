"""A device for tests: a real adbd of ours with scripted answers, faults, latency, and a transcript.

In a trial test::

    device = FakeDevice(reactor, properties={"ro.product.model": "T"}, shell={"id": "uid=0(root)"})
    await device.start()
    self.addCleanup(device.stop)
    client = await device.connect()
    result = await client.shell("id")

``python -m anbox_tw.testing.adb_device`` runs one in a process of its own, which is what the pytest fixture of
``anbox_tw.testing.pytest_plugin`` does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort, IProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from anbox_tw.adb.client import Device, connect_device
from anbox_tw.adb.daemon import AdbDaemon, DaemonConfig
from anbox_tw.adb.daemon.commands import Command, CommandStream
from anbox_tw.adb.streams import AdbStream
from anbox_tw.errors import AdbError

__all__ = ["Exchange", "FakeDevice", "ShellReply", "load_transcript"]

Answer = Any


@attrs.frozen
class ShellReply:
    """What a scripted command says.

    Attributes:
        stdout: its output.
        stderr: its error output.
        exit_code: its status.
        delay: seconds before it says anything.
    """

    stdout: str | bytes = ""
    stderr: str | bytes = ""
    exit_code: int = 0
    delay: float = 0.0


Script = str | ShellReply | Callable[[str], "str | ShellReply"]
"""A reply, or what makes one from the command line."""


@attrs.define
class Exchange:
    """One stream of a transcript.

    Attributes:
        service: the name it was opened with.
        parts: (``in`` or ``out``, bytes) in their order; ``in`` is what the host sent.
        refused: it was not opened.
    """

    service: str
    parts: list[tuple[str, bytes]] = attrs.field(factory=list)
    refused: bool = False


class _Scripted(Command):
    """Says a scripted reply."""

    def __init__(self, reactor: Any, line: str, script: Script) -> None:
        super().__init__([line])
        self._reactor = reactor
        self._script = script
        self._call: Any = None

    def on_start(self) -> None:
        reply = self._script(self.arguments[0]) if callable(self._script) else self._script
        made = reply if isinstance(reply, ShellReply) else ShellReply(reply)
        self._call = self._reactor.callLater(made.delay, self._say, made)

    def _say(self, reply: ShellReply) -> None:
        self.out(_bytes(reply.stdout))
        self.err(_bytes(reply.stderr))
        self.exit(reply.exit_code)

    def on_close(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()


class _Replayed(Protocol):
    """Plays one recorded exchange: each piece goes out when the host has sent what it had sent before."""

    def __init__(self, exchange: Exchange) -> None:
        self._parts = list(exchange.parts)
        self._owed = 0

    def connectionMade(self) -> None:
        self._play()

    def dataReceived(self, data: bytes) -> None:
        self._owed -= len(data)
        self._play()

    def _play(self) -> None:
        assert self.transport is not None
        while self._parts:
            kind, data = self._parts[0]
            if kind == "in":
                self._owed += len(data)
            elif self._owed > 0:
                return
            else:
                self.transport.write(data)
            self._parts.pop(0)
        if self._owed <= 0:
            self.transport.loseConnection()


class _Daemon(AdbDaemon):
    """An adbd that asks the fake device first."""

    def __init__(self, reactor: Any, config: DaemonConfig, fake: FakeDevice) -> None:
        super().__init__(reactor, config)
        self._fake = fake

    def open_service(self, name: str, stream: AdbStream) -> Answer:
        return self._fake._open(name, stream, super().open_service)


class FakeDevice:
    """A device that does what a test wants.

    Args:
        reactor: the reactor.
        properties: what ``getprop`` shows; ``ro.product.model`` and the like go into the banner too.
        files: content by path; push, pull and ls see these below a directory of the device's own.
        shell: replies by command line; other commands run in a real shell of this machine, unless
            ``strict``.
        strict: commands without a script fail with 127.
        latency: seconds before each service is opened.
        config: settings of the adbd instead of the usual ones.

    Attributes:
        root: the directory with the device's files.
        port: TCP port on loopback, once started.
        requests: every service that was asked for, in order.
        transcript: what went over every stream.
        daemon: the adbd.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        properties: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
        shell: Mapping[str, Script] | None = None,
        strict: bool = False,
        latency: float = 0.0,
        config: DaemonConfig | None = None,
    ) -> None:
        self._reactor = reactor
        self.root = tempfile.mkdtemp(prefix="anbox-tw-device-")
        for folder in ("data/local/tmp", "sdcard"):
            os.makedirs(os.path.join(self.root, folder))
        for path, content in (files or {}).items():
            target = os.path.join(self.root, path.lstrip("/"))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                file.write(content)
        known = dict(properties or {})
        if config is None:
            config = DaemonConfig(
                product=known.get("ro.product.name", "fake"),
                model=known.get("ro.product.model", "Fake device"),
                device=known.get("ro.product.device", "fake"),
                properties=known,
                root=self.root,
                packages=os.path.join(self.root, "data/app"),
            )
        self.shell: dict[str, Script] = dict(shell or {})
        self.strict = strict
        self.latency = latency
        self.requests: list[str] = []
        self.transcript: list[Exchange] = []
        self.port = 0
        self.daemon: AdbDaemon = _Daemon(reactor, config, self)
        self._listening: IListeningPort | None = None
        self._faults: list[tuple[str, str, int]] = []
        self._replay: list[Exchange] | None = None

    # ------------------------------------------------------------------ running

    async def start(self, port: int = 0) -> int:
        """Listen on loopback; returns the port."""
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _address: self.daemon.build_transport()  # type: ignore[method-assign,assignment]
        endpoint = TCP4ServerEndpoint(self._reactor, port, interface="127.0.0.1")
        self._listening = listening = await endpoint.listen(factory)
        self.port = int(listening.getHost().port)
        return self.port

    @property
    def serial(self) -> str:
        """What ``adb connect`` takes and then calls it."""
        return f"localhost:{self.port}"

    async def connect(self) -> Device:
        """Our client, straight to it; close it at the end."""
        return await connect_device(self._reactor, self.serial, keys=[])

    async def stop(self) -> None:
        """End it and remove its files."""
        if self._listening is not None:
            listening, self._listening = self._listening, None
            await maybeDeferred(listening.stopListening)
        await self.daemon.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    # ------------------------------------------------------------------- faults

    def disconnect(self) -> None:
        """Break every connection now, as a pulled cable does."""
        for transport in list(self.daemon.transports):
            transport.abort("the fake device was told to")

    def refuse(self, service: str, times: int = 1 << 30) -> None:
        """Refuse services that begin with ``service``."""
        self._faults.append(("refuse", service, times))

    def drop(self, service: str, times: int = 1) -> None:
        """Break the connection when a service that begins with ``service`` is asked for."""
        self._faults.append(("drop", service, times))

    def ignore(self, service: str, times: int = 1) -> None:
        """Never answer a service that begins with ``service``."""
        self._faults.append(("ignore", service, times))

    def cut(self, service: str, after: int) -> None:
        """Break the connection when a host has sent ``after`` bytes to a service that begins with ``service``."""
        self._faults.append(("cut", service, after))

    def heal(self) -> None:
        """No more faults."""
        self._faults.clear()

    def _fault(self, service: str) -> tuple[str, int] | None:
        for index, (kind, beginning, value) in enumerate(self._faults):
            if service.startswith(beginning):
                if kind != "cut":
                    del self._faults[index]
                    if value > 1:
                        self._faults.insert(index, (kind, beginning, value - 1))
                return kind, value
        return None

    # ----------------------------------------------------------------- services

    def replay(self, transcript: Sequence[Exchange]) -> None:
        """Answer from a transcript from now on: each stream by the next exchange with its service's name."""
        self._replay = list(transcript)

    def save_transcript(self, path: str) -> None:
        """Write what went over the streams as JSON."""
        data = [
            {
                "service": exchange.service,
                "refused": exchange.refused,
                "parts": [[kind, part.hex()] for kind, part in exchange.parts],
            }
            for exchange in self.transcript
        ]
        with open(path, "w") as file:
            json.dump(data, file, indent=1)

    def _open(self, name: str, stream: AdbStream, real: Callable[[str, AdbStream], Answer]) -> Answer:
        self.requests.append(name)
        exchange = Exchange(name)
        self.transcript.append(exchange)
        fault = self._fault(name)
        match fault:
            case ("refuse", _):
                exchange.refused = True
                raise AdbError("the fake device was told to refuse this")
            case ("drop", _):
                self._reactor.callLater(0, stream.transport.abort, "the fake device was told to")
                return Deferred()
            case ("ignore", _):
                return Deferred()
        limit = fault[1] if fault is not None else None

        def opened(_: object = None) -> Answer:
            answer = self._answer(name, stream, real)
            if isinstance(answer, Deferred):
                return answer.addCallback(lambda protocol: self._record(exchange, stream, protocol, limit))
            return self._record(exchange, stream, answer, limit)

        def refused(failure: Failure) -> Failure:
            exchange.refused = True
            return failure

        if self.latency:
            waiting: Deferred[Answer] = deferLater(self._reactor, self.latency, lambda: None)
            return waiting.addCallback(opened).addErrback(refused)
        try:
            return opened()
        except AdbError:
            exchange.refused = True
            raise

    def _answer(self, name: str, stream: AdbStream, real: Callable[[str, AdbStream], Answer]) -> Answer:
        if self._replay is not None:
            for index, exchange in enumerate(self._replay):
                if exchange.service == name:
                    del self._replay[index]
                    if exchange.refused:
                        raise AdbError("refused in the transcript")
                    return _Replayed(exchange)
            raise AdbError("not in the transcript")
        word, _, line = name.partition(":")
        if word == "exec" or word.split(",")[0] == "shell":
            framed = "v2" in word.split(",")
            script = self.shell.get(line)
            if script is not None:
                return CommandStream(_Scripted(self._reactor, line, script), framed=framed)
            if self.strict and line and self.daemon._find_command(line) is None:
                missing = ShellReply("", f"sh: {line.split()[0]}: not found\n", 127)
                return CommandStream(_Scripted(self._reactor, line, missing), framed=framed)
        return real(name, stream)

    def _record(
        self, exchange: Exchange, stream: AdbStream, protocol: IProtocol | None, limit: int | None
    ) -> IProtocol | None:
        """Write down what goes over the stream, and count to ``limit``."""
        if protocol is None:
            exchange.refused = True
            return None
        write, receive = stream.write, protocol.dataReceived
        received = 0

        def recorded_write(data: Any) -> None:
            exchange.parts.append(("out", bytes(data)))
            write(data)

        def recorded_receive(data: bytes) -> None:
            nonlocal received
            exchange.parts.append(("in", bytes(data)))
            received += len(data)
            if limit is not None and received >= limit:
                self._faults = [fault for fault in self._faults if fault[0] != "cut"]
                self._reactor.callLater(0, stream.transport.abort, "the fake device was told to")
                return
            receive(data)

        stream.write = recorded_write  # type: ignore[method-assign]
        protocol.dataReceived = recorded_receive  # type: ignore[method-assign]
        return protocol


def load_transcript(path: str) -> list[Exchange]:
    """Read what ``save_transcript`` wrote."""
    with open(path) as file:
        data = json.load(file)
    return [
        Exchange(
            item["service"], [(kind, bytes.fromhex(part)) for kind, part in item["parts"]], item["refused"]
        )
        for item in data
    ]


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


class _UntilClosed(Protocol):
    """Ends the process when standard input does."""

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end()


def main() -> None:
    """Run a device until standard input closes; the first line written is JSON with ``port`` and ``root``.

    The only argument is a JSON object: ``properties``, ``files`` (text by path), ``shell`` (replies by
    command, a text or an object as ``ShellReply``), ``strict``, ``latency``.
    """
    from twisted.internet.stdio import StandardIO
    from twisted.internet.task import react

    settings = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    shell = {
        line: ShellReply(**reply) if isinstance(reply, dict) else reply
        for line, reply in settings.pop("shell", {}).items()
    }
    files = {path: text.encode() for path, text in settings.pop("files", {}).items()}

    async def run(reactor: Any) -> None:
        device = FakeDevice(reactor, shell=shell, files=files, **settings)
        ended: Deferred[None] = Deferred()
        StandardIO(_UntilClosed(lambda: ended.callback(None)), reactor=reactor)
        try:
            await device.start()
            sys.__stdout__.write(json.dumps({"port": device.port, "root": device.root}) + "\n")  # type: ignore[union-attr]
            sys.__stdout__.flush()  # type: ignore[union-attr]
            await ended
        finally:
            await device.stop()

    react(lambda reactor: Deferred.fromCoroutine(run(reactor)))


if __name__ == "__main__":
    main()
