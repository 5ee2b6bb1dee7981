"""Keeps one emulator registered with the ADB server of the host, for as long as both live.

The session never starts an ADB server. It holds one ``host:track-devices`` connection to it: its end
says that the server went away, its frames say how the server sees our device. Where the server
does not know the device, it is told with ``host:emulator:PORT``, as Android's emulator does when it starts.

A fresh server looks by itself at the odd ports 5555 to 5585 (``adb/client/transport_emulator.cpp``), so it is
given a moment before it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    TimeoutError,
    ensureDeferred,
    gatherResults,
    succeed,
)
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import PeerError
from anbox_tw.network import abort_transport
from anbox_tw.qemu._framing import QemudDecoder
from anbox_tw.qemu.adb_server_address import AdbServerAddress

__all__ = ["ABSENT", "NO_SERVER", "AdbServerLink", "console_port_of", "serial_of"]

NO_SERVER = "no server"
"""The state while no ADB server answers."""

ABSENT = "absent"
"""The state while the server does not list our device."""

RETRY_S = (0.1, 0.2, 0.3)
"""Waits between attempts to reach the server; the last one repeats. A refused connect on loopback costs about 100 us
of CPU, and a device must be back within 3 s of a new server."""

FIRST_FRAME_TIMEOUT_S = 5.0
"""A server that says nothing to ``track-devices`` for so long is given up, and tried again."""

ANNOUNCE_AFTER_S = (0.2, 1.0, 2.0, 4.0, 8.0)
"""Waits before the device is announced to a server that does not list it; the last one repeats."""

ANNOUNCE_TIMEOUT_S = 5.0
"""The server closes an announcement's connection when it has read it."""


def console_port_of(adb_port: int) -> int:
    """The even port that belongs to an odd ADB port."""
    return adb_port - 1


def serial_of(adb_port: int) -> str:
    """How adb names the emulator at ``adb_port``."""
    return f"emulator-{console_port_of(adb_port)}"


def _request(service: str) -> bytes:
    return b"%04x" % len(service) + service.encode()


def _check_other_end(transport: Any) -> None:
    # Connecting to a free loopback port from the ephemeral range can meet itself (TCP's simultaneous
    # open); it would look like a server, and keep the real one from binding.
    host = transport.getHost()
    if hasattr(host, "port") and host == transport.getPeer():
        abort_transport(transport)


class _Tracker(Protocol):
    """One ``track-devices`` connection.

    Attributes:
        first: fires at the first frame, or fails when there will be none.
        lost: fires when the connection has ended.
    """

    def __init__(self, on_devices: Callable[[dict[str, str]], None]) -> None:
        self._on_devices = on_devices
        self._status = b""
        self._frames = QemudDecoder()
        self.first: Deferred[None] = Deferred(self._cancelled)
        self.lost: Deferred[None] = Deferred(self._cancelled)
        self._is_cancelled = False

    def connectionMade(self) -> None:
        assert self.transport is not None
        _check_other_end(self.transport)
        self.transport.write(_request("host:track-devices"))

    def dataReceived(self, data: bytes) -> None:
        data, self._status = (self._status + data)[4:], (self._status + data)[:4]
        try:
            if not b"OKAY".startswith(self._status):
                raise PeerError(f"the ADB server answered {self._status!r} to track-devices")
            frames = self._frames.receive_data(data)
        except PeerError as error:
            if not self.first.called:
                self.first.errback(error)
            self.abort()
            return
        for frame in frames:
            pairs = (line.split("\t", 1) for line in frame.decode("utf-8", "replace").splitlines())
            self._on_devices({pair[0]: pair[-1] for pair in pairs})
            if not self.first.called:
                self.first.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._is_cancelled:
            # Whoever waited is told of the cancellation, and not of the loss that it brings about.
            return
        if not self.first.called:
            self.first.errback(reason)
        if not self.lost.called:
            self.lost.callback(None)

    def _cancelled(self, waiter: Deferred[None]) -> None:
        self._is_cancelled = True
        self.abort()

    def abort(self) -> None:
        """End the connection at once; harmless when it has ended."""
        abort_transport(self.transport)


class _Announcement(Protocol):
    """Says ``host:emulator:PORT`` and waits for the server to hang up, which it does when it has read it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.done: Deferred[None] = Deferred(self._cancelled)
        self._is_cancelled = False

    def connectionMade(self) -> None:
        assert self.transport is not None
        _check_other_end(self.transport)
        self.transport.write(_request(f"host:emulator:{self._port}"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._is_cancelled and not self.done.called:
            self.done.callback(None)

    def _cancelled(self, waiter: Deferred[None]) -> None:
        self._is_cancelled = True
        abort_transport(self.transport)


class _OneProtocol(Factory):
    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._protocol


class AdbServerLink(Service):
    """The session's side of the ADB server of this host.

    Args:
        reactor: for connections and time.
        address: where the server listens, or will.
    """

    _log = Logger()

    def __init__(self, reactor: Any, address: AdbServerAddress) -> None:
        self._reactor = reactor
        self.address = address
        self.state = NO_SERVER
        self._devices: dict[str, str] | None = None
        self._port: int | None = None
        self._observers: list[Callable[[str], None]] = []
        self._tasks: dict[str, Deferred[None]] = {}
        self._announced = 0

    @property
    def port(self) -> int | None:
        """The ADB port that is kept registered."""
        return self._port

    def observe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback`` with each new ``state``; returns what ends that.

        The state is :data:`NO_SERVER`, :data:`ABSENT`, or what the server says of our device:
        ``device``, ``offline``, ``unauthorized``, ...
        """
        self._observers.append(callback)
        return lambda: self._observers.remove(callback) if callback in self._observers else None

    def register(self, port: int) -> None:
        """Keep the device at ``port`` (odd, on loopback) registered from now on."""
        self._port = port
        self._end_task("announce")
        self._announced = 0
        self._consider()

    def unregister(self) -> None:
        """Announce nothing any more. The server finds out by itself that the port is closed."""
        self._port = None
        self._end_task("announce")
        self._consider()

    def startService(self) -> None:
        if not self.running:
            super().startService()
            self._start_task("track", self._keep_tracking())

    def stopService(self) -> Deferred[None]:
        super().stopService()
        ended = [self._end_task(name) for name in list(self._tasks)]
        self._devices = None
        self._consider()
        return gatherResults(ended).addCallback(lambda _: None)

    def _start_task(self, name: str, work: Coroutine[Deferred[Any], Any, None]) -> None:
        # The dictionary is written first: the work may end before ensureDeferred returns.
        task: Deferred[None] = ensureDeferred(work)
        if not task.called:
            self._tasks[name] = task

        def ended(result: Any) -> None:
            if self._tasks.get(name) is task:
                del self._tasks[name]
            if isinstance(result, Failure) and not result.check(CancelledError, ConnectingCancelledError):
                self._log.failure("The link to the ADB server failed in {task}", result, task=name)

        task.addBoth(ended)

    def _end_task(self, name: str) -> Deferred[None]:
        task = self._tasks.pop(name, None)
        if task is None:
            return succeed(None)
        done: Deferred[None] = Deferred()
        task.addBoth(lambda _: done.callback(None))
        task.cancel()
        return done

    async def _keep_tracking(self) -> None:
        failures = 0
        while True:
            try:
                await self._track()
                failures = 0
                self._log.info("The ADB server at {address} went away", address=str(self.address))
            except (ConnectError, ConnectionClosed, DNSLookupError, TimeoutError, PeerError) as error:
                failures += 1
                if failures == 1:
                    self._log.info(
                        "No ADB server at {address}: {error}", address=str(self.address), error=error
                    )
            self._devices = None
            self._end_task("announce")
            self._announced = 0
            self._consider()
            await deferLater(self._reactor, RETRY_S[min(failures, len(RETRY_S) - 1)])

    async def _track(self) -> None:
        tracker = _Tracker(self._devices_changed)
        await self.address.endpoint(self._reactor).connect(_OneProtocol(tracker))
        try:
            await tracker.first.addTimeout(FIRST_FRAME_TIMEOUT_S, self._reactor)
            self._log.info("Found the ADB server at {address}", address=str(self.address))
            await tracker.lost
        finally:
            tracker.abort()

    def _devices_changed(self, devices: dict[str, str]) -> None:
        self._devices = devices
        self._consider()

    def _consider(self) -> None:
        """Derive the state, tell it, and see to an announcement where one is needed."""
        if self._devices is None:
            state = NO_SERVER
        elif self._port is None:
            state = ABSENT
        else:
            state = self._devices.get(serial_of(self._port), ABSENT)
        needed = state == ABSENT and self._port is not None and self.running
        if not needed:
            self._end_task("announce")
            if state != NO_SERVER:
                self._announced = 0
        elif "announce" not in self._tasks:
            self._start_task("announce", self._keep_announcing())
        if state != self.state:
            self.state = state
            for observer in list(self._observers):
                observer(state)

    async def _keep_announcing(self) -> None:
        while self._port is not None:
            await deferLater(self._reactor, ANNOUNCE_AFTER_S[min(self._announced, len(ANNOUNCE_AFTER_S) - 1)])
            self._announced += 1
            announcement = _Announcement(self._port)
            try:
                await self.address.endpoint(self._reactor).connect(_OneProtocol(announcement))
                await announcement.done.addTimeout(ANNOUNCE_TIMEOUT_S, self._reactor)
            except (ConnectError, TimeoutError) as error:
                self._log.info("Announcing {port} failed: {error}", port=self._port, error=error)
