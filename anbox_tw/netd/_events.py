"""Kernel events to the framework's words: pure functions from what a netlink socket gave to a broadcast.

The texts are those of AOSP ``system/netd/server/NetlinkHandler.cpp`` and
``system/core/libsysutils/src/NetlinkEvent.cpp`` (android-7.0).
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Any, Final

from attrs import field, frozen

from anbox_tw.netd.codes import ResponseCode

__all__ = [
    "Broadcast",
    "IdleTimerEvent",
    "UEvent",
    "address_event",
    "class_activity",
    "limit_alert",
    "link_state",
    "nduseropt_event",
    "parse_uevent",
    "resynchronised",
    "route_event",
    "strict_cleartext",
    "uevent_broadcast",
]

IFF_LOOPBACK: Final = 0x8
IFF_LOWER_UP: Final = 0x10000
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_NEWNDUSEROPT: Final = 68
_RTPROT_KERNEL: Final = 2
_RTPROT_RA: Final = 9
_RT_SCOPE_UNIVERSE: Final = 0
_RTN_UNICAST: Final = 1
_RTM_F_CLONED: Final = 0x200
_AF_INET: Final = 2
_AF_INET6: Final = 10
_ND_ROUTER_ADVERT: Final = 134
_ND_OPT_RDNSS: Final = 25
# NetlinkEvent.h: NL_PARAMS_MAX
MAX_UEVENT_PARAMETERS: Final = 32
# StrictController logs at most this much of a packet (NetlinkHandler's hex)
MAX_STRICT_PACKET_BYTES: Final = 256
# Ours, beyond the original's range: listeners that keep state should read it anew. The framework's
# onEvent() ignores codes it does not know.
RESYNCHRONISED: Final = 699


@frozen
class Broadcast:
    """One line for every client of the command socket."""

    code: int
    text: str


@frozen
class UEvent:
    """A kernel uevent.

    Attributes:
        action: ``add``, ``remove``, ``change``; others are kept as they are.
        path: of the device in sysfs.
        subsystem: for example ``net``.
        sequence: the kernel's counter, over all devices.
        parameters: the rest.
    """

    action: str
    path: str
    subsystem: str = ""
    sequence: int = 0
    parameters: dict[str, str] = field(factory=dict)


@frozen
class IdleTimerEvent:
    """A change of an idle timer, from the kernel's xt_idletimer or from ours."""

    active: bool
    label: str
    time_ns: int | None = None
    uid: int | None = None


def parse_uevent(data: bytes) -> UEvent | None:
    """Parse a kernel uevent; None for anything else (udev's own binary messages, rubbish)."""
    head, _, rest = data.partition(b"\0")
    text = head.decode("utf-8", "replace")
    action, at, path = text.partition("@")
    if not at or not action.isalpha():
        return None
    subsystem, sequence = "", 0
    parameters: dict[str, str] = {}
    for piece in rest.split(b"\0"):
        key, equals, value = piece.decode("utf-8", "replace").partition("=")
        if not equals or not key:
            continue
        if key == "SUBSYSTEM":
            subsystem = value
        elif key == "ACTION":
            action = value
        elif key == "DEVPATH":
            path = value
        elif key == "SEQNUM":
            sequence = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else 0
        elif len(parameters) < MAX_UEVENT_PARAMETERS:
            parameters[key] = value
    return UEvent(action, path, subsystem, sequence, parameters)


def uevent_broadcast(event: UEvent) -> Broadcast | None:
    """What the framework hears of a uevent, or None."""
    if event.subsystem == "net":
        interface = event.parameters.get("INTERFACE", "")
        if event.action == "add" and interface:
            return Broadcast(ResponseCode.INTERFACE_CHANGE, f"Iface added {interface}")
        if event.action == "remove" and interface:
            return Broadcast(ResponseCode.INTERFACE_CHANGE, f"Iface removed {interface}")
        if event.action == "change":
            # the original evaluates an INTERFACE it never uses and says this, always
            return Broadcast(ResponseCode.INTERFACE_CHANGE, "Iface changed nana up")
        return None
    if event.subsystem in ("qlog", "xt_quota2"):
        name = event.parameters.get("ALERT_NAME", "")
        return limit_alert(name, event.parameters.get("INTERFACE", "")) if name else None
    if event.subsystem == "xt_idletimer":
        label = event.parameters.get("INTERFACE", "")
        stamp, uid = event.parameters.get("TIME_NS", ""), event.parameters.get("UID", "")
        return class_activity(
            IdleTimerEvent(
                event.parameters.get("STATE") == "active",
                label,
                int(stamp) if stamp.isascii() and stamp.isdigit() else None,
                int(uid) if uid.isascii() and uid.isdigit() else None,
            )
        )
    return None


def class_activity(event: IdleTimerEvent) -> Broadcast:
    """613: an interface class became active or idle."""
    words = ["IfaceClass", "active" if event.active else "idle", event.label]
    if event.time_ns is not None:
        words.append(str(event.time_ns))
        if event.active and event.uid is not None:
            words.append(str(event.uid))
    return Broadcast(ResponseCode.INTERFACE_CLASS_ACTIVITY, " ".join(words))


def limit_alert(name: str, interface: str) -> Broadcast:
    """601: a quota or an alert was reached."""
    return Broadcast(ResponseCode.BANDWIDTH_CONTROL, f"limit alert {name} {interface}")


def strict_cleartext(uid: int, packet: bytes) -> Broadcast:
    """617: an app sent data in the clear."""
    return Broadcast(ResponseCode.STRICT_CLEARTEXT, f"{uid} {packet[:MAX_STRICT_PACKET_BYTES].hex()}")


def resynchronised(reason: str) -> Broadcast:
    """699, our own: events were lost; what follows is the state as it is."""
    return Broadcast(RESYNCHRONISED, f"Netlink resynchronised {reason}")


def link_state(message: Any) -> Broadcast | None:
    """RTM_NEWLINK: 600 linkstate, except for loopback."""
    name = message.get_attr("IFLA_IFNAME")
    flags = message["flags"]
    if not name or flags & IFF_LOOPBACK:
        return None
    return link_line(name, flags)


def link_line(name: str, flags: int) -> Broadcast:
    """600 linkstate from a name and interface flags."""
    state = "up" if flags & IFF_LOWER_UP else "down"
    return Broadcast(ResponseCode.INTERFACE_CHANGE, f"Iface linkstate {name} {state}")


def address_event(message: Any, interface: str | None, *, removed: bool) -> Broadcast | None:
    """RTM_NEWADDR and RTM_DELADDR: 614; None when the interface is gone."""
    address = message.get_attr("IFA_ADDRESS")
    if not interface or not address or message["family"] not in (_AF_INET, _AF_INET6):
        return None
    word = "removed" if removed else "updated"
    return Broadcast(
        ResponseCode.INTERFACE_ADDRESS_CHANGE,
        f"Address {word} {address}/{message['prefixlen']} {interface} {message['flags']} {message['scope']}",
    )


def route_event(message: Any, interface: str | None, *, removed: bool) -> Broadcast | None:
    """RTM_NEWROUTE and RTM_DELROUTE: 616 for the routes that the kernel or a router made."""
    if message["family"] not in (_AF_INET, _AF_INET6):
        return None
    if (
        message["proto"] not in (_RTPROT_KERNEL, _RTPROT_RA)
        or message["scope"] != _RT_SCOPE_UNIVERSE
        or message["type"] != _RTN_UNICAST
        or message["src_len"] != 0
        or message["flags"] & _RTM_F_CLONED
    ):
        return None
    destination = message.get_attr("RTA_DST")
    gateway = message.get_attr("RTA_GATEWAY")
    index = message.get_attr("RTA_OIF")
    if index and not interface:
        return None
    if not gateway and not interface:
        return None
    if not destination:
        if message["dst_len"]:
            return None
        destination = "::" if message["family"] == _AF_INET6 else "0.0.0.0"
    words = f"Route {'removed' if removed else 'updated'} {destination}/{message['dst_len']}"
    if gateway:
        words += f" via {gateway}"
    if interface:
        words += f" dev {interface}"
    return Broadcast(ResponseCode.ROUTE_CHANGE, words)


def nduseropt_event(body: bytes, interface: str | None) -> Broadcast | None:
    """RTM_NEWNDUSEROPT with RDNSS (RFC 8106): 615.

    Args:
        body: the message behind its netlink header: ``struct nduseroptmsg`` and the option.
        interface: the name that belongs to its index.
    """
    if len(body) < 16 or not interface:
        return None
    family, _pad, size, _index, icmp_type, icmp_code = struct.unpack_from("=BBHiBB", body)
    option = body[16 : 16 + size]
    if (
        family != _AF_INET6
        or icmp_type != _ND_ROUTER_ADVERT
        or icmp_code != 0
        or len(option) < size
        or size < 8
    ):
        return None
    kind, units, _reserved, lifetime = struct.unpack_from(">BBHI", option)
    if kind != _ND_OPT_RDNSS or units < 3 or units % 2 == 0 or units * 8 > size:
        return None
    servers = []
    for number in range((units - 1) // 2):
        address = ipaddress.IPv6Address(option[8 + 16 * number : 24 + 16 * number])
        servers.append(f"{address}%{interface}" if address.is_link_local else str(address))
    return Broadcast(
        ResponseCode.INTERFACE_DNS_INFO, f"DnsInfo servers {interface} {lifetime} {','.join(servers)}"
    )


def nduseropt_index(body: bytes) -> int:
    """The interface index of a ``struct nduseroptmsg``; 0 when it is too short."""
    return int(struct.unpack_from("=i", body, 4)[0]) if len(body) >= 8 else 0
