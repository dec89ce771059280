"""Causal attention of chunks of tokens: over the paged cache; of whole prompts over the step's own keys; of long chunks
through cuDNN."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from qwen3.kernels.gpu.launch import PDL, cdiv, launch
from qwen3.kernels.plan import BLOCK, StepPlan

LOG2E = 1.4426950408889634

DENSE_STEP = 8192
"""Tokens of a chunk, and of what the cache holds before it, go to cuDNN in multiples of this: cuDNN plans every new
shape anew, and the Triton kernel takes what is left over."""

Tiles = tuple[int, int, int, int]
"""Queries times heads of a program, keys loaded at once, warps, stages."""

TILES: Tiles = (128, 64, 8, 3)
INVARIANT_TILES: Tiles = (64, 64, 4, 2)

PROMPT_TILES: Tiles = (128, 64, 8, 2)
PROMPT_REGISTERS = 128
"""Of a thread: with 128 and 96 KiB of shared memory two programs share a multiprocessor, and one multiplies while the
other takes its softmax."""

PROMPT_TOKENS = 2048
"""Prompts computed from their first token on, with so many together, use their keys as RoPE leaves them: the hardware
copies such tiles by itself. Describing them takes the host some microseconds in each layer."""

PROGRAMS, MOST, SHARE = 264, 16, 1024
"""A small chunk's keys are divided, so that there are about PROGRAMS programs (two for each multiprocessor of an H100),
but into at most MOST shares (a power of two), of at least SHARE keys (a multiple of any tile)."""


@triton.jit
def widened(x, dtype: tl.constexpr, ASM: tl.constexpr):
    """x in `dtype`. A tile of float8 is made float16 where it was loaded: otherwise the compiler moves the change to
    the dot's operand, which then reads single bytes from shared memory."""
    if x.dtype == tl.float8e4nv and ASM:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 a, b; mov.b32 {a, b}, $2; cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b; }",
            "=r,=r,r", [x], dtype=tl.float16, is_pure=False, pack=4,
        )  # fmt: skip
    else:
        return x.to(dtype)


@triton.jit
def _update(s, v, m, l, acc, scale, dtype: tl.constexpr, ASM: tl.constexpr):
    """Online softmax over one more tile of scores, -inf where a query does not see a key."""
    top = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - top[:, None])
    shrink = tl.exp2(m - top)
    return top, l * shrink + tl.sum(p, 1), tl.dot(p.to(dtype), widened(v, dtype, ASM), acc * shrink[:, None])


@triton.jit
def _span(
    q, k_cache, v_cache, table, lane, here, begin, end, m, l, acc, scale,
    KV: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, MASKED: tl.constexpr,
    BLOCK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys [begin, end). MASKED: a query sees keys up to `here`; else all, and end - begin is
    a multiple of BLOCK_N. k_cache and v_cache point to the head."""
    span = tl.arange(0, BLOCK_N)
    ids = tl.load(table + (begin + span) // BLOCK, mask=begin + span < end, other=0)
    for n in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        at = n + span
        where = ((ids.to(tl.int64) * BLOCK + at % BLOCK) * (KV * D))[:, None] + lane[None, :]
        ids = tl.load(table + (at + BLOCK_N) // BLOCK, mask=at + BLOCK_N < end, other=0)  # a tile ahead of its use
        there = (at < end)[:, None] if MASKED else None
        k = tl.load(k_cache + where, mask=there, other=0.0 if MASKED else None)
        v = tl.load(v_cache + where, mask=there, other=0.0 if MASKED else None)
        s = tl.dot(q, k.to(q.dtype).T)
        if MASKED:
            s = tl.where(at[None, :] <= here[:, None], s, float("-inf"))
        m, l, acc = _update(s, v, m, l, acc, scale, q.dtype, ASM)
    return m, l, acc


@triton.jit(do_not_specialize=["table_stride", "before", "skip", "rest", "tokens", "splits"])
def _prefill(
    q, k_cache, v_cache, tables, starts, lengths, out, sums, q_stride, out_stride, table_stride, before, skip,
    rest, tokens, splits, scale,
    KV: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, SHARE: tl.constexpr, INVARIANT: tl.constexpr, BLOCK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Program (share and KV head, tile of queries, row): BLOCK_M // GROUP tokens times the GROUP heads that share keys.

    The rows `before` these have one token each. q, out: [tokens behind theirs, H, D]. The first `skip` tokens of a row
    are left out; where `rest` is not 0, so are rows with no token before this step's. Keys come in tiles at absolute
    positions, so what a query gets depends on its own position alone; INVARIANT: by one path, too.

    splits > 1: out is [splits, tokens, H, D], and sums [splits, tokens, H] gets the logarithm (base 2) of each share's
    softmax sum, -inf where the share is empty and `out` is left as it is. The last share has the tile's diagonal, too.
    """
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    head, split, row = tl.program_id(0) % KV, tl.program_id(0) // KV, before + tl.program_id(2)
    begin = tl.load(starts + row)
    count = tl.load(starts + row + 1) - begin
    length = tl.load(lengths + row)
    tile = skip + (tl.num_programs(1) - 1 - tl.program_id(1)) * TOKENS  # late queries see most keys: they start first
    if (tile >= count) | ((rest != 0) & (length == count)):
        return
    lane, r = tl.arange(0, D), tl.arange(0, BLOCK_M)
    own = tile + r // GROUP
    real = (own < count) & (r // GROUP < TOKENS)
    here = length - count + own
    place = (begin - before + own).to(tl.int64)
    heads = (head * GROUP + r % GROUP) * D
    end = tl.minimum(length, length - count + tile + TOKENS)
    full = 0
    if not INVARIANT:
        full = (length - count + tile + 1) // BLOCK_N * BLOCK_N  # keys that the tile's first query sees
    share = tl.maximum(tl.cdiv(tl.cdiv(full, splits), BLOCK_N) * BLOCK_N, SHARE)
    first = split * share
    used = tl.maximum(tl.cdiv(full, share), 1)
    to_sums = sums + (split.to(tl.int64) * tokens + place) * (KV * GROUP) + head * GROUP + r % GROUP
    if split >= used:
        tl.store(to_sums, tl.full((BLOCK_M,), float("-inf"), tl.float32), mask=real)
        return
    x = tl.load(q + (place * q_stride + heads)[:, None] + lane[None, :], mask=real[:, None], other=0.0)
    if k_cache.dtype.element_ty == tl.float8e4nv:
        x = x.to(tl.float16)
    m, l = tl.full((BLOCK_M,), float("-inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    table = tables + row.to(tl.int64) * table_stride
    k_cache, v_cache = k_cache + head * D, v_cache + head * D
    if not INVARIANT:
        m, l, acc = _span(x, k_cache, v_cache, table, lane, here, first, tl.minimum(first + share, full), m, l, acc,
                          scale, KV, D, BLOCK_N, STAGES, False, BLOCK, ASM)  # fmt: skip
    if split < used - 1:
        end = full
    m, l, acc = _span(x, k_cache, v_cache, table, lane, here, full, end, m, l, acc, scale,
                      KV, D, BLOCK_N, STAGES, True, BLOCK, ASM)  # fmt: skip
    if splits > 1:
        tl.store(to_sums, m + tl.log2(l), mask=real)
    tl.store(out + ((split.to(tl.int64) * tokens + place) * out_stride + heads)[:, None] + lane[None, :],
             (acc / l[:, None]).to(out.dtype.element_ty), mask=real[:, None])  # fmt: skip


@triton.jit(do_not_specialize=["before", "rows"])
def _prompts(
    q, keys, values, starts, lengths, out, before, rows, scale,
    KV: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (KV head, tile of queries): as `_prefill`, for rows that have no token before this step's; others are
    left out. keys, values: descriptors of [tokens, KV·D], in tiles of BLOCK_N tokens and a head.

    A row has its tiles, and at most one more, from (its first token // TOKENS + its number) on.
    """
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    head = tl.program_id(0)
    number = tl.num_programs(1) - 1 - tl.program_id(1)  # late queries see most keys: they start first
    i = tl.arange(0, ROWS)
    row = -1
    for some in range(0, rows, ROWS):
        ours = some + i < rows
        firsts = tl.load(starts + before + some + i, mask=ours, other=0) - before
        row += tl.sum((ours & (firsts // TOKENS + some + i <= number)).to(tl.int32), 0)
    begin = tl.load(starts + before + row) - before
    count = tl.load(starts + before + row + 1) - before - begin
    tile = (number - begin // TOKENS - row) * TOKENS
    if (tile >= count) | (tl.load(lengths + before + row) != count):
        return
    lane, r = tl.arange(0, D), tl.arange(0, BLOCK_M)
    own = tile + r // GROUP
    real = ((own < count) & (r // GROUP < TOKENS))[:, None]
    begins = begin.to(tl.int64) * (KV * GROUP * D)
    at = (own * (KV * GROUP * D) + (head * GROUP + r % GROUP) * D)[:, None] + lane[None, :]
    x = tl.load(q + begins + at, mask=real, other=0.0)
    m, l = tl.full((BLOCK_M,), float("-inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    for n in tl.range(0, tl.minimum(tile + TOKENS, count), BLOCK_N, num_stages=STAGES):
        k, v = keys.load([begin + n, head * D]), values.load([begin + n, head * D])
        s = tl.dot(x, k.T)
        if n + BLOCK_N > tile + 1:  # there are keys that the tile's first query does not see
            s = tl.where((n + tl.arange(0, BLOCK_N))[None, :] <= own[:, None], s, float("-inf"))
        m, l, acc = _update(s, v, m, l, acc, scale, x.dtype, False)
    tl.store(out + begins + at, (acc / l[:, None]).to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["before", "skip", "rest", "tokens", "splits"])
def _combine(
    parts, sums, starts, lengths, out, out_stride, before, skip, rest, tokens, splits,
    H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Program (ROWS tokens times heads, row): shares as `_prefill` leaves them, added up. Empty ones cost nothing."""
    row = before + tl.program_id(1)
    begin = tl.load(starts + row)
    count = tl.load(starts + row + 1) - begin
    if (skip + tl.program_id(0) * ROWS // H >= count) | ((rest != 0) & (tl.load(lengths + row) == count)):
        return
    r, s, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, MOST), tl.arange(0, D)
    real = skip + r // H < count
    place = (begin - before + skip + r // H).to(tl.int64)
    at = (s.to(tl.int64)[:, None] * tokens + place[None, :]) * H + (r % H)[None, :]
    some = tl.load(sums + at, mask=(s < splits)[:, None] & real[None, :], other=float("-inf"))
    weight = tl.exp2(some - tl.where(real, tl.max(some, 0), 0.0)[None, :])
    weight /= tl.where(real, tl.sum(weight, 0), 1.0)[None, :]
    x = tl.load(parts + at[:, :, None] * D + d[None, None, :], mask=(weight > 0)[:, :, None], other=0.0)
    total = tl.sum(x.to(tl.float32) * weight[:, :, None], 0)
    tl.store(out + (place * out_stride + r % H * D)[:, None] + d[None, :], total.to(out.dtype.element_ty),
             mask=real[:, None])  # fmt: skip


def chunks(
    q: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor, out: Tensor, *, first: int = 0, skip: int = 0,
    rest: bool = False, tiles: Tiles | None = None, splits: int | None = None,
) -> None:  # fmt: skip
    """Attention of all rows from row `first` on (rows before it have one token each): q, out [N - first, H, D].

    skip: leading tokens of each row that are left as they are in `out`; rest: so are the rows that `prompts` does.
    splits: shares that keys are divided into.
    """
    heads, kv_heads, dim = q.shape[1], *k_cache.shape[-2:]
    group = heads // kv_heads
    rows = len(plan.lengths) - first
    longest = max(plan.max_query, 1 if first < plan.decode else 0) - skip
    if rows == 0 or longest <= 0 or (rest and all(count == length for count, length in plan.chunks)):
        return
    block_m, block_n, warps, stages = tiles or (INVARIANT_TILES if plan.invariant else TILES)
    across = cdiv(longest, block_m // group)
    splits = splits or (1 if plan.invariant else _splits(kv_heads * across * rows, plan))
    parts, sums = out, plan.cos_sin  # one share: nothing goes to the sums, which need a tensor of their type
    if splits > 1:
        parts = torch.empty((splits, *q.shape), dtype=q.dtype, device=q.device)
        sums = torch.empty(parts.shape[:-1], dtype=torch.float32, device=q.device)
    launch(
        _prefill, (kv_heads * splits, across, rows), q, k_cache, v_cache, plan.tables, plan.starts, plan.lengths,
        parts, sums, q.stride(0), parts.stride(-3), plan.tables.stride(0), first, skip, int(rest), len(q), splits,
        dim**-0.5 * LOG2E, KV=kv_heads, D=dim, GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, STAGES=stages,
        SHARE=SHARE, INVARIANT=plan.invariant, BLOCK=BLOCK, ASM=PDL, num_warps=warps,
    )  # fmt: skip
    if splits > 1:
        _join(parts, sums, out, plan, first, skip, longest, rest)


def _join(
    parts: Tensor, sums: Tensor, out: Tensor, plan: StepPlan, first: int, skip: int, longest: int, rest: bool = False,
    most: int = MOST,
) -> None:  # fmt: skip
    """parts [splits <= most, N, H, D] and sums [splits, N, H] into out, up to token `skip + longest` of each row."""
    splits, tokens, heads, dim = parts.shape
    each = max(1, 8192 // (most * dim))
    launch(
        _combine, (cdiv(longest * heads, each), len(plan.lengths) - first), parts, sums, plan.starts,
        plan.lengths, out, out.stride(0), first, skip, int(rest), tokens, splits, H=heads, D=dim, ROWS=each,
        MOST=most, num_warps=4,
    )  # fmt: skip


def _splits(programs: int, plan: StepPlan) -> int:
    """Into how many shares the keys of so many programs go; a graph's plan has no chunks, but a bound of the length."""
    longest = max((length for _, length in plan.chunks), default=plan.max_length)
    return max(1, min(MOST, PROGRAMS // programs, cdiv(longest, SHARE)))


def has_prompts(plan: StepPlan) -> bool:
    """Whether `prompts` should do the rows whose first token is this step's."""
    return sum(count for count, length in plan.chunks if count == length) >= PROMPT_TOKENS


def prompts(
    q: Tensor, k: Tensor, v: Tensor, plan: StepPlan, out: Tensor, *, tiles: Tiles = PROMPT_TILES,
    registers: int | None = PROMPT_REGISTERS,
) -> None:  # fmt: skip
    """Attention of the rows behind the decode rows whose first token is this step's, over their own keys.

    q, out [n, H, D] contiguous, k, v [n, KV, D] of all tokens behind the decode rows'; what is of other rows in `out`
    stays as it is.
    """
    (tokens, heads, dim), kv_heads = q.shape, k.shape[1]
    block_m, block_n, warps, stages = tiles
    own = [TensorDescriptor(x, [tokens, kv_heads * dim], [x.stride(0), 1], [block_n, dim]) for x in (k, v)]
    rows = len(plan.chunks)
    launch(
        _prompts, (kv_heads, tokens // (block_m // (heads // kv_heads)) + rows), q, *own, plan.starts, plan.lengths,
        out, plan.decode, rows, dim**-0.5 * LOG2E, KV=kv_heads, D=dim, GROUP=heads // kv_heads, BLOCK_M=block_m,
        BLOCK_N=block_n, STAGES=stages, ROWS=256, num_warps=warps, maxnreg=registers,
    )  # fmt: skip


def dense_tokens(plan: StepPlan) -> int:
    """Leading tokens of the plan's only chunk that `dense` should take; 0 if there are others, or it is short."""
    if len(plan.chunks) != 1:
        return 0
    count, length = plan.chunks[0]
    return 0 if (length - count) % DENSE_STEP else count // DENSE_STEP * DENSE_STEP


def dense(q: Tensor, k: Tensor, v: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """Attention of the first tokens of the plan's last row: q [n, H, D] over their own keys k, v [n, KV, D] and those
    that the cache holds before them -> [n, H, D]. The two parts are joined by their log-sum-exp."""
    tokens, _, dim = q.shape
    count, length = plan.chunks[-1]
    past = length - count
    own, own_lse = _cudnn(q, k, v, causal=True, lse=past > 0)
    if past == 0:
        return own
    blocks = plan.tables[-1, : past // BLOCK]
    old = (cache.view(torch.uint8).index_select(0, blocks).view(cache.dtype) for cache in (k_cache, v_cache))
    seen, seen_lse = _cudnn(q, *(x.view(past, -1, dim).to(q.dtype) for x in old), causal=False, lse=True)
    sums = torch.stack((own_lse.T, seen_lse.T)) * LOG2E
    _join(torch.stack((own, seen)), sums, own, plan, plan.decode, 0, tokens, most=2)
    return own


def _cudnn(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, lse: bool) -> tuple[Tensor, Tensor]:
    """q [n, H, D], k, v [s, KV, D] -> [n, H, D] contiguous, and the logarithm of the softmax's sum [H, n] if `lse`."""
    parts = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(*parts, None, lse, 0.0, causal, False)
    return found[0][0].transpose(0, 1).contiguous(), found[1].view(q.shape[1], -1) if lse else found[1]
