"""Netlink on the reactor: pyroute2 packs and parses, Twisted waits.

pyroute2's own sockets block, or want asyncio; here its message classes are used alone.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, Final

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from anbox_tw.errors import HostLacks, TimedOut
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.namespace import NetworkNamespace

__all__ = ["Datagram", "NetlinkSocket", "Overrun", "RouteClient", "messages_of", "pyroute2_parts"]

NLMSG_NOOP: Final = 1
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 1
NLM_F_MULTI: Final = 2
NLM_F_ACK: Final = 4
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLM_F_DUMP_INTR: Final = 0x10

_SO_RCVBUFFORCE: Final = 33
_SOL_NETLINK: Final = 270
_NETLINK_EXT_ACK: Final = 11
_HEADER: Final = struct.Struct("=IHHII")
_UCRED: Final = struct.Struct("3i")
# A datagram of a dump is at most 32 KiB (NLMSG_GOODSIZE rounds to the reader's buffer, the kernel caps there).
DATAGRAM_BYTES: Final = 65536
# What one turn of the reactor reads from one socket, so that a storm of events does not starve the clients.
MAX_DATAGRAMS_PER_TURN: Final = 64
# Requests wait for the kernel, which answers in the system call or, for dumps, in the next.
REQUEST_TIMEOUT_S: Final = 10.0
# A dump that changed under the kernel's hands (NLM_F_DUMP_INTR) is made again, this often.
DUMP_TRIES: Final = 5
# Messages of one dump: a full IPv4 table is a million routes, but we only dump links, addresses and rules.
MAX_DUMP_MESSAGES: Final = 200_000


@cache
def pyroute2_parts() -> SimpleNamespace:
    """The message classes of pyroute2.

    Raises:
        HostLacks: pyroute2 is not installed.
    """
    try:
        from pyroute2.netlink import nlmsg, nlmsgerr
        from pyroute2.netlink.nfnetlink import nfgen_msg
        from pyroute2.netlink.rtnl.fibmsg import fibmsg
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
        from pyroute2.netlink.rtnl.ndmsg import ndmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg
    except ImportError as error:
        raise HostLacks(
            f"netd needs pyroute2, which cannot be imported: {error}", "pip install pyroute2"
        ) from error

    class nflog_msg(nfgen_msg):  # type: ignore[misc]  # pyroute2 is untyped
        """A logged packet (linux/netfilter/nfnetlink_log.h); pyroute2 has no class for it."""

        nla_map = (
            ("NFULA_UNSPEC", "none"),
            ("NFULA_PACKET_HDR", "cdata"),
            ("NFULA_MARK", "be32"),
            ("NFULA_TIMESTAMP", "cdata"),
            ("NFULA_IFINDEX_INDEV", "be32"),
            ("NFULA_IFINDEX_OUTDEV", "be32"),
            ("NFULA_IFINDEX_PHYSINDEV", "be32"),
            ("NFULA_IFINDEX_PHYSOUTDEV", "be32"),
            ("NFULA_HWADDR", "cdata"),
            ("NFULA_PAYLOAD", "cdata"),
            ("NFULA_PREFIX", "asciiz"),
            ("NFULA_UID", "be32"),
            ("NFULA_SEQ", "be32"),
            ("NFULA_SEQ_GLOBAL", "be32"),
            ("NFULA_GID", "be32"),
        )

    return SimpleNamespace(
        nlmsg=nlmsg,
        nlmsgerr=nlmsgerr,
        link=ifinfmsg,
        address=ifaddrmsg,
        route=rtmsg,
        rule=fibmsg,
        neighbour=ndmsg,
        nflog=nflog_msg,
    )


@frozen
class Datagram:
    """What one read of a netlink socket gave.

    Attributes:
        data: the bytes.
        sender_uid: of the sender as the kernel says, -1 when it did not say.
        sender_port: the sender's netlink port; 0 is the kernel and nobody else.
        groups: the multicast groups it was sent to; 0 for unicast.
    """

    data: bytes
    sender_uid: int
    sender_port: int
    groups: int


class Overrun(Exception):
    """The kernel dropped messages because we did not read fast enough (ENOBUFS)."""


def messages_of(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Walk the netlink messages of a datagram.

    Yields:
        (offset, length, type, flags, sequence) of each; stops at the first that does not fit.
    """
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield offset, length, kind, flags, sequence
        offset += (length + 3) & ~3


@implementer(IReadDescriptor)
class NetlinkSocket:
    """A netlink socket that the reactor reads.

    Attributes:
        overruns: how often the kernel has dropped messages for us.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        family: int,
        *,
        namespace: NetworkNamespace,
        groups: int = 0,
        on_readable: Callable[[], object],
        buffer_bytes: int = 0,
        name: str = "netlink",
    ) -> None:
        """Open and bind; reading begins with `start`.

        Args:
            reactor: an IReactorFDSet.
            family: ``NETLINK_...``.
            namespace: where the socket is made.
            groups: mask of multicast groups to join.
            on_readable: called when there is something; it calls `receive` until that gives nothing.
            buffer_bytes: for SO_RCVBUFFORCE, 0 leaves the default.
            name: for logs.

        Raises:
            OSError: the kernel has no such family, or refuses.
        """
        self._reactor = reactor
        self._on_readable = on_readable
        self._name = name
        self.overruns = 0
        self._reading = False
        self._socket: socket.socket | None = namespace.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, family)
        try:
            if buffer_bytes:
                try:
                    self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
                except PermissionError:
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            # port 0: the kernel chooses one that nobody has; the original takes its pid and so can have one only
            self._socket.bind((0, groups))
        except OSError:
            self._socket.close()
            raise

    def start(self) -> None:
        """Begin to read."""
        if self._socket is not None and not self._reading:
            self._reading = True
            self._reactor.addReader(self)

    def close(self) -> None:
        """Stop and close; calling this again is allowed."""
        if self._socket is not None:
            if self._reading:
                self._reactor.removeReader(self)
                self._reading = False
            self._socket.close()
            self._socket = None

    def set_option(self, option: int, value: int) -> None:
        """Set a SOL_NETLINK option."""
        if self._socket is not None:
            self._socket.setsockopt(_SOL_NETLINK, option, value)

    def send(self, data: bytes | bytearray) -> None:
        """Send to the kernel.

        Raises:
            OSError: it was not taken.
        """
        if self._socket is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._socket.sendto(data, (0, 0))

    def receive(self) -> Datagram | None:
        """The next datagram, or None when there is none now.

        Raises:
            Overrun: messages were lost; what follows is readable.
        """
        if self._socket is None:
            return None
        try:
            data, ancillary, _flags, sender = self._socket.recvmsg(
                DATAGRAM_BYTES, socket.CMSG_SPACE(_UCRED.size)
            )
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self.overruns += 1
                raise Overrun from error
            if error.errno == errno.EINTR:
                return None
            raise
        uid = -1
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(payload) >= _UCRED.size:
                uid = _UCRED.unpack_from(payload)[1]
        port, groups = sender
        return Datagram(data, uid, port, groups)

    def doRead(self) -> None:
        self._on_readable()

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket is not None else -1

    def logPrefix(self) -> str:
        return self._name

    def connectionLost(self, reason: object) -> None:
        # the reactor says so when the descriptor went bad
        self.close()


class _Pending:
    def __init__(self, parser: Any, what: str, dump: bool) -> None:
        self.parser = parser
        self.what = what
        self.dump = dump
        self.interrupted = False
        self.messages: list[Any] = []
        self.done: Deferred[list[Any]] = Deferred()
        self.timer: Any = None


class RouteClient:
    """Requests to rtnetlink as Deferreds.

    One socket, any number of requests; the kernel works them off in order.
    """

    _log = Logger()

    def __init__(self, reactor: Any, namespace: NetworkNamespace | None = None) -> None:
        """Open the socket.

        Raises:
            HostLacks: pyroute2 is missing.
            OSError: the kernel refuses.
        """
        self.parts = pyroute2_parts()
        self._reactor = reactor
        self._sequence = 0
        self._pending: dict[int, _Pending] = {}
        self._socket = NetlinkSocket(
            reactor,
            socket.NETLINK_ROUTE,
            namespace=namespace or NetworkNamespace(),
            on_readable=self._readable,
            buffer_bytes=1024 * 1024,
            name="rtnetlink requests",
        )
        self._socket.set_option(_NETLINK_EXT_ACK, 1)
        self._socket.start()

    def close(self) -> None:
        """Close; what waits fails."""
        self._socket.close()
        for sequence in list(self._pending):
            self._finish(sequence, KernelRefused(errno.ESHUTDOWN, self._pending[sequence].what))

    async def dump(self, kind: int, message: Any, what: str) -> list[Any]:
        """Ask for all objects of a kind.

        Args:
            kind: ``RTM_GET...``.
            message: of a pyroute2 class; its kind of answer is the same class.
            what: for errors.

        Raises:
            KernelRefused: it cannot be had.
            TimedOut: no answer.
        """
        for _ in range(DUMP_TRIES):
            pending = self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, message, what, dump=True)
            found = await pending.done
            if not pending.interrupted:
                break
        return found

    async def get(self, kind: int, message: Any, what: str) -> Any:
        """Ask for one object. Errors as of `dump`."""
        found = await self._send(kind, NLM_F_REQUEST | NLM_F_ACK, message, what).done
        if not found:
            raise KernelRefused(errno.ENODATA, what)
        return found[0]

    async def change(self, kind: int, message: Any, what: str, flags: int = 0) -> None:
        """Ask for a change; returns when the kernel has made it. Errors as of `dump`."""
        await self._send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, message, what).done

    def build(self, name: str, fields: Mapping[str, Any], attributes: Sequence[tuple[str, Any]] = ()) -> Any:
        """A pyroute2 message of the class ``name`` (``link``, ``address``, ``route``, ``rule``)."""
        message = getattr(self.parts, name)()
        for key, value in fields.items():
            message[key] = value
        message["attrs"] = list(attributes)
        return message

    def _send(self, kind: int, flags: int, message: Any, what: str, *, dump: bool = False) -> _Pending:
        self._sequence = self._sequence % 0x7FFFFFFF + 1
        sequence = self._sequence
        message["header"] = {"type": kind, "flags": flags, "sequence_number": sequence, "pid": 0}
        try:
            message.reset()
            message.encode()
            data = bytes(message.data)
        except Exception as error:
            raise KernelRefused(errno.EINVAL, what, f"it cannot be encoded: {error}") from error
        pending = _Pending(type(message), what, dump)
        self._pending[sequence] = pending
        pending.timer = self._reactor.callLater(REQUEST_TIMEOUT_S, self._late, sequence)
        pending.done = Deferred(lambda _d: (self._forget(sequence), None)[1])
        try:
            self._socket.send(data)
        except OSError as error:
            self._finish(sequence, KernelRefused(error.errno or errno.EIO, what))
        return pending

    def _forget(self, sequence: int) -> _Pending | None:
        pending = self._pending.pop(sequence, None)
        if pending is not None and pending.timer is not None:
            if pending.timer.active():
                pending.timer.cancel()
            pending.timer = None
        return pending

    def _late(self, sequence: int) -> None:
        self._finish(sequence, TimedOut(f"{self._pending[sequence].what}: the kernel did not answer"))

    def _finish(self, sequence: int, error: Exception | None = None) -> None:
        pending = self._forget(sequence)
        if pending is None:
            return
        if error is not None:
            pending.done.errback(error)
        else:
            pending.done.callback(pending.messages)

    def _readable(self) -> None:
        for _ in range(MAX_DATAGRAMS_PER_TURN):
            try:
                datagram = self._socket.receive()
            except Overrun:
                # an answer was lost and which one is not known
                for sequence in list(self._pending):
                    self._finish(sequence, KernelRefused(errno.ENOBUFS, self._pending[sequence].what))
                continue
            if datagram is None:
                return
            if datagram.sender_port != 0:
                continue
            for offset, length, kind, flags, sequence in messages_of(datagram.data):
                self._answer(datagram.data, offset, length, kind, flags, sequence)

    def _answer(self, data: bytes, offset: int, length: int, kind: int, flags: int, sequence: int) -> None:
        pending = self._pending.get(sequence)
        if pending is None:
            return
        if flags & NLM_F_DUMP_INTR:
            pending.interrupted = True
        if kind in (NLMSG_ERROR, NLMSG_DONE):
            code = struct.unpack_from("=i", data, offset + 16)[0] if length >= 20 else 0
            if code < 0:
                self._finish(
                    sequence, KernelRefused(-code, pending.what, _extended(data, offset, length, flags))
                )
            else:
                self._finish(sequence)
            return
        if kind == NLMSG_NOOP:
            return
        if len(pending.messages) >= MAX_DUMP_MESSAGES:
            self._finish(sequence, KernelRefused(errno.EMSGSIZE, pending.what))
            return
        try:
            message = pending.parser(data, offset=offset)
            message.decode()
        except Exception:
            self._log.failure("{what}: an answer that pyroute2 cannot read", what=pending.what)
            return
        pending.messages.append(message)


def _extended(data: bytes, offset: int, length: int, flags: int) -> str:
    """The kernel's own words about a refusal (NLMSGERR_ATTR_MSG), or an empty string."""
    if not flags & 0x200 or length < 36:  # NLM_F_ACK_TLVS
        return ""
    inner = struct.unpack_from("=I", data, offset + 20)[0]
    position = offset + 20 + (16 if flags & 0x100 else (inner + 3) & ~3)  # NLM_F_CAPPED
    end = offset + length
    while position + 4 <= end:
        size, kind = struct.unpack_from("=HH", data, position)
        if size < 4 or position + size > end:
            break
        if kind & 0x3FFF == 1:
            return data[position + 4 : position + size].rstrip(b"\0").decode(errors="replace")
        position += (size + 3) & ~3
    return ""
