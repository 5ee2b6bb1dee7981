"""Local socket names into the bytes and lengths that ``bind`` and ``connect`` take.

Source: ``socket_make_sockaddr_un`` in ``libcutils/socket_local_client_unix.c`` and
``android_get_control_socket`` in ``include/cutils/sockets.h`` at android-7.0.0_r1.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from anbox_tw.android.errors import AddressError

__all__ = [
    "ENVIRONMENT_PREFIX",
    "SOCKET_DIRECTORY",
    "SUN_PATH_BYTES",
    "Namespace",
    "control_key",
    "sockaddr_un",
    "sun_path",
]

SUN_PATH_BYTES = 108
"""``sizeof(sockaddr_un.sun_path)`` on Linux."""

SOCKET_DIRECTORY = "/dev/socket"
"""``ANDROID_SOCKET_DIR``: where the reserved namespace and init's sockets live."""

ENVIRONMENT_PREFIX = "ANDROID_SOCKET_"
"""``ANDROID_SOCKET_ENV_PREFIX``."""

MAX_CONTROL_KEY = 63
"""A daemon builds the key in a buffer of 64 bytes, NUL included: a longer one it would never find."""

AF_UNIX = 1


class Namespace(IntEnum):
    """``ANDROID_SOCKET_NAMESPACE_*``, the numbers of ``LocalSocketAddress.Namespace`` in Java."""

    ABSTRACT = 0
    RESERVED = 1
    FILESYSTEM = 2


def _bytes(name: str | bytes) -> bytes:
    data = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    if b"\0" in data:
        # libcutils would silently use what stands before it
        raise AddressError(f"socket name {name!r} holds a NUL byte", "leave it out")
    return data


def sun_path(
    name: str | bytes, namespace: Namespace, *, socket_directory: str | bytes = SOCKET_DIRECTORY
) -> bytes:
    """The address bytes as Python's ``socket`` takes them: an abstract name begins with NUL, a path has none.

    Args:
        name: the socket's name; a ``str`` is sent as UTF-8, as Java does.
        namespace: where the name lives.
        socket_directory: what stands for ``/dev/socket`` in the reserved namespace.

    Raises:
        AddressError: the name is empty, holds NUL, leaves the directory, or does not fit (nothing is ever cut).
    """
    data = _bytes(name)
    if namespace == Namespace.ABSTRACT:
        if len(data) + 1 > SUN_PATH_BYTES:
            raise AddressError(
                f"abstract socket name has {len(data)} bytes, at most {SUN_PATH_BYTES - 1} fit", "shorten it"
            )
        return b"\0" + data
    if not data:
        raise AddressError(f"an empty name cannot be a {namespace.name.lower()} socket", "name the socket")
    if namespace == Namespace.RESERVED:
        if data.startswith(b"/") or b".." in data.split(b"/"):
            raise AddressError(
                f"reserved socket name {name!r} leaves the socket directory", "give a name relative to it"
            )
        directory = _bytes(socket_directory).rstrip(b"/")
        data = directory + b"/" + data
    if len(data) > SUN_PATH_BYTES - 1:
        raise AddressError(
            f"socket path {data.decode('utf-8', 'replace')!r} has {len(data)} bytes, at most {SUN_PATH_BYTES - 1} fit",
            "use a shorter directory or name",
        )
    return data


def sockaddr_un(
    name: str | bytes, namespace: Namespace, *, socket_directory: str | bytes = SOCKET_DIRECTORY
) -> bytes:
    """The whole ``sockaddr_un`` that is passed to the kernel; its length is the address length.

    For an abstract name that is 3 + its length: two peers whose lengths differ never meet. For a path
    the terminating NUL counts.

    Raises:
        AddressError: as ``sun_path``.
    """
    path = sun_path(name, namespace, socket_directory=socket_directory)
    if namespace != Namespace.ABSTRACT:
        path += b"\0"
    return struct.pack("=H", AF_UNIX) + path


def control_key(name: str) -> str:
    """The environment variable in which init hands over the socket ``name``.

    Raises:
        AddressError: the name makes a key that no daemon can look up.
    """
    key = ENVIRONMENT_PREFIX + name
    size = len(_bytes(key))
    if not name or "=" in name:
        raise AddressError(
            f"socket name {name!r} cannot stand in an environment variable", "rename the socket"
        )
    if size > MAX_CONTROL_KEY:
        raise AddressError(
            f"socket name {name!r} is too long for its environment variable",
            f"at most {MAX_CONTROL_KEY - len(ENVIRONMENT_PREFIX)} bytes",
        )
    return key
