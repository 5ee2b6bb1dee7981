"""What the container network is to be: subnets, addresses, name servers, nft rules; no I/O.

The defaults are those of Anbox (``scripts/anbox-bridge.sh``, ``src/anbox/cmds/container_manager.cpp``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.netd.bridge import bridge_ruleset

__all__ = [
    "BRIDGE",
    "DEFAULT_SUBNET",
    "FALLBACK_DNS",
    "choose_address",
    "choose_subnet",
    "dropping_chains",
    "nft_ruleset",
    "overlapping",
    "parse_resolv_conf",
    "routes_of",
]

BRIDGE = "anbox0"
DEFAULT_SUBNET = ipaddress.IPv4Network("192.168.250.0/24")
FALLBACK_DNS = ("8.8.8.8",)
"""Anbox's only name server; ours when the host has none that a container can reach."""

SHORTEST_ROUTE = 8
"""A route to more than a /8 is a default route in disguise, as VPN clients set two of /1."""

HOST_ALIAS = ipaddress.IPv4Address("10.0.2.2")
"""The host's 127.0.0.1 as the emulator's guests know it."""

DNS_PORT = 53
MAX_NAME_SERVERS = 3  # resolv.conf(5), MAXNS

CANDIDATES = (
    DEFAULT_SUBNET,
    *(ipaddress.IPv4Network(f"192.168.{third}.0/24") for third in (251, 252, 253, 249, 248, 247, 240, 230)),
    *(ipaddress.IPv4Network(f"172.{second}.250.0/24") for second in (31, 30, 29)),
    *(ipaddress.IPv4Network(f"10.{second}.250.0/24") for second in (250, 251, 240)),
)


def routes_of(entries: Iterable[Any], bridge: str = BRIDGE) -> list[ipaddress.IPv4Network]:
    """The networks that the host reaches otherwise than over the bridge.

    Args:
        entries: what ``ip -j -4 route show table all`` prints.
        bridge: routes over it do not count.
    """
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("dev") == bridge or entry.get("type") == "multicast":
            continue
        try:
            network = ipaddress.IPv4Network(str(entry.get("dst", "")), strict=False)
        except ValueError:
            continue  # "default"
        if network.prefixlen >= SHORTEST_ROUTE:
            found.append(network)
    return found


def overlapping(
    subnet: ipaddress.IPv4Network, routes: Iterable[ipaddress.IPv4Network]
) -> ipaddress.IPv4Network | None:
    """The first route that shares an address with the subnet, or ``None``."""
    return next((route for route in routes if route.overlaps(subnet)), None)


def choose_subnet(routes: Sequence[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """The first of our subnets that no route of the host touches.

    Raises:
        DiagnosedError: all are taken (``ANBOX-C016``).
    """
    for candidate in CANDIDATES:
        if overlapping(candidate, routes) is None:
            return candidate
    raise DiagnosedError.of(
        "ANBOX-C016",
        "no subnet is free for the containers",
        "each that we would take overlaps a route of the host",
        "choose one with --container-network-address=ADDRESS/LENGTH",
    )


def choose_address(
    subnet: ipaddress.IPv4Network,
    gateway: ipaddress.IPv4Address,
    taken: Iterable[str],
    wanted: ipaddress.IPv4Address | None = None,
) -> ipaddress.IPv4Interface:
    """An address for one more container.

    Args:
        subnet: the bridge's.
        gateway: never given to a container.
        taken: addresses of the containers that run.
        wanted: this one and no other.

    Raises:
        DiagnosedError: the wanted one is taken or not of the subnet, or none is left (``ANBOX-C016``).
    """
    used = {ipaddress.IPv4Address(address) for address in taken} | {gateway}
    if wanted is not None:
        if wanted not in subnet or wanted in (subnet.network_address, subnet.broadcast_address):
            raise DiagnosedError.of(
                "ANBOX-C016",
                f"the address {wanted} is not one of the bridge's subnet {subnet}",
                "",
                "choose one of it, or stop all containers first: the bridge then takes the new subnet",
            )
        if wanted in used:
            raise DiagnosedError.of(
                "ANBOX-C016",
                f"the address {wanted} is taken",
                "the bridge or another container has it",
                "leave --container-network-address out, and a free one is chosen",
            )
        return ipaddress.IPv4Interface((wanted, subnet.prefixlen))
    for host in subnet.hosts():
        if host not in used:
            return ipaddress.IPv4Interface((host, subnet.prefixlen))
    raise DiagnosedError.of(
        "ANBOX-C016", f"no address is left in {subnet}", f"{len(used)} are in use", "stop a container"
    )


def parse_resolv_conf(text: str) -> tuple[str, ...]:
    """The IPv4 name servers of a resolv.conf(5) that a container can reach.

    A server on the host's loopback is of no use in another network namespace, and a link-local one
    of little.
    """
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.IPv4Address(words[1])
        except ValueError:
            continue
        if address.is_loopback or address.is_unspecified or address.is_link_local or address.is_multicast:
            continue
        if str(address) not in found:
            found.append(str(address))
    return tuple(found[:MAX_NAME_SERVERS])


def loopback_name_server(text: str) -> str:
    """The first name server of a resolv.conf(5) that is on the host's own loopback, or an empty string."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = ipaddress.IPv4Address(words[1])
            except ValueError:
                continue
            if address.is_loopback:
                return str(address)
    return ""


def nft_ruleset(table: str, bridge: str, subnet: ipaddress.IPv4Network) -> dict[str, Any]:
    """One transaction for ``nft -j -f -`` that makes our table: netd's rules for a bridge of containers.

    Args:
        table: name of the table, family ``ip``; nothing else is in it.
        bridge: name of the bridge.
        subnet: what is masqueraded.
    """
    return bridge_ruleset(table, bridge, subnet)


def dropping_chains(entries: Iterable[Any], own_table: str) -> list[str]:
    """Chains of other tables that drop what is forwarded unless a rule of theirs lets it through.

    An accept of ours does not help against them: nft asks every table.

    Args:
        entries: the ``nftables`` list of ``nft -j list chains``.
        own_table: our table's name.

    Returns:
        Their names as ``family table chain``.
    """
    found = []
    for entry in entries:
        chain = entry.get("chain") if isinstance(entry, dict) else None
        if not isinstance(chain, dict) or chain.get("family") not in ("ip", "inet"):
            continue
        if (
            chain.get("hook") == "forward"
            and chain.get("policy") == "drop"
            and chain.get("table") != own_table
        ):
            found.append(f"{chain['family']} {chain.get('table')} {chain.get('name')}")
    return found
