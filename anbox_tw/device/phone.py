"""The phone without its calls and messages: radio, registration, signal, operators, SIM card, data contexts, USSD.

Names, numbers and defaults are those of the emulator's modem (``android_modem.c``, ``sim_card.c``).
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import attrs

from anbox_tw.device.errors import BadValue, Refused
from anbox_tw.device.part import Part, in_range, member_of

__all__ = [
    "MAX_CONTEXTS",
    "NETWORK_TYPES",
    "SPEED_TYPES",
    "TECHNOLOGIES",
    "DataContext",
    "Operator",
    "Phone",
    "PhoneState",
    "Registration",
    "SimStatus",
    "UssdState",
]

MAX_CONTEXTS = 4
"""``MAX_DATA_CONTEXTS`` of the emulator's modem."""

MAX_USSD_CHARACTERS = 182
"""160 octets of packed GSM 7 bit (3GPP TS 23.038 section 5)."""

USSD_TIMEOUT_S = 30.0
"""What the guest waits for the network; networks give up after 10 to 60 s."""

PIN_TRIES = 3
PUK_TRIES = 6
"""As in ``sim_card.c``."""

TECHNOLOGIES = ("gsm", "wcdma", "cdma", "evdo", "lte")
"""In the order of their numbers in ``+CTEC``."""

NETWORK_TYPES = {"unknown": 0, "gprs": 1, "edge": 2, "umts": 3, "lte": 14}
"""Numbers of the data network's types: ``RADIO_TECH_*`` of Android's ``ril.h``."""

SPEED_TYPES = {
    "gsm": "gprs",
    "hscsd": "gprs",
    "gprs": "gprs",
    "edge": "edge",
    "umts": "umts",
    "hsdpa": "umts",
    "full": "umts",
    "lte": "lte",
}
"""Which type of data network goes with a speed of `anbox_tw.device.network.SPEEDS`."""


class Registration(Enum):
    """Registration with the network; `number` is that of 3GPP TS 27.007 ``+CREG``."""

    UNREGISTERED = "unregistered"
    HOME = "home"
    SEARCHING = "searching"
    DENIED = "denied"
    UNKNOWN = "unknown"
    ROAMING = "roaming"

    @property
    def number(self) -> int:
        """As ``+CREG`` has it."""
        return list(Registration).index(self)


class SimStatus(Enum):
    """What the SIM card waits for."""

    READY = "ready"
    PIN = "pin"
    PUK = "puk"
    NETWORK = "network"
    NOT_READY = "not-ready"
    ABSENT = "absent"


class UssdState(Enum):
    """Of the one USSD dialogue that there can be."""

    IDLE = "idle"
    NETWORK = "network"
    GUEST = "guest"


@attrs.frozen
class Operator:
    """A network operator.

    Attributes:
        long: name, at most 16 characters are shown.
        short: likewise, at most 8.
        numeric: country and network code.
        status: as in ``+COPS=?``: 0 unknown, 1 available, 2 current, 3 forbidden.
    """

    long: str
    short: str
    numeric: str
    status: int = 1


@attrs.frozen
class DataContext:
    """A packet data context.

    Attributes:
        id: 1 to `MAX_CONTEXTS`.
        type: ``IP``, ``PPP``, ``IPV6`` or ``IPV4V6``.
        apn: access point's name.
        active: whether it is.
    """

    id: int
    type: str
    apn: str
    active: bool = True


HOME = Operator("Android", "Android", "310260")
ROAMING = Operator("TelKila", "TelKila", "310295")


def _registration(value: Any) -> Registration:
    return member_of(Registration, value)


def _sim(value: Any) -> SimStatus:
    return member_of(SimStatus, value)


def _ussd(value: Any) -> UssdState:
    return member_of(UssdState, value)


def _one_of(*names: str) -> Any:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in names:
            raise ValueError(f"{attribute.name} is one of {', '.join(names)}, not {value!r}")

    return check


def _rssi(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not (0 <= value <= 31 or value == 99):
        raise ValueError(f"rssi must be 0 to 31, or 99, not {value!r}")


def _ber(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not (0 <= value <= 7 or value == 99):
        raise ValueError(f"ber must be 0 to 7, or 99, not {value!r}")


def _digits(least: int, most: int) -> Any:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, str) or not (
            value.isascii() and value.isdigit() and least <= len(value) <= most
        ):
            raise ValueError(f"{attribute.name} must be {least} to {most} digits, not {value!r}")

    return check


def _all_of(kind: type, most: int) -> Any:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if (
            not isinstance(value, tuple)
            or len(value) > most
            or not all(isinstance(item, kind) for item in value)
        ):
            raise ValueError(f"{attribute.name} cannot be set like that")

    return check


_a_bool = attrs.validators.instance_of(bool)


@attrs.frozen
class PhoneState:
    """The phone.

    Attributes:
        radio: whether it is on; the guest's ``+CFUN``. On at first, so that a guest that never asks is reached too.
        voice: registration for calls and messages.
        data: registration for packet data.
        rssi: signal strength, 0 to 31 as ``+CSQ`` has it, or 99.
        ber: bit error rate, 0 to 7, or 99.
        signal_profile: 0 (none) to 4 (great) instead of ``rssi`` and ``ber``, or None.
        network_type: of the data network, a name of `NETWORK_TYPES`.
        metered: whether data costs.
        area: location area code.
        cell: cell id.
        operators: the first is the home network, the second the one used when roaming.
        selected: index of the operator in use.
        selection: as ``+COPS`` has it: 0 automatic, 1 manual, 2 deregistered.
        sim: what the SIM card waits for.
        number: the phone's own.
        imei: of the phone.
        imsi: of the SIM card.
        contexts: packet data contexts that the guest defined.
        address: that data contexts have, IPv4.
        ussd: whose turn it is.
        technology: one of `TECHNOLOGIES`.
        preferred: four masks of technologies, one a byte.
        subscription: CDMA subscription from: 0 NV, 1 RUIM.
        roaming_preference: CDMA: 0 home, 1 affiliated, 2 any.
        prl_version: CDMA: of the preferred roaming list.
        emergency: whether an emergency number was dialled.
    """

    radio: bool = attrs.field(default=True, validator=_a_bool)
    voice: Registration = attrs.field(default=Registration.HOME, converter=_registration)
    data: Registration = attrs.field(default=Registration.HOME, converter=_registration)
    rssi: int = attrs.field(default=7, validator=_rssi)
    ber: int = attrs.field(default=99, validator=_ber)
    signal_profile: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(in_range(0, 4))
    )
    network_type: str = attrs.field(default="umts", validator=_one_of(*NETWORK_TYPES))
    metered: bool = attrs.field(default=True, validator=_a_bool)
    area: int = attrs.field(default=3, validator=in_range(0, 0xFFFF))
    cell: int = attrs.field(default=91, validator=in_range(0, 0xFFFF))
    operators: tuple[Operator, ...] = attrs.field(default=(HOME, ROAMING), validator=_all_of(Operator, 8))
    selected: int = attrs.field(default=0, validator=in_range(0, 7))
    selection: int = attrs.field(default=0, validator=in_range(0, 2))
    sim: SimStatus = attrs.field(default=SimStatus.READY, converter=_sim)
    number: str = attrs.field(default="15555215554", validator=_digits(1, 15))
    imei: str = attrs.field(default="000000000000000", validator=_digits(14, 16))
    imsi: str = attrs.field(default="310260000000000", validator=_digits(6, 15))
    contexts: tuple[DataContext, ...] = attrs.field(default=(), validator=_all_of(DataContext, MAX_CONTEXTS))
    address: str = "10.0.2.15"
    ussd: UssdState = attrs.field(default=UssdState.IDLE, converter=_ussd)
    technology: str = attrs.field(default="gsm", validator=_one_of(*TECHNOLOGIES))
    preferred: int = attrs.field(default=0x0F, validator=in_range(1, 0xFFFFFFFF))
    subscription: int = attrs.field(default=1, validator=in_range(0, 1))
    roaming_preference: int = attrs.field(default=2, validator=in_range(0, 2))
    prl_version: int = attrs.field(default=0, validator=in_range(0, 0x7FFFFFFF))
    emergency: bool = attrs.field(default=False, validator=_a_bool)

    @property
    def operator(self) -> Operator | None:
        """The operator in use, or None without a network."""
        if not self.radio or self.selection == 2 or self.selected >= len(self.operators):
            return None
        return self.operators[self.selected]


class Phone(Part[PhoneState]):
    """The phone.

    Events: ``ussd`` (text that the guest sends), ``ussd-reply`` (text, or None for "the network gave up"; what the guest
    gets). The state's ``ussd`` tells whether an answer is expected.

    Args:
        clock: an ``IReactorTime`` for the time limit of USSD, or None for no limit.
    """

    name = "phone"

    def __init__(self, clock: Any = None) -> None:
        super().__init__(PhoneState())
        self._clock = clock
        self._timer: Any = None
        self._pin = "0000"
        self._puk = "12345678"
        self._tries = 0

    def use_clock(self, clock: Any) -> None:
        """Take ``clock`` unless there is one already."""
        if self._clock is None:
            self._clock = clock

    def stop(self) -> None:
        """End the USSD dialogue and its timer."""
        self._end_timer()
        self.update(ussd=UssdState.IDLE)

    def update(self, **changes: Any) -> PhoneState:
        """Like any part's; being at home or roaming also decides which operator is in use."""
        if "voice" in changes and "selected" not in changes:
            try:
                voice = _registration(changes["voice"])
            except ValueError as error:
                raise BadValue(f"phone: {error}") from error
            if voice in (Registration.HOME, Registration.ROAMING):
                changes["selected"] = min(int(voice is Registration.ROAMING), len(self.state.operators) - 1)
        return super().update(**changes)

    def set_speed(self, speed: str) -> None:
        """Have the data network's type follow the network's speed, a name of `SPEED_TYPES`; others change nothing."""
        if speed in SPEED_TYPES:
            kind = SPEED_TYPES[speed]
            self.update(network_type=kind, technology="lte" if kind == "lte" else "gsm")

    # -- SIM card --

    def lock_sim(self, pin: str) -> None:
        """Want a PIN of four digits before the SIM card is ready, as after the phone was switched on.

        Raises:
            BadValue: it has not four digits.
        """
        self._pin = _four_digits(pin)
        self._tries = 0
        self.update(sim=SimStatus.PIN)

    def enter_pin(self, pin: str) -> bool:
        """Try a PIN; three wrong ones block the card, which then wants the PUK. Returns whether it was right."""
        right = pin == self._pin
        if self.state.sim is SimStatus.PIN:
            if right:
                self._tries = 0
                self.update(sim=SimStatus.READY)
            else:
                self._tries += 1
                if self._tries >= PIN_TRIES:
                    self._tries = 0
                    self.update(sim=SimStatus.PUK)
        return right

    def enter_puk(self, puk: str, pin: str) -> bool:
        """Try a PUK; ten digits too many end the card. The right one sets a new PIN. Returns whether it was right."""
        if self.state.sim is not SimStatus.PUK:
            return False
        if puk == self._puk:
            self._pin = _four_digits(pin)
            self._tries = 0
            self.update(sim=SimStatus.READY)
            return True
        self._tries += 1
        if self._tries >= PUK_TRIES:
            self.update(sim=SimStatus.ABSENT)
        return False

    def change_pin(self, old: str, new: str) -> bool:
        """Set another PIN on a card that is ready; returns whether ``old`` was right."""
        if self.state.sim is not SimStatus.READY or old != self._pin:
            return False
        self._pin = _four_digits(new)
        return True

    # -- packet data --

    def define_context(self, context: DataContext) -> None:
        """Define, or redefine, a data context.

        Raises:
            BadValue: its id or type is not known.
        """
        if not 1 <= context.id <= MAX_CONTEXTS or context.type not in ("IP", "PPP", "IPV6", "IPV4V6"):
            raise BadValue(f"a data context {context.id} of type {context.type!r} cannot be")
        others = tuple(c for c in self.state.contexts if c.id != context.id)
        self.update(contexts=tuple(sorted((*others, context), key=lambda c: c.id)))

    def remove_context(self, context_id: int) -> None:
        """Forget a data context; harmless without it."""
        self.update(contexts=tuple(c for c in self.state.contexts if c.id != context_id))

    def activate_context(self, context_id: int, active: bool) -> bool:
        """Activate or deactivate a context; returns whether there is one of this id."""
        if all(c.id != context_id for c in self.state.contexts):
            return False
        self.update(
            contexts=tuple(
                attrs.evolve(c, active=active) if c.id == context_id else c for c in self.state.contexts
            )
        )
        return True

    # -- USSD --

    def dial_ussd(self, text: str) -> None:
        """The guest sends ``text``, as the first of a dialogue or as an answer; the network's turn begins.

        Raises:
            Refused: the network has not answered the last one, or there is none.
        """
        if self.state.operator is None:
            raise Refused("there is no network")
        if self.state.ussd is UssdState.NETWORK:
            raise Refused("the network has not answered yet")
        self._end_timer()
        self.update(ussd=UssdState.NETWORK)
        if self._clock is not None:
            self._timer = self._clock.callLater(USSD_TIMEOUT_S, self._ussd_timed_out)
        self.emit("ussd", text)

    def reply_ussd(self, text: str, expect_reply: bool = False) -> None:
        """The network sends ``text``, asked or not.

        Args:
            text: at most `MAX_USSD_CHARACTERS` characters.
            expect_reply: whether the guest is asked to answer; the dialogue is over otherwise.

        Raises:
            BadValue: the text is empty or too long.
        """
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_USSD_CHARACTERS:
            raise BadValue(f"a USSD text has 1 to {MAX_USSD_CHARACTERS} characters")
        self._end_timer()
        self.update(ussd=UssdState.GUEST if expect_reply else UssdState.IDLE)
        self.emit("ussd-reply", text)

    def cancel_ussd(self) -> None:
        """The guest ends the dialogue; harmless without one."""
        self.stop()

    def _ussd_timed_out(self) -> None:
        self._timer = None
        self.update(ussd=UssdState.IDLE)
        self.emit("ussd-reply", None)

    def _end_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _four_digits(pin: str) -> str:
    if len(pin) != 4 or not (pin.isascii() and pin.isdigit()):
        raise BadValue("a PIN has four digits")
    return pin
