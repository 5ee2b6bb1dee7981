"""A guest's end of a pipe service over an in-memory transport, and floods and garbage for each of them."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._framing import QemudDecoder, encode_frame

GUEST = UNIXAddress("guest")


class Transport(StringTransport):
    """Counts writes, remembers an abort, and tells its protocol of it."""

    protocol: Any
    bufferSize = 65536

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        super().write(data)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def abortConnection(self) -> None:
        if not self.disconnected:
            super().abortConnection()
            self.disconnected = True
            self.protocol.connectionLost(Failure(connectionDone.value))


class Guest:
    """One connection to a service.

    Attributes:
        transport: the service's.
    """

    def __init__(self, service: IPipeService, argument: str = "") -> None:
        protocol = service.open(argument, GUEST)
        assert isinstance(protocol, Protocol)
        self.protocol: Protocol = protocol
        self.transport: Transport = Transport()
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        self._frames: QemudDecoder = QemudDecoder()

    def feed(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def send(self, *bodies: bytes) -> None:
        """Frames, header and body as two writes, as the guest's helper does it."""
        for body in bodies:
            frame = encode_frame(body)
            self.feed(frame[:4])
            self.feed(frame[4:])

    def received(self) -> bytes:
        """What came since the last time."""
        data: bytes = self.transport.value()
        self.transport.clear()
        self.transport.writes.clear()
        return data

    def frames(self) -> list[bytes]:
        """The frames that came since the last time."""
        return self._frames.receive_data(self.received())

    @property
    def closed(self) -> bool:
        return bool(self.transport.disconnected)

    def stop_reading(self) -> None:
        """The service's transport is full."""
        assert self.transport.producer is not None
        self.transport.producer.pauseProducing()

    def read_on(self) -> None:
        """It has emptied."""
        assert self.transport.producer is not None
        self.transport.producer.resumeProducing()

    def leave(self) -> None:
        self.protocol.connectionLost(Failure(connectionDone.value))


class ServiceCase(SynchronousTestCase):
    """Collects warnings."""

    def setUp(self) -> None:
        self.warnings: list[str] = []
        self.logged: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            self.logged.append(formatEvent(event))
            if event["log_level"] is LogLevel.warn:
                self.warnings.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def assert_framed_garbage_ends_it(self, service: IPipeService) -> None:
        """Whatever is no frame ends that connection with a reason, and another guest notices nothing."""
        other = Guest(service)
        other.received()
        for garbage in (b"zzzz", b"list-sensors", b"\0\0\0\0", b"ffff", b"0101" + b"x" * 257, b"00 4list"):
            guest = Guest(service)
            guest.feed(garbage)
            self.assertTrue(guest.closed, garbage)
            self.assertIn(f"{service.name}: a guest's connection is closed", self.warnings.pop())
            guest.feed(b"more that came with it")
        self.assertFalse(other.closed)
        other.leave()
