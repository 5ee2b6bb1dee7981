"""Name servers per network, and bionic's lookups, against an authoritative server in a namespace."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from anbox_tw.netd import resolver as resolver_module
from anbox_tw.netd._wire import AddressEntry, HostEntry, WireError, decode_address_entries, decode_host_entry
from tests.netd.daemon_case import DaemonTestCase
from tests.netd.kernel import Space
from tests.support import REPOSITORY

SERVER = """
    import sys
    from twisted.internet import reactor
    from twisted.names import dns, server, authority, common
    from twisted.internet import defer
    asked = []
    class Zone(authority.FileAuthority):
        def __init__(self):
            common.ResolverBase.__init__(self); self._cache = {}
            soa = dns.Record_SOA(mname="ns.example.org", rname="root.example.org", serial=1, refresh=60, minimum=60, expire=60, retry=60, ttl=60)
            self.soa = (b"example.org", soa)
            A, AAAA, C = dns.Record_A, dns.Record_AAAA, dns.Record_CNAME
            self.records = {
                b"example.org": [soa],
                b"host.example.org": [A("10.50.0.1", ttl=60), A("10.50.0.2", ttl=60), AAAA("2001:db8::50", ttl=60)],
                b"v4.example.org": [A("10.50.0.4", ttl=60)],
                b"www.example.org": [C("alias.example.org", ttl=60)],
                b"alias.example.org": [C("v4.example.org", ttl=60)],
                b"short.example.org": [A("10.50.0.9", ttl=1)],
                b"big.example.org": [A("10.60.%d.%d" % (n // 250, n % 250 + 1), ttl=60) for n in range(300)],
            }
    class Reverse(authority.FileAuthority):
        def __init__(self):
            common.ResolverBase.__init__(self); self._cache = {}
            soa = dns.Record_SOA(mname="ns.example.org", rname="root.example.org", serial=1, refresh=60, minimum=60, expire=60, retry=60, ttl=60)
            self.soa = (b"50.10.in-addr.arpa", soa)
            self.records = {b"50.10.in-addr.arpa": [soa], b"4.0.50.10.in-addr.arpa": [dns.Record_PTR("v4.example.org", ttl=60)]}
    class Factory(server.DNSServerFactory):
        def handleQuery(self, message, protocol, address):
            q = message.queries[0]
            print(q.name.name.decode(), q.type, address[0] if address else "tcp", flush=True)
            return server.DNSServerFactory.handleQuery(self, message, protocol, address)
        def sendReply(self, protocol, message, address):
            if address is not None and message.queries[0].name.name.startswith(b"big"):
                message.trunc, message.answers = 1, []
            return server.DNSServerFactory.sendReply(self, protocol, message, address)
    f = Factory([Zone(), Reverse()])
    reactor.listenUDP(53, dns.DNSDatagramProtocol(f), interface=sys.argv[1])
    reactor.listenTCP(53, f, interface=sys.argv[1])
    reactor.callWhenRunning(lambda: print("ready", flush=True))
    reactor.run()
"""


class Reader(Protocol):
    """Collects what the daemon answers, until it is whole."""

    def __init__(self, complete: Any) -> None:
        self._complete = complete
        self.data = b""
        self.lost = False
        self.done: Deferred[Any] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        found = self._complete(self.data)
        if found is not None and not self.done.called:
            self.done.callback(found)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        if not self.done.called:
            self.done.errback(reason)


def whole(data: bytes, decode: Any) -> Any:
    """The reply, as (code, value), when it is whole."""
    code = data[:4]
    if code == b"222\0":
        try:
            return 222, decode(data[4:])[0]
        except WireError:
            return None
    if code == b"401\0" and len(data) >= 8:
        size = struct.unpack_from(">I", data, 4)[0]
        if len(data) >= 8 + size:
            return 401, (struct.unpack("=i", data[8:12])[0] if size else None)
        return None
    if data.endswith(b"\0") and len(data) > 4:
        return int(data[:3]), data[4:-1].decode()
    return None


class DnsCase(DaemonTestCase):
    """A server of example.org behind a cable, and what bionic asks."""

    def serve(self, space: Space, address: str) -> Any:
        # twisted is where this Python has it
        words = space.command(sys.executable, "-c", textwrap.dedent(SERVER), address)
        server = subprocess.Popen(
            words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
        )
        assert server.stdout is not None
        self.assertEqual(server.stdout.readline(), b"ready\n")
        os.set_blocking(server.stdout.fileno(), False)

        def end() -> None:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()

        self.addCleanup(end)
        return server

    def asked(self, server: Any) -> list[str]:
        data = server.stdout.read() or b""
        return [line for line in data.decode().splitlines() if line]

    async def ask(self, line: str, decode: Any = decode_address_entries) -> Any:
        endpoint = UNIXClientEndpoint(reactor, os.path.join(self.directory, "s", "dnsproxyd"))
        reader = await connectProtocol(endpoint, Reader(lambda data: whole(data, decode)))
        try:
            reader.transport.write(line.encode() + b"\0")
            return await reader.done.addTimeout(30, reactor)
        finally:
            reader.done = Deferred()
            reader.done.callback(None)
            reader.transport.loseConnection()
            await self.until(lambda: reader.lost, "closed")

    async def up(self, **options: Any) -> Any:
        other = self.cable()
        other.run("ip addr add 10.9.0.3/24 dev v1")
        server = self.serve(other, "10.9.0.2")
        self.other = other
        await self.start(**options)
        await self.expect("network create 100", "200 success")
        await self.expect("network interface add 100 v0", "200 success")
        await self.expect("network route add 100 v0 10.9.0.0/24", "200 success")
        await self.expect("network route add 100 v0 10.50.0.0/16 10.9.0.2", "200 success")
        await self.expect("network default set 100", "200 success")
        await self.expect("resolver setnetdns 100 example.org 10.9.0.2", "200 Resolver command succeeded")
        return server


class DnsTests(DnsCase):
    async def test_lookups(self) -> None:
        server = await self.up()
        stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP)
        code, entries = await self.ask("getaddrinfo host.example.org 80 0 2 1 0 100")
        self.assertEqual(code, 222)
        self.assertEqual(
            sorted(entries, key=lambda e: e.address),
            [AddressEntry(0, 2, *stream, f"10.50.0.{n}", 80) for n in (1, 2)],
        )
        self.assertEqual(self.asked(server), ["host.example.org 1 10.9.0.1"])
        # again: from the cache
        await self.ask("getaddrinfo host.example.org 80 0 2 1 0 100")
        self.assertEqual(self.asked(server), [])
        await self.expect("resolver flushnet 100", "200 Resolver command succeeded")
        code, entries = await self.ask("getaddrinfo host.example.org ^ -1 -1 -1 -1 0")
        self.assertEqual({e.family for e in entries}, {socket.AF_INET, socket.AF_INET6})
        self.assertEqual({e.socktype for e in entries}, {1, 2, 3})
        # nothing leads to 2001:db8::, so the others are first
        self.assertEqual(entries[0].family, socket.AF_INET)
        self.assertEqual(len(self.asked(server)), 2)
        # search domain, canonical name along two aliases
        code, entries = await self.ask("getaddrinfo www ^ 2 2 1 0 100")
        self.assertEqual(entries, [AddressEntry(2, 2, *stream, "10.50.0.4", 0, "v4.example.org")])
        self.assertEqual(self.asked(server)[0], "www.example.org 1 10.9.0.1")
        # nobody of that name; the first answer is remembered
        self.assertEqual(await self.ask("getaddrinfo nope.example.org ^ 0 2 1 0 100"), (401, 7))
        self.assertEqual(await self.ask("getaddrinfo v4.example.org ^ 0 10 1 0 100"), (401, 7))
        # an answer too large for UDP
        code, entries = await self.ask("getaddrinfo big.example.org ^ 0 2 1 0 100")
        self.assertEqual((code, len(entries)), (222, 300))
        self.assertIn("big.example.org 1 tcp", self.asked(server))
        # numbers need nobody
        self.assertEqual(
            (await self.ask("getaddrinfo 1.2.3.4 53 4 0 2 0 0"))[1],
            [AddressEntry(4, 2, 2, 17, "1.2.3.4", 53)],
        )
        self.assertEqual(
            (await self.ask("getaddrinfo ::1 http 0 0 1 0 0"))[1], [AddressEntry(0, 10, *stream, "::1", 80)]
        )
        self.assertEqual(
            [e.address for e in (await self.ask("getaddrinfo ^ 80 1 0 1 0 0"))[1]], ["::", "0.0.0.0"]
        )
        for line, code in (
            ("getaddrinfo ^ ^ 0 0 0 0 0", 8),
            ("getaddrinfo name.example.org ^ 4 0 0 0 0", 8),
            ("getaddrinfo host ^ 4096 0 0 0 0", 3),
            ("getaddrinfo ^ 80 2 0 0 0 0", 3),
            ("getaddrinfo host ^ 0 77 0 0 0", 5),
            ("getaddrinfo host ^ 0 0 77 0 0", 10),
            ("getaddrinfo host ^ 0 0 1 17 0", 10),
            ("getaddrinfo host nosuchservice 0 0 1 0 0", 9),
            ("getaddrinfo host 99999 0 0 1 0 0", 9),
            ("getaddrinfo host http 8 0 1 0 0", 8),
            ("getaddrinfo 1.2.3.4 ^ 0 10 1 0 0", 5),
            ("getaddrinfo bad..name ^ 0 2 1 0 100", 7),
            ("getaddrinfo host.example.org ^ 0 2 1 0 777", 222),
        ):
            answer = await self.ask(line)
            self.assertEqual(answer[1] if answer[0] == 401 else answer[0], code, line)
        self.assertEqual(
            await self.ask("getaddrinfo host"), (501, "Invalid number of arguments to getaddrinfo: 2")
        )

    async def test_hosts(self) -> None:
        server = await self.up()
        code, entry = await self.ask("gethostbyname 100 www.example.org 2", decode_host_entry)
        self.assertEqual(
            entry, HostEntry("v4.example.org", ("www.example.org", "alias.example.org"), 2, ("10.50.0.4",))
        )
        code, entry = await self.ask("gethostbyname 100 host.example.org 10", decode_host_entry)
        self.assertEqual(entry.addresses, ("2001:db8::50",))
        code, entry = await self.ask("gethostbyname 0 10.7.7.7 2", decode_host_entry)
        self.assertEqual(entry.addresses, ("10.7.7.7",))
        code, entry = await self.ask("gethostbyaddr 10.50.0.4 4 2 100", decode_host_entry)
        self.assertEqual(entry, HostEntry("v4.example.org", (), 2, ("10.50.0.4",)))
        # an alias is followed when the server does not do that
        self.assertEqual(
            self.asked(server),
            [
                "www.example.org 1 10.9.0.1",
                "alias.example.org 1 10.9.0.1",
                "host.example.org 28 10.9.0.1",
                "4.0.50.10.in-addr.arpa 12 10.9.0.1",
            ],
        )
        for line, answer in (
            ("gethostbyname 100 nope.example.org 2", (401, None)),
            ("gethostbyname 100 ^ 2", (401, None)),
            ("gethostbyname 100 host 77", (401, None)),
            ("gethostbyname 100 host", (501, "Invalid number of arguments to gethostbyname: 3")),
            ("gethostbyaddr 10.50.0.99 4 2 100", (401, None)),
            ("gethostbyaddr nonsense 4 2 100", (400, 'inet_pton("nonsense") failed Invalid argument')),
            (
                "gethostbyaddr ::1 4 77 100",
                (400, 'inet_pton("::1") failed Address family not supported by protocol'),
            ),
            ("gethostbyaddr 1.2.3.4", (501, "Invalid number of arguments to gethostbyaddr: 2")),
            ("what", (500, "Command not recognized")),
        ):
            self.assertEqual(await self.ask(line, decode_host_entry), answer, line)

    async def test_a_server_that_never_answers(self) -> None:
        self.patch(resolver_module, "TIMEOUTS_S", (0.3, 0.3))
        await self.up()
        # 10.9.0.3 is there and has nobody on port 53: the kernel says so at once
        await self.expect("resolver setnetdns 100 x 10.9.0.3", "200 Resolver command succeeded")
        began = time.monotonic()
        self.assertEqual(await self.ask("getaddrinfo host.example.org ^ 0 2 1 0 100"), (401, 2))
        self.assertLess(time.monotonic() - began, 0.3)
        # what is sent to this one vanishes
        hole = self.other.python(
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); print('made')"
        )
        self.assertEqual(hole, "made")
        self.other.run("nft add table ip t")
        self.other.run("nft add chain ip t c { type filter hook input priority 0 ; }")
        self.other.run("nft add rule ip t c ip daddr 10.9.0.3 drop")
        began = time.monotonic()
        self.assertEqual(await self.ask("getaddrinfo other.example.org ^ 0 2 1 0 100"), (401, 2))
        took = time.monotonic() - began
        # two rounds for the name, two for it with the search domain
        self.assertGreater(took, 1.1)
        self.assertLess(took, 4)
        # with a second server it takes the first round of the first
        await self.expect("resolver setnetdns 100 x 10.9.0.3 10.9.0.2", "200 Resolver command succeeded")
        began = time.monotonic()
        self.assertEqual((await self.ask("getaddrinfo v4.example.org ^ 0 2 1 0 100"))[0], 222)
        self.assertGreater(time.monotonic() - began, 0.25)

    async def test_a_bad_server_is_passed_over_when_it_has_failed_enough(self) -> None:
        self.patch(resolver_module, "TIMEOUTS_S", (0.5, 0.5))
        await self.up()
        self.assertEqual(
            await self.tell(
                "resolver", "setnetdns", "100", "", "10.9.0.3", "10.9.0.2", "--params", "1800 50 1 8"
            ),
            ["200 Resolver command succeeded"],
        )
        assert self.netd.controllers is not None
        resolver = self.netd.controllers.resolver
        self.assertEqual((await self.ask("getaddrinfo v4.example.org. ^ 0 2 1 0 100"))[0], 222)
        self.assertEqual(resolver._usable(resolver._network(100)), ["10.9.0.2"])

    async def test_two_networks_have_their_own_servers(self) -> None:
        await self.up()
        second = self.space()
        self.veth(self.ns, "w0", second, "w1")
        self.ns.run("ip addr add 10.9.0.1/24 dev w0")
        second.run("ip addr add 10.9.0.2/24 dev w1")
        server = self.serve(second, "10.9.0.2")
        await self.expect("network create 200", "200 success")
        await self.expect("network interface add 200 w0", "200 success")
        await self.expect("network route add 200 w0 10.9.0.0/24", "200 success")
        # the same address, over another cable: only the mark tells them apart
        await self.expect("resolver setnetdns 200 example.org 10.9.0.2", "200 Resolver command succeeded")
        self.assertEqual((await self.ask("getaddrinfo v4.example.org ^ 0 2 1 0 200"))[0], 222)
        self.assertEqual(self.asked(server), ["v4.example.org 1 10.9.0.1"])

    async def test_the_older_layout(self) -> None:
        await self.up(legacy_dns=True)
        done: Deferred[bytes] = Deferred()
        size = 4 + 4 + 32 + 4 + 16 + 4 + 4

        def complete(data: bytes) -> Any:
            return data if len(data) >= size else None

        endpoint = UNIXClientEndpoint(reactor, os.path.join(self.directory, "s", "dnsproxyd"))
        reader = await connectProtocol(endpoint, Reader(complete))
        reader.transport.write(b"getaddrinfo v4.example.org 80 0 2 1 0 100\0")
        data = await reader.done.addTimeout(10, reactor)
        self.assertEqual(data[:8], b"222\0" + struct.pack(">I", 32))
        self.assertEqual(struct.unpack_from("=4i", data, 8), (0, 2, 1, 6))
        self.assertEqual(struct.unpack_from(">I", data, 40), (16,))
        self.assertEqual(
            data[44:60], struct.pack("=H", 2) + struct.pack(">H", 80) + bytes([10, 50, 0, 4]) + bytes(8)
        )
        self.assertEqual(data[60:], bytes(8))
        reader.transport.loseConnection()
        await self.until(lambda: reader.lost, "closed")
        done.cancel()
        done.addErrback(lambda _: None)

    async def test_many_lookups_at_once_and_garbage(self) -> None:
        await self.up()
        answers = [self.ask(f"getaddrinfo n{n}.example.org ^ 0 2 1 0 100") for n in range(60)]
        for answer in [Deferred.fromCoroutine(a) for a in answers]:
            self.assertEqual(await answer, (401, 7))
        endpoint = UNIXClientEndpoint(reactor, os.path.join(self.directory, "s", "dnsproxyd"))
        reader = await connectProtocol(
            endpoint, Reader(lambda data: data if data.count(b"\0") >= 3 else None)
        )
        reader.transport.write(b"\xff\xfe\0" + b"getaddrinfo " + b"x" * 6000 + b"\0" + b"\0")
        data = await reader.done.addTimeout(10, reactor)
        self.assertEqual(
            data,
            b"500 Command not recognized\x00500 Command too large for buffer\x00500 Command not recognized\0",
        )
        reader.transport.loseConnection()
        await self.until(lambda: reader.lost, "closed")
