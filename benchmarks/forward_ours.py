"""Our direct forward as a process to be measured: ``python -m benchmarks.forward_ours PORT``.

Everything that runs with a container runs here: the helper that opens the sockets, the listener through which the session
comes to it, and the session's forwards. Only the container is missing: the helper enters our own namespaces.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from typing import Any


async def serve(reactor: Any, directory: str, target: int) -> int:
    """Start the helper and a forward to a TCP port; returns the port that listens.

    Raises:
        SystemExit: the helper could not be started.
    """
    from anbox_tw.container.guest_sockets.gate import GuestGate, HelperProcess
    from anbox_tw.container.guest_sockets.service import GuestSocketCreator
    from anbox_tw.container.probes import helper_command
    from anbox_tw.container.process_plan import PythonFacts
    from anbox_tw.network import UnixListener
    from anbox_tw.session.forwards import Forwards, GuestSockets

    gate = GuestGate(reactor, "bench")
    helper = HelperProcess(reactor, gate)
    helper.spawn(helper_command(PythonFacts.here()), {"PATH": os.environ["PATH"]})
    if not await helper.enter(os.getpid()):
        raise SystemExit(f"no helper: {gate.failure}")
    creator = GuestSocketCreator(reactor, lambda caller, instance: gate)
    UnixListener(reactor, f"{directory}/guests", creator).startService()
    guest = GuestSockets(reactor, "bench")
    guest.container_runs(f"{directory}/guests")
    forwards = Forwards(reactor, guest)
    forwards.startService()
    return forwards.add("tcp:0", f"tcp:{target}", via="direct").listen.port


def main(target: int) -> None:
    """Forward to a TCP port of loopback until killed; prints the port to come to."""
    importlib.import_module("anbox_tw.network.epoll").install()
    from twisted.internet import reactor as installed
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    reactor: Any = installed

    def failed(failure: Failure) -> None:
        print(failure.getErrorMessage(), file=sys.stderr, flush=True)
        reactor.stop()

    with tempfile.TemporaryDirectory(prefix="forward-bench-") as directory:

        def start() -> None:
            started: Deferred[int] = Deferred.fromCoroutine(serve(reactor, directory, target))
            started.addCallback(print, flush=True)
            started.addErrback(failed)

        reactor.callWhenRunning(start)
        reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
