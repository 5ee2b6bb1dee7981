"""Daemons that netd starts: a lease from dnsmasq over a cable, and what pppd, hostapd and clatd are started with."""

from __future__ import annotations

import json
import os
from pathlib import Path

from twisted.internet.threads import deferToThread

from anbox_tw.netd import children
from tests.netd.daemon_case import DaemonTestCase
from tests.support import need_tool

# RFC 2131: DISCOVER, OFFER, REQUEST, ACK; asks for the options that Android's client asks for
DHCP_CLIENT = """
    import json, socket, struct, sys
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
    s.bind(("0.0.0.0", 68))
    s.settimeout(1.0)
    mac = bytes.fromhex(sys.argv[2])
    def say(kind, more=b""):
        fixed = struct.pack(">BBBBIHH16s16s192sI", 1, 1, 6, 0, 0x1234, 0, 0x8000, b"", mac, b"", 0x63825363)
        s.sendto(fixed + bytes([53, 1, kind]) + more + bytes([55, 5, 1, 3, 6, 43, 51, 255]), ("255.255.255.255", 67))
    def hear(kind, again, more=b""):
        for _ in range(20):
            say(again, more)
            try:
                data = s.recv(2000)
            except TimeoutError:
                continue
            options, at = {}, 240
            while at < len(data) and data[at] != 255:
                if data[at]:
                    options[data[at]] = data[at + 2:at + 2 + data[at + 1]]
                    at += data[at + 1] + 1
                at += 1
            if options.get(53) == bytes([kind]) and data[4:8] == struct.pack(">I", 0x1234):
                return data[16:20], options
        raise SystemExit("no answer")
    offered, options = hear(2, 1)
    leased, options = hear(5, 3, bytes([50, 4]) + offered + bytes([54, 4]) + options[54])
    print(json.dumps({"address": socket.inet_ntoa(leased), **{str(k): v.hex() for k, v in options.items()}}))
"""


class DhcpTests(DaemonTestCase):
    async def test_a_tethered_client_gets_a_lease(self) -> None:
        need_tool("dnsmasq")
        other = self.cable()
        other.run("ip addr flush dev v1")
        await self.start()
        await self.expect("tether interface add v0", "200 Tether operation succeeded")
        await self.expect("tether start 10.9.0.50 10.9.0.60", "200 Tether operation succeeded")
        mac = other.ip("link show v1")[0]["address"].replace(":", "")
        said = await deferToThread(other.python, DHCP_CLIENT, "v1", mac)
        lease = json.loads(said)
        self.assertIn(lease["address"], [f"10.9.0.{last}" for last in range(50, 61)])
        self.assertEqual(lease["1"], "ffffff00")
        # the way out and the name server are the interface's own address
        self.assertEqual((lease["3"], lease["6"]), ("0a090001", "0a090001"))
        self.assertEqual(bytes.fromhex(lease["43"]), b"ANDROID_METERED")
        self.assertEqual(int(lease["51"], 16), 3600)


class StartedTests(DaemonTestCase):
    """Programs that are not for every kernel (PPP, nl80211): what is started, how it is told, and that it ends."""

    def setUp(self) -> None:
        super().setUp()
        self.log = Path(self.directory, "started")
        programs = {}
        for name in ("pppd", "hostapd", "clatd"):
            path = Path(self.directory, name)
            path.write_text(f'#!/bin/sh\nprintf "%s|" {name} "$@" >> {self.log}\nexec sleep 600\n')
            path.chmod(0o755)
            programs[name] = str(path)
        real = children.find_tool
        self.patch(children, "find_tool", lambda name: programs.get(name) or real(name))

    async def started(self) -> list[str]:
        """The command line of the last program that was started."""
        await self.until(self.log.exists, "started")
        words = self.log.read_text().removesuffix("|").split("|")
        self.log.unlink()
        return words

    def pids(self) -> list[int]:
        """The programs that run: they have become ``sleep 600``, in the namespace."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.ns.pid:
                try:
                    there = os.readlink(entry / "ns/net") == os.readlink(self.ns.path)
                    if there and (entry / "cmdline").read_bytes() == b"sleep\x00600\x00":
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    async def test_pppd_hostapd_and_clatd(self) -> None:
        self.ns.run("ip link add b0 type bridge")
        await self.start()
        ok, addresses = "200 Pppd operation succeeded", "10.0.0.1 10.0.0.2 8.8.8.8 8.8.4.4"
        await self.expect(f"pppd attach ttyS0 {addresses}", ok)
        self.assertEqual(
            await self.started(),
            ["pppd", "-detach", "/dev/ttyS0", "115200", "10.0.0.1:10.0.0.2"]
            + ["ms-dns", "8.8.8.8", "ms-dns", "8.8.4.4", "lcp-max-configure", "99999"],
        )
        await self.expect(
            f"pppd attach ttyS0 {addresses}", "400 Pppd operation failed (Device or resource busy)"
        )
        self.assertEqual(len(self.pids()), 1)
        await self.expect("pppd detach ttyS0", ok)
        self.assertEqual(self.pids(), [])
        await self.expect("softap set wlan0 IEEE broadcast 11 wpa2-psk password", "214 Ok")
        await self.expect("softap startap", "214 Ok")
        name, flag, _entropy, path = await self.started()
        self.assertEqual((name, flag), ("hostapd", "-e"))
        text = Path(path).read_text()
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        # the key is test vector 1 of IEEE 802.11i, annex H.4
        key = "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
        for line in ("ssid=IEEE", f"wpa_psk={key}", "channel=11", "hw_mode=g", "wpa=2", "rsn_pairwise=CCMP"):
            self.assertIn(line + "\n", text)
        await self.expect("softap startap", "214 Ok")
        await self.expect("softap status", "214 Softap service is running")
        await self.expect("softap stopap", "214 Ok")
        await self.expect("softap status", "214 Softap service is not running")
        self.assertEqual(self.pids(), [])
        await self.expect("clatd start b0", "400 Clatd operation failed")
        await self.expect("network create 100", "200 success")
        await self.expect("network interface add 100 b0", "200 success")
        await self.expect("clatd start b0", "200 Clatd operation succeeded")
        self.assertEqual(await self.started(), ["clatd", "-i", "b0", "-n", "0x64", "-m", "0x30064"])
        await self.expect("clatd status b0", "223 Clatd status: started")
        await self.expect("clatd start b0", "400 Clatd operation failed")
        await self.expect("clatd stop b0", "200 Clatd operation succeeded")
        await self.expect("clatd status b0", "223 Clatd status: stopped")
        # the end of the daemon is theirs
        await self.expect("clatd start b0", "200 Clatd operation succeeded")
        await self.expect(f"pppd attach ttyS1 {addresses}", ok)
        self.assertEqual(len(self.pids()), 2)
        await self.stop()
        self.assertEqual(self.pids(), [])
        self.assertFalse(os.path.exists(path))
