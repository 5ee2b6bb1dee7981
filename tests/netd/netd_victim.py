"""Kills a netd at its changes of the kernel; see ``test_killed``.

Run in a network namespace of its own. Arguments: a directory, and N: it is killed at the first, the N+1st, ... note, and
then change, until one survives. One line of JSON for each moment: what was killed, what the namespace was before, when the victim was dead,
and after a successor had started and stopped. A victim is a fork: it has the imports already.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from anbox_tw.netd.console import Conversation
from anbox_tw.netd.daemon import Netd
from anbox_tw.netd.kernel_journal import KernelJournal
from anbox_tw.netd.netlink import RouteClient, pyroute2_parts
from anbox_tw.netd.nft import NftTable

COMMANDS = (
    "interface setcfg v0 10.7.0.1 24 up",
    "interface setmtu v0 1400",
    "interface setmtu v0 1300",
    "interface ipv6privacyextensions v0 enable",
    "interface clearaddrs v0",
    "interface ipv6 v0 disable",
    "interface setcfg w0 0.0.0.0 0 down",
    "ipfwd enable tethering",
    "nat enable v0 w0 0",
    "network create 100",
    "network interface add 100 v0",
    "network route add 100 v0 10.8.0.0/16",
    "tether interface add v0",
    "bandwidth setiquota v0 100000",
    "firewall enable whitelist",
)
SWITCHES = (
    "ipv4/ip_forward",
    *(f"ipv4/conf/{name}/forwarding" for name in ("all", "default", "v0", "w0", "x0")),
    *(f"ipv6/conf/{name}/forwarding" for name in ("all", "default", "v0", "w0", "x0")),
    *(f"ipv6/conf/v0/{name}" for name in ("disable_ipv6", "accept_ra", "accept_dad", "use_tempaddr")),
)
PREPARE = (
    "sysctl -q -w net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0",
    "ip link set lo up",
    "ip link add v0 type bridge",
    "ip link add w0 type bridge",
    "ip link add x0 type bridge",
    "ip addr add 10.9.0.1/24 dev v0",
    "ip addr add 10.9.1.1/24 dev w0",
    "ip link set v0 up",
    "ip link set w0 up",
    "ip -6 addr add 2001:db8::1/64 dev v0 nodad",
    "ip route add 10.20.0.0/16 via 10.9.0.2",
    "sysctl -q -w net.ipv4.ip_forward=0 net.ipv4.conf.x0.forwarding=1",
)


def say(line: str) -> str:
    return subprocess.run(line.split(), check=True, capture_output=True, text=True).stdout


def look() -> dict[str, Any]:
    switches = {}
    for name in SWITCHES:
        with open(f"/proc/sys/net/{name}") as file:
            switches[name] = file.read().strip()
    links = json.loads(say("ip -j addr"))
    return {
        "switches": switches,
        "links": [(each["ifname"], "UP" in each["flags"], each["mtu"]) for each in links],
        "addresses": sorted(
            f"{each['ifname']} {a['local']}/{a['prefixlen']}" for each in links for a in each["addr_info"]
        ),
        "routes": sorted(say("ip route show table all").splitlines()),
        "routes6": sorted(say("ip -6 route show table all").splitlines()),
        "rules": say("ip rule") + say("ip -6 rule"),
        "nft": say("nft list ruleset"),
    }


def kill_at(where: str, number: int) -> None:
    """Be killed at the number-th note (it is written, its change is not made) or change (it is made)."""
    count = 0

    def counting() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "note":
        write = KernelJournal._write

        def writing(self: KernelJournal, line: dict[str, Any]) -> None:
            write(self, line)
            counting()

        KernelJournal._write = writing  # type: ignore[method-assign]
    elif where == "change":
        change, transaction = RouteClient.change, NftTable._transaction

        async def changing(self: RouteClient, *args: Any, **options: Any) -> None:
            await change(self, *args, **options)
            counting()

        async def transacting(self: NftTable, commands: Any) -> None:
            await transaction(self, commands)
            counting()

        RouteClient.change = changing  # type: ignore[method-assign]
        NftTable._transaction = transacting  # type: ignore[method-assign]


def forked(work: Callable[[Any], Coroutine[Any, Any, object]]) -> int:
    """Do some work on a reactor in a child; its exit status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        from twisted.internet import reactor as made
        from twisted.internet.defer import ensureDeferred

        reactor: Any = made
        status = []

        async def main() -> None:
            try:
                await work(reactor)
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


def main() -> None:
    directory, step = sys.argv[1], int(sys.argv[2])
    pyroute2_parts()
    for line in PREPARE:
        say(line)
    say("nft list ruleset")
    sockets = f"{directory}/s"

    def netd(reactor: Any) -> Netd:
        return Netd(reactor, socket_dir=sockets, hosts=None, system_resolver=None)

    def settled(wanted: dict[str, Any] | None, limit_s: float = 10.0) -> dict[str, Any]:
        """The namespace when it is as wanted (link-local addresses come back by and by), or after the limit."""
        deadline = time.monotonic() + limit_s
        while True:
            found = look()
            ready = sum(route.startswith("local fe80") for route in found["routes6"]) == 2
            if (found == wanted if wanted else ready) or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    before = settled(None)
    where, number = "note", 1
    while where:

        async def victim(reactor: Any) -> None:
            kill_at(where, number)
            daemon = netd(reactor)
            daemon.startService()
            await daemon.when_ready()
            conversation = await Conversation.connect(reactor, f"{sockets}/netd")
            for count, command in enumerate(COMMANDS, 1):
                conversation.send(count, command.split(" "))
                while (message := await conversation.next(20)).sequence != count:
                    pass
                if not message.is_ok:
                    raise AssertionError(f"{command}: {message.code} {message.text}")
            await conversation.close()
            await daemon.stopService()

        async def successor(reactor: Any) -> None:
            daemon = netd(reactor)
            daemon.startService()
            await daemon.when_ready()
            await daemon.stopService()

        status = forked(victim)
        dead = look()
        again = forked(successor)
        found: dict[str, Any] = {
            "moment": f"{where} {number}",
            "status": [status, again],
            "left": os.listdir(directory),
        }
        found |= {"before": before, "dead": dead, "after": settled(before)}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        number += step
        if status != -signal.SIGKILL:
            where, number = {"note": "change", "change": ""}[where], 1


if __name__ == "__main__":
    main()
