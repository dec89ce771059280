"""Rows of weights as the bytes of any GGUF type that is written here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwen3.checkpoint.gguf.dequantize import PLAIN
from qwen3.checkpoint.gguf.types import TYPES
from qwen3.quantize.gguf.pack import nibbles, pack
from qwen3.quantize.gguf.round import PLANS, fit

_AT_ONCE = 1 << 18  # weights: few enough for the caches, enough that steps over groups cost little
_FLOATS = ("F32", "F16", "BF16")
BY_NAME = {kind.name: (number, kind) for number, kind in TYPES.items()}


def encode(kind: str, rows: Tensor, importance: Tensor | None = None) -> Tensor:
    """rows float32 [n, K], K a multiple of the type's block; importance float32 [K], mean x² of what the columns are
    multiplied with, or None -> uint8 [n, bytes of a row]."""
    if kind in _FLOATS:
        return rows.to(PLAIN[kind]).view(torch.uint8)
    form = BY_NAME[kind][1]
    blocks = rows.reshape(-1, form.block)
    step = max(1, _AT_ONCE // form.block)
    per_row = rows.shape[1] // form.block
    weights = None if importance is None else importance.view(per_row, form.block)
    out = torch.empty(len(blocks), form.size, dtype=torch.uint8)
    for first in range(0, len(blocks), step):
        some = blocks[first : first + step]
        if kind in _DIRECT:
            out[first : first + step] = _DIRECT[kind](some)
        else:
            own = None if weights is None else weights[torch.arange(first, first + len(some)) % per_row]
            out[first : first + step] = pack(kind, fit(kind, some, own))
    return out.view(len(rows), -1)


def _round_away(values: Tensor) -> Tensor:
    """As C's roundf: halves away from 0."""
    size = values.abs()
    whole = size.floor()
    return (whole + (2 * (size - whole)).floor_()).copysign_(values)


def _q8_0(x: Tensor) -> Tensor:
    """As ggml's own reference does, bit for bit: there is nothing to gain by a search."""
    d = x.abs().amax(1, keepdim=True) / 127
    q = _round_away(x * torch.where(d > 0, 1 / d, 0.0))
    return torch.cat((d.half().view(torch.uint8), q.to(torch.int8).view(torch.uint8)), 1)


_FP4 = torch.tensor((0, 0.5, 1, 1.5, 2, 3, 4, 6))


def _mxfp4(x: Tensor) -> Tensor:
    """E2M1 under a shared power of two (OCP Microscaling Formats 1.0): the one under which nothing is cut, or half."""
    _, exponent = torch.frexp(x.abs().amax(1, keepdim=True) / 6)  # amax ≤ 6 · 2^exponent
    best: Tensor | None = None
    found = torch.zeros(0)
    for e in (exponent + 127, exponent + 126):
        e = e.clamp(1, 254)
        scale = (e.int() << 23).view(torch.float32)
        value = x / scale
        q = torch.bucketize(value.abs(), (_FP4[1:] + _FP4[:-1]) / 2)
        error = (_FP4[q].copysign(value) - value).mul_(scale).square().sum(1, keepdim=True)
        own = torch.cat(
            (e.to(torch.uint8), nibbles(q.to(torch.uint8) | (torch.signbit(value).to(torch.uint8) << 3))), 1
        )
        best = own if best is None else torch.where(error < found, own, best)
        found = error if len(found) == 0 else torch.minimum(error, found)
    assert best is not None
    return best


_DIRECT: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": _q8_0, "MXFP4": _mxfp4}
WRITTEN = (*_FLOATS, *_DIRECT, *PLANS)
"""Names of the types that `encode` knows."""
