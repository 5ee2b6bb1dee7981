"""Short messages: what the network delivers to the guest, and what the guest sends.

A message is a text here; how it becomes PDUs is the modem's affair (:mod:`anbox_tw.qemu.modem`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import attrs

from anbox_tw.device.errors import BadValue
from anbox_tw.device.part import Part, in_range

__all__ = ["MAX_KEPT", "MAX_TEXT_CHARACTERS", "Message", "Messages", "MessagesState", "check_sms_number"]

MAX_KEPT = 100
"""Messages in the listing of each way; the oldest are forgotten."""

MAX_TEXT_CHARACTERS = 255 * 66
"""UTF-16 units of 255 parts, which is what the count of parts can say; 67 fit into one, 66 where a pair would be torn."""

_NUMBER = re.compile(r"\+?[0-9]{1,20}\Z", re.ASCII)
_PDU = re.compile(r"(?:[0-9A-Fa-f]{2})+\Z", re.ASCII)

MAX_PDU_BYTES = 188
"""The longest: service centre (12), header (13), address (12), times and 140 bytes of text, with room."""


@attrs.frozen
class Message:
    """One message.

    Attributes:
        id: counts up from 1 over both ways.
        direction: ``in`` (to the guest) or ``out``.
        number: of the other side; empty where a PDU was given.
        text: what it says; for a PDU that was given as hex, that.
        time: seconds since 1970.
        parts: PDUs it takes; 0 when nothing was made of it yet.
        status: ``in``: ``waiting`` (no guest takes it), ``delivered``, ``acknowledged`` or ``refused`` (by the guest);
            ``out``: ``sent``.
        pdu: whether ``text`` is a PDU.
    """

    id: int
    direction: str
    number: str
    text: str
    time: float
    parts: int = 0
    status: str = "waiting"
    pdu: bool = False


def _are_messages(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(message, Message) for message in value):
        raise ValueError("messages come and go by their own commands")


@attrs.frozen
class MessagesState:
    """The last messages.

    Attributes:
        incoming: to the guest, the oldest first.
        outgoing: from the guest, the oldest first.
        count: how many there were.
    """

    incoming: tuple[Message, ...] = attrs.field(default=(), validator=_are_messages)
    outgoing: tuple[Message, ...] = attrs.field(default=(), validator=_are_messages)
    count: int = attrs.field(default=0, validator=in_range(0, 1 << 53))


def check_sms_number(number: str) -> str:
    """See that ``number`` can send a message: digits, a ``+`` in front; returns it.

    Raises:
        BadValue: it cannot.
    """
    if not isinstance(number, str) or not _NUMBER.match(number):
        raise BadValue(f"{number!r} is no phone number", "use at most 20 digits, and + in front")
    return number


class Messages(Part[MessagesState]):
    """The messages.

    Events: ``deliver`` (a `Message` for the guest), ``sent`` (one from it).

    Args:
        wall_time: seconds since 1970.
    """

    name = "messages"

    def __init__(self, wall_time: Callable[[], float] = time.time) -> None:
        super().__init__(MessagesState())
        self._wall_time = wall_time

    def deliver(self, number: str, text: str) -> Message:
        """Send the guest a text.

        Raises:
            BadValue: the number or the text cannot be.
        """
        check_sms_number(number)
        if not isinstance(text, str):
            raise BadValue("a message is a text")
        try:
            units = len(text.encode("utf-16-be")) // 2
        except UnicodeEncodeError:
            raise BadValue("the text has half a surrogate pair") from None
        if units > MAX_TEXT_CHARACTERS:
            raise BadValue(f"a message has at most {MAX_TEXT_CHARACTERS} characters")
        return self._deliver(Message(self.state.count + 1, "in", number, text, self._wall_time()))

    def deliver_pdu(self, pdu: str) -> Message:
        """Send the guest a PDU as it is, in hexadecimal, with the service centre's address in front.

        Raises:
            BadValue: it is not hexadecimal, or too long.
        """
        if not isinstance(pdu, str) or not _PDU.match(pdu) or len(pdu) > 2 * MAX_PDU_BYTES:
            raise BadValue(f"a PDU is 1 to {MAX_PDU_BYTES} bytes in hexadecimal")
        message = Message(self.state.count + 1, "in", "", pdu.upper(), self._wall_time(), parts=1, pdu=True)
        return self._deliver(message)

    def sent(self, number: str, text: str, parts: int = 1) -> Message:
        """The guest sent a message, all parts of it."""
        message = Message(
            self.state.count + 1, "out", number, text, self._wall_time(), parts=parts, status="sent"
        )
        self.update(outgoing=(*self.state.outgoing, message)[-MAX_KEPT:], count=message.id)
        self.emit("sent", message)
        return message

    def mark(self, message_id: int, status: str, parts: int | None = None) -> None:
        """Say what became of a message to the guest; harmless when it is forgotten."""
        self.update(
            incoming=tuple(
                attrs.evolve(m, status=status, parts=m.parts if parts is None else parts)
                if m.id == message_id
                else m
                for m in self.state.incoming
            )
        )

    def get(self, message_id: int) -> Message | None:
        """A message by its id, while it is known."""
        both = (*self.state.incoming, *self.state.outgoing)
        return next((message for message in both if message.id == message_id), None)

    def _deliver(self, message: Message) -> Message:
        self.update(incoming=(*self.state.incoming, message)[-MAX_KEPT:], count=message.id)
        self.emit("deliver", message)
        return self.get(message.id) or message
