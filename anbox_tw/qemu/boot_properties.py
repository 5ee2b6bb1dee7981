"""``qemud:boot-properties``: system properties that the guest sets early in its boot.

The guest's ``qemu-props`` sends the frame ``list`` and reads frames ``name=value`` until one that begins with NUL;
it takes 125 bytes a frame. Anbox sent the NUL without a frame around it, on which the guest's reader
stumbles; the emulator's form is sent here.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.errors import ConfigError
from anbox_tw.interfaces import IPipeService
from anbox_tw.network import abort_transport
from anbox_tw.qemu._flow import read_no_faster_than_answers_leave
from anbox_tw.qemu._framing import QemudDecoder, encode_frame
from anbox_tw.qemu.errors import FramingError

__all__ = ["BootPropertiesService", "check_property"]

MAX_NAME_BYTES = 32
"""``PROPERTY_MAX_NAME`` of the guests that this service is for (Android 7 and before)."""

MAX_VALUE_BYTES = 92
"""``PROPERTY_MAX_VALUE``; with name and ``=`` it is what the guest's buffer of 125 bytes takes."""

MAX_COMMAND_BYTES = 256
"""The only command has four bytes."""

_FORBIDDEN = frozenset(" =$*?'\"")
"""What the emulator's ``android/boot-properties.c`` refuses in a name."""


def check_property(name: str, value: str) -> None:
    """See that a guest can take this property.

    Raises:
        ConfigError: the name or the value is empty, too long or has a character that is not allowed.
    """
    if not name or len(name.encode()) > MAX_NAME_BYTES:
        raise ConfigError(f"the property name {name!r} must have 1 to {MAX_NAME_BYTES} bytes")
    if not name.isascii() or not name.isprintable() or _FORBIDDEN.intersection(name):
        raise ConfigError(f"the property name {name!r} has a character that is not allowed")
    if len(value.encode()) > MAX_VALUE_BYTES:
        raise ConfigError(f"the value of the property {name} has more than {MAX_VALUE_BYTES} bytes")
    if not value.isprintable():
        raise ConfigError(f"the value of the property {name} has a control character")


class _Connection(Protocol):
    _log = Logger()

    def __init__(self, properties: Mapping[str, str]) -> None:
        self._properties = properties
        self._frames = QemudDecoder(MAX_COMMAND_BYTES)

    def connectionMade(self) -> None:
        read_no_faster_than_answers_leave(self.transport)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        try:
            commands = self._frames.receive_data(data)
        except FramingError as error:
            self._log.warn("boot-properties: the connection is closed: {error}", error=error)
            abort_transport(self.transport)
            return
        for command in commands:
            if command.rstrip(b"\0") == b"list":
                # A guest reads header and body with one read() each: one write per frame would do on a
                # socket, one for all does too, since a stream socket keeps what was not asked for.
                frames = [
                    encode_frame(f"{name}={value}".encode()) for name, value in self._properties.items()
                ]
                self.transport.write(b"".join(frames) + encode_frame(b"\0"))
            else:
                self._log.info("boot-properties: ignored the command {command!r}", command=command)


@implementer(IPipeService)
class BootPropertiesService:
    """Tells the guest its boot properties.

    Args:
        properties: name to value; read anew at each request.

    Raises:
        ConfigError: a property that no guest can take.
    """

    name = "qemud:boot-properties"

    def __init__(self, properties: Mapping[str, str]) -> None:
        for name, value in properties.items():
            check_property(name, value)
        self.properties = properties

    def open(self, argument: str, address: IAddress) -> IProtocol | None:
        """Serve any guest."""
        return _Connection(self.properties)
