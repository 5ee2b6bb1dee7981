"""``qemud:adb``: brings the guest's adbd to a TCP port of the host, where an ADB server finds it.

The guest opens a pipe, says ``accept`` and waits. When an ADB server connects to the port it is told
``ok``; it answers ``start``, opens the next pipe, and from then on this one carries ADB packets
(:mod:`anbox_tw.qemu._state` has the table). Hosts and guests wait for each other in two queues, first come first served.

The port is the odd one of a pair, as with Android's emulator, because adb only looks at those; the even one
is the console's. The pair is reserved as long as the service runs, so the serial stays the same when the
guest restarts. The odd port listens only while a guest is there: a refused port is quiet, an
open one without a guest would be an offline device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.errors import AlreadyRunning, NetworkError
from anbox_tw.interfaces import IConnectionCreator, IPipeService
from anbox_tw.network import (
    DelegateCreator,
    NullCreator,
    PortAllocator,
    Relay,
    RelayResult,
    TcpListener,
    abort_transport,
    relay,
)
from anbox_tw.qemu._state import Accepted, AdbHandshake, GuestData, HandshakeState, Started
from anbox_tw.qemu.adb_server_link import AdbServerLink, serial_of
from anbox_tw.qemu.errors import HandshakeError

__all__ = ["AdbPipeService"]

ACCEPT_TIMEOUT_S = 30.0
"""A guest says ``accept`` right after the identification."""

START_TIMEOUT_S = 10.0
"""Between our ``ok`` and the guest's ``start`` it registers a transport, nothing more."""

HOST_WAIT_S = 10.0
"""How long a host's connection waits for a guest's next pipe, which a guest opens within its ``start``."""

MAX_GUEST_PIPES = 32
"""A guest has one standing pipe and one for each ADB server that is connected; few hosts run several servers."""

MAX_WAITING_HOSTS = 16
"""ADB servers that may wait for a pipe at once."""

MAX_HOST_BYTES = 64 * 1024
"""Kept of what a host sends before the guest's ``start``. A server sends one CNXN of at most 4120 bytes and then waits;
at this size reading stops, and the rest waits in the kernel."""

HOST_CLOSE_GRACE_S = 1.0
"""What was already sent to an ADB server when the session stops is worth no longer wait."""


class _Guest(Protocol):
    """One pipe of the guest until its ``start``."""

    _log = Logger()

    def __init__(self, service: AdbPipeService, number: int) -> None:
        self.service = service
        self.number = number
        self.handshake = AdbHandshake()
        self.host: _Host | None = None
        self.rest = b""
        self._timeout: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._limit(ACCEPT_TIMEOUT_S, "accept")

    def dataReceived(self, data: bytes) -> None:
        try:
            events = self.handshake.receive_data(data)
        except HandshakeError as error:
            self.abort(str(error))
            return
        self._handle(events)

    def grant(self, host: _Host) -> None:
        """Tell the guest that ``host`` is there."""
        assert self.transport is not None
        self.host = host
        # The state comes first: a guest that answers from within the write is understood.
        told = self.handshake.grant()
        self._limit(START_TIMEOUT_S, "start")
        self.transport.write(told)
        self.dataReceived(b"")

    def refuse(self, reason: str) -> None:
        """Tell the guest that no host will come, and close."""
        assert self.transport is not None
        self._log.info("adb: guest pipe {number} is refused: {reason}", number=self.number, reason=reason)
        self._end_limit()
        self.transport.write(self.handshake.refuse())
        self.transport.loseConnection()

    def abort(self, reason: str) -> None:
        """Close at once."""
        assert self.transport is not None
        self._log.warn("adb: guest pipe {number} is closed: {reason}", number=self.number, reason=reason)
        self._end_limit()
        self.handshake.refuse()
        abort_transport(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end_limit()
        self.service.guest_gone(self)

    def _handle(self, events: list[Accepted | Started | GuestData]) -> None:
        started = False
        for event in events:
            if isinstance(event, Accepted):
                self._end_limit()
                self.service.guest_waits(self)
            elif isinstance(event, Started):
                self._end_limit()
                started = True
            else:
                self.rest += event.data
        if started:
            self.service.guest_started(self)

    def _limit(self, seconds: float, word: str) -> None:
        self._end_limit()
        self._timeout = self.service.clock.callLater(
            seconds, self.abort, f"no {word} from the guest within {seconds:g} s"
        )

    def _end_limit(self) -> None:
        timeout, self._timeout = self._timeout, None
        if timeout is not None and timeout.active():
            timeout.cancel()


class _Host(Protocol):
    """A host's connection until its guest's ``start``."""

    _log = Logger()

    def __init__(self, service: AdbPipeService, number: int) -> None:
        self.service = service
        self.number = number
        self.guest: _Guest | None = None
        self.received = b""
        self._timeout: IDelayedCall | None = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        self._timeout = self.service.clock.callLater(HOST_WAIT_S, self._timed_out)
        self.service.host_came(self)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.received += data
        if len(self.received) >= MAX_HOST_BYTES:
            self.transport.pauseProducing()  # type: ignore[attr-defined]  # a TCP transport is a producer

    def paired(self, guest: _Guest) -> None:
        """A guest has been told of this host."""
        self.guest = guest
        self.end_limit()

    def abort(self, reason: str) -> None:
        """Close at once."""
        assert self.transport is not None
        self._log.info("adb: host connection {number} is closed: {reason}", number=self.number, reason=reason)
        self.end_limit()
        abort_transport(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end_limit()
        self.service.host_gone(self)

    def end_limit(self) -> None:
        """Wait without a limit of its own: the guest's handshake has one."""
        timeout, self._timeout = self._timeout, None
        if timeout is not None and timeout.active():
            timeout.cancel()

    def _timed_out(self) -> None:
        self.abort(f"the guest opened no pipe for it within {HOST_WAIT_S:g} s")


@implementer(IPipeService)
class AdbPipeService(Service):
    """Joins the guest's adb pipes with the connections of ADB servers.

    Args:
        reactor: listens, and tells the time.
        ports: where the pair of ports comes from.
        link: is told at which port the device is.
        console: serves the even port of the pair; by default it refuses every connection.
        wanted: the even port of the pair to take; ``None`` takes the first free one.
        reserved: called with the even port each time a pair is taken.
    """

    name = "qemud:adb"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        ports: PortAllocator,
        link: AdbServerLink,
        *,
        console: IConnectionCreator | None = None,
        wanted: int | None = None,
        reserved: Callable[[int], object] = lambda port: None,
    ) -> None:
        self.clock = reactor
        self._reserved = reserved
        self._reactor = reactor
        self._ports = ports
        self._link = link
        self._console = console or NullCreator("console", "this session has no emulator console")
        self._wanted = wanted
        self._console_port: TcpListener | None = None
        self._listener: TcpListener | None = None
        self._closing: set[Deferred[Any]] = set()
        self._numbers = 0
        self._guests: set[_Guest] = set()
        self._hosts: set[_Host] = set()
        self._waiting_guests: deque[_Guest] = deque()
        self._waiting_hosts: deque[_Host] = deque()
        self._relays: set[Relay] = set()
        self._moved = (0, 0)
        self._idle: list[Deferred[None]] = []
        self.port = 0
        """The reserved ADB port, odd; 0 while the service does not run."""

    @property
    def serial(self) -> str:
        """How adb names the device, or an empty string while the service does not run."""
        return serial_of(self.port) if self.port else ""

    @property
    def guest_port(self) -> int:
        """The port at which the guest's adbd is reached now; 0 while there is none."""
        return self.port if self._listener is not None else 0

    @property
    def joined(self) -> int:
        """How many ADB servers are connected with the guest."""
        return len(self._relays)

    def traffic(self) -> tuple[int, int]:
        """Bytes of ADB to the guest and from it, since the service was made."""
        to_guest, from_guest = self._moved
        for joined in self._relays:
            from_guest += joined.counters.a_to_b
            to_guest += joined.counters.b_to_a
        return to_guest, from_guest

    def describe(self) -> dict[str, Any]:
        """Ports and counts for lists and logs; JSON-able."""
        return {
            "port": self.port,
            "serial": self.serial,
            "listening": self._listener is not None,
            "guests_waiting": len(self._waiting_guests),
            "hosts_waiting": len(self._waiting_hosts),
            "joined": self.joined,
        }

    def startService(self) -> None:
        """Reserve the ports.

        Raises:
            NetworkError: the wanted pair, or every pair, is taken.
        """
        if not self.running:
            self._reserve(self._wanted)
            super().startService()

    def stopService(self) -> Deferred[None]:
        """Close the ports and every connection; fires when all are closed."""
        if not self.running:
            return succeed(None)
        super().stopService()
        self._link.unregister()
        for guest in list(self._guests):
            guest.refuse("the session stops")
        for host in list(self._hosts):
            host.abort("the session stops")
        for joined in list(self._relays):
            joined.close("the session stops")
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        self._check_idle()
        return idle.addCallback(lambda _: self._closed()).addCallback(self._release)

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve one more pipe of the guest; its argument, the guest's own port, says nothing to us."""
        pipes = len(self._guests) + len(self._relays)
        if not self.running or pipes >= MAX_GUEST_PIPES:
            self._log.warn(
                "adb: a guest pipe is refused: {pipes} are open, {limit} may be",
                pipes=pipes,
                limit=MAX_GUEST_PIPES if self.running else 0,
            )
            return None
        self._numbers += 1
        guest = _Guest(self, self._numbers)
        self._guests.add(guest)
        return guest

    # -- told by the protocols --

    def guest_waits(self, guest: _Guest) -> None:
        """The guest has said ``accept``."""
        try:
            self._listen()
        except NetworkError as error:
            self._log.error("adb: no host port: {error}", error=error)
            guest.refuse(str(error))
            return
        self._waiting_guests.append(guest)
        self._match()

    def guest_started(self, guest: _Guest) -> None:
        """The guest has said ``start``: from here on the two connections are one."""
        host = guest.host
        assert host is not None
        self._guests.discard(guest)
        self._hosts.discard(host)
        joined = relay(
            guest.transport,
            host.transport,
            clock=self._reactor,
            leftover_a=guest.rest,
            leftover_b=host.received,
            name="adb",
            # Neither side of ADB knows half-open connections, and a guest that ignored one would hold the device.
            half_close=False,
        )
        self._relays.add(joined)
        self._log.info("adb: guest pipe {guest} serves host {host}", guest=guest.number, host=host.number)
        joined.when_done().addCallback(self._relay_done, joined, guest.number, host.number)

    def guest_gone(self, guest: _Guest) -> None:
        """A guest's pipe has ended before its ``start``."""
        self._guests.discard(guest)
        if guest in self._waiting_guests:
            self._waiting_guests.remove(guest)
        if guest.host is not None and guest.host in self._hosts:
            guest.host.abort("its guest pipe ended")
        self._check_idle()

    def host_came(self, host: _Host) -> None:
        """An ADB server has connected."""
        self._hosts.add(host)
        self._waiting_hosts.append(host)
        self._match()

    def host_gone(self, host: _Host) -> None:
        """A host's connection has ended before it was joined."""
        self._hosts.discard(host)
        if host in self._waiting_hosts:
            self._waiting_hosts.remove(host)
        if host.guest is not None and host.guest in self._guests:
            # It was told ``ok``, which cannot be taken back.
            host.guest.abort("its host connection ended")
        self._check_idle()

    # -- inside --

    def _reserve(self, wanted: int | None) -> None:
        claim = self._ports.claim(wanted)
        # Nobody's allocator takes the pair while its even port is held; the odd one must be closed until a
        # guest is there, or ADB servers that scan would find an offline device.
        claim.take(1).close()
        self._console_port = TcpListener(self._reactor, claim.take(0), self._console, name="console")
        self._console_port.startService()
        self.port = claim.first + 1
        self._reserved(claim.first)

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = self._listen_at(self.port)
        if listener is None:
            # Somebody else took the odd port meanwhile: move to another pair.
            self._log.warn("adb: port {port} was taken by another program", port=self.port)
            self._close(self._console_port)
            self._reserve(None)
            listener = self._listen_at(self.port)
            if listener is None:
                raise NetworkError(f"TCP port {self.port} was taken while it was being claimed", "try again")
        self._listener = listener
        self._link.register(self.port)

    def _listen_at(self, port: int) -> TcpListener | None:
        listener = TcpListener(
            self._reactor,
            port,
            DelegateCreator(self._host_protocol),
            name="adb",
            close_grace=HOST_CLOSE_GRACE_S,
        )
        try:
            listener.startService()
        except AlreadyRunning:
            return None
        return listener

    def _host_protocol(self, address: IAddress) -> Protocol | None:
        if not self.running or len(self._waiting_hosts) >= MAX_WAITING_HOSTS:
            self._log.warn("adb: a host connection is refused: {limit} wait already", limit=MAX_WAITING_HOSTS)
            return None
        self._numbers += 1
        return _Host(self, self._numbers)

    def _match(self) -> None:
        while self._waiting_guests and self._waiting_hosts:
            if self._waiting_guests[0].handshake.state is not HandshakeState.WAITING:
                # It is closed already, and its loss is told in a later turn of the reactor.
                self._waiting_guests.popleft()
                continue
            guest, host = self._waiting_guests.popleft(), self._waiting_hosts.popleft()
            host.paired(guest)
            guest.grant(host)

    def _relay_done(self, result: RelayResult, joined: Relay, guest: int, host: int) -> None:
        self._relays.discard(joined)
        to_guest, from_guest = self._moved
        self._moved = (to_guest + result.counters.b_to_a, from_guest + result.counters.a_to_b)
        self._log.info(
            "adb: guest pipe {guest} and host {host} have ended, {reason}: {from_guest} and {from_host} bytes",
            guest=guest,
            host=host,
            reason=result.reason,
            from_guest=result.counters.a_to_b,
            from_host=result.counters.b_to_a,
        )
        self._check_idle()

    def _check_idle(self) -> None:
        """Without a guest, close the port and whoever waits at it."""
        present = any(guest.handshake.state is not HandshakeState.CLOSED for guest in self._guests)
        if not present and not self._relays and self._listener is not None:
            self._link.unregister()
            self._close(self._listener)
            self._listener = None
            for host in list(self._waiting_hosts):
                host.abort("the guest is gone")
        if not self._guests and not self._hosts and not self._relays:
            waiting, self._idle = self._idle, []
            for waiter in waiting:
                waiter.callback(None)

    def _close(self, listener: TcpListener | None) -> None:
        if listener is not None:
            closing = listener.stopService()
            self._closing.add(closing)
            closing.addBoth(lambda _: self._closing.discard(closing))

    def _closed(self) -> Deferred[Any]:
        self._close(self._listener)
        self._close(self._console_port)
        self._listener = self._console_port = None
        waiting = []
        for closing in list(self._closing):
            waiter: Deferred[None] = Deferred()
            waiting.append(waiter)
            closing.addBoth(waiter.callback)
        return gatherResults(waiting)

    def _release(self, _: object) -> None:
        self.port = 0
