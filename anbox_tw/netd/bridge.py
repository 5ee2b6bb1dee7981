"""A bridge for containers: the link, its address, forwarding, and NAT to wherever the host's routes lead.

`bridge_ruleset` is what the container manager's ``anbox0`` gets; `Bridge` does the whole through netlink, for
applications that want a bridge of their own::

    bridge = Bridge(reactor, "mybr0", "10.77.0.1/24")
    await bridge.make()
    ...
    await bridge.unmake()
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any, Final

from anbox_tw.errors import ConfigError
from anbox_tw.netd.children import run_tool
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.namespace import NamespacedReactor, NetworkNamespace
from anbox_tw.netd.nft import errno_in, match, meta, payload

__all__ = ["COMMENT", "Bridge", "bridge_ruleset"]

COMMENT: Final = "managed by anbox-tw"
# DNS and DHCP, should the host serve them on the bridge
SERVED_PORTS: Final = (53, 67)
_FORWARDING: Final = "/proc/sys/net/ipv4/ip_forward"


def bridge_ruleset(table: str, bridge: str, subnet: ipaddress.IPv4Network) -> dict[str, Any]:
    """One transaction for ``nft -j -f -`` that makes a bridge's table, whatever was in it before.

    Args:
        table: name of the table, family ``ip``; nothing else is in it.
        bridge: name of the bridge.
        subnet: what is masqueraded.
    """
    name = {"family": "ip", "table": table}
    prefix = {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}

    def chain(chain_name: str, kind: str, hook: str, priority: int) -> dict[str, Any]:
        options = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
        return {"add": {"chain": {**name, "name": chain_name, **options}}}

    def rule(chain_name: str, *expressions: dict[str, Any]) -> dict[str, Any]:
        return {"add": {"rule": {**name, "chain": chain_name, "expr": list(expressions), "comment": COMMENT}}}

    table_itself = {"table": {"family": "ip", "name": table}}
    incoming, outgoing = match(meta("iifname"), bridge), match(meta("oifname"), bridge)
    ports = {"set": list(SERVED_PORTS)}
    return {
        "nftables": [
            {"add": table_itself},
            {"delete": table_itself},
            {"add": table_itself},
            chain("postrouting", "nat", "postrouting", 100),
            chain("forward", "filter", "forward", 0),
            chain("input", "filter", "input", 0),
            rule(
                "postrouting",
                match(payload("ip", "saddr"), prefix),
                match(payload("ip", "daddr"), prefix, "!="),
                {"masquerade": None},
            ),
            rule("forward", incoming, {"accept": None}),
            rule("forward", outgoing, {"accept": None}),
            rule("input", incoming, match(payload("udp", "dport"), ports), {"accept": None}),
            rule("input", incoming, match(payload("tcp", "dport"), ports), {"accept": None}),
        ]
    }


class Bridge:
    """One bridge, made and unmade.

    Attributes:
        name: of the bridge, and of its nftables table.
        address: the bridge's own, with the prefix length of its subnet.
    """

    def __init__(
        self, reactor: Any, name: str, address: str, *, namespace: NetworkNamespace | None = None
    ) -> None:
        """Make the object; the kernel is not touched yet.

        Raises:
            ConfigError: the address is none of IPv4, or the name cannot be an interface's.
        """
        from anbox_tw.netd.kernel import is_interface_name

        try:
            self.address = ipaddress.IPv4Interface(address)
        except ValueError as error:
            raise ConfigError(
                f"{address!r} is no IPv4 address with a prefix length", "write 10.77.0.1/24"
            ) from error
        if not is_interface_name(name):
            raise ConfigError(
                f"{name!r} cannot be the name of an interface", "use up to 15 letters and digits"
            )
        self.name = name
        self._reactor = reactor
        self._namespace = namespace or NetworkNamespace()
        self._there = NamespacedReactor(reactor, self._namespace)
        self._kernel: Any = None
        self._routes: Any = None
        self._table = False

    async def make(self) -> None:
        """Make the bridge, give it its address, bring it up, forward and masquerade.

        What was made is unmade when a later step fails.

        Raises:
            HostLacks: pyroute2 is missing.
            KernelRefused: a step is refused; EEXIST when something else has the name.
        """
        from anbox_tw.netd.kernel import Kernel
        from anbox_tw.netd.netlink import RouteClient

        self._routes = RouteClient(self._reactor, self._namespace)
        self._kernel = Kernel(self._routes, self._namespace)
        try:
            if not await self._kernel.add_bridge(self.name):
                raise KernelRefused(17, f"bridge {self.name}", "there is one already")
            await self._kernel.add_address(self.name, str(self.address.ip), self.address.network.prefixlen)
            await self._kernel.set_up(self.name, True)
            self._kernel.write_sysctl(_FORWARDING, "1")
            await self._nft(bridge_ruleset(self.name, self.name, self.address.network))
            self._table = True
        except BaseException:
            await self.unmake()
            raise

    async def _nft(self, ruleset: dict[str, Any]) -> None:
        done = await run_tool(self._there, ["nft", "-j", "-f", "-"], stdin=json.dumps(ruleset))
        if done.exit_code:
            raise KernelRefused(errno_in(done.error), f"the table of {self.name}", done.error.strip()[:200])

    async def unmake(self) -> None:
        """Take everything back; calling this again is allowed."""
        if self._table:
            self._table = False
            table = {"table": {"family": "ip", "name": self.name}}
            await self._nft({"nftables": [{"add": table}, {"delete": table}]})
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.undo_all()
            self._routes.close()
