"""Our relay as a process to be measured: ``python -m benchmarks.relay_ours PORT PATH STRATEGY``."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any


def main(port: int, path: str, strategy: str, reactor_name: str = "default") -> None:
    """Forward a TCP port to a UNIX socket until killed."""
    if reactor_name == "anbox-epoll":
        importlib.import_module("anbox_tw.network.epoll").install()
    from twisted.internet import reactor as installed

    from anbox_tw.network import Connections, ForwardCreator, RetryPolicy, TcpListener, UnixConnector

    reactor: Any = installed
    connector = UnixConnector(reactor, path, retry=RetryPolicy.once())
    registry = Connections(100_000, name="relays", clock=reactor)
    forward = ForwardCreator(connector, clock=reactor, strategy=strategy)
    TcpListener(reactor, port, forward, registry=registry).startService()
    gc.collect()
    gc.freeze()
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
