"""Being process 1: a tiny init whose only child is the guest.

Orphans of every shell and application end up as children of process 1. Reaping them in the guest itself would
take exit statuses away from those who wait for them there, so process 1 does nothing else than this.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

__all__ = ["STOP_SIGNALS", "run_as_init"]

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    # what lxc-stop sends to an init that says nothing else
    signal.SIGPWR,
    # and to one that is systemd
    signal.SIGRTMIN + 3,
)
"""All of them mean: stop in order."""


def run_as_init(guest: Callable[[], int]) -> int:
    """Run ``guest`` in a child, reap everything, hand signals on; returns the guest's exit code.

    When process 1 returns, the kernel kills what is left of the container.
    """
    # No signal may arrive between the fork and the handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        code = 70
        try:
            code = guest()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def hand_on(number: int, frame: object) -> None:
        try:
            os.kill(child, signal.SIGTERM)
        except ProcessLookupError:
            pass

    for number in STOP_SIGNALS:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return 70
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
