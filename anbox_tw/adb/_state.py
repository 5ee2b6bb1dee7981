"""The state of one ADB connection, for both ends; knows bytes and nothing else.

Rules of this file:

* all that can change the state of a connection or of one of its streams is here;
* what a packet means depends on (phase, command), looked up in ``HANDLERS``; a pair that is not in
  the table is ignored, as AOSP's ``handle_packet`` in ``adb.cpp`` does;
* what breaks the packet layer itself (magic, size, sum, an acknowledgement rule) ends the connection
  with ``ProtocolFailed``, exactly once, and nothing after it is parsed;
* nothing here waits: the caller answers an event whenever it can.

Phases::

    host     CONNECTING -> [AUTHORIZING -> [UNAUTHORIZED]] -> ONLINE
             CONNECTING -> TLS_HANDSHAKE -> CONNECTING (inside TLS) -> ONLINE
    device   WAITING -> GREETED -> [CHALLENGED] -> ONLINE
             WAITING -> GREETED -> TLS_OFFERED -> TLS_HANDSHAKE -> GREETED (inside TLS) -> ONLINE
    both     any -> CLOSED

A CNXN on an ONLINE connection means that the peer has restarted: every stream ends, and the device
side begins again at GREETED.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from struct import Struct

from anbox_tw.adb import _events as ev
from anbox_tw.adb import _wire as wire
from anbox_tw.adb._wire import Buffer, Packet, PacketReader
from anbox_tw.adb.banner import DELAYED_ACK, Banner
from anbox_tw.errors import AdbError, PeerError

__all__ = ["DELAYED_ACK_WINDOW", "MAX_STREAMS", "Connection", "LocalProtocolError", "Phase", "Role"]

DELAYED_ACK_WINDOW = 32 * 1024 * 1024
"""Receive window of a stream under delayed_ack, in bytes (``INITIAL_DELAYED_ACK_BYTES`` in ``adb.h``)."""

MAX_STREAMS = 8192
"""Streams of one connection; a device farm's busiest tools hold a few hundred."""

UNACKED_BURST = 16
"""Payloads of maximal size that a peer may send ahead of our acknowledgement without delayed_ack.

The protocol allows one. adb itself tolerates a burst, so a sloppy peer is not cut off at once; a
hostile one may not make us hold more.
"""

WINDOW_LIMIT = 1 << 40
"""Where a send window stops growing, whatever the peer grants."""

_INT32 = Struct("<i")
_MAX_ID = 0xFFFFFFFF


class Role(Enum):
    """Which end of the connection this is."""

    HOST = "host"
    DEVICE = "device"


class Phase(Enum):
    """How far the connection has come; see the module's text."""

    CONNECTING = "connecting"
    AUTHORIZING = "authorizing"
    UNAUTHORIZED = "unauthorized"
    WAITING = "waiting"
    GREETED = "greeted"
    CHALLENGED = "challenged"
    TLS_OFFERED = "tls-offered"
    TLS_HANDSHAKE = "tls-handshake"
    ONLINE = "online"
    CLOSED = "closed"


class LocalProtocolError(AdbError):
    """The caller asked for something that the connection's state does not allow."""


class Stream:
    """What the connection knows of one stream.

    Attributes:
        local: our id.
        remote: the peer's id, 0 while it has not accepted.
        opened_by_peer: who sent OPEN.
        accepted: both ids are known and data may flow.
        credit: bytes that may be sent now; without delayed_ack, one payload or nothing.
        unacked: bytes received and not acknowledged.
        unacked_packets: WRTE packets received and not acknowledged (without delayed_ack).
        peer_window: what the peer's OPEN granted.
    """

    __slots__ = (
        "accepted",
        "credit",
        "local",
        "opened_by_peer",
        "peer_window",
        "remote",
        "unacked",
        "unacked_packets",
    )

    def __init__(self, local: int, remote: int, *, opened_by_peer: bool, peer_window: int = 0) -> None:
        self.local = local
        self.remote = remote
        self.opened_by_peer = opened_by_peer
        self.peer_window = peer_window
        self.accepted = False
        self.credit = 0
        self.unacked = 0
        self.unacked_packets = 0


class Connection:
    """One ADB connection without its I/O.

    Feed it with ``receive_data`` (or ``get_buffer`` and ``buffer_updated``), take every ``next_event``,
    call the methods, send what ``data_to_send`` gives.

    Args:
        role: which end we are.
        banner: what we say about ourselves.
        version: our protocol version; the lower one of both ends counts.
        max_payload: largest payload we take, in bytes, 4096 to 1 MiB.
        max_streams: streams at a time; a further OPEN is refused.
        window: our receive window for each stream under delayed_ack, in bytes.
        verify_checksums: treat a wrong sum as an error while the negotiated version has sums, as
            Android up to 8 did. Android 9 and later never look at it.
    """

    def __init__(
        self,
        role: Role,
        banner: Banner,
        *,
        version: int = wire.VERSION,
        max_payload: int = wire.MAX_PAYLOAD,
        max_streams: int = MAX_STREAMS,
        window: int = DELAYED_ACK_WINDOW,
        verify_checksums: bool = False,
    ) -> None:
        if not wire.MAX_PAYLOAD_V1 <= max_payload <= wire.MAX_PAYLOAD:
            raise LocalProtocolError(f"max_payload must lie in 4096..1048576, not {max_payload}")
        if len(banner.encode()) > wire.MAX_PAYLOAD_V1:
            raise LocalProtocolError("the banner is longer than the 4096 bytes that every peer takes")
        self.role = role
        self.banner = banner
        self.phase = Phase.CONNECTING if role is Role.HOST else Phase.WAITING
        self.peer: Banner | None = None
        self.version = wire.VERSION_MIN
        self.max_payload = wire.MAX_PAYLOAD_V1
        self.delayed_ack = False
        self.in_tls = False
        self.streams: dict[int, Stream] = {}
        self.unacked = 0
        self._own_version = version
        self._own_max_payload = max_payload
        self._max_streams = max_streams
        self._window = window
        self._verify = verify_checksums
        self._reader = PacketReader(wire.HANDSHAKE_PAYLOAD_LIMIT)
        self._events: deque[ev.Event] = deque()
        self._out: list[Buffer | memoryview] = []
        self._next_id = 1
        self._token = b""
        self._handlers = {
            command: getattr(self, name) for command, name in HANDLERS.get((role, self.phase), {}).items()
        }

    # ----------------------------------------------------------------- input

    def receive_data(self, data: bytes) -> None:
        """Take the peer's next bytes, cut at any place; ``next_event`` says what they mean."""
        if self.phase is not Phase.CLOSED:
            self._reader.feed(data)

    def get_buffer(self) -> memoryview:
        """Where a ``recv_into`` may put the peer's next bytes; see ``PacketReader.get_buffer``."""
        return self._reader.get_buffer()

    def buffer_updated(self, count: int) -> None:
        """``count`` bytes were received into what ``get_buffer`` gave."""
        if self.phase is not Phase.CLOSED:
            self._reader.buffer_updated(count)

    def next_event(self) -> ev.Event | None:
        """The next thing that has happened, or None when more bytes are needed.

        A packet is looked at only when all before it have been handed out, so what the caller does
        about one event counts for the next packet, however the bytes were cut.
        """
        events = self._events
        if events:
            return events.popleft()
        if self.phase is Phase.CLOSED or self.phase is Phase.TLS_HANDSHAKE:
            return None
        reader = self._reader
        if self.phase is Phase.TLS_OFFERED and reader.begins_with(wire.TLS_RECORD):
            # adb 36 hands its STLS to one thread and starts TLS in another: on a busy machine the
            # STLS is never sent. What it begins with says all the same that it took the offer.
            self._take_tls()
            return events.popleft()
        try:
            while (packet := reader.next_packet()) is not None:
                handler = self._handlers.get(packet.command)
                if handler is not None:
                    handler(packet)
                    if events:
                        return events.popleft()
        except PeerError as error:
            self._fail(error)
            return events.popleft()
        return None

    def events(self) -> Iterator[ev.Event]:
        """``next_event`` until there is none."""
        while (event := self.next_event()) is not None:
            yield event

    def _fail(self, error: PeerError) -> None:
        self._end_streams(error)
        self._enter(Phase.CLOSED)
        self._emit(ev.ProtocolFailed(error))

    def _emit(self, event: ev.Event) -> None:
        self._events.append(event)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._handlers = {
            command: getattr(self, name) for command, name in HANDLERS.get((self.role, phase), {}).items()
        }

    # ---------------------------------------------------------------- output

    def data_to_send(self) -> list[Buffer | memoryview]:
        """All that must be written now, in order; the list is the caller's."""
        out = self._out
        self._out = []
        return out

    def _send(self, command: int, arg0: int, arg1: int, payload: Buffer | memoryview = b"") -> None:
        check = 0
        if payload and self.version < wire.VERSION_SKIP_CHECKSUM:
            check = wire.checksum(payload)
        self._out.append(wire.encode_header(command, arg0, arg1, len(payload), check))
        if payload:
            self._out.append(payload)

    # ------------------------------------------------------------- handshake

    def start(self) -> None:
        """Host role: greet the device. The device role stays silent until greeted.

        Raises:
            LocalProtocolError: called in the device role, or twice.
        """
        self._require(Role.HOST, Phase.CONNECTING)
        if self.in_tls:
            raise LocalProtocolError("inside TLS the device speaks first")
        self._send(wire.CNXN, self._own_version, self._own_max_payload, self.banner.encode())

    def accept(self) -> ev.Online:
        """Device role: let the host in; sends our CNXN.

        Returns:
            The event of being online, for the caller to handle as any other.

        Raises:
            LocalProtocolError: no host waits for this.
        """
        self._require(Role.DEVICE, Phase.GREETED, Phase.CHALLENGED)
        self._send(wire.CNXN, self._own_version, self.max_payload, self.banner.encode())
        return self._go_online()

    def challenge(self, token: bytes) -> None:
        """Device role: ask for a signature over ``token``, 20 fresh random bytes."""
        self._require(Role.DEVICE, Phase.GREETED, Phase.CHALLENGED)
        if self.in_tls:
            raise LocalProtocolError("AUTH has no place inside TLS")
        self._token = token
        self._send(wire.AUTH, wire.AUTH_TOKEN, 0, token)
        self._enter(Phase.CHALLENGED)

    def offer_tls(self) -> None:
        """Device role: answer the greeting with STLS."""
        self._require(Role.DEVICE, Phase.GREETED)
        if self.in_tls:
            raise LocalProtocolError("TLS is already there")
        self._send(wire.STLS, wire.STLS_VERSION, 0)
        self._enter(Phase.TLS_OFFERED)

    def tls_established(self) -> None:
        """The TLS handshake has succeeded; bytes are those inside TLS from now on."""
        self._require(None, Phase.TLS_HANDSHAKE)
        self.in_tls = True
        self._enter(Phase.CONNECTING if self.role is Role.HOST else Phase.GREETED)

    def send_signature(self, signature: bytes) -> None:
        """Host role: answer the last token."""
        self._require(Role.HOST, Phase.AUTHORIZING)
        self._send(wire.AUTH, wire.AUTH_SIGNATURE, 0, signature)

    def send_public_key(self, text: bytes) -> None:
        """Host role: no key was accepted; ask the device's user to allow this one.

        Args:
            text: the key in Android's text form, without the NUL that is sent behind it.
        """
        self._require(Role.HOST, Phase.AUTHORIZING)
        self._send(wire.AUTH, wire.AUTH_RSAPUBLICKEY, 0, text + b"\0")
        self._enter(Phase.UNAUTHORIZED)

    def close(self) -> None:
        """The transport is gone, or is about to be: no event will come any more."""
        self.streams.clear()
        self.unacked = 0
        self._events.clear()
        self._enter(Phase.CLOSED)

    def _require(self, role: Role | None, *phases: Phase) -> None:
        if (role is not None and self.role is not role) or self.phase not in phases:
            raise LocalProtocolError(f"not possible for a {self.role.value} that is {self.phase.value}")

    def _adopt(self, packet: Packet) -> Banner:
        """Take version, payload size and features from the peer's CNXN."""
        self._end_streams(AdbError("the peer has restarted the connection"))
        self.version = min(self._own_version, max(packet.arg0, wire.VERSION_MIN))
        if packet.arg1 == 0:
            raise PeerError("CNXN allows no payload at all", code="ANBOX-A004")
        self.max_payload = min(self._own_max_payload, packet.arg1)
        self.peer = peer = Banner.parse(packet.payload)
        self.delayed_ack = self.banner.has(DELAYED_ACK) and peer.has(DELAYED_ACK)
        return peer

    def _go_online(self) -> ev.Online:
        assert self.peer is not None
        # A device may announce less than it takes and a host more than the device: what we take is
        # what we have announced, and a device's CNXN says the negotiated size.
        self._reader.max_payload = self._own_max_payload if self.role is Role.HOST else self.max_payload
        self._reader.verify = self._verify and self.version < wire.VERSION_SKIP_CHECKSUM
        self._enter(Phase.ONLINE)
        return ev.Online(self.peer)

    def _on_host_cnxn(self, packet: Packet) -> None:
        self._adopt(packet)
        self._emit(self._go_online())

    def _on_device_cnxn(self, packet: Packet) -> None:
        peer = self._adopt(packet)
        self._token = b""
        self._enter(Phase.GREETED)
        self._emit(ev.PeerGreeted(peer))

    def _on_token(self, packet: Packet) -> None:
        if packet.arg0 == wire.AUTH_TOKEN:
            self._enter(Phase.AUTHORIZING)
            self._emit(ev.AuthTokenReceived(bytes(packet.payload)))

    def _on_auth_answer(self, packet: Packet) -> None:
        if packet.arg0 == wire.AUTH_SIGNATURE:
            token, self._token = self._token, b""
            if token:
                self._emit(ev.AuthSignatureReceived(token, bytes(packet.payload)))
        elif packet.arg0 == wire.AUTH_RSAPUBLICKEY:
            text = bytes(packet.payload).split(b"\0", 1)[0]
            self._emit(ev.AuthKeyOffered(text.decode("utf-8", "replace")))

    def _on_stls_offer(self, _packet: Packet) -> None:
        if self.in_tls:
            return
        self._send(wire.STLS, wire.STLS_VERSION, 0)
        self._take_tls()

    def _on_stls_answer(self, _packet: Packet) -> None:
        self._take_tls()

    def _take_tls(self) -> None:
        self._enter(Phase.TLS_HANDSHAKE)
        self._emit(ev.TlsRequested(self._reader.take_rest()))

    # --------------------------------------------------------------- streams

    def open_stream(self, service: bytes) -> int:
        """Ask the peer for ``service``; ``StreamReady`` or ``StreamClosed`` follows.

        Returns:
            Our id of the stream.

        Raises:
            LocalProtocolError: not online, too many streams, or a name that fits no payload.
        """
        self._require(None, Phase.ONLINE)
        payload = service.rstrip(b"\0") + b"\0"
        if len(payload) > self.max_payload:
            raise LocalProtocolError(
                f"a service name of {len(payload)} bytes; the peer takes {self.max_payload}"
            )
        if len(self.streams) >= self._max_streams:
            raise LocalProtocolError(f"{self._max_streams} streams are open already")
        stream = Stream(self._new_id(), 0, opened_by_peer=False)
        self.streams[stream.local] = stream
        self._send(wire.OPEN, stream.local, self._window if self.delayed_ack else 0, payload)
        return stream.local

    def accept_stream(self, local: int) -> None:
        """Answer ``OpenRequested`` with yes."""
        stream = self._stream(local)
        if stream.accepted or not stream.opened_by_peer:
            raise LocalProtocolError(f"stream {local} does not wait to be accepted")
        stream.accepted = True
        stream.credit = stream.peer_window if self.delayed_ack else self.max_payload
        self._send_okay(stream, self._window)

    def refuse_stream(self, local: int) -> None:
        """Answer ``OpenRequested`` with no."""
        stream = self._stream(local)
        if stream.accepted or not stream.opened_by_peer:
            raise LocalProtocolError(f"stream {local} does not wait to be refused")
        del self.streams[local]
        self._send(wire.CLSE, 0, stream.remote)

    def sendable(self, local: int) -> int:
        """How many bytes ``send_data`` takes for this stream now; 0 until the peer acknowledges."""
        stream = self.streams.get(local)
        if stream is None or not stream.accepted or stream.credit <= 0:
            return 0
        return self.max_payload

    def send_data(self, local: int, data: Buffer | memoryview) -> None:
        """Send one payload of 1 to ``sendable`` bytes.

        ``data`` is kept, not copied, until ``data_to_send`` hands it out.

        Raises:
            LocalProtocolError: more than ``sendable``, or nothing at all: adb 36 never acknowledges
                an empty WRTE, so none is ever sent.
        """
        stream = self._stream(local)
        size = len(data)
        if not 0 < size <= self.max_payload or not stream.accepted or stream.credit <= 0:
            raise LocalProtocolError(f"stream {local} cannot take {size} bytes now")
        stream.credit = stream.credit - size if self.delayed_ack else 0
        self._send(wire.WRTE, local, stream.remote, data)

    def acknowledge(self, local: int, size: int) -> None:
        """``size`` received bytes, one ``StreamData``, have been dealt with. Unknown streams are fine."""
        stream = self.streams.get(local)
        if stream is None or not stream.unacked_packets:
            return
        size = min(size, stream.unacked)
        stream.unacked -= size
        stream.unacked_packets -= 1
        self.unacked -= size
        self._send_okay(stream, size)

    def close_stream(self, local: int) -> None:
        """End a stream; ends an unanswered OPEN of ours too. Unknown streams are fine."""
        stream = self.streams.pop(local, None)
        if stream is None:
            return
        self.unacked -= stream.unacked
        if stream.remote:
            self._send(wire.CLSE, local, stream.remote)
        # An OPEN of ours that was not answered yet: the peer's late OKAY finds no stream and is
        # answered with CLSE, which ends it there.

    def _send_okay(self, stream: Stream, window: int) -> None:
        if self.delayed_ack:
            self._send(wire.OKAY, stream.local, stream.remote, _INT32.pack(window))
        else:
            self._send(wire.OKAY, stream.local, stream.remote)

    def _stream(self, local: int) -> Stream:
        stream = self.streams.get(local)
        if stream is None:
            raise LocalProtocolError(f"there is no stream {local}")
        return stream

    def _new_id(self) -> int:
        while self._next_id in self.streams:
            self._next_id = self._next_id % _MAX_ID + 1
        local = self._next_id
        self._next_id = local % _MAX_ID + 1
        return local

    def _end_streams(self, reason: AdbError | PeerError) -> None:
        streams, self.streams = self.streams, {}
        self.unacked = 0
        for stream in streams.values():
            self._emit(ev.StreamClosed(stream.local, not stream.accepted, reason))

    def _on_open(self, packet: Packet) -> None:
        remote, window = packet.arg0, packet.arg1
        if not remote:
            return
        service = bytes(packet.payload).rstrip(b"\0")
        if not service or bool(window) != self.delayed_ack or len(self.streams) >= self._max_streams:
            self._send(wire.CLSE, 0, remote)
            return
        stream = Stream(self._new_id(), remote, opened_by_peer=True, peer_window=window)
        self.streams[stream.local] = stream
        self._emit(ev.OpenRequested(stream.local, service))

    def _on_okay(self, packet: Packet) -> None:
        remote, local, payload = packet.arg0, packet.arg1, packet.payload
        stream = self.streams.get(local)
        if stream is None:
            if local and remote:
                self._send(wire.CLSE, local, remote)
            return
        if len(payload) != (4 if self.delayed_ack else 0):
            return
        grant = _INT32.unpack(payload)[0] if self.delayed_ack else 0
        if stream.accepted:
            if stream.remote != remote:
                return
            stream.credit = min(stream.credit + grant, WINDOW_LIMIT) if self.delayed_ack else self.max_payload
            if stream.credit > 0:
                self._emit(ev.StreamWritable(local))
        elif not stream.opened_by_peer and remote:
            stream.remote = remote
            stream.accepted = True
            stream.credit = grant if self.delayed_ack else self.max_payload
            self._emit(ev.StreamReady(local))

    def _on_write(self, packet: Packet) -> None:
        remote, local, payload = packet.arg0, packet.arg1, packet.payload
        stream = self.streams.get(local)
        if stream is None or stream.remote != remote or not stream.accepted:
            return
        size = len(payload)
        stream.unacked += size
        stream.unacked_packets += 1
        self.unacked += size
        if self.delayed_ack:
            # A sender may overshoot its window by one packet.
            limit = self._window + self.max_payload
            packets = limit
        else:
            limit = UNACKED_BURST * self.max_payload
            packets = 1024
        if stream.unacked > limit or stream.unacked_packets > packets:
            raise PeerError(
                f"stream {local} was sent {stream.unacked} bytes ahead of our acknowledgement, "
                f"at most {limit} are allowed",
                code="ANBOX-A005",
            )
        if size:
            self._emit(ev.StreamData(local, payload))
        else:
            self.acknowledge(local, 0)

    def _on_close(self, packet: Packet) -> None:
        remote, local = packet.arg0, packet.arg1
        stream = self.streams.get(local)
        if stream is None or (remote and stream.accepted and stream.remote != remote):
            return
        if stream.opened_by_peer and not stream.accepted and remote not in (0, stream.remote):
            return
        del self.streams[local]
        self.unacked -= stream.unacked
        if stream.remote:
            self._send(wire.CLSE, local, stream.remote)
        self._emit(ev.StreamClosed(local, refused=not stream.accepted))

    def unacknowledged(self) -> Iterator[tuple[int, int]]:
        """(stream, bytes received and not acknowledged), for diagnosis."""
        return ((stream.local, stream.unacked) for stream in self.streams.values())


Handler = Callable[[Packet], None]

_STREAM_HANDLERS = {
    wire.OPEN: "_on_open",
    wire.OKAY: "_on_okay",
    wire.WRTE: "_on_write",
    wire.CLSE: "_on_close",
}

HANDLERS: dict[tuple[Role, Phase], dict[int, str]] = {
    (Role.HOST, Phase.CONNECTING): {
        wire.CNXN: "_on_host_cnxn",
        wire.AUTH: "_on_token",
        wire.STLS: "_on_stls_offer",
    },
    (Role.HOST, Phase.AUTHORIZING): {wire.CNXN: "_on_host_cnxn", wire.AUTH: "_on_token"},
    (Role.HOST, Phase.UNAUTHORIZED): {wire.CNXN: "_on_host_cnxn"},
    (Role.HOST, Phase.ONLINE): {wire.CNXN: "_on_host_cnxn", **_STREAM_HANDLERS},
    (Role.DEVICE, Phase.WAITING): {wire.CNXN: "_on_device_cnxn"},
    (Role.DEVICE, Phase.GREETED): {wire.CNXN: "_on_device_cnxn"},
    (Role.DEVICE, Phase.CHALLENGED): {wire.CNXN: "_on_device_cnxn", wire.AUTH: "_on_auth_answer"},
    (Role.DEVICE, Phase.TLS_OFFERED): {wire.CNXN: "_on_device_cnxn", wire.STLS: "_on_stls_answer"},
    (Role.DEVICE, Phase.ONLINE): {wire.CNXN: "_on_device_cnxn", **_STREAM_HANDLERS},
}
"""(role, phase) -> command -> method. What is not here is ignored."""
