"""The forwards of a session: added, listed, removed, and kept for the next start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.errors import AlreadyRunning, AnboxError
from anbox_tw.interfaces import IRedirections
from anbox_tw.network import Connections, RelayResult, Shaper, TcpListener, UnixListener
from anbox_tw.session.forwards.by_adb import AdbWay
from anbox_tw.session.forwards.datagrams import DatagramListener
from anbox_tw.session.forwards.errors import BadSpec, ForwardError, NoSuchForward
from anbox_tw.session.forwards.guest import GuestSockets
from anbox_tw.session.forwards.specs import LOOPBACK, Listen, Target, parse_listen, parse_target
from anbox_tw.session.forwards.store import ForwardStore, Kept
from anbox_tw.session.forwards.streams import StreamCreator

__all__ = ["MAX_FORWARDS", "VIAS", "Forward", "Forwards"]

MAX_FORWARDS = 256
"""Listening sockets of one session; people have a handful, device farms some dozen per device."""

MAX_CONNECTIONS = 1024
"""Of one forward at once; each takes two descriptors."""

VIAS = ("auto", "direct", "adb")

STOP_GRACE_S = 1.0
"""What a peer that does not read gets when a forward is removed."""


@attrs.define(eq=False)
class Forward:
    """One forward.

    Attributes:
        listen: where, with the port that was chosen instead of 0.
        target: where to.
        via: the way that is wanted: ``auto``, ``direct`` or ``adb``.
        persistent: it is kept for the next start.
        accepted: connections (for ``udp``: peers) so far.
        failed: of these the target was not reached.
        to_guest: bytes, of connections that have ended.
        from_guest: likewise.
        last_error: why the last one that failed did.
        problem: why it does not listen, although it is kept; empty: it listens.
    """

    listen: Listen
    target: Target
    via: str
    persistent: bool
    relays: Connections = attrs.field(repr=False)
    listener: Any = attrs.field(default=None, repr=False)
    accepted: int = 0
    failed: int = 0
    to_guest: int = 0
    from_guest: int = 0
    last_error: str = ""
    problem: str = ""

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self.relays)

    def ended(self, result: RelayResult) -> None:
        """A connection has ended."""
        self.to_guest += result.counters.a_to_b
        self.from_guest += result.counters.b_to_a

    def count(self) -> tuple[int, int]:
        """Bytes to the guest and from it, of all connections."""
        to_guest, from_guest = self.to_guest, self.from_guest
        for each in self.relays:
            to_guest += each.counters.a_to_b
            from_guest += each.counters.b_to_a
        return to_guest, from_guest

    def failure(self, why: str) -> None:
        """The target was not reached for a connection."""
        self.failed += 1
        self.last_error = why


@implementer(IRedirections)
class Forwards(Service):
    """Keeps the forwards of a session.

    Args:
        reactor: an fd reactor.
        guest: opens sockets in the container.
        adb: the way by adbd; None: there is none.
        shaper: makes streams that go the direct way slow.
        store: keeps those that are persistent; None: none can be.
        tell: called with what happened and the forward, for the session's events.

    Attributes:
        adb: as given.
        shaper: likewise.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        guest: GuestSockets,
        *,
        adb: AdbWay | None = None,
        shaper: Shaper | None = None,
        store: ForwardStore | None = None,
        tell: Callable[[str, Forward], object] = lambda what, forward: None,
    ) -> None:
        self.setName("forwards")
        self._reactor = reactor
        self._guest = guest
        self.adb = adb
        self.shaper = shaper or Shaper(reactor)
        self._store = store
        self._tell = tell
        self._forwards: dict[Listen, Forward] = {}
        guest.on_lost(self._container_gone)

    # -- life --

    def startService(self) -> None:
        """Begin with what is kept. A forward that cannot listen stays in the list, with its problem."""
        if self.running:
            return
        super().startService()
        for kept in self._store.load() if self._store is not None else ():
            try:
                forward = self._make(kept.listen, kept.target, kept.via, persistent=True)
            except AnboxError as error:
                self._log.warn("a forward that was kept is left out: {error}", error=error)
                continue
            try:
                self._listen(forward)
            except AnboxError as error:
                forward.problem = str(error)
                self._log.warn("the forward {listen}: {error}", listen=forward.listen, error=error)
            self._forwards[forward.listen] = forward

    def stopService(self) -> Deferred[None]:
        """Close all; fires when all is closed. What is kept stays kept."""
        super().stopService()
        forwards, self._forwards = list(self._forwards.values()), {}
        closing = [self._close(forward) for forward in forwards]
        self._guest.close()
        if self.adb is not None:
            closing.append(self.adb.close())
        return gatherResults(closing, consumeErrors=True).addCallback(lambda _: None)

    # -- what others ask --

    def __iter__(self) -> Any:
        """The forwards, oldest first."""
        return iter(list(self._forwards.values()))

    def __len__(self) -> int:
        return len(self._forwards)

    def add(
        self, listen: str | Listen, target: str | Target, *, via: str = "auto", persistent: bool = False
    ) -> Forward:
        """Add a forward, which listens when this returns.

        Args:
            listen: where; see `anbox_tw.session.forwards.specs`.
            target: where to in the guest.
            via: ``direct``, ``adb``, or ``auto`` for the direct way where there is one.
            persistent: there again at the next start of the instance.

        Returns:
            The forward; its ``listen`` has the port that was chosen instead of 0.

        Raises:
            BadSpec: it cannot be understood, or not be done.
            AlreadyRunning: the place is taken.
            AnboxError: it cannot listen.
        """
        if not self.running:
            raise ForwardError("the session does not run")
        listen = parse_listen(listen) if isinstance(listen, str) else listen
        target = parse_target(target) if isinstance(target, str) else target
        forward = self._make(listen, target, via, persistent=persistent)
        if persistent and self._store is None:
            raise ForwardError("this session has no place to keep forwards in", "add it without --persist")
        self._listen(forward)
        self._forwards[forward.listen] = forward
        try:
            if persistent:
                self._save()
        except AnboxError:
            del self._forwards[forward.listen]
            self._close(forward)
            raise
        self._tell("added", forward)
        return forward

    def remove(self, listen: str | Listen) -> Deferred[Forward]:
        """Remove a forward, also from what is kept, and end its connections.

        Returns:
            Fires with what it was when all of it is closed.

        Raises:
            NoSuchForward: there is none.
        """
        listen = parse_listen(listen) if isinstance(listen, str) else listen
        forward = self._forwards.pop(listen, None)
        if forward is None:
            raise NoSuchForward(f"nothing is forwarded from {listen}", "see anbox forward --list")
        if forward.persistent:
            self._save()
        self._tell("removed", forward)
        return self._close(forward).addCallback(lambda _: forward)

    def remove_all(self) -> Deferred[list[Forward]]:
        """Remove all; fires with what they were when all is closed."""
        return gatherResults([self.remove(listen) for listen in list(self._forwards)])

    def way(self, via: str, target: Target) -> str:
        """Which way the next connection goes: ``direct``, ``adb``, or empty: there is none now."""
        if via != "adb" and self._guest.available:
            return "direct"
        if via != "direct" and not target.datagrams and self.adb is not None and self.adb.available:
            return "adb"
        return ""

    def problem(self, via: str) -> str:
        """Why there is no way."""
        return "the guest's adbd is not there" if via == "adb" else self._guest.problem

    # -- the emulator console's --

    def redirections(self) -> list[tuple[str, int, int]]:
        """Protocol, host port and guest port of each forward that the console's ``redir list`` can show."""
        return [
            (forward.listen.kind, forward.listen.port, forward.target.port)
            for forward in self
            if forward.listen.kind == forward.target.kind
            and forward.listen.address == LOOPBACK
            and not forward.problem
        ]

    def redirect(self, protocol: str, host_port: int, guest_port: int) -> Forward:
        """The console's ``redir add``: from the host's loopback to the guest's; see `add`."""
        if protocol not in ("tcp", "udp"):
            raise BadSpec(f"{protocol!r} is neither tcp nor udp")
        return self.add(Listen(protocol, port=host_port), Target(protocol, port=guest_port))

    def end_redirection(self, protocol: str, host_port: int) -> Deferred[Forward]:
        """The console's ``redir del``; see `remove`."""
        return self.remove(Listen(protocol, port=host_port))

    # -- inside --

    def _make(self, listen: Listen, target: Target, via: str, *, persistent: bool) -> Forward:
        if via not in VIAS:
            raise BadSpec(f"{via!r} is no way to the guest", f"choose one of {', '.join(VIAS)}")
        if (listen.kind == "udp") != target.datagrams:
            raise BadSpec(
                f"{listen} cannot be forwarded to {target}",
                "datagrams go from udp to udp, streams to streams",
            )
        if via == "adb":
            target.adb_service  # noqa: B018  # raises where there is none
        if len(self._forwards) >= MAX_FORWARDS:
            raise ForwardError(f"there are {MAX_FORWARDS} forwards, which is the limit", "remove some")
        if listen in self._forwards:
            there = self._forwards[listen]
            raise AlreadyRunning(
                f"{listen} is forwarded to {there.target} already",
                f"remove it first: anbox forward --remove {listen}",
            )
        relays = Connections(MAX_CONNECTIONS, name=f"forward {listen}", clock=self._reactor)
        return Forward(listen, target, via, persistent, relays)

    def _listen(self, forward: Forward) -> None:
        listen = forward.listen
        creator = StreamCreator(self._reactor, self._guest, forward, self)
        accepted = Connections(MAX_CONNECTIONS, name=f"callers of {listen}", clock=self._reactor)
        listener: Any
        if listen.kind == "unix":
            listener = UnixListener(
                self._reactor,
                listen.path,
                creator,
                mode=0o600,
                registry=accepted,
                name=f"forward {listen}",
                close_grace=STOP_GRACE_S,
            )
            listener.startService()
        elif listen.kind == "udp":
            listener = DatagramListener(self._reactor, self._guest, forward)
            listener.startService()
            forward.listen = attrs.evolve(listen, port=listener.get_port())
        else:
            listener = TcpListener(
                self._reactor,
                listen.port,
                creator,
                interface=listen.address,
                registry=accepted,
                name=f"forward {listen}",
                close_grace=STOP_GRACE_S,
            )
            listener.startService()
            forward.listen = attrs.evolve(listen, port=listener.get_port())
        forward.listener = listener
        forward.problem = ""

    def _close(self, forward: Forward) -> Deferred[Any]:
        listener, forward.listener = forward.listener, None
        # The listener first: a datagram's flow is its.
        closing = [listener.stopService()] if listener is not None else []
        closing.append(forward.relays.close_all("the forward is removed", grace=STOP_GRACE_S))
        return gatherResults(closing, consumeErrors=True)

    def _container_gone(self) -> None:
        """Sockets of ours in the container would keep its network alive."""
        for forward in self:
            for each in forward.relays:
                each.abort("the container is gone")

    def _save(self) -> None:
        if self._store is not None:
            self._store.save(
                [Kept(forward.listen, forward.target, forward.via) for forward in self if forward.persistent]
            )
