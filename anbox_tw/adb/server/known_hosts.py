"""The devices this user has paired with (AOSP ``client/adb_wifi.cpp``, ``proto/adb_known_hosts.proto``)."""

from __future__ import annotations

import contextlib
import os
import tempfile

from anbox_tw.adb.keys import default_key_path
from anbox_tw.adb.server._proto import embedded, message

__all__ = ["KnownHosts", "default_known_hosts_path"]

MAX_FILE_BYTES = 1 << 20
"""Tens of thousands of devices; what is larger is no such file."""

MAX_GUID_BYTES = 255
"""A GUID is the first part of an mDNS instance name, which is shorter still."""


def default_known_hosts_path() -> str:
    """``adb_known_hosts.pb`` beside the user's key, where adb itself keeps it."""
    return os.path.join(os.path.dirname(default_key_path()), "adb_known_hosts.pb")


class KnownHosts:
    """The file of paired devices' GUIDs, which is shared with adb's own server.

    Args:
        path: of the file; it need not exist.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def guids(self) -> list[str]:
        """All GUIDs; none where the file is missing or no such file."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError:
            return []
        if len(data) > MAX_FILE_BYTES:
            return []
        found = [guid for host in embedded(data, 1) for guid in embedded(host, 1)]
        return [guid.decode("utf-8", "replace") for guid in found if guid]

    def add(self, guid: str) -> None:
        """Remember a device.

        Raises:
            OSError: the file cannot be written.
        """
        known = self.guids()
        if guid in known or not 0 < len(guid.encode()) <= MAX_GUID_BYTES:
            return
        data = b"".join(message([(1, message([(1, one)]))]) for one in [*known, guid])
        folder = os.path.dirname(self._path) or "."
        os.makedirs(folder, mode=0o750, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=".adb_known_hosts", dir=folder)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
            os.replace(name, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def knows(self, instance: str) -> bool:
        """Whether an mDNS instance name is that of a paired device."""
        return any(instance.startswith(guid) for guid in self.guids())
