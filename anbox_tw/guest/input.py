"""What the guest's EventHub does: finds the sockets in ``/dev/input``, reads what the devices are, then their events."""

from __future__ import annotations

import glob
import os
import selectors
import socket
import stat
import sys
from collections.abc import Sequence

from anbox_tw.device.evdev import EV_SYN, SYN_DROPPED, EventDecoder, StampedEvent
from anbox_tw.device.event_codes import EVENT_CODES, EVENT_TYPES
from anbox_tw.errors import NotRunning, TimedOut

__all__ = ["InputReader", "describe_devices", "find_devices", "get_events", "name_of"]

TIMEOUT_S = 10.0
READ_BYTES = 64 * 1024


def find_devices(dev: str) -> list[str]:
    """The sockets that are input devices.

    Args:
        dev: the guest's ``/dev``.
    """
    return [
        path
        for path in sorted(glob.glob(f"{glob.escape(dev)}/input/event*"))
        if stat.S_ISSOCK(os.stat(path).st_mode)
    ]


class InputReader:
    """One device.

    Args:
        path: of its socket.

    Attributes:
        info: what it says of itself.
        dropped: how often the session said that we were too slow.

    Raises:
        NotRunning: nobody serves it.
        TimedOut: it says nothing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.dropped = 0
        self._decoder = EventDecoder()
        self._first: list[StampedEvent] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        try:
            self._socket.connect(path)
            while self._decoder.info is None:
                data = self._socket.recv(READ_BYTES)
                if not data:
                    raise NotRunning(f"{path} was closed before it said what it is")
                self._first += self._decoder.receive_data(data)
        except TimeoutError as error:
            raise TimedOut(f"{path} says nothing") from error
        except OSError as error:
            self._socket.close()
            raise NotRunning(f"no input device at {path}: {error.strerror}") from error
        self.info = self._decoder.info
        self._socket.settimeout(None)

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        """Whether events came together with the description."""
        return bool(self._first)

    def read(self) -> list[StampedEvent] | None:
        """The events that are there, waiting for some; ``None`` when the device is gone."""
        if self._first:
            first, self._first = self._first, []
            return first
        try:
            data = self._socket.recv(READ_BYTES)
        except ConnectionError:
            return None
        if not data:
            return None
        events = self._decoder.receive_data(data)
        self.dropped += sum(
            stamped.event.type == EV_SYN and stamped.event.code == SYN_DROPPED for stamped in events
        )
        return events

    def close(self) -> None:
        """Close it."""
        self._socket.close()


_TYPES = {number: name for name, number in reversed(list(EVENT_TYPES.items()))}
_CODES = {
    kind: {number: name for name, number in reversed(list(codes.items()))}
    for kind, codes in EVENT_CODES.items()
}


def name_of(stamped: StampedEvent) -> str:
    """Type, code and value with names, as ``getevent -l`` writes them."""
    event = stamped.event
    kind = _TYPES.get(event.type, f"{event.type:04x}")
    code = _CODES.get(kind, {}).get(event.code, f"{event.code:04x}")
    value = f"{event.value & 0xFFFF_FFFF:08x}"
    if kind == "EV_KEY":
        value = {0: "UP", 1: "DOWN", 2: "REPEAT"}.get(event.value, value)
    return f"{kind:<12} {code:<20} {value}"


def _find(dev: str, names: Sequence[str]) -> list[str]:
    paths = [f"{dev}/input/{name}" for name in names] or find_devices(dev)
    if not paths:
        raise NotRunning(f"there are no input devices in {dev}/input", "a session must serve them")
    return paths


def describe_devices(dev: str, names: Sequence[str]) -> None:
    """What ``python -m anbox_tw.guest getevent -p`` does: prints what the devices say of themselves.

    Args:
        dev: the guest's ``/dev``.
        names: of the devices, ``event0`` and so on; all when empty.

    Raises:
        NotRunning: there is no device.
    """
    for path in _find(dev, names):
        reader = InputReader(path)
        reader.close()
        info = reader.info
        sys.stdout.write(f"add device {path}\n  name: {info.name!r}\n")
        sys.stdout.write(
            f"  bus: {info.bus:04x}, vendor: {info.vendor:04x}, product: {info.product:04x}, version: {info.version:04x}\n"
        )
        for kind, codes in (("EV_KEY", info.keys), ("EV_REL", info.relative), ("EV_ABS", info.absolute)):
            for code in sorted(codes):
                limit = f": min {info.minimum.get(code, 0)}, max {info.maximum.get(code, 0)}"
                name = _CODES[kind].get(code, f"{code:04x}")
                sys.stdout.write(f"  {kind} {name}{limit if kind == 'EV_ABS' else ''}\n")
    sys.stdout.flush()


def get_events(dev: str, names: Sequence[str], count: int) -> int:
    """What ``python -m anbox_tw.guest getevent`` does: prints events until there were ``count``, 0 for no end.

    Args:
        dev: the guest's ``/dev``.
        names: of the devices, ``event0`` and so on; all when empty.
        count: of the events.

    Returns:
        How many there were.

    Raises:
        NotRunning: there is no device.
    """
    paths = _find(dev, names)
    seen = 0
    with selectors.DefaultSelector() as selector:
        for path in paths:
            reader = InputReader(path)
            sys.stdout.write(f"add device {path}: {reader.info.name}\n")
            selector.register(reader, selectors.EVENT_READ, reader)
        sys.stdout.flush()
        # what came with the description is read already
        ready = [key.data for key in selector.get_map().values() if key.data.waiting]
        while selector.get_map():
            for reader in ready:
                events = reader.read()
                if events is None:
                    selector.unregister(reader)
                    reader.close()
                    continue
                for stamped in events:
                    seconds, micro = divmod(stamped.microseconds, 1_000_000)
                    sys.stdout.write(f"[{seconds:8d}.{micro:06d}] {reader.path}: {name_of(stamped)}\n")
                    seen += 1
                    if seen == count:
                        sys.stdout.flush()
                        return seen
            sys.stdout.flush()
            # without any device left there is nothing to wait for
            ready = [key.data for key, _ in selector.select()] if selector.get_map() else []
    return seen
