"""Blocks of GGUF's tensor types taken apart: the integers and float16 marks they hold, number for number.

Layouts: ggml-common.h (block_q4_0 … block_iq4_xs) of ggml-org/ggml. Functions take uint8 [n, bytes of a block].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Taken = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""q uint8 [n, elements of a block], scale float16 [n, 1], minimum likewise, integer scales int8 [n, levels, groups]:
those of the numbers, then those of the minima."""


def part(blocks: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Bytes first … last-1 of each block as numbers of another width."""
    return blocks[:, first:last].contiguous().view(dtype)


def half(blocks: Tensor, at: int) -> Tensor:
    """A float16 of each block, [n, 1]."""
    return part(blocks, at, at + 2, torch.float16)


def _shifts(*by: int) -> Tensor:
    return torch.tensor(by, dtype=torch.uint8)


BITS, PAIRS, NIBBLES = _shifts(*range(8)), _shifts(0, 2, 4, 6), _shifts(0, 4)


def planes(data: Tensor, shifts: Tensor, mask: int) -> Tensor:
    """[..., k] -> [..., shifts, k]: elements that are packed k apart, lowest bits first."""
    return (data.unsqueeze(-2) >> shifts.unsqueeze(-1)) & mask


def each(data: Tensor, shifts: Tensor, mask: int) -> Tensor:
    """[..., k] -> [..., k · shifts]: elements that are packed side by side, lowest bits first."""
    return ((data.unsqueeze(-1) >> shifts) & mask).flatten(-2)


def halves(data: Tensor) -> Tensor:
    """[..., k] -> [..., 2k]: all low nibbles, then all high ones."""
    return torch.cat((data & 15, data >> 4), -1)


def _q4_0(b: Tensor) -> Taken:
    return halves(b[:, 2:]), half(b, 0), None, None


def _q4_1(b: Tensor) -> Taken:
    return halves(b[:, 4:]), half(b, 0), half(b, 2), None


def _q5_0(b: Tensor) -> Taken:
    return halves(b[:, 6:]) | (each(b[:, 2:6], BITS, 1) << 4), half(b, 0), None, None


def _q5_1(b: Tensor) -> Taken:
    return halves(b[:, 8:]) | (each(b[:, 4:8], BITS, 1) << 4), half(b, 0), half(b, 2), None


def _q8_0(b: Tensor) -> Taken:
    return b[:, 2:] ^ 128, half(b, 0), None, None


def _q2_k(b: Tensor) -> Taken:
    marks = torch.stack((b[:, :16] & 15, b[:, :16] >> 4), 1)
    return planes(b[:, 16:80].view(-1, 2, 32), PAIRS, 3).flatten(1), half(b, 80), -half(b, 82), marks.view(torch.int8)


def _q3_k(b: Tensor) -> Taken:
    marks = (halves(b[:, 96:104]) | (planes(b[:, 104:108], PAIRS, 3).flatten(1) << 4)).view(torch.int8) - 32
    q = planes(b[:, 32:96].view(-1, 2, 32), PAIRS, 3).flatten(1) | (planes(b[:, :32], BITS, 1).flatten(1) << 2)
    return q, half(b, 108), None, marks.unsqueeze(1)


def _marks_k(b: Tensor) -> Tensor:
    """Of Q4_K and Q5_K: 12 bytes hold eight 6-bit numbers of each level."""
    first, second, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat((first & 63, (rest & 15) | ((first >> 2) & 48)), 1)
    minima = torch.cat((second & 63, (rest >> 4) | ((second >> 2) & 48)), 1)
    return torch.stack((scales, minima), 1).view(torch.int8)


def _q4_k(b: Tensor) -> Taken:
    return halves(b[:, 16:].view(-1, 4, 32)).flatten(1), half(b, 0), -half(b, 2), _marks_k(b)


def _q5_k(b: Tensor) -> Taken:
    q = halves(b[:, 48:].view(-1, 4, 32)).flatten(1) | (planes(b[:, 16:48], BITS, 1).flatten(1) << 4)
    return q, half(b, 0), -half(b, 2), _marks_k(b)


def _q6_k(b: Tensor) -> Taken:
    low, high = halves(b[:, :128].view(-1, 2, 64)), planes(b[:, 128:192].view(-1, 2, 32), PAIRS, 3)
    marks = b[:, 192:208].view(torch.int8).unsqueeze(1)
    return low.flatten(1) | (high.flatten(1) << 4), half(b, 208), None, marks


def _iq4_xs(b: Tensor) -> Taken:
    marks = (each(b[:, 4:8], NIBBLES, 15) | (each(b[:, 2:4], PAIRS, 3) << 4)).view(torch.int8) - 32
    return halves(b[:, 8:].view(-1, 8, 16)).flatten(1), half(b, 0), None, marks.unsqueeze(1)


_TAKERS: dict[str, Callable[[Tensor], Taken]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _q4_0, "IQ4_XS": _iq4_xs,
}  # fmt: skip


def take_apart(kind: str, blocks: Tensor) -> Taken:
    """Of a type in `FORMS`: value = (q - half of what it counts to) · scale, or q · scale + minimum, or of a table."""
    return _TAKERS[kind](blocks)


def packed_rows(kind: str, raw: Tensor, size: int) -> Taken:
    """raw uint8 [rows, bytes], whole blocks of `size` -> what `kernels.packed.pack` takes, [rows, …] each."""
    rows = len(raw)
    q, scale, mins, marks = take_apart(kind, raw.view(-1, size))
    if marks is not None:  # all of the numbers of a row before all of its minima
        marks = marks.unflatten(0, (rows, -1)).transpose(1, 2).reshape(rows, -1)
    return q.view(rows, -1), scale.view(rows, -1), None if mins is None else mins.view(rows, -1), marks
