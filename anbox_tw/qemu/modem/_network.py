"""AT commands about radio, registration, operators, signal, technologies and packet data."""

from __future__ import annotations

import re

from anbox_tw.device import BadValue, DataContext, Registration
from anbox_tw.device.phone import NETWORK_TYPES, TECHNOLOGIES, PhoneState
from anbox_tw.qemu.modem._at import Command, Form, parameters
from anbox_tw.qemu.modem._base import (
    CME_INVALID_INDEX,
    CME_NO_NETWORK,
    CME_NOT_ALLOWED,
    CME_SELECTION_FAILURE,
    Answer,
    CommandGroup,
    Failed,
    ModemHost,
    cme,
)

__all__ = ["NetworkCommands"]

_PROFILES = (
    (0, 7, 105, 160, 110, 160, 0, 105, 140, 3, -200, 0, 500),
    (5, 5, 100, 150, 100, 150, 2, 100, 110, 5, 0, 2, 300),
    (12, 4, 90, 120, 80, 120, 4, 90, 100, 10, 30, 7, 200),
    (20, 2, 80, 100, 70, 100, 6, 70, 90, 15, 100, 12, 100),
    (30, 0, 70, 80, 60, 80, 7, 60, 80, 20, 200, 15, 50),
)
"""The emulator's ``gsm signal-profile``: what ``+CSQ`` says of all kinds of networks."""


class NetworkCommands(CommandGroup):
    """The commands, of one connection.

    Attributes:
        voice_mode: of ``+CREG``: 0 silent, 1 reports, 2 with the cell.
        data_mode: of ``+CGREG``, likewise.
    """

    def __init__(self, host: ModemHost) -> None:
        super().__init__(host)
        self.voice_mode = 2
        self.data_mode = 2
        self._format = 2

    # -- unasked --

    def voice_registration(self) -> str:
        """As ``+CREG`` has it."""
        state = self._phone.state
        text = f"+CREG: {self.voice_mode},{self._registered(state.voice)}"
        return f'{text}, "{state.area:04x}", "{state.cell:04x}"' if self.voice_mode == 2 else text

    def data_registration(self, full: bool = True) -> str:
        """As ``+CGREG`` has it."""
        state = self._phone.state
        text = f"+CGREG: {self.data_mode},{self._registered(state.data)}"
        if not full and self.data_mode != 2:
            return text
        kind = NETWORK_TYPES[state.network_type]
        return f'{text},"{state.area:04x}","{state.cell:04x}","{kind:04x}"'

    def _registered(self, registration: Registration) -> int:
        return registration.number if self._phone.state.radio else 0

    # -- radio and network --

    def _radio(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return [f"+CFUN: {int(self._phone.state.radio)}"]
        if command.form is Form.TEST:
            return ["+CFUN: (0,1)"]
        if command.form is Form.RUN:
            raise Failed()
        self._phone.update(radio=bool(self._number(command.value, 0, 1)))
        return []

    def _voice_mode(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return [self.voice_registration()]
        self.voice_mode = self._mode(command, self.voice_mode)
        return ["+CREG: (0-2)"] if command.form is Form.TEST else []

    def _data_mode(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return [self.data_registration()]
        self.data_mode = self._mode(command, self.data_mode)
        return ["+CGREG: (0-2)"] if command.form is Form.TEST else []

    @staticmethod
    def _mode(command: Command, mode: int) -> int:
        if command.form is Form.TEST:
            return mode
        if command.form is not Form.SET or command.value not in ("0", "1", "2"):
            raise Failed("ERROR: BAD COMMAND")
        return int(command.value)

    def _three_names(self) -> list[str]:
        operator = self._phone.state.operator
        if operator is None:
            raise cme(CME_NO_NETWORK)
        self._format = 2
        names = (operator.long, operator.short, operator.numeric)
        return [f'+COPS: 0,{number},"{name}"' for number, name in enumerate(names)]

    def _operator(self, command: Command) -> Answer:
        state = self._phone.state
        if command.form is Form.TEST:
            listed = (f'({o.status},"{o.long}","{o.short}","{o.numeric}")' for o in state.operators)
            return ["+COPS: " + ", ".join(listed)]
        if command.form is Form.READ:
            operator = state.operator
            if operator is None:
                return ["+COPS: 0,0,0"]
            name = (operator.long, operator.short, operator.numeric)[self._format]
            return [f'+COPS: {state.selection},{self._format},"{name}"']
        given = parameters(command.value)
        if command.form is Form.RUN or given[0] not in ("0", "1", "2", "3", "4"):
            raise Failed()
        if given[0] in ("0", "2"):
            self._phone.update(selection=int(given[0]))
        elif given[0] == "3" and len(given) == 2:
            self._format = self._number(given[1], 0, 2)
        elif given[0] in ("1", "4") and len(given) >= 3:
            self._select(state, self._number(given[1], 0, 2), given[2])
        else:
            raise Failed()
        return []

    def _select(self, state: PhoneState, kind: int, name: str) -> None:
        for index, operator in enumerate(state.operators):
            if (operator.long, operator.short, operator.numeric)[kind] == name:
                if operator.status == 3:
                    raise cme(CME_NOT_ALLOWED)
                registration = Registration.HOME if index == 0 else Registration.ROAMING
                self._phone.update(selected=index, selection=1, voice=registration, data=registration)
                return
        raise cme(CME_SELECTION_FAILURE)

    def _signal(self, command: Command) -> Answer:
        state = self._phone.state
        if command.form is not Form.RUN:
            raise Failed()
        if state.signal_profile is not None:
            return ["+CSQ: " + ",".join(map(str, _PROFILES[state.signal_profile]))]
        return [f"+CSQ: {state.rssi},{state.ber},85,130,90,6,4,25,9,50,68,12"]

    def _technology(self, command: Command) -> Answer:
        state = self._phone.state
        if command.form is Form.TEST:
            return ["+CTEC: 0,1,2,3"]
        if command.form is Form.READ:
            return [f"+CTEC: {TECHNOLOGIES.index(state.technology)},{state.preferred:x}"]
        given = parameters(command.value)
        if command.form is Form.RUN or given[0] not in ("0", "1", "2", "3", "4"):
            raise Failed("ERROR: Unknown Technology")
        technology, preferred = int(given[0]), state.preferred
        if len(given) > 1:
            if not re.fullmatch(r"[0-9A-Fa-f]{1,8}", given[1], re.ASCII) or not int(given[1], 16):
                raise Failed("ERROR: invalid preferred mode")
            preferred = int(given[1], 16)
            allowed = [
                kind
                for mask in range(3, -1, -1)
                for kind in range(len(TECHNOLOGIES))
                if preferred >> 8 * mask & 1 << kind
            ]
            if allowed and technology not in allowed:
                technology = allowed[0]
        self._phone.update(technology=TECHNOLOGIES[technology], preferred=preferred)
        changed = TECHNOLOGIES[technology] != state.technology
        return [f"+CTEC: {technology}" if changed else "+CTEC: DONE"]

    def _roaming_preference(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return [f"+WRMP: {self._phone.state.roaming_preference}"]
        if command.form is Form.TEST:
            return ["+WRMP: 0,1,2"]
        self._phone.update(roaming_preference=self._number(command.value, 0, 2))
        return []

    def _subscription(self, command: Command) -> Answer:
        if command.form is Form.TEST:
            return ["+CTEC: 0,1"]  # the emulator's own slip
        if command.form is Form.SET:
            if command.value not in ("0", "1"):
                raise Failed("ERROR: Invalid subscription source")
            self._phone.update(subscription=int(command.value))
        elif command.form is Form.RUN:
            raise Failed()
        return [f"+CCSS: {self._phone.state.subscription}"]

    def _emergency(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return [f"+WSOS: {int(self._phone.state.emergency)}"]
        if command.form is Form.TEST:
            return ["+WSOS: 0"]
        wanted = bool(self._number(command.value, 0, 1))
        if wanted == self._phone.state.emergency:
            raise Failed()
        self._phone.update(emergency=wanted)
        return [f"+WSOS: {int(wanted)}"]

    def _roaming_list(self, command: Command) -> Answer:
        if command.form is not Form.READ:
            raise Failed()
        return [f"+WPRL: {self._phone.state.prl_version}"]

    # -- packet data --

    def _contexts(self, command: Command) -> Answer:
        if command.form is Form.TEST:
            return ['+CGDCONT: (1-1),"IP",,,(0-2),(0-4)']
        if command.form is Form.READ:
            state = self._phone.state
            return [
                f'+CGDCONT: {c.id},"{c.type}","{c.apn}","{"" if c.type == "PPP" else state.address}",0,0'
                for c in state.contexts
            ]
        given = parameters(command.value)
        context_id = self._number(given[0], 1, 4)
        if len(given) == 1:
            self._phone.remove_context(context_id)
            return []
        apn = given[2] if len(given) > 2 else ""
        if len(apn) > 100 or '"' in apn:
            raise Failed("ERROR: BAD COMMAND")
        try:
            self._phone.define_context(DataContext(context_id, given[1], apn))
        except BadValue:
            raise Failed("ERROR: BAD COMMAND") from None
        return []

    def _activate(self, command: Command) -> Answer:
        if command.form is Form.READ:
            return [f"+CGACT: {context.id},1" for context in self._phone.state.contexts if context.active]
        if command.form is not Form.SET:
            raise Failed()
        given = parameters(command.value)
        active = bool(self._number(given[0], 0, 1))
        if given[1:] == ["0"]:
            return []  # the RIL's way to say "none in particular"
        ids = [self._number(text, 1, 4) for text in given[1:]] or [c.id for c in self._phone.state.contexts]
        for context_id in ids:
            if not self._phone.activate_context(context_id, active):
                raise cme(CME_INVALID_INDEX)
        return []
