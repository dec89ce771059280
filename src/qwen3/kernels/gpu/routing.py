"""Which experts a token takes, and the tokens of each expert, in Triton; routing noise for benchmarks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qwen3.kernels.gpu import elementwise
from qwen3.kernels.gpu.launch import PDL, cdiv, launch, next_power_of_2
from qwen3.kernels.gpu.linear import fused_linear, workspace

Noise = tuple[Tensor, Tensor, int]
_PDL = {"PDL": PDL, "launch_pdl": PDL}

FEW = 64
"""Up to so many tokens the norm, the router and its choice are one launch."""

BLOCKS, SEEN = 128, 512
"""`list_pairs` cuts the tokens into at most BLOCKS parts, counted by a launch of their own above SEEN tokens."""


@triton.jit
def _best(value, token, known, counts, weights, chosen, E: tl.constexpr, TOP: tl.constexpr, NORMALISE: tl.constexpr,
          WIDTH: tl.constexpr, SLOTS: tl.constexpr):  # fmt: skip
    """value [T, WIDTH] float32, -inf beyond E -> rows `token` [T], where `known`, of weights and chosen [N, TOP]."""
    lane, slot = tl.arange(0, WIDTH)[None, :], tl.arange(0, SLOTS)[None, :]
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    # Value above, expert below: one maximum gives both, and the lower expert wins a tie. Padding is below -inf.
    lowest = tl.full(value.shape, -(2**62), tl.int64) * 2
    key = tl.where(lane < E, (ordered.to(tl.int64) << 32) | (WIDTH - 1 - lane), lowest)
    tops = tl.zeros((value.shape[0], SLOTS), tl.int64)
    for k in tl.static_range(TOP):
        top = tl.max(key, 1)[:, None]
        key = tl.where(key == top, lowest, key)
        tops = tl.where(slot == k, top, tops)
    used = slot < TOP
    if counts is not None:
        used = used & (slot < tl.load(counts + token, mask=known, other=TOP)[:, None])
    high = (tops >> 32).to(tl.int32)
    picked = (high ^ ((high >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    biggest = tl.max(value, 1)[:, None]
    share = tl.where(used, tl.exp(picked - biggest), 0.0)
    share /= (tl.sum(share, 1) if NORMALISE else tl.sum(tl.exp(value - biggest), 1))[:, None]
    best = tl.where(used, WIDTH - 1 - (tops & 0xFFFFFFFF).to(tl.int32), -1)
    at = token[:, None] * TOP + slot
    tl.store(weights + at, share.to(weights.dtype.element_ty), mask=known[:, None] & (slot < TOP))
    tl.store(chosen + at, best, mask=known[:, None] & (slot < TOP))


@triton.jit
def _route(logits, counts, weights, chosen, E: tl.constexpr, TOP: tl.constexpr, NORMALISE: tl.constexpr,
           WIDTH: tl.constexpr, SLOTS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    token = tl.program_id(0) + tl.arange(0, 1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane = tl.arange(0, WIDTH)[None, :]
    value = tl.load(logits + token[:, None] * E + lane, mask=lane < E, other=float("-inf")).to(tl.float32)
    _best(value, token, token >= 0, counts, weights, chosen, E, TOP, NORMALISE, WIDTH, SLOTS)


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


@triton.jit
def _noise(ids, positions, layer, token, known, WIDTH: tl.constexpr):
    """[T, WIDTH] float32 in (0, 1) for rows `token` [T], where `known`."""
    seed = _mix(tl.load(ids + token, mask=known, other=0).to(tl.uint32) + 0x9E3779B9)
    seed = _mix(seed ^ tl.load(positions + token, mask=known, other=0).to(tl.uint32))
    seed = _mix(seed + layer.to(tl.uint32))
    noise = _mix(seed[:, None] ^ _mix(tl.arange(0, WIDTH).to(tl.uint32) + 0x7F4A7C15)[None, :])
    return ((noise >> 9).to(tl.float32) + 0.5) * (2.0**-23)


@triton.jit(do_not_specialize=["layer"])
def _uniform(ids, positions, out, layer, E: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):
    token = tl.program_id(0) + tl.arange(0, 1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane = tl.arange(0, WIDTH)[None, :]
    value = _noise(ids, positions, layer, token, token >= 0, WIDTH)
    tl.store(out + token[:, None] * E + lane, value, mask=lane < E)


def uniform_logits(ids: Tensor, positions: Tensor, layer: int, experts: int) -> Tensor:
    """As `reference_engine.uniform_logits`: noise in (0, 1), float32 [N, experts], by id, position and layer."""
    out = torch.empty(len(ids), experts, dtype=torch.float32, device=ids.device)
    if len(ids):
        launch(_uniform, (len(ids),), ids, positions, out, layer, E=experts, WIDTH=next_power_of_2(experts),
               num_warps=1, **_PDL)  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "layer"])
def _norm_route(
    x, norm, router, counts, ids, positions, y, logits, weights, chosen, arrived, tokens, layer, eps,
    H: tl.constexpr, E: tl.constexpr, TOP: tl.constexpr, NORMALISE: tl.constexpr, EACH: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """EACH tokens' norm, and CHUNK experts' logits of them; the last program of the tokens chooses their experts."""
    CHUNKS: tl.constexpr = (E + CHUNK - 1) // CHUNK
    group, chunk = tl.program_id(0) // CHUNKS, tl.program_id(0) % CHUNKS
    if PDL:
        gdc_launch_dependents()
    col, own = tl.arange(0, BLOCK), chunk * CHUNK + tl.arange(0, CHUNK)
    w = tl.load(router + own[:, None] * H + col[None, :], mask=(own < E)[:, None] & (col < H)[None, :], other=0.0)
    scale = tl.load(norm + col, mask=col < H, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    for i in tl.static_range(EACH):
        token = group * EACH + i
        known = (col < H) & (token < tokens)
        given = tl.load(x + token * H + col, mask=known, other=0.0)
        wide = given.to(tl.float32)
        wide *= tl.rsqrt(tl.sum(wide * wide, 0) / H + eps)
        out = (wide.to(given.dtype).to(tl.float32) * scale).to(given.dtype)
        if chunk == 0:
            tl.store(y + token * H + col, out, mask=known)
        value = tl.sum(w.to(tl.float32) * out.to(tl.float32)[None, :], 1)
        tl.store(logits + token * E + own, value.to(logits.dtype.element_ty), mask=(own < E) & (token < tokens))
    tl.debug_barrier()  # all threads have stored before one of them says so
    if tl.atomic_add(arrived + group, 1, sem="acq_rel", scope="gpu") != CHUNKS - 1:
        return
    tl.store(arrived + group, 0)
    token = group * EACH + tl.arange(0, EACH)
    known = token < tokens
    lane = tl.arange(0, WIDTH)[None, :]
    if ids is not None:
        value = tl.where(lane < E, _noise(ids, positions, layer, token, known, WIDTH), float("-inf"))
    else:
        there = known[:, None] & (lane < E)
        other = tl.where(lane < E, 0.0, float("-inf"))
        value = tl.load(logits + token[:, None] * E + lane, mask=there, other=0.0, cache_modifier=".cg")
        value = tl.where(there, value.to(tl.float32), other)
    _best(value, token, known, counts, weights, chosen, E, TOP, NORMALISE, WIDTH, SLOTS)


def norm_route(
    x: Tensor, norm: Tensor, eps: float, router: Tensor, top_k: int, normalise: bool, *,
    counts: Tensor | None = None, noise: Noise | None = None, invariant: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `reference_engine.norm_route`: x [N, h] -> (normed [N, h], weights [N, top_k], experts int32 [N, top_k])."""
    (tokens, h), experts = x.shape, len(router)
    same = x.dtype == norm.dtype == router.dtype and router.is_contiguous()
    if not 0 < tokens <= FEW or invariant or not same or h > 8192:
        y = elementwise.rms_norm(x, norm, eps)
        logits = uniform_logits(*noise, experts) if noise else fused_linear(y, router, invariant=invariant)
        return y, *route(logits, top_k, normalise, counts=counts)
    x = x.contiguous()
    y, logits = torch.empty_like(x), x.new_empty(tokens, experts)
    weights = x.new_empty(tokens, top_k, dtype=torch.float32 if noise else x.dtype)
    chosen = x.new_empty(tokens, top_k, dtype=torch.int32)
    ids, positions, layer = noise or (None, None, 0)
    each, block = next_power_of_2(cdiv(tokens, 8)), next_power_of_2(h)
    grid = (cdiv(tokens, each) * cdiv(experts, 8),)
    launch(_norm_route, grid, x, norm, router, counts, ids, positions, y, logits, weights, chosen,
           workspace(x.device)[1], tokens, layer, eps, H=h, E=experts, TOP=top_k, NORMALISE=normalise, EACH=each,
           CHUNK=8, BLOCK=block, WIDTH=next_power_of_2(experts), SLOTS=next_power_of_2(top_k),
           num_warps=min(16, max(4, block // 256)), **_PDL)  # fmt: skip
    return y, weights, chosen


@triton.jit(do_not_specialize=["pairs", "each"])
def _count(chosen, counts, pairs, each, WIDTH: tl.constexpr, SPAN: tl.constexpr, PDL: tl.constexpr):
    """counts [programs, WIDTH]: pairs of each expert among a program's `each` pairs."""
    at = tl.arange(0, SPAN)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    found = tl.zeros((WIDTH,), tl.int32)
    begin = tl.program_id(0) * each
    end = tl.minimum(begin + each, pairs)
    for start in range(begin, end, SPAN):
        expert = tl.load(chosen + start + at, mask=start + at < end, other=-1)
        found += tl.histogram(expert, WIDTH, mask=expert >= 0)
    tl.store(counts + tl.program_id(0) * WIDTH + tl.arange(0, WIDTH), found)


@triton.jit(do_not_specialize=["tokens", "each", "slots"])
def _list(
    chosen, counts, order, tiles, tokens, each, slots, E: tl.constexpr, TOP: tl.constexpr, WIDTH: tl.constexpr,
    BM: tl.constexpr, STEP: tl.constexpr, SPAN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The part of `each` tokens (a multiple of STEP) in what `list_pairs` returns: a counting sort, stable by token."""
    own, lane = tl.program_id(0), tl.arange(0, WIDTH)
    token = tl.arange(0, STEP)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros((WIDTH,), tl.int32)  # pairs of each expert
    before = tl.zeros((WIDTH,), tl.int32)  # those of earlier programs
    if counts is not None:
        for first in range(0, tl.num_programs(0), STEP):
            there = (first + token < tl.num_programs(0))[:, None]
            found = tl.load(counts + (first + token)[:, None] * WIDTH + lane[None, :], mask=there, other=0)
            total += tl.sum(found, 0)
            before += tl.sum(tl.where((first + token < own)[:, None], found, 0), 0)
    else:
        for start in range(0, tokens * TOP, SPAN):
            at = start + tl.arange(0, SPAN)
            expert = tl.load(chosen + at, mask=at < tokens * TOP, other=-1)
            early = at < own * each * TOP
            found = tl.histogram(expert + tl.where(early, WIDTH, 0), 2 * WIDTH, mask=expert >= 0)
            late, early = tl.split(tl.trans(tl.reshape(found, (2, WIDTH))))
            total += late + early
            before += early
    count = (total + BM - 1) // BM  # tiles of each expert
    last = tl.cumsum(count, 0)
    place = (last - count) * BM + before
    for start in range(own * each, tl.minimum(own * each + each, tokens), STEP):
        mark = tl.zeros((STEP, WIDTH), tl.int32)  # 1 + the slot in which a token chose an expert
        for slot in tl.static_range(TOP):
            expert = tl.load(chosen + (start + token) * TOP + slot, mask=start + token < tokens, other=-1)
            mark += tl.where(expert[:, None] == lane[None, :], slot + 1, 0)
        taken = (mark > 0).to(tl.int32)
        to = order + place[None, :] + tl.cumsum(taken, 0) - 1
        tl.store(to, (start + token)[:, None] * TOP + mark - 1, mask=mark > 0)
        place += tl.sum(taken, 0)
    for start in range(own * 32, slots, tl.num_programs(0) * 32):
        tile = start + tl.arange(0, 32)
        expert = tl.sum((last[None, :] <= tile[:, None]).to(tl.int32), 1)
        mine = lane[None, :] == expert[:, None]
        left = tl.sum(tl.where(mine, (total + (last - count) * BM)[None, :], 0), 1) - tile * BM
        used = tl.minimum(tl.maximum(left, 0), BM)
        tl.store(tiles + tile, tl.minimum(expert, E - 1) * 65536 + used, mask=tile < slots)
    if own == 0:
        tl.store(tiles + slots, tl.max(last, 0))


def list_pairs(chosen: Tensor, experts: int, bm: int) -> tuple[Tensor, Tensor]:
    """chosen [N, k], a token's experts distinct or -1 -> (order, tiles), int32: pairs token · k + slot by expert.

    order [slots · bm]: each expert's pairs, in order, from a multiple of bm on. tiles [slots + 1]: expert · 65536 +
    pairs in the tile, where some of no pairs may follow the last; at the end how many tiles have pairs.
    """
    tokens, top = chosen.shape
    slots = min(tokens * top, tokens * top // bm + experts)  # the most tiles there can be
    order, tiles = chosen.new_empty(slots * bm), chosen.new_empty(slots + 1)
    width, counts, step = next_power_of_2(experts), None, 16 if tokens <= SEEN else 32
    each = cdiv(cdiv(tokens, BLOCKS), step) * step
    programs = cdiv(tokens, each)
    if tokens > SEEN:
        counts = chosen.new_empty(programs, width)
        launch(_count, (programs,), chosen, counts, tokens * top, each * top, WIDTH=width, SPAN=1024, num_warps=4,
               **_PDL)  # fmt: skip
    launch(_list, (programs,), chosen, counts, order, tiles, tokens, each, slots, E=experts, TOP=top, WIDTH=width,
           BM=bm, STEP=step, SPAN=2048, num_warps=8 if tokens > SEEN else 4, **_PDL)  # fmt: skip
    return order, tiles
