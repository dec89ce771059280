"""Up to 8 rows of activations by weights of 4 and 8 bits (`kernels.grouped`): activations stay, weights stream past.

Each warp of a program has columns of its own. It loads its part of x once, normalises it and holds it in registers, as
the matrix units want it, and then walks over tiles of weight rows: from there on a step costs loads of weights and
scales, one instruction or two for two weights, and the products. What all numbers of a group have too much (the magic
number that makes 4 bits a float, and half of what the bits count to) starts the group's sum with the opposite sign.
Weights are the products' first operand, so that 8 rows of x fill the second.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qwen3.errors import UsageError
from qwen3.kernels.gpu import elementwise, linear
from qwen3.kernels.gpu.launch import cdiv, launch, next_power_of_2
from qwen3.kernels.gpu.linear import _ask, _meet, _silu_mul, _tuple, _weight_rows
from qwen3.kernels.gpu.unpack import crossed, excess, numbers
from qwen3.kernels.grouped import GroupWeight

MOST_ROWS = 8


@triton.jit
def _ask_tile(
    data, scale, mins, tile, first, warp, column,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr, STEPS: tl.constexpr, SLICE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Words, scales and minima of a tile of rows, for each step those of a slab in every warp."""
    COLUMNS: tl.constexpr = 512 // BITS
    LENGTH: tl.constexpr = (K + COLUMNS - 1) // COLUMNS
    OUT: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    eight = tl.arange(0, 8)[:, None, None, None, None]
    row = _weight_rows(tile * OUT, tl.arange(0, BLOCK_N // 8)[None, None, None, :, None] * 8 + eight, N, BLOCK_N, SILU)
    mark = _weight_rows(tile * OUT, tl.arange(0, BLOCK_N)[None, :, None], N, BLOCK_N, SILU)
    at = data + row * (LENGTH * 16) + (first + warp) * 16 + tl.arange(0, 16)[None, None, None, None, :]
    found = ()
    for step in tl.static_range(STEPS):
        slab = step * WARPS + warp
        # Beyond the last tile nothing is loaded, beyond the slice zeros are.
        words = tl.load(at + step * (WARPS * 16), mask=(slab < SLICE) & (first + slab < LENGTH) & (tile < TILES),
                        other=0)  # fmt: skip
        group = tl.minimum((first * COLUMNS + column + step * (WARPS * COLUMNS)) // GROUP, (K - 1) // GROUP)
        s = tl.load(scale + group * N + mark)
        low = s if mins is None else tl.load(mins + group * N + mark)
        found = found + _tuple(words) + _tuple(s) + _tuple(low)
    return found


@triton.jit
def _weights(words, BITS: tl.constexpr, G: tl.constexpr, dtype: tl.constexpr):
    """Words [8, warps, 1, rows/8, 16] -> the products' first operand [G · warps, rows, columns of a group]."""
    WARPS: tl.constexpr = words.shape[1]
    ROWS: tl.constexpr = words.shape[3]
    LONG: tl.constexpr = 512 // BITS // G
    q = crossed(words, dtype) if BITS == 8 else numbers(words, BITS, dtype)
    q = tl.reshape(q, (8, WARPS, ROWS, 4, G, LONG // 16, 4))
    return tl.reshape(tl.permute(q, (4, 1, 2, 0, 5, 3, 6)), (G * WARPS, ROWS * 8, LONG))


@triton.jit
def _rows_of_x(x, BITS: tl.constexpr, G: tl.constexpr):
    """x [8, warps, spans, 1, columns] -> the second operand [G · warps, columns of a group, 8], in the same order."""
    WARPS: tl.constexpr = x.shape[1]
    SPANS: tl.constexpr = x.shape[2]
    WIDTH: tl.constexpr = x.shape[4]
    if BITS == 8:
        x = tl.reshape(x, (8, WARPS, G, SPANS // G, 4, WIDTH // 16, 2, 2))
        x = tl.permute(x, (2, 1, 3, 5, 4, 7, 6, 0))
    else:
        x = tl.reshape(x, (8, WARPS, G, SPANS // G, 4, WIDTH // 16, 4))
        x = tl.permute(x, (2, 1, 3, 5, 4, 6, 0))
    return tl.reshape(x, (G * WARPS, SPANS * WIDTH // G, 8))


@triton.jit(do_not_specialize=["M"])
def _stationary(
    x, data, scale, mins, norm, residual, y, parts, arrived, chosen, shares, M, stride, eps,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr, PIECE: tl.constexpr, COUNT: tl.constexpr,
    SILU: tl.constexpr, PDL: tl.constexpr, TOP: tl.constexpr = 0, SLOTS: tl.constexpr = 1,
):  # fmt: skip
    # Grid: walkers over the tiles; slices of K, or (TOP > 0: experts that each row has chosen) places in `chosen`. The
    # first place that has an expert serves all rows which have it: y's rows are places, x's with SILU are tokens.
    if TOP:
        if PDL:
            # As `moe._gemm`: what the router chose is there before the second product waits.
            if SILU or tl.program_id(0) + tl.program_id(1) == 0:
                gdc_wait()
            gdc_launch_dependents()
    elif PDL:
        gdc_launch_dependents()
    COLUMNS: tl.constexpr = 512 // BITS
    WIDTH: tl.constexpr = 16 if GROUP == 16 else 32  # columns in which 4 threads have all their neighbours
    G: tl.constexpr = 1 if GROUP >= COLUMNS else COLUMNS // GROUP
    LENGTH: tl.constexpr = (K + COLUMNS - 1) // COLUMNS
    SLICE: tl.constexpr = (LENGTH + SPLIT - 1) // SPLIT
    STEPS: tl.constexpr = (SLICE + WARPS - 1) // WARPS
    OUT: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    WIDE: tl.constexpr = N // 2 if SILU else N
    TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    dtype: tl.constexpr = x.dtype.element_ty
    MINS: tl.constexpr = mins is not None
    walker, walkers = tl.program_id(0), tl.num_programs(0)
    split = 0 if TOP else tl.program_id(1)
    first = split * SLICE
    eight = tl.arange(0, 8)
    m = eight
    used = m < M
    if TOP:
        place = tl.program_id(1)
        expert = tl.load(chosen + place, cache_modifier=".cg")
        rank = tl.arange(0, SLOTS)[None, :]
        inside = used[:, None] & (rank < TOP)
        picks = tl.load(chosen + eight[:, None] * TOP + rank, mask=inside, other=-1, cache_modifier=".cg")
        m = tl.max(tl.where(picks == expert, eight[:, None] * TOP + rank, -1), 1)
        used = m >= 0
        if (expert < 0) | (tl.min(tl.where(used, m, place), 0) < place):
            return
        m = tl.maximum(m, 0)
        data += expert.to(tl.int64) * (N * LENGTH * 16)
        scale += expert * (N * ((K + GROUP - 1) // GROUP))
        if MINS:
            mins += expert * (N * ((K + GROUP - 1) // GROUP))
    warp = tl.arange(0, WARPS)[None, :, None, None, None]
    batch = tl.arange(0, WARPS * G)[:, None, None]  # as the sums are: [groups · warps, rows, 8]
    column = batch % WARPS * COLUMNS + batch // WARPS * (COLUMNS // G)
    ahead = _tuple(_ask_tile(data, scale, mins, walker, first, warp, column, N, K, GROUP, BITS, BLOCK_N, WARPS, STEPS,
                             SLICE, SILU))  # fmt: skip
    for i in tl.static_range(1, AHEAD):
        ahead = ahead + _tuple(_ask_tile(data, scale, mins, walker + i * walkers, first, warp, column, N, K, GROUP,
                                         BITS, BLOCK_N, WARPS, STEPS, SLICE, SILU))  # fmt: skip
    if PDL:
        if norm is not None:
            _ask(norm + tl.minimum(tl.arange(0, 256) * 32, K - 16))
        if TOP == 0 or not SILU:
            gdc_wait()
    # x as loaded: [8, warps, spans of columns, 1, columns], 16 bytes a thread; its operand is [G · warps, columns, 8].
    SPANS: tl.constexpr = COLUMNS // WIDTH
    span = tl.arange(0, SPANS)[None, None, :, None, None]
    k = (first + warp) * COLUMNS + span * WIDTH + tl.arange(0, WIDTH)[None, None, None, None, :]
    # (rows of x and their masks in the layout of its loads)
    source, known = m, used
    if TOP and SILU:
        source = m // TOP
    source, known = source[:, None, None, None, None], known[:, None, None, None, None]
    squares = tl.zeros((8, WARPS, 1, WIDTH), tl.float32)
    rows, begins, sums = (), (), ()
    MUCH: tl.constexpr = excess(BITS, dtype, True) + (0 if MINS else 1 << (BITS - 1))
    many = tl.full((G * WARPS, BLOCK_N, COLUMNS // G), 1.0 if MINS else -MUCH, tl.float32).to(dtype)
    for step in tl.static_range(STEPS):
        at = k + step * (WARPS * COLUMNS)
        here = (step * WARPS + warp < SLICE) & (at < K)
        part = tl.load(x + source.to(tl.int64) * stride + at, mask=known & here, other=0.0)
        if norm is not None:
            wide = part.to(tl.float32)
            squares += tl.sum(wide * wide, 2)
            at = tl.broadcast_to(at, (8, WARPS, SPANS, 1, WIDTH))  # so that each thread loads what it needs
            part = (wide * tl.load(norm + at, mask=at < K, other=0.0).to(tl.float32)).to(dtype)
        part = _rows_of_x(part, BITS, G)
        begin = tl.zeros((G * WARPS, BLOCK_N, 8), tl.float32)
        if MINS:
            sums = sums + _tuple(tl.dot(many, part))
            begin = sums[step] * -MUCH
        elif MUCH != 0:
            begin = tl.dot(many, part)
        rows, begins = rows + _tuple(part), begins + _tuple(begin)
    total = tl.reshape(tl.sum(tl.sum(squares, 3), 1), (8,))
    factor = tl.rsqrt(total / K + eps)
    share = tl.load(shares + m, mask=used, other=0.0).to(tl.float32) if TOP and not SILU else used.to(tl.float32)
    for i in tl.range(COUNT, num_stages=1):
        now, tile = ahead[0], walker + i * walkers
        ahead = ahead[1:] + _tuple(_ask_tile(data, scale, mins, tile + AHEAD * walkers, first, warp, column, N, K,
                                             GROUP, BITS, BLOCK_N, WARPS, STEPS, SLICE, SILU))  # fmt: skip
        n = tile * OUT + tl.arange(0, OUT)
        mask = (n < WIDE)[:, None] & used[None, :]
        to = m[None, :] * WIDE + n[:, None]
        if residual is not None and SPLIT == 1:
            rest = tl.load(residual + to, mask=mask, other=0.0).to(tl.float32)
        acc = tl.zeros((WARPS * G, BLOCK_N, 8), tl.float32)
        for step in tl.static_range(STEPS):
            words, s, low = now[3 * step], now[3 * step + 1], now[3 * step + 2]
            acc += tl.dot(_weights(words, BITS, G, dtype), rows[step], begins[step]) * s.to(tl.float32)
            if MINS:
                acc += sums[step] * low.to(tl.float32)
        out = tl.sum(acc, 0)
        if SPLIT == 1:
            if norm is not None:
                out *= factor[None, :]
            if SILU:
                gate, up = tl.split(tl.permute(tl.reshape(out, (2, OUT, 8)), (1, 2, 0)))
                out = _silu_mul(gate, up)
            if residual is not None:
                out += rest
            if TOP and not SILU:
                out *= share[None, :]
            tl.store(y + to, out.to(y.dtype.element_ty), mask=mask)
        elif tile < TILES:
            _meet(out, total, None, None, norm, residual, y, parts, arrived, 0, tile, split, tile * OUT, m, M, eps,
                  N, K, SPLIT, PIECE, SILU, 0)  # fmt: skip


def plan(n: int, silu: bool, tile: linear.Tile, places: int, dependent: bool, device: torch.device) -> linear.Launch:
    """As `weight_only.plan`. places: of `chosen`, 0: there are no experts."""
    tiles = cdiv(n, tile.rows)
    walkers = min(tiles, max(1, tile.walkers // (places or tile.split)))
    meta: dict[str, Any] = {"BLOCK_N": tile.rows, "WARPS": tile.warps, "AHEAD": tile.depth, "SPLIT": tile.split}
    meta |= {"PIECE": tile.rows, "COUNT": cdiv(tiles, walkers), "SILU": silu, "PDL": dependent}
    meta |= {"num_warps": tile.warps}
    if dependent:
        meta["launch_pdl"] = True
    shared = linear.workspace(device)  # all the same: it must be there before the first capture
    return _stationary, (walkers, places or tile.split), meta, shared


def experts(
    x: Tensor, weight: GroupWeight, chosen: Tensor, shares: Tensor, out: Tensor, tile: linear.Tile, gated: bool
) -> None:
    """Fill out [pairs, N or, gated, N/2] with one of the products of `moe.run`, for MOST_ROWS tokens at most.

    x [tokens, K] if gated (weight rows are gate's, then up's), else [pairs, K], and results are multiplied with shares.
    """
    tokens, top = chosen.shape
    if tokens > MOST_ROWS:
        raise UsageError(f"{tokens} tokens: so many cannot stay in registers, {MOST_ROWS} can")
    dependent = elementwise.processors(x.device)[1]
    kernel, grid, meta, shared = plan(weight.shape[1], gated, tile, tokens * top, dependent, x.device)
    launch(kernel, grid, x, *weight.tensors, None, None, out, *shared, chosen, shares, tokens, x.stride(0), 0.0,
           N=weight.shape[1], K=weight.columns, GROUP=weight.group, BITS=weight.bits, TOP=top,
           SLOTS=next_power_of_2(top), **meta)  # fmt: skip
