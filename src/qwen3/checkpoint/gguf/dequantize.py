"""Blocks of GGUF's tensor types back to float32, with the arithmetic of ggml's own reference, bit for bit.

Layouts: ggml-common.h (block_q4_0 … block_tq2_0) and dequantize_row_* in ggml-quants.c of ggml-org/ggml. Each function
takes uint8 [n, bytes of a block] and gives float32 [n, elements of a block]; "d" is a block's float16 scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwen3.checkpoint.gguf.grids import FP4_VALUES, IQ4_VALUES, even_signs, grid, signs, values
from qwen3.checkpoint.gguf.types import TensorType

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
        part = blocks[first : first + step]
        places[first : first + step].copy_(decode(part).view(-1, kind.block))


def _as(blocks: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Bytes first … last-1 of each block as numbers of another width."""
    return blocks[:, first:last].contiguous().view(dtype)


def _half(blocks: Tensor, at: int) -> Tensor:
    """A float16 of each block -> float32 [n, 1]."""
    return _as(blocks, at, at + 2, torch.float16).float()


def _words(blocks: Tensor, first: int, last: int) -> Tensor:
    """16-bit words of each block -> int32."""
    return _as(blocks, first, last, torch.int16).int() & 0xFFFF


def _shifts(*by: int) -> Tensor:
    return torch.tensor(by, dtype=torch.uint8)


_BITS, _PAIRS, _NIBBLES = _shifts(*range(8)), _shifts(0, 2, 4, 6), _shifts(0, 4)


def _planes(data: Tensor, shifts: Tensor, mask: int) -> Tensor:
    """[..., k] -> [..., shifts, k]: elements that are packed k apart, lowest bits first."""
    return (data.unsqueeze(-2) >> shifts.unsqueeze(-1)) & mask


def _each(data: Tensor, shifts: Tensor, mask: int) -> Tensor:
    """[..., k] -> [..., k · shifts]: elements that are packed side by side, lowest bits first."""
    return ((data.unsqueeze(-1) >> shifts) & mask).flatten(-2)


def _halves(data: Tensor) -> Tensor:
    """[..., k] -> [..., 2k]: all low nibbles, then all high ones."""
    return torch.cat((data & 15, data >> 4), -1)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """[...] -> [..., *table.shape[1:]]"""
    return table.index_select(0, index.reshape(-1).int()).view(*index.shape, *table.shape[1:])


def _q4_0(b: Tensor) -> Tensor:
    return _halves(b[:, 2:]).float().sub_(8).mul_(_half(b, 0))


def _q4_1(b: Tensor) -> Tensor:
    return _halves(b[:, 4:]).float().mul_(_half(b, 0)).add_(_half(b, 2))


def _q5_0(b: Tensor) -> Tensor:
    q = _halves(b[:, 6:]) | (_each(b[:, 2:6], _BITS, 1) << 4)
    return q.float().sub_(16).mul_(_half(b, 0))


def _q5_1(b: Tensor) -> Tensor:
    q = _halves(b[:, 8:]) | (_each(b[:, 4:8], _BITS, 1) << 4)
    return q.float().mul_(_half(b, 0)).add_(_half(b, 2))


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].view(torch.int8).float().mul_(_half(b, 0))


def _q8_k(b: Tensor) -> Tensor:
    return b[:, 4:260].view(torch.int8).float().mul_(_as(b, 0, 4, torch.float32))


def _q2_k(b: Tensor) -> Tensor:
    scales = b[:, :16]
    q = _planes(b[:, 16:80].view(-1, 2, 32), _PAIRS, 3).reshape(-1, 16, 16).float()
    q.mul_((_half(b, 80) * (scales & 15)).unsqueeze(-1))
    return q.sub_((_half(b, 82) * (scales >> 4)).unsqueeze(-1))


def _q3_k(b: Tensor) -> Tensor:
    low, high = _halves(b[:, 96:104]), _planes(b[:, 104:108], _PAIRS, 3).flatten(1)
    scale = _half(b, 108) * (low | (high << 4)).float().sub_(32)
    two, mask = _planes(b[:, 32:96].view(-1, 2, 32), _PAIRS, 3), _planes(b[:, :32], _BITS, 1)
    q = two.reshape(-1, 16, 16).float().add_(mask.reshape(-1, 16, 16).float().sub_(1).mul_(4))
    return q.mul_(scale.unsqueeze(-1))


def _scales_k(b: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: (scales, minima) float32 [n, 8, 1]; 12 bytes hold eight 6-bit numbers of each."""
    first, second, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat((first & 63, (rest & 15) | ((first >> 2) & 48)), 1)
    minima = torch.cat((second & 63, (rest >> 4) | ((second >> 2) & 48)), 1)
    return (_half(b, 0) * scales).unsqueeze(-1), (_half(b, 2) * minima).unsqueeze(-1)


def _q4_k(b: Tensor) -> Tensor:
    scales, minima = _scales_k(b)
    return _halves(b[:, 16:].view(-1, 4, 32)).view(-1, 8, 32).float().mul_(scales).sub_(minima)


def _q5_k(b: Tensor) -> Tensor:
    scales, minima = _scales_k(b)
    q = _halves(b[:, 48:].view(-1, 4, 32)).view(-1, 8, 32) | (_planes(b[:, 16:48], _BITS, 1) << 4)
    return q.float().mul_(scales).sub_(minima)


def _q6_k(b: Tensor) -> Tensor:
    low, high = _halves(b[:, :128].view(-1, 2, 64)), _planes(b[:, 128:192].view(-1, 2, 32), _PAIRS, 3)
    q = (low.view(-1, 16, 16) | (high << 4).view(-1, 16, 16)).float().sub_(32)
    return q.mul_((_half(b, 208) * b[:, 192:208].view(torch.int8)).unsqueeze(-1))


def _tq1_0(b: Tensor) -> Tensor:
    """Five ternary digits in a byte, a fraction of 243: multiplied by powers of 3, one after the other is on top."""
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8).unsqueeze(-1)
    parts = (b[:, None, :32] * powers, b[:, None, 32:48] * powers, b[:, None, 48:52] * powers[:4])
    q = torch.cat([part.flatten(1) for part in parts], 1)
    return ((q.short() * 3) >> 8).float().sub_(1).mul_(_half(b, 52))


def _tq2_0(b: Tensor) -> Tensor:
    q = _planes(b[:, :64].view(-1, 2, 32), _PAIRS, 3).flatten(1)
    return q.float().sub_(1).mul_(_half(b, 64))


def _mxfp4(b: Tensor) -> Tensor:
    e = b[:, :1].int()
    half_scale = torch.where(e < 2, 0x200000 << e.clamp_max(1), (e - 1) << 23).view(torch.float32)
    return _look_up(values(FP4_VALUES), _halves(b[:, 1:])).mul_(half_scale)


def _iq4_nl(b: Tensor) -> Tensor:
    return _look_up(values(IQ4_VALUES), _halves(b[:, 2:])).mul_(_half(b, 0))


def _iq4_xs(b: Tensor) -> Tensor:
    low = _each(b[:, 4:8], _NIBBLES, 15)
    high = _each(b[:, 2:4], _PAIRS, 3)
    scale = _half(b, 0) * (low | (high << 4)).float().sub_(32)
    return _look_up(values(IQ4_VALUES), _halves(b[:, 8:].view(-1, 8, 16))).mul_(scale.unsqueeze(-1))


def _signed(scale: Tensor, vectors: Tensor, sign: Tensor) -> Tensor:
    """scale [n, s], vectors [n, …] of 256 elements, sign of the same number -> [n, s, 256 / s]."""
    n, groups = scale.shape
    return vectors.reshape(n, groups, -1).mul_(scale.unsqueeze(-1)).mul_(sign.reshape(n, groups, -1))


_SEVENS = torch.tensor((0, 7, 14, 21), dtype=torch.int32)
_THREES = torch.tensor((0, 3, 6, 9), dtype=torch.int32)


def _iq2_xxs(b: Tensor) -> Tensor:
    index, rest = b[:, 2:].view(-1, 8, 8)[..., :4], _as(b, 2, 66, torch.int32)[:, 1::2]
    scale = _half(b, 0) * (((rest >> 28) & 15) + 0.5) * 0.25
    return _signed(scale, _look_up(grid("IQ2_XXS"), index), _look_up(even_signs(), _each(rest, _SEVENS, 127)))


def _iq2_xs(b: Tensor) -> Tensor:
    words = _words(b, 2, 66)
    scale = _half(b, 0) * (_each(b[:, 66:], _NIBBLES, 15) + 0.5) * 0.25
    return _signed(scale, _look_up(grid("IQ2_XS"), words & 511), _look_up(even_signs(), words >> 9))


def _iq2_s(b: Tensor) -> Tensor:
    index = b[:, 2:34].int() | (_each(b[:, 66:74], _PAIRS, 3).int() << 8)
    scale = _half(b, 0) * (_each(b[:, 74:], _NIBBLES, 15) + 0.5) * 0.25
    return _signed(scale, _look_up(grid("IQ2_S"), index), _look_up(signs(), b[:, 34:66]))


def _iq3_xxs(b: Tensor) -> Tensor:
    rest = _as(b, 66, 98, torch.int32)
    scale = _half(b, 0) * (((rest >> 28) & 15) + 0.5) * 0.5
    return _signed(scale, _look_up(grid("IQ3_XXS"), b[:, 2:66]), _look_up(even_signs(), _each(rest, _SEVENS, 127)))


def _iq3_s(b: Tensor) -> Tensor:
    index = b[:, 2:66].int() | (_each(b[:, 66:74], _BITS, 1).int() << 8)
    scale = _half(b, 0) * (_each(b[:, 106:], _NIBBLES, 15) * 2 + 1)
    return _signed(scale, _look_up(grid("IQ3_S"), index), _look_up(signs(), b[:, 74:106]))


def _iq1_s(b: Tensor) -> Tensor:
    words = _words(b, 34, 50)
    index = b[:, 2:34].int() | (_each(words, _THREES, 7) << 8)
    shift = (0.125 - 0.25 * (words >> 15)).view(-1, 8, 1, 1)
    scale = _half(b, 0) * (((words >> 12) & 7) * 2 + 1)
    return (_look_up(grid("IQ1_S"), index).view(-1, 8, 4, 8) + shift).mul_(scale.view(-1, 8, 1, 1))


def _iq1_m(b: Tensor) -> Tensor:
    words, high = _words(b, 48, 56), _each(b[:, 32:48], _NIBBLES, 15).int()
    bits = (words >> 12) << torch.tensor((0, 4, 8, 12), dtype=torch.int32)  # the scale is spread over the four
    d = bits.sum(1, keepdim=True).short().view(torch.float16).float()
    shift = (0.125 - 0.25 * (high >> 3)).view(-1, 16, 2, 1)
    scale = d * (_each(words, _THREES, 7) * 2 + 1)
    index = b[:, :32].int() | ((high & 7) << 8)
    return (_look_up(grid("IQ1_S"), index).view(-1, 16, 2, 8) + shift).mul_(scale.view(-1, 16, 1, 1))


_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q8_K": _q8_k,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "MXFP4": _mxfp4, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
}  # fmt: skip
