"""adbd on the qemu pipe: one pipe always stands ready for the next ADB server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.adb.daemon import AdbDaemon
from anbox_tw.errors import AnboxError
from anbox_tw.guest._state import ACCEPT, START, PipeHandshake
from anbox_tw.network import RetryPolicy, abort_transport, hand_over
from anbox_tw.qemu._wire import encode_identification

__all__ = ["ADBD_PORT", "PipeAdbd"]

ADBD_PORT = 5555
"""The argument of the pipe's name: where adbd would listen without a pipe."""

CONNECT_TIMEOUT_S = 5.0
"""A UNIX socket on this machine answers at once or not at all."""

RETRY = RetryPolicy(first_delay=0.1, factor=1.7, max_delay=3.0)
"""Between attempts to open a pipe; a session that comes back is found within 3 s."""


class _Pipe(Protocol):
    """One pipe until its host is there.

    Attributes:
        host: fires with the first bytes of the host's stream, or fails when the pipe ends before.
    """

    def __init__(self) -> None:
        self._handshake = PipeHandshake()
        self.host: Deferred[bytes] = Deferred(lambda _: abort_transport(self.transport))

    def connectionMade(self) -> None:
        assert self.transport is not None
        # The identification in one write of its own, as a guest's HAL sends it.
        self.transport.write(encode_identification("qemud:adb", str(ADBD_PORT)))
        self.transport.write(ACCEPT)

    def dataReceived(self, data: bytes) -> None:
        try:
            came = self._handshake.receive_data(data)
        except AnboxError as error:
            self._fail(Failure(error))
            abort_transport(self.transport)
            return
        if came is not None and not self.host.called:
            self.host.callback(came.rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._fail(reason)

    def _fail(self, reason: Failure) -> None:
        if not self.host.called:
            self.host.errback(reason)


class _Opening(Factory):
    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Pipe()


class PipeAdbd(Service):
    """Serves ADB on the session's pipe, for ever.

    Args:
        reactor: connects and tells the time.
        path: of the pipe, ``/dev/qemu_pipe``.
        daemon: makes a transport for each host.
        on_standing: called when the first pipe stands: the session may now show the device.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, path: str, daemon: AdbDaemon, on_standing: Callable[[], object] = lambda: None
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._daemon = daemon
        self._on_standing = on_standing
        self._task: Deferred[None] | None = None
        self.hosts = 0
        """How many hosts have come so far."""

    def startService(self) -> None:
        if self.running:
            return
        super().startService()
        self._task = ensureDeferred(self._run())
        self._task.addErrback(self._ended)

    def stopService(self) -> Deferred[None]:
        """Close the standing pipe, and stop the daemon with all it serves."""
        if not self.running:
            return succeed(None)
        super().stopService()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return self._daemon.stop()

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError, ConnectingCancelledError):
            self._log.failure("adbd's pipe failed", failure)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._serve_next()
                failures = 0
            except (ConnectError, ConnectionClosed, AnboxError, OSError) as error:
                failures += 1
                if failures == 1:
                    self._log.info(
                        "adbd: the pipe {path} is not there: {error}", path=self._path, error=error
                    )
                await deferLater(self._reactor, RETRY.delay(failures))

    async def _serve_next(self) -> None:
        """Open a pipe, wait for a host however long that takes, and hand the pipe to a transport."""

        endpoint = UNIXClientEndpoint(self._reactor, os.fspath(self._path), timeout=CONNECT_TIMEOUT_S)
        pipe: Any = await endpoint.connect(_Opening())
        waiting = pipe.host
        on_standing, self._on_standing = self._on_standing, lambda: None
        on_standing()
        rest: bytes = await waiting
        self.hosts += 1
        self._log.info("adbd: host {number} is here", number=self.hosts)
        transport: IProtocol = self._daemon.build_transport()
        pipe.transport.write(START)
        hand_over(pipe.transport, transport, rest)
