"""What can happen on an ADB connection, as plain values that ``_state.Connection`` hands out."""

from __future__ import annotations

from dataclasses import dataclass

from anbox_tw.adb._wire import Buffer
from anbox_tw.adb.banner import Banner
from anbox_tw.errors import AnboxError, PeerError

__all__ = [
    "AuthKeyOffered",
    "AuthSignatureReceived",
    "AuthTokenReceived",
    "Event",
    "Online",
    "OpenRequested",
    "PeerGreeted",
    "ProtocolFailed",
    "StreamClosed",
    "StreamData",
    "StreamReady",
    "StreamWritable",
    "TlsRequested",
]


@dataclass(slots=True)
class PeerGreeted:
    """Device role: the host's CNXN came in. All earlier streams are gone.

    Answer with ``accept``, ``challenge`` or ``offer_tls``.
    """

    banner: Banner


@dataclass(slots=True)
class Online:
    """The connection carries streams from now on."""

    banner: Banner


@dataclass(slots=True)
class AuthTokenReceived:
    """Host role: the device wants a signature over ``token``.

    Answer with ``send_signature`` or, when no key is left, ``send_public_key``.
    """

    token: bytes


@dataclass(slots=True)
class AuthSignatureReceived:
    """Device role: ``signature`` is said to be over ``token``. Answer with ``accept`` or ``challenge``."""

    token: bytes
    signature: bytes


@dataclass(slots=True)
class AuthKeyOffered:
    """Device role: the host asks its user's key to be allowed. ``accept``, or say nothing."""

    text: str


@dataclass(slots=True)
class TlsRequested:
    """Both sides agreed on TLS. ``rest`` was read behind STLS and is TLS's first input."""

    rest: bytes


@dataclass(slots=True)
class OpenRequested:
    """The peer opens stream ``stream`` to ``service``. Answer with ``accept_stream`` or ``refuse_stream``."""

    stream: int
    service: bytes


@dataclass(slots=True)
class StreamReady:
    """The peer accepted the stream we opened."""

    stream: int


@dataclass(slots=True)
class StreamWritable:
    """The peer acknowledged: ``sendable`` may have grown."""

    stream: int


@dataclass(slots=True)
class StreamData:
    """Bytes for ``stream``; each such event wants one ``acknowledge`` of its length."""

    stream: int
    data: Buffer


@dataclass(slots=True)
class StreamClosed:
    """The stream has ended and its id is free.

    Attributes:
        stream: our id.
        refused: it never opened.
        reason: None when the peer closed it in the ordinary way.
    """

    stream: int
    refused: bool = False
    reason: AnboxError | None = None


@dataclass(slots=True)
class ProtocolFailed:
    """The peer broke the protocol. Nothing more is parsed; close the connection with ``error``."""

    error: PeerError


Event = (
    PeerGreeted
    | Online
    | AuthTokenReceived
    | AuthSignatureReceived
    | AuthKeyOffered
    | TlsRequested
    | OpenRequested
    | StreamReady
    | StreamWritable
    | StreamData
    | StreamClosed
    | ProtocolFailed
)
