"""Pictures of a camera, in planes of bytes, and what guests want them as; pure and quick.

There is no loop over pixels: tables (``bytes.translate``), strides (slices) and sums of whole planes as one large integer work in
C. A 640x480 frame as video and preview takes some 10 ms of one core, in a thread.

The sums of planes are right because no byte ever carries into the next: the tables are made so that three values of one pixel never
add up to more than 255.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import attrs

from anbox_tw.qemu._camera_wire import PREVIEW_BYTES_PER_PIXEL
from anbox_tw.qemu.errors import CameraError

__all__ = [
    "MAX_GAIN",
    "MAX_PIXELS",
    "Picture",
    "colour_bars",
    "cover",
    "from_interleaved",
    "read_netpbm",
    "to_preview",
    "to_video",
]

MAX_GAIN = 16.0
"""White balance and exposure beyond it make everything white anyway."""

MAX_PIXELS = 64 * 1024 * 1024
"""Of a picture that is read: 64 megapixels are 192 MB of planes."""


@attrs.frozen
class Picture:
    """One picture: a byte per pixel and colour, row by row.

    Attributes:
        width: pixels.
        height: pixels.
        red: ``width * height`` bytes, as the next two.
        green: likewise.
        blue: likewise.
    """

    width: int
    height: int
    red: bytes = attrs.field(repr=False)
    green: bytes = attrs.field(repr=False)
    blue: bytes = attrs.field(repr=False)

    @property
    def planes(self) -> tuple[bytes, bytes, bytes]:
        """Red, green, blue."""
        return self.red, self.green, self.blue

    def adjusted(self, gains: Sequence[float]) -> Picture:
        """The same with each colour multiplied, up to white."""
        tables = [_gain_table(round(min(max(gain, 0.0), MAX_GAIN), 3)) for gain in gains]
        if all(table is None for table in tables):
            return self
        changed = (
            plane if table is None else plane.translate(table)
            for plane, table in zip(self.planes, tables, strict=True)
        )
        return Picture(self.width, self.height, *changed)


@functools.lru_cache(64)
def _gain_table(gain: float) -> bytes | None:
    return None if gain == 1 else bytes(min(255, round(value * gain)) for value in range(256))


def _table(factor: float, offset: float = 0.0) -> bytes:
    return bytes(round(factor * value + offset) for value in range(256))


# ITU-R BT.601, limited range, as the emulator's converters
_Y = (_table(0.257), _table(0.504), _table(0.098, 16))
_U = (_table(-0.148, 0.148 * 255), _table(-0.291, 0.291 * 255), _table(0.439, 16))
_V = (_table(0.439, 16), _table(-0.368, 0.368 * 255), _table(-0.071, 0.071 * 255))


def _mixed(planes: Sequence[bytes], tables: Sequence[bytes]) -> bytes:
    """Look each plane's bytes up in its table, and add the planes byte by byte."""
    total = sum(
        int.from_bytes(plane.translate(table), "little") for plane, table in zip(planes, tables, strict=True)
    )
    return total.to_bytes(len(planes[0]), "little")


def to_video(picture: Picture, format: str) -> bytes:
    """A frame of twelve bits per pixel.

    Args:
        picture: of even width and height.
        format: ``YU12``, ``YV12``, ``NV12`` or ``NV21``.
    """
    width = picture.width
    brightness = _mixed(picture.planes, _Y)
    # of each two by two pixels the first one's colour
    quarter = [
        b"".join(plane[start : start + width : 2] for start in range(0, len(plane), 2 * width))
        for plane in picture.planes
    ]
    u, v = _mixed(quarter, _U), _mixed(quarter, _V)
    if format in ("YU12", "YV12"):
        return b"".join((brightness, u, v) if format == "YU12" else (brightness, v, u))
    both = bytearray(2 * len(u))
    both[0::2], both[1::2] = (u, v) if format == "NV12" else (v, u)
    return b"".join((brightness, both))


def to_preview(picture: Picture) -> bytes:
    """RGB32: red, green, blue, 255 for each pixel, as Android's ``RGBA_8888``."""
    pixels = bytearray(b"\xff") * (PREVIEW_BYTES_PER_PIXEL * len(picture.red))
    for offset, plane in enumerate(picture.planes):
        pixels[offset::PREVIEW_BYTES_PER_PIXEL] = plane
    return bytes(pixels)


def from_interleaved(width: int, height: int, pixels: bytes, step: int = 3) -> Picture:
    """A picture from red, green, blue (and more) of each pixel in turn."""
    return Picture(width, height, pixels[0::step], pixels[1::step], pixels[2::step])


def cover(picture: Picture, width: int, height: int) -> Picture:
    """Scaled so that it fills ``width`` by ``height``; what stands out on two sides is cut off."""
    if (picture.width, picture.height) == (width, height):
        return picture
    scale = max(width / picture.width, height / picture.height)
    columns = _sampled(picture.width, width, scale)
    rows = _sampled(picture.height, height, scale)
    pick = operator.itemgetter(*columns) if width > 1 else (lambda row: (row[columns[0]],))
    return Picture(
        width,
        height,
        *(
            b"".join(bytes(pick(plane[row * picture.width : (row + 1) * picture.width])) for row in rows)
            for plane in picture.planes
        ),
    )


def _sampled(have: int, want: int, scale: float) -> list[int]:
    return [min(max(int((at + 0.5 - want / 2) / scale + have / 2), 0), have - 1) for at in range(want)]


def read_netpbm(data: bytes) -> Picture:
    """A binary PPM or PGM (``P6``, ``P5``) of eight bits per colour.

    Raises:
        CameraError: it is something else.
    """
    fields: list[bytes] = []
    at = 0
    while len(fields) < 4:
        while data[at : at + 1].isspace():
            at += 1
        if data[at : at + 1] == b"#":
            at = data.find(b"\n", at) + 1 or len(data)
            continue
        start = at
        while at < len(data) and not data[at : at + 1].isspace():
            at += 1
        if start == at or at - start > 10:
            raise CameraError("it is no PPM file: its header is not complete")
        fields.append(data[start:at])
    kind, *numbers = fields
    if kind not in (b"P5", b"P6") or not all(number.isdigit() for number in numbers):
        raise CameraError(f"it is no binary PPM or PGM file: it begins with {data[:8]!r}")
    width, height, most = map(int, numbers)
    if most != 255 or not 0 < width * height <= MAX_PIXELS:
        raise CameraError(f"a PPM file of {width}x{height} with {most} as white cannot be used")
    step = 3 if kind == b"P6" else 1
    pixels = data[at + 1 : at + 1 + width * height * step]
    if len(pixels) < width * height * step:
        raise CameraError(f"the PPM file ends early: {len(pixels)} of {width * height * step} bytes")
    if step == 1:
        return Picture(width, height, pixels, pixels, pixels)
    return from_interleaved(width, height, pixels)


_BARS = (
    (255, 255, 255),
    (255, 255, 0),
    (0, 255, 255),
    (0, 255, 0),
    (255, 0, 255),
    (255, 0, 0),
    (0, 0, 255),
    (0, 0, 0),
)
"""White, yellow, cyan, green, magenta, red, blue, black."""

_ROUND_S = 8.0
"""In which the bars have gone round once."""


def colour_bars(width: int, height: int, seconds: float) -> Picture:
    """A test picture: eight colour bars that move left, one a second, above a ramp from black to white, and a white line
    that falls once a second.

    Args:
        width: pixels.
        height: pixels.
        seconds: on which it depends, and nothing else.
    """
    shift = int(seconds % _ROUND_S / _ROUND_S * width)
    ramp = bytes(x * 255 // max(width - 1, 1) for x in range(width))
    bars_rows = height * 3 // 4
    line = int(seconds % 1.0 * height)
    planes = []
    for colour in range(3):
        row = bytes(_BARS[x * len(_BARS) // width][colour] for x in range(width))
        rows = [row[shift:] + row[:shift]] * bars_rows + [ramp] * (height - bars_rows)
        rows[line] = b"\xff" * width
        planes.append(b"".join(rows))
    return Picture(width, height, *planes)
