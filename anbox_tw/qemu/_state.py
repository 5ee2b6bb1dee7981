"""The host half of the ``qemud:adb`` handshake, for one guest connection, without I/O.

From the emulator's ``android/adb-qemud.c`` (later ``AdbGuestPipe.cpp``) and the guest's
``adb/transport_local.c`` (``qemu_socket_thread``):

====================  ===========================================  =================
state                 what the guest may send                      what moves it on
====================  ===========================================  =================
ACCEPT                ``accept``                                   the guest
WAITING               nothing (an early ``start`` is kept)         ``grant``, ``refuse``
START                 ``start``                                    the guest
OPEN                  ADB packets                                  nothing
CLOSED                nothing                                      nothing
====================  ===========================================  =================

Anbox compared each chunk with the word, so that ``accept`` in two pieces, or with something behind
it, failed, and what came behind ``start`` was lost. Here the accumulated bytes count.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from anbox_tw.qemu.errors import HandshakeError

__all__ = ["MAX_EARLY_BYTES", "Accepted", "AdbHandshake", "GuestData", "HandshakeState", "Started"]

ACCEPT = b"accept"
START = b"start"
OK = b"ok"
REFUSED = b"ko"

MAX_EARLY_BYTES = 8192
"""Kept of what a guest sends before it was told ``ok``: ``start`` and a first CNXN packet fit
(24 + 4096 bytes), and a guest that waits for ``ok``, as Android's does, sends nothing."""


class HandshakeState(Enum):
    """Where the handshake stands; the module's table says what each means."""

    ACCEPT = "accept"
    WAITING = "waiting"
    START = "start"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The guest would take a host's connection."""


@dataclass(frozen=True, slots=True)
class Started:
    """The guest has registered its transport: from here on the bytes are ADB's."""


@dataclass(frozen=True, slots=True)
class GuestData:
    """Bytes of the ADB stream."""

    data: bytes


class AdbHandshake:
    """One guest connection's handshake."""

    def __init__(self) -> None:
        self.state = HandshakeState.ACCEPT
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> list[Accepted | Started | GuestData]:
        """Take the guest's next bytes.

        Raises:
            HandshakeError: they are not what the state allows.
        """
        if self.state is HandshakeState.CLOSED:
            return []
        if self.state is HandshakeState.OPEN:
            return [GuestData(data)] if data else []
        self._buffer += data
        events: list[Accepted | Started | GuestData] = []
        if self.state is HandshakeState.ACCEPT and self._take(ACCEPT):
            self.state = HandshakeState.WAITING
            events.append(Accepted())
        if self.state is HandshakeState.WAITING:
            self._check(START)
            if len(self._buffer) > MAX_EARLY_BYTES:
                raise HandshakeError(f"more than {MAX_EARLY_BYTES} bytes before the host said ok")
        elif self.state is HandshakeState.START and self._take(START):
            self.state = HandshakeState.OPEN
            events.append(Started())
            if self._buffer:
                events.append(GuestData(bytes(self._buffer)))
            self._buffer.clear()
        return events

    def grant(self) -> bytes:
        """A host's connection is there: returns what the guest must be told.

        The state that expects ``start`` is set when this returns, so a guest that answers within
        the write is understood. Afterwards give ``receive_data`` an empty chunk, for a ``start``
        that came early.
        """
        if self.state is not HandshakeState.WAITING:
            raise AssertionError(f"grant in state {self.state}")
        self.state = HandshakeState.START
        return OK

    def refuse(self) -> bytes:
        """No host will come: returns what the guest must be told before its connection is closed."""
        told = REFUSED if self.state is HandshakeState.WAITING else b""
        self.state = HandshakeState.CLOSED
        self._buffer.clear()
        return told

    def _take(self, word: bytes) -> bool:
        self._check(word)
        if len(self._buffer) < len(word):
            return False
        del self._buffer[: len(word)]
        return True

    def _check(self, word: bytes) -> None:
        seen = bytes(self._buffer[: len(word)])
        if not word.startswith(seen):
            self.state = HandshakeState.CLOSED
            raise HandshakeError(f"expected {word.decode()}, got {bytes(self._buffer[:16])!r}")
