"""Who of us needs a namespace to forward: each netd, and each container on a bridge, in whichever process.

The kernel's switch is one for all. Who has switched it on must not switch it off while another needs it, and the last one
must know what it was before the first. So each holds an abstract UNIX socket of the namespace whose name says both; the
kernel takes it back when its process ends, in whatever way, and ``/proc/net/unix`` lists those that are. The name has the
process, too: a child of one that was killed between fork and exec holds what its parent held, for a moment.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from twisted.logger import Logger

from anbox_tw.netd.namespace import NetworkNamespace
from anbox_tw.network.credentials import process_lives

__all__ = ["FORWARD4", "FORWARD6", "ForwardingClaims"]

FORWARD4: Final = "/proc/sys/net/ipv4/ip_forward"
FORWARD6: Final = "/proc/sys/net/ipv6/conf/all/forwarding"
_VERSIONS: Final = {FORWARD4: "4", FORWARD6: "6"}
_PREFIX: Final = "anbox-forwarding"
# a line of some 100 bytes for each UNIX socket of the namespace; a desktop has 1,500
MAX_LISTING_BYTES: Final = 16 * 1024 * 1024


class ForwardingClaims:
    """The claims of one holder."""

    _log = Logger()

    def __init__(self, namespace: NetworkNamespace | None = None) -> None:
        self._namespace = namespace or NetworkNamespace()
        self._held: dict[str, tuple[str, socket.socket]] = {}

    def claim(self, path: str, before: str) -> str:
        """Need a switch to be on, until `release`.

        Args:
            path: `FORWARD4` or `FORWARD6`.
            before: what it is now.

        Returns:
            What it was before the first of us switched it on.
        """
        others = self._others(path)
        if path in self._held:
            return self._held[path][0].split("/")[2]
        if others:
            before = others[0].split("/")[2]
        unique = f"{_pid_namespace()}.{os.getpid()}.{os.urandom(8).hex()}"
        name = f"{_PREFIX}/{_VERSIONS[path]}/{before}/{unique}"
        holder = self._namespace.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind("\0" + name)
        except OSError as error:
            holder.close()
            self._log.warn("{path} is not claimed: {error}", path=path, error=error.strerror)
        else:
            self._held[path] = (name, holder)
        return before

    def release(self, path: str) -> None:
        """Need it no more; calling this again is allowed."""
        held = self._held.pop(path, None)
        if held is not None:
            held[1].close()

    def close(self) -> None:
        """Need nothing any more."""
        for path in list(self._held):
            self.release(path)

    def wanted(self, path: str) -> bool:
        """Whether another than us needs it."""
        return bool(self._others(path))

    def _others(self, path: str) -> list[str]:
        start = f"@{_PREFIX}/{_VERSIONS[path]}/"
        ours = self._held.get(path, ("",))[0]
        found = []
        try:
            # of this thread, which is in the namespace for the moment
            listing = self._namespace.read_file("/proc/thread-self/net/unix", MAX_LISTING_BYTES)
        except OSError as error:
            self._log.debug("who else forwards is not known: {error}", error=error.strerror)
            return []
        for line in listing.splitlines():
            name = line.rpartition(" ")[2]
            if name.startswith(start) and name[1:] != ours and _counts(name):
                found.append(name[1:])
        return found


def _counts(name: str) -> bool:
    """Whether a claim is one, and its process lives as far as we can see."""
    _, _, before, unique = (*name.split("/", 3), "", "", "")[:4]
    namespace, _, rest = unique.partition(".")
    pid = rest.partition(".")[0]
    if before not in ("0", "1") or not pid.isdigit():
        return False
    return namespace != _pid_namespace() or process_lives(int(pid))


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid").strip("pid:[]")
