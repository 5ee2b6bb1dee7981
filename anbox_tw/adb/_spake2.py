"""SPAKE2 over edwards25519 as BoringSSL does it (``crypto/curve25519/spake25519.c``). Pure.

Plain Python integers: one pairing costs some milliseconds, and the password is good for one try, so
neither speed nor timing is worth a native library here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from anbox_tw.errors import PeerError

__all__ = ["MESSAGE_SIZE", "Spake2"]

MESSAGE_SIZE = 32

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_M1 = pow(2, (_P - 1) // 4, _P)

Point = tuple[int, int, int, int]
"""Extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, x*y = T/Z."""

_NEUTRAL: Point = (0, 1, 1, 0)


def _add(a: Point, b: Point) -> Point:
    x1, y1, z1, t1 = a
    x2, y2, z2, t2 = b
    p = (y1 - x1) * (y2 - x2) % _P
    q = (y1 + x1) * (y2 + x2) % _P
    r = 2 * t1 * t2 * _D % _P
    s = 2 * z1 * z2 % _P
    e, f, g, h = q - p, s - r, s + r, q + p
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiply(scalar: int, point: Point) -> Point:
    result = _NEUTRAL
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _negate(point: Point) -> Point:
    x, y, z, t = point
    return -x % _P, y, z, -t % _P


def encode_point(point: Point) -> bytes:
    """The 32-byte compressed form."""
    x, y, z, _ = point
    inverse = pow(z, -1, _P)
    x, y = x * inverse % _P, y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decode_point(data: bytes) -> Point:
    """The reverse.

    Raises:
        PeerError: no point of the curve has this form.
    """
    if len(data) != MESSAGE_SIZE:
        raise PeerError(f"a SPAKE2 message has {MESSAGE_SIZE} bytes, not {len(data)}", code="ANBOX-A020")
    value = int.from_bytes(data, "little")
    sign, y = value >> 255, value & ((1 << 255) - 1)
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if v * x * x % _P == -u % _P:
        x = x * _SQRT_M1 % _P
    if y >= _P or v * x * x % _P != u:
        raise PeerError("the SPAKE2 message is not a point of the curve", code="ANBOX-A020")
    if x & 1 != sign:
        x = -x % _P
    return x, y, 1, x * y % _P


_BASE = decode_point((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
_M = decode_point(bytes.fromhex("5ada7e4bf6ddd9adb6626d32131c6b5c51a1e347a3478f53cfcf441b88eed12e"))
_N = decode_point(bytes.fromhex("10e3df0ae37d8e7a99b5fe74b44672103dbddcbd06af680d71329a11693bc778"))


class Spake2:
    """One side of one exchange.

    Args:
        alice: whether this is the side that BoringSSL calls Alice; in ADB the host.
        my_name: our name, NUL included.
        their_name: the peer's name, NUL included.
        password: what both know.
        random: gives that many random bytes; for tests.

    Attributes:
        message: our 32 bytes for the peer.
    """

    def __init__(
        self,
        alice: bool,
        my_name: bytes,
        their_name: bytes,
        password: bytes,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._alice = alice
        self._my_name = my_name
        self._their_name = their_name
        self._hash = hashlib.sha512(password).digest()
        scalar = int.from_bytes(self._hash, "little") % _L
        # A multiple of eight leaves nothing of the peer's point outside the prime-order group.
        for bit in range(3):
            if scalar >> bit & 1:
                scalar += _L << bit
        self._scalar = scalar
        self._private = int.from_bytes(random(64), "little") % _L * 8
        mask = _M if alice else _N
        self.message = encode_point(_add(_multiply(self._private, _BASE), _multiply(scalar, mask)))

    def key(self, message: bytes) -> bytes:
        """The 64 shared bytes; equal on both sides if the passwords are.

        Args:
            message: the peer's 32 bytes.

        Raises:
            PeerError: they are no point.
        """
        mask = _N if self._alice else _M
        point = _add(decode_point(message), _negate(_multiply(self._scalar, mask)))
        shared = encode_point(_multiply(self._private, point))
        mine, theirs = (self._my_name, self.message), (self._their_name, message)
        first, second = (mine, theirs) if self._alice else (theirs, mine)
        digest = hashlib.sha512()
        for part in (first[0], second[0], first[1], second[1], shared, self._hash):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()
