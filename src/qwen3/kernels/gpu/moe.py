"""Mixture of experts in Triton: routing, expert GEMMs over grouped tokens, benchmark routing noise.

Three ways through the experts, all with weights read once per step where memory is the limit:
* one token: matrix-vector products over (chosen expert, rows), the down projection also adds up the experts;
* a few tokens: every token is a column of every expert's product, masked off where it did not choose the expert, so
  that nothing has to be sorted (masked columns cost no memory traffic, and tensor cores idle anyway);
* more: pairs (token, expert) are listed by expert in tiles, as also in the batch-invariant mode for any count.
"""

# ruff: noqa: RUF005 (Triton adds tuples, it does not unpack them)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.kernels.fp8 import Fp8Weight
from qwen3.kernels.gpu.launch import PDL, cdiv, launch, next_power_of_2
from qwen3.kernels.gpu.moe_tables import INVARIANT, Run, Tile, choose

Weight = Tensor | Fp8Weight
_PDL = {"PDL": PDL, "launch_pdl": PDL}


@triton.jit
def _route(logits, counts, weights, chosen, E: tl.constexpr, TOP: tl.constexpr, NORMALISE: tl.constexpr,
           WIDTH: tl.constexpr, SLOTS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    token = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    lane = tl.arange(0, WIDTH)
    slot = tl.arange(0, SLOTS)
    value = tl.load(logits + token * E + lane, mask=lane < E, other=float("-inf")).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    # Value above, expert below: one maximum gives both, and the lower expert wins a tie. Padding is below -inf.
    lowest = tl.full((WIDTH,), -(2**62), tl.int64) * 2
    key = tl.where(lane < E, (ordered.to(tl.int64) << 32) | (WIDTH - 1 - lane), lowest)
    keep = TOP
    if counts is not None:
        keep = tl.load(counts + token)
    best = tl.full((SLOTS,), -1, tl.int32)
    picked = tl.full((SLOTS,), float("-inf"), tl.float32)
    for k in tl.static_range(TOP):
        top = tl.max(key, 0)
        key = tl.where(key == top, lowest, key)
        high = (top >> 32).to(tl.int32)
        picked = tl.where(
            (slot == k) & (k < keep), (high ^ ((high >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True), picked
        )
        best = tl.where((slot == k) & (k < keep), WIDTH - 1 - (top & 0xFFFFFFFF).to(tl.int32), best)
    biggest = tl.max(value, 0)
    share = tl.where(best >= 0, tl.exp(picked - biggest), 0.0)
    total = tl.sum(share, 0) if NORMALISE else tl.sum(tl.exp(value - biggest), 0)
    share = tl.where(best >= 0, share / total, 0.0)
    tl.store(weights + token * TOP + slot, share.to(weights.dtype.element_ty), mask=slot < TOP)
    tl.store(chosen + token * TOP + slot, best, mask=slot < TOP)


def route(logits: Tensor, top_k: int, normalise: bool, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `reference_moe.route`: logits [N, E] -> weights [N, top_k] in their dtype, experts int32 [N, top_k]."""
    tokens, experts = logits.shape
    weights = torch.empty(tokens, top_k, dtype=logits.dtype, device=logits.device)
    chosen = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    meta = {"WIDTH": next_power_of_2(experts), "SLOTS": next_power_of_2(top_k)}
    if tokens:
        launch(_route, (tokens,), logits.contiguous(), counts, weights, chosen, E=experts, TOP=top_k,
               NORMALISE=normalise, **meta, **_PDL, num_warps=1)  # fmt: skip
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
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    lane = tl.arange(0, WIDTH)
    seed = _mix(tl.load(ids + token).to(tl.uint32) + 0x9E3779B9)
    seed = _mix(seed ^ tl.load(positions + token).to(tl.uint32))
    seed = _mix(seed + layer.to(tl.uint32))
    noise = _mix(seed ^ _mix(lane.to(tl.uint32) + 0x7F4A7C15))
    value = ((noise >> 9).to(tl.float32) + 0.5) * (2.0**-23)
    tl.store(out + token * E + lane, value, mask=lane < E)


def uniform_logits(ids: Tensor, positions: Tensor, layer: int, experts: int) -> Tensor:
    """As `reference_moe.uniform_logits`: noise in (0, 1), float32 [N, experts], by id, position and layer."""
    out = torch.empty(len(ids), experts, dtype=torch.float32, device=ids.device)
    if len(ids):
        launch(_uniform, (len(ids),), ids, positions, out, layer, E=experts, WIDTH=next_power_of_2(experts),
               **_PDL, num_warps=1)  # fmt: skip
    return out


@triton.jit
def _one_gate_up(x, w, scale, chosen, act, M: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                 FP8: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """One token: silu(gate row · x) · (up row · x) of BN rows of one chosen expert. FP8 as in `_gemm`."""
    slot = tl.program_id(1)
    first = tl.program_id(0) * BN
    n = first + tl.arange(0, BN)
    k = tl.arange(0, BK)
    if PDL:
        tl.extra.cuda.gdc_wait()
        # Only now: the kernel that follows reads what the router chose before it waits for this one.
        tl.extra.cuda.gdc_launch_dependents()
    expert = tl.load(chosen + slot)
    if expert < 0:
        return
    row = expert.to(tl.int64) * (2 * M) + n
    # Sums of 8 neighbours stay within a thread, so that few registers are kept from step to step.
    gate = tl.zeros((BN, BK // 8), tl.float32)
    up = tl.zeros((BN, BK // 8), tl.float32)
    for i in tl.static_range(0, K, BK):
        a = tl.load(w + row[:, None] * K + (k + i)[None, :]).to(tl.float32)
        b = tl.load(w + (row + M)[:, None] * K + (k + i)[None, :]).to(tl.float32)
        y = tl.load(x + i + k).to(tl.float32)
        z = y
        if FP8 == 128:
            y *= _block_scale(scale, expert, first, i + k, 2 * M, K)
            z *= _block_scale(scale, expert, first + M, i + k, 2 * M, K)
        gate += tl.sum((a * y[None, :]).reshape(BN, BK // 8, 8), 2)
        up += tl.sum((b * z[None, :]).reshape(BN, BK // 8, 8), 2)
    g = tl.sum(gate, 1)
    u = tl.sum(up, 1)
    if FP8 == 1:
        g *= tl.load(scale + row)
        u *= tl.load(scale + row + M)
    tl.store(act + slot * M + n, (g / (1 + tl.exp(-g)) * u).to(act.dtype.element_ty))


@triton.jit
def _block_scale(scale, expert, row, k, N: tl.constexpr, K: tl.constexpr):
    """Scales of one weight row (or of rows of its block) at columns k."""
    return tl.load(scale + (expert * ((N + 127) // 128) + row // 128) * ((K + 127) // 128) + k // 128)


@triton.jit
def _one_down(act, w, scale, weights, chosen, residual, out, M: tl.constexpr, H: tl.constexpr, TOP: tl.constexpr,
              BN: tl.constexpr, BK: tl.constexpr, FP8: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """One token: Σ over its experts of weight · (down row · act), + residual, for BN rows."""
    first = tl.program_id(0) * BN
    n = first + tl.arange(0, BN)
    k = tl.arange(0, BK)
    STEPS: tl.constexpr = M // BK
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # The router's choice was there before the kernel before this one let it start (see `_one_gate_up`), so all weights
    # are asked for while that one ends. Its cache line may be older: it is read past L1. Skipped experts read expert 0.
    ahead = (k,)
    for slot in tl.static_range(TOP):
        expert = tl.maximum(tl.load(chosen + slot, cache_modifier=".cg"), 0).to(tl.int64)
        for i in tl.static_range(STEPS):
            tile = tl.load(w + (expert * H + n)[:, None] * M + (i * BK + k)[None, :])
            ahead = ahead + (tile,)  # type: ignore[assignment]
    if PDL:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((BN, BK // 8), tl.float32)
    for slot in tl.static_range(TOP):
        expert = tl.load(chosen + slot)
        share = tl.load(weights + slot).to(tl.float32)
        part = tl.zeros((BN, BK // 8), tl.float32)
        for i in tl.static_range(STEPS):
            y = tl.load(act + slot * M + i * BK + k, mask=expert >= 0, other=0.0).to(tl.float32) * share
            if FP8 == 128:
                y *= _block_scale(scale, tl.maximum(expert, 0), first, i * BK + k, H, M)
            a = ahead[1 + slot * STEPS + i].to(tl.float32)
            part += tl.sum((a * y[None, :]).reshape(BN, BK // 8, 8), 2)
        if FP8 == 1:
            part *= tl.load(scale + tl.maximum(expert, 0) * H + n)[:, None]
        total += part
    y = tl.sum(total, 1)
    if residual is not None:
        y += tl.load(residual + n).to(tl.float32)
    tl.store(out + n, y.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["pairs"])
def _count(chosen, counts, pairs, WIDTH: tl.constexpr, SPAN: tl.constexpr):
    """counts [WIDTH] += how often each expert was chosen, SPAN pairs a program."""
    at = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    expert = tl.load(chosen + at, mask=at < pairs, other=-1)
    found = tl.histogram(expert, WIDTH, mask=expert >= 0)
    tl.atomic_add(counts + tl.arange(0, WIDTH), found, mask=found > 0)


@triton.jit(do_not_specialize=["pairs", "slots"])
def _list(chosen, counts, order, tiles, pairs, slots, WIDTH: tl.constexpr, SPAN: tl.constexpr, BM: tl.constexpr):
    """order: pairs by expert, each expert's from a multiple of BM on; tiles: expert · 65536 + pairs in the tile.

    counts [2 · WIDTH]: those of `_count`, then zeros. The order within an expert is that of arrival: it moves rows of a
    tile, which are computed independently, so results do not depend on it.
    """
    lane = tl.arange(0, WIDTH)
    count = tl.load(counts + lane)
    end = tl.cumsum((count + BM - 1) // BM, 0)
    first = end - (count + BM - 1) // BM
    at = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    expert = tl.load(chosen + at, mask=at < pairs, other=-1)
    rank = tl.atomic_add(counts + WIDTH + expert, 1, mask=expert >= 0)
    tl.store(order + tl.gather(first, tl.maximum(expert, 0), 0) * BM + rank, at, mask=expert >= 0)
    tile = tl.program_id(0)
    while tile < slots:
        mine = (first <= tile) & (tile < end)
        used = tl.sum(tl.where(mine, tl.minimum(count - (tile - first) * BM, BM), 0), 0)
        tl.store(tiles + tile, tl.sum(tl.where(mine, lane, 0), 0) * 65536 + used)
        tile += tl.num_programs(0)


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
    if PDL:
        # As in `_one_gate_up` and `_one_down`. One program always waits, so that kernels still end in their order.
        if GATED or tl.program_id(0) == 0:
            tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.program_id(0) // (N // BN)
    lane = tl.arange(0, BM)
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
    # Gate and up rows alternate in the tile (in groups of 8 when they are the left operand), so that both of a pair
    # end in one thread's registers.
    column = tl.program_id(0) % (N // BN) * BN + tl.arange(0, BN)
    row = column
    if GATED:
        G: tl.constexpr = 8 if SWAP else 1
        row = column // (2 * G) * G + column % G + (column // G) % 2 * (N // 2)
    wide: tl.constexpr = (K + 127) // 128
    high: tl.constexpr = (N + 127) // 128
    source = x + (pair // TOP if GATED else pair).to(tl.int64) * K
    base = w + expert.to(tl.int64) * N * K + row * K
    if PDL and not GATED:
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        if SWAP:
            a = tl.load(base[:, None] + k[None, :])
            b = tl.load(source[None, :] + k[:, None], mask=used[None, :], other=0.0)
            if FP8:
                a = a.to(tl.float32).to(b.dtype)  # by way of float32: Hopper turns float16 into bfloat16 slowly
        else:
            a = tl.load(source[:, None] + k[None, :], mask=used[:, None], other=0.0)
            b = tl.load(base[None, :] + k[:, None])
            if FP8:
                b = b.to(tl.float32).to(a.dtype)
        if FP8 == 128:
            s = tl.load(scale + (expert * high + row // 128) * wide + start // 128)
            acc += tl.dot(a, b) * (s[:, None] if SWAP else s[None, :])
        else:
            acc = tl.dot(a, b, acc)
    if FP8 == 1:
        s = tl.load(scale + expert * N + row)
        acc *= s[:, None] if SWAP else s[None, :]
    if GATED:
        if SWAP:
            gate, up = acc.reshape(BN // 16, 2, 8, BM).permute(0, 2, 3, 1).split()
            gate, up = gate.reshape(BN // 2, BM), up.reshape(BN // 2, BM)
        else:
            gate, up = acc.reshape(BM, BN // 2, 2).split()
        y = gate / (1 + tl.exp(-gate)) * up
        n = tl.program_id(0) % (N // BN) * (BN // 2) + tl.arange(0, BN // 2)
    else:
        share = tl.load(weights + pair, mask=used, other=0.0).to(tl.float32)
        y = acc * (share[None, :] if SWAP else share[:, None])
        n = column
    to = out + pair.to(tl.int64) * (N // 2 if GATED else N)
    y = y.to(out.dtype.element_ty)
    if SWAP:
        tl.store(to[None, :] + n[:, None], y, mask=used[None, :])
    else:
        tl.store(to[:, None] + n[None, :], y, mask=used[:, None])


@triton.jit
def _combine(parts, chosen, residual, out, H: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr,
             PDL: tl.constexpr):  # fmt: skip
    """out [N, H] = residual + Σ over a token's experts, in their order, of parts [N · TOP, H]."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
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
    """As `reference_moe.experts`: x [N, h], gate_up [E, 2m, h], down [E, h, m], both plain or both FP8 -> [N, h].

    weights and chosen [N, k] as `route` gives them (-1: none). Each expert's weights are read once for up to 64 tokens.
    Deterministic; invariant: a token's result is the same bits whatever else is in the batch. Raises UsageError if h or
    m is not a multiple of 16.
    """
    if not len(x):
        return torch.empty_like(x) if residual is None else residual.clone()
    args = (x.contiguous(), gate_up, down, weights.contiguous(), chosen.contiguous())

    def trial(tokens: int) -> Run:
        rows, at = x.new_empty(tokens, x.shape[1]).normal_(), torch.arange(tokens, device=x.device)
        routed = route(uniform_logits(at, at, 0, down.shape[0]), chosen.shape[1], True)
        return lambda gate, low: run(rows, gate_up, down, *routed, None, gate, low)

    kind = "bf16" if isinstance(gate_up, Tensor) else "fp8"
    tiles = INVARIANT if invariant else choose(x.device, x.shape[1], down.shape[2], kind, len(x), trial)
    return run(*args, residual if residual is None else residual.contiguous(), *tiles)


def run(
    x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, chosen: Tensor, residual: Tensor | None,
    gate: Tile, low: Tile,
) -> Tensor:  # fmt: skip
    """`experts` on contiguous tensors with the given tiles, which must suit N (see `moe_tables.Tile`)."""
    (tokens, h), (E, _, m), top = x.shape, down.shape, chosen.shape[1]
    if h % 16 or m % 16:
        raise UsageError(
            f"hidden_size {h} and moe_intermediate_size {m}: expert kernels of the GPU take multiples of 16"
        )
    fp8 = 0 if isinstance(gate_up, Tensor) else gate_up.block or 1
    (wide, wide_scale), (tall, tall_scale) = _split(gate_up), _split(down)
    out, act = torch.empty_like(x), x.new_empty(tokens * top, m)
    if gate.bm == 1:
        bn, bk = _fit(gate.bn, m), _fit(gate.bk, h)
        launch(_one_gate_up, (m // bn, top), x, wide, wide_scale, chosen, act, M=m, K=h, BN=bn, BK=bk, FP8=fp8,
               num_warps=gate.warps, **_PDL)  # fmt: skip
        bn, bk = _fit(low.bn, h), _fit(low.bk, m)
        launch(_one_down, (h // bn,), act, tall, tall_scale, weights, chosen, residual, out, M=m, H=h, TOP=top, BN=bn,
               BK=bk, FP8=fp8, num_warps=low.warps, **_PDL)  # fmt: skip
        return out
    parts = x.new_empty(tokens * top, h)
    pairs, bm = tokens * top, gate.bm or max(16, next_power_of_2(tokens))
    slots = min(pairs, pairs // bm + E if gate.bm else E)  # the most tiles, pairs or experts there can be
    order = tiles = None
    if gate.bm:
        grid, width = (cdiv(pairs, 512),), next_power_of_2(E)
        counts = torch.zeros(2 * width, dtype=torch.int32, device=x.device)
        order, tiles = counts.new_empty(slots * bm), counts.new_empty(slots)
        launch(_count, grid, chosen, counts, pairs, WIDTH=width, SPAN=512, num_warps=4)
        launch(_list, grid, chosen, counts, order, tiles, pairs, slots, WIDTH=width, SPAN=512, BM=bm, num_warps=4)
    for a, w, scale, to, tile in ((x, wide, wide_scale, act, gate), (act, tall, tall_scale, parts, low)):
        N, K = w.shape[1:]
        bn, bk = _fit(tile.bn, N), _fit(min(tile.bk, 128) if fp8 == 128 else tile.bk, K)
        launch(_gemm, (slots * (N // bn),), a, w, scale, weights, chosen, order, tiles, to, tokens, GATED=a is x, N=N,
               K=K, TOP=top, SLOTS=next_power_of_2(top), LISTED=gate.bm > 0, BY_PAIR=gate.bm == 0 and pairs < E,
               SWAP=tile.swap, FP8=fp8, BM=bm, BN=bn, BK=bk, num_warps=tile.warps, num_stages=tile.stages,
               **_PDL)  # fmt: skip
    block = _fit(1024, h)
    launch(_combine, (tokens, h // block), parts, chosen, residual, out, H=h, TOP=top, BLOCK=block, num_warps=4, **_PDL)
    return out


def _split(weight: Weight) -> tuple[Tensor, Tensor | None]:
    return (weight, None) if isinstance(weight, Tensor) else (weight.data, weight.scale)


def _fit(block: int, size: int) -> int:
    """The largest power of two up to `block` that divides `size`."""
    return min(block, size & -size)
