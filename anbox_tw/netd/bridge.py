"""A bridge for containers: the link, its address, forwarding, and NAT to wherever the host's routes lead.

The container manager makes its ``anbox0`` with it; so can an application that wants a bridge of its own::

    bridge = Bridge(reactor, "mybr0", "10.77.0.1/24")
    await bridge.make()
    ...
    await bridge.unmake()

With a journal (`KernelJournal` with a path) the second half may be another process's: it makes a `Bridge` of the same
name with the same journal, and unmakes it. Each step of `Bridge.make` may be repeated.
"""

from __future__ import annotations

import errno
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from attrs import frozen

from anbox_tw.errors import ConfigError
from anbox_tw.netd._kernel_model import is_interface_name
from anbox_tw.netd.children import Completed, run_tool
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.forwarding import FORWARD4, ForwardingClaims
from anbox_tw.netd.kernel_journal import KernelJournal
from anbox_tw.netd.namespace import NamespacedReactor, NetworkNamespace
from anbox_tw.netd.nft import errno_in, match, meta, payload

__all__ = ["COMMENT", "Alias", "Bridge", "BridgeSeen", "bridge_ruleset"]

COMMENT: Final = "managed by anbox-tw"
# DNS and DHCP, should the host serve them on the bridge
SERVED_PORTS: Final = (53, 67)
_LOOPBACK: Final = ipaddress.IPv4Network("127.0.0.0/8")
_TRANSPORTS: Final = ("tcp", "udp")

Nft = Callable[[str], Awaitable[Completed]]
"""Runs ``nft -j -f -`` with a text."""


@frozen
class Alias:
    """An address that leads those on the bridge to the host's loopback.

    Attributes:
        address: what they connect to.
        loopback: where they get, an address of ``127.0.0.0/8``.
        source: who may; None for all on the bridge.
        port: of TCP and UDP; 0 for all ports of both.
    """

    address: ipaddress.IPv4Address
    loopback: ipaddress.IPv4Address = ipaddress.IPv4Address("127.0.0.1")
    source: ipaddress.IPv4Address | None = None
    port: int = 0


def _alias_rules(bridge: str, alias: Alias) -> list[list[dict[str, Any]]]:
    """The expressions of an alias's rules."""
    common = [match(meta("iifname"), bridge), match(payload("ip", "daddr"), str(alias.address))]
    if alias.source is not None:
        common.insert(1, match(payload("ip", "saddr"), str(alias.source)))
    target = {"dnat": {"addr": str(alias.loopback)}}
    if not alias.port:
        return [[*common, match(meta("l4proto"), {"set": list(_TRANSPORTS)}), target]]
    return [[*common, match(payload(each, "dport"), alias.port), target] for each in _TRANSPORTS]


def bridge_ruleset(
    table: str, bridge: str, subnet: ipaddress.IPv4Network, aliases: Iterable[Alias] = ()
) -> dict[str, Any]:
    """One transaction for ``nft -j -f -`` that makes a bridge's table, whatever was in it before.

    Args:
        table: name of the table, family ``ip``; nothing else is in it.
        bridge: name of the bridge.
        subnet: what is masqueraded.
        aliases: ways to the host's loopback.
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
    ways = [rule("prerouting", *each) for alias in aliases for each in _alias_rules(bridge, alias)]
    if ways:
        # With route_localnet the host would take packets to 127.0.0.0/8 from the bridge: only our own translation may
        # make such, which comes later.
        loopback = {"prefix": {"addr": str(_LOOPBACK.network_address), "len": _LOOPBACK.prefixlen}}
        ways = [
            chain("martians", "filter", "prerouting", -300),
            rule("martians", incoming, match(payload("ip", "daddr"), loopback), {"drop": None}),
            chain("prerouting", "nat", "prerouting", -100),
            *ways,
        ]
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
            *ways,
        ]
    }


@frozen
class BridgeSeen:
    """An interface that has a bridge's name.

    Attributes:
        is_bridge: whether it is one.
        mac: its hardware address.
        addresses: its IPv4 addresses with their prefix lengths.
    """

    is_bridge: bool
    mac: str
    addresses: tuple[ipaddress.IPv4Interface, ...]


class Bridge:
    """One bridge, made and unmade.

    Attributes:
        name: of the bridge.
        address: the bridge's own, with the prefix length of its subnet.
        table: name of its nftables table, of the family ``ip``.
        aliases: ways to the host's loopback, for the next `make_table`.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        address: str,
        *,
        namespace: NetworkNamespace | None = None,
        table: str = "",
        journal: KernelJournal | None = None,
        nft: Nft | None = None,
        claims: ForwardingClaims | None = None,
    ) -> None:
        """Make the object; the kernel is not touched yet.

        Args:
            reactor: an fd reactor.
            name: of the bridge.
            address: of the bridge, ``10.77.0.1/24``.
            namespace: where it is; our own when None.
            table: name of the nftables table, by default the bridge's.
            journal: what is noted before each change; by default in memory.
            nft: runs ``nft``, by default netd's own way.
            claims: hold the need of forwarding from `forward` on, whatever becomes of this object; by default it does so
                itself, until `close`.

        Raises:
            ConfigError: the address is none of IPv4, or the name cannot be an interface's.
        """
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
        self.table = table or name
        self.aliases: tuple[Alias, ...] = ()
        self._reactor = reactor
        self._namespace = namespace or NetworkNamespace()
        self._there = NamespacedReactor(reactor, self._namespace)
        self._journal = journal or KernelJournal()
        self._nft = nft or self._run_nft
        self._own_claims = ForwardingClaims(self._namespace)
        self._claims = claims or self._own_claims
        self._routes: Any = None
        self._opened: Any = None

    @property
    def _kernel(self) -> Any:
        if self._opened is None:
            from anbox_tw.netd.kernel import Kernel
            from anbox_tw.netd.netlink import RouteClient

            self._routes = RouteClient(self._reactor, self._namespace)
            self._opened = Kernel(
                self._routes, self._namespace, journal=self._journal, forwarding=self._claims
            )
        return self._opened

    async def look(self) -> BridgeSeen | None:
        """What has the bridge's name; None for nothing.

        Raises:
            HostLacks: pyroute2 is missing.
            KernelRefused: the kernel does not say.
        """
        try:
            link = await self._kernel.link(self.name)
        except KernelRefused as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        addresses = [
            ipaddress.IPv4Interface(f"{each.local}/{each.prefix}")
            for each in await self._kernel.addresses(link.index)
            if ":" not in each.local
        ]
        return BridgeSeen(link.kind == "bridge", link.mac, tuple(addresses))

    async def make(self) -> None:
        """Make the bridge, give it its address, bring it up, forward and masquerade.

        What was made is unmade when a later step fails.

        Raises:
            HostLacks: pyroute2 is missing.
            KernelRefused: a step is refused; EEXIST when something else has the name.
        """
        try:
            await self.make_link()
            self.forward()
            await self.make_table()
        except BaseException:
            await self.unmake()
            raise

    async def make_link(self) -> None:
        """The first step: the bridge, its address, and up. One that is ours already is completed.

        Raises:
            HostLacks: pyroute2 is missing.
            KernelRefused: refused; EEXIST when something else has the name.
        """
        if not await self._kernel.add_bridge(self.name) and not await self.is_ours():
            raise KernelRefused(errno.EEXIST, f"bridge {self.name}", "there is one already")
        try:
            await self._kernel.add_address(self.name, str(self.address.ip), self.address.network.prefixlen)
        except KernelRefused as error:
            if error.errno != errno.EEXIST:
                raise
        await self._kernel.set_up(self.name, True)

    async def is_ours(self) -> bool:
        """Whether the bridge is there and is the one that the journal says was made."""
        seen = await self.look()
        return seen is not None and self._journal.made.get(self.name) == seen.mac

    def forward(self) -> None:
        """The second step: have the kernel forward IPv4 between interfaces.

        Raises:
            KernelRefused: refused.
        """
        try:
            self._kernel.sysctls.forward(FORWARD4)
        except OSError as error:
            raise KernelRefused(error.errno or errno.EIO, f"writing {FORWARD4}") from error

    async def make_table(self) -> None:
        """The third step: NAT, in one transaction that makes the table anew.

        Raises:
            KernelRefused: refused, or ``nft`` is missing.
        """
        known = f"ip {self.table}" in self._journal.tables
        self._journal.note_table(f"ip {self.table}", made=True)
        try:
            await self._transaction(bridge_ruleset(self.table, self.name, self.address.network, self.aliases))
        except KernelRefused:
            # wholly or not at all
            self._journal.note_table(f"ip {self.table}", made=known)
            raise

    def open_loopback(self) -> None:
        """The step after the table, for `aliases`: have the kernel route to the loopback what comes over the bridge.

        The table must be there: it drops what is addressed to the loopback itself.

        Raises:
            KernelRefused: refused.
        """
        path = f"/proc/sys/net/ipv4/conf/{self.name}/route_localnet"
        try:
            if self._namespace.read_file(path).strip() != "1":
                self._kernel.write_sysctl(path, "1")
        except OSError as error:
            raise KernelRefused(error.errno or errno.EIO, f"writing {path}") from error

    async def _run_nft(self, text: str) -> Completed:
        return await run_tool(self._there, ["nft", "-j", "-f", "-"], stdin=text)

    async def _transaction(self, ruleset: dict[str, Any]) -> None:
        done = await self._nft(json.dumps(ruleset))
        if done.exit_code:
            said = (done.error.strip() or f"exit code {done.exit_code}")[:400]
            raise KernelRefused(errno_in(said), f"the nftables table {self.table}", said)

    async def unmake(self) -> None:
        """Take everything back; calling this again is allowed.

        Raises:
            KernelRefused: something of it cannot be taken back; the journal keeps it.
        """
        try:
            if f"ip {self.table}" in self._journal.tables:
                table = {"table": {"family": "ip", "name": self.table}}
                # add makes delete succeed where there is none
                await self._transaction({"nftables": [{"add": table}, {"delete": table}]})
                self._journal.note_table(f"ip {self.table}", made=False)
            if self.name in self._journal.made and await self.is_ours():
                await self._kernel.delete_link(self.name)
            if not self._journal.empty:
                await self._kernel.undo_all()
            self._journal.clear()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the kernel, and leave what was made; calling this again is allowed."""
        if self._opened is not None:
            self._opened = None
            self._routes.close()
        self._journal.close()
        self._own_claims.close()
