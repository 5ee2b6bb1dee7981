"""What the modem answers: every command of Android's ``reference-ril.c``, in the emulator's words (``android_modem.c``).

One `AtSession` is one connection: charset and the modes of registration reports are its own. Everything else belongs to the
device, which several connections share. A command that is not known, or not with these values, is answered ``ERROR``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from anbox_tw.device import (
    CallDirection,
    CallState,
    DeviceError,
    Refused,
    UssdState,
)
from anbox_tw.device.calls import MAX_CALLS
from anbox_tw.qemu.modem._at import (
    AtDecoder,
    Command,
    Form,
    Line,
    Text,
    decode_string,
    encode_string,
    parameters,
    split_commands,
)
from anbox_tw.qemu.modem._base import CME_NO_NETWORK, Answer, Failed, ModemHost, cme
from anbox_tw.qemu.modem._network import NetworkCommands
from anbox_tw.qemu.modem._nitz import nitz
from anbox_tw.qemu.modem._pdu import PduError, Submit, parse_pdu
from anbox_tw.qemu.modem._sim_commands import SimCommands

__all__ = ["AtSession", "ModemHost"]

EMERGENCY_NUMBERS = frozenset({"911", "112"})

_OPERATORS = "+COPS=3,0;+COPS?;+COPS=3,1;+COPS?;+COPS=3,2;+COPS?"
"""The RIL's question for the operator's three names, which the emulator knows as one command."""

_CALL_NUMBERS = {state: number for number, state in enumerate(CallState)}

_ACCEPTED: dict[str, frozenset[str]] = {
    "%CPHS": frozenset({"0", "1"}),
    "%CTZV": frozenset({"0", "1"}),
    "+CGQREQ": frozenset({"1"}),
    "+CGQMIN": frozenset({"1"}),
    "+CGEREP": frozenset({"0,0", "1,0", "2,0", "1", "2", "0"}),
    "+CMEE": frozenset({"0", "1", "2"}),
    "+CCWA": frozenset({"0", "1"}),
    "+CMOD": frozenset({"0"}),
    "+CMUT": frozenset({"0", "1"}),
    "+CSSN": frozenset({"0,0", "0,1", "1,0", "1,1"}),
    "+COLP": frozenset({"0", "1"}),
    "+CLIP": frozenset({"0", "1"}),
    "%CPI": frozenset({"0", "1", "2", "3"}),
    "%CSTAT": frozenset({"0", "1"}),
    "%CPRIM": frozenset({'"GMM","CONFIG MULTISLOT_CLASS=<10>"'}),
    "%DATA": frozenset({'2,"UART",1,,"SER","UART",0'}),
}
"""Settings that change nothing here: what they switch is always on, or there is none of it."""


class AtSession(NetworkCommands, SimCommands):
    """One connection's modem.

    Args:
        host: the service.

    Attributes:
        routed: whether messages come unasked (``+CNMI``); None until the guest has said.
        reports: whether status reports do.
    """

    def __init__(self, host: ModemHost) -> None:
        super().__init__(host)
        self._decoder = AtDecoder()
        self.routed: bool | None = None
        self.reports = False
        self._charset = "HEX"
        self._echo = False
        self._commands = self._table()

    def receive_data(self, data: bytes) -> list[bytes]:
        """Take the guest's next bytes; returns the answers.

        Raises:
            AtError: they cannot be commands.
        """
        self._decoder.receive_data(data)
        answers = []
        while (event := self._decoder.next_event()) is not None:
            answer = self._text(event) if isinstance(event, Text) else self._line(event)
            if answer is not None:
                answers.append(answer.encode("latin-1", "replace") + b"\r")
        return answers

    def ussd(self, text: str | None) -> str:
        """As ``+CUSD`` has it; None is "the network gave up"."""
        if text is None:
            return "+CUSD: 5"
        string, scheme = encode_string(text, self._charset)
        more = int(self._phone.state.ussd is UssdState.GUEST)
        return f'+CUSD: {more},"{string}",{scheme}'

    # -- lines --

    def _line(self, line: Line) -> str | None:
        commands = split_commands(line.text)
        if commands is None:
            return None  # noise; the emulator ignores it too
        echo = f"{line.text}\r" if self._echo else ""
        try:
            if line.text[2:] == _OPERATORS:
                information = list(self._three_names())
            else:
                information = []
                for number, command in enumerate(commands):
                    answer = self._run(command)
                    if answer is None:  # a prompt: only as the last one of a line
                        if number != len(commands) - 1:
                            raise Failed()
                        self._decoder.expect_text()
                        return f"{echo}> "
                    information += answer
        except Failed as failed:
            return echo + failed.answer
        except DeviceError:
            return f"{echo}ERROR"
        return echo + "".join(f"{text}\r" for text in information) + "OK"

    def _run(self, command: Command) -> Answer:
        handler = self._commands.get(command.name)
        if handler is not None:
            return handler(command)
        accepted = _ACCEPTED.get(command.name)
        if accepted is not None and command.form is Form.SET and command.value in accepted:
            return []
        raise Failed()

    def _text(self, text: Text) -> str:
        if text.text is None:
            return "OK"
        digits = re.sub(r"\s+", "", text.text)
        if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", digits, re.ASCII):
            return "+CMS ERROR: INVALID SMS PDU"
        try:
            message = parse_pdu(bytes.fromhex(digits), to_network=True)
        except PduError:
            return "+CMS ERROR: INVALID SMS PDU"
        if not isinstance(message, Submit) or not message.receiver:
            return "+CMS ERROR: BAD SMS RECEIVER ADDRESS"
        if self._phone.state.operator is None:
            return "+CMS ERROR: 331"  # no network service
        self._host.submitted(message)
        return "+CMGS: 0\rOK"

    def _table(self) -> dict[str, Callable[[Command], Answer]]:
        return {
            "A": self._answer,
            "D": self._dial,
            "E": self._set_echo,
            "H": self._hang_up,
            "I": lambda command: ["anbox-tw"],
            "Q": self._zero,
            "S0": self._zero,
            "V": lambda command: self._only(command, "1"),
            "Z": lambda command: [],
            "+CCHC": self._close_channel,
            "+CCHO": self._open_channel,
            "+CCSS": self._subscription,
            "+CFUN": self._radio,
            "+CGACT": self._activate,
            "+CGDCONT": self._contexts,
            "+CGLA": self._channel,
            "+CGREG": self._data_mode,
            "+CGSN": lambda command: self._plain(command, self._phone.state.imei),
            "+CHLD": self._hold,
            "+CIMI": lambda command: self._plain(command, self._phone.state.imsi),
            "+CLCC": self._list_calls,
            "+CMGD": self._no_answer,
            "+CMGF": self._message_format,
            "+CMGS": self._send_message,
            "+CMGW": self._store_message,
            "+CNMA": self._acknowledge,
            "+CNMI": self._route_messages,
            "+COPS": self._operator,
            "+CPIN": self._pin,
            "+CREG": self._voice_mode,
            "+CRSM": self._sim_file,
            "+CSCS": self._character_set,
            "+CSMS": self._message_service,
            "+CSQ": self._signal,
            "+CTEC": self._technology,
            "+CUSD": self._ussd,
            "+VTS": self._tone,
            "+WPRL": self._roaming_list,
            "+WRMP": self._roaming_preference,
            "+WSOS": self._emergency,
        }

    # -- general --

    def _zero(self, command: Command) -> Answer:
        if command.form is Form.READ and command.name == "S0":
            return ["000"]
        return self._only(command, "0", "")

    @staticmethod
    def _no_answer(command: Command) -> Answer:
        if command.form is not Form.SET or not re.fullmatch(r"[0-9]{1,3}(,[0-4])?", command.value, re.ASCII):
            raise Failed()
        return []

    def _set_echo(self, command: Command) -> Answer:
        self._only(command, "", "0", "1")
        self._echo = command.value == "1"
        return []

    def _character_set(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return [f'+CSCS: "{self._charset}"']
        if command.form is Form.TEST:
            return ['+CSCS: ("HEX","UCS2","GSM","IRA")']
        name = parameters(command.value)[0].upper()
        if command.form is not Form.SET or name not in ("HEX", "UCS2", "GSM", "IRA"):
            raise Failed()
        self._charset = name
        return []

    # -- calls --

    def _dial(self, command: Command) -> Answer:
        text = command.value.strip()
        if text.startswith("*99") and text.endswith("#"):
            return []  # a data call: the contexts are active already
        number = text.removesuffix(";").rstrip("IiGg")
        if len(self._calls.state.calls) >= MAX_CALLS:
            raise Failed("ERROR: TOO MANY CALLS")
        self._calls.dial(re.sub(r"[ ()./-]", "", number))
        if number in EMERGENCY_NUMBERS:
            self._phone.update(emergency=True)
            return ["+WSOS: 1"]
        return []

    def _answer(self, command: Command) -> Answer:
        self._only(command, "")
        self._calls.answer()
        return []

    def _hang_up(self, command: Command) -> Answer:
        self._only(command, "", "0", "1")
        self._calls.hang_up()
        return []

    def _hold(self, command: Command) -> Answer:
        if command.form is Form.TEST:
            return ["+CHLD: (0,1,1x,2,2x,3,4)"]
        if command.form is not Form.SET or not re.fullmatch(r"[034]|[12][0-9]?", command.value, re.ASCII):
            raise Failed("ERROR: BAD COMMAND")
        calls, value = self._calls, command.value
        if len(value) == 2:
            (calls.release if value[0] == "1" else calls.separate)(int(value[1]))
        else:
            steps = (calls.release_held, calls.release_active, calls.swap, calls.join, calls.transfer)
            steps[int(value)]()
        return []

    def _list_calls(self, command: Command) -> Answer:
        if command.form is not Form.RUN:
            raise Failed()
        return [
            f"+CLCC: {call.id},{int(call.direction is CallDirection.INCOMING)},{_CALL_NUMBERS[call.state]},0,"
            f'{int(call.multiparty)},"{call.number}",129'
            for call in self._calls
        ]

    def _tone(self, command: Command) -> Answer:
        if command.form is not Form.SET:
            raise Failed()
        for tone in parameters(command.value)[0]:
            self._calls.tone(tone)
        return []

    # -- messages --

    def _message_service(self, command: Command) -> Answer:
        self._only(command, "0", "1")
        return ["+CSMS: 1, 1, 1"]

    def _message_format(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return ["+CMGF: 0"]
        self._only(command, "0")
        # The end of the RIL's initialisation: the emulator tells the time here.
        return [nitz(*self._host.zone())]

    def _route_messages(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return ["+CNMI: 1,2,2,1,1"]
        if command.form is not Form.SET or not re.fullmatch(r"[0-3](,[0-3]){0,4}", command.value, re.ASCII):
            raise Failed()
        values = [int(text) for text in command.value.split(",")] + [0] * 4
        self.routed = values[1] >= 2
        self.reports = values[3] == 1
        return []

    def _send_message(self, command: Command) -> Answer:
        self._number(command.value, 1, 200)
        return None

    @staticmethod
    def _store_message(command: Command) -> Answer:
        raise Failed("ERROR: unimplemented")

    def _acknowledge(self, command: Command) -> Answer:
        if command.form is not Form.RUN:
            self._only(command, "0", "1", "2")
        self._host.acknowledged(command.value != "2")
        return []

    # -- USSD --

    def _ussd(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return ["+CUSD: 1"]
        if command.form is Form.TEST:
            return ["+CUSD: (0-2)"]
        given = parameters(command.value)
        if command.form is not Form.SET or given[0] not in ("0", "1", "2"):
            raise Failed()
        if given[0] == "2":
            self._phone.cancel_ussd()
        elif len(given) > 1:
            scheme = self._number(given[2], 0, 255) if len(given) > 2 else 15
            text = decode_string(given[1], self._charset, scheme)
            if not text:
                raise Failed()
            try:
                self._phone.dial_ussd(text)
            except Refused:
                raise cme(CME_NO_NETWORK) from None
        return []
