"""A manager of one container of the process backend, for tests to run, to order about and to kill.

``python -m tests.container.manager JSON``. Prints each event as a line of JSON. Reads orders from its
standard input: ``stop`` stops the container, ``info`` prints what is known of it; the end of the
input stops it too. With ``die_at`` N it kills itself (SIGKILL) at its Nth event.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineReceiver

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.machine import ContainerMachine, PhaseEvent
from anbox_tw.container.process import ProcessBackend
from anbox_tw.container.spec import BindMount, ContainerSpec, NetworkSpec
from anbox_tw.errors import AnboxError
from tests.container.doubles import a_journal


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Orders(LineReceiver):
    delimiter = b"\n"

    def __init__(self, machine: ContainerMachine) -> None:
        self.machine = machine
        self.stop: Deferred[None] = Deferred()

    def lineReceived(self, line: bytes) -> None:
        if line == b"info":
            say(info=self.machine.info())
        elif not self.stop.called:
            self.stop.callback(None)

    def connectionLost(self, reason: Any = None) -> None:
        if not self.stop.called:
            self.stop.callback(None)


async def run(reactor: Any, options: dict[str, Any]) -> None:
    binds = tuple(BindMount(*bind) for bind in options.pop("bind_mounts", []))
    network = NetworkSpec(
        mode=options.pop("network", "auto"), host_loopback=options.pop("host_loopback", False)
    )
    isolation = options.pop("isolation", "auto")
    die_at = options.pop("die_at", 0)
    seen = 0

    def observe(event: PhaseEvent) -> None:
        nonlocal seen
        seen += 1
        say(**event.as_dict())
        if seen == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        backend = ProcessBackend(reactor, isolation=isolation, log_limit=options.pop("log_limit", 100000))
        spec = ContainerSpec(bind_mounts=binds, network=network, **options)
        journal = a_journal(reactor, spec.journal_path)
    except AnboxError as error:
        say(refused=str(error), code=error.code)
        return
    machine = ContainerMachine(reactor, backend, spec, journal)
    machine.observe(observe)
    try:
        orders = Orders(machine)
        StandardIO(orders, reactor=reactor)
        await machine.start()
        say(info=machine.info())
        await orders.stop
        await machine.stop()
    except DiagnosedError as error:
        say(failed=error.diagnosis.as_dict())
    finally:
        journal.close()
    say(over=True)


if __name__ == "__main__":
    task.react(lambda reactor: ensureDeferred(run(reactor, json.loads(sys.argv[1]))))
