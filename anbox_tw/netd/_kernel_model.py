"""What the kernel's links, addresses and policy rules look like to netd, and rtnetlink's numbers; no I/O."""

from __future__ import annotations

import re
import socket
from typing import Any, Final

from attrs import frozen

__all__ = ["Address", "Link", "Rule", "is_interface_name"]

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
IFF_UP: Final = 0x1
IFF_BROADCAST: Final = 0x2
IFF_LOOPBACK: Final = 0x8
IFF_POINTOPOINT: Final = 0x10
IFF_RUNNING: Final = 0x40
IFF_MULTICAST: Final = 0x1000
IFA_F_PERMANENT: Final = 0x80
FR_ACT_TO_TBL: Final = 1
FR_ACT_UNREACHABLE: Final = 7
FR_ACT_PROHIBIT: Final = 8
RTN_UNICAST, RTN_UNREACHABLE, RTN_THROW = 1, 7, 9
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTPROT_KERNEL: Final = 2
# The mark of our routes and rules, by which a later start finds what a killed daemon has left (rtm_protocol and
# FRA_PROTOCOL; nobody else's in iproute2's rt_protos).
PROTOCOL: Final = 0x6E
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)

# NetdConstants.cpp: isIfaceName; the kernel takes 15 bytes
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:.-]{0,14}")


def is_interface_name(name: str) -> bool:
    """Whether a text can be the name of an interface (and cannot be a path)."""
    # a dot is legal for VLANs; the original refuses it, and its interface list leaves such names out
    return _NAME.fullmatch(name) is not None and ".." not in name


@frozen
class Link:
    """An interface as the kernel describes it."""

    index: int
    name: str
    flags: int
    mtu: int
    mac: str
    kind: str = ""
    master: int = 0

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


@frozen
class Address:
    """An address of an interface."""

    index: int
    family: int
    local: str
    prefix: int
    peer: str
    flags: int
    scope: int
    broadcast: str | None = None
    label: str | None = None


@frozen
class Rule:
    """A policy rule."""

    priority: int
    table: int = 0
    mark: int = 0
    mask: int = 0
    iif: str | None = None
    oif: str | None = None
    uids: tuple[int, int] | None = None
    action: int = FR_ACT_TO_TBL

    def describe(self) -> str:
        """As ``ip rule`` would take it."""
        words = [f"pref {self.priority}"]
        if self.mask:
            words.append(f"fwmark {self.mark:#x}/{self.mask:#x}")
        if self.iif:
            words.append(f"iif {self.iif}")
        if self.oif:
            words.append(f"oif {self.oif}")
        if self.uids is not None:
            words.append(f"uidrange {self.uids[0]}-{self.uids[1]}")
        words.append({7: "unreachable", 8: "prohibit"}.get(self.action, f"lookup {self.table}"))
        return " ".join(words)


def plain(attributes: Any) -> list[tuple[str, Any]]:
    keep = (
        "FRA_PRIORITY",
        "FRA_PROTOCOL",
        "FRA_TABLE",
        "FRA_FWMARK",
        "FRA_FWMASK",
        "FRA_IIFNAME",
        "FRA_OIFNAME",
        "FRA_UID_RANGE",
    )
    return [(key, value) for key, value in attributes if key in keep]


def link_of(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    return Link(
        message["index"],
        message.get_attr("IFLA_IFNAME") or "",
        message["flags"],
        message.get_attr("IFLA_MTU") or 0,
        message.get_attr("IFLA_ADDRESS") or "",
        kind or "",
        message.get_attr("IFLA_MASTER") or 0,
    )


def address_of(message: Any) -> Address:
    peer = message.get_attr("IFA_ADDRESS")
    return Address(
        message["index"],
        message["family"],
        message.get_attr("IFA_LOCAL") or peer,
        message["prefixlen"],
        peer,
        message.get_attr("IFA_FLAGS") or message["flags"],
        message["scope"],
        message.get_attr("IFA_BROADCAST"),
        message.get_attr("IFA_LABEL"),
    )


def address_parts(address: Address) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The fields and attributes of rtnetlink's message about an address."""
    attributes = [("IFA_LOCAL", address.local), ("IFA_ADDRESS", address.peer)]
    if address.family == socket.AF_INET:
        if address.broadcast:
            attributes.append(("IFA_BROADCAST", address.broadcast))
        if address.label:
            attributes.append(("IFA_LABEL", address.label))
    fields = {
        "family": address.family,
        "prefixlen": address.prefix,
        "index": address.index,
        "scope": address.scope,
        "flags": address.flags & 0xFF & ~IFA_F_PERMANENT,
    }
    return fields, attributes


def rule_parts(family: int, rule: Rule) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The fields and attributes of rtnetlink's message about a policy rule."""
    attributes: list[tuple[str, Any]] = [("FRA_PRIORITY", rule.priority), ("FRA_PROTOCOL", PROTOCOL)]
    if rule.action == FR_ACT_TO_TBL:
        attributes.append(("FRA_TABLE", rule.table))
    if rule.mask:
        attributes += [("FRA_FWMARK", rule.mark), ("FRA_FWMASK", rule.mask)]
    if rule.iif:
        attributes.append(("FRA_IIFNAME", rule.iif))
    if rule.oif:
        attributes.append(("FRA_OIFNAME", rule.oif))
    if rule.uids is not None:
        attributes.append(("FRA_UID_RANGE", f"{rule.uids[0]}:{rule.uids[1]}"))
    fields = {
        "family": family,
        "action": rule.action,
        "table": rule.table if rule.table < 256 and rule.action == FR_ACT_TO_TBL else 0,
    }
    return fields, attributes
