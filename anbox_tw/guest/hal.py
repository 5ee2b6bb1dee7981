"""The guest's hardware abstraction layer: what Android's own HALs for goldfish do on ``/dev/qemu_pipe``, call by call.

From ``device/generic/goldfish`` (``qemud.h``, ``sensors_qemu.c``, ``QemuClient.cpp``, ``gps_qemu.c``, ``fingerprint.c``, ``lights_qemu.c``,
``power_qemu.c``). Faithful where it is hard on the host: a message is received by one ``read`` of four bytes and one of its length, and a short
read is an error; header and body are sent by two writes. As the HALs', these calls block: they are for a process or thread of their own. Unlike the HALs',
they give up after a while.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from anbox_tw.device import SENSORS
from anbox_tw.errors import NotRunning, PeerError, TimedOut
from anbox_tw.qemu._camera_wire import FORMATS, PREVIEW_BYTES_PER_PIXEL, fourcc, video_bytes
from anbox_tw.qemu._wire import encode_identification

__all__ = [
    "CameraDevice",
    "CameraInfo",
    "Fingerprints",
    "GpsFix",
    "GpsReader",
    "NmeaReader",
    "QemuPipe",
    "QemudChannel",
    "SensorsDevice",
    "list_cameras",
    "list_sensors",
    "set_light",
    "set_screen",
]

TIMEOUT_S = 30.0
"""The HALs wait for ever; a session that says nothing for so long is stuck."""

SENSOR_BUFFER_BYTES = 255
"""``sensors_qemu.c`` receives into 256 bytes, one of them for a NUL."""

NMEA_MAX_BYTES = 83
"""``NMEA_MAX_SIZE`` of ``gps_qemu.c``, with the line feed."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Of a camera's reply; the HAL takes whatever is announced."""

READ_BYTES = 4096


class QemuPipe:
    """One open pipe.

    Args:
        path: of the socket, ``/dev/qemu_pipe`` in a container.
        name: of the service, with arguments behind ``:``.
        timeout: seconds for each read and write.

    Raises:
        NotRunning: no session serves the socket.
    """

    def __init__(self, path: str, name: str, timeout: float = TIMEOUT_S) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._timeout = timeout
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise NotRunning(
                f"no qemu pipe at {path}: {error.strerror}", "a session must serve it"
            ) from error
        self.write(encode_identification(name))

    def __enter__(self) -> QemuPipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def write(self, data: bytes) -> None:
        """One write of all of it, as ``qemud_fd_write``.

        Raises:
            NotRunning: the session has closed the pipe.
            PeerError: it takes only a part.
        """
        try:
            written = self._socket.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise NotRunning(f"the session has closed the pipe: {error.strerror}") from error
        if written != len(data):
            raise PeerError(f"only {written} of {len(data)} bytes could be written")

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """One ``read``: what is there, at most ``size`` bytes.

        Raises:
            TimedOut: nothing comes.
            NotRunning: the session has closed the pipe.
        """
        if not self.wait(self._timeout if timeout is None else timeout):
            raise TimedOut("the session says nothing")
        try:
            data = os.read(self._socket.fileno(), size)
        except OSError as error:
            raise NotRunning(f"the session has closed the pipe: {error.strerror}") from error
        if not data:
            raise NotRunning("the session has closed the pipe", "its log says why")
        return data

    def wait(self, seconds: float) -> bool:
        """Whether there is something to read, or the end, within so many seconds."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))


class QemudChannel(QemuPipe):
    """A pipe with messages, as ``qemud_channel_open``, ``_send`` and ``_recv``."""

    def __init__(self, path: str, service: str, timeout: float = TIMEOUT_S) -> None:
        super().__init__(path, f"qemud:{service}", timeout)

    def send(self, message: bytes) -> None:
        """Send a message, in two writes; an empty one is not sent, as the helper does it."""
        if message:
            self.write(b"%04x" % len(message))
            self.write(message)

    def receive(self, limit: int, timeout: float | None = None) -> bytes:
        """Receive a message into a buffer of ``limit`` bytes.

        Raises:
            PeerError: a short read, no hexadecimal header, or more than the buffer holds: the HAL gives up then.
        """
        header = self.read(4, timeout)
        if len(header) != 4:
            raise PeerError(f"a header of {len(header)} bytes in one read: {header!r}")
        try:
            size = int(header, 16)
        except ValueError:
            raise PeerError(f"the header {header!r} is no length") from None
        if size > limit:
            raise PeerError(f"a message of {size} bytes for a buffer of {limit}")
        message = self.read(size) if size else b""
        if len(message) != size:
            raise PeerError(f"{len(message)} of {size} bytes in one read")
        return message


# -- sensors --


def list_sensors(path: str) -> list[str]:
    """The names of the sensors that the host has, by a connection of its own, as ``sensors__get_sensors_list``."""
    with QemudChannel(path, "sensors") as channel:
        assert isinstance(channel, QemudChannel)
        channel.send(b"list-sensors")
        mask = int(channel.receive(11))
    return [name for name, kind in SENSORS.items() if mask >> kind.bit & 1]


_REPORTS = {kind.report: kind for kind in SENSORS.values()}


class SensorsDevice(QemudChannel):
    """The open sensors device: activate, set the delay, poll.

    Args:
        path: of the pipe's socket.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, "sensors")
        self._offset: int | None = None
        self._start = 0

    def activate(self, name: str, on: bool = True) -> None:
        """Switch a sensor on or off."""
        self.send(f"set:{name}:{int(on)}".encode())

    def set_delay(self, milliseconds: int) -> None:
        """Ask for reports at this distance, at least 10 ms as the HAL."""
        self.send(b"set-delay:%d" % max(milliseconds, 10))

    def wake(self) -> None:
        """Have the next `poll` return, as ``control__wake`` did."""
        self.send(b"wake")

    def poll(self) -> tuple[int, dict[str, tuple[float, ...]]]:
        """Wait for a report.

        Returns:
            Its time in nanoseconds, on the guest's clock as the first report set it, and the values by sensor; -1 and
            nothing after `wake`.

        Raises:
            PeerError: the session says something that the HAL does not understand, or ends.
        """
        events: dict[str, tuple[float, ...]] = {}
        while True:
            text = self.receive(SENSOR_BUFFER_BYTES).decode("latin-1")
            if text == "wake":
                return -1, {}
            word, _, rest = text.partition(":")
            if word == "sync":
                if events:  # a sync alone is ignored
                    return self._time(int(rest)), events
                continue
            kind = _REPORTS.get(word)
            try:
                values = tuple(float(value) for value in rest.split(":"))
            except ValueError:
                values = ()
            if kind is None or len(values) != len(kind.default):
                raise PeerError(f"the report {text!r} is of no sensor")
            events[kind.name] = values

    def _time(self, microseconds: int) -> int:
        if self._offset is None:
            self._start = time.monotonic_ns()
            self._offset = microseconds * 1000
        return self._start + microseconds * 1000 - self._offset


# -- lights and power --


def set_light(path: str, light: str, brightness: int) -> None:
    """Set a light, 0 to 255; a connection for each, as ``lights_qemu.c``."""
    with QemudChannel(path, "hw-control") as channel:
        assert isinstance(channel, QemudChannel)
        channel.send(f"power:light:brightness:{light}:{brightness}".encode())


def set_screen(path: str, on: bool) -> None:
    """Wake the screen or put it to standby, as ``power_qemu.c``."""
    with QemudChannel(path, "hw-control") as channel:
        assert isinstance(channel, QemudChannel)
        channel.send(b"power:screen_state:" + (b"wake" if on else b"standby"))


# -- fingerprint --


class Fingerprints(QemudChannel):
    """The listener thread of the fingerprint HAL.

    Args:
        path: of the pipe's socket.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, "fingerprintlisten")
        self.send(b"listen")

    def next(self, timeout: float = TIMEOUT_S) -> int | None:
        """Wait for the next touch: the finger's number, or None for its removal.

        Raises:
            PeerError: it is neither; the HAL closes then.
        """
        message = self.receive(127, timeout)
        # the HAL scans the buffer as C text
        text = message.partition(b"\0")[0].decode("latin-1")
        if text.startswith("off"):
            return None
        word, _, number = text.partition(":")
        if word != "on" or not number.isdigit() or int(number) < 1:
            raise PeerError(f"{message!r} is no touch")
        return int(number)


# -- camera --


@attrs.frozen
class CameraInfo:
    """A camera as the factory lists it.

    Attributes:
        name: for `CameraDevice`.
        direction: ``back`` or ``front``.
        sizes: width and height of its frames.
    """

    name: str
    direction: str
    sizes: tuple[tuple[int, int], ...]


class _CameraClient(QemuPipe):
    def query(self, text: str) -> bytes:
        """Send a query; returns its data.

        Raises:
            PeerError: the host says ``ko`` (with its words), or its reply is none.
        """
        self.write(text.encode() + b"\0")
        header = self.read(8)
        if len(header) != 8:
            raise PeerError(f"a header of {len(header)} bytes in one read: {header!r}")
        try:
            size = int(header, 16)
        except ValueError:
            raise PeerError(f"the header {header!r} is no length") from None
        if not 3 <= size <= MAX_REPLY_BYTES:
            raise PeerError(f"a reply of {size} bytes")
        parts, have = [], 0
        while have < size:  # the camera HAL reads on, since Android 8; before, one read had to do
            part = self.read(size - have)
            parts.append(part)
            have += len(part)
        reply = b"".join(parts)
        separator = b"\0" if size == 3 else b":"
        if reply[:2] not in (b"ok", b"ko") or reply[2:3] != separator:
            raise PeerError(f"the reply {reply[:40]!r} is neither ok nor ko")
        if reply[:2] == b"ko":
            raise PeerError(reply[3:].rstrip(b"\0").decode("latin-1") or "the host says no")
        return reply[3:]


def list_cameras(path: str) -> list[CameraInfo]:
    """Ask the factory for the cameras.

    Raises:
        PeerError: the list cannot be read.
    """
    with _CameraClient(path, "qemud:camera") as client:
        assert isinstance(client, _CameraClient)
        data = client.query("list")
    if not data.endswith(b"\n\0"):
        raise PeerError(f"the list {data[-20:]!r} does not end as one")
    cameras = []
    for line in data[:-1].decode("latin-1").splitlines():
        if not line:
            continue
        words: Mapping[str, str] = dict(word.partition("=")[::2] for word in line.split())
        try:
            sizes = tuple(
                (int(width), int(height))
                for width, height in (size.split("x") for size in words["framedims"].split(","))
            )
            cameras.append(CameraInfo(words["name"], words["dir"], sizes))
        except (KeyError, ValueError):
            raise PeerError(f"{line!r} is no camera") from None
    return cameras


class CameraDevice(_CameraClient):
    """An open camera: connect, start, frames, stop, disconnect.

    Args:
        path: of the pipe's socket.
        name: of the camera, from `list_cameras`.

    Raises:
        PeerError: another has it.
        NotRunning: there is no such camera.
    """

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, f"qemud:camera:name={name}")
        self._size = 0, 0
        self.query("connect")

    def start(self, width: int, height: int, format: str = "NV21") -> None:
        """Begin to capture.

        Raises:
            PeerError: with the host's words.
        """
        if fourcc(format) not in FORMATS:
            raise PeerError(f"{format} is no format of video")
        self.query(f"start dim={width}x{height} pix={fourcc(format)}")
        self._size = width, height

    def frame(
        self,
        *,
        video: bool = True,
        preview: bool = True,
        white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0),
        exposure: float = 1.0,
    ) -> tuple[bytes, bytes]:
        """Get the next frame: video and preview, each empty when it is not asked for.

        Raises:
            PeerError: with the host's words, or the frame has another size.
        """
        width, height = self._size
        sizes = (
            video_bytes(width, height) if video else 0,
            width * height * PREVIEW_BYTES_PER_PIXEL if preview else 0,
        )
        red, green, blue = white_balance
        data = self.query(
            f"frame video={sizes[0]} preview={sizes[1]} whiteb={red:g},{green:g},{blue:g} expcomp={exposure:g}"
        )
        if len(data) != sum(sizes):
            raise PeerError(f"a frame of {len(data)} bytes, and {sum(sizes)} were asked for")
        return data[: sizes[0]], data[sizes[0] :]

    def stop(self) -> None:
        """Capture no more, and give the camera free."""
        self.query("stop")
        self.query("disconnect")


# -- GPS --


@attrs.frozen
class GpsFix:
    """What the HAL gives to Android with each sentence; None is what the sentence did not say.

    Attributes:
        latitude: degrees.
        longitude: degrees.
        altitude: metres.
        speed: as the sentence has it: knots, which the HAL takes for metres per second.
        bearing: degrees.
        time: seconds of the day, UTC.
    """

    latitude: float | None = None
    longitude: float | None = None
    altitude: float | None = None
    speed: float | None = None
    bearing: float | None = None
    time: float | None = None


class NmeaReader:
    """The HAL's parser: a line at a time, too long ones dropped, checksums not looked at."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._overflow = False

    def receive_data(self, data: bytes) -> list[GpsFix]:
        """Take the next bytes; returns what the sentences in them say."""
        fixes = []
        for byte in data:
            if self._overflow:
                self._overflow = byte != 10
            elif len(self._line) >= NMEA_MAX_BYTES:
                self._overflow = True
                self._line.clear()
            else:
                self._line.append(byte)
                if byte == 10:
                    fix = self._parse(bytes(self._line).decode("latin-1"))
                    self._line.clear()
                    if fix is not None:
                        fixes.append(fix)
        return fixes

    def _parse(self, line: str) -> GpsFix | None:
        if len(line) < 9:
            return None
        text = line.removeprefix("$").removesuffix("\n").removesuffix("\r")
        if text[-3:-2] == "*":
            text = text[:-3]
        fields = text.split(",")[:16] + [""] * 16
        kind = fields[0][2:5]
        if kind == "GGA":
            return GpsFix(
                *self._position(fields[2:6]),
                altitude=_number(fields[9]) if fields[9] else None,
                time=self._time(fields[1]),
            )
        if kind == "RMC" and fields[2][:1] == "A":
            return GpsFix(
                *self._position(fields[3:7]),
                speed=_number(fields[7]) if fields[7] else None,
                bearing=_number(fields[8]) if fields[8] else None,
                time=self._time(fields[1]),
            )
        return None

    @staticmethod
    def _position(fields: list[str]) -> tuple[float | None, float | None]:
        angles: list[float | None] = []
        for text, side in ((fields[0], fields[1]), (fields[2], fields[3])):
            if len(text) < 6:
                return None, None
            value = _number(text)
            degrees = int(value / 100)
            angle = degrees + (value - degrees * 100) / 60
            angles.append(-angle if side in ("S", "W") else angle)
        return angles[0], angles[1]

    @staticmethod
    def _time(text: str) -> float | None:
        if len(text) < 6 or not text[:4].isdigit():
            return None
        return int(text[:2]) * 3600 + int(text[2:4]) * 60 + _number(text[4:])


def _number(text: str) -> float:
    """As ``str2float``: at most 15 characters, and 0 for what is no number."""
    try:
        value = float(text) if len(text) < 16 else 0.0
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


class GpsReader(QemuPipe):
    """The HAL's connection to the receiver.

    Args:
        path: of the pipe's socket.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, "qemud:gps")

    def fixes(self) -> Iterator[GpsFix]:
        """The fixes as they come.

        Raises:
            TimedOut: there is none for a long time.
            NotRunning: the session has ended.
        """
        reader = NmeaReader()
        while True:
            yield from reader.receive_data(self.read(READ_BYTES))


def as_dict(value: Any) -> dict[str, Any]:
    """An attrs value without what is None; JSON-able."""
    return {name: item for name, item in attrs.asdict(value).items() if item is not None}
