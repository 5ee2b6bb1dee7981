"""``adb forward``: listeners on the host that lead to a device."""

from __future__ import annotations

import os
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.adb.server.bridge import SocketSide, join
from anbox_tw.adb.server.devices import Device, DeviceRegistry
from anbox_tw.adb.server.errors import RequestFailed
from anbox_tw.adb.server.specs import HostSpec, parse_listener
from anbox_tw.adb.streams import AdbStream

__all__ = ["MAX_FORWARDS", "Forward", "Forwards"]

MAX_FORWARDS = 1024
"""Listening sockets of one server."""

MAX_PENDING_BYTES = 1 << 20
"""What a client may send before the device has answered; then it is held back."""


class _Forwarded(SocketSide):
    """One connection to a forward's listener."""

    _log = Logger()

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._early: list[bytes] = []
        self._early_size = 0
        self._opening: Deferred[AdbStream] | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        self._forward.connections.add(self)
        device = self._forward.device
        if device.transport is None:
            transport.loseConnection()
            return
        self._opening = device.transport.open_stream(self._forward.remote)
        self._opening.addCallbacks(self._opened, self._refused)

    def _opened(self, stream: AdbStream) -> None:
        self._opening = None
        self.stream = stream
        side = join(stream, self.transport)
        early, self._early = self._early, []
        for data in early:
            stream.write(data)
        if self._early_size >= MAX_PENDING_BYTES:
            self.transport.resumeProducing()  # type: ignore[union-attr]
        stream.start(side)

    def _refused(self, failure: Failure) -> None:
        self._opening = None
        self._log.debug("{forward}: {error}", forward=self._forward, error=failure.value)
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.write(data)
            return
        self._early.append(data)
        self._early_size += len(data)
        if self._early_size >= MAX_PENDING_BYTES:
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._forward.connections.discard(self)
        if self._opening is not None:
            self._opening.cancel()
        super().connectionLost(reason)


@attrs.define(eq=False)
class Forward:
    """One listener.

    Attributes:
        local: what the user asked for, with the port filled in.
        remote: the service on the device.
        device: where it leads.
        port: the listening port's number for TCP, otherwise 0.
        connections: what goes through it now.
    """

    local: str
    remote: str
    device: Device
    spec: HostSpec
    listening: IListeningPort | None = None
    port: int = 0
    connections: set[_Forwarded] = attrs.field(factory=set, repr=False)

    def line(self) -> str:
        """The forward's line in ``adb forward --list``."""
        return f"{self.device.serial} {self.local} {self.remote}\n"


class _ForwardFactory(Factory):
    noisy = False

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def buildProtocol(self, addr: IAddress | None) -> _Forwarded:
        return _Forwarded(self._forward)


class Forwards:
    """All forwards of one server."""

    _log = Logger()

    def __init__(self, reactor: Any, devices: DeviceRegistry) -> None:
        self._reactor = reactor
        self._forwards: dict[str, Forward] = {}
        devices.on_removed(self._device_removed)

    def __len__(self) -> int:
        return len(self._forwards)

    def listing(self) -> str:
        """All forwards of all devices."""
        return "".join(forward.line() for forward in self._forwards.values())

    async def add(self, local: str, remote: str, device: Device, *, rebind: bool) -> int | None:
        """Listen.

        Returns:
            The port of a new TCP listener, otherwise ``None``.

        Raises:
            RequestFailed: a spec is wrong, or nobody can listen there.
        """
        if remote.startswith("*"):
            raise RequestFailed(f"bad forward: {local};{remote}")
        existing = self._forwards.get(local)
        if existing is not None:
            if not rebind:
                raise RequestFailed("cannot rebind existing socket")
            existing.remote = remote
            existing.device = device
            return None
        if len(self._forwards) >= MAX_FORWARDS:
            raise RequestFailed(f"too many forwards: {MAX_FORWARDS}")
        forward = Forward(local, remote, device, parse_listener(local))
        if forward.spec.kind == "path":
            _unlink_stale(forward.spec.path)
        try:
            listening = await forward.spec.server_endpoint(self._reactor).listen(_ForwardFactory(forward))
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
            raise RequestFailed(f"cannot bind listener: {reason}") from error
        forward.listening = listening
        if forward.spec.kind == "tcp":
            address: Any = listening.getHost()
            forward.port = address.port
            forward.local = f"tcp:{forward.port}"
        self._forwards[forward.local] = forward
        return forward.port or None

    async def remove(self, local: str) -> None:
        """Stop listening; connections go on.

        Raises:
            RequestFailed: there is no such forward.
        """
        forward = self._forwards.pop(local, None)
        if forward is None:
            raise RequestFailed(f"listener '{local}' not found")
        await self._stop(forward)

    async def remove_all(self) -> None:
        """Stop listening everywhere."""
        forwards, self._forwards = self._forwards, {}
        for forward in forwards.values():
            await self._stop(forward)

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        forwards = list(self._forwards.values())
        await self.remove_all()
        for forward in forwards:
            for connection in list(forward.connections):
                transport: Any = connection.transport
                if transport is not None:
                    transport.abortConnection()

    async def _stop(self, forward: Forward) -> None:
        if forward.listening is not None:
            await maybeDeferred(forward.listening.stopListening)

    def _device_removed(self, device: Device) -> None:
        for local in [local for local, forward in self._forwards.items() if forward.device is device]:
            Deferred.fromCoroutine(self.remove(local)).addErrback(
                lambda failure: self._log.failure("cannot end a forward", failure)
            )


def _unlink_stale(path: str) -> None:
    # adb itself takes the place of whatever socket is there; a file that is no socket stays.
    import stat

    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except OSError:
        return
