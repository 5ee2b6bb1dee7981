"""Subnets, addresses, name servers and rules for the containers."""

from __future__ import annotations

import ipaddress
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.network_plan import (
    CANDIDATES,
    DEFAULT_SUBNET,
    choose_address,
    choose_subnet,
    dropping_chains,
    loopback_name_server,
    nft_ruleset,
    overlapping,
    parse_resolv_conf,
    routes_of,
)


def net(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(text)


GATEWAY = ipaddress.IPv4Address("192.168.250.1")


class SubnetTests(SynchronousTestCase):
    def test_the_original_subnet_is_the_first_choice(self) -> None:
        self.assertEqual(choose_subnet([]), net("192.168.250.0/24"))
        self.assertEqual(choose_subnet([net("10.0.0.0/8")]), DEFAULT_SUBNET)

    def test_a_colliding_route_moves_it(self) -> None:
        self.assertEqual(choose_subnet([net("192.168.250.128/25")]), net("192.168.251.0/24"))
        self.assertEqual(choose_subnet([net("192.168.0.0/16")]), net("172.31.250.0/24"))
        self.assertEqual(choose_subnet([net("192.168.0.0/16"), net("172.16.0.0/12")]), net("10.250.250.0/24"))

    def test_no_choice_is_told(self) -> None:
        error = self.assertRaises(DiagnosedError, choose_subnet, list(CANDIDATES))
        self.assertEqual(error.code, "ANBOX-C016")
        self.assertIn("--container-network-address", error.cure)

    def test_routes_that_do_not_count(self) -> None:
        entries: list[Any] = [
            {"dst": "default", "dev": "eth0"},
            {"dst": "0.0.0.0/1", "dev": "tun0"},
            {"dst": "128.0.0.0/1", "dev": "tun0"},
            {"dst": "192.168.250.0/24", "dev": "anbox0"},
            {"type": "multicast", "dst": "224.0.0.0/4", "dev": "eth0"},
            {"dst": "garbage"},
            "no object",
        ]
        self.assertEqual(routes_of(entries), [])

    def test_routes_that_count(self) -> None:
        entries: list[Any] = [
            {"dst": "10.1.2.0/24", "dev": "eth0"},
            {"type": "local", "dst": "192.168.250.9", "dev": "eth1"},
            {"type": "blackhole", "dst": "192.168.0.0/16"},
        ]
        self.assertEqual(
            routes_of(entries), [net("10.1.2.0/24"), net("192.168.250.9/32"), net("192.168.0.0/16")]
        )
        self.assertEqual(overlapping(DEFAULT_SUBNET, routes_of(entries)), net("192.168.250.9/32"))


class AddressTests(SynchronousTestCase):
    def test_the_lowest_free_one(self) -> None:
        self.assertEqual(str(choose_address(DEFAULT_SUBNET, GATEWAY, [])), "192.168.250.2/24")
        taken = ["192.168.250.2", "192.168.250.4"]
        self.assertEqual(str(choose_address(DEFAULT_SUBNET, GATEWAY, taken)), "192.168.250.3/24")

    def test_the_wanted_one_or_an_error(self) -> None:
        wanted = ipaddress.IPv4Address("192.168.250.77")
        self.assertEqual(str(choose_address(DEFAULT_SUBNET, GATEWAY, [], wanted)), "192.168.250.77/24")
        for taken, address in (
            (["192.168.250.77"], "192.168.250.77"),
            ([], "192.168.250.1"),
            ([], "192.168.251.2"),
            ([], "192.168.250.0"),
            ([], "192.168.250.255"),
        ):
            with self.assertRaises(DiagnosedError) as caught:
                choose_address(DEFAULT_SUBNET, GATEWAY, taken, ipaddress.IPv4Address(address))
            self.assertEqual(caught.exception.code, "ANBOX-C016")

    def test_a_full_subnet(self) -> None:
        small = net("10.0.0.0/30")
        with self.assertRaises(DiagnosedError):
            choose_address(small, ipaddress.IPv4Address("10.0.0.1"), ["10.0.0.2"])


class ResolverTests(SynchronousTestCase):
    def test_only_servers_that_a_container_reaches(self) -> None:
        text = """
# a comment
search example.org
nameserver 127.0.0.53
nameserver 10.0.0.1
nameserver 10.0.0.1
nameserver fe80::1%eth0
nameserver 169.254.1.1
nameserver 0.0.0.0
nameserver
nameserver nonsense
  nameserver 9.9.9.9
nameserver 1.1.1.1
nameserver 1.0.0.1
"""
        self.assertEqual(parse_resolv_conf(text), ("10.0.0.1", "9.9.9.9", "1.1.1.1"))
        self.assertEqual(parse_resolv_conf(""), ())

    def test_a_resolver_on_the_hosts_loopback(self) -> None:
        for text, expected in (
            (
                "nameserver 10.0.0.1\nnameserver ::1\nnameserver 127.0.0.53\nnameserver 127.0.0.1\n",
                "127.0.0.53",
            ),
            ("nameserver 10.0.0.1\n", ""),
            ("#nameserver 127.0.0.1\nnameserver\nnameserver x\n", ""),
        ):
            self.assertEqual(loopback_name_server(text), expected)


class RulesetTests(SynchronousTestCase):
    def test_one_transaction_replaces_the_whole_table(self) -> None:
        commands = nft_ruleset("anbox0", "anbox0", DEFAULT_SUBNET)["nftables"]
        kinds = [(next(iter(each)), next(iter(next(iter(each.values()))))) for each in commands]
        self.assertEqual(kinds[:3], [("add", "table"), ("delete", "table"), ("add", "table")])
        self.assertEqual(kinds.count(("add", "chain")), 3)
        self.assertEqual(kinds.count(("add", "rule")), 5)

    def test_chains_that_drop_are_found_but_ours(self) -> None:
        entries: list[Any] = [
            {"metainfo": {}},
            {
                "chain": {
                    "family": "ip",
                    "table": "filter",
                    "name": "FORWARD",
                    "hook": "forward",
                    "policy": "drop",
                }
            },
            {
                "chain": {
                    "family": "ip",
                    "table": "anbox0",
                    "name": "forward",
                    "hook": "forward",
                    "policy": "drop",
                }
            },
            {"chain": {"family": "inet", "table": "ufw", "name": "f", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "ip6", "table": "x", "name": "f", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "x", "name": "user"}},
            {"chain": 5},
            7,
        ]
        self.assertEqual(dropping_chains(entries, "anbox0"), ["ip filter FORWARD"])
