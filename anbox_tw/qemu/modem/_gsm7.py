"""GSM 7 bit (3GPP TS 23.038 section 6.2.1): the default alphabet, its extension, and the packing of septets."""

from __future__ import annotations

__all__ = ["decode_septets", "encode_septets", "pack", "unpack"]

_DEFAULT = (
    "@£$¥èéùìòÇ\nØø\rÅå"
    "Δ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ"
    " !\"#¤%&'()*+,-./"
    "0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNO"
    "PQRSTUVWXYZÄÖÑÜ§"
    "¿abcdefghijklmno"
    "pqrstuvwxyzäöñüà"
)

_ESCAPE = 0x1B

_EXTENSION = {
    0x0A: "\f",
    0x14: "^",
    0x28: "{",
    0x29: "}",
    0x2F: "\\",
    0x3C: "[",
    0x3D: "~",
    0x3E: "]",
    0x40: "|",
    0x65: "€",
}

_CODES: dict[str, tuple[int, ...]] = {
    character: (code,) for code, character in enumerate(_DEFAULT) if code != _ESCAPE
} | {character: (_ESCAPE, code) for code, character in _EXTENSION.items()}


def encode_septets(text: str) -> list[tuple[int, ...]] | None:
    """The septets of each character, one or two; None if a character is in neither table."""
    codes = [_CODES.get(character) for character in text]
    return None if None in codes else [code for code in codes if code is not None]


def decode_septets(septets: bytes) -> str:
    """The text of septets, one in each byte; an unknown extension is the default character, a lone escape a blank."""
    text = []
    escaped = False
    for code in septets:
        if escaped:
            text.append(_EXTENSION.get(code, _DEFAULT[code & 0x7F]) if code != _ESCAPE else " ")
            escaped = False
        elif code == _ESCAPE:
            escaped = True
        else:
            text.append(_DEFAULT[code & 0x7F])
    if escaped:
        text.append(" ")
    return "".join(text)


def pack(septets: bytes, fill_bits: int = 0) -> bytes:
    """Pack septets into octets, the first one in the lowest bits, behind ``fill_bits`` zero bits (0 to 6)."""
    value = 0
    for number, septet in enumerate(septets):
        value |= septet << (7 * number)
    value <<= fill_bits
    return value.to_bytes((7 * len(septets) + fill_bits + 7) // 8, "little")


def unpack(octets: bytes, count: int, fill_bits: int = 0) -> bytes:
    """The first ``count`` septets that ``octets`` hold behind ``fill_bits`` bits, as many as there are."""
    count = max(0, min(count, (8 * len(octets) - fill_bits) // 7))
    value = int.from_bytes(octets, "little") >> fill_bits
    return bytes((value >> (7 * number)) & 0x7F for number in range(count))
