"""``NetworkController`` and ``RouteController``: networks with tables of their own, and who may use which.

Each interface of a network has a routing table (its index + 1000), and policy rules lead packets there by their
mark, which `fwmarkd` sets on sockets; by uid for VPNs; by the interface asked for; and for what is tethered.
Priorities, marks and error numbers are those of AOSP ``system/netd/server/RouteController.cpp`` and
``NetworkController.cpp`` (android-7.0). Not taken over: the original throws away the host's own rules and ends in
an unreachable one; here the host's ``main`` table stays below ours.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import Final

from attrs import Factory, define, evolve, frozen

from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.kernel import Kernel, Rule
from anbox_tw.netd.nft import Chain, NftTable, Ruleset, match, meta

__all__ = [
    "LOCAL_NET_ID",
    "NETWORK",
    "NONE",
    "PERMISSIONS",
    "SYSTEM",
    "Fwmark",
    "NetworkController",
    "parse_net_id",
    "parse_uid_ranges",
]

# bits of a permission (system/netd/include/Permission.h)
NONE, NETWORK, SYSTEM = 0x0, 0x1, 0x3
PERMISSIONS: Final = {
    "NETWORK": NETWORK,
    "SYSTEM": SYSTEM,
    # Android 5.0
    "android.permission.CHANGE_NETWORK_STATE": NETWORK,
    "android.permission.CONNECTIVITY_INTERNAL": SYSTEM,
}
UNSET: Final = 0
MIN_OEM_ID, MAX_OEM_ID = 1, 50
DUMMY_NET_ID: Final = 51
LOCAL_NET_ID: Final = 99
MIN_NET_ID, MAX_NET_ID = 100, 65535
AID_VPN: Final = 1016
FIRST_APPLICATION_UID: Final = 10000
INVALID_UID: Final = 0xFFFFFFFF
TABLE_OFFSET: Final = 1000
TABLE_LOCAL, TABLE_LEGACY_NETWORK, TABLE_LEGACY_SYSTEM = 97, 98, 99
TABLE_MAIN: Final = 254
MAX_NETWORKS: Final = 1000
MAX_UID_RANGES: Final = 1000

VPN_OVERRIDE_SYSTEM: Final = 10000
VPN_OVERRIDE_OIF: Final = 10500
VPN_OUTPUT_TO_LOCAL: Final = 11000
SECURE_VPN: Final = 12000
EXPLICIT_NETWORK: Final = 13000
OUTPUT_INTERFACE: Final = 14000
LEGACY_SYSTEM: Final = 15000
LEGACY_NETWORK: Final = 16000
LOCAL_NETWORK: Final = 17000
TETHERING: Final = 18000
IMPLICIT_NETWORK: Final = 19000
BYPASSABLE_VPN: Final = 20000
VPN_FALLTHROUGH: Final = 21000
DEFAULT_NETWORK: Final = 22000
DIRECTLY_CONNECTED: Final = 23000

Uids = tuple[int, int]


@frozen
class Fwmark:
    """The mark of a socket (system/netd/include/Fwmark.h)."""

    net_id: int = 0
    explicit: bool = False
    protected: bool = False
    permission: int = NONE

    def to_int(self) -> int:
        """As SO_MARK takes it."""
        return self.net_id | self.explicit << 16 | self.protected << 17 | self.permission << 18

    @classmethod
    def from_int(cls, value: int) -> Fwmark:
        """From what SO_MARK gives; bits that mean nothing are dropped."""
        return cls(value & 0xFFFF, bool(value & 0x10000), bool(value & 0x20000), value >> 18 & 3)


MASK_NET: Final = Fwmark(net_id=0xFFFF)


def parse_net_id(text: str) -> int:
    """``stringToNetId``: a number in C's notation, ``local``, ``oem1`` to ``oem50``; 0 for anything else.

    An ``oemN`` means N + 1, as in the original, which adds its base to the number.
    """
    if text == "local":
        return LOCAL_NET_ID
    oem = re.fullmatch(r"oem([0-9]{1,3})", text)
    if oem:
        number = int(oem[1])
        return MIN_OEM_ID + number if 1 <= number <= MAX_OEM_ID else UNSET
    number_text = re.match(r"\s*(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})", text)
    if number_text is None:
        return UNSET
    digits = number_text[1]
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16) & 0xFFFFFFFF
    if digits[0] == "0":
        octal = re.match(r"0[0-7]*", digits)
        assert octal is not None
        return int(octal[0], 8) & 0xFFFFFFFF
    return int(digits) & 0xFFFFFFFF


def parse_uid_ranges(words: Iterable[str]) -> list[Uids] | None:
    """``UidRanges::parseFrom``: ``N`` or ``N-M`` each; None when one is no range."""
    found = []
    for word in words:
        match_ = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", word)
        if match_ is None:
            return None
        first = int(match_[1])
        last = int(match_[2]) if match_[2] is not None else first
        if first > last or last >= INVALID_UID:
            return None
        found.append((first, last))
    return sorted(found)


@define
class _Network:
    """A network.

    Attributes:
        kind: ``physical``, ``virtual``, ``local`` or ``dummy``.
        interfaces: in order.
        permission: what a user of a physical one needs.
        has_dns: whether a VPN brings name servers.
        secure: whether a VPN's users cannot get around it.
        uids: who uses a VPN.
    """

    net_id: int
    kind: str
    interfaces: list[str] = Factory(list)
    permission: int = NONE
    has_dns: bool = False
    secure: bool = False
    uids: list[Uids] = Factory(list)

    def applies_to(self, uid: int) -> bool:
        return any(first <= uid <= last for first, last in self.uids)


class NetworkController:
    """The networks, their rules and routes, and the users' rights."""

    def __init__(self, kernel: Kernel, table: NftTable) -> None:
        self._kernel = kernel
        self._table = table
        self._networks: dict[int, _Network] = {
            LOCAL_NET_ID: _Network(LOCAL_NET_ID, "local"),
            DUMMY_NET_ID: _Network(DUMMY_NET_ID, "dummy"),
        }
        self._default = UNSET
        self._users: dict[int, int] = {}
        self._protectable: set[int] = {AID_VPN}
        self._tables: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        self._tethers: list[tuple[str, str]] = []
        self._base_rules = False

    # -- questions

    @property
    def default(self) -> int:
        """The default network, or 0."""
        return self._default

    def network(self, net_id: int) -> _Network:
        """A network.

        Raises:
            KernelRefused: there is none (ENONET).
        """
        found = self._networks.get(net_id)
        if found is None:
            raise KernelRefused(errno.ENONET, f"network {net_id}")
        return found

    def exists(self, net_id: int) -> bool:
        """Whether there is such a network."""
        return net_id in self._networks

    def is_virtual(self, net_id: int) -> bool:
        """Whether it is a VPN."""
        return net_id in self._networks and self._networks[net_id].kind == "virtual"

    def network_of_interface(self, interface: str) -> int:
        """The network that has the interface, or 0."""
        for net_id, network in self._networks.items():
            if interface in network.interfaces:
                return net_id
        return UNSET

    def _vpn_of(self, uid: int) -> _Network | None:
        for network in self._networks.values():
            if network.kind == "virtual" and network.applies_to(uid):
                return network
        return None

    def for_user(self, uid: int) -> int:
        """``getNetworkForUser``."""
        vpn = self._vpn_of(uid)
        return vpn.net_id if vpn is not None else self._default

    def for_connect(self, uid: int) -> int:
        """``getNetworkForConnect``: a VPN that can be got around, else the default."""
        vpn = self._vpn_of(uid)
        return vpn.net_id if vpn is not None and not vpn.secure else self._default

    def for_dns(self, net_id: int, uid: int) -> tuple[int, int]:
        """``getNetworkForDns``: the network whose name servers are asked, and the mark to ask with."""
        explicit = False
        if self.check_access(uid, net_id) == 0:
            explicit = True
            network = self._networks.get(net_id)
            if network is not None and network.kind == "virtual" and not network.has_dns:
                net_id = self._default
        else:
            vpn = self._vpn_of(uid)
            net_id = vpn.net_id if vpn is not None and vpn.has_dns else self._default
        return net_id, Fwmark(net_id & 0xFFFF, explicit, True, SYSTEM).to_int()

    def permission_of(self, uid: int) -> int:
        """What a user may; those below the first app's uid may all."""
        return self._users.get(uid, SYSTEM if uid < FIRST_APPLICATION_UID else NONE)

    def can_protect(self, uid: int) -> bool:
        """Whether a user may keep sockets out of VPNs."""
        return self.permission_of(uid) & SYSTEM == SYSTEM or uid in self._protectable

    def check_access(self, uid: int, net_id: int) -> int:
        """``checkUserNetworkAccess``: 0, or the errno that says why not."""
        network = self._networks.get(net_id)
        if network is None:
            return errno.ENONET
        if uid in (INVALID_UID, -1):
            return errno.EREMOTEIO
        permission = self.permission_of(uid)
        if permission & SYSTEM == SYSTEM:
            return 0
        if network.kind == "virtual":
            return 0 if network.applies_to(uid) else errno.EPERM
        vpn = self._vpn_of(uid)
        if vpn is not None and vpn.secure and uid not in self._protectable:
            return errno.EPERM
        return 0 if permission & network.permission == network.permission else errno.EACCES

    # -- networks

    def _check_new(self, net_id: int, *, oem: bool) -> None:
        if not (MIN_NET_ID <= net_id <= MAX_NET_ID or (oem and MIN_OEM_ID <= net_id <= MAX_OEM_ID)):
            raise KernelRefused(errno.EINVAL, f"network {net_id}")
        if net_id in self._networks:
            raise KernelRefused(errno.EEXIST, f"network {net_id}")
        if len(self._networks) >= MAX_NETWORKS:
            raise KernelRefused(errno.ENOSPC, f"more than {MAX_NETWORKS} networks")

    async def create_physical(self, net_id: int, permission: int = NONE) -> None:
        """Make a network of real interfaces."""
        self._check_new(net_id, oem=True)
        await self._add_base_rules()
        self._networks[net_id] = _Network(net_id, "physical", permission=permission)

    async def create_virtual(self, net_id: int, *, has_dns: bool, secure: bool) -> None:
        """Make a VPN."""
        self._check_new(net_id, oem=False)
        await self._add_base_rules()
        await self._fallthrough(net_id, add=True)
        self._networks[net_id] = _Network(net_id, "virtual", has_dns=has_dns, secure=secure)

    async def destroy(self, net_id: int) -> None:
        """Take a network away with all its rules and routes."""
        if net_id == LOCAL_NET_ID:
            raise KernelRefused(errno.EINVAL, "the local network")
        network = self.network(net_id)
        first_error: KernelRefused | None = None
        for interface in list(network.interfaces):
            try:
                await self.remove_interface(net_id, interface)
            except KernelRefused as error:
                network.interfaces.remove(interface)
                first_error = first_error or error
        if self._default == net_id:
            self._default = UNSET
        elif network.kind == "virtual":
            await self._fallthrough(net_id, add=False)
        del self._networks[net_id]
        if first_error is not None:
            raise first_error

    async def set_default(self, net_id: int) -> None:
        """Choose the network that is used when nothing else is said; 0 for none."""
        if net_id == self._default:
            return
        if net_id != UNSET:
            network = self.network(net_id)
            if network.kind != "physical":
                raise KernelRefused(errno.EINVAL, f"network {net_id} is not physical")
            for interface in network.interfaces:
                await self._default_rules(network, interface, add=True)
        old = self._networks.get(self._default)
        if old is not None:
            for interface in old.interfaces:
                await self._default_rules(old, interface, add=False)
        self._default = net_id

    async def add_interface(self, net_id: int, interface: str) -> None:
        """Give an interface to a network."""
        network = self.network(net_id)
        owner = self.network_of_interface(interface)
        if owner not in (UNSET, net_id):
            raise KernelRefused(errno.EBUSY, f"interface {interface} is of network {owner}")
        if interface in network.interfaces:
            return
        if network.kind == "dummy":
            raise KernelRefused(errno.EINVAL, "the dummy network")
        await self._add_base_rules()
        done: list[Rule] = []
        try:
            for rule in await self._rules_of(network, interface):
                await self._kernel.change_rule(rule, add=True)
                done.append(rule)
            await self._set_incoming_mark(
                interface, Fwmark(net_id & 0xFFFF, True, True, network.permission).to_int()
            )
            if self._default == net_id:
                await self._default_rules(network, interface, add=True)
        except BaseException:
            for rule in done:
                await self._kernel.change_rule(rule, add=False)
            raise
        network.interfaces.append(interface)

    async def remove_interface(self, net_id: int, interface: str) -> None:
        """Take an interface from a network; its table is emptied."""
        network = self.network(net_id)
        if interface not in network.interfaces:
            return
        if self._default == net_id:
            await self._default_rules(network, interface, add=False)
        for rule in await self._rules_of(network, interface):
            await self._kernel.change_rule(rule, add=False)
        await self._set_incoming_mark(interface, None)
        network.interfaces.remove(interface)
        if network.kind != "local":
            for inner, outer in [pair for pair in self._tethers if pair[1] == interface]:
                await self.change_tethering(inner, outer, add=False)
            await self._kernel.flush_table(await self._table_of(interface))
            self._tables.pop(interface, None)

    async def set_network_permission(self, net_ids: Iterable[int], permission: int) -> None:
        """Say what a user of physical networks needs."""
        for net_id in net_ids:
            network = self.network(net_id)
            if network.kind != "physical":
                raise KernelRefused(errno.EINVAL, f"network {net_id} is not physical")
            if network.permission == permission:
                continue
            changed = evolve(network, permission=permission)
            for interface in network.interfaces:
                # the new rules are there before the old ones go
                for rule in await self._rules_of(changed, interface):
                    await self._kernel.change_rule(rule, add=True)
                if self._default == net_id:
                    await self._default_rules(changed, interface, add=True)
                    await self._default_rules(network, interface, add=False)
                for rule in await self._rules_of(network, interface):
                    await self._kernel.change_rule(rule, add=False)
                mark = Fwmark(net_id & 0xFFFF, True, True, permission).to_int()
                await self._set_incoming_mark(interface, mark)
            network.permission = permission

    def set_user_permission(self, uids: Iterable[int], permission: int) -> None:
        """Say what users may."""
        for uid in uids:
            self._users[uid] = permission

    def set_protect(self, uids: Iterable[int], *, allow: bool) -> None:
        """Let users keep sockets out of VPNs, or not."""
        for uid in uids:
            (self._protectable.add if allow else self._protectable.discard)(uid)

    async def change_users(self, net_id: int, ranges: list[Uids], *, add: bool) -> None:
        """Put users into a VPN, or take them out."""
        network = self.network(net_id)
        if network.kind != "virtual":
            raise KernelRefused(errno.EINVAL, f"network {net_id} is not a VPN")
        if add and len(network.uids) + len(ranges) > MAX_UID_RANGES:
            raise KernelRefused(errno.ENOSPC, f"more than {MAX_UID_RANGES} ranges of uids")
        if not add and any(each not in network.uids for each in ranges):
            raise KernelRefused(errno.ENOENT, f"users of network {net_id}")
        for interface in network.interfaces:
            for rule in self._user_rules(network, interface, await self._table_of(interface), ranges):
                await self._kernel.change_rule(rule, add=add)
        for each in ranges:
            if add:
                network.uids.append(each)
            else:
                network.uids.remove(each)

    async def change_route(
        self,
        net_id: int,
        interface: str,
        destination: str,
        nexthop: str | None,
        *,
        add: bool,
        legacy: bool,
        uid: int,
    ) -> None:
        """Add or remove a route of a network."""
        self.network(net_id)
        owner = self.network_of_interface(interface)
        if owner == UNSET:
            raise KernelRefused(errno.ENODEV, f"interface {interface} is of no network")
        if owner != net_id:
            raise KernelRefused(errno.ENOENT, f"interface {interface} is of network {owner}")
        if net_id == LOCAL_NET_ID:
            table = TABLE_LOCAL
        elif legacy:
            system = self.permission_of(uid) & SYSTEM == SYSTEM
            table = TABLE_LEGACY_SYSTEM if system else TABLE_LEGACY_NETWORK
        else:
            table = await self._table_of(interface)
        try:
            await self._kernel.change_route(table, interface, destination, nexthop, add=add)
        except KernelRefused as error:
            if not (add and error.errno == errno.EEXIST):
                raise

    async def change_tethering(self, inner: str, outer: str, *, add: bool) -> None:
        """Lead what comes in from ``inner`` by the table of ``outer``."""
        table = await self._table_of(outer)
        await self._kernel.change_rule(Rule(TETHERING, table, iif=inner), add=add)
        if add:
            self._tethers.append((inner, outer))
        elif (inner, outer) in self._tethers:
            self._tethers.remove((inner, outer))

    # -- rules

    async def _table_of(self, interface: str) -> int:
        try:
            index = (await self._kernel.link(interface)).index
        except KernelRefused:
            # an interface that has gone is still known by its table
            if interface in self._tables:
                return self._tables[interface]
            raise KernelRefused(errno.ESRCH, f"the routing table of {interface!r}") from None
        self._tables[interface] = index + TABLE_OFFSET
        return self._tables[interface]

    async def _add_base_rules(self) -> None:
        if self._base_rules:
            return
        self._base_rules = True
        implicit = Fwmark(explicit=True).to_int()
        system = Fwmark(explicit=True, permission=SYSTEM).to_int()
        wanted = Fwmark(permission=SYSTEM).to_int()
        local_mask = Fwmark(0xFFFF, explicit=True).to_int()
        for rule in (
            Rule(VPN_OVERRIDE_SYSTEM, TABLE_LEGACY_SYSTEM, wanted, system),
            Rule(EXPLICIT_NETWORK, TABLE_LOCAL, Fwmark(LOCAL_NET_ID, True).to_int(), local_mask),
            Rule(LEGACY_SYSTEM, TABLE_LEGACY_SYSTEM, 0, implicit),
            Rule(LEGACY_NETWORK, TABLE_LEGACY_NETWORK, 0, implicit),
            Rule(LOCAL_NETWORK, TABLE_LOCAL, 0, implicit),
            Rule(DIRECTLY_CONNECTED, TABLE_MAIN, 0, MASK_NET.to_int(), uids=(0, 0)),
        ):
            await self._kernel.change_rule(rule, add=True)

    async def _rules_of(self, network: _Network, interface: str) -> list[Rule]:
        if network.kind == "local":
            return self._output_rules(interface, TABLE_LOCAL, NONE, None)
        table = await self._table_of(interface)
        if network.kind == "virtual":
            return [
                *self._user_rules(network, interface, table, network.uids),
                Rule(VPN_OUTPUT_TO_LOCAL, TABLE_LOCAL, iif=interface),
                Rule(
                    SECURE_VPN if network.secure else BYPASSABLE_VPN,
                    table,
                    Fwmark(network.net_id, permission=SYSTEM).to_int(),
                    Fwmark(0xFFFF, permission=SYSTEM).to_int(),
                ),
                self._explicit_rule(network.net_id, table, NONE, (0, 0)),
            ]
        permission = network.permission
        return [
            self._explicit_rule(network.net_id, table, permission, None),
            *self._output_rules(interface, table, permission, None),
            Rule(
                IMPLICIT_NETWORK,
                table,
                Fwmark(network.net_id, permission=permission).to_int(),
                Fwmark(0xFFFF, explicit=True, permission=permission).to_int(),
            ),
        ]

    def _explicit_rule(self, net_id: int, table: int, permission: int, uids: Uids | None) -> Rule:
        mark = Fwmark(net_id, explicit=True, permission=permission).to_int()
        mask = Fwmark(0xFFFF, explicit=True, permission=permission).to_int()
        return Rule(EXPLICIT_NETWORK, table, mark, mask, uids=uids)

    def _output_rules(self, interface: str, table: int, permission: int, uids: Uids | None) -> list[Rule]:
        mark = Fwmark(permission=permission).to_int()
        rules = []
        if uids is None:
            rules.append(Rule(VPN_OVERRIDE_OIF, table, mark, mark, oif=interface, uids=(0, 0)))
        rules.append(Rule(OUTPUT_INTERFACE, table, mark, mark, oif=interface, uids=uids))
        return rules

    def _user_rules(self, network: _Network, interface: str, table: int, ranges: list[Uids]) -> list[Rule]:
        rules = []
        for each in ranges:
            if network.secure:
                rules.append(Rule(SECURE_VPN, table, 0, Fwmark(protected=True).to_int(), iif="lo", uids=each))
            else:
                mask = Fwmark(protected=True, explicit=True).to_int()
                rules.append(Rule(BYPASSABLE_VPN, table, 0, mask, iif="lo", uids=each))
            rules.append(self._explicit_rule(network.net_id, table, NONE, each))
            rules += self._output_rules(interface, table, NONE, each)
        return rules

    async def _default_rules(self, network: _Network, interface: str, *, add: bool) -> None:
        table = await self._table_of(interface)
        permission = network.permission
        mark = Fwmark(permission=permission).to_int()
        mask = Fwmark(0xFFFF, permission=permission).to_int()
        await self._kernel.change_rule(Rule(DEFAULT_NETWORK, table, mark, mask), add=add)
        for other in self._networks.values():
            if other.kind == "virtual":
                await self._kernel.change_rule(
                    self._fallthrough_rule(other.net_id, table, permission), add=add
                )

    def _fallthrough_rule(self, vpn: int, table: int, permission: int) -> Rule:
        mark = Fwmark(vpn, permission=permission).to_int()
        mask = Fwmark(0xFFFF, explicit=True, permission=permission).to_int()
        return Rule(VPN_FALLTHROUGH, table, mark, mask)

    async def _fallthrough(self, vpn: int, *, add: bool) -> None:
        network = self._networks.get(self._default)
        for interface in network.interfaces if network is not None else ():
            table = await self._table_of(interface)
            assert network is not None
            await self._kernel.change_rule(self._fallthrough_rule(vpn, table, network.permission), add=add)

    async def _set_incoming_mark(self, interface: str, mark: int | None) -> None:
        marks = {name: value for name, value in self._marks.items() if name != interface}
        if mark is not None:
            marks[interface] = mark

        def edit(rules: Ruleset) -> None:
            rules.chains.pop("mark_input", None)
            if marks:
                rules.chains["mark_input"] = Chain(
                    "filter",
                    "input",
                    -150,
                    [
                        [match(meta("iifname"), name), {"mangle": {"key": meta("mark"), "value": value}}]
                        for name, value in marks.items()
                    ],
                )

        await self._table.change(edit)
        self._marks = marks
