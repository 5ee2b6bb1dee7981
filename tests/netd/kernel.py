"""Real network namespaces for tests: each lives as long as a sleeping child of the test."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from anbox_tw.netd.namespace import NetworkNamespace
from tests.support import need_root, need_tool

# one that other users may run, too; that of PATH may lie in root's home
PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else "python3"

START = """
ip link set lo up
# addresses are there at once, without a second of asking whether somebody else has them
for n in accept_dad dad_transmits; do echo 0 > /proc/sys/net/ipv6/conf/default/$n; done
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
# a new namespace has the switches of IPv4 from the host, whatever they are there
echo 0 > /proc/sys/net/ipv4/ip_forward
echo ready
exec sleep 600
"""


class Space:
    """A network namespace with ``lo`` up."""

    def __init__(self) -> None:
        self.holder = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", START],
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n"
        self.path = f"/proc/{self.holder.pid}/ns/net"
        self.namespace = NetworkNamespace(self.path)

    def end(self) -> None:
        self.namespace.close()
        self.holder.kill()
        self.holder.wait()
        assert self.holder.stdout is not None
        self.holder.stdout.close()

    @property
    def pid(self) -> int:
        return self.holder.pid

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net={self.path}", *words]

    def run(self, line: str, *, check: bool = True, stdin: str = "") -> str:
        done = subprocess.run(
            self.command(*line.split()), input=stdin, capture_output=True, text=True, timeout=30
        )
        if check and done.returncode:
            raise AssertionError(f"{line}: {done.stderr}")
        return done.stdout

    def ip(self, line: str) -> Any:
        """``ip -j LINE`` as data."""
        return json.loads(self.run(f"ip -j {line}") or "[]")

    def nft(self) -> list[dict[str, Any]]:
        """The whole ruleset without what changes by itself."""
        found = json.loads(self.run("nft -j list ruleset"))["nftables"]
        return [each for each in found if "metainfo" not in each]

    def python(self, code: str, *arguments: str, user: int | None = None, check: bool = True) -> str:
        words = [PYTHON, "-c", textwrap.dedent(code), *arguments]
        if user is not None:
            words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *words]
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=30)
        if check and done.returncode:
            raise AssertionError(done.stderr)
        return done.stdout.strip()

    def state(self) -> dict[str, Any]:
        """All that netd may change, for before and after."""
        return {
            "nft": self.run("nft list ruleset"),
            "rules": self.run("ip rule") + self.run("ip -6 rule"),
            "routes": sorted(self.run("ip route show table all").splitlines()),
            "routes6": sorted(self.run("ip -6 route show table all").splitlines()),
            "links": [(link["ifname"], link.get("operstate"), link["mtu"]) for link in self.ip("link")],
            "addresses": [
                (link["ifname"], each["local"]) for link in self.ip("addr") for each in link["addr_info"]
            ],
            "forward": self.namespace.read_file("/proc/sys/net/ipv4/ip_forward")
            + self.namespace.read_file("/proc/sys/net/ipv6/conf/all/forwarding"),
        }


class KernelTestCase(TestCase):
    """A test with namespaces of its own."""

    timeout = 90

    def setUp(self) -> None:
        need_root()
        for tool in ("unshare", "nsenter", "ip", "nft"):
            need_tool(tool)

    def space(self) -> Space:
        made = Space()
        self.addCleanup(made.end)
        return made

    def veth(self, a: Space, name_a: str, b: Space, name_b: str) -> None:
        """A cable between two namespaces, both ends up.

        The kernel tells of a carrier at once only where the two ends have different numbers (linkwatch_urgent_event in
        net/core/link_watch.c); otherwise it may wait a second, whoever listens.
        """
        taken = [link["ifindex"] for space in (a, b) for link in space.ip("link")]
        a.run(
            f"ip link add {name_a} index {max(taken) + 1} type veth peer name {name_b} index {max(taken) + 2} netns {b.pid}"
        )
        a.run(f"ip link set {name_a} up")
        b.run(f"ip link set {name_b} up")

    async def settled(self, space: Space) -> dict[str, Any]:
        """The namespace's state when all links that are up have their link-local address."""

        def ready() -> bool:
            links = [link for link in space.ip("addr") if "UP" in link["flags"] and link["ifname"] != "lo"]
            return all(
                any(a.get("scope") == "link" and not a.get("tentative") for a in link["addr_info"])
                for link in links
                if "LOWER_UP" in link["flags"]
            )

        await self.until(ready, "link-local addresses")
        return space.state()

    async def until(self, condition: Callable[[], Any], what: str, timeout: float = 10.0) -> Any:
        """Look again with every turn of the reactor until something is there."""
        clock: Any = reactor
        limit = clock.seconds() + timeout
        while True:
            found = condition()
            if isinstance(found, Deferred):
                found = await found
            if found:
                return found
            if clock.seconds() > limit:
                raise AssertionError(f"{what}: not within {timeout} s")
            await deferLater(clock, 0.005)
