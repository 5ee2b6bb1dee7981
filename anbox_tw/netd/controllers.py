"""All that netd's commands act on, made together and undone together."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger

from anbox_tw.netd._events import Broadcast
from anbox_tw.netd.bandwidth import BandwidthController
from anbox_tw.netd.daemons import ClatdController, PppController, SoftapController
from anbox_tw.netd.firewall import FirewallController
from anbox_tw.netd.idletimer import IdletimerController
from anbox_tw.netd.kernel import Kernel
from anbox_tw.netd.kernel_journal import KernelJournal
from anbox_tw.netd.manager import LoggedPacket
from anbox_tw.netd.namespace import NamespacedReactor, NetworkNamespace
from anbox_tw.netd.nat import NatController
from anbox_tw.netd.netlink import RouteClient
from anbox_tw.netd.networks import NetworkController
from anbox_tw.netd.nft import DEFAULT_TABLE, NftTable
from anbox_tw.netd.resolver import Resolver
from anbox_tw.netd.strict import StrictController
from anbox_tw.netd.tether import TetherController

__all__ = ["Controllers", "nflog_groups"]

# NFLOG groups of our own: Android's are 0 and 1, which on a Linux host are ulogd's. The default table has the first
# three; those of others are told apart by the table's name, for only one process of a namespace may bind a group.
FIRST_GROUP: Final = 20480
DEFAULT_ANDROID: Final = 7
GROUPS_FOR_TABLES: Final = 15_000


def nflog_groups(table: str) -> tuple[int, int, int]:
    """The NFLOG groups of strict mode, quotas and idle timers of the daemon with that table."""
    offset = 0 if table == DEFAULT_TABLE else 1 + zlib.crc32(table.encode()) % (GROUPS_FOR_TABLES - 1)
    first = FIRST_GROUP + 3 * offset
    return first, first + 1, first + 2


class Controllers:
    """The controllers of one namespace.

    Attributes:
        kernel: links, addresses, routes, rules, sysctls.
        table: our nftables table.
        journal: what is to be undone.
        groups: NFLOG groups whose packets go to `packet`.
        android: the release whose commands are understood.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        namespace: NetworkNamespace,
        *,
        on_event: Callable[[Broadcast], object],
        table: str = DEFAULT_TABLE,
        dry_run: Callable[[str], object] | None = None,
        hosts: str | None = "/etc/hosts",
        system_resolver: str | None = "/etc/resolv.conf",
        journal: KernelJournal | None = None,
        android: int = DEFAULT_ANDROID,
    ) -> None:
        """Make them; the kernel is not touched yet.

        Args:
            reactor: the real one.
            namespace: where they act.
            on_event: called with the broadcasts that they make.
            table: name of the nftables table.
            dry_run: called with each thing that would be done, which is then not done.
            hosts: a hosts file for lookups.
            system_resolver: a resolv.conf for lookups outside any network.
            journal: where changes of the kernel are noted before they are made; in memory alone when None.
            android: whose commands are understood where releases differ: 5, 6 or 7.

        Raises:
            HostLacks: pyroute2 is missing.
            OSError: the kernel refuses netlink.
        """
        there = NamespacedReactor(reactor, namespace)
        self.journal = journal or KernelJournal()
        self.android = android
        self.routes = RouteClient(reactor, namespace)
        self.kernel = Kernel(self.routes, namespace, dry_run=dry_run, journal=self.journal)
        self.table = NftTable(there, name=table, dry_run=dry_run, journal=self.journal)
        strict_group, quota_group, idle_group = self.groups = nflog_groups(table)
        self.networks = NetworkController(self.kernel, self.table)
        self.nat = NatController(self.table)
        self.firewall = FirewallController(self.table)
        self.bandwidth = BandwidthController(self.table, quota_group, on_event)
        self.idletimer = IdletimerController(reactor, self.table, idle_group, on_event)
        self.strict = StrictController(self.table, strict_group, on_event)
        self.tether = TetherController(there, self.kernel, dry_run=dry_run)
        self.ppp = PppController(there, dry_run)
        self.softap = SoftapController(there, dry_run)
        self.clatd = ClatdController(there, self.networks, dry_run)
        self.resolver = Resolver(there, hosts=hosts, system=system_resolver)

    def packet(self, packet: LoggedPacket) -> None:
        """A packet that a rule of ours logged."""
        for taker in (self.bandwidth, self.idletimer, self.strict):
            taker.packet(packet)

    async def remove_leftovers(self, *, marked: bool = True) -> None:
        """Take away what a daemon that was killed has left.

        Args:
            marked: also rules and routes with our protocol number that no journal tells of.
        """
        try:
            await self.table.remove_leftovers()
        finally:
            await self.kernel.remove_leftovers(marked=marked)

    async def undo(self) -> None:
        """Stop the children and take everything back; what fails is logged, the rest goes on."""
        self.idletimer.stop()
        self.resolver.stop()
        for what, step in (
            ("dnsmasq", self.tether.stop),
            ("pppd", self.ppp.stop),
            ("hostapd", self.softap.stop),
            ("clatd", self.clatd.stop),
            ("nftables", self.table.remove),
            ("the kernel's state", self.kernel.undo_all),
        ):
            try:
                await step()
            except Exception:
                self.log.failure("undoing {what} failed", what=what)
        self.routes.close()
        self.journal.close()
