"""Causal attention of chunks of tokens over the paged cache, and of long ones over contiguous keys through cuDNN."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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
        if MASKED:
            k = tl.load(k_cache + where, mask=(at < end)[:, None], other=0.0)
            v = tl.load(v_cache + where, mask=(at < end)[:, None], other=0.0)
        else:
            k = tl.load(k_cache + where)
            v = tl.load(v_cache + where)
        s = tl.dot(q, k.to(q.dtype).T)
        if MASKED:
            s = tl.where(at[None, :] <= here[:, None], s, float("-inf"))
        top = tl.maximum(m, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - top[:, None])
        shrink = tl.exp2(m - top)
        l = l * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(q.dtype), widened(v, q.dtype, ASM), acc * shrink[:, None])
        m = top
    return m, l, acc


@triton.jit(do_not_specialize=["first_token", "first_row", "skip", "table_stride"])
def _prefill(
    q, k_cache, v_cache, tables, starts, lengths, out, q_stride, out_stride, table_stride, first_token, first_row, skip,
    scale,
    KV: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, INVARIANT: tl.constexpr, BLOCK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Program (KV head, tile of queries, row): BLOCK_M // GROUP tokens times the GROUP heads that share keys.

    q, out: [tokens from first_token on, H, D]. The first `skip` tokens of a row are left out. Keys come in tiles at
    absolute positions, so what a query gets depends on its own position alone; INVARIANT: by one path, too.
    """
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    head = tl.program_id(0)
    row = first_row + tl.program_id(2)
    begin = tl.load(starts + row)
    count = tl.load(starts + row + 1) - begin
    length = tl.load(lengths + row)
    tile = skip + (tl.num_programs(1) - 1 - tl.program_id(1)) * TOKENS  # late queries see most keys: they start first
    if tile >= count:
        return
    lane = tl.arange(0, D)
    r = tl.arange(0, BLOCK_M)
    own = tile + r // GROUP
    real = (own < count) & (r // GROUP < TOKENS)
    here = length - count + own
    place = (begin - first_token + own).to(tl.int64)
    heads = (head * GROUP + r % GROUP) * D
    x = tl.load(q + (place * q_stride + heads)[:, None] + lane[None, :], mask=real[:, None], other=0.0)
    if k_cache.dtype.element_ty == tl.float8e4nv:
        x = x.to(tl.float16)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    table = tables + row.to(tl.int64) * table_stride
    k_cache += head * D
    v_cache += head * D
    end = tl.minimum(length, length - count + tile + TOKENS)
    full = 0
    if not INVARIANT:
        full = (length - count + tile + 1) // BLOCK_N * BLOCK_N  # keys that the tile's first query sees
        m, l, acc = _span(x, k_cache, v_cache, table, lane, here, 0, full, m, l, acc, scale,
                          KV, D, BLOCK_N, STAGES, False, BLOCK, ASM)  # fmt: skip
    m, l, acc = _span(x, k_cache, v_cache, table, lane, here, full, end, m, l, acc, scale,
                      KV, D, BLOCK_N, STAGES, True, BLOCK, ASM)  # fmt: skip
    tl.store(out + (place * out_stride + heads)[:, None] + lane[None, :],
             (acc / l[:, None]).to(out.dtype.element_ty), mask=real[:, None])  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _merge(a, b, a_lse, b_lse, out, rows, H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """a, b, out [rows = tokens·H, D] over disjoint keys, a_lse, b_lse [H, tokens]: their softmax over all keys."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D)
    mask = r < rows
    place = (r % H).to(tl.int64) * (rows // H) + r // H
    other = tl.load(b_lse + place, mask=mask, other=0.0)
    weight = tl.sigmoid(tl.load(a_lse + place, mask=mask, other=0.0) - other)
    at = r.to(tl.int64)[:, None] * D + d[None, :]
    x = tl.load(a + at, mask=mask[:, None], other=0.0).to(tl.float32)
    y = tl.load(b + at, mask=mask[:, None], other=0.0).to(tl.float32)
    tl.store(out + at, (y + (x - y) * weight[:, None]).to(out.dtype.element_ty), mask=mask[:, None])


def paged_attention(q: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """As `reference_engine.paged_attention`: q [N, H, D] -> [N, H, D]; bfloat16 or float16."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    chunks(q, plan, k_cache, v_cache, out)
    return out


def chunks(
    q: Tensor, plan: StepPlan, k_cache: Tensor, v_cache: Tensor, out: Tensor, *, first: int = 0, skip: int = 0,
    tiles: Tiles | None = None,
) -> None:  # fmt: skip
    """Attention of all rows from row `first` on (rows before it have one token each): q, out [N - first, H, D].

    skip: leading tokens of each row that are left as they are in `out`.
    """
    heads, kv_heads, dim = q.shape[1], *k_cache.shape[-2:]
    group = heads // kv_heads
    rows = len(plan.lengths) - first
    longest = max(plan.max_query, 1 if first < plan.decode else 0) - skip
    if rows == 0 or longest <= 0:
        return
    tiles = tiles or (INVARIANT_TILES if plan.invariant else TILES)
    block_m, block_n, warps, stages = tiles
    launch(
        _prefill, (kv_heads, cdiv(longest, block_m // group), rows), q, k_cache, v_cache, plan.tables,
        plan.starts, plan.lengths, out, q.stride(0), out.stride(0), plan.tables.stride(0), first, first, skip,
        dim**-0.5 * LOG2E, KV=kv_heads, D=dim, GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, STAGES=stages,
        INVARIANT=plan.invariant, BLOCK=BLOCK, ASM=PDL, num_warps=warps,
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
    tokens, heads, dim = q.shape
    count, length = plan.chunks[-1]
    past = length - count
    own, own_lse = _cudnn(q, k, v, causal=True, lse=past > 0)
    if past == 0:
        return own
    blocks = plan.tables[-1, : past // BLOCK]
    old = (cache.view(torch.uint8).index_select(0, blocks).view(cache.dtype) for cache in (k_cache, v_cache))
    seen, seen_lse = _cudnn(q, *(x.view(past, -1, dim).to(q.dtype) for x in old), causal=False, lse=True)
    rows = 16
    args = (own, seen, own_lse, seen_lse, own, tokens * heads)
    launch(_merge, (cdiv(tokens * heads, rows),), *args, H=heads, D=dim, ROWS=rows, num_warps=4)
    return own


def _cudnn(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, lse: bool) -> tuple[Tensor, Tensor]:
    """q [n, H, D], k, v [s, KV, D] -> [n, H, D] contiguous, and the logarithm of the softmax's sum [H, n] if `lse`."""
    parts = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(*parts, None, lse, 0.0, causal, False)
    return found[0][0].transpose(0, 1).contiguous(), found[1].view(q.shape[1], -1) if lse else found[1]
