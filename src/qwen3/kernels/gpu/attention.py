"""Attention of an engine step over the paged cache: QK-norm, RoPE and cache write, and decode. `prefill` has chunks.

Decode is flash-decoding (split keys, online softmax; Dao et al. 2023) in one kernel: a program takes a row, a KV head
and a share of the keys. It normalises and rotates its own query heads; the program with the last token also makes that
token's key and value, writes them to the cache and uses them from registers. Where a row has several shares, the
program that finishes last (an atomic counter tells) adds them up, in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3.kernels import reference_engine
from qwen3.kernels.gpu import prefill
from qwen3.kernels.gpu.launch import PDL, cdiv, launch, next_power_of_2
from qwen3.kernels.plan import BLOCK, StepPlan

LONG = 4096
"""Keys from which on a row of many is divided."""

_COUNTERS = 1 << 16


@lru_cache
def _counters(device: torch.device) -> Tensor:
    return torch.zeros(_COUNTERS, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class DecodeConfig:
    """splits: most programs of a row and KV head; chunk: keys below which a share is not split further (a multiple of
    tile); tile: keys loaded at once; stages: 1: the next tile waits in registers, more: that many less one in shared
    memory; early: while the kernel before still runs, load the first tile (one stage) or ask L2 for the first two."""

    splits: int
    chunk: int
    tile: int
    warps: int
    stages: int = 3
    early: bool = False


def decode_config(rows: int, kv_heads: int, max_length: int) -> DecodeConfig:
    """Few rows: many short shares, so that every multiprocessor has one. Many rows: one share each, unless a long row
    might keep one multiprocessor busy after all others have ended.

    Measured on an H100 at 0.6B, 8B and 30B-A3B shapes, contexts of 300 to 32,000 (docs/log.md, 2026-11-22).
    """
    pairs = rows * kv_heads
    if pairs <= 16:
        found = DecodeConfig(64, 32, 32, warps=2, stages=1, early=True)
    elif 32 < pairs <= 64:
        found = DecodeConfig(16, 64, 32, warps=2, stages=1, early=True)
    elif pairs <= 128:
        found = DecodeConfig(1024 // next_power_of_2(pairs), 32, 16, warps=1, stages=1, early=True)
    elif pairs <= 256:
        found = DecodeConfig(2, 512, 64, warps=2, early=True)
    elif pairs < 1024:
        found = DecodeConfig(1, 512, 64, warps=4, stages=4, early=True)
    elif pairs < 1536:
        found = DecodeConfig(1, 512, 32, warps=2, stages=1, early=True)
    else:  # alone the one before is faster here too, but not between the products of a step
        found = DecodeConfig(1, 512, 64, warps=4)
    if pairs > 128 and max_length > LONG:
        found = replace(found, splits=8 if pairs < 1536 else 4, chunk=2048 if pairs > 256 else 1024)
    return replace(found, splits=min(found.splits, next_power_of_2(cdiv(max_length, found.chunk))))


@triton.jit
def _saturated(x, dtype: tl.constexpr):
    if dtype == tl.float8e4nv:
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    return x.to(dtype)


@triton.jit(do_not_specialize=["tokens", "first"])
def _rope_cache(
    qkv, q_weight, k_weight, cos_sin, positions, slots, q, k, k_cache, v_cache, tokens, first, stride, eps,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """A program: HEADS heads, all of one kind, of ROWS // HEADS tokens. Each half of a head: one [ROWS, D / 2] tile."""
    part, r, j = tl.program_id(1), tl.arange(0, ROWS), tl.arange(0, D // 2)[None, :]
    token = first + tl.program_id(0) * (ROWS // HEADS) + r // HEADS
    head = part * HEADS + r % HEADS
    live = token < tokens
    mask = live[:, None]
    source = qkv + (token.to(tl.int64) * stride + head * D)[:, None] + j
    a = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source + D // 2, mask=mask, other=0.0).to(tl.float32)
    slot = tl.load(slots + token, mask=live, other=0).to(tl.int64) * (KV * D)
    if part < (H + KV) // HEADS:
        weight = q_weight if part < H // HEADS else k_weight
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        a *= scale * tl.load(weight + j).to(tl.float32)
        b *= scale * tl.load(weight + D // 2 + j).to(tl.float32)
        angle = cos_sin + (tl.load(positions + token, mask=live, other=0).to(tl.int64) * D)[:, None] + j
        cos = tl.load(angle, mask=mask, other=0.0)
        sin = tl.load(angle + D // 2, mask=mask, other=0.0)
        x, y = a * cos - b * sin, b * cos + a * sin
        if part < H // HEADS:
            to_q = q + ((token - first).to(tl.int64) * (H * D) + head * D)[:, None] + j
            tl.store(to_q, x.to(q.dtype.element_ty), mask=mask)
            tl.store(to_q + D // 2, y.to(q.dtype.element_ty), mask=mask)
        else:
            if KEEP:
                to_k = k + ((token - first).to(tl.int64) * (KV * D) + (head - H) * D)[:, None] + j
                tl.store(to_k, x.to(k.dtype.element_ty), mask=mask)
                tl.store(to_k + D // 2, y.to(k.dtype.element_ty), mask=mask)
            target = k_cache + (slot + (head - H) * D)[:, None] + j
            tl.store(target, _saturated(x, k_cache.dtype.element_ty), mask=mask)
            tl.store(target + D // 2, _saturated(y, k_cache.dtype.element_ty), mask=mask)
    else:
        target = v_cache + (slot + (head - H - KV) * D)[:, None] + j
        tl.store(target, _saturated(a, v_cache.dtype.element_ty), mask=mask)
        tl.store(target + D // 2, _saturated(b, v_cache.dtype.element_ty), mask=mask)


@triton.jit
def _share(length, split, splits, chunk, TILE: tl.constexpr):
    """Cached keys [begin, end) of a share, and how many shares the row has. The last one has the new token, too."""
    used = tl.minimum(splits, tl.cdiv(length, chunk))
    size = tl.cdiv(tl.cdiv(length, used), TILE) * TILE
    return split * size, tl.minimum(split * size + size, length - 1), tl.cdiv(length, size)


@triton.jit
def _rotated(x, other, weight, other_weight, cos, sin, eps, D: tl.constexpr):
    """Heads x [.., D] normalised and rotated in float32; `other` is x with its halves exchanged, sin is signed."""
    axis: tl.constexpr = len(x.shape) - 1
    scale = tl.rsqrt(tl.sum(x * x, axis, keep_dims=True) / D + eps)
    return x * scale * weight * cos + other * scale * other_weight * sin


@triton.jit
def _gathered(cache, ids, at, end, d, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Rows `at` below `end` of a cache, whose blocks are `ids`: [TILE, D]."""
    where = (ids.to(tl.int64) * BLOCK + at % BLOCK) * STRIDE
    return tl.load(cache + where[:, None] + d[None, :], mask=(at < end)[:, None], other=0.0)


@triton.jit
def _ask(k_cache, v_cache, table, begin, end, blocks, STRIDE: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr,
         BLOCK: tl.constexpr):  # fmt: skip
    """Asks L2 for keys and values [begin, end), KEYS of them at most, by lines of 128 bytes."""
    LINE: tl.constexpr = min(D, 1024 // k_cache.dtype.element_ty.primitive_bitwidth)
    at = begin + tl.arange(0, KEYS)
    ids = tl.load(table + at // BLOCK, mask=at < end, other=0, cache_modifier=".cg")
    ids = tl.minimum(tl.maximum(ids, 0), blocks - 1)
    where = (ids.to(tl.int64) * BLOCK + at % BLOCK) * STRIDE
    where = where[:, None] + tl.arange(0, D // LINE)[None, :] * LINE
    live = tl.broadcast_to((at < end)[:, None], where.shape).to(tl.int32)
    for cache in tl.static_range(2):
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }", "=r,l,r",
            [((k_cache if cache == 0 else v_cache) + where).to(tl.int64), live], tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _update(q, k, v, live, m, l, acc, ASM: tl.constexpr):
    """Online softmax over one more tile of keys. q holds the scale and log2(e). (That of `prefill` spills here.)"""
    s = tl.where(live[None, :], tl.dot(q, k.to(q.dtype).T), float("-inf"))
    top = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s - top[:, None])
    shrink = tl.exp2(m - top)
    acc = tl.dot(p.to(q.dtype), prefill.widened(v, q.dtype, ASM), acc * shrink[:, None])
    return top, l * shrink + tl.sum(p, 1), acc


@triton.jit(do_not_specialize=["table_stride", "blocks", "angles", "splits", "chunk"])
def _decode(
    qkv, q_weight, k_weight, cos_sin, positions, slots, tables, lengths, k_cache, v_cache, out, partial, stats,
    counters, stride, table_stride, blocks, angles, splits, chunk, eps,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, STAGES: tl.constexpr, MERGE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
    ASK: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (KV head, row, share); GROUP = H / KV query heads in ROWS >= 16 rows of a tile. partial [R, KV, splits,
    GROUP, D], stats [R, KV, splits, 2, GROUP] (maximum, sum) float32; counters [R·KV] zero before and after.

    EARLY: the first keys are loaded before the wait. What may still change before it (the plan is written in the same
    graph) is read again behind it: cached keys themselves date from earlier steps, so if nothing differs they are
    right. The first reading is clamped: it may be of memory that nobody has written yet. ASK: the same for the first
    two tiles, but into L2 alone.
    """
    # Shares that many rows lack start last: their programs leave while others still work.
    head, row, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d, g, span = tl.arange(0, D), tl.arange(0, ROWS), tl.arange(0, TILE)
    pair = tl.max_contiguous(tl.multiple_of((d + D // 2) % D, D // 2), D // 2)
    half = tl.max_contiguous(tl.multiple_of(d % (D // 2), D // 2), D // 2)
    sign = tl.where(d < D // 2, -1.0, 1.0)
    table = tables + row.to(tl.int64) * table_stride
    k_cache, v_cache = k_cache + head * D, v_cache + head * D
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    q_scale = tl.load(q_weight + d).to(tl.float32)[None, :]
    q_other = tl.load(q_weight + pair).to(tl.float32)[None, :]
    k_scale = tl.load(k_weight + d).to(tl.float32)
    k_other = tl.load(k_weight + pair).to(tl.float32)
    if EARLY or ASK:
        guess = tl.minimum(tl.maximum(tl.load(lengths + row, cache_modifier=".cg"), 1), table_stride * BLOCK)
        begin, end, used = _share(guess, split, splits, chunk, TILE)
    if ASK:
        _ask(k_cache, v_cache, table, begin, end, blocks, KV * D, D, 2 * TILE, BLOCK)
    if EARLY:
        at = begin + span
        ids = tl.load(table + at // BLOCK, mask=at < end, other=0, cache_modifier=".cg")
        ids = tl.minimum(tl.maximum(ids, 0), blocks - 1)
        k = _gathered(k_cache, ids, at, end, d, KV * D, BLOCK)
        v = _gathered(v_cache, ids, at, end, d, KV * D, BLOCK)
        spot = tl.minimum(tl.maximum(tl.load(positions + row, cache_modifier=".cg"), 0), angles - 1)
        cos = tl.load(cos_sin + spot.to(tl.int64) * D + half)
        sin = tl.load(cos_sin + spot.to(tl.int64) * D + D // 2 + half) * sign
    if PDL:
        tl.extra.cuda.gdc_wait()
    length = tl.load(lengths + row, cache_modifier=".cg")
    position = tl.load(positions + row, cache_modifier=".cg").to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    source = qkv + row.to(tl.int64) * stride
    heads = source + (head * GROUP + g)[:, None] * D
    x = tl.load(heads + d[None, :], mask=g[:, None] < GROUP, other=0.0).to(tl.float32)
    y = tl.load(heads + pair[None, :], mask=g[:, None] < GROUP, other=0.0).to(tl.float32)
    mine = source + (H + head) * D
    x1 = tl.load(mine + d).to(tl.float32)
    y1 = tl.load(mine + pair).to(tl.float32)
    value = tl.load(mine + KV * D + d).to(tl.float32)
    stale: tl.constexpr = True
    if EARLY:
        now = tl.load(table + at // BLOCK, mask=at < end, other=0, cache_modifier=".cg")
        stale = (guess != length) | (spot != position) | (tl.max((ids != now).to(tl.int32), 0) != 0)
    if stale:
        begin, end, used = _share(length, split, splits, chunk, TILE)
        cos = tl.load(cos_sin + position * D + half)
        sin = tl.load(cos_sin + position * D + D // 2 + half) * sign
        if EARLY:
            at = begin + span
            ids = tl.load(table + at // BLOCK, mask=at < end, other=0, cache_modifier=".cg")
            k = _gathered(k_cache, ids, at, end, d, KV * D, BLOCK)
            v = _gathered(v_cache, ids, at, end, d, KV * D, BLOCK)
    if split >= used:
        return

    FIRST: tl.constexpr = TILE if EARLY else 0  # blocks are looked up a tile before they are used
    ahead = begin + FIRST + span
    ids = tl.load(table + ahead // BLOCK, mask=ahead < end, other=0)
    q = _rotated(x, y, q_scale, q_other, cos[None, :], sin[None, :], eps, D) * SCALE
    # Every e4m3 number is a float16, and one instruction makes two of them.
    q = q.to(tl.float16 if k_cache.dtype.element_ty == tl.float8e4nv else k_cache.dtype.element_ty)
    m, l = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    if split == used - 1:
        new = _saturated(_rotated(x1, y1, k_scale, k_other, cos, sin, eps, D), k_cache.dtype.element_ty)
        kept = _saturated(value, v_cache.dtype.element_ty)
        tl.store(k_cache + slot * (KV * D) + d, new)
        tl.store(v_cache + slot * (KV * D) + d, kept)
        m = tl.sum(q.to(tl.float32) * new.to(tl.float32)[None, :], 1)
        l += 1.0
        acc += kept.to(tl.float32)[None, :]
    if EARLY:  # the next tile is on its way, in registers, while this one is worked on
        for n in tl.range(begin, end, TILE, num_stages=1):
            at = n + TILE + span
            next_k = _gathered(k_cache, ids, at, end, d, KV * D, BLOCK)
            next_v = _gathered(v_cache, ids, at, end, d, KV * D, BLOCK)
            ids = tl.load(table + (at + TILE) // BLOCK, mask=at + TILE < end, other=0)
            m, l, acc = _update(q, k, v, n + span < end, m, l, acc, ASM)
            k, v = next_k, next_v
    else:
        for n in tl.range(begin, end, TILE, num_stages=STAGES):
            at = n + span
            k = _gathered(k_cache, ids, at, end, d, KV * D, BLOCK)
            v = _gathered(v_cache, ids, at, end, d, KV * D, BLOCK)
            ids = tl.load(table + (at + TILE) // BLOCK, mask=at + TILE < end, other=0)
            m, l, acc = _update(q, k, v, at < end, m, l, acc, ASM)

    number = row * KV + head
    result = out + (row.to(tl.int64) * H + head * GROUP) * D
    if used == 1:
        tl.store(result + g[:, None] * D + d[None, :], (acc / l[:, None]).to(out.dtype.element_ty),
                 mask=g[:, None] < GROUP)  # fmt: skip
        return
    first = (number * splits).to(tl.int64)
    tl.store(partial + ((first + split) * GROUP + g[:, None]) * D + d[None, :], acc, mask=g[:, None] < GROUP)
    tl.store(stats + (first + split) * (2 * GROUP) + g, m, mask=g < GROUP)
    tl.store(stats + (first + split) * (2 * GROUP) + GROUP + g, l, mask=g < GROUP)
    tl.debug_barrier()  # the counter's release covers what all threads stored
    if tl.atomic_add(counters + number, 1, sem="acq_rel") != used - 1:
        return
    tl.store(counters + number, 0)
    GS: tl.constexpr = triton.next_power_of_2(GROUP)
    h, few = tl.arange(0, GS), tl.arange(0, MERGE)
    total_m, total_l = tl.full((GS,), float("-inf"), tl.float32), tl.zeros((GS,), tl.float32)
    total = tl.zeros((GS, D), tl.float32)
    for s in range(0, used, MERGE):
        here = first + s + few
        real = ((s + few) < used)[:, None] & (h < GROUP)[None, :]
        place = here[:, None] * (2 * GROUP) + h[None, :]
        some = tl.load(stats + place, mask=real, other=float("-inf"), cache_modifier=".cg")
        sums = tl.load(stats + place + GROUP, mask=real, other=0.0, cache_modifier=".cg")
        place = (here[:, None] * GROUP + h[None, :])[:, :, None] * D + d[None, None, :]
        parts = tl.load(partial + place, mask=real[:, :, None], other=0.0, cache_modifier=".cg")
        top = tl.where(h < GROUP, tl.maximum(total_m, tl.max(some, 0)), 0.0)
        weight = tl.exp2(some - top[None, :])
        shrink = tl.exp2(total_m - top)
        total_l = total_l * shrink + tl.sum(sums * weight, 0)
        total = total * shrink[:, None] + tl.sum(parts * weight[:, :, None], 0)
        total_m = top
    tl.store(result + h[:, None] * D + d[None, :], (total / total_l[:, None]).to(out.dtype.element_ty),
             mask=h[:, None] < GROUP)  # fmt: skip


def rope_cache(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float, plan: StepPlan,
    k_cache: Tensor, v_cache: Tensor, *, first: int = 0, keys: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `reference_engine.rope_cache`, with the products in float32 and one rounding at the end.

    first: tokens before it are left out, in the result [N - first, H, D] too. keys [N - first, KV, D]: filled with the
    new keys as they were before the cache's rounding.
    """
    tokens, dim = len(qkv), k_cache.shape[-1]
    qkv = _flat(qkv)
    q = torch.empty((tokens - first, heads, dim), dtype=qkv.dtype, device=qkv.device)
    together = min(8, heads & -heads, kv_heads & -kv_heads)
    grid = (cdiv(tokens - first, 16 // together), (heads + 2 * kv_heads) // together)
    launch(
        _rope_cache, grid, qkv, q_weight, k_weight, plan.cos_sin, plan.positions, plan.slots, q,
        q if keys is None else keys, k_cache, v_cache, tokens, first, qkv.stride(0), eps,
        H=heads, KV=kv_heads, D=dim, HEADS=together, ROWS=16, KEEP=keys is not None, num_warps=4,
    )  # fmt: skip
    return q


def decode(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float, plan: StepPlan,
    k_cache: Tensor, v_cache: Tensor, out: Tensor, *, config: DecodeConfig | None = None,
) -> None:  # fmt: skip
    """The first `plan.decode` tokens of qkv, which are the first rows, into out [N, H·D]; their keys into the cache.

    Launches on one device share the counters: one stream at a time. The first launch must be outside of graph capture.
    """
    rows, dim = plan.decode, k_cache.shape[-1]
    group = heads // kv_heads
    config = config or decode_config(rows, kv_heads, plan.max_length)
    partial = stats = out
    if config.splits > 1:
        shares = rows * heads * config.splits
        space = torch.empty(shares * (dim + 2), dtype=torch.float32, device=qkv.device)
        partial, stats = space[: shares * dim], space[shares * dim :]
    qkv = _flat(qkv)
    wide = next_power_of_2(group)
    launch(
        _decode, (kv_heads, rows, config.splits), qkv, q_weight, k_weight, plan.cos_sin, plan.positions, plan.slots,
        plan.tables, plan.lengths, k_cache, v_cache, out, partial, stats, _counters(qkv.device), qkv.stride(0),
        plan.tables.stride(0), len(k_cache), len(plan.cos_sin), config.splits, config.chunk, eps,
        H=heads, KV=kv_heads, D=dim, SCALE=dim**-0.5 * prefill.LOG2E, GROUP=group, ROWS=max(16, wide),
        TILE=config.tile, STAGES=config.stages, MERGE=max(1, 2048 // (wide * dim)), BLOCK=BLOCK,
        EARLY=config.early and config.stages == 1, ASK=PDL and config.early and config.stages > 1, ASM=PDL, PDL=PDL,
        num_warps=config.warps, launch_pdl=PDL,
    )  # fmt: skip


def attend(
    qkv: Tensor, heads: int, kv_heads: int, q_weight: Tensor, k_weight: Tensor, eps: float, plan: StepPlan,
    k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    """As `reference_engine.attend`: [N, (H + 2·KV)·D] -> [N, H·D]. D a power of two from 16; float32: the reference."""
    if qkv.dtype == torch.float32:
        return reference_engine.attend(qkv, heads, kv_heads, q_weight, k_weight, eps, plan, k_cache, v_cache)
    tokens, dim = len(qkv), k_cache.shape[-1]
    args = (heads, kv_heads, q_weight, k_weight, eps, plan, k_cache, v_cache)
    out = torch.empty((tokens, heads * dim), dtype=qkv.dtype, device=qkv.device)
    first = 0 if plan.invariant else plan.decode
    if first:
        decode(qkv, *args, out)
    if first < tokens:
        whole = 0 if plan.invariant else prefill.dense_tokens(plan)
        prompts = not whole and not plan.invariant and prefill.has_prompts(plan)
        keys = qkv.new_empty(tokens - first, kv_heads, dim) if whole or prompts else None
        q = rope_cache(qkv, *args, first=first, keys=keys)
        result = out[first:].view(tokens - first, heads, dim)
        if keys is not None:
            values = _flat(qkv)[first:, (heads + kv_heads) * dim :].unflatten(1, (kv_heads, dim))
            if prompts:
                prefill.prompts(q, keys, values, plan, result)
            else:
                done = prefill.dense(q[:whole], keys[:whole], values[:whole], plan, k_cache, v_cache)
                if whole == tokens:
                    return done.flatten(1)
                result[:whole] = done
        prefill.chunks(q, plan, k_cache, v_cache, result, first=first, skip=whole, rest=prompts)
    return out


def _flat(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
