"""The resolver's files, cache and parsing, without a network."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.netd import resolver as module
from anbox_tw.netd.resolver import LookupFailed, Resolver, ResolverParameters


def answer(query: dns.Message, *records: dns.RRHeader, code: int = 0) -> dns.Message:
    message = dns.Message(id=query.id, answer=1, rCode=code)
    message.queries = list(query.queries)
    message.answers = list(records)
    return message


def question(name: bytes = b"a.b", kind: int = dns.A) -> dns.Message:
    message = dns.Message(id=7, recDes=1)
    message.queries = [dns.Query(name, kind, dns.IN)]
    return message


class FileTests(SynchronousTestCase):
    def write(self, text: str) -> str:
        path: str = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_resolv_conf_is_for_what_is_outside_any_network(self) -> None:
        path = self.write(
            "# x\nnameserver 9.9.9.9\nnameserver nine\nnameserver ::1\nsearch a.b. c.d\noptions x\n"
        )
        resolver = Resolver(Clock(), system=path, hosts=None)
        self.assertEqual(resolver.servers(0), ["9.9.9.9", "::1"])
        self.assertEqual(resolver.domains(0), ["a.b", "c.d"])
        self.assertEqual(resolver.servers(100), [])
        self.assertEqual(Resolver(Clock(), system="/no/such/file").servers(0), [])

    def test_hosts(self) -> None:
        path = self.write("127.0.0.1 localhost me # not this\n::1 localhost\nbad localhost\n")
        resolver = Resolver(Clock(), hosts=path)
        self.assertEqual(resolver.lookup_hosts("LOCALHOST"), ["127.0.0.1", "::1"])
        self.assertEqual(resolver.lookup_hosts("not"), [])
        self.assertEqual(Resolver(Clock(), hosts="/no/such").lookup_hosts("localhost"), [])
        self.assertEqual(Resolver(Clock(), hosts=None).lookup_hosts("localhost"), [])

    def test_configuring(self) -> None:
        resolver = Resolver(Clock(), hosts=None)
        self.assertTrue(
            resolver.configure(1, ["x.", "."], ["fe80::1%eth0", "1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"])
        )
        self.assertEqual(resolver.servers(1), ["fe80::1%eth0", "1.1.1.1", "2.2.2.2", "3.3.3.3"])
        self.assertEqual(resolver.domains(1), ["x"])
        self.assertFalse(resolver.configure(1, [], []))
        self.patch(module, "MAX_NETWORKS", 1)
        self.assertFalse(resolver.configure(2, [], ["1.1.1.1"]))
        resolver.flush(9)
        self.assertEqual(ResolverParameters.parse("70000 1 2 300"), ResolverParameters(4464, 1, 2, 44))
        self.assertIsNone(ResolverParameters.parse("1 2 3 x"))

    def test_no_servers(self) -> None:
        resolver = Resolver(Clock(), hosts=None, system=None)
        work = resolver.lookup(5, "a.b", dns.A)
        self.assertRaises(LookupFailed, work.send, None)
        resolver.stop()


class ParsingTests(SynchronousTestCase):
    def test_only_the_answer_to_the_question(self) -> None:
        query = question()
        good = answer(query, dns.RRHeader(b"a.b", dns.A, dns.IN, 60, dns.Record_A("1.2.3.4")))
        self.assertIsNotNone(module._parse(good.toStr(), query))
        for wrong in (
            answer(question(b"c.d")),
            answer(question(kind=dns.AAAA)),
            question(),
        ):
            self.assertIsNone(module._parse(wrong.toStr(), query))
        other = answer(query)
        other.id = 8
        self.assertIsNone(module._parse(other.toStr(), query))

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.binary(max_size=200))
    def test_garbage(self, data: bytes) -> None:
        module._parse(data, question())
        module._parse(b"\0\x07\x81\x80\0\1\0\1\0\0\0\0\1a\1b\0\0\1\0\1" + data, question())

    def test_circles_of_aliases_end(self) -> None:
        def alias(a: bytes, b: bytes) -> dns.RRHeader:
            return dns.RRHeader(a, dns.CNAME, dns.IN, 60, dns.Record_CNAME(b))

        message = answer(question(), alias(b"a.b", b"c.d"), alias(b"c.d", b"a.b"))
        self.assertEqual(module._extract(message, "a.b", dns.A), (None, None))
        message = answer(question(), alias(b"a.b", b"c.d"))
        records, target = module._extract(message, "a.b", dns.A)
        self.assertIsNone(records)
        self.assertEqual(target and target.canonical_name, "c.d")

    def test_how_long_a_no_is_believed(self) -> None:
        message = answer(question(), code=dns.ENAME)
        self.assertEqual(module._negative_ttl(message), 0)
        soa: Any = dns.Record_SOA(b"n", b"r", minimum=5, ttl=60)
        message.authority = [dns.RRHeader(b"b", dns.SOA, dns.IN, 60, soa)]
        self.assertEqual(module._negative_ttl(message), 5)
