"""``qemud:hw-control``: what the guest tells of its lights, its screen and its vibrator.

The guest's lights HAL opens a connection for each command, its power HAL keeps one; nobody expects an answer. The commands
are those of the emulator's ``docs/ANDROID-QEMUD-SERVICES.TXT``. Anbox ignored all of them.
"""

from __future__ import annotations

from twisted.internet.interfaces import IAddress, IProtocol
from zope.interface import implementer

from anbox_tw.device import DeviceError, Display
from anbox_tw.interfaces import IPipeService
from anbox_tw.qemu._guest_connection import FramedConnection

__all__ = ["HwControlService"]

MAX_VIBRATION_MS = 60_000
"""Longer ones are cut: a guest that wants more says so again."""

_SCREEN = {"wake": True, "standby": False}


class _Connection(FramedConnection):
    service = "qemud:hw-control"

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def command(self, command: bytes) -> None:
        words = command.decode("latin-1").split(":")
        try:
            if not self._obey(words):
                self.ignored(command)
        except DeviceError as error:
            self.note(str(error))

    def _obey(self, words: list[str]) -> bool:
        match words:
            case ["power", "light", "brightness", light, value] if _decimal(value):
                self._display.set_brightness(light, int(value))
            case ["power", "screen_state", state] if state in _SCREEN:
                self._display.update(on=_SCREEN[state])
            case ["set_led_state", colour, on, off] if _colour(colour) and _decimal(on) and _decimal(off):
                self._display.update(led=(int(colour, 16) & 0xFFFFFF, int(on), int(off)))
            case ["vibrator", duration] if _decimal(duration):
                self._display.emit("vibrate", min(int(duration), MAX_VIBRATION_MS))
            case _:
                return False
        return True


def _decimal(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _colour(text: str) -> bool:
    return 0 < len(text) <= 8 and all(letter in "0123456789abcdefABCDEF" for letter in text)


@implementer(IPipeService)
class HwControlService:
    """Shows in the device model what the guest does with lights, screen and vibrator.

    Args:
        display: of the device.
    """

    name = "qemud:hw-control"

    def __init__(self, display: Display) -> None:
        self._display = display

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        return _Connection(self._display)
