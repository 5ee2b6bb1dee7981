"""The binary layouts of ``dnsproxyd`` and ``fwmarkd``, as pure functions.

Facts: AOSP ``system/netd/server/DnsProxyListener.cpp``, ``FwmarkServer.cpp`` and ``include/FwmarkCommand.h``
(android-7.0 and, for the older layout, android-4.4 and 5.1).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final

from attrs import frozen

__all__ = [
    "AddressEntry",
    "FwmarkRequest",
    "HostEntry",
    "WireError",
    "decode_address_entries",
    "decode_fwmark_request",
    "decode_host_entry",
    "encode_address_entries",
    "encode_fwmark_request",
    "encode_host_entry",
    "encode_sockaddr",
]

_FWMARK: Final = struct.Struct("=iII")
# 32-bit struct addrinfo: four ints, a length, three pointers that mean nothing to the reader
_LEGACY_ADDRINFO: Final = struct.Struct("=iiiiIIII")
# what a reader takes from a daemon before it gives up
MAX_ENTRIES: Final = 4096
MAX_NAME_BYTES: Final = 1025


class WireError(Exception):
    """Bytes that do not have the layout."""


@frozen
class AddressEntry:
    """One entry of a getaddrinfo reply (``struct addrinfo``)."""

    flags: int
    family: int
    socktype: int
    protocol: int
    address: str
    port: int
    canonical_name: str | None = None


@frozen
class HostEntry:
    """A gethostby* reply (``struct hostent``)."""

    name: str | None
    aliases: tuple[str, ...]
    family: int
    addresses: tuple[str, ...]


def _u32(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


def _string(text: str | None) -> bytes:
    if text is None:
        return _u32(0)
    data = text.encode("ascii", "replace") + b"\0"
    return _u32(len(data)) + data


def encode_sockaddr(family: int, address: str, port: int) -> bytes:
    """A ``sockaddr_in`` (16 bytes) or ``sockaddr_in6`` (28) in this host's layout."""
    if family == socket.AF_INET6:
        bare, _, zone = address.partition("%")
        scope = int(zone) if zone.isascii() and zone.isdigit() else 0
        return (
            struct.pack("=H", family)
            + struct.pack(">HI", port, 0)
            + ipaddress.IPv6Address(bare).packed
            + struct.pack("=I", scope)
        )
    return (
        struct.pack("=H", family) + struct.pack(">H", port) + ipaddress.IPv4Address(address).packed + bytes(8)
    )


def encode_address_entries(entries: list[AddressEntry], *, legacy: bool = False) -> bytes:
    """What follows the 222 of getaddrinfo.

    Args:
        entries: in order.
        legacy: the layout of Android 4.4 and 5 (a raw 32-bit struct) instead of that of 6 and later.
    """
    out = bytearray()
    for entry in entries:
        address = encode_sockaddr(entry.family, entry.address, entry.port)
        fields = (entry.flags, entry.family, entry.socktype, entry.protocol)
        if legacy:
            name = 1 if entry.canonical_name is not None else 0
            raw = _LEGACY_ADDRINFO.pack(*fields, len(address), name, 1, 0)
            out += _u32(len(raw)) + raw
        else:
            out += _u32(1) + b"".join(_u32(value) for value in fields)
        out += _u32(len(address)) + address + _string(entry.canonical_name)
    return bytes(out + _u32(0))


def encode_host_entry(entry: HostEntry) -> bytes:
    """What follows the 222 of gethostbyname and gethostbyaddr."""
    size = 16 if entry.family == socket.AF_INET6 else 4
    out = bytearray(_string(entry.name))
    for alias in entry.aliases:
        out += _string(alias)
    out += _u32(0) + _u32(entry.family) + _u32(size)
    for address in entry.addresses:
        # always 16 bytes, of which an IPv4 address uses the first four
        out += _u32(16) + ipaddress.ip_address(address).packed.ljust(16, b"\0")
    return bytes(out + _u32(0))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise WireError("the reply is cut off")
        self.position += count
        return self._data[self.position - count : self.position]

    def u32(self) -> int:
        return int(struct.unpack(">I", self.take(4))[0])

    def string(self) -> str | None:
        size = self.u32()
        if size == 0:
            return None
        if size > MAX_NAME_BYTES:
            raise WireError("a name is too long")
        return self.take(size).rstrip(b"\0").decode("ascii", "replace")


def decode_address_entries(data: bytes) -> tuple[list[AddressEntry], int]:
    """Read a getaddrinfo reply of Android 6 and later, behind its 222.

    Returns:
        The entries, and how many bytes they took.

    Raises:
        WireError: it is cut off (more bytes may help) or wrong.
    """
    reader = _Reader(data)
    entries: list[AddressEntry] = []
    while reader.u32():
        if len(entries) >= MAX_ENTRIES:
            raise WireError("too many entries")
        flags, family, socktype, protocol = (reader.u32() for _ in range(4))
        address = reader.take(min(reader.u32(), 128))
        port = struct.unpack_from(">H", address, 2)[0] if len(address) >= 16 else 0
        if family == socket.AF_INET6 and len(address) == 28:
            text = str(ipaddress.IPv6Address(address[8:24]))
        elif family == socket.AF_INET and len(address) == 16:
            text = str(ipaddress.IPv4Address(address[4:8]))
        else:
            raise WireError("an address of no known family")
        entries.append(AddressEntry(flags, family, socktype, protocol, text, port, reader.string()))
    return entries, reader.position


def decode_host_entry(data: bytes) -> tuple[HostEntry, int]:
    """Read a gethostby* reply, behind its 222. Returns and raises as `decode_address_entries`."""
    reader = _Reader(data)
    name, aliases = reader.string(), []
    while (alias := reader.string()) is not None:
        aliases.append(alias)
        if len(aliases) > MAX_ENTRIES:
            raise WireError("too many aliases")
    family, size = reader.u32(), reader.u32()
    if size not in (4, 16):
        raise WireError("an address of no known size")
    addresses: list[str] = []
    while reader.u32():
        if len(addresses) >= MAX_ENTRIES:
            raise WireError("too many addresses")
        addresses.append(str(ipaddress.ip_address(reader.take(16)[:size])))
    return HostEntry(name, tuple(aliases), family, tuple(addresses)), reader.position


@frozen
class FwmarkRequest:
    """A request to fwmarkd, without its descriptor."""

    command: int
    net_id: int
    uid: int


def encode_fwmark_request(request: FwmarkRequest) -> bytes:
    """Twelve bytes in this host's order."""
    return _FWMARK.pack(request.command, request.net_id, request.uid)


def decode_fwmark_request(data: bytes) -> FwmarkRequest | None:
    """The request, or None when it has not exactly twelve bytes."""
    return FwmarkRequest(*_FWMARK.unpack(data)) if len(data) == _FWMARK.size else None
