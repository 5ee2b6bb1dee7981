"""The guest's end of the bridge and a scripted adbd, as a test plays them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from anbox_tw.network import RetryPolicy, UnixConnector
from anbox_tw.rpc import Channel, Dispatcher, Peer
from anbox_tw.rpc._pb import anbox_bridge_pb2 as pb
from tests.qemu.scripted import ScriptedAdbd

LIMIT_S = 30.0


async def until(condition: Callable[[], Any], seconds: float = LIMIT_S) -> Any:
    """Wait until the condition is true; fails after a while."""
    for _ in range(int(seconds / 0.01)):
        value = condition()
        if value:
            return value
        await deferLater(reactor, 0.01)
    raise AssertionError("the condition did not come true")


class BridgeGuest:
    """anboxd as a test plays it."""

    def __init__(self) -> None:
        self.launched: list[pb.LaunchApplication] = []
        self.answer: Callable[[Any], Any] = lambda request: None
        self.dispatcher = Dispatcher()
        self.calls: list[tuple[str, Any]] = []
        for name, kind in (
            ("launch_application", pb.LaunchApplication),
            ("set_focused_task", pb.SetFocusedTask),
            ("remove_task", pb.RemoveTask),
            ("resize_task", pb.ResizeTask),
        ):
            self.dispatcher.register(name, kind, self._handler(name))
        self.channel: Channel

    def _handler(self, name: str) -> Callable[[Any, Peer], Any]:
        def called(request: Any, peer: Peer) -> Any:
            self.calls.append((name, request))
            return self.answer(request)

        return called

    async def connect(self, path: str) -> BridgeGuest:
        connector = UnixConnector(reactor, path, retry=RetryPolicy.once())
        self.channel = await connector.connect(lambda: Channel(reactor, dispatcher=self.dispatcher))
        return self

    def send(self, **event: Any) -> None:
        self.channel.send_event(pb.EventSequence(**event))

    def booted(self, first: bool = True) -> None:
        self.send(boot_finished=pb.BootFinishedEvent(first_boot_done=first))


class PipeAdbd(Protocol):
    """A guest's adbd on one pipe: accept, ok, start, then CNXN; opens the next pipe as Android's does."""

    def __init__(self, open_next: Callable[[], object]) -> None:
        self._open_next = open_next
        self._buffer = b""
        self._adbd: ScriptedAdbd | None = None
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"pipe:qemud:adb:5555\0accept")

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        if self._adbd is not None:
            self._adbd.dataReceived(data)
            return
        self._buffer += data
        if len(self._buffer) >= 2:
            assert self._buffer[:2] == b"ok", self._buffer
            self._adbd = ScriptedAdbd()
            self._adbd.makeConnection(self.transport)
            self.transport.write(b"start")
            self._open_next()
            if self._buffer[2:]:
                self._adbd.dataReceived(self._buffer[2:])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class PipeGuest:
    """Keeps one standing pipe open, as Android's adbd does."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.pipes: list[PipeAdbd] = []
        self.stopped = False

    def open(self) -> None:
        if self.stopped:
            return
        pipe = PipeAdbd(self.open)
        self.pipes.append(pipe)
        connectProtocol(UNIXClientEndpoint(reactor, self._path), pipe).addErrback(lambda _: None)

    def stop(self) -> None:
        self.stopped = True
        for pipe in self.pipes:
            if pipe.transport is not None:
                pipe.transport.loseConnection()
