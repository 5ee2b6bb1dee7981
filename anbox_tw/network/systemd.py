"""Telling systemd how a service is (``sd_notify(3)``), without a library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

__all__ = ["notify"]


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send one message such as ``READY=1`` to the socket that ``$NOTIFY_SOCKET`` names.

    Returns:
        Whether it was sent; False without such a socket, or when nobody takes it. A service never fails
        because of this.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), address)
    except OSError:
        return False
    return True
