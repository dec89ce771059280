"""The bytes of a GGUF file before its data: the inverse of `checkpoint.gguf.reader`.

Format: docs/gguf.md of ggml-org/ggml, version 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3.checkpoint.gguf.reader import MAGIC
from qwen3.quantize.gguf.encode import BY_NAME

ALIGNMENT = 32
_U16, _I32, _U32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 2, 5, 4, 6, 7, 8, 9, 10


@dataclass(frozen=True)
class Entry:
    """A tensor to be: `kind` by name, shape outermost dimension first."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        form = BY_NAME[self.kind][1]
        return math.prod(self.shape) // form.block * form.size

    @property
    def padding(self) -> int:
        """Bytes behind it."""
        return -self.nbytes % ALIGNMENT


class U16(int):
    """A number that is stored in 16 bits."""


def header(metadata: Mapping[str, Any], entries: Sequence[Entry]) -> bytes:
    """Everything up to the data. Values: bool, int (32 bits, or 64 if it needs them), float (32 bits), str, `U16`;
    lists of str or int (32 bits, signed)."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(entries), len(metadata))]
    for key, value in metadata.items():
        kind, data = _value(value)
        parts += [_text(key), struct.pack("<I", kind), data]
    offset = 0
    for entry in entries:
        dims = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
        parts += [_text(entry.name), dims, struct.pack("<IQ", BY_NAME[entry.kind][0], offset)]
        offset += entry.nbytes + entry.padding
    out = b"".join(parts)
    return out + bytes(-len(out) % ALIGNMENT)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _BOOL, bytes([value])
    if isinstance(value, U16):
        return _U16, struct.pack("<H", value)
    if isinstance(value, int):
        if value < 0:
            return _I32, struct.pack("<i", value)
        return (_U32, struct.pack("<I", value)) if value < 1 << 32 else (_U64, struct.pack("<Q", value))
    if isinstance(value, float):
        return _F32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _text(value)
    assert isinstance(value, list), value
    if value and isinstance(value[0], str):
        return _ARRAY, struct.pack("<IQ", _STRING, len(value)) + b"".join(map(_text, value))
    numbers = array("i", value)
    if struct.pack("=i", 1) != struct.pack("<i", 1):
        numbers.byteswap()
    return _ARRAY, struct.pack("<IQ", _I32, len(value)) + numbers.tobytes()
