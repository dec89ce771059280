"""Mixture of experts in Triton: expert products over grouped tokens.

Weights are read once a step where memory is the limit. Up to 64 tokens every token is a column of every expert's
product, masked off where it did not choose the expert, so that nothing has to be sorted (masked columns cost no memory
traffic, and the tensor cores idle anyway). More tokens, and any number in the batch-invariant mode, are listed as pairs
(token, expert) in tiles of one expert each.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qwen3.errors import UsageError
from qwen3.kernels.fp8 import Fp8Weight
from qwen3.kernels.gpu import linear, stationary
from qwen3.kernels.gpu.launch import EARLY, cdiv, launch, next_power_of_2, wait
from qwen3.kernels.gpu.linear import _silu_mul
from qwen3.kernels.gpu.routing import list_pairs
from qwen3.kernels.gpu.weight_only import columns, marks, widened
from qwen3.kernels.grouped import SLAB, GroupWeight

Weight = Tensor | Fp8Weight | GroupWeight


class Tile(NamedTuple):
    """A program's part of a product: bm pairs (0: those of all tokens, 64 at most) × bn weight rows, bk columns a step;
    swap: weights are the left operand. walkers: for 8 tokens at most and weights of few bits, so many programs of
    `stationary` in all, `stages` tiles ahead (0: it is another kernel)."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    swap: bool
    walkers: int = 0


Pair = tuple[Tile, Tile]
"""Of the gate/up and of the down product."""

INVARIANT: Pair = (Tile(64, 128, 64, 4, 4, False), Tile(64, 128, 64, 4, 4, False))


@cache
def tables() -> dict[str, dict[int, Pair]]:
    """The measured tiles of each kind of weights, by the largest number of tokens that they are for."""
    data = json.loads((resources.files("qwen3") / "data" / "moe_tiles.json").read_text())["tiles"]
    return {kind: {int(most): (Tile(*a), Tile(*b)) for most, (a, b) in own.items()} for kind, own in data.items()}


def choose(kind: str, tokens: int) -> Pair:
    """The tiles for so many tokens and `kind` of weights: bf16, fp8 or fp8-128."""
    plans = tables()[kind]
    return plans[min(most for most in plans if tokens <= most)]


@triton.jit(do_not_specialize=["tokens"])
def _gemm(
    x, w, scale, mins, weights, chosen, order, tiles, out, tokens,
    GATED: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TOP: tl.constexpr,
    SLOTS: tl.constexpr, LISTED: tl.constexpr, BY_PAIR: tl.constexpr, SWAP: tl.constexpr,
    FP8: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
    BITS: tl.constexpr = 0, GROUP: tl.constexpr = 0,
):  # fmt: skip
    """BM pairs × BN rows of one expert. w [E, N, K]; rows of x and out are pairs (x's with GATED: tokens).

    GATED: w is gate rows, then up rows; out is silu(gate) · up. Otherwise out is the product × the pair's weight.
    LISTED: tiles of `list_pairs`; else all tokens, masked; BY_PAIR: program per pair, run by the first of its expert.
    SWAP: weights are the left operand, so that a few pairs fill a narrow right one. FP8: 0, 1 (scale per row), 128.
    BITS: of a GroupWeight, 0: it is none.
    """
    slot, tile = tl.program_id(0) // (N // BN), tl.program_id(0) % (N // BN)
    lane, column = tl.arange(0, BM), tile * BN + tl.arange(0, BN)
    row = column
    # Gate and up rows alternate in the tile (in groups of 8 when they are the left operand), so that both of a pair end
    # in one thread's registers.
    G: tl.constexpr = 8 if SWAP else 1
    if GATED:
        row = column // (2 * G) * G + column % G + (column // G) % 2 * (N // 2)
    if PDL:
        # The second product starts when all programs of the first have passed here: what the router chose, and the
        # lists, are there before it waits. One of its programs waits here too, so that kernels end in their order.
        if GATED or tl.program_id(0) == 0:
            gdc_wait()
        gdc_launch_dependents()
    if LISTED:
        info = tl.load(tiles + slot, cache_modifier=".cg")
        if info & 65535 == 0:
            return
        expert = info // 65536
        pair = tl.load(order + slot * BM + lane, mask=lane < (info & 65535), other=-1, cache_modifier=".cg")
    else:
        expert = slot
        if BY_PAIR:
            expert = tl.load(chosen + slot, cache_modifier=".cg")
        rank = tl.arange(0, SLOTS)[None, :]
        at = chosen + lane[:, None] * TOP + rank
        picks = tl.load(at, mask=(lane < tokens)[:, None] & (rank < TOP), other=-1, cache_modifier=".cg")
        pair = tl.max(tl.where(picks == expert, lane[:, None] * TOP + rank, -1), 1)
        first = tl.min(tl.where(pair < 0, tokens * TOP, pair), 0)
        if BY_PAIR:
            if (expert < 0) | (first < slot):
                return
        elif first == tokens * TOP:
            return
    used = pair >= 0
    source = x + (pair // TOP if GATED else pair).to(tl.int64) * K
    LENGTH: tl.constexpr = (K + 512 // BITS - 1) // (512 // BITS) * 16 if BITS else K  # elements of a row
    base = w + expert.to(tl.int64) * N * LENGTH + row * LENGTH
    if BITS:
        own = expert * (N * ((K + GROUP - 1) // GROUP))
        s, low = marks(scale + own, None if mins is None else mins + own, row, 0, N, K, GROUP, BITS, BK)
    if PDL and not GATED:
        gdc_wait()
    acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for start in range(0, K, BK):
        if BITS:
            k = start + columns(tl.arange(0, BK), BITS, GROUP)
            a = tl.load(source[:, None] + k[None, :], mask=used[:, None] & (k < K)[None, :], other=0.0)
            words = tl.load(base[:, None] + (start * BITS // 32 + tl.arange(0, BK * BITS // 32))[None, :])
            b = widened(words, s, low, mins is not None, GROUP, BITS).to(a.dtype)
            s, low = marks(scale + own, None if mins is None else mins + own, row, start + BK, N, K, GROUP, BITS, BK)
        else:
            k = start + tl.arange(0, BK)
            a = tl.load(source[:, None] + k[None, :], mask=used[:, None], other=0.0)
            b = tl.load(base[:, None] + k[None, :])
        if FP8:
            b = b.to(tl.float32).to(a.dtype)  # by way of float32: Hopper turns float16 into bfloat16 slowly
        if FP8 == 128:
            s = tl.load(scale + (expert * tl.cdiv(N, 128) + row // 128) * tl.cdiv(K, 128) + start // 128)
            acc += tl.dot(b, a.T) * s[:, None] if SWAP else tl.dot(a, b.T) * s[None, :]
        else:
            acc = tl.dot(b, a.T, acc) if SWAP else tl.dot(a, b.T, acc)
    if SWAP:
        acc = acc.T
    if FP8 == 1:
        acc *= tl.load(scale + expert * N + row)[None, :]
    if GATED:
        gate, up = acc.reshape(BM, BN // (2 * G), 2, G).permute(0, 1, 3, 2).split()
        acc = _silu_mul(gate, up).reshape(BM, BN // 2)
        column = tile * (BN // 2) + tl.arange(0, BN // 2)
    else:
        acc *= tl.load(weights + pair, mask=used, other=0.0).to(tl.float32)[:, None]
    to = out + pair.to(tl.int64)[:, None] * (N // 2 if GATED else N) + column[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=used[:, None])


@triton.jit
def _combine(parts, chosen, residual, out, H: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr,
             PDL: tl.constexpr):  # fmt: skip
    """out [N, H] = residual + Σ over a token's experts, in their order, of parts [N · TOP, H]."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait(PDL)
    y = tl.zeros((BLOCK,), tl.float32)
    if residual is not None:
        y += tl.load(residual + token * H + n).to(tl.float32)
    for slot in tl.static_range(TOP):
        used = tl.load(chosen + token * TOP + slot) >= 0
        y += tl.load(parts + (token * TOP + slot) * H + n, mask=used, other=0.0).to(tl.float32)
    tl.store(out + token * H + n, y.to(out.dtype.element_ty))


def experts(
    x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, chosen: Tensor, *,
    residual: Tensor | None = None, invariant: bool = False,
) -> Tensor:  # fmt: skip
    """As `reference.experts`: x [N, h], gate_up [E, 2m, h], down [E, h, m], both plain, FP8 or GroupWeights -> [N, h].

    weights and chosen [N, k] as `route` gives them (-1: none). Deterministic; invariant: a token's result is the same
    bits whatever else is in the batch. Raises UsageError if h or m is not a multiple of 16.
    """
    if not len(x):
        return torch.empty_like(x) if residual is None else residual.clone()
    if isinstance(gate_up, GroupWeight):
        kind = f"int{gate_up.bits}"
    else:
        kind = "bf16" if isinstance(gate_up, Tensor) else "fp8-128" if gate_up.block else "fp8"
    tiles = INVARIANT if invariant else choose(kind, len(x))
    residual = None if residual is None else residual.contiguous()
    return run(x.contiguous(), gate_up, down, weights.contiguous(), chosen.contiguous(), residual, *tiles)


def run(
    x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, chosen: Tensor, residual: Tensor | None,
    gate: Tile, low: Tile,
) -> Tensor:  # fmt: skip
    """`experts` on contiguous tensors with the given tiles, which must suit N (see `Tile`)."""
    (tokens, h), (E, _, m), top = x.shape, down.shape, chosen.shape[1]
    if h % 16 or m % 16:
        raise UsageError(f"hidden_size {h}, moe_intermediate_size {m}: the GPU's experts take multiples of 16")
    fp8 = gate_up.block or 1 if isinstance(gate_up, Fp8Weight) else 0
    pairs, bm = tokens * top, gate.bm or max(16, next_power_of_2(tokens))
    order, tiles = list_pairs(chosen, E, bm) if gate.bm else (None, None)
    slots = min(pairs, E) if tiles is None else len(tiles)
    out, act, parts = torch.empty_like(x), x.new_empty(pairs, m), x.new_empty(pairs, h)
    for a, weight, to, tile in ((x, gate_up, act, gate), (act, down, parts, low)):
        w, scale = (weight, None) if isinstance(weight, Tensor) else (weight.data, weight.scale)
        (N, K), mins, packed = weight.shape[1:], None, {}
        bn, bk = _fit(tile.bn, N), _fit(min(tile.bk, 128) if fp8 == 128 else tile.bk, K)
        if isinstance(weight, GroupWeight) and tile.walkers:
            stationary.experts(a, weight, chosen, weights, to, linear.Tile(tile.bn, 0, tile.stages, tile.warps, 1,
                               walkers=tile.walkers), gated=a is x)  # fmt: skip
            continue
        if isinstance(weight, GroupWeight):
            mins, packed = weight.mins, {"BITS": weight.bits, "GROUP": weight.group}
            slab = SLAB[weight.bits]
            bk = slab * _fit(max(tile.bk // slab, 1), cdiv(K, slab))
        launch(_gemm, (slots * (N // bn),), a, w, scale, mins, weights, chosen, order, tiles, to, tokens,
               GATED=a is x, N=N, K=K, TOP=top, SLOTS=next_power_of_2(top), LISTED=gate.bm > 0,
               BY_PAIR=gate.bm == 0 and pairs < E,
               SWAP=tile.swap, FP8=fp8, BM=bm, BN=bn, BK=bk, num_warps=tile.warps,
               num_stages=tile.stages, **packed, **EARLY)  # fmt: skip
    block = _fit(1024, h)
    launch(_combine, (tokens, h // block), parts, chosen, residual, out, H=h, TOP=top, BLOCK=block, num_warps=4,
           **EARLY)  # fmt: skip
    return out


def _fit(block: int, size: int) -> int:
    """The largest power of two up to `block` that divides `size`."""
    return min(block, size & -size)
