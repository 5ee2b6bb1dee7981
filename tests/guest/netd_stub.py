"""A netd as far as init is concerned: takes its four sockets, answers on one. Run as a service by the tests."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import serverFromString

from anbox_tw.netd.listener import FrameworkCommand, FrameworkListener, Request
from anbox_tw.network import EndpointListener

reactor: Any = _reactor


def main() -> None:
    listener = FrameworkListener("netd", clock=reactor)

    def status(request: Request) -> None:
        request.reply(200, f"alive in {sys.argv[1:]}")

    listener.register(FrameworkCommand("stub", status))
    for name in ("dnsproxyd", "mdns", "fwmarkd", "netd"):
        service = EndpointListener(serverFromString(reactor, f"android-control:{name}"), listener)
        reactor.callWhenRunning(service.startService)
    reactor.run()


if __name__ == "__main__":
    main()
