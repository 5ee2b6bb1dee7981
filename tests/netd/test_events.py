"""Kernel events to the framework's words, without a kernel."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.netd import _events as events
from anbox_tw.netd import manager
from anbox_tw.netd.nft import parse_expiries


class Message(dict[str, Any]):
    """What a parsed netlink message looks like."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


def uevent(*pieces: str) -> events.UEvent | None:
    return events.parse_uevent("\0".join(pieces).encode())


class UEventTests(SynchronousTestCase):
    def said(self, *pieces: str) -> str | None:
        event = uevent(*pieces)
        assert event is not None
        line = events.uevent_broadcast(event)
        return f"{int(line.code)} {line.text}" if line is not None else None

    def test_net(self) -> None:
        base = ("SUBSYSTEM=net", "INTERFACE=wlan0", "IFINDEX=3", "SEQNUM=12")
        self.assertEqual(self.said("add@/devices/wlan0", *base), "600 Iface added wlan0")
        self.assertEqual(self.said("remove@/devices/wlan0", *base), "600 Iface removed wlan0")
        self.assertEqual(self.said("change@/devices/wlan0", *base), "600 Iface changed nana up")
        self.assertIsNone(self.said("move@/devices/wlan0", *base))
        self.assertIsNone(self.said("add@/x", "SUBSYSTEM=net"))
        self.assertIsNone(self.said("add@/x", "SUBSYSTEM=block"))

    def test_alerts_and_idle_timers_of_android_kernels(self) -> None:
        alert = ("ALERT_NAME=globalAlert", "INTERFACE=wlan0")
        self.assertEqual(self.said("add@/x", "SUBSYSTEM=qlog", *alert), "601 limit alert globalAlert wlan0")
        self.assertIsNone(self.said("add@/x", "SUBSYSTEM=qlog"))
        idle = ("SUBSYSTEM=xt_idletimer", "INTERFACE=1")
        self.assertEqual(self.said("change@/x", *idle, "STATE=active"), "613 IfaceClass active 1")
        self.assertEqual(self.said("change@/x", *idle, "STATE=x", "TIME_NS=5"), "613 IfaceClass idle 1 5")
        self.assertEqual(
            self.said("change@/x", *idle, "STATE=active", "TIME_NS=5", "UID=10001"),
            "613 IfaceClass active 1 5 10001",
        )
        self.assertEqual(
            self.said("change@/x", *idle, "STATE=idle", "TIME_NS=5", "UID=1"), "613 IfaceClass idle 1 5"
        )

    def test_what_is_no_uevent(self) -> None:
        for data in (b"", b"libudev\0\xfe\xed", b"nothing", b"add", b"1@2"):
            self.assertIsNone(events.parse_uevent(data))

    def test_limits_and_oddities(self) -> None:
        many = uevent(
            "add@/x",
            "ACTION=change",
            "DEVPATH=/y",
            "SEQNUM=junk",
            "=",
            "noequals",
            *[f"K{n}=v" for n in range(99)],
        )
        assert many is not None
        self.assertEqual((many.action, many.path, many.sequence), ("change", "/y", 0))
        self.assertEqual(len(many.parameters), events.MAX_UEVENT_PARAMETERS)

    @settings(derandomize=True, deadline=None)
    @given(st.binary(max_size=300))
    def test_garbage(self, data: bytes) -> None:
        event = events.parse_uevent(data)
        if event is not None:
            events.uevent_broadcast(event)


class RouteTests(SynchronousTestCase):
    def route(self, interface: str | None = "wlan0", **changes: Any) -> str | None:
        message = Message(family=10, proto=9, scope=0, type=1, src_len=0, flags=0, dst_len=0, RTA_OIF=3)
        message.update(changes)
        line = events.route_event(message, interface, removed=False)
        return line.text if line is not None else None

    def test_what_is_told(self) -> None:
        self.assertEqual(self.route(), "Route updated ::/0 dev wlan0")
        self.assertEqual(self.route(family=2), "Route updated 0.0.0.0/0 dev wlan0")
        self.assertEqual(self.route(RTA_GATEWAY="fe80::1"), "Route updated ::/0 via fe80::1 dev wlan0")
        self.assertEqual(
            self.route(RTA_DST="2001:db8::", dst_len=32), "Route updated 2001:db8::/32 dev wlan0"
        )
        self.assertEqual(self.route(None, RTA_OIF=0, RTA_GATEWAY="fe80::1"), "Route updated ::/0 via fe80::1")

    def test_what_is_not(self) -> None:
        wrong: list[dict[str, Any]] = [
            {"family": 7},
            {"proto": 4},
            {"scope": 253},
            {"type": 3},
            {"src_len": 8},
            {"flags": 0x200},
            {"dst_len": 64},
        ]
        for changes in wrong:
            self.assertIsNone(self.route(**changes), changes)
        self.assertIsNone(self.route(None))
        self.assertIsNone(self.route(None, RTA_OIF=0))


class OtherTests(SynchronousTestCase):
    def test_links_and_addresses(self) -> None:
        self.assertIsNone(events.link_state(Message(IFLA_IFNAME="lo", flags=0x8)))
        self.assertIsNone(events.link_state(Message(flags=0)))
        address = Message(family=2, prefixlen=24, flags=128, scope=0, IFA_ADDRESS="1.2.3.4")
        self.assertIsNone(events.address_event(address, None, removed=False))
        self.assertIsNone(events.address_event(Message(address, family=7), "x", removed=False))
        line = events.address_event(address, "x", removed=True)
        self.assertEqual(line and line.text, "Address removed 1.2.3.4/24 x 128 0")

    def test_rdnss(self) -> None:
        head = struct.pack("=BBHiBBHI", 10, 0, 24, 7, 134, 0, 0, 0)
        option = struct.pack(">BBHI", 25, 3, 0, 60) + bytes.fromhex("20010db8000000000000000000000053")
        line = events.nduseropt_event(head + option, "wlan0")
        self.assertEqual(line and line.text, "DnsInfo servers wlan0 60 2001:db8::53")
        self.assertEqual(events.nduseropt_index(head), 7)
        self.assertEqual(events.nduseropt_index(b""), 0)
        for body, interface in (
            (head + option, None),
            (head, "x"),
            (head[:8], "x"),
            (head + option[:-1], "x"),
            (head + b"\x19\x02" + option[2:], "x"),
            (head + b"\x1f" + option[1:], "x"),
            (struct.pack("=BBHiBBHI", 2, 0, 24, 7, 134, 0, 0, 0) + option, "x"),
            (head + b"\x19\x05" + option[2:], "x"),
        ):
            self.assertIsNone(events.nduseropt_event(body, interface))

    def test_the_log_of_xt_quota2(self) -> None:
        layout = "@LllI16s16sL32s"
        body = struct.pack(layout, 0, 0, 0, 0, b"", b"wlan0", 0, b"globalAlert")
        line = manager.quota2_line(body + bytes(200))
        self.assertEqual(line and line.text, "limit alert globalAlert wlan0")
        self.assertIsNone(manager.quota2_line(body[:20]))
        self.assertIsNone(manager.quota2_line(struct.pack(layout, 0, 0, 0, 0, b"", b"", 0, b"")))

    def test_strict(self) -> None:
        self.assertEqual(events.strict_cleartext(10001, b"\xab" * 400).text, "10001 " + "ab" * 256)

    def test_what_a_set_element_has_left(self) -> None:
        listing = """table inet t {
            set s {
                type ifname
                timeout 5s
                elements = { "v0" expires 4s696ms,
                             "expires" timeout 1d1h1m1s expires 1d1h1m696ms, "eth0.5" timeout 1s }
            }
        }"""
        self.assertEqual(parse_expiries(listing), [4.696, 90060.696])
        for text in ("", "expires", "elements = { } expires x", " expires 5 "):
            self.assertEqual(parse_expiries(text), [])
