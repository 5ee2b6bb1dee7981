"""Android's ``/data/misc/ethernet/ipconfig.txt``: the static address of ``eth0``.

The format is that of ``IpConfigStore`` and ``DelayedDiskWrite`` in Android's ``frameworks/base``: Java's
``DataOutput``, so integers are big-endian, and a string is a 16-bit length and modified UTF-8. Anbox
wrote the key ``dns`` once before all servers, which Android cannot read when there are two; here each server has its
key (``src/anbox/container/lxc_container.cpp``, ``src/anbox/network/ip_config_builder.cpp``).
"""

from __future__ import annotations

import ipaddress
import struct

import attrs

from anbox_tw.errors import ConfigError

__all__ = ["MAX_FILE_BYTES", "IpConfig", "read_ipconfig", "write_ipconfig"]

VERSION = 2
MAX_FILE_BYTES = 64 * 1024  # Android has no limit; a record with every key takes some 300 bytes
MAX_RECORDS = 64  # one per interface
ASSIGNMENTS = ("STATIC", "DHCP", "UNASSIGNED")


class IpConfigError(ConfigError):
    """The bytes are not an ``ipconfig.txt`` that Android would take."""


@attrs.frozen
class IpConfig:
    """The configuration of one interface.

    Attributes:
        interface_id: the network's number; 0 is the first Ethernet interface.
        assignment: ``STATIC``, ``DHCP`` or ``UNASSIGNED``; empty if the file had none that Android knows.
        address: IPv4 or IPv6 address with prefix length, or ``None``.
        gateway: address of the default gateway, or ``None``.
        dns: addresses of the name servers.
        others: values of the proxy keys, as text.
    """

    interface_id: int = 0
    assignment: str = "STATIC"
    address: str | None = None
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()


def encode_modified_utf8(text: str) -> bytes:
    """Java's ``DataOutput.writeUTF`` without its length: NUL as two bytes, surrogates one by one."""
    units = text.encode("utf-16-be", "surrogatepass")
    out = bytearray()
    for (unit,) in struct.iter_unpack(">H", units):
        if 0 < unit < 0x80:
            out.append(unit)
        elif unit < 0x800:
            out += bytes((0xC0 | unit >> 6, 0x80 | unit & 0x3F))
        else:
            out += bytes((0xE0 | unit >> 12, 0x80 | unit >> 6 & 0x3F, 0x80 | unit & 0x3F))
    return bytes(out)


def decode_modified_utf8(data: bytes) -> str:
    """The reverse of `encode_modified_utf8`.

    Raises:
        IpConfigError: it is none.
    """
    units = bytearray()
    at = 0
    while at < len(data):
        first = data[at]
        length = 1 if first < 0x80 else 2 if first >> 5 == 0b110 else 3 if first >> 4 == 0b1110 else 0
        rest = data[at + 1 : at + length]
        if not length or len(rest) != length - 1 or any(byte >> 6 != 0b10 for byte in rest):
            raise IpConfigError("a string is not modified UTF-8")
        unit = first if length == 1 else first & (0x1F if length == 2 else 0x0F)
        for byte in rest:
            unit = unit << 6 | byte & 0x3F
        units += struct.pack(">H", unit)
        at += length
    return units.decode("utf-16-be", "surrogatepass")


def _string(text: str) -> bytes:
    data = encode_modified_utf8(text)
    if len(data) > 0xFFFF:
        raise IpConfigError("a string is too long", "keep it below 65536 bytes")
    return struct.pack(">H", len(data)) + data


def write_ipconfig(*configs: IpConfig) -> bytes:
    """The file's bytes.

    Raises:
        IpConfigError: an address is none, or the file would be longer than `MAX_FILE_BYTES`.
    """
    out = bytearray(struct.pack(">I", VERSION))
    for config in configs:
        out += _string("ipAssignment") + _string(config.assignment)
        try:
            if config.address is not None:
                interface = ipaddress.ip_interface(config.address)
                out += _string("linkAddress") + _string(str(interface.ip))
                out += struct.pack(">I", interface.network.prefixlen)
            if config.gateway is not None:
                gateway = str(ipaddress.ip_address(config.gateway))
                # no destination, that is the default route; then a gateway
                out += _string("gateway") + struct.pack(">II", 0, 1) + _string(gateway)
            for server in config.dns:
                out += _string("dns") + _string(str(ipaddress.ip_address(server)))
        except ValueError as error:
            raise IpConfigError(str(error), "give IP addresses") from error
        for key, value in config.others:
            out += _string(key) + (struct.pack(">i", int(value)) if key == "proxyPort" else _string(value))
        out += _string("id") + struct.pack(">i", config.interface_id) + _string("eos")
    if len(out) > MAX_FILE_BYTES:
        raise IpConfigError("the IP configuration is too long", "give fewer name servers")
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise IpConfigError(f"it ends in the middle of a value, at byte {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self) -> int:
        return int(struct.unpack(">i", self.take(4))[0])

    def string(self) -> str:
        (length,) = struct.unpack(">H", self.take(2))
        return decode_modified_utf8(self.take(length))


def read_ipconfig(data: bytes) -> list[IpConfig]:
    """What Android's reader makes of the file's bytes.

    As there, a record without ``id`` is dropped, an unknown assignment is ignored, and an unknown key's value is taken for
    the next key.

    Raises:
        IpConfigError: the file is too long, of another version, or ends in the middle of a value.
    """
    if len(data) > MAX_FILE_BYTES:
        raise IpConfigError("it is too long to be an IP configuration")
    reader = _Reader(data)
    version = reader.integer()
    if version not in (1, 2):
        raise IpConfigError(f"its version is {version}, and only 1 and 2 are known")
    found: list[IpConfig] = []
    while reader.at < len(data):
        config = _read_record(reader, version)
        if config is not None:
            found.append(config)
        if len(found) > MAX_RECORDS:
            raise IpConfigError("it has too many records")
    return found


def _read_record(reader: _Reader, version: int) -> IpConfig | None:
    number: int | None = None
    assignment, address, gateway = "", None, None
    dns: list[str] = []
    others: list[tuple[str, str]] = []
    while (key := reader.string()) != "eos":
        if key == "id":
            number = reader.integer()
        elif key == "ipAssignment":
            value = reader.string()
            assignment = value if value in ASSIGNMENTS else ""
        elif key == "linkAddress":
            host = reader.string()
            address = f"{host}/{reader.integer()}"
        elif key == "gateway" and version == 1:
            gateway = reader.string()
        elif key == "gateway":
            if reader.integer() == 1:  # a destination: then it is a route, and not the default one
                reader.string()
                reader.integer()
                if reader.integer() == 1:
                    reader.string()
            elif reader.integer() == 1:
                gateway = reader.string()
        elif key == "dns":
            dns.append(reader.string())
        elif key in ("proxySettings", "proxyHost", "proxyPac", "exclusionList"):
            others.append((key, reader.string()))
        elif key == "proxyPort":
            others.append((key, str(reader.integer())))
    if number is None:
        return None
    return IpConfig(number, assignment, address, gateway, tuple(dns), tuple(others))
