"""AWQ (AutoAWQ), `quant_method: awq`, version "gemm".

`qweight` int32 [K, N/8], `qzeros` int32 [K/g, N/8], `scales` [K/g, N]: the eight 4-bit numbers of a word are, from the
lowest on, the rows 0, 2, 4, 6, 1, 3, 5, 7 of eight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint.formats.affine import Affine, Marks, group_columns, words
from qwen3.checkpoint.formats.gptq import no_bias
from qwen3.checkpoint.formats.layout import FLOATS, Piece, Want
from qwen3.checkpoint.formats.settings import Settings
from qwen3.checkpoint.header import TensorEntry

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word each of eight rows is
_IGNORED = """quant_method backend do_fuse exllama_config fuse_max_seq_len modules_to_fuse use_exllama meta damp_percent
desc_act sym true_sequential lm_head"""


@dataclass(frozen=True)
class Awq:
    """See `Layout`. skip: parts of names of modules that are not quantized."""

    where: str
    group: int
    skip: tuple[str, ...]

    @classmethod
    def parse(cls, where: str, data: Any) -> Awq:
        keys = Settings(where, data)
        keys.one_of("bits", (4,))
        group = keys.one_of("group_size", (-1, 32, 64, 128, 256))
        keys.one_of("zero_point", (True,), True)
        keys.one_of("version", ("gemm", "GEMM"), "gemm")
        keys.one_of("checkpoint_format", ("gemm",), "gemm")
        keys.one_of("format", ("gemm",), "gemm")
        keys.one_of("pack_dtype", ("int32",), "int32")
        keys.one_of("method", ("awq",), "awq")
        skip = keys.names("modules_to_not_convert")
        keys.finish(_IGNORED)
        return cls(where, group, skip)

    def wants(
        self, module: str, shape: tuple[int, ...], entries: Mapping[str, TensorEntry]
    ) -> Mapping[str, Want] | None:
        if any(part in module for part in self.skip) or "embed_tokens" in module:
            return None
        if f"{module}.qweight" not in entries and (f"{module}.weight" in entries or module == "lm_head"):
            return None
        rows, columns = shape
        groups = columns // group_columns(self.where, module, columns, self.group)
        packed = words(self.where, module, rows, 4)
        return {
            ".qweight": Want((columns, packed), ("I32",)),
            ".qzeros": Want((groups, packed), ("I32",)),
            ".scales": Want((groups, rows), FLOATS),
            ".bias": Want((rows,), FLOATS, False),
        }

    def tensor(self, module: str, shape: tuple[int, ...], pieces: Mapping[str, Piece]) -> Affine:
        no_bias(pieces)
        return AwqTensor(shape, self, pieces)


class AwqTensor(Affine):
    by_column, bits = True, 4

    def __init__(self, shape: tuple[int, ...], how: Awq, pieces: Mapping[str, Piece]) -> None:
        super().__init__(shape, "AWQ 4-bit", pieces)
        self.group = shape[1] if how.group == -1 else how.group

    def q(self, first: int, last: int) -> Tensor:
        return _rows(self.pieces[".qweight"].read(), first, last)

    def marks(self, first: int, last: int) -> Marks:
        zeros = _rows(self.pieces[".qzeros"].read(), first, last).int()
        return self.pieces[".scales"].read()[:, first:last].t(), zeros, None


def _rows(packed: Tensor, first: int, last: int) -> Tensor:
    """int32 [columns, N/8] -> uint8 [last - first, columns]."""
    begin, end = first // 8, -(-last // 8)
    data = packed[:, begin:end].t().clone(memory_format=torch.contiguous_format).view(torch.uint8)
    data = data.view(end - begin, len(packed), 4)
    rows = [data[..., place // 2] >> 4 if place % 2 else data[..., place // 2] & 15 for place in _PLACES]
    return torch.stack(rows, 1).flatten(0, 1)[first - 8 * begin : last - 8 * begin]
