"""Setting and reading properties from outside, without a reactor: short exchanges with time limits."""

from __future__ import annotations

import os
import socket

from anbox_tw.android._wire import SOCKET_DIRECTORY, Namespace, sun_path
from anbox_tw.android.errors import PropertyError
from anbox_tw.android.properties._wire import (
    Status,
    decode_answer,
    encode_get,
    encode_list,
    encode_set,
    encode_set2,
)
from anbox_tw.android.properties.service import SOCKET_NAME
from anbox_tw.errors import NotRunning

__all__ = ["get_property", "list_properties", "set_property", "socket_directory"]

TIMEOUT_S = 10.0
"""For the whole exchange."""

MAX_ANSWER_BYTES = 4 << 20
"""More than any answer can have."""


def socket_directory() -> str:
    """The directory of the sockets: ``ANBOX_SOCKET_DIR``, which our init gives its services, or ``/dev/socket``."""
    return os.environ.get("ANBOX_SOCKET_DIR") or SOCKET_DIRECTORY


def _exchange(message: bytes, directory: str | None) -> bytes:
    path = sun_path(SOCKET_NAME, Namespace.RESERVED, socket_directory=directory or socket_directory())
    answer = bytearray()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT_S)
        try:
            sock.connect(path)
            sock.sendall(message)
            while True:
                data = sock.recv(65536)
                if not data:
                    return bytes(answer)
                answer += data
                if len(answer) > MAX_ANSWER_BYTES:
                    raise PropertyError("the property service's answer has no end")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(
                f"no property service on {os.fsdecode(path)!r}",
                "start 'twistd anbox-init', or give --socket-dir",
            ) from error
        except TimeoutError as error:
            raise PropertyError("the property service does not answer") from error
        except ConnectionError as error:
            # it closes at once when it takes no more clients
            raise PropertyError(f"the property service broke the connection: {error.strerror}") from error


def set_property(name: str, value: str, *, directory: str | None = None, old: bool = False) -> None:
    """Set one property, or control a service through ``ctl.start``, ``ctl.stop``, ``ctl.restart``.

    Args:
        name: the name.
        value: the value.
        directory: where the socket is.
        old: use the message of 7.0, which has no answer: a refusal is then not seen.

    Raises:
        PropertyError: it was refused, and why.
        NotRunning: there is no property service.
    """
    if old:
        try:
            _exchange(encode_set(name, value), directory)
        except ValueError as error:
            raise PropertyError(str(error)) from error
        return
    status, _ = decode_answer(_exchange(encode_set2(name, value), directory))
    if status != Status.SUCCESS:
        reason = (
            Status(status).name.lower().replace("_", " ") if status in list(Status) else f"error {status:#x}"
        )
        raise PropertyError(f"setting {name} was refused: {reason}", "init's log has the details")


def get_property(name: str, default: str = "", *, directory: str | None = None) -> str:
    """One value, or ``default``.

    Raises:
        NotRunning: there is no property service.
    """
    _, texts = decode_answer(_exchange(encode_get(name), directory))
    return texts[0] if texts and texts[0] else default


def list_properties(*, directory: str | None = None) -> dict[str, str]:
    """All properties, by name.

    Raises:
        NotRunning: there is no property service.
    """
    _, texts = decode_answer(_exchange(encode_list(), directory))
    return dict(zip(texts[::2], texts[1::2], strict=True))
