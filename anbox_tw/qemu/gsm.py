"""``qemud:gsm``: the modem that the guest's RIL talks to.

Several connections share one modem. What happens in the network is told to all of them: ``RING`` for every change of the
calls, registration, messages, USSD; a connection is not told of what it did itself, as with the emulator.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.device import Change, Device, Message, SimStatus
from anbox_tw.device.phone import TECHNOLOGIES
from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._guest_connection import GuestConnection
from anbox_tw.qemu.errors import SlowGuest
from anbox_tw.qemu.modem._nitz import local_zone
from anbox_tw.qemu.modem._pdu import Deliver, StatusReport, Submit, split_text
from anbox_tw.qemu.modem._sim import SimCard
from anbox_tw.qemu.modem.commands import AtSession

__all__ = ["GsmService"]

MAX_PENDING = 512
"""PDUs that wait for a guest that takes them: two of the longest messages. Newer ones are refused then."""

MAX_LATE = 64
"""Reports that one connection may have missed by not reading, of those that do not replace each other."""

MAX_FRAGMENTS = 32
"""Messages of which the guest has sent some parts, but not all; the oldest is forgotten."""

Zone = Callable[[float], tuple[int, bool, str]]


class _Connection(GuestConnection):
    service = "qemud:gsm"

    def __init__(self, modem: GsmService) -> None:
        super().__init__()
        self.modem = modem
        self.session = AtSession(modem)
        self._replaced: dict[str, bytes] = {}
        self._late: deque[bytes] = deque()
        self._behind: list[bytes] = []

    def guest_sent(self, data: bytes) -> None:
        with self.modem.acting(self):
            answers = self.session.receive_data(data)
        behind, self._behind = self._behind, []
        if answers or behind:
            self.write(b"".join((*answers, *behind)))
        if self.session.routed:
            self.modem.deliver_pending()

    def report(self, data: bytes, key: str = "") -> None:
        """Tell the guest something unasked; while it does not read, the last one with a ``key`` is kept."""
        if self.modem.actor is self:
            self._behind.append(data)  # what its own command brings about comes behind the answer
        elif not self.blocked:
            self.write(data)
        elif key:
            self._replaced[key] = data
        elif len(self._late) >= MAX_LATE:
            self.end(SlowGuest(f"the guest has not read {MAX_LATE} reports"))
        else:
            self._late.append(data)

    def caught_up(self) -> None:
        late = [*self._late, *self._replaced.values()]
        self._late.clear()
        self._replaced.clear()
        self.write(b"".join(late))
        self.modem.deliver_pending()


class _Acting:
    def __init__(self, modem: GsmService, connection: _Connection) -> None:
        self._modem, self._connection = modem, connection

    def __enter__(self) -> None:
        self._before, self._modem.actor = self._modem.actor, self._connection

    def __exit__(self, *exc_info: object) -> None:
        self._modem.actor = self._before


@attrs.define
class _Fragments:
    total: int
    parts: dict[int, str] = attrs.field(factory=dict)


@implementer(IPipeService)
class GsmService:
    """The modem: a view of the device's phone, calls and messages.

    Args:
        device: whose.
        wall_time: seconds since 1970.
        zone: the zone of a time.
    """

    name = "qemud:gsm"
    _log = Logger()

    def __init__(
        self, device: Device, wall_time: Callable[[], float] = time.time, zone: Zone = local_zone
    ) -> None:
        self.device = device
        self.sim = SimCard()
        self.actor: _Connection | None = None
        self._wall_time = wall_time
        self._zone = zone
        self._connections: list[_Connection] = []
        self._pending: deque[tuple[int, bytes]] = deque()
        self._unacknowledged: deque[int] = deque(maxlen=MAX_PENDING)
        self._fragments: dict[tuple[str, int], _Fragments] = {}
        self._reference = 0
        device.phone.observe(self._phone_changed)
        device.calls.observe(self._calls_changed)
        device.messages.observe(self._messages_changed)

    @property
    def guests(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        connection = _Connection(self)
        self._connections.append(connection)
        connection.on_lost(lambda: self._connections.remove(connection))
        return connection

    # -- what the sessions need --

    def acting(self, connection: _Connection) -> _Acting:
        """A context in which what changes is the doing of ``connection``."""
        return _Acting(self, connection)

    def zone(self) -> tuple[float, int, bool, str]:
        """The time and the zone, for ``%CTZV``."""
        now = self._wall_time()
        return (now, *self._zone(now))

    def submitted(self, message: Submit) -> None:
        """Take a (part of a) message from the guest; a complete one is told to the device."""
        number, part = message.receiver, message.part
        if part.reference is None:
            self._sent(message, part.text, 1)
            return
        key = (number, part.reference)
        fragments = self._fragments.get(key)
        if fragments is None or fragments.total != part.total:
            if len(self._fragments) >= MAX_FRAGMENTS:
                del self._fragments[next(iter(self._fragments))]
            fragments = self._fragments[key] = _Fragments(part.total)
        fragments.parts[part.number] = part.text
        if len(fragments.parts) == fragments.total:
            del self._fragments[key]
            self._sent(message, "".join(fragments.parts[n] for n in sorted(fragments.parts)), part.total)

    def acknowledged(self, right: bool) -> None:
        """The guest has taken, or refused, the oldest PDU."""
        if not self._unacknowledged:
            return
        message_id = self._unacknowledged.popleft()
        if not right:
            self.device.messages.mark(message_id, "refused")
        elif message_id not in self._unacknowledged and all(message_id != m for m, _ in self._pending):
            self.device.messages.mark(message_id, "acknowledged")

    # -- messages to the guest --

    def deliver_pending(self) -> None:
        """Give what waits to the guests that read and want it."""
        phone = self.device.phone.state
        if not phone.radio or phone.sim is SimStatus.ABSENT:
            return
        while self._pending:
            takers = [c for c in self._takers() if not c.blocked]
            if not takers:
                return
            message_id, pdu = self._pending.popleft()
            for taker in takers:
                taker.report(b"+CMT: 0\r\n" + pdu.hex().upper().encode("ascii") + b"\r\n")
            self._unacknowledged.append(message_id)
            if all(message_id != waiting for waiting, _ in self._pending):
                self.device.messages.mark(message_id, "delivered")

    def _takers(self) -> list[_Connection]:
        wanting = [c for c in self._connections if c.session.routed]
        # A plain client never says what it wants; the emulator would tell it.
        return wanting or [c for c in self._connections if c.session.routed is None]

    def _messages_changed(self, change: Change) -> None:
        if change.kind != "deliver":
            return
        message: Message = change.value
        if message.pdu:
            pdus = [bytes.fromhex(message.text)]
        else:
            self._reference = self._reference % 255 + 1
            quarters, _, _ = self._zone(message.time)
            parts = split_text(message.text, self._reference)
            pdus = [
                Deliver(message.number, part, message.time, quarters, more=part.number < part.total).encode()
                for part in parts
            ]
        if len(self._pending) + len(pdus) > MAX_PENDING:
            self._log.warn("gsm: a message is refused, since {count} PDUs wait", count=len(self._pending))
            self.device.messages.mark(message.id, "refused", len(pdus))
            return
        self.device.messages.mark(message.id, "waiting", len(pdus))
        self._pending += [(message.id, pdu) for pdu in pdus]
        self.deliver_pending()

    def _sent(self, message: Submit, text: str, parts: int) -> None:
        self.device.messages.sent(message.receiver, text, parts)
        own = self.device.phone.state.number
        if message.receiver.lstrip("+") in (own, own[-4:]):
            self.device.messages.deliver(own, text)
        if message.status_report:
            now = self._wall_time()
            report = StatusReport(message.receiver, message.reference, now, now).encode()
            for connection in self._connections:
                if connection.session.reports:
                    line = b"+CDS: %d\r\n" % (len(report) - 1)
                    connection.report(line + report.hex().upper().encode("ascii") + b"\r\n")

    # -- reports --

    def _others(self) -> list[_Connection]:
        return [connection for connection in self._connections if connection is not self.actor]

    def _calls_changed(self, change: Change) -> None:
        if "calls" in change.fields:
            for connection in self._others():
                connection.report(b"RING\r", "RING")

    def _phone_changed(self, change: Change) -> None:
        fields, state = change.fields, self.device.phone.state
        if change.kind == "ussd-reply":
            for connection in self._connections:
                connection.report(_line(connection.session.ussd(change.value)))
        for connection in self._others():
            session = connection.session
            if fields & {"voice", "area", "cell", "radio", "selected", "selection"} and session.voice_mode:
                connection.report(_line(session.voice_registration()), "+CREG")
            if fields & {"data", "area", "cell", "radio", "network_type"} and session.data_mode:
                connection.report(_line(session.data_registration(full=False)), "+CGREG")
            if "technology" in fields:
                number = TECHNOLOGIES.index(state.technology)
                connection.report(_line(f"+CTEC: {number}"), "+CTEC")
            if "subscription" in fields:
                connection.report(_line(f"+CCSS: {state.subscription}"), "+CCSS")
            if "prl_version" in fields:
                connection.report(_line(f"+WPRL: {state.prl_version}"), "+WPRL")
        if fields & {"radio", "sim"}:
            self.deliver_pending()


def _line(text: str) -> bytes:
    return text.encode("latin-1", "replace") + b"\r"
