"""Name servers per network: what ``resolver setnetdns`` sets, and ``dnsproxyd`` asks.

Messages are twisted.names'. The asking is done here, for what its resolver cannot do: sockets with a network's
mark (or in another namespace), answers only from the server that was asked, an unreachable server told by the
kernel at once, servers that fail passed over, and a cache for each network.
"""

from __future__ import annotations

import ipaddress
import random
import re
import socket
from collections import OrderedDict, deque
from typing import Any, Final

from attrs import Factory, define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, DatagramProtocol
from twisted.logger import Logger
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure

from anbox_tw.errors import NetdError

__all__ = ["Answer", "LookupFailed", "Records", "Resolver", "ResolverParameters"]

# <sys/socket.h>: SO_MARK
_SO_MARK: Final = 36
# resolv_private.h: MAXNS, MAXDNSRCH
MAX_SERVERS: Final = 4
MAX_DOMAINS: Final = 6
# Each server is given this long, then, in a second round, that long. (The original: 5 s, twice.)
TIMEOUTS_S: Final = (2.5, 5.0)
TCP_TIMEOUT_S: Final = 5.0
# resolv_cache.c keeps 640 answers
MAX_CACHE_ENTRIES: Final = 640
MAX_TTL_S: Final = 86400
# an answer without a SOA, or one whose negative TTL is longer, is believed so long (RFC 2308 allows three hours)
MAX_NEGATIVE_TTL_S: Final = 300
MAX_NETWORKS: Final = 1000
MAX_CNAMES: Final = 16
DNS_PORT: Final = 53


class LookupFailed(NetdError):
    """A name could not be looked up.

    Attributes:
        again: whether it may work later: no server answered, or they failed.
    """

    def __init__(self, cause: str, *, again: bool) -> None:
        super().__init__(cause)
        self.again = again


@frozen
class ResolverParameters:
    """Which servers are passed over (``setnetdns --params``)."""

    sample_validity: int = 1800
    success_threshold: int = 25
    min_samples: int = 8
    max_samples: int = 64

    @classmethod
    def parse(cls, text: str) -> ResolverParameters | None:
        """From four unsigned numbers with spaces between; None when they are not."""
        words = text.split()
        if len(words) < 4 or not all(re.fullmatch(r"[0-9]{1,5}", word) for word in words[:4]):
            return None
        numbers = [int(word) for word in words[:4]]
        return cls(numbers[0] & 0xFFFF, *(number & 0xFF for number in numbers[1:]))


@frozen
class Records:
    """What was found: addresses or names, the name they belong to, and for how long they are good (seconds)."""

    values: tuple[str, ...]
    canonical_name: str
    ttl: int
    aliases: tuple[str, ...] = ()


@define
class Answer:
    """A cached answer: records, or None for a name that is known not to have them."""

    records: Records | None
    expires: float


@define
class _Network:
    servers: list[str] = Factory(list)
    domains: list[str] = Factory(list)
    parameters: ResolverParameters = field(factory=ResolverParameters)
    cache: OrderedDict[tuple[str, int], Answer] = field(factory=OrderedDict)
    samples: dict[str, deque[tuple[float, bool]]] = field(factory=dict)


class _Datagram(DatagramProtocol):
    """One question over UDP."""

    def __init__(self, server: str, query: dns.Message, mark: int) -> None:
        self._server = server
        self._query = query
        self._mark = mark
        self.done: Deferred[dns.Message] = Deferred()

    def startProtocol(self) -> None:
        transport: Any = self.transport
        if self._mark:
            try:
                transport.socket.setsockopt(socket.SOL_SOCKET, _SO_MARK, self._mark)
            except PermissionError:
                # without CAP_NET_ADMIN the question goes the way of our own process
                pass
        try:
            transport.connect(self._server, DNS_PORT)
            transport.write(self._query.toStr())
        except OSError as error:
            self._fail(LookupFailed(f"{self._server}: {error.strerror}", again=True))

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        message = _parse(datagram, self._query)
        if message is not None and not self.done.called:
            self.done.callback(message)

    def connectionRefused(self) -> None:
        self._fail(LookupFailed(f"{self._server} refuses", again=True))

    def stopProtocol(self) -> None:
        # epoll tells an ICMP error as the end of the socket; after stopListening() the answer is there already
        self._fail(LookupFailed(f"{self._server} cannot be reached", again=True))

    def _fail(self, error: LookupFailed) -> None:
        if not self.done.called:
            self.done.errback(error)


class _Stream(Int16StringReceiver):
    """One question over TCP."""

    def __init__(self, query: dns.Message, done: Deferred[dns.Message]) -> None:
        self._query = query
        self._done = done

    def connectionMade(self) -> None:
        self.sendString(self._query.toStr())

    def stringReceived(self, string: bytes) -> None:
        message = _parse(string, self._query)
        if message is not None and not self._done.called:
            self._done.callback(message)

    def connectionLost(self, reason: Any = None) -> None:
        if not self._done.called:
            self._done.errback(LookupFailed("the server closed the connection", again=True))


class _StreamFactory(ClientFactory):
    noisy = False

    def __init__(self, query: dns.Message) -> None:
        self._query = query
        self.done: Deferred[dns.Message] = Deferred()

    def buildProtocol(self, addr: Any) -> _Stream:
        return _Stream(self._query, self.done)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        if not self.done.called:
            self.done.errback(LookupFailed(f"over TCP: {reason.getErrorMessage()}", again=True))


def _parse(data: bytes, query: dns.Message) -> dns.Message | None:
    """A reply to ``query``, or None: rubbish, or an answer to something else."""
    message = dns.Message()
    try:
        message.fromStr(data)
    except Exception:
        # whatever a hostile server can make the parser raise
        return None
    if message.id != query.id or not message.answer or not message.queries:
        return None
    asked, told = query.queries[0], message.queries[0]
    if told.type != asked.type or told.name.name.lower() != asked.name.name.lower():
        return None
    return message


class Resolver:
    """The name servers of all networks.

    Attributes:
        hosts: path of a hosts file that is read first, or None.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, *, hosts: str | None = "/etc/hosts", system: str | None = "/etc/resolv.conf"
    ) -> None:
        """Make a resolver without networks.

        Args:
            reactor: a `NamespacedReactor` asks from that namespace.
            hosts: of the form of /etc/hosts.
            system: a resolv.conf whose servers answer for network 0 while that has none of its own.
        """
        self._reactor = reactor
        self._networks: dict[int, _Network] = {}
        self._system = system
        self._pending: dict[tuple[int, str, int, int], list[Deferred[Records | None]]] = {}
        self._open: set[Deferred[Any]] = set()
        self.hosts = hosts

    # -- what the commands set

    def configure(
        self,
        net_id: int,
        domains: list[str],
        servers: list[str],
        parameters: ResolverParameters | None = None,
    ) -> bool:
        """Set a network's servers; its cache is emptied when they change.

        Returns:
            Whether they can be: false when there are none, or one is no address.
        """
        good = []
        for server in servers[:MAX_SERVERS]:
            try:
                good.append(
                    str(ipaddress.ip_address(server.partition("%")[0])) + "".join(server.partition("%")[1:])
                )
            except ValueError:
                return False
        if not good or (net_id not in self._networks and len(self._networks) >= MAX_NETWORKS):
            return False
        network = self._networks.setdefault(net_id, _Network())
        domains = [domain.strip(".") for domain in domains if domain.strip(".")][:MAX_DOMAINS]
        if network.servers != good:
            network.cache.clear()
            network.samples.clear()
        network.servers, network.domains = good, domains
        network.parameters = parameters or ResolverParameters()
        return True

    def clear(self, net_id: int) -> None:
        """Forget a network."""
        self._networks.pop(net_id, None)

    def flush(self, net_id: int) -> None:
        """Forget a network's cached answers."""
        network = self._networks.get(net_id)
        if network is not None:
            network.cache.clear()

    def servers(self, net_id: int) -> list[str]:
        """The servers of a network."""
        return list(self._network(net_id).servers)

    def domains(self, net_id: int) -> list[str]:
        """The search domains of a network."""
        return list(self._network(net_id).domains)

    def cached(self, net_id: int) -> int:
        """How many answers a network's cache holds."""
        return len(self._network(net_id).cache)

    def _network(self, net_id: int) -> _Network:
        found = self._networks.get(net_id)
        if found is not None:
            return found
        if net_id == 0 and self._system is not None:
            return self._read_system(self._system)
        return _Network()

    def _read_system(self, path: str) -> _Network:
        network = _Network()
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read(65536).splitlines()
        except OSError:
            return network
        for line in lines:
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver" and len(network.servers) < MAX_SERVERS:
                try:
                    network.servers.append(str(ipaddress.ip_address(words[1])))
                except ValueError:
                    continue
            elif words and words[0] in ("search", "domain"):
                network.domains = [word.strip(".") for word in words[1 : MAX_DOMAINS + 1]]
        return network

    def lookup_hosts(self, name: str) -> list[str]:
        """The addresses of a name in the hosts file."""
        if self.hosts is None:
            return []
        found = []
        try:
            with open(self.hosts, encoding="utf-8", errors="replace") as file:
                for line in file:
                    words = line.partition("#")[0].split()
                    if len(words) > 1 and name.lower() in (word.lower() for word in words[1:]):
                        found.append(words[0])
        except OSError:
            return []
        good = []
        for address in found:
            try:
                good.append(str(ipaddress.ip_address(address)))
            except ValueError:
                continue
        return good

    # -- lookups

    async def lookup(self, net_id: int, name: str, kind: int, mark: int = 0) -> Records | None:
        """Look a name up as it is, without search domains.

        Args:
            net_id: whose servers are asked.
            name: fully qualified.
            kind: ``twisted.names.dns.A``, ``AAAA`` or ``PTR``.
            mark: for the sockets.

        Returns:
            The records, or None when the name has none.

        Raises:
            LookupFailed: nobody answered, or all failed.
        """
        network = self._network(net_id)
        key = (name.lower().rstrip("."), kind)
        cached = network.cache.get(key)
        if cached is not None and cached.expires > self._reactor.seconds():
            network.cache.move_to_end(key)
            return cached.records
        joint = (net_id, *key, mark)
        if joint in self._pending:
            waiter: Deferred[Records | None] = Deferred(
                lambda d: self._pending[joint].remove(d) if d in self._pending.get(joint, ()) else None
            )
            self._pending[joint].append(waiter)
            return await waiter
        self._pending[joint] = []
        result: Records | Failure | None = None
        try:
            result = await self._ask(network, key[0], kind, mark, net_id)
            return result
        except BaseException as error:
            # whoever waits with us is not cancelled with us, but the question is gone
            gone = (
                error
                if isinstance(error, LookupFailed)
                else LookupFailed("the lookup was given up", again=True)
            )
            result = Failure(gone)
            raise
        finally:
            for each in self._pending.pop(joint):
                each.callback(result) if not isinstance(result, Failure) else each.errback(result)

    async def _follow(
        self, network: _Network, name: str, kind: int, mark: int, net_id: int, target: Records, depth: int
    ) -> Records | None:
        if depth >= MAX_CNAMES:
            raise LookupFailed(f"{name} has too many aliases", again=False)
        found = await self._ask(network, target.canonical_name, kind, mark, net_id, depth + 1)
        if found is None:
            return None
        aliases = (*target.aliases, *found.aliases)
        return Records(found.values, found.canonical_name, min(found.ttl, target.ttl), aliases)

    async def _ask(
        self, network: _Network, name: str, kind: int, mark: int, net_id: int, depth: int = 0
    ) -> Records | None:
        servers = self._usable(network)
        if not servers:
            raise LookupFailed(f"network {net_id} has no name servers", again=True)
        last = LookupFailed("no name server answers", again=True)
        for timeout in TIMEOUTS_S:
            for server in servers:
                try:
                    message = await self._ask_one(server, name, kind, mark, timeout)
                except LookupFailed as error:
                    last = error
                    self._sample(network, server, False)
                    continue
                if message.rCode not in (dns.OK, dns.ENAME):
                    last = LookupFailed(f"{server} answers with code {message.rCode}", again=True)
                    self._sample(network, server, False)
                    continue
                self._sample(network, server, True)
                records, target = _extract(message, name, kind)
                if records is None and target is not None:
                    # a server that does not recurse tells of the alias and leaves the rest to us
                    records = await self._follow(network, name, kind, mark, net_id, target, depth)
                self._remember(network, name, kind, message, records)
                return records
        raise last

    def _usable(self, network: _Network) -> list[str]:
        now, wanted = self._reactor.seconds(), network.parameters
        good = []
        for server in network.servers:
            recent = [ok for at, ok in network.samples.get(server, ()) if now - at < wanted.sample_validity]
            enough = len(recent) >= max(1, wanted.min_samples)
            if not enough or sum(recent) * 100 >= wanted.success_threshold * len(recent):
                good.append(server)
        # when all look bad, all are asked
        return good or list(network.servers)

    def _sample(self, network: _Network, server: str, ok: bool) -> None:
        samples = network.samples.setdefault(server, deque(maxlen=max(1, network.parameters.max_samples)))
        samples.append((self._reactor.seconds(), ok))

    def _remember(
        self, network: _Network, name: str, kind: int, message: dns.Message, records: Records | None
    ) -> None:
        ttl = records.ttl if records is not None else _negative_ttl(message)
        if ttl > 0:
            network.cache[name, kind] = Answer(records, self._reactor.seconds() + ttl)
            network.cache.move_to_end((name, kind))
            while len(network.cache) > MAX_CACHE_ENTRIES:
                network.cache.popitem(last=False)

    async def _ask_one(self, server: str, name: str, kind: int, mark: int, timeout: float) -> dns.Message:
        query = dns.Message(id=random.SystemRandom().randrange(65536), recDes=1)
        query.queries = [dns.Query(name.encode("ascii"), kind, dns.IN)]
        protocol = _Datagram(server, query, mark)
        interface = "::" if ":" in server else "0.0.0.0"  # the kernel chooses by the route
        port = self._reactor.listenUDP(0, protocol, interface=interface)
        try:
            message = await self._timed(protocol.done, timeout, server)
        finally:
            port.stopListening()
        if not message.trunc:
            return message
        factory = _StreamFactory(query)
        connector = self._reactor.connectTCP(server, DNS_PORT, factory, timeout=TCP_TIMEOUT_S)
        self._set_mark(connector, mark)
        try:
            return await self._timed(factory.done, TCP_TIMEOUT_S, server)
        finally:
            connector.disconnect()

    def _set_mark(self, connector: Any, mark: int) -> None:
        # the socket is there, its connect() is called in the next turn of the reactor
        handle = getattr(getattr(connector, "transport", None), "socket", None)
        if mark and handle is not None:
            try:
                handle.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
            except OSError:
                pass

    async def _timed(self, done: Deferred[dns.Message], timeout: float, server: str) -> dns.Message:
        def late(_result: object, _timeout: float) -> dns.Message:
            raise LookupFailed(f"{server} does not answer", again=True)

        self._open.add(done)
        try:
            return await done.addTimeout(timeout, self._reactor, onTimeoutCancel=late)
        finally:
            self._open.discard(done)

    def stop(self) -> None:
        """Give up every question that is out."""
        for done in list(self._open):
            done.cancel()


def _extract(message: dns.Message, name: str, kind: int) -> tuple[Records | None, Records | None]:
    """What a reply says of a name, along its CNAMEs.

    Returns:
        The records, or None; and, when aliases lead to a name that the reply says nothing of, an empty entry for that.
    """
    aliases: list[str] = []
    current, ttl = name, MAX_TTL_S
    records = [(_text(each.name), each) for each in message.answers]
    for _ in range(MAX_CNAMES):
        values = []
        for owner, each in records:
            if owner == current and each.type == kind and each.payload is not None:
                value = _value(each.payload, kind)
                if value is not None:
                    values.append(value)
                    ttl = min(ttl, each.ttl)
        if values:
            return Records(tuple(values), current, ttl, tuple(aliases)), None
        following = next(
            (each for owner, each in records if owner == current and each.type == dns.CNAME), None
        )
        if following is None:
            return None, Records((), current, ttl, tuple(aliases)) if aliases else None
        ttl = min(ttl, following.ttl)
        aliases.append(current)
        payload: Any = following.payload
        current = _text(payload.name)
    return None, None


def _text(name: Any) -> str:
    return str(name.name.decode("ascii", "replace").lower().rstrip("."))


def _value(payload: Any, kind: int) -> str | None:
    try:
        if kind == dns.A:
            return socket.inet_ntop(socket.AF_INET, payload.address)
        if kind == dns.AAAA:
            return socket.inet_ntop(socket.AF_INET6, payload.address)
        return _text(payload.name)
    except (ValueError, AttributeError, OSError):
        return None


def _negative_ttl(message: dns.Message) -> int:
    """RFC 2308: the lesser of the SOA's TTL and its MINIMUM; nothing without a SOA."""
    for each in message.authority:
        if each.type == dns.SOA:
            payload: Any = each.payload
            return int(min(each.ttl, payload.minimum, MAX_NEGATIVE_TTL_S))
    return 0
