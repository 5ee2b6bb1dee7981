"""Opens paths as another user; run as a program of its own by `anbox_tw.container.authority`.

Reads ``{"uid": .., "gid": .., "groups": [..], "paths": [..]}`` from standard input, becomes that
user for good, and sends on descriptor 3, for `BATCH` paths at a time, a JSON list with an object for
each path (``{"directory": bool}`` or ``{"error": why}``) together with an ``O_PATH`` descriptor for each
without error.

It imports nothing of ours and little of anything: it starts as root with a caller's paths in hand.
"""

import json
import os
import socket
import stat
import sys

BATCH = 100
"""Descriptors in one message: the kernel's SCM_MAX_FD is 253."""


def open_readable(path: str) -> tuple[int, bool]:
    """An ``O_PATH`` descriptor of what ``path`` is now, if this process may read it; and whether it is a
    directory.

    Raises:
        OSError: it is not there, or may not be read (a socket: not be connected to).
    """
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        wanted = os.R_OK
        if stat.S_ISDIR(mode):
            wanted |= os.X_OK
        elif stat.S_ISSOCK(mode):
            wanted |= os.W_OK
        if not os.access(f"/proc/self/fd/{descriptor}", wanted):
            raise PermissionError(13, "Permission denied")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, stat.S_ISDIR(mode)


def main() -> None:
    """Do it."""
    request = json.load(sys.stdin)
    os.setgroups(request["groups"])
    os.setresgid(request["gid"], request["gid"], request["gid"])
    os.setresuid(request["uid"], request["uid"], request["uid"])
    answers = socket.socket(fileno=3)
    paths = request["paths"]
    for start in range(0, len(paths), BATCH):
        results: list[dict[str, object]] = []
        descriptors = []
        for path in paths[start : start + BATCH]:
            try:
                descriptor, directory = open_readable(path)
                descriptors.append(descriptor)
                results.append({"directory": directory})
            except (OSError, ValueError) as error:
                results.append({"error": getattr(error, "strerror", None) or str(error)})
        socket.send_fds(answers, [json.dumps(results).encode()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    main()
