"""The guest's system properties: what ``getprop`` shows, in adbd and in every shell of the guest."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from anbox_tw.errors import AnboxError
from anbox_tw.network import abort_transport
from anbox_tw.qemu._framing import QemudDecoder, encode_frame
from anbox_tw.qemu._wire import encode_identification

__all__ = ["BIN", "PropertyTable", "fetch_boot_properties", "write_properties"]

_log = Logger()

BIN = "data/local/anbox/bin"
"""Below the root: programs that Android has and Linux has not; on the PATH of adbd's shells and of applications."""

_FILE = "data/local/anbox/properties"

ATTEMPTS = 5
"""As often as the guest's ``qemu-props`` tries, 1 s apart."""

LIST_TIMEOUT_S = 5.0
"""For the whole list; the session sends it in one write."""

MAX_PROPERTIES = 1024
"""Android's property area holds fewer."""

MAX_DEFAULT_PROP_BYTES = 256 * 1024
"""A real ``default.prop`` has some kB."""

_ABIS = {"x86_64": "x86_64", "aarch64": "arm64-v8a", "i686": "x86", "armv7l": "armeabi-v7a"}

# A shell script and no Python: scripts ask for sys.boot_completed in a loop.
_GETPROP = """#!/bin/sh
# getprop [NAME [DEFAULT]]
file={file}
if [ $# = 0 ]; then
    while IFS= read -r line; do printf '[%s]: [%s]\\n' "${{line%%=*}}" "${{line#*=}}"; done < "$file"
    exit
fi
while IFS= read -r line; do
    case $line in "$1="*) printf '%s\\n' "${{line#*=}}"; exit ;; esac
done < "$file"
printf '%s\\n' "$2"
"""


_SETPROP = """#!/bin/sh
exec {python} -m anbox_tw.android.setprop "$@"
"""

_COMMAND = """#!/bin/sh
exec {python} -m anbox_tw.guest --dev {dev} {command} "$@"
"""

_COMMANDS = {
    "am": "am",
    "hal": "hal",
    "ril": "ril",
    "getevent": "getevent",
    "tinyplay": "play",
    "tinycap": "record",
}
"""Programs of the guest's shells, and the guest's commands that they are."""


class PropertyTable(dict[str, str]):
    """The properties; each change is written where the shells of the guest find it.

    Args:
        root: the guest's root.
        dev: directory of the guest's sockets.
    """

    def __init__(self, root: str, dev: str) -> None:
        super().__init__()
        self._root = root
        self._dev = dev
        machine = platform.machine()
        self.update(
            {
                "ro.product.name": "anbox",
                "ro.product.model": "Anbox",
                "ro.product.device": "anbox",
                "ro.product.brand": "Anbox",
                "ro.product.manufacturer": "Anbox",
                "ro.product.cpu.abi": _ABIS.get(machine, machine),
                "ro.hardware": "goldfish",
                "ro.kernel.qemu": "1",
                "ro.debuggable": "1",
                "ro.adb.secure": "0",
                "ro.build.type": "userdebug",
            }
        )
        self.update(_read_default_prop(os.path.join(root, "default.prop")))

    def publish(self, *, init: bool = False) -> None:
        """Write all properties, and the programs that Android has and Linux has not, for the shells of the guest.

        Args:
            init: the properties are those of Android's init, which writes them itself (`write_properties`) and has
                ``setprop``.

        Raises:
            OSError: the data directory cannot be written.
        """
        bin_path = os.path.join(self._root, BIN)
        os.makedirs(bin_path, mode=0o755, exist_ok=True)
        if not init:
            write_properties(self._root, self.items())
        python, dev = _quoted(sys.executable), _quoted(self._dev)
        programs = {
            "getprop": _GETPROP.format(file=_quoted(os.path.join(self._root, _FILE))),
            **{
                name: _COMMAND.format(python=python, dev=dev, command=command)
                for name, command in _COMMANDS.items()
            },
        }
        if init:
            programs["setprop"] = _SETPROP.format(python=python)
        for name, text in programs.items():
            _replace(os.path.join(bin_path, name), text, 0o755)


def write_properties(root: str, properties: Iterable[tuple[str, str]]) -> None:
    """Write what ``getprop`` of the guest's shells reads.

    Args:
        root: the guest's root.
        properties: name and value of each.

    Raises:
        OSError: the data directory cannot be written.
    """
    path = os.path.join(root, _FILE)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    # a line each: what has a line end in it would be two
    lines = (f"{name}={value}\n" for name, value in sorted(properties) if "\n" not in value)
    _replace(path, "".join(lines), 0o644)


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


def _replace(path: str, text: str, mode: int) -> None:
    """Write a file in one step: who reads it sees the old text or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _read_default_prop(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(MAX_DEFAULT_PROP_BYTES).splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


class _List(Protocol):
    """Asks for the boot properties, as the guest's ``qemu-props``."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.done: Deferred[dict[str, str]] = Deferred(lambda _: abort_transport(self.transport))
        self._frames = QemudDecoder()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(encode_identification("qemud:boot-properties"))
        self.transport.write(encode_frame(b"list"))

    def dataReceived(self, data: bytes) -> None:
        try:
            frames = self._frames.receive_data(data)
        except AnboxError as error:
            self._end(Failure(error))
            return
        for frame in frames:
            if frame.startswith(b"\0"):
                self._end(self.found)
                return
            name, equals, value = frame.decode("utf-8", "replace").partition("=")
            # A frame without "=" is skipped, as Android's does.
            if equals and len(self.found) < MAX_PROPERTIES:
                self.found[name] = value

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end(reason)

    def _end(self, result: dict[str, str] | Failure) -> None:
        if not self.done.called:
            if isinstance(result, Failure):
                self.done.errback(result)
            else:
                self.done.callback(result)
            abort_transport(self.transport)


class _Opening(Factory):
    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _List()


async def fetch_boot_properties(reactor: Any, path: str) -> dict[str, str]:
    """The properties that the session has for the guest's boot; none when it cannot be asked.

    Args:
        reactor: connects and tells the time.
        path: of the pipe.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            await deferLater(reactor, 1.0)
        try:
            asking: Any = await UNIXClientEndpoint(reactor, path, timeout=LIST_TIMEOUT_S).connect(_Opening())
            found: dict[str, str] = await asking.done.addTimeout(LIST_TIMEOUT_S, reactor)
        except (ConnectError, ConnectionClosed, TimeoutError, AnboxError, OSError) as error:
            _log.debug("boot properties: {error}", error=error)
        else:
            return found
    return {}
