"""``NetlinkManager``: the kernel's events, in the right order, to whoever listens.

Four sources, as AOSP ``system/netd/server/NetlinkManager.cpp``: uevents, rtnetlink's groups, and packets that
rules of ours log (quota alerts, idle timers, cleartext). The kernel tells of one interface on two sockets (its
uevents on one, its state on the other), and nothing orders them; `NetlinkManager` reads both until they are dry
and puts ``Iface added`` before, and ``Iface removed`` behind, what else is said of an interface.

When the kernel had to drop events for us (ENOBUFS), the state is read anew and told: a 699 broadcast of ours
first, then added, removed and linkstate lines for what is different, and every link's state.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from attrs import define, frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger

from anbox_tw.errors import AnboxError, HostLacks
from anbox_tw.netd import _events as events
from anbox_tw.netd._events import Broadcast, UEvent
from anbox_tw.netd.namespace import NetworkNamespace
from anbox_tw.netd.netlink import (
    MAX_DATAGRAMS_PER_TURN,
    NLM_F_ACK,
    NLM_F_REQUEST,
    Datagram,
    NetlinkSocket,
    Overrun,
    RouteClient,
    messages_of,
)

__all__ = ["LoggedPacket", "NetlinkManager"]

NETLINK_KOBJECT_UEVENT: Final = 15
NETLINK_NFLOG: Final = 5
NETLINK_NETFILTER: Final = 12
RTM_GETLINK: Final = 18
RTM_GETADDR: Final = 22
# RTMGRP_LINK | IPV4_IFADDR | IPV6_IFADDR | IPV6_ROUTE | bit of RTNLGRP_ND_USEROPT (20)
ROUTE_GROUPS: Final = 0x1 | 0x10 | 0x100 | 0x400 | 0x80000
# The original asks for 64 KiB, which some 40 link messages fill. 4 MiB hold about 2,000 of them while we work.
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
# How often both sockets are read in turn before what is there is told.
DRAIN_ROUNDS: Final = 4
# Overruns in a row: the first resynchronisation waits this long, so that a storm is answered once.
RESYNC_DELAY_S: Final = 0.05
# A resynchronisation that the kernel refuses is tried again so often, until it is done or we stop: nobody else would
# ever tell the listeners that they have missed something.
RESYNC_RETRY_S: Final = 1.0

_NFNL_SUBSYS_ULOG: Final = 4
_NFULNL_MSG_PACKET: Final = _NFNL_SUBSYS_ULOG << 8
_NFULNL_MSG_CONFIG: Final = _NFNL_SUBSYS_ULOG << 8 | 1
_NFULA_CFG_CMD: Final = 1
_NFULA_CFG_MODE: Final = 2
_NFULA_CFG_QTHRESH: Final = 5
_NFULNL_CFG_CMD_BIND: Final = 1
_NFULNL_COPY_PACKET: Final = 2
# what the kernel copies of a logged packet: StrictController's own limit
_COPY_BYTES: Final = 256


@frozen
class LoggedPacket:
    """A packet that a rule logged.

    Attributes:
        group: the NFLOG group.
        prefix: the rule's log prefix.
        interface: where it came in, else where it went out, else empty.
        uid: of the sending process, or None.
        payload: its first bytes, from the IP header on.
    """

    group: int
    prefix: str
    interface: str
    uid: int | None
    payload: bytes


@define
class _Link:
    name: str
    flags: int


@frozen
class _Noted:
    """An event of rtnetlink, not yet told."""

    index: int
    line: Broadcast | None
    gone: bool = False


class NetlinkManager(Service):
    """The daemon's ears.

    Attributes:
        links: index to name and flags, as last heard.
        resynchronisations: how often events were lost and the state read anew.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        on_event: Callable[[Broadcast], object],
        *,
        namespace: NetworkNamespace | None = None,
        routes: RouteClient | None = None,
        nflog_groups: tuple[int, ...] = (),
        on_packet: Callable[[LoggedPacket], object] | None = None,
        buffer_bytes: int = RECEIVE_BUFFER_BYTES,
    ) -> None:
        """Make the service; the sockets are opened when it starts.

        Args:
            reactor: an IReactorFDSet and IReactorTime.
            on_event: called with each broadcast, in order.
            namespace: whose events; our own when None.
            routes: for dumps; the manager makes one of its own when None.
            nflog_groups: groups whose packets go to ``on_packet``.
            on_packet: called with each logged packet.
            buffer_bytes: of each event socket, in the kernel.
        """
        self._reactor = reactor
        self._on_event = on_event
        self._on_packet = on_packet
        self._namespace = namespace or NetworkNamespace()
        self._routes = routes
        self._own_routes = routes is None
        self._groups = nflog_groups
        self._buffer = buffer_bytes
        self._uevents: NetlinkSocket | None = None
        self._route_events: NetlinkSocket | None = None
        self._extra: list[NetlinkSocket] = []
        self._kernel_uids = _kernel_uids()
        self._again: Any = None
        self._resync_timer: Any = None
        self._resync: Deferred[None] | None = None
        self._overrun: set[NetlinkSocket] = set()
        self._lost = False
        self._touched: set[int] = set()
        self.links: dict[int, _Link] = {}
        self.resynchronisations = 0

    # -- life

    def startService(self) -> None:
        """Open the sockets; the events flow from now on, and the links are read once.

        Raises:
            HostLacks: pyroute2 is missing, or the kernel refuses uevents or rtnetlink.
        """
        if self._routes is None:
            self._routes = RouteClient(self._reactor, self._namespace)
        try:
            self._uevents = self._open(NETLINK_KOBJECT_UEVENT, 0xFFFFFFFF, self._drain, "uevents")
            self._route_events = self._open(
                socket.NETLINK_ROUTE, ROUTE_GROUPS, self._drain, "rtnetlink events"
            )
        except OSError as error:
            self._close_all()
            raise HostLacks(f"the kernel's events cannot be had: {error.strerror}", "run as root") from error
        try:
            # xt_quota2 of Android's kernels; others do not have it, and quotas are logged by rules of ours
            self._extra.append(
                self._open(NETLINK_NFLOG, 1, lambda: self._drain_extra(self._extra[0]), "quota log")
            )
        except OSError as error:
            self._log.debug("no quota2 log in this kernel: {error}", error=error.strerror)
        if self._groups:
            self._open_nflog()
        for each in (self._uevents, self._route_events, *self._extra):
            each.start()
        self._start_resync(None)
        super().startService()

    def _open(self, family: int, groups: int, readable: Callable[[], object], name: str) -> NetlinkSocket:
        return NetlinkSocket(
            self._reactor,
            family,
            namespace=self._namespace,
            groups=groups,
            on_readable=readable,
            buffer_bytes=self._buffer,
            name=name,
        )

    def _open_nflog(self) -> None:
        try:
            opened = self._open(NETLINK_NETFILTER, 0, lambda: self._drain_packets(opened), "nflog")
        except OSError as error:
            self._log.warn("no packet log: {error}; alerts are not told", error=error.strerror)
            return
        self._extra.append(opened)
        for group in self._groups:
            bind = struct.pack("=HHBxxx", 5, _NFULA_CFG_CMD, _NFULNL_CFG_CMD_BIND)
            mode = (
                struct.pack("=HH", 10, _NFULA_CFG_MODE)
                + struct.pack(">IBx", _COPY_BYTES, _NFULNL_COPY_PACKET)
                + b"\0\0"
            )
            # one packet is told at once: the kernel would keep it for a second, or for 99 more
            threshold = struct.pack("=HH", 8, _NFULA_CFG_QTHRESH) + struct.pack(">I", 1)
            for attribute in (bind, mode, threshold):
                body = struct.pack(">BBH", 0, 0, group) + attribute
                header = struct.pack(
                    "=IHHII", 16 + len(body), _NFULNL_MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK, group, 0
                )
                try:
                    opened.send(header + body)
                except OSError as error:
                    self._log.warn("nflog group {group}: {error}", group=group, error=error.strerror)

    def stopService(self) -> Deferred[None]:
        """Close all sockets."""
        super().stopService()
        for timer in (self._again, self._resync_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._again = self._resync_timer = None
        if self._resync is not None:
            self._resync.cancel()
        self._close_all()
        return succeed(None)

    def _close_all(self) -> None:
        for each in (self._uevents, self._route_events, *self._extra):
            if each is not None:
                each.close()
        self._uevents = self._route_events = None
        self._extra.clear()
        self._overrun.clear()
        if self._own_routes and self._routes is not None:
            self._routes.close()
            self._routes = None

    def when_ready(self) -> Deferred[None]:
        """Fires when the links have been read (after the start, or after lost events)."""
        if self._resync is None:
            return succeed(None)
        waiter: Deferred[None] = Deferred()

        def fired(result: Any) -> Any:
            waiter.callback(None)
            return result

        self._resync.addBoth(fired)
        return waiter

    def name_of(self, index: int) -> str | None:
        """The interface's name as last heard, or None."""
        link = self.links.get(index)
        return link.name if link is not None else None

    # -- uevents and rtnetlink, together

    def _from_kernel(self, datagram: Datagram, *, multicast: bool) -> bool:
        if datagram.sender_port != 0 or datagram.sender_uid not in self._kernel_uids:
            self._log.warn(
                "dropped a netlink message of uid {uid}, port {port}",
                uid=datagram.sender_uid,
                port=datagram.sender_port,
            )
            return False
        return bool(datagram.groups) or not multicast

    def _read(self, source: NetlinkSocket | None, room: int) -> list[bytes]:
        found: list[bytes] = []
        while source is not None and len(found) < room:
            try:
                datagram = source.receive()
            except Overrun:
                self._overrun.add(source)
                continue
            except OSError as error:
                self._log.warn("reading netlink: {error}", error=error.strerror)
                break
            if datagram is None:
                if source in self._overrun:
                    # The kernel says ENOBUFS once and then drops everything until the queue has been read dry
                    # (NETLINK_S_CONGESTED, net/netlink/af_netlink.c). A state that is read before is out of date when
                    # the old events behind it have been told, and nobody says so again.
                    self._overrun.discard(source)
                    self._lost = True
                break
            if self._from_kernel(datagram, multicast=True):
                found.append(datagram.data)
        return found

    def _drain(self) -> None:
        uevents: list[UEvent] = []
        notes: list[_Noted] = []
        for _ in range(DRAIN_ROUNDS):
            # rtnetlink first: a uevent that is there was sent before what is read next from the other
            for data in self._read(self._route_events, MAX_DATAGRAMS_PER_TURN):
                notes.extend(self._note_all(data))
            pieces = self._read(self._uevents, MAX_DATAGRAMS_PER_TURN)
            for data in pieces:
                event = parse_quietly(data)
                if event is not None:
                    uevents.append(event)
            if not pieces:
                break
        self._tell_in_order(uevents, notes)
        if self._lost:
            self._lost = False
            if self._resync_timer is None or not self._resync_timer.active():
                self._resync_timer = self._reactor.callLater(
                    RESYNC_DELAY_S, self._start_resync, "events were lost"
                )

    def _tell_in_order(self, uevents: list[UEvent], notes: list[_Noted]) -> None:
        waiting = [(event, _index_of(event)) for event in uevents]

        def tell_until(index: int, actions: tuple[str, ...]) -> None:
            for position, (event, of) in enumerate(waiting):
                if of == index and event.action in actions:
                    for told, _ in waiting[: position + 1]:
                        self._tell(events.uevent_broadcast(told))
                    del waiting[: position + 1]
                    return

        for note in notes:
            tell_until(note.index, ("add",))
            self._tell(note.line)
            if note.gone:
                tell_until(note.index, ("remove",))
        for event, _ in waiting:
            self._tell(events.uevent_broadcast(event))

    def _tell(self, line: Broadcast | None) -> None:
        if line is None:
            return
        try:
            self._on_event(line)
        except Exception:
            self._log.failure("telling {code} {text} failed", code=line.code, text=line.text)

    def _note_all(self, data: bytes) -> list[_Noted]:
        found = []
        # the original tells only of the first message in a datagram
        for offset, length, kind, _flags, _sequence in messages_of(data):
            try:
                note = self._note(data, offset, length, kind)
            except Exception:
                self._log.failure("a message of type {kind} that cannot be read", kind=kind)
                continue
            if note is not None:
                found.append(note)
        return found

    def _parse(self, name: str, data: bytes, offset: int) -> Any:
        assert self._routes is not None
        message = getattr(self._routes.parts, name)(data, offset=offset)
        message.decode()
        return message

    def _note(self, data: bytes, offset: int, length: int, kind: int) -> _Noted | None:
        if kind in (events.RTM_NEWLINK, events.RTM_DELLINK):
            message = self._parse("link", data, offset)
            if message["family"] != socket.AF_UNSPEC:
                # a bridge tells of its ports with the same type
                return None
            index = message["index"]
            self._touched.add(index)
            if kind == events.RTM_DELLINK:
                self.links.pop(index, None)
                return _Noted(index, None, gone=True)
            name = message.get_attr("IFLA_IFNAME")
            if name:
                self.links[index] = _Link(name, message["flags"])
            return _Noted(index, events.link_state(message))
        if kind in (events.RTM_NEWADDR, events.RTM_DELADDR):
            message = self._parse("address", data, offset)
            index = message["index"]
            removed = kind == events.RTM_DELADDR
            return _Noted(index, events.address_event(message, self._name(index), removed=removed))
        if kind in (events.RTM_NEWROUTE, events.RTM_DELROUTE):
            message = self._parse("route", data, offset)
            index = message.get_attr("RTA_OIF") or 0
            removed = kind == events.RTM_DELROUTE
            return _Noted(index, events.route_event(message, self._name(index), removed=removed))
        if kind == events.RTM_NEWNDUSEROPT:
            body = data[offset + 16 : offset + length]
            index = events.nduseropt_index(body)
            return _Noted(index, events.nduseropt_event(body, self._name(index)))
        return None

    def _name(self, index: int) -> str | None:
        if not index:
            return None
        return self.name_of(index) or self._namespace.interface_name(index)

    # -- resynchronisation

    def _start_resync(self, reason: str | None) -> None:
        self._resync_timer = None
        if self._resync is not None:
            # one runs already; what it reads may be older than what was lost
            self._resync_timer = self._reactor.callLater(RESYNC_DELAY_S, self._start_resync, reason)
            return
        running = self._resync = Deferred.fromCoroutine(self._resynchronise(reason))
        running.addErrback(self._resync_failed, reason)
        running.addCallback(self._resync_done)

    def _resync_done(self, _result: object) -> None:
        self._resync = None

    def _resync_failed(self, failure: Any, reason: str | None) -> None:
        if failure.check(CancelledError) or self._uevents is None:
            return
        if failure.check(AnboxError):
            self._log.warn("the state cannot be read anew, trying again: {error}", error=failure.value)
        else:
            self._log.failure("the state of the links cannot be read", failure)
        if reason is not None and (self._resync_timer is None or not self._resync_timer.active()):
            self._resync_timer = self._reactor.callLater(RESYNC_RETRY_S, self._start_resync, reason)

    async def _resynchronise(self, reason: str | None) -> None:
        assert self._routes is not None
        routes = self._routes
        self._touched.clear()
        try:
            found = await routes.dump(RTM_GETLINK, routes.build("link", {"family": 0}), "listing links")
        except AnboxError as error:
            if reason is None:
                self._log.warn("the links cannot be listed: {error}", error=error)
                return
            raise
        now = {
            each["index"]: _Link(each.get_attr("IFLA_IFNAME") or "", each["flags"])
            for each in found
            if each["header"]["type"] == events.RTM_NEWLINK
        }
        # what an event has told meanwhile is newer than the list
        for index in self._touched:
            now.pop(index, None)
            if index in self.links:
                now[index] = self.links[index]
        before, self.links = self.links, now
        if reason is None:
            return
        self.resynchronisations += 1
        self._log.warn("resynchronised: {reason}; {count} links", reason=reason, count=len(now))
        self._tell(events.resynchronised(reason))
        for index, link in before.items():
            if index not in now or now[index].name != link.name:
                self._tell(Broadcast(600, f"Iface removed {link.name}"))
        for index, link in now.items():
            if index not in before or before[index].name != link.name:
                self._tell(Broadcast(600, f"Iface added {link.name}"))
            if not link.flags & events.IFF_LOOPBACK:
                self._tell(events.link_line(link.name, link.flags))
        await self._retell_addresses(now)

    async def _retell_addresses(self, links: dict[int, _Link]) -> None:
        assert self._routes is not None
        message = self._routes.build("address", {"family": 0})
        for each in await self._routes.dump(RTM_GETADDR, message, "listing addresses"):
            link = links.get(each["index"])
            self._tell(events.address_event(each, link.name if link else None, removed=False))

    # -- logged packets

    def _drain_extra(self, source: NetlinkSocket) -> None:
        # the log of Android's xt_quota2: a ulog packet, of which the name and the interfaces matter
        for data in self._read(source, MAX_DATAGRAMS_PER_TURN):
            for offset, length, kind, _flags, _sequence in messages_of(data):
                line = quota2_line(data[offset + 16 : offset + length]) if kind == 112 else None
                self._tell(line)

    def _drain_packets(self, source: NetlinkSocket) -> None:
        for _ in range(MAX_DATAGRAMS_PER_TURN):
            try:
                datagram = source.receive()
            except Overrun:
                # a log that is full is no loss: its rules say the same again while the cause lasts
                continue
            except OSError as error:
                self._log.warn("reading nflog: {error}", error=error.strerror)
                return
            if datagram is None:
                return
            if not self._from_kernel(datagram, multicast=False):
                continue
            for offset, length, kind, _flags, sequence in messages_of(datagram.data):
                if kind == 2 and length >= 20:
                    code = struct.unpack_from("=i", datagram.data, offset + 16)[0]
                    if code:
                        self._log.warn(
                            "nflog group {group} cannot be had: {error}",
                            group=sequence,
                            error=os.strerror(-code),
                        )
                elif kind == _NFULNL_MSG_PACKET:
                    self._packet(datagram.data, offset)

    def _packet(self, data: bytes, offset: int) -> None:
        try:
            message = self._parse("nflog", data, offset)
            index = message.get_attr("NFULA_IFINDEX_INDEV") or message.get_attr("NFULA_IFINDEX_OUTDEV") or 0
            payload = message.get_attr("NFULA_PAYLOAD") or b""
            packet = LoggedPacket(
                message["res_id"],
                message.get_attr("NFULA_PREFIX") or "",
                self._name(index) or "",
                message.get_attr("NFULA_UID"),
                bytes(payload),
            )
        except Exception:
            self._log.failure("a logged packet that cannot be read")
            return
        if self._on_packet is not None:
            try:
                self._on_packet(packet)
            except Exception:
                self._log.failure("a logged packet of group {group} failed", group=packet.group)


def parse_quietly(data: bytes) -> UEvent | None:
    """A uevent, or None when it is none."""
    return events.parse_uevent(data)


def quota2_line(body: bytes) -> Broadcast | None:
    """601 from a ``ulog_packet_msg_t`` of xt_quota2 (linux/netfilter_ipv4/ipt_ULOG.h)."""
    # unsigned long mark, long sec, long usec, unsigned int hook, char indev[16], outdev[16], size_t, char prefix[32]
    layout = struct.Struct("@LllI16s16sL32s")
    if len(body) < layout.size:
        return None
    fields = layout.unpack_from(body)
    inside, outside, prefix = (
        part.partition(b"\0")[0].decode("utf-8", "replace") for part in (fields[4], fields[5], fields[7])
    )
    return events.limit_alert(prefix, inside or outside) if prefix else None


def _index_of(event: UEvent) -> int:
    index = event.parameters.get("IFINDEX", "")
    return int(index) if event.subsystem == "net" and index.isascii() and index.isdigit() else 0


def _kernel_uids() -> frozenset[int]:
    """The uids that the kernel's own messages carry: 0, or, in a user namespace without the real root, nobody."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            identity = file.read().split()[:2] == ["0", "0"]
    except OSError:
        identity = True
    return frozenset({0}) if identity else frozenset({0, 65534})
