"""MLX, the `quantization` of a config.json without a method.

`weight` uint32 [N, K·b/32], numbers bit after bit along K; `scales` and `biases` [N, K/g]: q · scale + bias. Embedding
and head, too; a module may have bits and groups of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from qwen3.checkpoint.formats.affine import Affine, Marks, group_columns, unpack_bits, words
from qwen3.checkpoint.formats.layout import FLOATS, Piece, Want
from qwen3.checkpoint.formats.settings import Settings
from qwen3.checkpoint.header import TensorEntry
from qwen3.errors import ConfigError

_BITS, _GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)


@dataclass(frozen=True)
class Mlx:
    """See `Layout`. own: module → its (bits, group), None if it is not quantized."""

    where: str
    bits: int
    group: int
    own: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)

    @classmethod
    def parse(cls, where: str, data: Any) -> Mlx:
        bits, group, keys = _numbers(where, data)
        own: dict[str, tuple[int, int] | None] = {}
        for name in [name for name in keys.left if "." in name or name == "lm_head"]:
            value = keys.left.pop(name)
            if value is False:
                own[name] = None
            elif value is not True:
                own_bits, own_group, rest = _numbers(f"{where}.{name[:80]}", value)
                rest.finish()
                own[name] = own_bits, own_group
        keys.finish()
        return cls(where, bits, group, own)

    def of(self, module: str) -> tuple[int, int] | None:
        stacked = re.sub(r"\.experts\.\d+\.", ".switch_mlp.", module)
        return self.own.get(module, self.own.get(stacked, (self.bits, self.group)))

    def wants(
        self, module: str, shape: tuple[int, ...], entries: Mapping[str, TensorEntry]
    ) -> Mapping[str, Want] | None:
        how, weight, (rows, columns) = self.of(module), entries.get(f"{module}.weight"), shape
        if how is None or (weight is not None and weight.dtype != "U32" and f"{module}.scales" not in entries):
            return None
        groups = columns // group_columns(self.where, module, columns, how[1])
        return {
            ".weight": Want((rows, words(self.where, module, columns, how[0])), ("U32",)),
            ".scales": Want((rows, groups), FLOATS),
            ".biases": Want((rows, groups), FLOATS),
        }

    def tensor(self, module: str, shape: tuple[int, ...], pieces: Mapping[str, Piece]) -> Affine:
        how = self.of(module)
        assert how is not None
        return MlxTensor(shape, *how, pieces)


def _numbers(where: str, data: Any) -> tuple[int, int, Settings]:
    keys = Settings(where, data)
    bits, group = keys.one_of("bits", _BITS), keys.one_of("group_size", _GROUPS)
    if keys.take("mode", "affine") != "affine":
        raise ConfigError(
            f"{where}.mode is {data['mode']!r}, which is not read (only 'affine'); convert with --q-mode affine"
        )
    return bits, group, keys


class MlxTensor(Affine):
    def __init__(self, shape: tuple[int, ...], bits: int, group: int, pieces: Mapping[str, Piece]) -> None:
        super().__init__(shape, f"MLX {bits}-bit", pieces)
        self.bits, self.group = bits, group

    def q(self, first: int, last: int) -> Tensor:
        return unpack_bits(self.pieces[".weight"].read(first, last), self.bits)

    def marks(self, first: int, last: int) -> Marks:
        return self.pieces[".scales"].read(first, last), None, self.pieces[".biases"].read(first, last)
