"""What a Java VM says on adbd's JDWP control socket, in every generation, and adbd's lists. Pure.

Sources: AOSP ``daemon/jdwp_service.cpp`` of each release, ``proto/app_processes.proto``, and ART's
``adbconnection.cc``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from struct import Struct

import attrs

from anbox_tw.errors import PeerError

__all__ = ["MAX_HELLO", "ProcessInfo", "encode_app_processes", "parse_hello"]

MAX_HELLO = 4096
"""Largest datagram a VM sends."""
PID_MAX = 1 << 22
"""``PID_MAX_LIMIT`` of 64-bit Linux."""
_STRUCT = Struct("<QBB2xi16s")
_HEX = frozenset(b"0123456789abcdefABCDEF")


@attrs.frozen
class ProcessInfo:
    """A process with a VM.

    Attributes:
        pid: its id.
        debuggable: whether a debugger may attach.
        profileable: whether a profiler may.
        architecture: such as ``arm64``; empty if the VM does not say.
        user_id: Android user, or -1.
        process_name: its name, may be empty.
        package_names: packages in it.
        waiting_for_debugger: it stands still until one comes.
        uid: its uid, or -1.
        attach_byte: the data byte that this generation expects with a descriptor.
    """

    pid: int
    debuggable: bool = True
    profileable: bool = False
    architecture: str = ""
    user_id: int = -1
    process_name: str = ""
    package_names: tuple[str, ...] = ()
    waiting_for_debugger: bool = False
    uid: int = -1
    attach_byte: bytes = b"\0"

    def encode(self) -> bytes:
        """The ``ProcessEntry`` message."""
        out = _varint_field(1, self.pid)
        out += _varint_field(2, self.debuggable) + _varint_field(3, self.profileable)
        out += _text_field(4, self.architecture)
        if self.user_id >= 0:
            out += _varint_field(5, self.user_id)
        out += _text_field(6, self.process_name)
        for name in self.package_names:
            out += _text_field(7, name)
        out += _varint_field(8, self.waiting_for_debugger)
        if self.uid >= 0:
            out += _varint_field(9, self.uid)
        return out


def encode_app_processes(processes: Iterable[ProcessInfo]) -> bytes:
    """The ``AppProcesses`` message."""
    out = bytearray()
    for process in processes:
        entry = process.encode()
        out += b"\x0a" + _varint(len(entry)) + entry
    return bytes(out)


def parse_hello(data: bytes) -> ProcessInfo:
    """Read a VM's first message (or, from 2024 on, any later one), of whatever generation it is.

    Four hex digits (Android 1.6 to 8), a native 32-bit pid (9 to 11), a struct of 32 bytes (12 to 14)
    or a ``ProcessEntry`` (later). They cannot be confused: four hex digits read as a pid exceed every
    possible pid, so does a ``ProcessEntry`` of four bytes, and no ``ProcessEntry`` has the zero bytes of the
    struct's 64-bit pid.

    Raises:
        PeerError: it is none of these.
    """
    info = None
    if len(data) == 4:
        if _HEX.issuperset(data):
            info = ProcessInfo(int(data, 16), attach_byte=b"!")
        elif int.from_bytes(data, sys.byteorder) <= PID_MAX:
            info = ProcessInfo(int.from_bytes(data, sys.byteorder), attach_byte=b"!")
    elif len(data) == _STRUCT.size and not any(data[4:8]):
        info = _parse_struct(data)
    if info is None:
        info = _parse_entry(data)
    if not 0 < info.pid < 1 << 31:
        raise PeerError(f"a VM says that its pid is {info.pid}")
    return info


def _parse_struct(data: bytes) -> ProcessInfo | None:
    pid, debuggable, profileable, length, architecture = _STRUCT.unpack(data)
    if debuggable > 1 or profileable > 1 or not 0 <= length <= 16:
        return None
    name = architecture[:length].rstrip(b"\0").decode("ascii", "replace")
    return ProcessInfo(pid, bool(debuggable), bool(profileable), name)


def _parse_entry(data: bytes) -> ProcessInfo:
    numbers: dict[int, int] = {}
    texts: dict[int, list[str]] = {}
    pos = 0
    while pos < len(data):
        tag, pos = _read_varint(data, pos)
        if tag & 7 == 0:
            numbers[tag >> 3], pos = _read_varint(data, pos)
        elif tag & 7 == 2:
            size, pos = _read_varint(data, pos)
            if pos + size > len(data):
                raise PeerError("a VM's message is cut short")
            texts.setdefault(tag >> 3, []).append(data[pos : pos + size].decode("utf-8", "replace"))
            pos += size
        else:
            raise PeerError(f"a VM's message has a field of type {tag & 7}")
    if 1 not in numbers:
        raise PeerError("a VM's message has no pid")
    return ProcessInfo(
        pid=numbers[1],
        debuggable=bool(numbers.get(2)),
        profileable=bool(numbers.get(3)),
        architecture=texts.get(4, [""])[-1],
        user_id=numbers.get(5, -1),
        process_name=texts.get(6, [""])[-1],
        package_names=tuple(texts.get(7, [])),
        waiting_for_debugger=bool(numbers.get(8)),
        uid=numbers.get(9, -1),
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, pos: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if pos >= len(data):
            raise PeerError("a VM's message is cut short")
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise PeerError("a VM's message has a number of more than 64 bits")


def _varint_field(number: int, value: int) -> bytes:
    # proto3 leaves out what is zero.
    return _varint(number << 3) + _varint(int(value)) if value else b""


def _text_field(number: int, text: str) -> bytes:
    data = text.encode()
    return _varint(number << 3 | 2) + _varint(len(data)) + data if data else b""
