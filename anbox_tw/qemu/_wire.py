"""How a guest says which pipe service it wants: ``pipe:<name>[:<argument>]`` and a NUL.

Facts are from the emulator's ``android/emulation/AndroidPipe.cpp`` and ``docs/ANDROID-QEMU-PIPE.TXT``
and from Anbox's ``src/anbox/qemu/pipe_connection_creator.cpp``:

* the ``pipe:`` prefix is mandatory;
* the text may come in any number of writes, and is complete at its NUL, which is not part of it;
* a guest's own buffer for it holds 256 bytes, so no honest name is longer.

Anbox compared prefixes, so that ``opengles_evil`` reached ``opengles``; here a name matches only
when it is followed by the end or by ``:``.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from anbox_tw.qemu.errors import IdentificationError

__all__ = [
    "MAX_IDENTIFICATION_BYTES",
    "PREFIX",
    "Identified",
    "PipeIdentifier",
    "encode_identification",
    "match_name",
]

PREFIX = b"pipe:"

MAX_IDENTIFICATION_BYTES = 256
"""Text and NUL together: the size of the buffer in the guest's ``qemu_pipe.h`` (libhardware)."""


@dataclass(frozen=True, slots=True)
class Identified:
    """The guest has named the service it wants.

    Attributes:
        text: the name and its argument, without ``pipe:`` and NUL.
        rest: bytes that came in behind the NUL; they belong to the service.
    """

    text: str
    rest: bytes


class PipeIdentifier:
    """Reads one identification from a stream cut at any place."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._done = False

    def receive_data(self, data: bytes) -> Identified | None:
        """Take the next bytes of the stream.

        Returns:
            The identification as soon as its NUL was seen, ``None`` before.

        Raises:
            IdentificationError: the text is too long, lacks the prefix or a name, or is not UTF-8.
        """
        if self._done:
            raise AssertionError("the identification is complete")
        # Only what can still belong to the text is copied, however large the chunk is.
        room = MAX_IDENTIFICATION_BYTES - len(self._buffer)
        end = data.find(b"\0", 0, room)
        self._buffer += data[: end if end >= 0 else room]
        self._check_prefix()
        if end < 0:
            if len(data) >= room:
                raise IdentificationError(
                    f"no NUL within the first {MAX_IDENTIFICATION_BYTES} bytes, which begin {bytes(self._buffer[:32])!r}",
                    "a guest writes pipe:<name>[:<argument>] and one NUL",
                )
            return None
        self._done = True
        if len(self._buffer) <= len(PREFIX):
            raise IdentificationError(f"no service name in {bytes(self._buffer)!r}")
        try:
            text = self._buffer[len(PREFIX) :].decode("utf-8")
        except UnicodeDecodeError:
            raise IdentificationError(f"the name {bytes(self._buffer)!r} is not UTF-8") from None
        return Identified(text, bytes(data[end + 1 :]))

    def _check_prefix(self) -> None:
        # A wrong beginning is refused at its first byte: garbage need not wait for the limit.
        seen = bytes(self._buffer[: len(PREFIX)])
        if not PREFIX.startswith(seen):
            raise IdentificationError(
                f"the stream begins with {bytes(self._buffer[:32])!r} and not with {PREFIX.decode()}",
                "only guests of a container connect here",
            )


def match_name(text: str, names: Container[str]) -> tuple[str, str] | None:
    """Find the service that ``text`` asks for.

    The longest registered name wins that is all of ``text`` or is followed in it by ``:``.

    Args:
        text: as in :class:`Identified`.
        names: the registered names.

    Returns:
        The name and the argument (empty where there is none), or ``None``.
    """
    end = len(text)
    while end > 0:
        if text[:end] in names:
            return text[:end], text[end + 1 :]
        end = text.rfind(":", 0, end)
    return None


def encode_identification(name: str, argument: str = "") -> bytes:
    """The bytes a guest opens a pipe with.

    Raises:
        ValueError: the text does not fit the limit, or contains a NUL.
    """
    text = f"{name}:{argument}" if argument else name
    data = PREFIX + text.encode() + b"\0"
    if len(data) > MAX_IDENTIFICATION_BYTES or b"\0" in data[:-1]:
        raise ValueError(f"{text!r} does not fit into an identification")
    return data
