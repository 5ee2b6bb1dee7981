"""Display, lights, fingers and what is typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import attrs

from anbox_tw.device.errors import BadValue, UnknownName
from anbox_tw.device.part import Part, in_range

__all__ = [
    "LIGHTS",
    "Display",
    "DisplayState",
    "Fingerprint",
    "FingerprintState",
    "Input",
    "InputDevice",
    "InputEvent",
    "InputState",
]

LIGHTS = ("lcd_backlight", "keyboard_backlight", "button_backlight")
"""What the lights HAL of the goldfish device sets."""

MAX_FINGER_ID = 0x7FFF_FFFF
"""``MAX_FID_VALUE`` of the guest's fingerprint HAL."""


@attrs.frozen
class DisplayState:
    """What the user sees, and what the guest said of it.

    Attributes:
        width: pixels.
        height: pixels.
        density: dots per inch.
        rotation: quarter turns clockwise, 0 to 3.
        on: whether the guest has its screen on.
        brightness: of each light, 0 to 255, by name.
        led: notification light as 0xRRGGBB, milliseconds on, milliseconds off.
    """

    width: int = attrs.field(default=1024, validator=in_range(1, 16384))
    height: int = attrs.field(default=768, validator=in_range(1, 16384))
    density: int = attrs.field(default=160, validator=in_range(32, 1024))
    rotation: int = attrs.field(default=0, validator=in_range(0, 3))
    on: bool = True
    brightness: Mapping[str, int] = attrs.field(factory=dict)
    led: tuple[int, int, int] = (0, 0, 0)


class Display(Part[DisplayState]):
    """The display; event ``vibrate`` (milliseconds)."""

    name = "display"

    def __init__(self, width: int = 1024, height: int = 768) -> None:
        super().__init__(DisplayState(width=width, height=height))

    def set_brightness(self, light: str, value: int) -> None:
        """Set one light, 0 to 255.

        Raises:
            UnknownName: no light is called so.
            BadValue: the value is out of range.
        """
        if light not in LIGHTS:
            raise UnknownName(f"no light is called {light!r}", f"there are {', '.join(LIGHTS)}")
        if not 0 <= value <= 255:
            raise BadValue(f"a brightness is 0 to 255, not {value}")
        self.update(brightness={**self.state.brightness, light: value})


@attrs.frozen
class FingerprintState:
    """Which finger touches the sensor; None is none."""

    finger: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(in_range(1, MAX_FINGER_ID))
    )


class Fingerprint(Part[FingerprintState]):
    """The fingerprint sensor."""

    name = "fingerprint"

    def __init__(self) -> None:
        super().__init__(FingerprintState())

    def touch(self, finger: int) -> None:
        """Put a finger on it, 1 to `MAX_FINGER_ID`.

        Raises:
            BadValue: the id is out of range.
        """
        self.update(finger=finger)

    def remove(self) -> None:
        """Take the finger away."""
        self.update(finger=None)


class InputDevice(Enum):
    """The session's input devices; the value is the N of ``/dev/input/eventN``."""

    POINTER = 0
    KEYBOARD = 1
    TOUCH = 2


@attrs.frozen
class InputEvent:
    """One Linux input event: type, code, value as in ``linux/input-event-codes.h``."""

    type: int
    code: int
    value: int


@attrs.frozen
class InputState:
    """Input has no state that others see; the touch screen's slots are its own affair."""


class Input(Part[InputState]):
    """Where input is injected; event ``input`` with ``(device, events)`` for whoever serves ``/dev/input``."""

    name = "input"

    def __init__(self) -> None:
        super().__init__(InputState())

    def inject(self, device: InputDevice, events: Sequence[InputEvent]) -> None:
        """Hand a batch to the device's readers as it is; the caller ends it with SYN_REPORT where it wants one."""
        if events:
            self.emit("input", (device, tuple(events)))
