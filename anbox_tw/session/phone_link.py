"""Calls and messages between the sessions, and emulators, of one host, through each other's consoles.

As the emulator does it (``remote_call.c``): a number that ends with the console's port of another is the other's. Who dials it
says ``gsm call`` on the other's console with his own number; what either side does with the call afterwards is told the other in the same way.
What came by the console is the other's doing, and not told back as the emulator does.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.console._auth import AuthToken
from anbox_tw.console.client import send_commands
from anbox_tw.device import Call, CallDirection, CallState, Change, Device, Message
from anbox_tw.errors import AnboxError
from anbox_tw.network import owner_of_port
from anbox_tw.qemu.modem._pdu import Deliver, split_text

__all__ = ["NUMBER_PREFIX", "PhoneLink"]

NUMBER_PREFIX = "1555521"
"""Before the console's port in the emulator's phone numbers."""

FIRST_PORT, LAST_PORT = 5554, 5682
"""Even ports that an emulator takes."""


class PhoneLink:
    """Joins the phone of a session with those of the others.

    Args:
        reactor: connects and tells the time.
        device: whose phone.
        token: the secret of the consoles of this user.
    """

    _log = Logger()

    def __init__(self, reactor: Any, device: Device, token: AuthToken) -> None:
        self._reactor = reactor
        self._device = device
        self._token = token
        self._known: dict[int, Call] = {}
        self._locks: dict[int, DeferredLock] = {}
        self._running: set[Deferred[Any]] = set()
        self._reference = 0
        self._stopped = False
        device.calls.others = self
        device.calls.observe(self._calls_changed)
        device.messages.observe(self._message_sent)

    def full_number(self, number: str) -> str:
        """A dialled number as the other gives it for his own; a port alone is one too."""
        for full in (number.removeprefix("+"), NUMBER_PREFIX + number):
            if self._port(full):
                return full
        return number

    def answers(self, number: str) -> bool:
        """Whether the number is another session's, which itself says when it rings and is answered."""
        return self._port(number) != 0

    def start(self) -> None:
        """Tell the others from now on."""
        self._stopped = False

    def stop(self) -> Deferred[None]:
        """Tell nobody any more; fires when what was being told is told, or given up after a few seconds."""
        self._stopped = True
        told: Deferred[Any] = DeferredList(list(self._running))
        return told.addCallback(lambda _: None)

    def _port(self, number: str) -> int:
        digits = number.removeprefix("+")
        if (
            len(digits) != len(NUMBER_PREFIX) + 4
            or not digits.startswith(NUMBER_PREFIX)
            or not digits.isdecimal()
        ):
            return 0
        port = int(digits[-4:])
        own = digits == self._device.phone.state.number
        return port if FIRST_PORT <= port <= LAST_PORT and port % 2 == 0 and not own else 0

    def _calls_changed(self, change: Change) -> None:
        if "calls" not in change.fields:
            return
        before, self._known = self._known, {call.id: call for call in change.value.calls}
        if self._device.calls.from_other:
            # Told back, it could meet what was done here meanwhile, and undo it there: for ever.
            return
        for call in before.values():
            now = self._known.get(call.id)
            gone = now is None or now.number != call.number
            if gone and call.state is not CallState.DIALING:
                self._tell(call.number, "cancel")
        for call in self._known.values():
            was = before.get(call.id)
            if was is None or was.number != call.number or was.state is call.state:
                continue
            if call.state is CallState.ALERTING and call.direction is CallDirection.OUTGOING:
                self._tell(call.number, "call", call.id)
            elif call.state is CallState.ACTIVE:
                self._tell(call.number, "accept")
            elif call.state is CallState.HELD:
                self._tell(call.number, "hold")

    def _tell(self, number: str, what: str, call_id: int = 0) -> None:
        port = self._port(number)
        if port:
            own = self._device.phone.state.number
            told = self._send(port, [f"gsm {what} {own}"])
            if call_id:
                told.addCallback(self._rung, call_id)

    def _rung(self, rings: bool, call_id: int) -> None:
        if not rings:
            self._device.calls.release(call_id)

    def _message_sent(self, change: Change) -> None:
        if change.kind != "sent":
            return
        message: Message = change.value
        port = self._port(self.full_number(message.number))
        if port:
            self._reference = self._reference % 255 + 1
            own = f"+{self._device.phone.state.number}"
            parts = split_text(message.text, self._reference)
            pdus = [
                Deliver(own, part, message.time, more=part.number < part.total).encode() for part in parts
            ]
            self._send(port, [f"sms pdu {pdu.hex()}" for pdu in pdus])

    def _send(self, port: int, commands: list[str]) -> Deferred[Any]:
        """Fires with whether all was taken; in order for each port."""
        if self._stopped:
            return succeed(False)
        lock = self._locks.setdefault(port, DeferredLock())
        running = lock.run(lambda: Deferred.fromCoroutine(self._run(port, commands)))
        ended: Deferred[Any] = Deferred()
        self._running.add(ended)

        def done(result: Any) -> Any:
            self._running.discard(ended)
            ended.callback(None)
            return result

        return running.addErrback(self._failed).addCallback(done)

    async def _run(self, port: int, commands: list[str]) -> bool:
        await deferLater(self._reactor, 0)  # what is told now has been told to all observers
        if owner_of_port(port) != os.getuid():
            self._log.info("No phone of this user is at {port}", port=port)  # others must not hear the token
            return False
        try:
            answers = await send_commands(self._reactor, port, commands, self._token)
        except AnboxError as error:
            self._log.info("The phone at {port} is not reached: {error}", port=port, error=error)
            return False
        return all(answer[-1] == "OK" for answer in answers)

    def _failed(self, failure: Failure) -> bool:
        self._log.failure("Another session's phone could not be told", failure)
        return False
