"""The phone's verbs of the control socket's ``device`` call; ``docs/phone.md`` has the table.

Every method named ``GROUP_VERB`` is the verb ``GROUP.VERB`` (a second ``_`` stays); its arguments are the verb's.
"""

from __future__ import annotations

from typing import Any

import attrs

from anbox_tw.device import BadValue, Call, Device, Message, Registration, SimStatus

__all__ = ["PhoneVerbs"]


class PhoneVerbs:
    """The verbs.

    Args:
        device: what they work on.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    # -- calls: what the network does --

    def call_in(self, number: str) -> dict[str, Any]:
        """Call the guest from ``number`` (digits, ``+``, ``#``); it rings. Returns the call, as ``call.list`` has it."""
        return _call(self._device.calls.ring(_text(number, "number")))

    def call_accept(self, number: str) -> dict[str, Any]:
        """Make the call to or from ``number`` active: answer a call of the guest's, or take one off hold. Returns it."""
        return _call(self._device.calls.accept(_text(number, "number")))

    def call_hold(self, number: str) -> dict[str, Any]:
        """Put the call to or from ``number`` on hold. Returns it."""
        return _call(self._device.calls.hold(_text(number, "number")))

    def call_busy(self, number: str) -> None:
        """Answer the guest's call to ``number`` with busy, which ends it."""
        self._device.calls.busy(_text(number, "number"))

    def call_cancel(self, number: str) -> None:
        """End the call to or from ``number``: the other side hangs up."""
        self._device.calls.cancel(_text(number, "number"))

    def call_list(self) -> list[dict[str, Any]]:
        """All calls.

        Returns:
            For each ``id``, ``number``, ``direction`` (``in``, ``out``), ``state`` (``active``, ``held``, ``dialing``,
            ``alerting``, ``incoming``, ``waiting``) and ``multiparty``.
        """
        return [_call(call) for call in self._device.calls]

    # -- messages --

    def sms_send(self, number: str, text: str) -> dict[str, Any]:
        """Send the guest a message from ``number``, in as many parts as it takes. Returns it, as ``sms.list`` has it."""
        return _message(self._device.messages.deliver(_text(number, "number"), _text(text, "text")))

    def sms_pdu(self, pdu: str) -> dict[str, Any]:
        """Send the guest a PDU in hexadecimal as it is, the service centre's address in front. Returns the message."""
        return _message(self._device.messages.deliver_pdu(_text(pdu, "pdu")))

    def sms_list(self) -> dict[str, list[dict[str, Any]]]:
        """The last messages: ``incoming`` (to the guest) and ``outgoing`` (from it), the oldest first.

        Returns:
            For each ``id``, ``number``, ``text``, ``time`` (seconds since 1970), ``parts``, ``pdu`` (whether ``text`` is
            one) and ``status``, which is ``waiting``, ``delivered``, ``acknowledged`` or ``refused``, and ``sent`` for
            the guest's.
        """
        state = self._device.messages.state
        return {
            "incoming": [_message(message) for message in state.incoming],
            "outgoing": [_message(message) for message in state.outgoing],
        }

    # -- the network --

    def gsm_status(self) -> dict[str, Any]:
        """Registration, signal, operator, SIM card, data contexts: the phone part, and ``operator`` (its names)."""
        operator = self._device.phone.state.operator
        return {
            **self._device.phone.as_dict(),
            "operator": attrs.asdict(operator) if operator is not None else None,
        }

    def gsm_voice(self, state: str) -> dict[str, Any]:
        """Set the registration for calls: unregistered or off, home or on, roaming, searching, denied, unknown.

        Returns:
            As ``gsm.status``.
        """
        self._device.phone.update(voice=_registration(state))
        return self.gsm_status()

    def gsm_data(self, state: str) -> dict[str, Any]:
        """Likewise for packet data. Returns as ``gsm.status``."""
        self._device.phone.update(data=_registration(state))
        return self.gsm_status()

    def gsm_signal(
        self, rssi: int | None = None, ber: int | None = None, profile: int | None = None
    ) -> dict[str, Any]:
        """Set the signal.

        Args:
            rssi: 0 (-113 dBm) to 31 (-51 dBm), or 99 for unknown.
            ber: bit error rate 0 to 7, or 99 for unknown.
            profile: 0 (none) to 4 (great), instead of both.

        Returns:
            As ``gsm.status``.
        """
        if profile is not None:
            if rssi is not None or ber is not None:
                raise BadValue("gsm.signal: give either a profile, or rssi and ber")
            self._device.phone.update(signal_profile=profile)
        elif rssi is None:
            raise BadValue("gsm.signal: give rssi, or a profile")
        else:
            changes = {"rssi": rssi} if ber is None else {"rssi": rssi, "ber": ber}
            self._device.phone.update(signal_profile=None, **changes)
        return self.gsm_status()

    # -- USSD --

    def ussd_reply(self, text: str, expect_reply: bool = False) -> dict[str, Any]:
        """Send the guest a USSD text; with ``expect_reply`` it may answer. Returns as ``ussd.status``."""
        self._device.phone.reply_ussd(_text(text, "text"), expect_reply)
        return self.ussd_status()

    def ussd_status(self) -> dict[str, Any]:
        """``state``: ``idle``, ``network`` (it is the network's turn to answer) or ``guest``."""
        return {"state": self._device.phone.state.ussd.value}

    # -- SIM card --

    def sim_status(self) -> dict[str, Any]:
        """``status``: ``ready``, ``pin``, ``puk``, ``network``, ``not-ready`` or ``absent``."""
        return {"status": self._device.phone.state.sim.value}

    def sim_lock(self, pin: str = "0000") -> dict[str, Any]:
        """Have the SIM card want a PIN of four digits. Returns as ``sim.status``."""
        self._device.phone.lock_sim(_text(pin, "pin"))
        return self.sim_status()

    def sim_insert(self) -> dict[str, Any]:
        """Put a SIM card in that is ready. Returns as ``sim.status``."""
        self._device.phone.update(sim=SimStatus.READY)
        return self.sim_status()

    def sim_remove(self) -> dict[str, Any]:
        """Take the SIM card out. Returns as ``sim.status``."""
        self._device.phone.update(sim=SimStatus.ABSENT)
        return self.sim_status()


def _call(call: Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "number": call.number,
        "direction": call.direction.value,
        "state": call.state.value,
        "multiparty": call.multiparty,
    }


def _message(message: Message) -> dict[str, Any]:
    return {name: value for name, value in attrs.asdict(message).items() if name != "direction"}


def _registration(state: str) -> Registration:
    names = {"on": "home", "off": "unregistered"}
    try:
        return Registration(names.get(state, state))
    except ValueError:
        raise BadValue(
            f"{state!r} is no registration", f"it is on, off, {', '.join(r.value for r in Registration)}"
        ) from None


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadValue(f"the {what} must be a text")
    return value
