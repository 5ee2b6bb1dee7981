"""The calls of the phone: the machine that modem, console and commands are views of.

Rules and numbers are the emulator's (``android_modem.c``): at most four calls, the smallest free id, a call of ours rings
after one second and is answered one second later. Who changes something is either the guest (``dial``, ``answer``,
``swap``, ...) or the network (``ring``, ``accept``, ``busy``, ...); observers see one new list for each change.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Protocol

import attrs

from anbox_tw.device.errors import BadValue, Refused, UnknownName
from anbox_tw.device.part import Change, Part
from anbox_tw.device.phone import Phone

__all__ = ["MAX_CALLS", "Call", "CallDirection", "CallState", "Calls", "CallsState", "check_number"]

MAX_CALLS = 4
"""``MAX_CALLS`` of the emulator's modem."""

MAX_NUMBER_CHARACTERS = 32
"""Of a number; the emulator keeps 16, of which a number with an international prefix can have more."""

_NUMBER = re.compile(r"[0-9+#]+\Z", re.ASCII)
_DIALLED = re.compile(r"[0-9+#*ABCDabcdPpWw,]+\Z", re.ASCII)


class CallDirection(Enum):
    """Who called."""

    OUTGOING = "out"
    INCOMING = "in"


class CallState(Enum):
    """Where a call is, as 3GPP TS 27.007 has it for ``+CLCC``."""

    ACTIVE = "active"
    HELD = "held"
    DIALING = "dialing"
    ALERTING = "alerting"
    INCOMING = "incoming"
    WAITING = "waiting"


_RINGING = frozenset({CallState.INCOMING, CallState.WAITING})
_STARTING = frozenset({CallState.DIALING, CallState.ALERTING})


@attrs.frozen
class Call:
    """One call.

    Attributes:
        id: 1 to `MAX_CALLS`; the smallest that was free.
        number: of the other side.
        direction: who called.
        state: where it is.
        multiparty: whether it is part of a conference.
    """

    id: int
    number: str
    direction: CallDirection
    state: CallState
    multiparty: bool = False


def _is_delay(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600
    ):
        raise ValueError(f"{attribute.name} must be 0 to 3600 seconds, or nothing for never")


def _are_calls(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(call, Call) for call in value):
        raise ValueError("calls are made and ended by their own commands")


@attrs.frozen
class CallsState:
    """All calls, and how the network treats those that the guest makes.

    Attributes:
        calls: in the order in which they began.
        alert_after: seconds from dialling until it rings at the other side; None is never.
        answer_after: seconds from then until it is answered; None is never.
    """

    calls: tuple[Call, ...] = attrs.field(default=(), validator=_are_calls)
    alert_after: float | None = attrs.field(default=1.0, validator=_is_delay)
    answer_after: float | None = attrs.field(default=1.0, validator=_is_delay)


def check_number(number: str) -> str:
    """See that a number can be one: digits, ``+`` and ``#``, as the emulator's console wants it; returns it.

    Raises:
        BadValue: it cannot.
    """
    if not isinstance(number, str) or not _NUMBER.match(number) or len(number) > MAX_NUMBER_CHARACTERS:
        raise BadValue(
            f"{number!r} is no phone number", f"use digits, # and +, at most {MAX_NUMBER_CHARACTERS} of them"
        )
    return number


class OtherPhones(Protocol):
    """Phones that are really there, beside those that the network plays."""

    def full_number(self, number: str) -> str:
        """A dialled number as the other phone has it."""

    def answers(self, number: str) -> bool:
        """Whether it is another phone's, which itself says that it is answered."""


class Calls(Part[CallsState]):
    """The calls; event ``dtmf`` with ``(call id, tone)``.

    Args:
        phone: whose radio must be on.
        clock: an ``IReactorTime`` for the ringing of dialled calls, or None: they stay where they are.

    Attributes:
        others: phones that are not answered by the delays of the state.
        from_other: whether what changes now is the doing of one of them.
    """

    name = "calls"
    others: OtherPhones | None = None
    from_other = False

    def __init__(self, phone: Phone, clock: Any = None) -> None:
        super().__init__(CallsState())
        self._phone = phone
        self._clock = clock
        self._timers: dict[int, Any] = {}
        phone.observe(self._phone_changed)

    def _phone_changed(self, change: Change) -> None:
        if "radio" in change.fields and not change.value.radio:
            self._keep(())

    def use_clock(self, clock: Any) -> None:
        """Take ``clock`` unless there is one already."""
        if self._clock is None:
            self._clock = clock

    def stop(self) -> None:
        """End all calls and their timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._keep(())

    # -- looking --

    def __iter__(self) -> Any:
        return iter(self.state.calls)

    def find(self, number: str) -> Call | None:
        """The first call to or from ``number``."""
        return next((call for call in self.state.calls if call.number == number), None)

    def get(self, number: str) -> Call:
        """Likewise.

        Raises:
            UnknownName: there is none.
        """
        call = self.find(number)
        if call is None:
            raise UnknownName(f"there is no call to or from {number}")
        return call

    # -- what the network does --

    def ring(self, number: str) -> Call:
        """Somebody calls.

        Raises:
            BadValue: ``number`` cannot be one.
            Refused: the radio is off, or there are `MAX_CALLS` calls.
        """
        check_number(number)
        if not self._phone.state.radio:
            raise Refused("the phone's radio is off")
        return self._add(number, CallDirection.INCOMING, CallState.INCOMING)

    def accept(self, number: str) -> Call:
        """Make a call active, whoever made it.

        Raises:
            UnknownName: there is no call of this number.
        """
        return self._move(self.get(number), CallState.ACTIVE)

    def hold(self, number: str) -> Call:
        """Put a call on hold.

        Raises:
            UnknownName: there is no call of this number.
        """
        return self._move(self.get(number), CallState.HELD)

    def busy(self, number: str) -> None:
        """Refuse a call that the guest makes.

        Raises:
            UnknownName: the guest does not call this number.
        """
        call = next(
            (c for c in self.state.calls if c.number == number and c.direction is CallDirection.OUTGOING),
            None,
        )
        if call is None:
            raise UnknownName(f"there is no outgoing call to {number}")
        self._release(lambda c: c.id == call.id)

    def cancel(self, number: str) -> None:
        """End a call.

        Raises:
            UnknownName: there is no call of this number.
        """
        call = self.get(number)
        self._release(lambda c: c.id == call.id)

    @contextlib.contextmanager
    def by_other(self) -> Iterator[None]:
        """A context in which what changes is the doing of the other phone, which so need not be told of it."""
        before, self.from_other = self.from_other, True
        try:
            yield
        finally:
            self.from_other = before

    # -- what the guest does --

    def dial(self, number: str) -> Call:
        """Call somebody; it rings and is answered after the delays of the state.

        Raises:
            BadValue: ``number`` cannot be dialled.
            Refused: the radio is off, or there are `MAX_CALLS` calls.
        """
        if not _DIALLED.match(number) or len(number) > MAX_NUMBER_CHARACTERS:
            raise BadValue(f"{number!r} cannot be dialled")
        if not self._phone.state.radio:
            raise Refused("the phone's radio is off")
        if self.others is not None:
            number = self.others.full_number(number)
        call = self._add(number, CallDirection.OUTGOING, CallState.DIALING)
        self._expect(call.id, self.state.alert_after)
        return call

    def answer(self) -> None:
        """Take the call that rings; active ones are held."""
        if any(call.state in _RINGING for call in self.state.calls):
            self._keep(
                attrs.evolve(
                    call,
                    state=CallState.ACTIVE
                    if call.state in _RINGING
                    else CallState.HELD
                    if call.state is CallState.ACTIVE
                    else call.state,
                )
                for call in self.state.calls
            )

    def hang_up(self) -> None:
        """Reject the call that rings; with none, end the active and the dialled ones."""
        if any(call.state in _RINGING for call in self.state.calls):
            self._release(lambda call: call.state in _RINGING)
        else:
            self._release(lambda call: call.state is CallState.ACTIVE or call.state in _STARTING)

    def release_held(self) -> None:
        """End all held calls, and reject what rings (``+CHLD=0``)."""
        self._release(lambda call: call.state is CallState.HELD or call.state in _RINGING)

    def release_active(self) -> None:
        """End all active calls and take the one that rings, or else the held ones (``+CHLD=1``)."""
        self._swap(ended=True)

    def swap(self) -> None:
        """Hold all active calls and take the one that rings, or else the held ones (``+CHLD=2``)."""
        self._swap(ended=False)

    def release(self, call_id: int) -> None:
        """End one call (``+CHLD=1x``); harmless without it."""
        self._release(lambda call: call.id == call_id)

    def separate(self, call_id: int) -> None:
        """Hold all active calls but one (``+CHLD=2x``); harmless without it."""
        if any(call.id == call_id and call.state is CallState.ACTIVE for call in self.state.calls):
            self._keep(
                attrs.evolve(call, state=CallState.HELD)
                if call.state is CallState.ACTIVE and call.id != call_id
                else call
                for call in self.state.calls
            )

    def join(self) -> None:
        """Take the held calls into the conversation (``+CHLD=3``)."""
        if any(call.state is CallState.HELD for call in self.state.calls):
            self._keep(
                attrs.evolve(call, state=CallState.ACTIVE, multiparty=True)
                if call.state in (CallState.HELD, CallState.ACTIVE)
                else call
                for call in self.state.calls
            )

    def transfer(self) -> None:
        """Connect the held and the active calls with one another and leave them (``+CHLD=4``)."""
        if any(call.state is CallState.HELD for call in self.state.calls):
            self._release(lambda call: call.state in (CallState.HELD, CallState.ACTIVE))

    def tone(self, tone: str) -> None:
        """Send a DTMF tone into the active call: a digit, ``*``, ``#`` or A to D.

        Raises:
            BadValue: it is no tone.
        """
        if len(tone) != 1 or tone not in "0123456789*#ABCD":
            raise BadValue(f"{tone!r} is no tone")
        active = next((call for call in self.state.calls if call.state is CallState.ACTIVE), None)
        self.emit("dtmf", (active.id if active else 0, tone))

    # -- inside --

    def _add(self, number: str, direction: CallDirection, state: CallState) -> Call:
        calls = self.state.calls
        if len(calls) >= MAX_CALLS:
            raise Refused(f"the phone has {MAX_CALLS} calls already", "end one first")
        taken = {call.id for call in calls}
        call = Call(min(set(range(1, MAX_CALLS + 1)) - taken), number, direction, state)
        self._keep((*calls, call))
        return call

    def _move(self, call: Call, state: CallState) -> Call:
        moved = attrs.evolve(call, state=state)
        self._keep(moved if c.id == call.id else c for c in self.state.calls)
        return moved

    def _release(self, ended: Callable[[Call], bool]) -> None:
        self._keep(call for call in self.state.calls if not ended(call))

    def _swap(self, *, ended: bool) -> None:
        calls = self.state.calls
        ringing = any(call.state in _RINGING for call in calls)
        taken = _RINGING if ringing else frozenset({CallState.HELD})
        self._keep(
            attrs.evolve(call, state=CallState.ACTIVE)
            if call.state in taken
            else attrs.evolve(call, state=CallState.HELD)
            if call.state is CallState.ACTIVE
            else call
            for call in calls
            if not (ended and call.state is CallState.ACTIVE)
        )

    def _keep(self, calls: Iterable[Call]) -> None:
        kept = tuple(calls)
        if sum(call.multiparty for call in kept) == 1:  # one alone is no conference
            kept = tuple(attrs.evolve(call, multiparty=False) for call in kept)
        starting = {call.id for call in kept if call.state in _STARTING}
        for call_id in list(self._timers):
            if call_id not in starting:
                self._timers.pop(call_id).cancel()
        self.update(calls=kept)

    def _expect(self, call_id: int, delay: float | None) -> None:
        if self._clock is not None and delay is not None:
            self._timers[call_id] = self._clock.callLater(delay, self._progress, call_id)

    def _progress(self, call_id: int) -> None:
        del self._timers[call_id]
        call = next(call for call in self.state.calls if call.id == call_id)
        if call.state is CallState.DIALING:
            if self.others is None or not self.others.answers(call.number):
                self._expect(call_id, self.state.answer_after)
            self._move(call, CallState.ALERTING)
        else:
            self._move(call, CallState.ACTIVE)
