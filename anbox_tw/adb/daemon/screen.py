"""``framebuffer:``: one picture of the screen (AOSP ``daemon/framebuffer_service.cpp``), from a pluggable source."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

import attrs
from twisted.internet.defer import Deferred

from anbox_tw.errors import AdbError

__all__ = ["Picture", "ScreenSource"]

MAX_BYTES = 48 << 20
"""Largest picture, below what may wait in one stream; 4096 x 3072 pixels."""

_HEADER = Struct("<13I")
_VERSION = 1
"""The header without a colour space, which every client reads; Android 9 added that as version 2."""
_RGBA_OFFSETS = (0, 8, 16, 8, 8, 8, 24, 8)
"""Offset and length in bits: red, blue, green, alpha."""


@attrs.frozen
class Picture:
    """What a screen shows.

    Attributes:
        width: in pixels.
        height: in pixels.
        pixels: rows from the top, each pixel as the bytes red, green, blue, alpha.
    """

    width: int
    height: int
    pixels: bytes = attrs.field(repr=False)

    def encode(self) -> bytes:
        """The header and the pixels as ``framebuffer:`` sends them.

        Raises:
            AdbError: there are more or fewer pixels than the size says, or too many.
        """
        size = self.width * self.height * 4
        if self.width <= 0 or self.height <= 0 or size != len(self.pixels) or size > MAX_BYTES:
            raise AdbError(f"{len(self.pixels)} bytes are no picture of {self.width} x {self.height} pixels")
        return _HEADER.pack(_VERSION, 32, size, self.width, self.height, *_RGBA_OFFSETS) + self.pixels


ScreenSource = Callable[[], "Picture | Deferred[Picture]"]
"""Gives what the screen shows now."""
