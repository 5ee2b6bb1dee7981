"""``python -m benchmarks.soak --gib 10``: many bytes through the relay both ways at once, compared by sha256.

The relay runs in a process of its own; its memory is looked at all the while.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.contestants import contestants, started

PART = 1 << 20


def send(sock: socket.socket, size: int, seed: int, digests: dict[str, str], key: str) -> None:
    """Send ``size`` bytes in parts of random lengths, and end that side."""
    block = os.urandom(4 * PART)
    dice, digest = random.Random(seed), hashlib.sha256()
    while size:
        at = dice.randrange(3 * PART)
        part = memoryview(block)[at : at + min(size, dice.randrange(1, PART))]
        sock.sendall(part)
        digest.update(part)
        size -= len(part)
    sock.shutdown(socket.SHUT_WR)
    digests[key] = digest.hexdigest()


def receive(sock: socket.socket, digests: dict[str, str], key: str) -> None:
    """Read to the end."""
    digest, buffer = hashlib.sha256(), bytearray(PART)
    while count := sock.recv_into(buffer):
        digest.update(memoryview(buffer)[:count])
    digests[key] = digest.hexdigest()


def soak(size: int, relay: str, say: Callable[[str], None]) -> dict[str, Any]:
    """One stream, ``size`` bytes each way.

    Returns:
        What happened, for the results.

    Raises:
        AssertionError: what came is not what was sent, or the relay's memory grew.
    """
    with tempfile.TemporaryDirectory(prefix="soak") as directory, socket.socket(socket.AF_UNIX) as server:
        path = f"{directory}/socket"
        server.bind(path)
        server.listen()
        command = contestants({})[relay](22999, path, directory)
        with started(command, 22999, "") as running:
            server.accept()[0].close()
            near = socket.create_connection(("127.0.0.1", 22999))
            far, _ = server.accept()
            digests: dict[str, str] = {}
            work = [
                threading.Thread(target=send, args=(near, size, 1, digests, "h sent")),
                threading.Thread(target=send, args=(far, size, 2, digests, "g sent")),
                threading.Thread(target=receive, args=(near, digests, "h got")),
                threading.Thread(target=receive, args=(far, digests, "g got")),
            ]
            start, before, peak = time.monotonic(), running.memory(), 0
            for thread in work:
                thread.start()
            while any(thread.is_alive() for thread in work):
                peak = max(peak, running.memory())
                time.sleep(0.25)
            seconds = time.monotonic() - start
            say(f"{size / 2**30:g} GiB each way in {seconds:.0f} s, {2 * size / seconds / 1e6:.0f} MB/s")
            say(f"relay: {before / 1e6:.1f} MB before, {peak / 1e6:.1f} MB at most")
            assert digests["h sent"] == digests["g got"], "h to g differs"
            assert digests["g sent"] == digests["h got"], "g to h differs"
            assert peak - before < 8e6, "its memory grew"
            say(f"sha256 equal: {digests['h sent'][:16]}, {digests['g sent'][:16]}")
            near.close()
            far.close()
            return {
                "relay": relay,
                "GiB each way": size / 2**30,
                "seconds": round(seconds, 1),
                "MB before": round(before / 1e6, 1),
                "MB at most": round(peak / 1e6, 1),
            }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--gib", type=float, default=10, help="GiB each way")
    parser.add_argument("--relay", default="anbox-tw", help="which contestant")
    arguments = parser.parse_args()
    soak(int(arguments.gib * 2**30), arguments.relay, print)


if __name__ == "__main__":
    main()
