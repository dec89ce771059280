"""bitsandbytes, `quant_method: bitsandbytes` in 4 bits (nf4, fp4).

`weight` uint8 [N·K/2, 1], two numbers a byte, the first one high, row after row; `weight.quant_map` float32 [16] what
they stand for; `weight.absmax` a factor for each block of (usually 64) numbers: float32, or uint8 with
`nested_quant_map`, `nested_absmax` and an offset; `weight.quant_state.bitsandbytes__nf4` a JSON object with the sizes,
as bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3.checkpoint.formats.layout import Piece, Quantized, Want
from qwen3.checkpoint.formats.settings import Settings
from qwen3.checkpoint.header import TensorEntry
from qwen3.errors import ConfigError

_IGNORED = """quant_method _load_in_4bit _load_in_8bit bnb_4bit_compute_dtype llm_int8_enable_fp32_cpu_offload
llm_int8_has_fp16_weight llm_int8_skip_modules llm_int8_threshold bnb_4bit_use_double_quant"""
_MAX_STATE = 10_000  # bytes
_LARGEST = 1e30  # of an offset


@dataclass(frozen=True)
class Bitsandbytes:
    """See `Layout`."""

    kind: str

    @classmethod
    def parse(cls, where: str, data: Any) -> Bitsandbytes:
        keys = Settings(where, data)
        if keys.take("load_in_8bit", False) or not keys.take("load_in_4bit", False):
            raise ConfigError(f"{where} is not in 4 bits, which alone is read of bitsandbytes; take nf4, or bfloat16")
        kind = keys.one_of("bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")
        keys.one_of("bnb_4bit_quant_storage", ("uint8",), "uint8")
        keys.finish(_IGNORED)
        return cls(kind)

    def wants(
        self, module: str, shape: tuple[int, ...], entries: Mapping[str, TensorEntry]
    ) -> Mapping[str, Want] | None:
        weight, absmax = entries.get(f"{module}.weight"), entries.get(f"{module}.weight.absmax")
        if absmax is None and (weight is None or weight.dtype != "U8"):
            return None
        nested = absmax is not None and absmax.dtype == "U8"
        found = {
            ".weight": Want((-(-math.prod(shape) // 2), 1), ("U8",)),
            ".weight.absmax": Want(None, ("F32", "U8")),
            ".weight.quant_map": Want((16,), ("F32",)),
            f".weight.quant_state.bitsandbytes__{self.kind}": Want(None, ("U8",)),
        }
        if nested:
            found[".weight.nested_absmax"] = Want(None, ("F32",))
            found[".weight.nested_quant_map"] = Want((256,), ("F32",))
        return found

    def tensor(self, module: str, shape: tuple[int, ...], pieces: Mapping[str, Piece]) -> Quantized:
        return FourBits(shape, self.kind, pieces)


class FourBits(Quantized):
    def __init__(self, shape: tuple[int, ...], kind: str, pieces: Mapping[str, Piece]) -> None:
        super().__init__(shape, f"bitsandbytes {kind}", pieces)
        piece = pieces[f".weight.quant_state.bitsandbytes__{kind}"]
        if piece.nbytes > _MAX_STATE:
            raise piece.refuse(f"has {piece.nbytes} bytes, too many for a few sizes")
        try:
            state = json.loads(piece.read().view(-1).numpy().tobytes().decode())
        except (ValueError, RecursionError) as error:
            raise piece.refuse(f"is not valid JSON ({error})") from None
        keys = Settings(piece.name, state)
        keys.one_of("quant_type", (kind,))
        keys.one_of("shape", (list(shape),))
        powers = tuple(1 << i for i in range(5, 13))
        self.block = keys.one_of("blocksize", powers)
        self.blocks = -(-math.prod(shape) // self.block)
        _has(pieces[".weight.absmax"], self.blocks)
        self.nested = 0
        if ".weight.nested_absmax" in pieces:
            self.nested, self.offset = keys.one_of("nested_blocksize", powers), keys.take("nested_offset")
            keys.one_of("nested_dtype", ("float32",), "float32")
            if type(self.offset) not in (int, float) or not abs(self.offset) < _LARGEST:
                raise piece.refuse(f"has the nested_offset {str(self.offset)[:40]!r}, which is no number to add")
            _has(pieces[".weight.nested_absmax"], -(-self.blocks // self.nested))
        keys.finish("dtype")

    def read(self, rows: slice, dtype: torch.dtype) -> Tensor:
        (first, last), columns = self.span(rows), self.shape[1]
        begin, end = first * columns, last * columns
        data = self.pieces[".weight"].read(begin // 2, -(-end // 2)).view(-1)
        codes = torch.stack((data >> 4, data & 15), -1).view(-1)[begin % 2 :][: end - begin]
        place = torch.arange(begin, end) // self.block
        least, most = begin // self.block, -(-end // self.block)
        factors = self._factors(least, most)[place - least]
        values = self.pieces[".weight.quant_map"].read()[codes.int()]
        return (values * factors).view(last - first, columns).to(dtype)

    def _factors(self, first: int, last: int) -> Tensor:
        """float32, of some blocks."""
        found = self.pieces[".weight.absmax"].read(first, last)
        if not self.nested:
            return found
        outer = self.pieces[".weight.nested_absmax"].read()[torch.arange(first, last) // self.nested]
        return self.pieces[".weight.nested_quant_map"].read()[found.int()] * outer + self.offset


def _has(piece: Piece, count: int) -> None:
    if piece.shape != (count,):
        raise piece.refuse(f"has shape {list(piece.shape)} instead of {[count]}")
