from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.rpc._direct import send_directly, send_queued


class Transport:
    """What of a FileDescriptor is looked at."""

    connected = True
    disconnecting = False
    _writeDisconnecting = False

    def __init__(self, takes: Any = 1000) -> None:
        self.dataBuffer = b""
        self._tempDataBuffer: list[bytes] = []
        self.takes = takes
        self.direct = b""
        self.queued = b""

    def writeSomeData(self, data: bytes) -> Any:
        if isinstance(self.takes, int):
            self.direct += data[: self.takes]
            return min(self.takes, len(data))
        return self.takes

    def write(self, data: bytes) -> None:
        self.queued += data


class DirectTests(SynchronousTestCase):
    def check(self, transport: Transport, direct: bytes, queued: bytes) -> None:
        send_directly(transport, b"hello")
        self.assertEqual((transport.direct, transport.queued), (direct, queued))

    def test_what_the_kernel_takes(self) -> None:
        self.check(Transport(), b"hello", b"")
        self.check(Transport(2), b"he", b"llo")
        self.check(Transport(0), b"", b"hello")

    def test_lost_connection_is_left_to_the_transport(self) -> None:
        self.check(Transport(ConnectionLost()), b"", b"hello")

    def test_nothing_overtakes_what_is_queued(self) -> None:
        for name, value in (
            ("dataBuffer", b"x"),
            ("_tempDataBuffer", [b"x"]),
            ("disconnecting", True),
            ("_writeDisconnecting", True),
            ("connected", False),
        ):
            transport = Transport()
            setattr(transport, name, value)
            self.check(transport, b"", b"hello")

    def test_queued(self) -> None:
        transport = Transport()
        send_queued(transport, b"x")
        self.assertEqual((transport.direct, transport.queued), (b"", b"x"))
