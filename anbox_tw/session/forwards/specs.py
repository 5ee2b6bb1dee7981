"""What is forwarded, as users write it: pure, no I/O.

A listener is ``tcp:PORT``, ``tcp:ADDRESS:PORT``, ``unix:PATH`` or ``udp:...``; a target is ``tcp:PORT``,
``tcp:ADDRESS:PORT``, ``udp:...``, ``localabstract:NAME``, ``localfilesystem:PATH`` or ``localreserved:NAME``, as adb names
the guest's sockets. An IPv6 address stands in brackets. Without an address it is loopback.
"""

from __future__ import annotations

import ipaddress
import os

import attrs

from anbox_tw.container.guest_sockets._wire import MAX_TEXT_BYTES, Kind, encode_address
from anbox_tw.session.forwards.errors import BadSpec

__all__ = ["Listen", "Target", "parse_listen", "parse_target"]

MAX_NAME_BYTES = 107
"""Of a UNIX socket: ``sun_path`` has 108 bytes, and the last, or in the abstract namespace the first, is a NUL."""

LOOPBACK = "127.0.0.1"
RESERVED = "/dev/socket/"
"""Where Android's init puts the sockets that it makes (``localreserved:``)."""

LISTEN_FORMS = "tcp:PORT, tcp:ADDRESS:PORT, unix:PATH, udp:PORT or udp:ADDRESS:PORT"
TARGET_FORMS = (
    "tcp:PORT, tcp:ADDRESS:PORT, udp:PORT, udp:ADDRESS:PORT, localabstract:NAME, localfilesystem:PATH or "
    "localreserved:NAME"
)


@attrs.frozen
class Listen:
    """Where a forward listens.

    Attributes:
        kind: ``tcp``, ``udp`` or ``unix``.
        address: IP address of ``tcp`` and ``udp``.
        port: their port; 0 is any free one.
        path: absolute, of ``unix``.
    """

    kind: str
    address: str = LOOPBACK
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.kind == "unix" else _inet(self)


@attrs.frozen
class Target:
    """Where a forward leads.

    Attributes:
        kind: ``tcp``, ``udp``, ``localabstract``, ``localfilesystem`` or ``localreserved``.
        address: IP address of ``tcp`` and ``udp`` as the guest sees it; empty: its loopback, IPv4 or else IPv6.
        port: their port.
        name: of the others.
    """

    kind: str
    address: str = ""
    port: int = 0
    name: str = ""

    def __str__(self) -> str:
        return _inet(self) if self.kind in ("tcp", "udp") else f"{self.kind}:{self.name}"

    @property
    def datagrams(self) -> bool:
        """Whether it takes datagrams."""
        return self.kind == "udp"

    @property
    def questions(self) -> tuple[tuple[int, bytes], ...]:
        """What to ask the container's helper for, one after the other until one answers: kinds and texts."""
        if self.kind in ("tcp", "udp"):
            kind = Kind.TCP if self.kind == "tcp" else Kind.UDP
            # A datagram to a port where nobody is gets no answer that could be waited for.
            addresses = (self.address,) if self.address else (LOOPBACK, "::1")[: 2 if kind == Kind.TCP else 1]
            return tuple((kind, encode_address(address, self.port)) for address in addresses)
        if self.kind == "localabstract":
            return ((Kind.ABSTRACT, os.fsencode(self.name)),)
        path = self.name if self.kind == "localfilesystem" else f"{RESERVED}{self.name}"
        return ((Kind.PATH, os.fsencode(path)),)

    @property
    def adb_service(self) -> str:
        """The name of the service of adbd that leads there.

        Raises:
            BadSpec: there is none.
        """
        if self.kind == "udp":
            raise BadSpec("adbd forwards no datagrams", "forward them the direct way: --via direct")
        if self.kind == "tcp":
            # adbd takes a host after the port (AOSP services.cpp, "tcp:PORT:HOST")
            return f"tcp:{self.port}:{self.address}" if self.address else f"tcp:{self.port}"
        return f"{self.kind}:{self.name}"


def _inet(spec: Listen | Target) -> str:
    if not spec.address or (spec.address == LOOPBACK and isinstance(spec, Listen)):
        return f"{spec.kind}:{spec.port}"
    address = f"[{spec.address}]" if ":" in spec.address else spec.address
    return f"{spec.kind}:{address}:{spec.port}"


def _parse_inet(text: str, rest: str, forms: str, *, lowest: int) -> tuple[str, int]:
    """Address, perhaps empty, and port."""
    address, colon, number = rest.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
        if ":" not in address:
            raise BadSpec(f"{text!r}: in brackets stands an IPv6 address", f"write {forms}")
    elif ":" in address:
        raise BadSpec(
            f"{text!r}: an IPv6 address stands in brackets",
            f"write {text.split(':', maxsplit=1)[0]}:[::1]:80",
        )
    if colon and not address:
        raise BadSpec(f"{text!r} has no address before the port", f"write {forms}")
    if address == "localhost":
        address = LOOPBACK
    if address:
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            raise BadSpec(f"{text!r}: {address!r} is no IP address", "names are not looked up here") from None
    if not (number.isascii() and number.isdigit() and len(number) <= 5 and lowest <= int(number) <= 65535):
        raise BadSpec(f"{text!r}: {number!r} is no port", f"ports are {lowest} to 65535")
    return address, int(number)


def parse_listen(text: str) -> Listen:
    """Read where to listen.

    Raises:
        BadSpec: it is none.
    """
    kind, _, rest = text.partition(":")
    if kind in ("tcp", "udp"):
        address, port = _parse_inet(text, rest, LISTEN_FORMS, lowest=0)
        return Listen(kind, address or LOOPBACK, port)
    if kind == "unix" and rest and "\0" not in rest:
        path = os.path.abspath(rest)
        if len(os.fsencode(path)) > MAX_NAME_BYTES:
            raise BadSpec(
                f"the socket path {path} has more than {MAX_NAME_BYTES} bytes", "choose a shorter one"
            )
        return Listen("unix", path=path)
    raise BadSpec(f"{text!r} is not a place to listen at", f"write {LISTEN_FORMS}")


def parse_target(text: str) -> Target:
    """Read where a forward leads.

    Raises:
        BadSpec: it is no target.
    """
    kind, _, rest = text.partition(":")
    if kind in ("tcp", "udp"):
        address, port = _parse_inet(text, rest, TARGET_FORMS, lowest=1)
        return Target(kind, address, port)
    if kind not in ("localabstract", "localfilesystem", "localreserved") or not rest or "\0" in rest:
        raise BadSpec(f"{text!r} is not a socket of the guest", f"write {TARGET_FORMS}")
    limit = MAX_TEXT_BYTES if kind == "localfilesystem" else MAX_NAME_BYTES
    if len(os.fsencode(rest)) > limit:
        raise BadSpec(f"the name in {kind}: has more than {limit} bytes", "the kernel takes no longer ones")
    if kind == "localfilesystem" and not rest.startswith("/"):
        raise BadSpec(f"{text!r}: the path must be absolute", f"write localfilesystem:/{rest}")
    if kind == "localreserved" and ("/" in rest or rest in (".", "..")):
        raise BadSpec(f"{text!r}: a reserved socket has a plain name", f"it is below {RESERVED}")
    return Target(kind, name=rest)
