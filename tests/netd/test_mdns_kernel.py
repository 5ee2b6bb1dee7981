"""Service discovery between two namespaces: our mdns socket on one side, python-zeroconf on the other."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import textwrap
from typing import Any

from twisted.internet import reactor

from anbox_tw.netd._framing import Message
from anbox_tw.netd.connector import NativeDaemonConnector
from anbox_tw.netd.errors import DaemonFailed, RequestRefused
from anbox_tw.netd.mdns import escape_service_name
from tests.netd.daemon_case import DaemonTestCase

PEER = """
    import sys, zeroconf
    z = zeroconf.Zeroconf(ip_version=zeroconf.IPVersion.V4Only)
    t = "_http._tcp.local."
    i = zeroconf.ServiceInfo(t, "My TV." + t, port=8080, properties=b"\\x05a=b c", server="tv.local.", parsed_addresses=["10.9.0.2"])
    z.register_service(i)
    def seen(zeroconf, service_type, name, state_change):
        print(state_change.name, name, flush=True)
    b = zeroconf.ServiceBrowser(z, "_ours._tcp.local.", handlers=[seen])
    print("ready", flush=True)
    sys.stdin.readline()
    z.unregister_service(i)
    print("gone", flush=True)
    sys.stdin.readline()
    z.close()
"""


class MdnsTests(DaemonTestCase):
    async def mdns(self) -> None:
        self.heard_mdns: list[Message] = []
        self.client = NativeDaemonConnector(
            reactor, os.path.join(self.directory, "s", "mdns"), on_event=self.heard_mdns.append
        )
        self.client.startService()
        self.addCleanup(self.client.stopService)
        await self.client.when_connected()

    async def say(self, *words: str) -> str:
        try:
            message = await self.client.execute("mdnssd", *words, timeout=20)
        except (DaemonFailed, RequestRefused) as error:
            return f"{error.reply_code} {error.cause.partition(': ')[2].partition(' ')[2]}"
        return f"{message.code} {message.text}"

    async def event(self, start: str) -> str:
        def find() -> str | None:
            return next((t for m in self.heard_mdns if (t := f"{m.code} {m.text}").startswith(start)), None)

        found: str = await self.until(find, start, timeout=20)
        return found

    async def test_errors(self) -> None:
        await self.start()
        await self.mdns()
        bad = "501 Invalid number of arguments to "
        for words, reply in (
            ("", bad + "mdnssd: 1"),
            ("what", "500 Unknown mdnssd cmd"),
            ("discover 1", bad + "mdnssd discover"),
            ("register 1 a b", bad + "mdnssd register"),
            ("resolve 1", bad + "mdnssd resolve"),
            ("sethostname 1", bad + "mdnssd sethostname"),
            ("getaddrinfo 1", bad + "mdnssd getaddrinfo"),
            ("stop-discover", bad + "discover"),
            ("stop-discover 9", "501 Unknown requestId"),
            ("register 1 a _b._tcp 80 !!!!", "501 Could not decode txtRecord"),
            ("discover 1 _b._tcp", "501 Discover request got an error from DNSServiceBrowse"),
            ("resolve 1 a _b._tcp local.", "501 resolveService got an error from DNSServiceResolve"),
        ):
            self.assertEqual(await self.say(*words.split()), reply, words)

    async def test_discover_register_resolve(self) -> None:
        other = self.cable()
        self.ns.run("ip route add 224.0.0.0/4 dev v0")
        other.run("ip route add 224.0.0.0/4 dev v1")
        peer = subprocess.Popen(
            other.command(sys.executable, "-c", textwrap.dedent(PEER)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        def end() -> None:
            peer.kill()
            peer.wait()
            for pipe in (peer.stdin, peer.stdout):
                assert pipe is not None
                pipe.close()

        self.addCleanup(end)
        assert peer.stdout is not None
        assert peer.stdin is not None
        self.assertEqual(peer.stdout.readline(), b"ready\n")
        os.set_blocking(peer.stdout.fileno(), False)
        await self.start()
        await self.mdns()
        self.assertEqual(await self.say("start-service"), "200 Service Started")
        self.assertEqual(await self.say("start-service"), "402 Service already running")
        self.assertEqual(await self.say("discover", "10", "_http._tcp"), "200 Discover operation started")
        self.assertEqual(
            await self.say("discover", "10", "_http._tcp"),
            "501 RequestId already in use during discover call",
        )
        self.assertEqual(await self.event("603 10"), '603 10 "My TV" _http._tcp. local.')
        self.assertEqual(
            await self.say("resolve", "11", "My TV", "_http._tcp", "local."), "200 resolveService started"
        )
        record = base64.b64encode(b"\x05a=b c").decode()
        self.assertEqual(
            await self.event("608 11"),
            f'608 11 "My\\\\032TV._http._tcp.local." "tv.local." 8080 6 "{record}"',
        )
        self.assertEqual(await self.say("getaddrinfo", "12", "tv.local."), "200 getAddrInfo started")
        self.assertEqual(await self.event("612 12"), '612 12 "tv.local." 120 10.9.0.2')
        self.assertEqual(await self.say("sethostname", "13", "Phone"), "200 setHostname started")
        self.assertEqual(await self.event("610 13"), '610 13 "Phone"')
        self.assertEqual(
            await self.say(
                "register", "14", 'A "B"', "_ours._tcp", "99", base64.b64encode(b"\x03x=y").decode()
            ),
            "200 serviceRegister started",
        )
        self.assertEqual(await self.event("606 14"), '606 14 "A \\"B\\""')
        output = b""

        def told() -> Any:
            nonlocal output
            assert peer.stdout is not None
            output += peer.stdout.read() or b""
            return b'Added A "B"._ours._tcp.local.\n' in output

        await self.until(told, "the peer sees ours", timeout=20)
        self.assertEqual(await self.say("stop-service"), "403 Service still in use")
        peer.stdin.write(b"\n")
        peer.stdin.flush()
        self.assertEqual(await self.event("604 10"), '604 10 "My TV" _http._tcp. local.')
        self.assertEqual(await self.say("stop-register", "14"), "200 register stopped")
        self.assertEqual(await self.say("stop-discover", "10"), "200 discover stopped")
        for number, kind in (("11", "resolve"), ("12", "getaddrinfo"), ("13", "sethostname")):
            self.assertEqual(await self.say(f"stop-{kind}", number), f"200 {kind} stopped")
        self.assertEqual(await self.say("stop-service"), "200 Service Stopped")
        # and once more, with requests open when the daemon stops
        self.assertEqual(await self.say("start-service"), "200 Service Started")
        self.assertEqual(await self.say("discover", "20", "_http._tcp"), "200 Discover operation started")
        await self.client.stopService()
        await self.stop()

    def test_escaping(self) -> None:
        self.assertEqual(escape_service_name("a b.c\\d"), "a\\032b\\.c\\\\d")
