"""AT commands about the SIM card: PIN, files, logical channels."""

from __future__ import annotations

import re

from anbox_tw.device import BadValue, SimStatus
from anbox_tw.qemu.modem._at import Command, Form, parameters
from anbox_tw.qemu.modem._base import (
    CME_INVALID_INDEX,
    CME_MEMORY_FULL,
    Answer,
    CommandGroup,
    Failed,
    ModemHost,
    cme,
)

__all__ = ["SimCommands"]

MAX_CHANNELS = 16
"""Logical channels to the SIM card, as many as the emulator has."""

_SIM_ANSWERS = {
    SimStatus.READY: "+CPIN: READY",
    SimStatus.PIN: "+CPIN: SIM PIN",
    SimStatus.PUK: "+CPIN: SIM PUK",
    SimStatus.NETWORK: "+CPIN: PH-NET PIN",
    SimStatus.NOT_READY: "+CMERROR: NOT READY",
    SimStatus.ABSENT: "+CPIN: ABSENT",
}


class SimCommands(CommandGroup):
    """The commands, of one connection."""

    def __init__(self, host: ModemHost) -> None:
        super().__init__(host)
        self._channels: dict[int, str] = {}

    def _pin(self, command: Command) -> Answer:
        status = self._phone.state.sim
        if command.form is Form.READ:
            return [_SIM_ANSWERS[status]]
        if command.form is not Form.SET:
            raise Failed()
        if status is SimStatus.ABSENT:
            raise Failed("+CME ERROR: SIM ABSENT")
        if status is SimStatus.NOT_READY:
            raise Failed("+CME ERROR: SIM NOT READY")
        given = parameters(command.value)
        try:
            right = self._enter(status, given)
        except BadValue:
            raise Failed("+CME ERROR: BAD FORMAT") from None
        if not right:
            raise Failed("+CME ERROR: BAD PUK" if status is SimStatus.PUK else "+CME ERROR: BAD PIN")
        return [_SIM_ANSWERS[self._phone.state.sim]]

    def _enter(self, status: SimStatus, given: list[str]) -> bool:
        if status is SimStatus.PIN and len(given) == 1:
            return self._phone.enter_pin(given[0])
        if status is SimStatus.PUK and len(given) == 2:
            return self._phone.enter_puk(given[0], given[1])
        if status is SimStatus.READY and len(given) == 2:
            return self._phone.change_pin(given[0], given[1])
        if status is SimStatus.NETWORK:
            return True
        raise BadValue("a PIN, or two")

    def _sim_file(self, command: Command) -> Answer:
        if command.form is Form.SET and self._phone.state.sim is not SimStatus.ABSENT:
            answer = self._host.sim.command(parameters(command.value), self._phone.state.number)
            if answer is not None:
                return [f"+CRSM: {answer}"]
        raise Failed("ERROR: BAD COMMAND")

    def _open_channel(self, command: Command) -> Answer:
        name = parameters(command.value)[0]
        if command.form is not Form.SET or not re.fullmatch(r"[0-9A-Fa-f]{0,32}", name, re.ASCII):
            raise Failed()
        free = set(range(1, MAX_CHANNELS)) - set(self._channels)
        if not free:
            raise cme(CME_MEMORY_FULL)
        channel = min(free)
        self._channels[channel] = name
        return [str(channel)]

    def _close_channel(self, command: Command) -> Answer:
        if (
            command.form is not Form.SET
            or self._channels.pop(self._channel_number(command.value), None) is None
        ):
            raise cme(CME_INVALID_INDEX)
        return ["+CCHC"]

    def _channel(self, command: Command) -> Answer:
        given = parameters(command.value)
        if command.form is not Form.SET or len(given) != 3:
            raise Failed()
        channel = self._channel_number(given[0])
        if channel not in self._channels:
            raise cme(CME_INVALID_INDEX)
        if not re.fullmatch(r"[0-9A-Fa-f]{8,522}", given[2], re.ASCII) or str(len(given[2])) != given[1]:
            raise Failed()
        return ["+CGLA: 106,130"]  # 6A 82: no application of this card is reached by a channel

    @staticmethod
    def _channel_number(text: str) -> int:
        return int(text) if re.fullmatch(r"[0-9]{1,2}", text, re.ASCII) else -1
