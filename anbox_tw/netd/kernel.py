"""What netd does to the kernel: links, addresses, routes, rules, sysctls; and how it is all undone.

Before something is changed, what it was is noted in a `KernelJournal`; `Kernel.undo_all` brings that back, in this
process or, after it was killed, in the next. Only what still is as we made it is brought back: what somebody else has
changed since is theirs. With ``dry_run`` nothing is changed and each step is told instead.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger

from anbox_tw.errors import AnboxError
from anbox_tw.netd._kernel_model import (
    FAMILIES,
    IFA_F_PERMANENT,
    IFF_UP,
    PROTOCOL,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTN_THROW,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTPROT_KERNEL,
    Address,
    Link,
    Rule,
    address_of,
    address_parts,
    is_interface_name,
    link_of,
    plain,
    rule_parts,
)
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.forwarding import ForwardingClaims
from anbox_tw.netd.kernel_journal import ROUTE_ATTRIBUTES, ROUTE_FIELDS, InterfaceNote, KernelJournal
from anbox_tw.netd.kernel_sysctls import Sysctls
from anbox_tw.netd.namespace import NetworkNamespace
from anbox_tw.netd.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RouteClient

__all__ = ["Address", "Kernel", "Link", "Rule", "is_interface_name"]


class Kernel:
    """The hands of the daemon.

    Attributes:
        namespace: whose kernel state it is.
        journal: what it was before we changed it.
        sysctls: the files below /proc/sys/net.
    """

    _log = Logger()

    def __init__(
        self,
        routes: RouteClient,
        namespace: NetworkNamespace,
        *,
        dry_run: Callable[[str], object] | None = None,
        journal: KernelJournal | None = None,
        forwarding: ForwardingClaims | None = None,
    ) -> None:
        """Make the object; the kernel is not touched yet.

        Args:
            routes: its connection to rtnetlink.
            namespace: the same as that of ``routes``.
            dry_run: called with each change instead of making it.
            journal: takes the notes; by default they are kept in memory.
            forwarding: holds our need of the forwarding switches; by default claims of our own.
        """
        self._routes = routes
        self.namespace = namespace
        self._dry_run = dry_run
        self.journal = journal or KernelJournal()
        self.sysctls = Sysctls(namespace, self.journal, forwarding, dry_run)
        self._rules: list[tuple[int, Rule]] = []
        self._own_routes: dict[tuple[Any, ...], Any] = {}

    def _would(self, text: str) -> bool:
        if self._dry_run is None:
            return False
        self._dry_run(text)
        return True

    # -- links

    async def links(self) -> list[Link]:
        """All interfaces."""
        found = await self._routes.dump(
            RTM_GETLINK, self._routes.build("link", {"family": 0}), "listing links"
        )
        return [link_of(each) for each in found]

    async def link(self, name: str) -> Link:
        """One interface.

        Raises:
            KernelRefused: there is none (ENODEV).
        """
        if not is_interface_name(name):
            raise KernelRefused(errno.ENODEV, f"interface {name!r}")
        message = self._routes.build("link", {"family": 0}, [("IFLA_IFNAME", name)])
        return link_of(await self._routes.get(RTM_GETLINK, message, f"interface {name}"))

    async def _touch(self, link: Link) -> InterfaceNote | None:
        """Note an interface; None for one that we made, which is taken away as a whole."""
        if self.journal.made.get(link.name, "-") == link.mac:
            return None
        if link.index not in self.journal.interfaces:
            routes = [
                (
                    {key: each[key] for key in ROUTE_FIELDS},
                    [(key, value) for key, value in each["attrs"] if key in ROUTE_ATTRIBUTES],
                )
                for each in await self._routes_through(link.index)
            ]
            note = InterfaceNote(
                link.index, link.name, link.mtu, link.up, await self.addresses(link.index), routes
            )
            self.journal.note_interface(note)
        return self.journal.interfaces[link.index]

    async def set_up(self, name: str, up: bool) -> None:
        """Bring an interface up or down."""
        link = await self.link(name)
        if self._would(f"ip link set {name} {'up' if up else 'down'}"):
            return
        if await self._touch(link) is not None:
            self.journal.note_change(link.index, up=up)
        await self._set_link(
            link.index, {"flags": IFF_UP if up else 0, "change": IFF_UP}, [], f"{name} up or down"
        )

    async def set_mtu(self, name: str, mtu: int) -> None:
        """Set an interface's MTU, in bytes."""
        link = await self.link(name)
        if self._would(f"ip link set {name} mtu {mtu}"):
            return
        if await self._touch(link) is not None:
            self.journal.note_change(link.index, mtu=mtu)
        await self._set_link(link.index, {}, [("IFLA_MTU", mtu)], f"MTU of {name}")

    async def _set_link(
        self, index: int, fields: dict[str, Any], attributes: Sequence[tuple[str, Any]], what: str
    ) -> None:
        message = self._routes.build("link", {"family": 0, "index": index, **fields}, attributes)
        await self._routes.change(RTM_NEWLINK, message, what)

    async def add_bridge(self, name: str) -> bool:
        """Make a bridge; it is taken away at the end.

        Returns:
            Whether it was made; False when a bridge of that name was there.

        Raises:
            KernelRefused: something else has the name (EEXIST), or the kernel refuses.
        """
        if not is_interface_name(name):
            raise KernelRefused(errno.EINVAL, f"bridge {name!r}")
        try:
            link = await self.link(name)
        except KernelRefused as error:
            if error.errno != errno.ENODEV:
                raise
        else:
            if link.kind != "bridge":
                raise KernelRefused(errno.EEXIST, f"bridge {name}", "an interface of that name is no bridge")
            return False
        if self._would(f"ip link add {name} type bridge"):
            return True
        # A hardware address of its own, and not the lowest of its ports: hosts on it remember it, and by it the bridge is
        # known as ours when it is to be taken away.
        mac = _local_mac()
        # forward_delay 0: a container's first packet does not wait for a spanning tree nobody runs
        data = {"attrs": [("IFLA_BR_FORWARD_DELAY", 0)]}
        info = [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", data)]
        message = self._routes.build(
            "link",
            {"family": 0},
            [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_LINKINFO", {"attrs": info})],
        )
        self.journal.note_made(name, mac)
        try:
            await self._routes.change(RTM_NEWLINK, message, f"bridge {name}", NLM_F_CREATE | NLM_F_EXCL)
        except KernelRefused:
            self.journal.forget_made(name)
            raise
        return True

    async def delete_link(self, name: str) -> None:
        """Take an interface away; one that is gone is all right."""
        if self._would(f"ip link del {name}"):
            return
        try:
            link = await self.link(name)
            await self._routes.change(
                RTM_DELLINK,
                self._routes.build("link", {"family": 0, "index": link.index}),
                f"deleting {name}",
            )
        except KernelRefused as error:
            if error.errno != errno.ENODEV:
                raise
        self.journal.forget_made(name)

    # -- addresses

    async def addresses(self, index: int) -> list[Address]:
        """The addresses of an interface."""
        message = self._routes.build("address", {"family": 0})
        found = await self._routes.dump(RTM_GETADDR, message, "listing addresses")
        return [address_of(each) for each in found if each["index"] == index]

    def _address_message(self, address: Address) -> Any:
        return self._routes.build("address", *address_parts(address))

    async def add_address(self, name: str, address: str, prefix: int) -> None:
        """Give an interface an address.

        Raises:
            KernelRefused: it is no address (EINVAL), the interface has it (EEXIST) or is not there (ENODEV).
        """
        link = await self.link(name)
        try:
            network = ipaddress.ip_interface(f"{address}/{prefix}")
        except ValueError as error:
            raise KernelRefused(errno.EINVAL, f"address {address}/{prefix}") from error
        if self._would(f"ip addr add {network} dev {name}"):
            return
        note = await self._touch(link)
        v4 = network.version == 4
        wide = v4 and prefix < 31
        wanted = Address(
            link.index,
            socket.AF_INET if v4 else socket.AF_INET6,
            str(network.ip),
            prefix,
            str(network.ip),
            0,
            RT_SCOPE_UNIVERSE,
            str(network.network.broadcast_address) if wide else None,
        )
        fresh = (
            note is not None
            and (wanted.local, prefix) not in note.added
            and (wanted.local, prefix) not in {(a.local, a.prefix) for a in note.addresses}
        )
        if fresh:
            self.journal.note_address(link.index, wanted.local, prefix, added=True)
        try:
            await self._routes.change(
                RTM_NEWADDR,
                self._address_message(wanted),
                f"address {network} of {name}",
                NLM_F_CREATE | NLM_F_EXCL,
            )
        except KernelRefused:
            if fresh:
                self.journal.note_address(link.index, wanted.local, prefix, added=False)
            raise

    async def delete_address(self, name: str, address: Address) -> None:
        """Take an address away; one that is gone is all right."""
        if self._would(f"ip addr del {address.local}/{address.prefix} dev {name}"):
            return
        note = await self._touch(await self.link(name))
        await self._drop_address(address)
        if note is not None:
            self.journal.note_address(note.index, address.local, address.prefix, added=False)

    async def _drop_address(self, address: Address) -> None:
        try:
            await self._routes.change(RTM_DELADDR, self._address_message(address), f"address {address.local}")
        except KernelRefused as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise

    # -- routes and rules

    async def _routes_through(self, index: int) -> list[Any]:
        found = []
        for family in FAMILIES:
            message = self._routes.build("route", {"family": family})
            for each in await self._routes.dump(RTM_GETROUTE, message, "listing routes"):
                ours = each["proto"] == PROTOCOL
                if each.get_attr("RTA_OIF") == index and each["proto"] != RTPROT_KERNEL and not ours:
                    found.append(each)
        return found

    async def change_route(
        self, table: int, interface: str | None, destination: str, nexthop: str | None, *, add: bool
    ) -> None:
        """Add or remove a route.

        Args:
            table: routing table.
            interface: where it leads; None for none.
            destination: an address and a prefix length.
            nexthop: a gateway, ``unreachable``, ``throw``, or None.
            add: whether to add or remove it.

        Raises:
            KernelRefused: with the errno of ``RouteController::modifyIpRoute``.
        """
        try:
            network = ipaddress.ip_network(destination, strict=False)
        except ValueError as error:
            raise KernelRefused(errno.EINVAL, f"route to {destination!r}") from error
        if "/" not in destination:
            raise KernelRefused(errno.EINVAL, f"route to {destination!r}", "a prefix length is needed")
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        kind = {"unreachable": RTN_UNREACHABLE, "throw": RTN_THROW}.get(nexthop or "", RTN_UNICAST)
        attributes: list[tuple[str, Any]] = [("RTA_TABLE", table)]
        if network.prefixlen:
            attributes.append(("RTA_DST", str(network.network_address)))
        gateway = None
        if kind == RTN_UNICAST:
            if interface is not None:
                attributes.append(("RTA_OIF", (await self.link(interface)).index))
            if nexthop is not None:
                try:
                    gateway = ipaddress.ip_address(nexthop)
                except ValueError as error:
                    raise KernelRefused(errno.EINVAL, f"gateway {nexthop!r}") from error
                if gateway.version != network.version:
                    raise KernelRefused(errno.EINVAL, f"gateway {nexthop!r} of another family")
                attributes.append(("RTA_GATEWAY", str(gateway)))
        fields = {
            "family": family,
            "dst_len": network.prefixlen,
            "table": table if table < 256 else 0,
            "proto": PROTOCOL,
            "type": kind,
            "scope": RT_SCOPE_UNIVERSE if gateway or kind != RTN_UNICAST else RT_SCOPE_LINK,
        }
        words = f"{'add' if add else 'del'} {destination} table {table}"
        if self._would(
            f"ip route {words}"
            + (f" via {nexthop}" if nexthop else "")
            + (f" dev {interface}" if interface else "")
        ):
            return
        message = self._routes.build("route", fields, attributes)
        key = (table, str(network), interface, nexthop)
        if add:
            self.journal.note_marked()
            await self._routes.change(RTM_NEWROUTE, message, f"route {words}", NLM_F_CREATE | NLM_F_EXCL)
            self._own_routes[key] = (fields, attributes)
        else:
            try:
                await self._routes.change(RTM_DELROUTE, message, f"route {words}")
            finally:
                self._own_routes.pop(key, None)

    async def flush_table(self, table: int) -> None:
        """Remove every route of ours from a table."""
        if self._would(f"ip route flush table {table}"):
            return
        for key, (fields, attributes) in list(self._own_routes.items()):
            if key[0] == table:
                await self._quietly(RTM_DELROUTE, "route", fields, attributes)
                self._own_routes.pop(key, None)

    async def _quietly(
        self, kind: int, name: str, fields: dict[str, Any], attributes: Any, flags: int = 0
    ) -> bool:
        message = self._routes.build(name, fields, attributes)
        try:
            await self._routes.change(kind, message, f"undoing a {name}", flags)
        except AnboxError as error:
            self._log.debug("{error}", error=error)
            return False
        return True

    def _rule_message(self, family: int, rule: Rule) -> Any:
        return self._routes.build("rule", *rule_parts(family, rule))

    async def change_rule(self, rule: Rule, *, add: bool) -> None:
        """Add or remove a policy rule, for IPv4 and IPv6.

        Raises:
            KernelRefused: the kernel refuses; a rule that went in for one family only is taken out again.
        """
        if self._would(f"ip rule {'add' if add else 'del'} {rule.describe()}"):
            return
        if add:
            self.journal.note_marked()
        for family in FAMILIES:
            message = self._rule_message(family, rule)
            what = f"rule {rule.describe()}"
            if add:
                try:
                    await self._routes.change(RTM_NEWRULE, message, what, NLM_F_CREATE)
                except KernelRefused as error:
                    if error.errno == errno.EAFNOSUPPORT and family == socket.AF_INET6:
                        continue
                    if (socket.AF_INET, rule) in self._rules and family == socket.AF_INET6:
                        await self.change_rule(rule, add=False)
                    raise
                self._rules.append((family, rule))
            elif (family, rule) in self._rules:
                self._rules.remove((family, rule))
                await self._routes.change(RTM_DELRULE, message, what)
            elif family == socket.AF_INET:
                raise KernelRefused(errno.ENOENT, what)

    # -- sysctls

    def write_sysctl(self, path: str, value: str) -> None:
        """Write a file below /proc/sys/net; see `Sysctls.write`."""
        self.sysctls.write(path, value)

    async def note_interface(self, name: str) -> None:
        """Note an interface's state, because something else of us is about to change it."""
        if self._dry_run is None:
            await self._touch(await self.link(name))

    # -- undoing

    async def undo_all(self) -> None:
        """Bring everything back to what it was; what cannot be is logged."""
        if self._dry_run is not None:
            return
        for family, rule in reversed(self._rules):
            try:
                await self._routes.change(
                    RTM_DELRULE, self._rule_message(family, rule), f"rule {rule.describe()}"
                )
            except AnboxError as error:
                self._log.warn("{error}", error=error)
        self._rules.clear()
        for fields, attributes in reversed(list(self._own_routes.values())):
            await self._quietly(RTM_DELROUTE, "route", fields, attributes)
        self._own_routes.clear()
        await self._undo_notes()

    async def _undo_notes(self) -> None:
        for name, mac in reversed(list(self.journal.made.items())):
            try:
                if (await self.link(name)).mac == mac:
                    await self.delete_link(name)
            except AnboxError as error:
                if getattr(error, "errno", None) != errno.ENODEV:
                    self._log.warn("{error}", error=error)
        self.sysctls.undo()
        if self.journal.interfaces:
            present = {link.index: link for link in await self.links()}
            for index, note in self.journal.interfaces.items():
                if index in present:
                    try:
                        await self._restore(note, present[index])
                    except AnboxError as error:
                        self._log.warn("{name}: {error}", name=note.name, error=error)
        self.journal.clear()

    async def _restore(self, note: InterfaceNote, now: Link) -> None:
        if now.mtu in note.our_mtus and now.mtu != note.mtu:
            await self._set_link(now.index, {}, [("IFLA_MTU", note.mtu)], f"MTU of {now.name}")
        if now.up in note.our_ups and now.up != note.up:
            flags = IFF_UP if note.up else 0
            await self._set_link(now.index, {"flags": flags, "change": IFF_UP}, [], f"{now.name} as it was")
        have = await self.addresses(now.index)
        for address in have:
            if (address.local, address.prefix) in note.added:
                await self._drop_address(address)
        present = {(a.local, a.prefix) for a in have}
        for address in note.addresses:
            if address.flags & IFA_F_PERMANENT and (address.local, address.prefix) not in present:
                try:
                    await self._routes.change(
                        RTM_NEWADDR,
                        self._address_message(address),
                        f"address {address.local}",
                        NLM_F_CREATE | NLM_F_REPLACE,
                    )
                except KernelRefused as error:
                    self._log.warn("{error}", error=error)
        if not note.up:
            return
        for known, attributes in note.routes:
            fields = dict(known)
            if (
                fields["scope"] == RT_SCOPE_UNIVERSE
                and not any(key == "RTA_GATEWAY" for key, _ in attributes)
                and fields["family"] == socket.AF_INET
            ):
                fields["scope"] = RT_SCOPE_LINK
            await self._quietly(RTM_NEWROUTE, "route", fields, attributes, NLM_F_CREATE | NLM_F_EXCL)

    async def remove_leftovers(self, *, marked: bool = True) -> None:
        """Undo what a killed daemon has left in this namespace.

        Args:
            marked: also the rules and routes with our protocol number, which may be those of another netd that lives.
        """
        if self._dry_run is not None:
            return
        if marked:
            await self._remove_marked()
        elif self.journal.marked:
            self._log.warn(
                "rules and routes of a killed netd stay: they look like those of another that lives"
            )
        if not self.journal.empty:
            self._log.info(
                "undoing what a netd that was killed has left, after {path}", path=self.journal.path
            )
            await self._undo_notes()

    async def _remove_marked(self) -> None:
        for family in FAMILIES:
            message = self._routes.build("rule", {"family": family})
            for each in await self._routes.dump(RTM_GETRULE, message, "listing rules"):
                if each.get_attr("FRA_PROTOCOL") == PROTOCOL:
                    fields = {key: each[key] for key in ("family", "action", "table")}
                    await self._quietly(RTM_DELRULE, "rule", fields, plain(each["attrs"]))
            message = self._routes.build("route", {"family": family})
            for each in await self._routes.dump(RTM_GETROUTE, message, "listing routes"):
                if each["proto"] == PROTOCOL:
                    fields = {
                        key: each[key] for key in ("family", "dst_len", "table", "proto", "type", "scope")
                    }
                    keep = ("RTA_DST", "RTA_OIF", "RTA_GATEWAY", "RTA_TABLE", "RTA_PRIORITY")
                    await self._quietly(
                        RTM_DELROUTE, "route", fields, [(k, v) for k, v in each["attrs"] if k in keep]
                    )


def _local_mac() -> str:
    """A hardware address of the range that everybody may use, at random."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *os.urandom(5)))
