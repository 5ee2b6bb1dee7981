"""Serves the input devices: a socket each, any number of readers, all of whom get every batch.

A reader that is slower than its events loses some by rule, and the others lose nothing: as soon as more than
`MAX_WAITING_EVENTS` wait for it, all that waits is thrown away. When it reads again it is told so by SYN_DROPPED and
SYN_REPORT, as evdev does, and then what is down at that moment. It never gets a part of a batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.device import Change, Device, InputDevice
from anbox_tw.device.evdev import EVENT_BYTES, encode_events, info_for
from anbox_tw.interfaces import IConnectionCreator
from anbox_tw.network import Connections, UnixListener
from anbox_tw.session.input._state import DROPPED, DeviceState

__all__ = ["MAX_READERS", "MAX_WAITING_EVENTS", "InputServer"]

MAX_WAITING_EVENTS = 4096
"""What one reader may be behind, beside what the kernel and the transport hold (some 10,000): a second of the fastest
touch screen. evdev's own buffers hold a few hundred."""

MAX_READERS = 32
"""Of one device. Android's EventHub is one; a test tool or two may look as well."""

SOCKET_MODE = 0o666
"""As the original's, because the guest's ids are others than ours. Nobody else on the host can pass the directories above."""


@implementer(IPushProducer)
class InputReader(Protocol):
    """One reader of one device.

    Args:
        device: which it reads.

    Attributes:
        dropped: events that it lost.
    """

    _log = Logger()
    transport: Any = None

    def __init__(self, device: _ServedDevice) -> None:
        self._device = device
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._lost = False
        self.dropped = 0

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        self.transport.write(self._device.greeting())
        self._device.readers[self] = None

    def dataReceived(self, data: bytes) -> None:
        # The guest has nothing to say here.
        self._log.info(
            "{device}: closing a reader that wrote {count} bytes", device=self._device.name, count=len(data)
        )
        self._device.readers.pop(self, None)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._device.readers.pop(self, None)
        self._waiting.clear()
        if self.dropped:
            self._log.info(
                "{device}: a reader that has ended lost {count} events",
                device=self._device.name,
                count=self.dropped,
            )

    def send(self, batch: bytes) -> None:
        """Give it a batch, now or when it reads again."""
        if not self._paused:
            self.transport.write(batch)
        elif self._lost:
            self.dropped += len(batch) // EVENT_BYTES
        else:
            self._waiting.append(batch)
            self._waiting_bytes += len(batch)
            if self._waiting_bytes > MAX_WAITING_EVENTS * EVENT_BYTES:
                self._lost = True
                self.dropped += self._waiting_bytes // EVENT_BYTES
                self._waiting.clear()
                self._waiting_bytes = 0
                self._log.warn("{device}: a reader is too slow and loses events", device=self._device.name)

    def pauseProducing(self) -> None:
        """The reader does not read."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It reads again."""
        self._paused = False
        if self._lost:
            self._lost = False
            self.transport.write(self._device.after_loss())
        while self._waiting and not self._paused:
            batch = self._waiting.popleft()
            self._waiting_bytes -= len(batch)
            self.transport.write(batch)

    def stopProducing(self) -> None:
        """The connection ends."""


@implementer(IConnectionCreator)
class _ServedDevice:
    """One device with its readers."""

    def __init__(self, device: InputDevice, model: Device, nanoseconds: Callable[[], int]) -> None:
        self.device = device
        self.name = f"event{device.value}"
        self._model = model
        self._nanoseconds = nanoseconds
        self.state = DeviceState()
        self.readers: dict[InputReader, None] = {}
        self.events = 0

    def create_connection_for(self, address: IAddress) -> InputReader:
        """See `IConnectionCreator`."""
        return InputReader(self)

    def greeting(self) -> bytes:
        """What a new reader gets: the Info, and what is down."""
        display = self._model.display.state
        info = info_for(self.device, display.width, display.height)
        return info.encode() + encode_events(self.state.events(), self._nanoseconds())

    def after_loss(self) -> bytes:
        """What a reader gets that lost events."""
        return encode_events([*DROPPED, *self.state.events()], self._nanoseconds())

    def send(self, events: Any) -> None:
        """Send a batch to every reader, in one write each."""
        batch = encode_events(events, self._nanoseconds())
        self.state.follow(events)
        self.events += len(events)
        for reader in list(self.readers):
            reader.send(batch)


class InputServer(Service):
    """The sockets ``event0`` to ``event2`` of a directory; what is injected into the model's input goes to their readers.

    Args:
        reactor: listens.
        model: the device whose ``input`` is served.
        directory: of the sockets; must exist at the start.
        nanoseconds: the clock of the events, CLOCK_MONOTONIC.

    Attributes:
        connections: the readers of each device, by its name.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        model: Device,
        directory: str,
        *,
        nanoseconds: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._model = model
        self._devices = {device: _ServedDevice(device, model, nanoseconds) for device in InputDevice}
        self._listeners: list[UnixListener] = []
        self.connections: dict[str, Connections] = {}
        for served in self._devices.values():
            registry = Connections(limit=MAX_READERS, name=served.name, clock=reactor)
            self.connections[served.name] = registry
            self._listeners.append(
                UnixListener(
                    reactor,
                    f"{directory}/{served.name}",
                    served,
                    mode=SOCKET_MODE,
                    registry=registry,
                    name=served.name,
                    # events that nobody has read are of no use to anybody
                    close_grace=0.5,
                )
            )
        self._end: Callable[[], None] | None = None

    @property
    def listeners(self) -> list[UnixListener]:
        """One a device."""
        return list(self._listeners)

    def sockets(self) -> dict[str, str]:
        """The sockets: name to path."""
        return {f"input/{listener.connection_name}": listener.path for listener in self._listeners}

    def describe(self) -> list[dict[str, Any]]:
        """Of each device its name, readers, events sent and events that slow readers lost; JSON-able."""
        return [
            {
                "device": served.name,
                "kind": served.device.name.lower(),
                "readers": len(served.readers),
                "events": served.events,
                "lost": sum(reader.dropped for reader in served.readers),
            }
            for served in self._devices.values()
        ]

    def startService(self) -> None:
        """Listen.

        Raises:
            AlreadyRunning: somebody else serves these sockets.
            NetworkError: a socket cannot be made.
        """
        if self.running:
            return
        begun: list[UnixListener] = []
        try:
            for listener in self._listeners:
                listener.startService()
                begun.append(listener)
        except Exception:
            for listener in begun:
                listener.stopService().addErrback(self._stop_failed)
            raise
        super().startService()
        self._end = self._model.input.observe(self._changed)

    def stopService(self) -> Deferred[None]:
        """Fires when the sockets and all readers are closed."""
        if not self.running:
            return succeed(None)
        super().stopService()
        if self._end is not None:
            self._end()
            self._end = None
        stopping = DeferredList([listener.stopService() for listener in self._listeners], consumeErrors=True)
        return stopping.addCallback(lambda _: None)

    def _stop_failed(self, failure: Failure) -> None:
        self._log.failure("Closing an input socket failed", failure)

    def _changed(self, change: Change) -> None:
        if change.kind == "input":
            device, events = change.value
            self._devices[device].send(events)
