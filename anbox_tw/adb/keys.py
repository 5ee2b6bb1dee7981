"""RSA keys in Android's formats (AOSP ``libcrypto_utils/android_pubkey.cpp``, ``client/auth.cpp``)."""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from struct import Struct

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

from anbox_tw.errors import AdbError

__all__ = [
    "KEY_BITS",
    "TOKEN_SIZE",
    "AdbKey",
    "AdbKeyError",
    "PublicKey",
    "default_key_path",
    "load_or_generate_key",
    "load_public_keys",
    "load_user_keys",
]

KEY_BITS = 2048
TOKEN_SIZE = 20
_WORDS = KEY_BITS // 32
_BLOB = Struct(f"<II{KEY_BITS // 8}s{KEY_BITS // 8}sI")
BLOB_SIZE = _BLOB.size
MAX_KEY_FILE = 64 * 1024
"""A key file is below 2 KiB; nothing larger is read."""
MAX_KEYS_FILE = 4 * 1024 * 1024
"""A device's list of allowed keys: some thousands of them."""


class AdbKeyError(AdbError):
    """A key cannot be read or is not of Android's kind."""


class PublicKey:
    """The public half of an RSA-2048 key.

    Args:
        key: the key.
        comment: what follows the base64 text, ``user@host`` as a rule.
    """

    def __init__(self, key: rsa.RSAPublicKey, comment: str = "") -> None:
        if key.key_size != KEY_BITS:
            raise AdbKeyError(f"ADB keys have {KEY_BITS} bits, this one has {key.key_size}")
        self.key = key
        self.comment = comment

    @classmethod
    def from_blob(cls, blob: bytes, comment: str = "") -> PublicKey:
        """Decode Android's 524-byte form.

        Raises:
            AdbKeyError: not such a form. The Montgomery numbers in it are not looked at.
        """
        if len(blob) != BLOB_SIZE:
            raise AdbKeyError(f"an Android public key has {BLOB_SIZE} bytes, not {len(blob)}")
        words, _n0inv, modulus, _rr, exponent = _BLOB.unpack(blob)
        if words != _WORDS:
            raise AdbKeyError(f"an Android public key has {_WORDS} words of modulus, not {words}")
        try:
            key = rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "little")).public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise AdbKeyError(f"not an RSA public key: {error}") from error
        return cls(key, comment)

    @classmethod
    def from_text(cls, text: str) -> PublicKey:
        """Decode the text form: base64, a blank, a comment; a NUL or newline ends it.

        Raises:
            AdbKeyError: not such a text.
        """
        fields = text.split("\0", 1)[0].strip("\r\n").split(" ", 1)
        try:
            blob = base64.b64decode(fields[0].strip(), validate=True)
        except (binascii.Error, ValueError) as error:
            raise AdbKeyError("the key is not base64 text") from error
        return cls.from_blob(blob, fields[1] if len(fields) > 1 else "")

    def to_blob(self) -> bytes:
        """Android's 524-byte form, with its Montgomery numbers."""
        numbers = self.key.public_numbers()
        n = numbers.n
        return _BLOB.pack(
            _WORDS,
            -pow(n, -1, 1 << 32) % (1 << 32),
            n.to_bytes(KEY_BITS // 8, "little"),
            pow(2, 2 * KEY_BITS, n).to_bytes(KEY_BITS // 8, "little"),
            numbers.e,
        )

    def to_text(self) -> str:
        """The text form, as in ``adbkey.pub`` and ``adb_keys``, without newline or NUL."""
        return f"{base64.b64encode(self.to_blob()).decode()} {self.comment}"

    def verify(self, token: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is ours over the 20 bytes of ``token``, which stand for a SHA-1 digest."""
        if len(token) != TOKEN_SIZE:
            return False
        try:
            self.key.verify(signature, token, padding.PKCS1v15(), utils.Prehashed(hashes.SHA1()))  # noqa: S303
        except InvalidSignature:
            return False
        return True

    def spki_sha256(self) -> bytes:
        """SHA-256 of the DER SubjectPublicKeyInfo: what adb tells keys apart by."""
        der = self.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(der).digest()

    def fingerprint(self) -> str:
        """MD5 of the 524-byte form in colon hex, as Android's dialog shows it."""
        digest = hashlib.md5(self.to_blob(), usedforsecurity=False).hexdigest().upper()
        return ":".join(digest[index : index + 2] for index in range(0, len(digest), 2))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.key.public_numbers() == other.key.public_numbers()

    def __hash__(self) -> int:
        return hash(self.key.public_numbers())

    def __repr__(self) -> str:
        return f"<PublicKey {self.fingerprint()} {self.comment!r}>"


class AdbKey:
    """A private RSA-2048 key that signs tokens.

    Args:
        key: the key.
        comment: the comment of its public text form.
    """

    def __init__(self, key: rsa.RSAPrivateKey, comment: str = "") -> None:
        self.key = key
        self.public = PublicKey(key.public_key(), comment)

    @classmethod
    def generate(cls, comment: str | None = None) -> AdbKey:
        """A new key; takes some tenths of a second. ``comment`` defaults to ``user@host``."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        return cls(key, _user_at_host() if comment is None else comment)

    @classmethod
    def from_pem(cls, pem: bytes, comment: str = "") -> AdbKey:
        """Read a PKCS#8 or PKCS#1 PEM text.

        Raises:
            AdbKeyError: it is not an unencrypted RSA-2048 private key.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise AdbKeyError(f"not a private key in PEM form: {error}") from error
        if not isinstance(key, rsa.RSAPrivateKey):
            raise AdbKeyError("the private key is not an RSA key")
        return cls(key, comment)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AdbKey:
        """Read a private key file, and its comment from ``PATH.pub`` beside it where there is one.

        Raises:
            AdbKeyError: the file cannot be read or holds no such key.
        """
        pem = _read_limited(path, MAX_KEY_FILE)
        comment = ""
        try:
            comment = PublicKey.from_text(
                _read_limited(f"{os.fspath(path)}.pub", MAX_KEY_FILE).decode()
            ).comment
        except (AdbKeyError, UnicodeDecodeError):
            pass
        try:
            return cls.from_pem(pem, comment or _user_at_host())
        except AdbKeyError as error:
            raise AdbKeyError(
                f"{os.fspath(path)}: {error.cause}", "generate a new one with `adb keygen`"
            ) from error

    def to_pem(self) -> bytes:
        """The key as unencrypted PKCS#8 PEM, as adb writes it."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``PATH`` with mode 0600 and ``PATH.pub``; never replaces an existing key.

        Raises:
            AdbKeyError: the files cannot be written, or there is a key already.
        """
        name = os.fspath(path)
        try:
            os.makedirs(os.path.dirname(name) or ".", mode=0o750, exist_ok=True)
            for target, data, mode in (
                (name, self.to_pem(), 0o600),
                (f"{name}.pub", self.public.to_text().encode(), 0o644),
            ):
                flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if target == name else os.O_TRUNC)
                with os.fdopen(os.open(target, flags, mode), "wb") as file:
                    file.write(data)
        except OSError as error:
            raise AdbKeyError(f"cannot write the key {name}: {error.strerror}") from error

    def sign(self, token: bytes) -> bytes:
        """The 256-byte signature over a 20-byte token.

        Raises:
            AdbKeyError: the token has another size; signing anything longer would be signing at will.
        """
        if len(token) != TOKEN_SIZE:
            raise AdbKeyError(f"a token has {TOKEN_SIZE} bytes, not {len(token)}")
        return self.key.sign(token, padding.PKCS1v15(), utils.Prehashed(hashes.SHA1()))  # noqa: S303


def default_key_path(environment: Mapping[str, str] | None = None) -> str:
    """``~/.android/adbkey``, or the one below ``ANDROID_USER_HOME`` / ``ANDROID_SDK_HOME``."""
    env = os.environ if environment is None else environment
    if folder := env.get("ANDROID_USER_HOME"):
        return os.path.join(folder, "adbkey")
    home = env.get("ANDROID_SDK_HOME") or env.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, ".android", "adbkey")


def load_or_generate_key(path: str | os.PathLike[str]) -> AdbKey:
    """The key at ``path``, made first if there is none."""
    if os.path.exists(path):
        return AdbKey.load(path)
    key = AdbKey.generate()
    key.save(path)
    return key


def load_user_keys(environment: Mapping[str, str] | None = None) -> list[AdbKey]:
    """The user's key, generated if missing, then those of ``ADB_VENDOR_KEYS``; each once.

    ``ADB_VENDOR_KEYS`` is a list of files and directories separated by ``:``; of a directory only the
    files named ``*.adb_key`` count. Vendor keys that cannot be read are left out, as adb does.
    """
    env = os.environ if environment is None else environment
    keys = [load_or_generate_key(default_key_path(env))]
    for entry in filter(None, env.get("ADB_VENDOR_KEYS", "").split(":")):
        folder = Path(entry)
        for path in sorted(folder.glob("*.adb_key")) if folder.is_dir() else [folder]:
            try:
                keys.append(AdbKey.load(path))
            except AdbKeyError:
                continue
    return list({key.public.spki_sha256(): key for key in keys}.values())


def load_public_keys(paths: Iterable[str | os.PathLike[str]]) -> list[PublicKey]:
    """The allowed keys in the given ``adb_keys`` files, one text per line; lines that are none are skipped.

    Raises:
        AdbKeyError: a file cannot be read.
    """
    keys = []
    for path in paths:
        for line in _read_limited(path, MAX_KEYS_FILE).decode("utf-8", "replace").splitlines():
            if line.strip() and not line.startswith("#"):
                try:
                    keys.append(PublicKey.from_text(line))
                except AdbKeyError:
                    continue
    return keys


def _read_limited(path: str | os.PathLike[str], limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise AdbKeyError(f"cannot read the key {os.fspath(path)}: {error.strerror}") from error
    if len(data) > limit:
        raise AdbKeyError(f"{os.fspath(path)} is larger than {limit} bytes: not a key file")
    return data


def _user_at_host() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return f"{user}@{socket.gethostname()}"
