"""TLS of ADB: STLS on a transport, and the outer layer of pairing (AOSP ``adb/tls``, ``adb/crypto``).

TLS 1.3 only. Certificates are wrapped keys: nobody looks at their chain, names or dates, only at the
RSA public key inside. Each end makes its certificate from its ADB key.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from zope.interface import implementer

from anbox_tw.adb.keys import AdbKey, AdbKeyError, PublicKey

__all__ = ["EXPORTER_LABEL", "ClientTls", "ServerTls", "certificate_for", "peer_key"]

EXPORTER_LABEL = b"adb-label\0"
"""Label of the exported keying material in pairing; the NUL is part of it."""

_VALIDITY = datetime.timedelta(days=3650)


def certificate_for(key: AdbKey) -> x509.Certificate:
    """The self-signed certificate that stands for ``key``, shaped as ``GenerateX509Certificate`` does it."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Android"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Adb"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    public = key.key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        # A peer whose clock is a little behind ours must not call it not yet valid.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key.key, hashes.SHA256())
    )


def _context(key: AdbKey) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate(certificate_for(key))
    context.use_privatekey(key.key)
    return context


def peer_key(certificate: crypto.X509 | x509.Certificate | None) -> PublicKey | None:
    """The ADB key inside a peer's certificate; None when there is none or it is of another kind."""
    if certificate is None:
        return None
    parsed = certificate if isinstance(certificate, x509.Certificate) else certificate.to_cryptography()
    key = parsed.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return None
    try:
        return PublicKey(key)
    except AdbKeyError:
        return None


@implementer(IOpenSSLClientConnectionCreator)
class ClientTls:
    """The host's end: shows the certificate of one key and checks nothing.

    Args:
        keys: our keys, of which the first is shown. A device may name those that it knows; that is not looked at.
    """

    def __init__(self, keys: Iterable[AdbKey]) -> None:
        self._keys = list(keys)
        self._context = _context(self._keys[0])
        self._context.set_verify(SSL.VERIFY_PEER, lambda *_args: True)

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """A connection object for one handshake."""
        return SSL.Connection(self._context, None)


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """The device's end: asks for the host's certificate.

    Args:
        key: the device's own key.
        allow: whether a host with this key may enter; called while the handshake is going on.
    """

    def __init__(self, key: AdbKey, allow: Callable[[PublicKey], bool]) -> None:
        self._allow = allow
        self._context = _context(key)
        self._context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify)

    def _verify(
        self, _connection: SSL.Connection, cert: crypto.X509, _error: int, depth: int, _ok: int
    ) -> bool:
        if depth > 0:
            return True
        key = peer_key(cert)
        return key is not None and self._allow(key)

    def serverConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        """A connection object for one handshake."""
        return SSL.Connection(self._context, None)
