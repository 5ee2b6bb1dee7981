"""What the kernel's state was before netd changed it, in memory and in a file.

A note is on the file before its change is made, so that whoever comes after a netd that was killed can undo what
it did: `anbox_tw.netd.kernel.Kernel` reads the file when it is made with its journal. The file is of one network
namespace of one boot; a file of another is none. It is a JSON object a line; a line that cannot be read is left out,
for what was being written when its writer was killed had not been done yet. Nothing is synced to a disk: the kernel's
state does not outlive what a file in ``/run`` does not outlive.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from typing import Any, Final

from attrs import asdict, define, field
from twisted.logger import Logger

from anbox_tw.netd._kernel_model import Address
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.namespace import NetworkNamespace

__all__ = ["InterfaceNote", "KernelJournal", "SysctlNote"]

# A host's interface has some ten addresses and routes: 2 KiB. Beyond this the file is written anew.
MAX_FILE_BYTES: Final = 1024 * 1024
SUFFIX: Final = ".journal"
# What is read of a file that we did not write ourselves
MAX_READ_BYTES: Final = 16 * MAX_FILE_BYTES
# What a route needs to be made again
ROUTE_FIELDS: Final = ("family", "dst_len", "table", "proto", "type", "scope")
ROUTE_ATTRIBUTES: Final = (
    "RTA_DST",
    "RTA_OIF",
    "RTA_GATEWAY",
    "RTA_TABLE",
    "RTA_PRIORITY",
    "RTA_PREFSRC",
)


@define
class SysctlNote:
    """A file below /proc/sys/net: what was in it, and what we have written."""

    before: str
    ours: set[str]


@define
class InterfaceNote:
    """An interface before we touched it, and what we did to it.

    Attributes:
        routes: pairs of fields and attributes of the routes through it.
        added: (address, prefix length) that we gave it.
        our_mtus: what we have set, or have tried to.
        our_ups: likewise.
    """

    index: int
    name: str
    mtu: int
    up: bool
    addresses: list[Address]
    routes: list[tuple[dict[str, Any], list[tuple[str, Any]]]]
    added: set[tuple[str, int]] = field(factory=set)
    our_mtus: set[int] = field(factory=set)
    our_ups: set[bool] = field(factory=set)


class KernelJournal:
    """The notes, and their file.

    Attributes:
        path: of the file; empty for none.
        interfaces: by index.
        sysctls: by path.
        made: hardware address of each interface that we make, by name.
        tables: names of nftables tables that we make, with their family: ``ip anbox0``.
        marked: whether we make routes and rules, which carry our protocol number and are not noted one by one.
    """

    _log = Logger()

    def __init__(self, path: str = "", identity: str = "") -> None:
        """Make the object, with what a former one of the same path and namespace has noted.

        Args:
            path: of the file, which is made with the first note, and its directory if need be; empty to keep the notes in memory alone.
            identity: of the network namespace, `NetworkNamespace.identity`.
        """
        self.path = path
        self._identity = identity
        self._file: int | None = None
        self._size = 0
        self._made_directory = False
        self.interfaces: dict[int, InterfaceNote] = {}
        self.sysctls: dict[str, SysctlNote] = {}
        self.made: dict[str, str] = {}
        self.tables: list[str] = []
        self.marked = False
        self._read()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to undo."""
        return not (self.interfaces or self.sysctls or self.made or self.tables or self.marked)

    # -- notes

    def note_interface(self, note: InterfaceNote) -> None:
        """An interface is about to be touched for the first time."""
        if note.index not in self.interfaces:
            self._write(_interface_line(note))
            self.interfaces[note.index] = note

    def note_change(self, index: int, *, mtu: int | None = None, up: bool | None = None) -> None:
        """The MTU, or whether it is up, is about to be set."""
        note = self.interfaces[index]
        if mtu is not None and mtu not in note.our_mtus:
            self._write({"note": "mtu", "index": index, "value": mtu})
            note.our_mtus.add(mtu)
        if up is not None and up not in note.our_ups:
            self._write({"note": "up", "index": index, "value": up})
            note.our_ups.add(up)

    def note_address(self, index: int, address: str, prefix: int, *, added: bool) -> None:
        """An address is about to be added, or one of ours is gone."""
        note, key = self.interfaces[index], (address, prefix)
        if (key in note.added) != added:
            self._write(
                {"note": "address", "index": index, "value": address, "prefix": prefix, "added": added}
            )
            (note.added.add if added else note.added.discard)(key)

    def note_sysctl(self, path: str, before: str, ours: str) -> None:
        """A file is about to be written; ``before`` counts the first time only."""
        note = self.sysctls.get(path) or SysctlNote(before, set())
        if ours not in note.ours:
            self._write({"note": "sysctl", "path": path, "before": note.before, "ours": [ours]})
            note.ours.add(ours)
            self.sysctls[path] = note

    def forget_sysctl(self, path: str) -> None:
        """A file is as it was."""
        if path in self.sysctls:
            self._write({"note": "restored", "path": path})
            del self.sysctls[path]

    def note_made(self, name: str, mac: str) -> None:
        """An interface is about to be made, with a hardware address that nobody else's has."""
        self._write({"note": "made", "name": name, "mac": mac})
        self.made[name] = mac

    def forget_made(self, name: str) -> None:
        """An interface of ours is gone."""
        if name in self.made:
            self._write({"note": "gone", "name": name})
            del self.made[name]

    def note_table(self, table: str, *, made: bool) -> None:
        """An nftables table is about to be made, or is gone."""
        if (table in self.tables) != made:
            self._write({"note": "table", "name": table, "made": made})
            (self.tables.append if made else self.tables.remove)(table)

    def note_marked(self) -> None:
        """A route or a rule is about to be made."""
        if not self.marked:
            self._write({"note": "marked"})
            self.marked = True

    def clear(self) -> None:
        """All is undone: forget the notes, and delete the file."""
        self.interfaces.clear()
        self.sysctls.clear()
        self.made.clear()
        self.tables.clear()
        self.marked = False
        self.close()
        if self.path:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._log.warn("{path} stays: {error}", path=self.path, error=error.strerror)
        if self._made_directory:
            self._made_directory = False
            try:
                os.rmdir(os.path.dirname(self.path))
            except OSError as error:
                self._log.debug("{path}'s directory stays: {error}", path=self.path, error=error.strerror)

    def close(self) -> None:
        """Let the file go, and leave what is in it; calling this again is allowed."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # -- the file

    def _lines(self) -> Iterable[dict[str, Any]]:
        yield {"note": "namespace", "identity": self._identity}
        for interface in self.interfaces.values():
            yield _interface_line(interface)
        for path, sysctl in self.sysctls.items():
            yield {"note": "sysctl", "path": path, "before": sysctl.before, "ours": sorted(sysctl.ours)}
        for name, mac in self.made.items():
            yield {"note": "made", "name": name, "mac": mac}
        for table in self.tables:
            yield {"note": "table", "name": table, "made": True}
        if self.marked:
            yield {"note": "marked"}

    def _write(self, line: dict[str, Any]) -> None:
        if not self.path:
            return
        try:
            if self._file is None or self._size > MAX_FILE_BYTES:
                self._begin()
            assert self._file is not None
            data = _encode(line)
            if os.write(self._file, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += len(data)
        except OSError as error:
            raise KernelRefused(error.errno or errno.EIO, f"noting a change in {self.path}") from error

    def _begin(self) -> None:
        """Write what we know to a new file, which takes the old one's place whole."""
        self.close()
        data = b"".join(map(_encode, self._lines()))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fresh = os.open(f"{self.path}.new", flags, 0o600)
        except FileNotFoundError:
            os.mkdir(os.path.dirname(self.path), 0o755)
            self._made_directory = True
            fresh = os.open(f"{self.path}.new", flags, 0o600)
        try:
            if os.write(fresh, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.rename(f"{self.path}.new", self.path)
        except BaseException:
            os.close(fresh)
            raise
        self._file, self._size = fresh, len(data)

    @classmethod
    def of(cls, directory: str, table: str, namespace: NetworkNamespace) -> KernelJournal:
        """The journal of the daemon of a namespace with that table, in its run directory."""
        identity = namespace.identity()
        return cls(os.path.join(directory, f"{table}.{identity.rpartition('/')[2]}{SUFFIX}"), identity)

    def _read(self) -> None:
        if not self.path:
            return
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
                self._log.warn("{path} is no journal of ours, and is not read", path=self.path)
                return
            lines = file.read(MAX_READ_BYTES).split(b"\n")
        for number, text in enumerate(lines):
            try:
                line = json.loads(text)
                if number == 0 and (line["note"], line["identity"]) != ("namespace", self._identity):
                    return
                self._take(line)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                if number == 0:
                    return
                if text:
                    self._log.warn("line {n} of {path} cannot be read", n=number + 1, path=self.path)

    def _take(self, line: dict[str, Any]) -> None:
        match line["note"]:
            case "interface":
                note = InterfaceNote(
                    int(line["index"]),
                    str(line["name"]),
                    int(line["mtu"]),
                    bool(line["up"]),
                    [Address(**each) for each in line["addresses"]],
                    [
                        ({key: fields[key] for key in ROUTE_FIELDS}, [(str(k), v) for k, v in attributes])
                        for fields, attributes in line["routes"]
                    ],
                    {(str(address), int(prefix)) for address, prefix in line["added"]},
                    {int(mtu) for mtu in line["our_mtus"]},
                    {bool(up) for up in line["our_ups"]},
                )
                self.interfaces.setdefault(note.index, note)
            case "mtu":
                self.interfaces[line["index"]].our_mtus.add(int(line["value"]))
            case "up":
                self.interfaces[line["index"]].our_ups.add(bool(line["value"]))
            case "address":
                added = self.interfaces[line["index"]].added
                key = (str(line["value"]), int(line["prefix"]))
                (added.add if line["added"] else added.discard)(key)
            case "sysctl":
                path = str(line["path"])
                if path.startswith("/proc/sys/net/") and ".." not in path.split("/"):
                    known = self.sysctls.setdefault(path, SysctlNote(str(line["before"]), set()))
                    known.ours.update(str(value) for value in line["ours"])
            case "restored":
                self.sysctls.pop(str(line["path"]), None)
            case "made":
                self.made[str(line["name"])] = str(line["mac"])
            case "table":
                table = str(line["name"])
                if (table in self.tables) != bool(line["made"]):
                    (self.tables.append if line["made"] else self.tables.remove)(table)
            case "marked":
                self.marked = True
            case "gone":
                self.made.pop(str(line["name"]), None)


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _interface_line(note: InterfaceNote) -> dict[str, Any]:
    return {
        "note": "interface",
        "index": note.index,
        "name": note.name,
        "mtu": note.mtu,
        "up": note.up,
        "addresses": [asdict(address) for address in note.addresses],
        "routes": note.routes,
        "added": sorted(note.added),
        "our_mtus": sorted(note.our_mtus),
        "our_ups": sorted(note.our_ups),
    }
