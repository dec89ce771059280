"""What was fitted, as the bytes of GGUF's blocks: the inverse of `checkpoint.gguf.blocks`.

Layouts: ggml-common.h (block_q4_0 … block_tq2_0) of ggml-org/ggml. q is uint8 [n, elements of a block].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwen3.quantize.gguf.round import Fitted


def _half(value: Tensor | None) -> Tensor:
    """float16 [n] -> its two bytes, [n, 2]."""
    assert value is not None
    return value.contiguous().view(torch.uint8).view(-1, 2)


def _merge(parts: Tensor, bits: int) -> Tensor:
    """[..., 8/bits, k] -> [..., k]: numbers that lie k apart in one byte, the first one lowest."""
    out = parts[..., 0, :].clone()
    for i in range(1, parts.shape[-2]):
        out |= parts[..., i, :] << (bits * i)
    return out


def nibbles(q: Tensor) -> Tensor:
    """[n, 32·k] -> [n, 16·k]: low halves of each 32, then high halves, of the lowest four bits."""
    return _merge((q & 15).view(len(q), -1, 2, 16), 4).flatten(1)


def _bits(q: Tensor) -> Tensor:
    """[n, 32] of 0 and 1 -> [n, 4]."""
    return _merge(q.view(-1, 4, 8).transpose(1, 2), 1)


def _q4_0(f: Fitted) -> list[Tensor]:
    return [_half(f.scale), nibbles(f.q)]


def _q4_1(f: Fitted) -> list[Tensor]:
    return [_half(f.scale), _half(f.minimum), nibbles(f.q)]


def _q5_0(f: Fitted) -> list[Tensor]:
    return [_half(f.scale), _bits(f.q >> 4), nibbles(f.q)]


def _q5_1(f: Fitted) -> list[Tensor]:
    return [_half(f.scale), _half(f.minimum), _bits(f.q >> 4), nibbles(f.q)]


def _twos(q: Tensor) -> Tensor:
    """[n, 256] of two bits -> [n, 64]."""
    return _merge((q & 3).view(-1, 2, 4, 32), 2).flatten(1)


def _ones(q: Tensor) -> Tensor:
    """[n, 256] of one bit -> [n, 32]."""
    return _merge(q.view(-1, 8, 32), 1)


def _marks(marks: Tensor | None, offset: int = 0) -> Tensor:
    """float32 [groups, n] -> uint8 [n, groups]."""
    assert marks is not None
    return (marks.t() + offset).to(torch.int16).to(torch.uint8)


def _q2_k(f: Fitted) -> list[Tensor]:
    return [_marks(f.marks) | (_marks(f.least) << 4), _twos(f.q), _half(f.scale), _half(f.minimum)]


def _q3_k(f: Fitted) -> list[Tensor]:
    marks = _marks(f.marks, 32)
    low, high = _merge((marks & 15).view(-1, 2, 8), 4), _merge((marks >> 4).view(-1, 4, 4), 2)
    return [_ones(f.q >> 2), _twos(f.q), low, high, _half(f.scale)]


def _six(f: Fitted) -> list[Tensor]:
    """Eight 6-bit numbers of each level in 12 bytes, behind both float16."""
    scales, minima = _marks(f.marks), _marks(f.least)
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    return [_half(f.scale), _half(f.minimum), first, second, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)]


def _pairs(q: Tensor) -> Tensor:
    """[n, 256] of four bits -> [n, 128]: each 64 in 32 bytes."""
    return _merge((q & 15).view(-1, 4, 2, 32), 4).flatten(1)


def _q4_k(f: Fitted) -> list[Tensor]:
    return [*_six(f), _pairs(f.q)]


def _q5_k(f: Fitted) -> list[Tensor]:
    return [*_six(f), _ones(f.q >> 4), _pairs(f.q)]


def _q6_k(f: Fitted) -> list[Tensor]:
    low = _merge((f.q & 15).view(-1, 2, 2, 64), 4).flatten(1)
    return [low, _twos(f.q >> 4), _marks(f.marks), _half(f.scale)]


def _iq4_xs(f: Fitted) -> list[Tensor]:
    marks = _marks(f.marks, 32)
    low = _merge((marks & 15).view(-1, 4, 2).transpose(1, 2), 4)
    high = _merge((marks >> 4).view(-1, 2, 4).transpose(1, 2), 2)
    return [_half(f.scale), high, low, nibbles(f.q)]


def _tq1_0(f: Fitted) -> list[Tensor]:
    """Five digits of base 3 in a byte, rounded up to a fraction of 256; of the last four bytes each has four."""
    parts = (f.q[:, :160].view(-1, 5, 32), f.q[:, 160:240].view(-1, 5, 16), f.q[:, 240:].view(-1, 4, 4))
    out = []
    for part in parts:
        powers = torch.tensor([81, 27, 9, 3, 1][: part.shape[1]], dtype=torch.int32).unsqueeze(1)
        out.append((((part.int() * powers).sum(1) * 256 + 242) // 243).to(torch.uint8))
    return [*out, _half(f.scale)]


def _tq2_0(f: Fitted) -> list[Tensor]:
    return [_twos(f.q), _half(f.scale)]


_PACKERS: dict[str, Callable[[Fitted], list[Tensor]]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _q4_0, "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0, "TQ2_0": _tq2_0,
}  # fmt: skip


def pack(kind: str, fitted: Fitted) -> Tensor:
    """uint8 [n, bytes of a block]."""
    return torch.cat(_PACKERS[kind](fitted), 1)
