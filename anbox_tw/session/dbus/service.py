"""Keeps a session on a bus: connects, takes the name, answers, tells changes, and comes back when the bus does."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, succeed
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.device.part import Change
from anbox_tw.errors import AnboxError, HostLacks, NotRunning
from anbox_tw.session.dbus.addresses import BusAddress, addresses_of
from anbox_tw.session.dbus.anbox import (
    APPLICATION_MANAGER,
    DEVICE,
    PATH,
    SENSOR_NAMES,
    SENSORS_INTERFACE,
    anbox_interfaces,
    bus_name,
    error_name,
)
from anbox_tw.session.dbus.objects import BusError, Call, ObjectTree, Variant

if TYPE_CHECKING:
    from anbox_tw.session.dbus.connection import BusConnection
    from anbox_tw.session.service import SessionService

__all__ = ["SIGNAL_INTERVAL_S", "DBusService"]

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 30.0

GREETING_TIMEOUT_S = 10.0
"""From the connection to the bus's answer to Hello."""

CLOSE_TIMEOUT_S = 2.0

SIGNAL_INTERVAL_S = 0.1
"""Changes within it are one signal: a sensor that a scenario moves 100 times a second is told 10 times."""

MAX_CALLS = 256
"""Under way at once; one more is refused. A launch waits up to 30 s for its guest."""

MAX_KNOWN_SENDERS = 1024
"""Whose user id is remembered; names on a bus are used once, so an id does not change."""

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")

NAME_OWNERS = (1, 4)
"""Answers of RequestName: we own it now, or did already; 2 is that we wait for it."""


class DBusService(Service):
    """A session's presence on a bus.

    Args:
        reactor: connects and tells the time.
        session: what is offered.
        bus: ``session`` or ``system``.
        environ: says where the bus is.

    Attributes:
        name: the well-known name.
        owned: whether it is ours now.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, session: SessionService, bus: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self._reactor = reactor
        self._session = session
        self._bus = bus
        self._environ = os.environ if environ is None else environ
        self.name = bus_name(session.paths.instance)
        self.owned = False
        self._allowed = {0, os.geteuid()}
        self._tree = ObjectTree(error_name, self._may_call)
        self._tree.add(PATH, anbox_interfaces(session))
        self._interfaces = {interface.name: interface for interface in anbox_interfaces(session)}
        self._connection: BusConnection | None = None
        self._trying: BusConnection | None = None
        self._senders: OrderedDict[str, int] = OrderedDict()
        self._asking: dict[str, list[Deferred[int]]] = {}
        self._calls = 0
        self._task: Deferred[None] | None = None
        self._told = ""
        self._changed: dict[str, set[str]] = {}
        self._timer: IDelayedCall | None = None
        self._last_signal = float("-inf")
        self._ends: list[Callable[[], None]] = []

    @property
    def state(self) -> str:
        """In a word: ``off``, ``connecting``, ``waiting`` for the name, or ``owner``."""
        if not self.running:
            return "off"
        if self._connection is None:
            return "connecting"
        return "owner" if self.owned else "waiting"

    def startService(self) -> None:
        """Begin to connect; the session does not wait for it."""
        if self.running:
            return
        super().startService()
        self._ends = [
            self._session.device.observe(self._device_changed),
            self._session.observe(self._session_changed),
        ]
        self._task = ensureDeferred(self._run())
        self._task.addErrback(self._ended)

    def stopService(self) -> Deferred[None]:
        """Leave the bus; fires when the connection is closed."""
        if not self.running:
            return succeed(None)
        super().stopService()
        for end in self._ends:
            end()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._changed.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        connection = self._connection or self._trying
        if connection is None:
            return succeed(None)
        connection.close()
        abort = self._reactor.callLater(CLOSE_TIMEOUT_S, connection.abort)

        def lost(_: object) -> None:
            if abort.active():
                abort.cancel()

        return connection.when_lost().addCallback(lost)

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("D-Bus failed", failure)

    # -- the connection --

    async def _run(self) -> None:
        delay = FIRST_RETRY_S
        while True:
            try:
                connection = await self._connect()
            except AnboxError as error:
                self._tell_once(error)
                if isinstance(error, HostLacks):
                    return
            else:
                self._told = ""
                delay = FIRST_RETRY_S
                await connection.when_lost()
                self._connection = None
                self.owned = False
                self._senders.clear()
                self._log.info("The {bus} bus is gone; the session goes on without it", bus=self._bus)
            await deferLater(self._reactor, delay)
            delay = min(delay * 2, MAX_RETRY_S)

    def _tell_once(self, error: AnboxError) -> None:
        if error.cause != self._told:
            self._told = error.cause
            self._log.info("The session is not on D-Bus: {error}", error=error)

    async def _connect(self) -> BusConnection:
        """Try each address.

        Raises:
            HostLacks: txdbus is not installed.
            NotRunning: there is no bus.
        """
        try:
            from anbox_tw.session.dbus.connection import BusConnection
        except ImportError as error:
            raise HostLacks(f"txdbus is missing: {error}", "pip install 'anbox-tw[dbus]'") from error
        addresses = addresses_of(self._bus, self._environ)
        why = "no address is known (DBUS_SESSION_BUS_ADDRESS is not set)"
        for address in addresses:
            connection = BusConnection(self._reactor, self._called, self._signalled)
            self._trying = connection
            try:
                await self._greet(address, connection)
            except Exception as error:
                self._connection = None
                connection.abort()
                if not self.running:
                    raise CancelledError from error
                why = f"{address}: {error.cause if isinstance(error, AnboxError) else error}"
                continue
            return connection
        cure = "tap/org.anbox.conf is a policy that lets us be there" if self._bus == "system" else ""
        raise NotRunning(f"the {self._bus} bus cannot be used: {why}", cure)

    async def _greet(self, address: BusAddress, connection: BusConnection) -> None:
        await connectProtocol(address.endpoint(self._reactor), connection)
        await connection.ready.addTimeout(GREETING_TIMEOUT_S, self._reactor)
        self._connection = connection
        # 0x4 would be "do not queue": a second session gets the name when the first one leaves.
        answer = await connection.call(*BUS, "RequestName", "su", self.name, 0)
        ours = answer.body[0] in NAME_OWNERS
        # The bus has told us by a signal already when it is ours.
        if not ours or not self.owned:
            self._got_name(ours)

    def _got_name(self, ours: bool) -> None:
        self.owned = ours
        if ours:
            self._log.info("On the {bus} bus as {name}", bus=self._bus, name=self.name)
        else:
            self._log.warn(
                "{name} on the {bus} bus belongs to another program; we get it when that one leaves",
                name=self.name,
                bus=self._bus,
            )

    def _signalled(self, signal: Any) -> None:
        about_names = signal.sender == BUS[0] and signal.member in ("NameAcquired", "NameLost")
        if about_names and signal.body and signal.body[0] == self.name:
            self._got_name(signal.member == "NameAcquired")

    # -- calls to us --

    def _called(self, message: Any, wants_answer: bool) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._calls >= MAX_CALLS:
            if wants_answer:
                connection.reply_error(
                    message, "org.freedesktop.DBus.Error.LimitsExceeded", f"{MAX_CALLS} calls are under way"
                )
            return
        self._calls += 1
        answering = ensureDeferred(self._answer(connection, message, wants_answer))
        answering.addErrback(lambda failure: self._log.failure("D-Bus: an answer failed", failure))
        answering.addBoth(self._answered)

    def _answered(self, _: object) -> None:
        self._calls -= 1

    async def _answer(self, connection: BusConnection, message: Any, wants_answer: bool) -> None:
        call = Call(
            message.path,
            message.interface or "",
            message.member,
            message.signature or "",
            tuple(message.body or ()),
            message.sender or "",
        )
        try:
            signature, values = await self._tree.handle(call)
        except BusError as error:
            if wants_answer:
                connection.reply_error(message, error.code, error.cause)
        else:
            if wants_answer:
                connection.reply(message, signature, *map(_to_wire, values))

    async def _may_call(self, sender: str) -> bool:
        uid = self._senders.get(sender)
        if uid is None:
            waiting: Deferred[int] = Deferred()
            others = self._asking.setdefault(sender, [])
            others.append(waiting)
            if len(others) == 1:
                self._ask(sender)
            # One after the other, as they came: calls keep their order.
            uid = await waiting
        else:
            self._senders.move_to_end(sender)
        return uid in self._allowed

    def _ask(self, sender: str) -> None:
        assert self._connection is not None

        def answered(answer: Any) -> int:
            uid: int = answer.body[0]
            self._senders[sender] = uid
            while len(self._senders) > MAX_KNOWN_SENDERS:
                self._senders.popitem(last=False)
            return uid

        def unknown(failure: Failure) -> int:
            # Who has left by now needs no answer, and gets none.
            return -1

        def tell(uid: int) -> None:
            for waiting in self._asking.pop(sender):
                waiting.callback(uid)

        asking = self._connection.call(*BUS, "GetConnectionUnixUser", "s", sender)
        asking.addCallbacks(answered, unknown).addCallback(tell)

    # -- what we tell --

    def _device_changed(self, change: Change) -> None:
        if change.kind == "state":
            self._note(DEVICE, change.part)
        elif change.part == "sensors" and change.kind == "sensor":
            for title, name in SENSOR_NAMES.items():
                if name == change.value:
                    self._note(SENSORS_INTERFACE, title)

    def _session_changed(self, kind: str, name: str, detail: str) -> None:
        if kind == "level" and name == "booted":
            self._note(APPLICATION_MANAGER, "Ready")

    def _note(self, interface: str, what: str) -> None:
        if self._connection is None or not self.running:
            return
        self._changed.setdefault(interface, set()).add(what)
        if self._timer is None:
            delay = max(0.0, self._last_signal + SIGNAL_INTERVAL_S - self._reactor.seconds())
            self._timer = self._reactor.callLater(delay, self._send_changes)

    def _send_changes(self) -> None:
        self._timer = None
        self._last_signal = self._reactor.seconds()
        changes, self._changed = self._changed, {}
        connection = self._connection
        if connection is None:
            return
        for part in sorted(changes.pop(DEVICE, ())):
            state = json.dumps(self._session.device.part(part).as_dict(), ensure_ascii=False)
            connection.signal(PATH, DEVICE, "Changed", "ss", part, state)
        for interface, names in changes.items():
            properties = [self._interfaces[interface].property(name) for name in sorted(names)]
            values = {one.name: Variant(one.kind, one.get()) for one in properties if one and one.present()}
            connection.signal(
                *(PATH, "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as"),
                *(interface, _to_wire(values), []),
            )


def _to_wire(value: Any) -> Any:
    """A value as txdbus marshals it with the type that it must have."""
    from anbox_tw.session.dbus.connection import Struct

    if isinstance(value, Variant):
        return Struct.of(value.kind, value.value) if value.kind.startswith("(") else value.value
    if isinstance(value, dict):
        return {key: _to_wire(item) for key, item in value.items()}
    if isinstance(value, str):
        return value.replace("\0", "").encode(errors="replace").decode()
    return value
