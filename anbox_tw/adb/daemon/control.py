"""Services that act on adbd or the device itself (AOSP ``daemon/services.cpp``, ``restart_service.cpp``)."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from anbox_tw.adb._numbers import MAX_PORT, decimal
from anbox_tw.adb.streams import AdbStream
from anbox_tw.errors import AdbError

__all__ = ["DeviceControl", "Sink", "Source"]


@attrs.define(kw_only=True)
class DeviceControl:
    """What a host may do to the device. Each is refused, in adb's words where it has some, unless set.

    Attributes:
        root: restart as root; called after the answer. Not asked when this runs as root already.
        unroot: restart without root.
        reboot: called with ``bootloader``, ``recovery``, ... or an empty string.
        remount: called with the arguments; returns the text for the user.
        tcpip: listen on this port from now on.
        usb: stop listening on TCP.
        is_root: whether services act as root now.
    """

    root: Callable[[], None] | None = None
    unroot: Callable[[], None] | None = None
    reboot: Callable[[str], None] | None = None
    remount: Callable[[str], str] | None = None
    tcpip: Callable[[int], None] | None = None
    usb: Callable[[], None] | None = None
    is_root: Callable[[], bool] = lambda: os.geteuid() == 0

    def serve(self, word: str, argument: str) -> str:
        """Do what ``word`` says; the text for the host.

        Raises:
            AdbError: it is refused without a text, so that the host sees a closed stream.
        """
        answer: str = getattr(self, f"_{word}")(argument)
        return answer

    def _root(self, _argument: str) -> str:
        if self.is_root():
            return "adbd is already running as root\n"
        if self.root is None:
            return "adbd cannot run as root in production builds\n"
        self.root()
        return "restarting adbd as root\n"

    def _unroot(self, _argument: str) -> str:
        if not self.is_root():
            return "adbd not running as root\n"
        if self.unroot is None:
            return "adbd cannot give up root here\n"
        self.unroot()
        return "restarting adbd as non root\n"

    def _reboot(self, argument: str) -> str:
        if self.reboot is None:
            return f"reboot ({argument}) failed\n"
        self.reboot(argument)
        return ""

    def _remount(self, argument: str) -> str:
        if self.remount is None:
            return "remount failed\n"
        return self.remount(argument)

    def _tcpip(self, argument: str) -> str:
        port = decimal(argument, MAX_PORT)
        if not port:
            return f"invalid port {argument[:40]}\n"
        if self.tcpip is None:
            raise AdbError("listening on another TCP port is not allowed here")
        self.tcpip(port)
        return f"restarting in TCP mode port: {port}\n"

    def _usb(self, _argument: str) -> str:
        if self.usb is None:
            raise AdbError("there is no USB here")
        self.usb()
        return "restarting in USB mode\n"


def _count(argument: str) -> int:
    count = decimal(argument, 10**18)
    if count is None:
        raise AdbError(f"not a number of bytes: {argument[:40]!r}")
    return count


class Sink(Protocol):
    """``sink:N``: swallows N bytes, then closes.

    Args:
        argument: how many bytes, in decimal.
    """

    takes_buffers = True
    transport: AdbStream

    def __init__(self, argument: str) -> None:
        self._left = _count(argument)

    def connectionMade(self) -> None:
        """The stream is open."""
        if not self._left:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """Swallow."""
        self._left -= len(data)
        if self._left <= 0:
            self.transport.loseConnection()


@implementer(IPullProducer)
class Source(Protocol):
    """``source:N``: sends N zero bytes, then closes.

    Args:
        argument: how many bytes, in decimal.
    """

    transport: AdbStream
    _ZEROS = memoryview(bytes(1024 * 1024))

    def __init__(self, argument: str) -> None:
        self._left = _count(argument)

    def connectionMade(self) -> None:
        """The stream is open."""
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send one more packet."""
        size = min(self._left, self.transport.transport.connection.max_payload)
        if not size:
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            return
        self._left -= size
        self.transport.write(self._ZEROS[:size])

    def stopProducing(self) -> None:
        """The stream is gone."""
        self._left = 0
