"""systemd's ``Type=notify``: tells the service manager what the session is doing."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from twisted.logger import Logger

__all__ = ["SystemdNotifier"]

_log = Logger()


class SystemdNotifier:
    """Sends to ``$NOTIFY_SOCKET``, if there is one; see sd_notify(3).

    Args:
        environment: where the variable is; it is removed, so that no child takes itself for the service.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = environment.pop("NOTIFY_SOCKET", "")

    def notify(self, **fields: str) -> None:
        """Send fields such as ``READY="1"`` or ``STATUS="..."``; does nothing without a service manager."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "".join(f"{name}={value}\n" for name, value in fields.items()).encode()
        try:
            # A datagram to a local socket does not block when the socket is told not to.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifier:
                notifier.sendto(message, address)
        except OSError as error:
            _log.warn("systemd was not told {fields}: {error}", fields=fields, error=error)
