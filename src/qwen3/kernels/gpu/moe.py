"""Mixture of experts in Triton: routing, expert products over grouped tokens, benchmark routing noise.

Weights are read once a step where memory is the limit. Up to 64 tokens every token is a column of every expert's
product, masked off where it did not choose the expert, so that nothing has to be sorted (masked columns cost no memory
traffic, and the tensor cores idle anyway). More tokens, and any number in the batch-invariant mode, are listed as pairs
(token, expert) in tiles of one expert each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qwen3.errors import UsageError
from qwen3.kernels.fp8 import Fp8Weight
from qwen3.kernels.gpu.launch import PDL, launch, next_power_of_2
from qwen3.kernels.gpu.linear import _silu_mul
from qwen3.kernels.gpu.moe_tables import INVARIANT, Run, Tile, choose

Weight = Tensor | Fp8Weight
_PDL = {"PDL": PDL, "launch_pdl": PDL}


@triton.jit
def _route(logits, counts, weights, chosen, E: tl.constexpr, TOP: tl.constexpr, NORMALISE: tl.constexpr,
           WIDTH: tl.constexpr, SLOTS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    token = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane, slot = tl.arange(0, WIDTH), tl.arange(0, SLOTS)
    value = tl.load(logits + token * E + lane, mask=lane < E, other=float("-inf")).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    # Value above, expert below: one maximum gives both, and the lower expert wins a tie. Padding is below -inf.
    lowest = tl.full((WIDTH,), -(2**62), tl.int64) * 2
    key = tl.where(lane < E, (ordered.to(tl.int64) << 32) | (WIDTH - 1 - lane), lowest)
    tops = tl.zeros((SLOTS,), tl.int64)
    for k in tl.static_range(TOP):
        top = tl.max(key, 0)
        key = tl.where(key == top, lowest, key)
        tops = tl.where(slot == k, top, tops)
    used = slot < TOP
    if counts is not None:
        used = used & (slot < tl.load(counts + token))
    high = (tops >> 32).to(tl.int32)
    picked = (high ^ ((high >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    biggest = tl.max(value, 0)
    share = tl.where(used, tl.exp(picked - biggest), 0.0)
    share /= tl.sum(share, 0) if NORMALISE else tl.sum(tl.exp(value - biggest), 0)
    best = tl.where(used, WIDTH - 1 - (tops & 0xFFFFFFFF).to(tl.int32), -1)
    tl.store(weights + token * TOP + slot, share.to(weights.dtype.element_ty), mask=slot < TOP)
    tl.store(chosen + token * TOP + slot, best, mask=slot < TOP)


def route(logits: Tensor, top_k: int, normalise: bool, *, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `reference.route`: logits [N, E] -> weights [N, top_k] in their dtype, experts int32 [N, top_k]."""
    tokens, experts = logits.shape
    weights, chosen = logits.new_empty(tokens, top_k), logits.new_empty(tokens, top_k, dtype=torch.int32)
    if tokens:
        launch(_route, (tokens,), logits.contiguous(), counts, weights, chosen, E=experts, TOP=top_k,
               NORMALISE=normalise, WIDTH=next_power_of_2(experts), SLOTS=next_power_of_2(top_k), num_warps=1,
               **_PDL)  # fmt: skip
    return weights, chosen


@triton.jit
def _mix(x):
    """A bijection of 32-bit integers without visible structure (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["layer"])
def _uniform(ids, positions, out, layer, E: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):
    token = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane = tl.arange(0, WIDTH)
    seed = _mix(tl.load(ids + token).to(tl.uint32) + 0x9E3779B9)
    seed = _mix(seed ^ tl.load(positions + token).to(tl.uint32))
    seed = _mix(seed + layer.to(tl.uint32))
    noise = _mix(seed ^ _mix(lane.to(tl.uint32) + 0x7F4A7C15))
    value = ((noise >> 9).to(tl.float32) + 0.5) * (2.0**-23)
    tl.store(out + token * E + lane, value, mask=lane < E)


def uniform_logits(ids: Tensor, positions: Tensor, layer: int, experts: int) -> Tensor:
    """As `reference_engine.uniform_logits`: noise in (0, 1), float32 [N, experts], by id, position and layer."""
    out = torch.empty(len(ids), experts, dtype=torch.float32, device=ids.device)
    if len(ids):
        launch(_uniform, (len(ids),), ids, positions, out, layer, E=experts, WIDTH=next_power_of_2(experts),
               num_warps=1, **_PDL)  # fmt: skip
    return out


@triton.jit(do_not_specialize=["pairs", "slots"])
def _list(chosen, order, tiles, pairs, slots, WIDTH: tl.constexpr, BM: tl.constexpr, PDL: tl.constexpr):
    """One expert's part of order (pairs by expert, each expert's from a multiple of BM on) and of tiles [slots]: expert
    · 65536 + pairs in the tile; tiles of 0 pairs may follow the last."""
    own = tl.program_id(0)
    SPAN: tl.constexpr = 64 * BM
    lane, at = tl.arange(0, WIDTH), tl.arange(0, SPAN)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    counts = tl.zeros((WIDTH,), tl.int32)
    start = 0
    while start < pairs:
        expert = tl.load(chosen + start + at, mask=start + at < pairs, other=-1)
        counts += tl.histogram(expert, WIDTH, mask=expert >= 0)
        start += SPAN
    first = tl.sum(tl.where(lane < own, (counts + BM - 1) // BM, 0), 0)
    count = tl.sum(tl.where(lane == own, counts, 0), 0)
    place = order + first * BM
    start = 0
    while start < pairs:
        mine = tl.load(chosen + start + at, mask=start + at < pairs, other=-1) == own
        rank = tl.cumsum(mine.to(tl.int32), 0)
        tl.store(place + rank - 1, start + at, mask=mine)
        place += tl.max(rank, 0)
        start += SPAN
    end = tl.where(own == tl.num_programs(0) - 1, slots, first + (count + BM - 1) // BM)
    while first < end:
        used = tl.maximum(tl.minimum(count - lane * BM, BM), 0)
        tl.store(tiles + first + lane, own * 65536 + used, mask=first + lane < end)
        first += WIDTH
        count -= WIDTH * BM


@triton.jit(do_not_specialize=["tokens"])
def _gemm(
    x, w, scale, weights, chosen, order, tiles, out, tokens, GATED: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    TOP: tl.constexpr, SLOTS: tl.constexpr, LISTED: tl.constexpr, BY_PAIR: tl.constexpr, SWAP: tl.constexpr,
    FP8: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BM pairs × BN rows of one expert. w [E, N, K]; rows of x and out are pairs (x's with GATED: tokens).

    GATED: w is gate rows, then up rows; out is silu(gate) · up. Otherwise out is the product × the pair's weight.
    LISTED: tiles of `_list`; otherwise all tokens, masked; BY_PAIR: program per pair, run by the first of its expert.
    SWAP: weights are the left operand, so that a few pairs fill a narrow right one. FP8: 0, 1 (scale per row), 128.
    """
    slot, tile = tl.program_id(0) // (N // BN), tl.program_id(0) % (N // BN)
    lane = tl.arange(0, BM)
    column = tile * BN + tl.arange(0, BN)
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
    base = w + expert.to(tl.int64) * N * K + row * K
    if PDL and not GATED:
        gdc_wait()
    acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for start in range(0, K, BK):
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
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
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
    """As `reference.experts`: x [N, h], gate_up [E, 2m, h], down [E, h, m], both plain or both FP8 -> [N, h].

    weights and chosen [N, k] as `route` gives them (-1: none). Deterministic; invariant: a token's result is the same
    bits whatever else is in the batch. Raises UsageError if h or m is not a multiple of 16.
    """
    if not len(x):
        return torch.empty_like(x) if residual is None else residual.clone()
    args = (x.contiguous(), gate_up, down, weights.contiguous(), chosen.contiguous())

    def trial(tokens: int) -> Run:
        rows, at = x.new_empty(tokens, x.shape[1]).normal_(), torch.arange(tokens, device=x.device)
        routed = route(uniform_logits(at, at, 0, down.shape[0]), chosen.shape[1], True)
        return lambda gate, low: run(rows, gate_up, down, *routed, None, gate, low)

    kind = "bf16" if isinstance(gate_up, Tensor) else "fp8-128" if gate_up.block else "fp8"
    tiles = INVARIANT if invariant else choose(x.device, x.shape[1], down.shape[2], kind, len(x), trial)
    return run(*args, residual if residual is None else residual.contiguous(), *tiles)


def run(
    x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, chosen: Tensor, residual: Tensor | None,
    gate: Tile, low: Tile,
) -> Tensor:  # fmt: skip
    """`experts` on contiguous tensors with the given tiles, which must suit N (see `moe_tables.Tile`)."""
    (tokens, h), (E, _, m), top = x.shape, down.shape, chosen.shape[1]
    if h % 16 or m % 16:
        raise UsageError(f"hidden_size {h}, moe_intermediate_size {m}: the GPU's experts take multiples of 16")
    fp8 = 0 if isinstance(gate_up, Tensor) else gate_up.block or 1
    pairs, bm = tokens * top, gate.bm or max(16, next_power_of_2(tokens))
    slots = min(pairs, pairs // bm + E if gate.bm else E)  # the most tiles, pairs or experts there can be
    order = tiles = None
    if gate.bm:
        order, tiles = chosen.new_empty(slots * bm), chosen.new_empty(slots)
        launch(_list, (E,), chosen, order, tiles, pairs, slots, WIDTH=next_power_of_2(E), BM=bm,
               num_warps=max(4, bm // 8), **_PDL)  # fmt: skip
    out, act, parts = torch.empty_like(x), x.new_empty(pairs, m), x.new_empty(pairs, h)
    for a, weight, to, tile in ((x, gate_up, act, gate), (act, down, parts, low)):
        w, scale = (weight, None) if isinstance(weight, Tensor) else (weight.data, weight.scale)
        N, K = w.shape[1:]
        bn, bk = _fit(tile.bn, N), _fit(min(tile.bk, 128) if fp8 == 128 else tile.bk, K)
        launch(_gemm, (slots * (N // bn),), a, w, scale, weights, chosen, order, tiles, to, tokens, GATED=a is x, N=N,
               K=K, TOP=top, SLOTS=next_power_of_2(top), LISTED=gate.bm > 0, BY_PAIR=gate.bm == 0 and pairs < E,
               SWAP=tile.swap, FP8=fp8, BM=bm, BN=bn, BK=bk, num_warps=tile.warps,
               num_stages=tile.stages, **_PDL)  # fmt: skip
    block = _fit(1024, h)
    launch(_combine, (tokens, h // block), parts, chosen, residual, out, H=h, TOP=top, BLOCK=block, num_warps=4, **_PDL)
    return out


def _fit(block: int, size: int) -> int:
    """The largest power of two up to `block` that divides `size`."""
    return min(block, size & -size)
