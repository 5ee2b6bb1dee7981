"""The guest's radio interface layer: what Android's ``reference-ril`` does on ``qemud:gsm``, command by command.

From ``hardware/ril/reference-ril`` (``atchannel.c``, ``reference-ril.c``). One command at a time; a line is read up to CR or LF, and is the
command's if it begins with what the command expects, else something that the network says by itself. As the RIL's, these calls block: they are
for a process or thread of their own.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator

import attrs

from anbox_tw.errors import PeerError, TimedOut
from anbox_tw.guest.hal import QemuPipe
from anbox_tw.qemu.modem._at import decode_string, encode_string, parameters
from anbox_tw.qemu.modem._pdu import Deliver, PduError, StatusReport, Submit, parse_pdu, split_text

__all__ = ["AtChannel", "AtReply", "Call", "ReceivedSms", "Ril", "Unsolicited"]

MAX_RESPONSE_BYTES = 8192
"""``MAX_AT_RESPONSE`` of ``atchannel.c``."""

HANDSHAKES = 8
"""``HANDSHAKE_RETRY_COUNT``."""

_SUCCESS = ("OK", "CONNECT")
_FAILURE = ("ERROR", "+CMS ERROR:", "+CME ERROR:", "NO CARRIER", "NO ANSWER", "NO DIALTONE")
_TWO_LINES = ("+CMT:", "+CDS:", "+CBM:")

CALL_STATES = ("active", "held", "dialing", "alerting", "incoming", "waiting")

REGISTRATIONS = ("unregistered", "home", "searching", "denied", "unknown", "roaming")


@attrs.frozen
class AtReply:
    """How a command ended.

    Attributes:
        lines: that were its own, before the last one.
        final: the last line: ``OK``, ``ERROR``, ``+CME ERROR: ...``
    """

    lines: tuple[str, ...]
    final: str

    @property
    def success(self) -> bool:
        """Whether it did what it was to do."""
        return self.final.startswith(_SUCCESS)

    def values(self) -> list[str]:
        """The parameters of the only line, behind its prefix.

        Raises:
            PeerError: the command failed, or said nothing.
        """
        if not self.success or len(self.lines) != 1:
            raise PeerError(f"the modem answers {self.final} to a question", "see the session's log")
        return parameters(self.lines[0].partition(":")[2])


@attrs.frozen
class Unsolicited:
    """What the network says by itself.

    Attributes:
        line: as it came.
        pdu: the second line of messages.
    """

    line: str
    pdu: str = ""


class AtChannel:
    """Commands and answers, as ``atchannel.c``.

    Args:
        pipe: open, to the modem.
        timeout: seconds for each answer.
    """

    def __init__(self, pipe: QemuPipe, timeout: float = 30.0) -> None:
        self._pipe = pipe
        self._timeout = timeout
        self._buffer = b""
        self.unsolicited: deque[Unsolicited] = deque(maxlen=1000)

    def command(
        self, command: str, prefix: str = "", *, numeric: bool = False, pdu: str | None = None
    ) -> AtReply:
        """Send a command, and wait for its end.

        Args:
            command: from ``AT`` on, without its CR.
            prefix: of the lines that are its answer.
            numeric: its answer is a line that begins with a digit.
            pdu: what is sent behind the prompt.

        Raises:
            TimedOut: the modem says nothing.
            NotRunning: it is gone.
            PeerError: a line is too long.
        """
        self._pipe.write(command.encode("ascii") + b"\r")
        lines: list[str] = []
        deadline = time.monotonic() + self._timeout
        while True:
            line = self._read_line(deadline)
            if line == "> " and pdu is not None:
                self._pipe.write(pdu.encode("ascii") + b"\x1a")
                pdu = None
            elif line.startswith(_TWO_LINES):
                self.unsolicited.append(Unsolicited(line, self._read_line(deadline)))
            elif line.startswith((*_SUCCESS, *_FAILURE)):
                return AtReply(tuple(lines), line)
            elif (prefix and line.startswith(prefix)) or (numeric and not lines and line[:1].isdigit()):
                lines.append(line)
            else:
                self.unsolicited.append(Unsolicited(line))

    def next_unsolicited(self, timeout: float) -> Unsolicited:
        """What the network says next.

        Raises:
            TimedOut: nothing, within so many seconds.
            NotRunning: the modem is gone.
        """
        if self.unsolicited:
            return self.unsolicited.popleft()
        deadline = time.monotonic() + timeout
        line = self._read_line(deadline)
        if line.startswith(_TWO_LINES):
            return Unsolicited(line, self._read_line(deadline))
        return Unsolicited(line)

    def close(self) -> None:
        """End it."""
        self._pipe.close()

    def _read_line(self, deadline: float) -> str:
        while True:
            self._buffer = self._buffer.lstrip(b"\r\n")
            if self._buffer == b"> ":  # the prompt of other modems has no end
                self._buffer = b""
                return "> "
            found = re.search(rb"[\r\n]", self._buffer)
            if found is not None:
                line, self._buffer = self._buffer[: found.start()], self._buffer[found.end() :]
                return line.decode("latin-1")
            if len(self._buffer) > MAX_RESPONSE_BYTES:
                raise PeerError("a line of the modem is too long")
            self._buffer += self._pipe.read(MAX_RESPONSE_BYTES, max(0.0, deadline - time.monotonic()))


@attrs.frozen
class Call:
    """A line of ``+CLCC``.

    Attributes:
        id: of the call.
        incoming: whether the other side called.
        state: ``active``, ``held``, ``dialing``, ``alerting``, ``incoming``, ``waiting``.
        multiparty: whether it is part of a conference.
        number: of the other side.
    """

    id: int
    incoming: bool
    state: str
    multiparty: bool
    number: str


@attrs.frozen
class ReceivedSms:
    """A whole message.

    Attributes:
        number: of the sender.
        text: what it says.
        time: seconds since 1970.
    """

    number: str
    text: str
    time: float


class Ril:
    """The radio, initialised as ``initializeCallback``, ``onRadioPowerOn`` and ``onSIMReady`` do it.

    Args:
        path: of the pipe's socket.
        timeout: seconds for each answer.
        messages: whether messages to the guest come here; else they wait for somebody else. Reports come in any case.

    Attributes:
        channel: to the modem.
        network_time: the last ``%CTZV``, or an empty string.

    Raises:
        NotRunning: no session serves the socket.
        PeerError: the modem does not answer as it should.
    """

    def __init__(self, path: str, timeout: float = 30.0, *, messages: bool = True) -> None:
        self._route = "1,2,2,1,1" if messages else "1,0,0,1,1"
        self.channel = AtChannel(QemuPipe(path, "qemud:gsm", timeout), timeout)
        self.network_time = ""
        self._parts: dict[tuple[str, int], dict[int, str]] = {}
        self._events: deque[tuple[str, object]] = deque()
        try:
            self._initialise()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        self.channel.close()

    def __enter__(self) -> Ril:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _initialise(self) -> None:
        command = self.channel.command
        if not any(command("ATE0Q0V1").success for _ in range(HANDSHAKES)):
            raise PeerError("the modem does not shake hands")
        if command("AT+CTEC?", "+CTEC:").success:
            command("AT+CTEC=?", "+CTEC:")
        for line in ("ATE0Q0V1", "ATS0=0", "AT+CMEE=1"):
            command(line)
        if not command("AT+CREG=2").success:
            command("AT+CREG=1")
        for line in (
            "AT+CGREG=1",
            "AT+CCWA=1",
            "AT+CMOD=0",
            "AT+CMUT=0",
            "AT+CSSN=0,1",
            "AT+COLP=0",
            'AT+CSCS="HEX"',
            "AT+CUSD=1",
            "AT+CGEREP=1,0",
            "AT+CMGF=0",
            "AT%CPI=3",
            "AT%CSTAT=1",
        ):
            command(line)
        if command("AT+CFUN?", "+CFUN:").values()[0] != "1" and not command("AT+CFUN=1").success:
            raise PeerError("the modem's radio cannot be switched on")
        command("AT%CPHS=1")
        command("AT%CTZV=1")
        if self.sim_status() == "READY":
            command("AT+CSMS=1", "+CSMS:")
            command(f"AT+CNMI={self._route}")
        self._sort()

    # -- questions --

    def sim_status(self) -> str:
        """``READY``, ``SIM PIN``, ``SIM PUK``, ``ABSENT``, ..."""
        return self.channel.command("AT+CPIN?", "+CPIN:").values()[0]

    def registration(self) -> str:
        """As ``RIL_REQUEST_VOICE_REGISTRATION_STATE``: ``home``, ``roaming``, ``searching``, ..."""
        return REGISTRATIONS[int(self.channel.command("AT+CREG?", "+CREG:").values()[1])]

    def data_registration(self) -> str:
        """Likewise for packet data."""
        return REGISTRATIONS[int(self.channel.command("AT+CGREG?", "+CGREG:").values()[1])]

    def operator(self) -> tuple[str, str, str] | None:
        """Long name, short name and number; None without a network."""
        reply = self.channel.command("AT+COPS=3,0;+COPS?;+COPS=3,1;+COPS?;+COPS=3,2;+COPS?", "+COPS:")
        if not reply.success or len(reply.lines) != 3:
            return None
        names = [parameters(line.partition(":")[2])[2] for line in reply.lines]
        return names[0], names[1], names[2]

    def signal(self) -> tuple[int, int]:
        """Strength (0 to 31, or 99) and bit error rate (0 to 7, or 99)."""
        values = self.channel.command("AT+CSQ", "+CSQ:").values()
        return int(values[0]), int(values[1])

    def imsi(self) -> str:
        """Of the SIM card."""
        reply = self.channel.command("AT+CIMI", numeric=True)
        return reply.lines[0] if reply.lines else ""

    def calls(self) -> list[Call]:
        """All calls, as ``RIL_REQUEST_GET_CURRENT_CALLS``."""
        found = []
        for line in self.channel.command("AT+CLCC", "+CLCC:").lines:
            call_id, incoming, state, _, multiparty, number = parameters(line.partition(":")[2])[:6]
            found.append(
                Call(int(call_id), incoming == "1", CALL_STATES[int(state)], multiparty == "1", number)
            )
        return found

    # -- what a user does --

    def dial(self, number: str) -> bool:
        """Call; what comes of it is told by ``ring`` events and `calls`."""
        return self.channel.command(f"ATD{number};").success

    def answer(self) -> bool:
        """Take the call that rings."""
        return self.channel.command("ATA").success

    def reject(self) -> bool:
        """Refuse it."""
        return self.channel.command("ATH").success

    def hang_up(self, call_id: int) -> bool:
        """End a call."""
        return self.channel.command(f"AT+CHLD=1{call_id}").success

    def swap(self) -> bool:
        """Hold the active call and take the other."""
        return self.channel.command("AT+CHLD=2").success

    def send_sms(self, number: str, text: str, *, status_report: bool = False) -> int:
        """Send a message; returns how many parts it took.

        Raises:
            PeerError: the modem refuses a part.
        """
        parts = split_text(text, int(time.monotonic() * 10) & 0xFF)
        for part in parts:
            pdu = Submit(number, part, status_report=status_report).encode()
            reply = self.channel.command(f"AT+CMGS={len(pdu) - 1}", "+CMGS:", pdu=pdu.hex().upper())
            if not reply.success:
                raise PeerError(f"the modem refuses the message: {reply.final}")
        return len(parts)

    def send_ussd(self, text: str) -> bool:
        """Send a USSD text; the answer is a ``ussd`` event."""
        string, scheme = encode_string(text, "HEX")
        return self.channel.command(f'AT+CUSD=1,"{string}",{scheme}').success

    def start_data(self, apn: str) -> list[str]:
        """Bring up a data context as ``RIL_REQUEST_SETUP_DATA_CALL``; returns the addresses of the active ones."""
        for line in (
            f'AT+CGDCONT=1,"IP","{apn}",,0,0',
            "AT+CGQREQ=1",
            "AT+CGQMIN=1",
            "AT+CGEREP=1,0",
            "AT+CGACT=1,0",
        ):
            self.channel.command(line)
        self.channel.command("ATD*99***1#")
        active = {
            parameters(line.partition(":")[2])[0]
            for line in self.channel.command("AT+CGACT?", "+CGACT:").lines
        }
        lines = self.channel.command("AT+CGDCONT?", "+CGDCONT:").lines
        contexts = [parameters(line.partition(":")[2]) for line in lines]
        return [context[3] for context in contexts if context[0] in active]

    # -- what happens --

    def events(self, timeout: float) -> Iterator[tuple[str, object]]:
        """What happens: ``ring`` (None), ``sms`` (`ReceivedSms`), ``report`` (`StatusReport`), ``ussd`` (text, or None for
        "the network gave up"), ``registration`` (None), ``time`` (text); ends when nothing does for so many seconds.
        """
        while True:
            while self._events:
                yield self._events.popleft()
            try:
                self._take(self.channel.next_unsolicited(timeout))
            except TimedOut:
                return
            self._sort()

    def wait_for(self, kind: str, timeout: float = 30.0) -> object:
        """Wait for an event of a kind; others are kept for later.

        Raises:
            TimedOut: it does not come, and nothing else does for so many seconds.
        """
        others = []
        try:
            for found, value in self.events(timeout):
                if found == kind:
                    return value
                others.append((found, value))
            raise TimedOut(f"no {kind} within {timeout:g} s")
        finally:
            self._events.extendleft(reversed(others))

    def _sort(self) -> None:
        while self.channel.unsolicited:
            self._take(self.channel.unsolicited.popleft())

    def _take(self, unsolicited: Unsolicited) -> None:
        line = unsolicited.line
        if line.startswith(("+CMT:", "+CDS:")):
            self._take_pdu(unsolicited.pdu)
        elif line.startswith("%CTZV:"):
            self.network_time = line.partition(":")[2].strip()
            self._events.append(("time", self.network_time))
        elif line.startswith(("RING", "+CRING:", "NO CARRIER", "+CCWA")):
            self._events.append(("ring", None))
        elif line.startswith(("+CREG:", "+CGREG:")):
            self._events.append(("registration", None))
        elif line.startswith("+CUSD:"):
            values = parameters(line.partition(":")[2])
            scheme = int(values[2]) if len(values) > 2 else 15
            self._events.append(
                ("ussd", decode_string(values[1], "HEX", scheme) if len(values) > 1 else None)
            )

    def _take_pdu(self, text: str) -> None:
        try:
            pdu = parse_pdu(bytes.fromhex(text), to_network=False)
        except (PduError, ValueError):
            self.channel.command("AT+CNMA=2")
            return
        # As the framework does it, each part is acknowledged.
        self.channel.command("AT+CNMA=1")
        if isinstance(pdu, StatusReport):
            self._events.append(("report", pdu))
        elif isinstance(pdu, Deliver):
            if pdu.part.reference is None:
                self._events.append(("sms", ReceivedSms(pdu.sender, pdu.part.text, pdu.time)))
                return
            parts = self._parts.setdefault((pdu.sender, pdu.part.reference), {})
            parts[pdu.part.number] = pdu.part.text
            if len(parts) == pdu.part.total:
                del self._parts[pdu.sender, pdu.part.reference]
                whole = "".join(parts[number] for number in sorted(parts))
                self._events.append(("sms", ReceivedSms(pdu.sender, whole, pdu.time)))
