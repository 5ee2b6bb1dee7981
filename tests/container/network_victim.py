"""Kills a maker of the containers' bridge at each of its changes; see ``test_network.KilledAtEachStepTests``.

Run in a network namespace of its own, with a directory as argument. One line of JSON for each moment: the namespace
before, when the victim was dead, and after its successor had undone what the journals say. A victim is a fork: it has
the imports already.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from anbox_tw.container.commands import Commands
from anbox_tw.container.journal import Journal, UndoContext
from anbox_tw.container.network import NETWORK_KIND, ContainerNetwork
from anbox_tw.container.spec import NetworkSpec
from anbox_tw.container.undo import default_kinds
from anbox_tw.netd.bridge import Bridge
from anbox_tw.netd.kernel_journal import KernelJournal
from anbox_tw.netd.netlink import RouteClient, pyroute2_parts

BRIDGE = "anboxk0"


def look() -> dict[str, Any]:
    def run(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    switches = {}
    for name in ("all", "default", "lo", "other"):
        with open(f"/proc/sys/net/ipv4/conf/{name}/forwarding") as file:
            switches[name] = file.read().strip()
    return {
        "links": [(link["ifname"], link["flags"]) for link in json.loads(run("ip", "-j", "link"))],
        "addresses": run("ip", "-o", "-4", "address"),
        "rules": run("nft", "list", "ruleset"),
        "forwarding": switches,
    }


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(where: str, number: int) -> None:
    """Be killed at the number-th note (it is written, its change is not made) or change (it is made)."""
    count = 0

    def counting() -> None:
        nonlocal count
        count += 1
        if count == number:
            die()

    if where == "note":
        write = KernelJournal._write

        def writing(self: KernelJournal, line: dict[str, Any]) -> None:
            write(self, line)
            counting()

        KernelJournal._write = writing  # type: ignore[method-assign]
    else:
        change, transaction = RouteClient.change, Bridge._transaction

        async def changing(self: RouteClient, *args: Any, **options: Any) -> None:
            await change(self, *args, **options)
            counting()

        async def transacting(self: Bridge, ruleset: dict[str, Any]) -> None:
            await transaction(self, ruleset)
            counting()

        RouteClient.change = changing  # type: ignore[method-assign]
        Bridge._transaction = transacting  # type: ignore[method-assign]


def forked(directory: str, work: Callable[[Journal], Coroutine[Any, Any, object]]) -> int:
    """Do some work with a journal in a child; its exit status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        from twisted.internet import reactor as made
        from twisted.internet.defer import ensureDeferred

        reactor: Any = made
        kinds = default_kinds()
        kinds.register(NETWORK_KIND)
        journal = Journal(f"{directory}/journal", UndoContext(reactor, Commands(reactor)), kinds)
        journal.open()
        status = []

        async def main() -> None:
            try:
                await work(journal)
                journal.close()
                status.append(0)
            except BaseException:
                traceback.print_exc()
                status.append(1)
            reactor.stop()

        reactor.callWhenRunning(lambda: ensureDeferred(main()))
        reactor.run()
        os._exit(status[0])
    except BaseException:
        traceback.print_exc()
        os._exit(2)


async def undo(journal: Journal) -> None:
    await journal.undo_all()


def main() -> None:
    directory = sys.argv[1]
    pyroute2_parts()
    network = ContainerNetwork(bridge=BRIDGE, run_directory=f"{directory}/net")
    before = look()
    for where in ("note", "change"):
        number = 0
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            number += 1

            async def victim(journal: Journal) -> None:
                kill_at(where, number)
                await network.acquire("one", NetworkSpec(), journal)
                await journal.undo_all()

            status = forked(directory, victim)
            dead = look()
            # a new start in the place of the killed one, and its end
            undone = forked(directory, undo)
            clean = look()

            async def successor(journal: Journal) -> None:
                await network.acquire("one", NetworkSpec(), journal)
                await journal.undo_all()

            again = forked(directory, successor)
            left = [os.path.join(at, name) for at, _, names in os.walk(directory) for name in names]
            statuses = [status, undone, again]
            found: dict[str, Any] = {"where": where, "number": number, "status": statuses, "left": left}
            found |= {"before": before, "dead": dead, "clean": clean, "after": look()}
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
