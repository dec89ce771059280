"""The byte alphabet of byte-level BPE (GPT-2): every byte is written as one printable character in the vocabulary."""

from __future__ import annotations


def _alphabet() -> str:
    """256 characters; the first 188 stand for the printable bytes they are, the rest begin at U+0100.

    The order is that of the vocabulary: token id i (0 … 255) is the i-th character here.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return "".join(map(chr, printable)) + "".join(chr(0x100 + i) for i in range(len(hidden)))


ALPHABET = _alphabet()
_BYTE_OF = {ord(char): ord(char) for char in ALPHABET[:188]}
_BYTE_OF.update({ord(c): b for c, b in zip(ALPHABET[188:], sorted(set(range(256)) - set(_BYTE_OF)), strict=True)})


def to_bytes(token: str) -> bytes:
    """The bytes a vocabulary entry stands for. Raises KeyError if a character is not of the alphabet."""
    return bytes([_BYTE_OF[ord(char)] for char in token])
