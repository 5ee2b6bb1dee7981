"""``DnsProxyListener``: bionic's lookups on the ``dnsproxyd`` socket.

Facts: AOSP ``system/netd/server/DnsProxyListener.cpp`` (android-7.0); error numbers and flags are bionic's.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import struct
from typing import Any, ClassVar, Final, Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.names import dns

from anbox_tw.netd._wire import AddressEntry, HostEntry, encode_address_entries, encode_host_entry
from anbox_tw.netd.codes import ResponseCode
from anbox_tw.netd.listener import FrameworkCommand, FrameworkListener, Request
from anbox_tw.netd.namespace import NetworkNamespace
from anbox_tw.netd.networks import parse_net_id
from anbox_tw.netd.resolver import LookupFailed, Records, Resolver

__all__ = ["DnsProxy", "DnsProxyListener", "Refused"]

# bionic's <netdb.h>
EAI_AGAIN, EAI_BADFLAGS, EAI_FAIL, EAI_FAMILY = 2, 3, 4, 5
EAI_NODATA, EAI_NONAME, EAI_SERVICE, EAI_SOCKTYPE = 7, 8, 9, 10
AI_PASSIVE, AI_CANONNAME, AI_NUMERICHOST, AI_NUMERICSERV = 0x1, 0x2, 0x4, 0x8
AI_ADDRCONFIG: Final = 0x400
_AI_MASK: Final = 0xF0F
MAX_NAME_CHARS: Final = 253
# lookups at once over all clients; each holds a socket
MAX_LOOKUPS: Final = 256
_PROTOCOLS: Final[dict[int, int]] = {
    socket.SOCK_STREAM: socket.IPPROTO_TCP,
    socket.SOCK_DGRAM: socket.IPPROTO_UDP,
    socket.SOCK_RAW: 0,
}
_NAME: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?"
)


class Refused(Exception):
    """A lookup that failed.

    Attributes:
        code: ``EAI_...`` of bionic.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"EAI {code}")
        self.code = code


class ChoosesNetwork(Protocol):
    """What tells which network a user's lookups go to: `NetworkController`."""

    def for_dns(self, net_id: int, uid: int) -> tuple[int, int]:
        """The network and the mark."""


class DnsProxy:
    """Lookups, without a socket."""

    _log = Logger()

    def __init__(
        self, resolver: Resolver, networks: ChoosesNetwork, namespace: NetworkNamespace | None = None
    ) -> None:
        self._resolver = resolver
        self._networks = networks
        self._namespace = namespace or NetworkNamespace()

    def _candidates(self, net_id: int, name: str) -> list[str]:
        """The names to try, in order: with ndots 1, as bionic."""
        if name.endswith("."):
            return [name.rstrip(".")]
        searched = [f"{name}.{domain}" for domain in self._resolver.domains(net_id)]
        searched = [each for each in searched if len(each) <= MAX_NAME_CHARS]
        return [name, *searched] if "." in name else [*searched, name]

    async def _records(self, net_id: int, name: str, kinds: list[int], mark: int) -> dict[int, Records]:
        """What the first name that has any of the kinds has.

        Raises:
            Refused: none has, or nobody says.
        """
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
            raise Refused(EAI_NODATA)
        again = False
        for candidate in self._candidates(net_id, name):
            results = await self._together(net_id, candidate, kinds, mark)
            found = {
                kind: each for kind, each in zip(kinds, results, strict=True) if isinstance(each, Records)
            }
            if found:
                return found
            again = again or any(isinstance(each, LookupFailed) for each in results)
        raise Refused(EAI_AGAIN if again else EAI_NODATA)

    async def _together(
        self, net_id: int, name: str, kinds: list[int], mark: int
    ) -> list[Records | LookupFailed | None]:
        async def one(kind: int) -> Records | LookupFailed | None:
            try:
                return await self._resolver.lookup(net_id, name, kind, mark)
            except LookupFailed as error:
                self._log.debug("{name}: {error}", name=name, error=error)
                return error

        running = [Deferred.fromCoroutine(one(kind)) for kind in kinds]
        found: list[Records | LookupFailed | None] = await gatherResults(running)
        return found

    def _reachable(self, family: int, address: str, mark: int) -> bool:
        """Whether there is a way to an address: what RFC 6724 asks first."""
        try:
            probe = self._namespace.socket(family, socket.SOCK_DGRAM)
        except OSError:
            return False
        with probe:
            try:
                if mark:
                    probe.setsockopt(socket.SOL_SOCKET, 36, mark)
            except OSError:
                pass
            try:
                probe.connect((address, 9))
            except OSError:
                return False
        return True

    async def getaddrinfo(
        self,
        host: str | None,
        service: str | None,
        hints: tuple[int, int, int, int] | None,
        net_id: int,
        uid: int,
    ) -> list[AddressEntry]:
        """``getaddrinfo``.

        Args:
            host: a name or an address.
            service: a name or a port.
            hints: flags, family, socket type, protocol.
            net_id: the network asked for, 0 for the user's.
            uid: who asks.

        Raises:
            Refused: with bionic's EAI code.
        """
        flags, family, socktype, protocol = hints or (0, 0, 0, 0)
        if host is None and service is None:
            raise Refused(EAI_NONAME)
        if flags & ~_AI_MASK or (flags & AI_CANONNAME and host is None):
            raise Refused(EAI_BADFLAGS)
        if family not in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
            raise Refused(EAI_FAMILY)
        kinds = self._socket_kinds(socktype, protocol)
        port = self._port(service, flags, socktype)
        canonical: str | None = None
        addresses: list[tuple[int, str]]
        if host is None:
            passive = bool(flags & AI_PASSIVE)
            addresses = [(socket.AF_INET6, "::" if passive else "::1")]
            addresses += [(socket.AF_INET, "0.0.0.0" if passive else "127.0.0.1")]  # AI_PASSIVE's meaning
            addresses = [each for each in addresses if family in (0, each[0])]
        else:
            addresses, canonical = await self._addresses(host, flags, family, net_id, uid)
        named = canonical if flags & AI_CANONNAME else None
        entries = []
        for of, address in addresses:
            for kind, number in kinds:
                entries.append(AddressEntry(flags, of, kind, number, address, port, named))
                named = None
        return entries

    def _socket_kinds(self, socktype: int, protocol: int) -> list[tuple[int, int]]:
        if socktype == 0:
            found = [(kind, number) for kind, number in _PROTOCOLS.items() if protocol in (0, number)]
            # a raw socket takes any protocol, and is told last
            return [(kind, number or protocol) for kind, number in found] or [(socket.SOCK_RAW, protocol)]
        if socktype not in _PROTOCOLS:
            raise Refused(EAI_SOCKTYPE)
        number = _PROTOCOLS[socktype]
        if protocol and number and protocol != number:
            raise Refused(EAI_SOCKTYPE)
        return [(socktype, number or protocol)]

    def _port(self, service: str | None, flags: int, socktype: int) -> int:
        if service is None:
            return 0
        if service.isascii() and service.isdigit():
            if len(service) > 5 or int(service) > 65535:
                raise Refused(EAI_SERVICE)
            return int(service)
        if flags & AI_NUMERICSERV:
            raise Refused(EAI_NONAME)
        for kind, name in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
            if socktype in (0, kind):
                try:
                    return socket.getservbyname(service, name)
                except (OSError, UnicodeError, ValueError):
                    continue
        raise Refused(EAI_SERVICE)

    async def _addresses(
        self, host: str, flags: int, family: int, net_id: int, uid: int
    ) -> tuple[list[tuple[int, str]], str]:
        numeric = _numeric(host)
        if numeric is not None:
            if family not in (0, numeric[0]):
                raise Refused(EAI_FAMILY)
            return [numeric], host
        if flags & AI_NUMERICHOST:
            raise Refused(EAI_NONAME)
        net_id, mark = self._networks.for_dns(net_id, uid)
        listed = [each for each in map(_numeric, self._resolver.lookup_hosts(host)) if each is not None]
        listed = [each for each in listed if family in (0, each[0])]
        if listed:
            return listed, host
        wanted = [
            kind for kind, of in ((dns.AAAA, socket.AF_INET6), (dns.A, socket.AF_INET)) if family in (0, of)
        ]
        if flags & AI_ADDRCONFIG:
            # addresses of documentation stand for "the rest of the world"
            reach = {dns.AAAA: (socket.AF_INET6, "2000::"), dns.A: (socket.AF_INET, "8.8.8.8")}
            wanted = [kind for kind in wanted if self._reachable(*reach[kind], mark)] or wanted
        found = await self._records(net_id, host, wanted, mark)
        addresses: list[tuple[int, str]] = [
            (socket.AF_INET6 if kind == dns.AAAA else socket.AF_INET, value)
            for kind in wanted
            if kind in found
            for value in found[kind].values
        ]
        addresses.sort(key=lambda each: not self._reachable(each[0], each[1], mark))
        return addresses, next(iter(found.values())).canonical_name

    async def gethostbyname(self, name: str, family: int, net_id: int, uid: int) -> HostEntry:
        """``gethostbyname2``. Raises `Refused`."""
        kind = {socket.AF_INET: dns.A, socket.AF_INET6: dns.AAAA}.get(family)  # type: ignore[call-overload]  # any number may come
        if kind is None:
            raise Refused(EAI_FAMILY)
        numeric = _numeric(name)
        if numeric is not None and numeric[0] == family:
            return HostEntry(name, (), family, (numeric[1],))
        net_id, mark = self._networks.for_dns(net_id, uid)
        listed = [
            each for each in self._resolver.lookup_hosts(name) if (":" in each) == (family == socket.AF_INET6)
        ]
        if listed:
            return HostEntry(name, (), family, tuple(listed))
        records = (await self._records(net_id, name, [kind], mark))[kind]
        return HostEntry(records.canonical_name, records.aliases, family, records.values)

    async def gethostbyaddr(self, address: str, net_id: int, uid: int) -> HostEntry:
        """``gethostbyaddr``. Raises `Refused`."""
        parsed = ipaddress.ip_address(address)
        net_id, mark = self._networks.for_dns(net_id, uid)
        try:
            records = await self._resolver.lookup(net_id, parsed.reverse_pointer, dns.PTR, mark)
        except LookupFailed as error:
            raise Refused(EAI_AGAIN) from error
        if records is None:
            raise Refused(EAI_NODATA)
        family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
        return HostEntry(records.values[0], records.values[1:], family, (address,))


def _numeric(text: str) -> tuple[int, str] | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        try:
            if text and text[0].isdigit() and text.isascii() and " " not in text:
                return socket.AF_INET, socket.inet_ntoa(socket.inet_aton(text))
        except OSError:
            pass
        return None
    return (socket.AF_INET6 if address.version == 6 else socket.AF_INET), str(address)


def _integer(text: str) -> int:
    found = re.match(r"[ \t]*(-?[0-9]{1,10})", text)
    return int(found[1]) if found else 0


class DnsProxyListener(FrameworkListener):
    """The socket: requests without sequence numbers, answers in binary."""

    def __init__(self, proxy: DnsProxy, *, clock: Any, legacy: bool = False) -> None:
        """Make the listener.

        Args:
            proxy: does the lookups.
            clock: for the commands' order.
            legacy: answer getaddrinfo in the layout of Android 4.4 and 5.
        """
        super().__init__("dnsproxyd", clock=clock, with_sequence=False)
        self._proxy = proxy
        self._legacy = legacy
        self._running = 0
        for name, handler in self.handlers.items():
            self.register(FrameworkCommand(name, handler.__get__(self), lock_name=""))

    def _count(self, request: Request, count: int) -> bool:
        words = request.arguments
        if len(words) == count:
            return True
        request.reply(
            ResponseCode.PARAMETER_ERROR, f"Invalid number of arguments to {words[0]}: {len(words)}"
        )
        return False

    async def _guarded(self, request: Request, work: Any, failure: bytes | None) -> None:
        """Run a lookup within the limit; a refusal is answered with its code, or with ``failure``."""
        code = EAI_AGAIN
        if self._running < MAX_LOOKUPS:
            self._running += 1
            try:
                # one write: two lookups of one connection cannot mix their answers
                request.send_raw(b"222\0" + await work)
                return
            except Refused as refused:
                code = refused.code
            finally:
                self._running -= 1
        else:
            work.close()
        payload = struct.pack("=i", code) if failure is None else failure
        request.send_binary(ResponseCode.DNS_PROXY_OPERATION_FAILED, payload)

    async def _getaddrinfo(self, request: Request) -> None:
        if not self._count(request, 8):
            return
        _, host, service, *numbers, net_id = request.arguments
        values = [_integer(number) for number in numbers]
        hints = None if values == [-1, -1, -1, -1] else (values[0], values[1], values[2], values[3])

        async def work() -> bytes:
            entries = await self._proxy.getaddrinfo(
                None if host == "^" else host,
                None if service == "^" else service,
                hints,
                parse_net_id(net_id),
                request.credentials.uid,
            )
            return encode_address_entries(entries, legacy=self._legacy)

        await self._guarded(request, work(), None)

    async def _gethostbyname(self, request: Request) -> None:
        if not self._count(request, 4):
            return
        _, net_id, name, family = request.arguments

        async def work() -> bytes:
            if name == "^":
                raise Refused(EAI_NONAME)
            entry = await self._proxy.gethostbyname(
                name, _integer(family), parse_net_id(net_id), request.credentials.uid
            )
            return encode_host_entry(entry)

        await self._guarded(request, work(), b"")

    async def _gethostbyaddr(self, request: Request) -> None:
        if not self._count(request, 5):
            return
        _, address, _size, family, net_id = request.arguments
        number = _integer(family)
        try:
            parsed = str(ipaddress.ip_address(address))
            good = (":" in parsed) == (number == socket.AF_INET6)
        except ValueError:
            parsed, good = "", False
        if not good or number not in (socket.AF_INET, socket.AF_INET6):
            why = errno.EAFNOSUPPORT if number not in (socket.AF_INET, socket.AF_INET6) else errno.EINVAL
            request.reply(ResponseCode.OPERATION_FAILED, f'inet_pton("{address}") failed {os.strerror(why)}')
            return

        async def work() -> bytes:
            entry = await self._proxy.gethostbyaddr(parsed, parse_net_id(net_id), request.credentials.uid)
            return encode_host_entry(entry)

        await self._guarded(request, work(), b"")

    handlers: ClassVar[dict[str, Any]] = {
        "getaddrinfo": _getaddrinfo,
        "gethostbyname": _gethostbyname,
        "gethostbyaddr": _gethostbyaddr,
    }
