"""Which experts a token takes, and the tokens of each expert, in Triton; routing noise for benchmarks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3.kernels.gpu.launch import EARLY, cdiv, launch, next_power_of_2, wait

BLOCKS, SEEN = 128, 512
"""`list_pairs` cuts the tokens into at most BLOCKS parts, counted by a launch of their own above SEEN tokens."""


@triton.jit
def _route(logits, counts, weights, chosen, E: tl.constexpr, TOP: tl.constexpr, NORMALISE: tl.constexpr,
           WIDTH: tl.constexpr, SLOTS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    token = tl.program_id(0)
    wait(PDL)
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
               **EARLY)  # fmt: skip
    return weights, chosen


@triton.jit
def _mix(x):
    """A bijection of 32-bit integers without visible structure (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["layer", "tokens"])
def _uniform(
    ids, positions, out, layer, tokens, E: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, WIDTH)
    columns = _mix(lane.to(tl.uint32) + 0x7F4A7C15)
    wait(PDL)
    live = token < tokens
    seed = _mix(tl.load(ids + token, mask=live, other=0).to(tl.uint32) + 0x9E3779B9)
    seed = _mix(seed ^ tl.load(positions + token, mask=live, other=0).to(tl.uint32))
    seed = _mix(seed + layer.to(tl.uint32))
    noise = _mix(seed[:, None] ^ columns[None, :])
    value = ((noise >> 9).to(tl.float32) + 0.5) * (2.0**-23)
    tl.store(out + token[:, None] * E + lane[None, :], value, mask=live[:, None] & (lane < E)[None, :])


def uniform_logits(ids: Tensor, positions: Tensor, layer: int, experts: int) -> Tensor:
    """As `reference_engine.uniform_logits`: noise in (0, 1), float32 [N, experts], by id, position and layer."""
    out = torch.empty(len(ids), experts, dtype=torch.float32, device=ids.device)
    if len(ids):
        rows = 1 if len(ids) <= 1024 else 16
        launch(_uniform, (cdiv(len(ids), rows),), ids, positions, out, layer, len(ids), E=experts,
               WIDTH=next_power_of_2(experts), ROWS=rows, num_warps=1 if rows == 1 else 4, **EARLY)  # fmt: skip
    return out


@triton.jit(do_not_specialize=["pairs", "each"])
def _count(chosen, counts, pairs, each, WIDTH: tl.constexpr, SPAN: tl.constexpr, PDL: tl.constexpr):
    """counts [programs, WIDTH]: pairs of each expert among a program's `each` pairs."""
    at = tl.arange(0, SPAN)
    wait(PDL)
    found = tl.zeros((WIDTH,), tl.int32)
    begin, end = tl.program_id(0) * each, tl.minimum(tl.program_id(0) * each + each, pairs)
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
    own, lane, token = tl.program_id(0), tl.arange(0, WIDTH), tl.arange(0, STEP)
    wait(PDL)
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


def list_pairs(chosen: Tensor, experts: int, bm: int) -> tuple[Tensor, Tensor]:
    """chosen [N, k], a token's experts distinct or -1 -> (order, tiles), int32: pairs token · k + slot by expert.

    order [slots · bm]: each expert's pairs, in order, from a multiple of bm on. tiles [slots]: expert · 65536 +
    pairs in the tile, where some of no pairs may follow the last.
    """
    tokens, top = chosen.shape
    slots = min(tokens * top, tokens * top // bm + experts)  # the most tiles there can be
    order, tiles = chosen.new_empty(slots * bm), chosen.new_empty(slots)
    width, counts, step = next_power_of_2(experts), None, 8 if tokens <= 128 else 16 if tokens <= SEEN else 32
    each = cdiv(cdiv(tokens, BLOCKS), step) * step
    programs = cdiv(tokens, each)
    if tokens > SEEN:
        counts = chosen.new_empty(programs, width)
        launch(_count, (programs,), chosen, counts, tokens * top, each * top, WIDTH=width, SPAN=1024, num_warps=4,
               **EARLY)  # fmt: skip
    launch(_list, (programs,), chosen, counts, order, tiles, tokens, each, slots, E=experts, TOP=top, WIDTH=width,
           BM=bm, STEP=step, SPAN=max(256, min(2048, next_power_of_2(tokens * top))),
           num_warps=8 if tokens > SEEN else 4, **EARLY)  # fmt: skip
    return order, tiles
