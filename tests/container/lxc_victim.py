"""A manager that starts a container and is killed on the way; see ``test_lxc_faults``.

Arguments: spec as JSON, directory of the leases, bridge, and when to die: ``record N`` (the N-th change is
written down and not yet made), ``state NAME`` (the container has just got to it), ``after SECONDS``, or
``never`` (it prints how many changes were written down, and LXC's configuration).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import ensureDeferred

from anbox_tw.container.commands import Commands
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.lxc import LxcBackend
from anbox_tw.container.lxc_undo import add_lxc_kinds
from anbox_tw.container.machine import ContainerMachine, PhaseEvent
from anbox_tw.container.network import ContainerNetwork
from anbox_tw.container.spec import BindMount, ContainerSpec
from anbox_tw.container.undo import default_kinds


def main() -> None:
    reactor: Any = global_reactor
    given = json.loads(sys.argv[1])
    given["bind_mounts"] = [BindMount(source, target) for source, target in given["bind_mounts"]]
    spec = ContainerSpec(**given)
    when, value = sys.argv[4], sys.argv[5]
    journal = Journal(
        spec.journal_path, UndoContext(reactor, Commands(reactor)), add_lxc_kinds(default_kinds())
    )
    journal.open()
    network = ContainerNetwork(bridge=sys.argv[3], run_directory=sys.argv[2])
    machine = ContainerMachine(reactor, LxcBackend(reactor, network=network), spec, journal)
    records = 0

    def observe(event: PhaseEvent) -> None:
        nonlocal records
        records += bool(event.detail)
        if (when == "record" and event.detail and records == int(value)) or (
            when == "state" and event.state.value == value and not event.detail
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    machine.observe(observe)

    async def live() -> None:
        await machine.start()
        if when == "never":
            with open(f"{spec.data_path}/containers/{spec.instance}/config") as file:
                json.dump({"records": records, "config": file.read(), "info": machine.info()}, sys.stdout)
            sys.stdout.flush()
        await machine.stop()
        journal.close()
        reactor.stop()

    if when == "after":
        reactor.callLater(float(value), os.kill, os.getpid(), signal.SIGKILL)
    ensureDeferred(live()).addErrback(lambda failure: (failure.printTraceback(), reactor.stop()))
    reactor.run()


if __name__ == "__main__":
    main()
