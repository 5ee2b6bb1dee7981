"""What a relay's socket asks of its reactor: each change once."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReadWriteDescriptor
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from anbox_tw.network._raw_socket import AF_UNIX, RawSocket


class Asked:
    """A reactor that notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append(name)


class RawSocketTests(SynchronousTestCase):
    def setUp(self) -> None:
        near, self.far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(self.far.close)
        self.asked = Asked()
        self.lost: list[Failure] = []
        self.raw = RawSocket(near, self.asked)
        self.raw.protocol = self

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)

    def readConnectionLost(self) -> None:
        self.asked.calls.append("end")

    def test_it_is_what_a_reactor_serves(self) -> None:
        self.assertTrue(verifyObject(IReadWriteDescriptor, self.raw))
        self.assertTrue(verifyObject(IHalfCloseableDescriptor, self.raw))
        self.assertEqual((self.raw.family, self.raw.socket.gettimeout()), (AF_UNIX, 0))

    def test_each_change_is_asked_for_once(self) -> None:
        raw = self.raw
        for change in (raw.stopReading, raw.startReading, raw.startReading, raw.stopReading, raw.stopReading):
            change()
        for change in (raw.stopWriting, raw.startWriting, raw.startWriting, raw.stopWriting, raw.stopWriting):
            change()
        self.assertEqual(self.asked.calls, ["addReader", "removeReader", "addWriter", "removeWriter"])

    def test_after_the_end_of_the_input_it_can_be_read_no_more(self) -> None:
        """The reactor has taken it out by then."""
        self.raw.startReading()
        self.raw.readConnectionLost(Failure(ConnectionDone()))
        self.raw.stopReading()
        self.assertEqual(self.asked.calls, ["addReader", "end"])

    def test_lost_by_the_reactor(self) -> None:
        self.raw.startReading()
        self.raw.startWriting()
        self.raw.connectionLost(Failure(ConnectionDone()))
        self.raw.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.asked.calls, ["addReader", "addWriter"])
        self.assertEqual(len(self.lost), 1)
        self.assertEqual(self.raw.socket.fileno(), -1)

    def test_lost_by_the_relay(self) -> None:
        self.raw.startReading()
        self.raw.startWriting()
        self.raw.lose(Failure(ConnectionDone()))
        self.assertEqual(self.asked.calls, ["addReader", "addWriter", "removeReader", "removeWriter"])
        self.assertEqual(len(self.lost), 1)
