"""What all groups of AT commands share: their host, how they fail, and what their arguments may be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from anbox_tw.device import Device
from anbox_tw.qemu.modem._at import Command, Form
from anbox_tw.qemu.modem._pdu import Submit
from anbox_tw.qemu.modem._sim import SimCard

__all__ = ["Answer", "CommandGroup", "Failed", "ModemHost", "cme"]

CME_NO_NETWORK = 30
CME_NOT_ALLOWED = 32
CME_INVALID_INDEX = 21
CME_MEMORY_FULL = 20
CME_SELECTION_FAILURE = 529
"""3GPP TS 27.007 section 9.2, and the emulator's."""


class ModemHost(Protocol):
    """What a session needs of the service that it belongs to."""

    device: Device
    sim: SimCard

    def zone(self) -> tuple[float, int, bool, str]:
        """Seconds since 1970, quarters of an hour east of UTC, whether it is summer time, the zone's name."""

    def submitted(self, message: Submit) -> None:
        """The guest sent (a part of) a message."""

    def acknowledged(self, right: bool) -> None:
        """The guest has got, or refused, the oldest PDU that it has not yet acknowledged."""


class Failed(Exception):
    """A command fails with this final answer."""

    def __init__(self, answer: str = "ERROR") -> None:
        super().__init__(answer)
        self.answer = answer


def cme(number: int) -> Failed:
    return Failed(f"+CME ERROR: {number}")


Answer = Sequence[str] | None
"""The lines before ``OK``, or None for a prompt."""


class CommandGroup:
    """Some of the commands of one connection.

    Args:
        host: the service.
    """

    def __init__(self, host: ModemHost) -> None:
        self._host = host
        self._device = host.device
        self._phone = host.device.phone
        self._calls = host.device.calls

    @staticmethod
    def _only(command: Command, *values: str) -> Answer:
        if command.form not in (Form.RUN, Form.SET) or command.value not in values:
            raise Failed()
        return []

    @staticmethod
    def _plain(command: Command, text: str) -> Answer:
        if command.form is not Form.RUN:
            raise Failed()
        return [text]

    def _number(self, text: str, low: int, high: int) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) or not low <= int(text) <= high:
            raise Failed()
        return int(text)
