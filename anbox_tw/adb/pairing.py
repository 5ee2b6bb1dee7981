"""Pairing with a code, both sides (AOSP ``pairing_connection``, ``pairing_auth``, ``crypto/aes_128_gcm.cpp``).

TLS 1.3 with certificates that nobody checks; SPAKE2 over the code and TLS's exported key; then each
side sends who it is, encrypted with what SPAKE2 gave. Who does not know the code learns nothing and has
one try for each connection.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from struct import Struct
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHandshakeListener, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from anbox_tw.adb._spake2 import Spake2
from anbox_tw.adb.keys import AdbKey, AdbKeyError, PublicKey
from anbox_tw.adb.tls import EXPORTER_LABEL, ClientTls, ServerTls
from anbox_tw.errors import AdbError, AnboxError, PeerError, TimedOut

__all__ = [
    "Cipher",
    "PairingFailed",
    "PairingNotStarted",
    "PairingServer",
    "PairingSession",
    "pair",
    "random_code",
]

VERSION = 1
SPAKE2_MSG = 0
PEER_INFO = 1
RSA_PUB_KEY = 0
DEVICE_GUID = 1
PEER_INFO_SIZE = 8192
MAX_PACKET = 16384
"""``kMaxPayloadSize`` in ``pairing_connection.cpp``: twice the peer information."""
EXPORT_SIZE = 64
CLOSE_TIMEOUT_S = 5.0
"""For the device to close after it has all; it closes at once."""

TIMEOUT_S = 30.0
"""One exchange, from the connection to the peer information; a person's typing is over by then."""
MAX_CONNECTIONS = 10
MAX_ATTEMPTS = 20
"""Limits of ``pairing_server.cpp``: after these the code is dead."""

_HEADER = Struct(">BBI")
_CLIENT_NAME = b"adb pair client\0"
_SERVER_NAME = b"adb pair server\0"
_INFO = b"adb pairing_auth aes-128-gcm key"


class PairingFailed(AdbError):
    """The two sides did not pair: a wrong code, as a rule."""


class PairingNotStarted(PairingFailed):
    """Nobody listens where the device should wait for a code."""


def random_code() -> str:
    """Six digits for the user to type."""
    return f"{secrets.randbelow(1_000_000):06d}"


class Cipher:
    """AES-128-GCM with a counter for each direction.

    Args:
        key: the 64 bytes from SPAKE2.
    """

    def __init__(self, key: bytes) -> None:
        derived = HKDF(algorithm=hashes.SHA256(), length=16, salt=None, info=_INFO).derive(key)
        self._aes = AESGCM(derived)
        self._sent = 0
        self._received = 0

    def encrypt(self, data: bytes) -> bytes:
        """The next message to send, with its tag."""
        nonce = self._sent.to_bytes(12, "little")
        self._sent += 1
        return self._aes.encrypt(nonce, data, None)

    def decrypt(self, data: bytes) -> bytes:
        """The next message received.

        Raises:
            PairingFailed: it was not made with our key.
        """
        nonce = self._received.to_bytes(12, "little")
        try:
            plain = self._aes.decrypt(nonce, data, None)
        except (InvalidTag, ValueError) as error:
            raise PairingFailed("Wrong password or connection was dropped.") from error
        self._received += 1
        return plain


class PairingSession:
    """One exchange inside TLS, without its I/O.

    Args:
        host: whether we are the host (Alice), else the device.
        password: the code and the exported key.
        info_kind: ``RSA_PUB_KEY`` or ``DEVICE_GUID``.
        info: what we say about ourselves, at most 8191 bytes.

    Attributes:
        peer: (kind, text) of the peer, once known.
    """

    def __init__(self, *, host: bool, password: bytes, info_kind: int, info: bytes) -> None:
        names = (_CLIENT_NAME, _SERVER_NAME) if host else (_SERVER_NAME, _CLIENT_NAME)
        self._spake = Spake2(host, *names, password)
        self._plain = (bytes([info_kind]) + info).ljust(PEER_INFO_SIZE, b"\0")
        if len(self._plain) != PEER_INFO_SIZE:
            raise PairingFailed("the peer information is too long")
        self._cipher: Cipher | None = None
        self._buffer = b""
        self.peer: tuple[int, str] | None = None

    def start(self) -> bytes:
        """The first bytes to send."""
        return _packet(SPAKE2_MSG, self._spake.message)

    def receive_data(self, data: bytes) -> bytes:
        """Take the peer's next bytes; what to send in answer.

        Raises:
            PeerError: the peer does not speak the protocol.
            PairingFailed: the peer has another code.
        """
        self._buffer += data
        answer = b""
        while len(self._buffer) >= _HEADER.size and self.peer is None:
            version, kind, size = _HEADER.unpack_from(self._buffer)
            expected = SPAKE2_MSG if self._cipher is None else PEER_INFO
            if version != VERSION or kind != expected or not 0 < size <= MAX_PACKET:
                raise PeerError(
                    f"not a pairing packet: version {version}, type {kind}, {size} bytes", code="ANBOX-A021"
                )
            if len(self._buffer) < _HEADER.size + size:
                break
            payload = self._buffer[_HEADER.size : _HEADER.size + size]
            self._buffer = self._buffer[_HEADER.size + size :]
            if self._cipher is None:
                self._cipher = Cipher(self._spake.key(payload))
                answer += _packet(PEER_INFO, self._cipher.encrypt(self._plain))
            else:
                plain = self._cipher.decrypt(payload)
                if len(plain) != PEER_INFO_SIZE:
                    raise PeerError(f"the peer information has {len(plain)} bytes", code="ANBOX-A021")
                self.peer = plain[0], plain[1:].split(b"\0", 1)[0].decode("utf-8", "replace")
        return answer


def _packet(kind: int, payload: bytes) -> bytes:
    return _HEADER.pack(VERSION, kind, len(payload)) + payload


@implementer(IHandshakeListener)
class _PairingProtocol(Protocol):
    """One exchange over TLS. ``done`` fires with the peer's information."""

    transport: Any

    def __init__(self, clock: IReactorTime, *, host: bool, code: str, info_kind: int, info: bytes) -> None:
        self._host = host
        self._code = code
        self._info = (info_kind, info)
        self._session: PairingSession | None = None
        self._error: AnboxError | None = None
        self._timer = clock.callLater(TIMEOUT_S, self._too_slow)
        self.done: Deferred[tuple[int, str]] = Deferred(lambda _: self._fail(PairingFailed("cancelled")))
        self.gone: Deferred[None] = Deferred()

    def handshakeCompleted(self) -> None:
        """TLS is there, and so is its exported key."""
        connection = self.transport.getHandle()
        exported = connection.export_keying_material(EXPORTER_LABEL, EXPORT_SIZE, None)
        kind, info = self._info
        self._session = PairingSession(
            host=self._host, password=self._code.encode() + exported, info_kind=kind, info=info
        )
        self.transport.write(self._session.start())

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the exchange."""
        assert self._session is not None
        if self.done.called:
            return
        try:
            answer = self._session.receive_data(data)
        except (PeerError, PairingFailed) as error:
            self._fail(error)
            return
        if answer:
            self.transport.write(answer)
        if self._session.peer is not None:
            self._stop()
            self.done.callback(self._session.peer)
            # Our own information must be out first, which loseConnection sees to.
            self.transport.loseConnection()

    def _too_slow(self) -> None:
        self._fail(TimedOut(f"pairing did not finish within {TIMEOUT_S:g} s"))

    def _fail(self, error: AnboxError) -> None:
        self._stop()
        if not self.done.called:
            self.done.errback(error)
        if self.transport is not None:
            self.transport.abortConnection()

    def _stop(self) -> None:
        if self._timer.active():
            self._timer.cancel()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection has ended, before or after the exchange."""
        self._stop()
        if not self.gone.called:
            self.gone.callback(None)
        if not self.done.called:
            self.done.errback(PairingFailed("Wrong password or connection was dropped."))


async def pair(clock: IReactorTime, endpoint: IStreamClientEndpoint, code: str, key: AdbKey) -> str:
    """Pair with the device at ``endpoint``.

    Args:
        clock: for the timeout.
        endpoint: the device's pairing port.
        code: what it shows.
        key: the key to make known to it.

    Returns:
        The device's GUID.

    Raises:
        PairingNotStarted: nobody listens there.
        PairingFailed: the code is wrong, or the device does not say who it is.
        TimedOut: it took too long.
    """
    protocol = _PairingProtocol(
        clock, host=True, code=code, info_kind=RSA_PUB_KEY, info=key.public.to_text().encode()
    )
    factory = Factory()
    factory.noisy = False
    factory.buildProtocol = lambda _address: protocol  # type: ignore[method-assign,assignment]
    wrapped = TLSMemoryBIOFactory(ClientTls([key]), isClient=True, wrappedFactory=factory, clock=clock)
    wrapped.noisy = False
    try:
        await endpoint.connect(wrapped)
    except Exception as error:
        protocol.done.addErrback(lambda _: None)
        protocol._fail(PairingFailed("cannot connect"))
        raise PairingNotStarted(f"Unable to start pairing client: {error}") from error
    kind, guid = await protocol.done

    def cut(_result: object, _timeout: float) -> None:
        protocol.transport.abortConnection()

    # What we told of ourselves has to be out: a program that ends when this returns would take it along.
    await protocol.gone.addTimeout(CLOSE_TIMEOUT_S, clock, onTimeoutCancel=cut)
    if kind != DEVICE_GUID or not guid:
        raise PairingFailed("the device did not say its GUID")
    return guid


class PairingServer(Factory):
    """The device's pairing port, a factory to listen with; good for one successful pairing.

    Args:
        clock: for timeouts.
        key: the device's own key.
        code: what the user has to type; digits, or the password of a QR code.
        guid: the device's name for hosts, such as ``adb-SERIAL-abc123``.
        allow: called with the key of a host that knew the code.

    Attributes:
        paired: fires with that key, or fails when the code has been tried too often.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self, clock: IReactorTime, key: AdbKey, code: str, guid: str, allow: Callable[[PublicKey], None]
    ) -> None:
        self._clock = clock
        self._code = code
        self._guid = guid
        self._allow = allow
        self._attempts = 0
        self._running: set[_PairingProtocol] = set()
        self.paired: Deferred[PublicKey] = Deferred()
        inner = Factory()
        inner.noisy = False
        inner.buildProtocol = self._build  # type: ignore[method-assign,assignment]
        self._tls = TLSMemoryBIOFactory(
            ServerTls(key, lambda _: True), isClient=False, wrappedFactory=inner, clock=clock
        )
        self._tls.noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Serve one attempt, or refuse it."""
        if self.paired.called or len(self._running) >= MAX_CONNECTIONS:
            return None
        if self._attempts >= MAX_ATTEMPTS:
            self.paired.errback(PairingFailed(f"the code was tried {MAX_ATTEMPTS} times without success"))
            return None
        self._attempts += 1
        return self._tls.buildProtocol(addr)

    def _build(self, _address: object) -> Any:
        protocol = _PairingProtocol(
            self._clock, host=False, code=self._code, info_kind=DEVICE_GUID, info=self._guid.encode()
        )
        self._running.add(protocol)

        def done(peer: tuple[int, str]) -> None:
            self._running.discard(protocol)
            kind, text = peer
            if kind != RSA_PUB_KEY or self.paired.called:
                return
            try:
                key = PublicKey.from_text(text)
            except AdbKeyError as error:
                self._log.warn("a host paired without a usable key: {error}", error=error)
                return
            self._allow(key)
            self.paired.callback(key)

        def failed(failure: Failure) -> None:
            self._running.discard(protocol)
            failure.trap(AnboxError, defer.CancelledError)
            self._log.info("a pairing attempt failed: {error}", error=failure.value)

        protocol.done.addCallbacks(done, failed)
        return protocol

    def close(self) -> None:
        """End the attempts that are going on."""
        for protocol in list(self._running):
            protocol._fail(PairingFailed("the pairing port is closing"))
