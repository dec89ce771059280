"""Blocks of GGUF's tensor types back to float32, with the arithmetic of ggml's own reference, bit for bit.

Layouts: ggml-common.h (block_q4_0 … block_tq2_0) and dequantize_row_* in ggml-quants.c of ggml-org/ggml. Each function
takes uint8 [n, bytes of a block] and gives float32 [n, elements of a block]; "d" is a block's float16 scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwen3.checkpoint.forms import FORMS
from qwen3.checkpoint.gguf.blocks import BITS, NIBBLES, PAIRS, each, half, halves, part, planes, take_apart
from qwen3.checkpoint.gguf.grids import FP4_VALUES, even_signs, grid, signs, values
from qwen3.checkpoint.gguf.types import TensorType
from qwen3.kernels.packed import TABLE

PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Types without blocks, as PyTorch has them."""
# elements decoded at a time: what all steps touch stays in a core's cache
_AT_ONCE = 1 << 16


def dequantize(data: Tensor, kind: TensorType, out: Tensor) -> None:
    """data uint8 [bytes] of whole blocks -> out [elements], any floating-point dtype, rounded once from float32."""
    if kind.plain:
        out.view(-1).copy_(data.view(PLAIN[kind.name]))
        return
    decode, blocks = _DECODERS[kind.name], data.view(-1, kind.size)
    step = _AT_ONCE // kind.block
    places = out.view(-1, kind.block)
    for first in range(0, len(blocks), step):
        places[first : first + step].copy_(decode(blocks[first : first + step]).view(-1, kind.block))


def _half(blocks: Tensor, at: int) -> Tensor:
    """A float16 of each block -> float32 [n, 1]."""
    return half(blocks, at).float()


def _words(blocks: Tensor, first: int, last: int) -> Tensor:
    """16-bit words of each block -> int32."""
    return part(blocks, first, last, torch.int16).int() & 0xFFFF


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """[...] -> [..., *table.shape[1:]]"""
    return table.index_select(0, index.reshape(-1).int()).view(*index.shape, *table.shape[1:])


def _taken(kind: str) -> Callable[[Tensor], Tensor]:
    """Of a type that `blocks` takes apart."""
    form = FORMS[kind]

    def decode(b: Tensor) -> Tensor:
        q, scale, least, marks = take_apart(kind, b)
        scale, mins = scale.float(), None if least is None else least.float()
        if marks is not None:
            scale = scale * marks[:, 0]
            mins = None if mins is None else mins * marks[:, 1]
        zero = 0 if form.mins else 1 << (form.bits - 1)
        found = _look_up(values(TABLE), q) if form.table else q.float().sub_(zero)
        found = found.view(*scale.shape, -1).mul_(scale.unsqueeze(-1))
        return found if mins is None else found.add_(mins.unsqueeze(-1))

    return decode


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].view(torch.int8).float().mul_(_half(b, 0))  # in one step less


def _q8_k(b: Tensor) -> Tensor:
    return b[:, 4:260].view(torch.int8).float().mul_(part(b, 0, 4, torch.float32))


def _tq1_0(b: Tensor) -> Tensor:
    """Five ternary digits in a byte, a fraction of 243: multiplied by powers of 3, one after the other is on top."""
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8).unsqueeze(-1)
    parts = (b[:, None, :32] * powers, b[:, None, 32:48] * powers, b[:, None, 48:52] * powers[:4])
    q = torch.cat([part.flatten(1) for part in parts], 1)
    return ((q.short() * 3) >> 8).float().sub_(1).mul_(_half(b, 52))


def _tq2_0(b: Tensor) -> Tensor:
    q = planes(b[:, :64].view(-1, 2, 32), PAIRS, 3).flatten(1)
    return q.float().sub_(1).mul_(_half(b, 64))


def _mxfp4(b: Tensor) -> Tensor:
    e = b[:, :1].int()
    half_scale = torch.where(e < 2, 0x200000 << e.clamp_max(1), (e - 1) << 23).view(torch.float32)
    return _look_up(values(FP4_VALUES), halves(b[:, 1:])).mul_(half_scale)


def _signed(scale: Tensor, vectors: Tensor, sign: Tensor) -> Tensor:
    """scale [n, s], vectors [n, …] of 256 elements, sign of the same number -> [n, s, 256 / s]."""
    n, groups = scale.shape
    return vectors.reshape(n, groups, -1).mul_(scale.unsqueeze(-1)).mul_(sign.reshape(n, groups, -1))


_SEVENS = torch.tensor((0, 7, 14, 21), dtype=torch.int32)
_THREES = torch.tensor((0, 3, 6, 9), dtype=torch.int32)


def _iq2_xxs(b: Tensor) -> Tensor:
    index, rest = b[:, 2:].view(-1, 8, 8)[..., :4], part(b, 2, 66, torch.int32)[:, 1::2]
    scale = _half(b, 0) * (((rest >> 28) & 15) + 0.5) * 0.25
    return _signed(scale, _look_up(grid("IQ2_XXS"), index), _look_up(even_signs(), each(rest, _SEVENS, 127)))


def _iq2_xs(b: Tensor) -> Tensor:
    words = _words(b, 2, 66)
    scale = _half(b, 0) * (each(b[:, 66:], NIBBLES, 15) + 0.5) * 0.25
    return _signed(scale, _look_up(grid("IQ2_XS"), words & 511), _look_up(even_signs(), words >> 9))


def _iq2_s(b: Tensor) -> Tensor:
    index = b[:, 2:34].int() | (each(b[:, 66:74], PAIRS, 3).int() << 8)
    scale = _half(b, 0) * (each(b[:, 74:], NIBBLES, 15) + 0.5) * 0.25
    return _signed(scale, _look_up(grid("IQ2_S"), index), _look_up(signs(), b[:, 34:66]))


def _iq3_xxs(b: Tensor) -> Tensor:
    rest = part(b, 66, 98, torch.int32)
    scale = _half(b, 0) * (((rest >> 28) & 15) + 0.5) * 0.5
    return _signed(scale, _look_up(grid("IQ3_XXS"), b[:, 2:66]), _look_up(even_signs(), each(rest, _SEVENS, 127)))


def _iq3_s(b: Tensor) -> Tensor:
    index = b[:, 2:66].int() | (each(b[:, 66:74], BITS, 1).int() << 8)
    scale = _half(b, 0) * (each(b[:, 106:], NIBBLES, 15) * 2 + 1)
    return _signed(scale, _look_up(grid("IQ3_S"), index), _look_up(signs(), b[:, 74:106]))


def _iq1_s(b: Tensor) -> Tensor:
    words = _words(b, 34, 50)
    index = b[:, 2:34].int() | (each(words, _THREES, 7) << 8)
    shift = (0.125 - 0.25 * (words >> 15)).view(-1, 8, 1, 1)
    scale = _half(b, 0) * (((words >> 12) & 7) * 2 + 1)
    return (_look_up(grid("IQ1_S"), index).view(-1, 8, 4, 8) + shift).mul_(scale.view(-1, 8, 1, 1))


def _iq1_m(b: Tensor) -> Tensor:
    words, high = _words(b, 48, 56), each(b[:, 32:48], NIBBLES, 15).int()
    bits = (words >> 12) << torch.tensor((0, 4, 8, 12), dtype=torch.int32)  # the scale is spread over the four
    d = bits.sum(1, keepdim=True).short().view(torch.float16).float()
    shift = (0.125 - 0.25 * (high >> 3)).view(-1, 16, 2, 1)
    scale = d * (each(words, _THREES, 7) * 2 + 1)
    index = b[:, :32].int() | ((high & 7) << 8)
    return (_look_up(grid("IQ1_S"), index).view(-1, 16, 2, 8) + shift).mul_(scale.view(-1, 16, 1, 1))


_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    **{kind: _taken(kind) for kind in FORMS}, "Q8_0": _q8_0, "Q8_K": _q8_k,
    "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "MXFP4": _mxfp4,
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
}  # fmt: skip
