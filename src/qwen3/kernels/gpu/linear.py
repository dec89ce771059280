"""Matrix products of few rows, as fast as the weights can be read, with what stands around them in the network.

One launch computes act(rms_norm(x) @ weightᵀ) + residual. Decoding reads every weight once a step and computes almost
nothing with it, so all here serves one purpose: that reading never pauses. One row goes through `_gemv` (no tensor
cores), a few rows through `_few` (tensor cores, weights and rows straight from memory into the registers these want),
more through `_gemm` (weights pipelined through shared memory; where tiles do not fill the device, K is split and the
last program of a tile adds the parts in fixed order) and the most through PyTorch's. With programmatic dependent launch
a kernel starts while the one before it ends, and asks for its first weights before it waits for its input.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qwen3.kernels import reference_engine
from qwen3.kernels.gpu import elementwise
from qwen3.kernels.gpu.launch import cdiv, launch, next_power_of_2


@triton.jit
def _weight_rows(first, row, N: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr):
    """Rows of the weight behind the columns of y from `first`: BLOCK neighbours; or half as many gate rows, then the up
    rows that go with them.

    row: which of the BLOCK rows, of any shape.
    """
    if SILU:
        at = first + row % (BLOCK // 2)
        row = tl.minimum(at, N // 2 - 1) + (row // (BLOCK // 2)) * (N // 2)
    else:
        row = tl.minimum(first + row, N - 1)
    return row


@triton.jit
def _silu_mul(gate, up):
    return gate / (1 + tl.exp(-gate)) * up


@triton.jit
def _load(pointers, col, K: tl.constexpr, WHOLE: tl.constexpr):
    """Pointers [..., BLOCK_K] at columns `col`; WHOLE: none of them is beyond K."""
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=col < K, other=0.0)


@triton.jit
def _load_some(pointers, known, col, K: tl.constexpr, WHOLE: tl.constexpr):
    """The same where `known`, else 0."""
    return tl.load(pointers, mask=known if WHOLE else known & (col < K), other=0.0)


@triton.jit
def _tuple(tile):
    return (tile,)


@triton.jit
def _ask(pointers):
    """Have the L2 cache fetch the 32 bytes or more around each pointer; nothing waits. Not in the interpreter."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.uint64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _scale(scale, row, k, K: tl.constexpr, SQUARE: tl.constexpr):
    """Scales of FP8 weights: one for each row, or (SQUARE > 0) for each square of weights [SQUARE, SQUARE]."""
    at = row
    if SQUARE:
        at = row // SQUARE * ((K + SQUARE - 1) // SQUARE) + tl.minimum(k, K - 1) // SQUARE
    return tl.load(scale + at)


@triton.jit
def _narrow(weights, dtype: tl.constexpr):
    """FP8 -> bfloat16 by way of float32: the one instruction that turns float16 into bfloat16 is slow."""
    if dtype == tl.bfloat16 and weights.dtype == tl.float8e4nv:
        weights = weights.to(tl.float32)
    return weights.to(dtype)


@triton.jit(do_not_specialize=["M"])
def _gemv(
    x, weight, scale, x_scale, norm, residual, y, M, stride, eps,
    N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, AHEAD: tl.constexpr,
    SILU: tl.constexpr, PDL: tl.constexpr, SQUARE: tl.constexpr = 0,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    tile, col = tl.program_id(0), tl.arange(0, BLOCK_K)
    OUT: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    rows = _weight_rows(tile * OUT, tl.arange(0, BLOCK_N), N, BLOCK_N, SILU)
    base = weight + rows[:, None] * K + col[None, :]
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    ahead = _tuple(_load(base, col[None, :], K, WHOLE))
    for i in tl.static_range(1, min(AHEAD, STEPS)):
        ahead = ahead + _tuple(_load(base + i * BLOCK_K, col[None, :] + i * BLOCK_K, K, WHOLE))
    if PDL:
        gdc_wait()
    WIDTH: tl.constexpr = N // 2 if SILU else N
    n = tile * OUT + tl.arange(0, OUT)
    mask = n < WIDTH
    if residual is not None:
        rest = tl.load(residual + n, mask=mask, other=0.0)
    # Sums of NEAR neighbours stay within a thread, so that few registers are kept from step to step.
    NEAR: tl.constexpr = 8 if scale is None else 16
    total = tl.zeros((BLOCK_N, BLOCK_K // NEAR), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for i in tl.static_range(STEPS):
        row = _load(x + i * BLOCK_K + col, i * BLOCK_K + col, K, WHOLE).to(tl.float32)
        if norm is not None:
            squares += row * row
            row *= _load(norm + i * BLOCK_K + col, i * BLOCK_K + col, K, WHOLE).to(tl.float32)
        now = ahead[0]
        ahead = ahead[1:]
        if i + AHEAD < STEPS:
            at = (i + AHEAD) * BLOCK_K
            ahead = ahead + _tuple(_load(base + at, col[None, :] + at, K, WHOLE))
        part = tl.sum(tl.reshape(now.to(tl.float32) * row[None, :], (BLOCK_N, BLOCK_K // NEAR, NEAR)), 2)
        if SQUARE:
            where = i * BLOCK_K + tl.arange(0, BLOCK_K // NEAR)[None, :] * NEAR
            part *= _scale(scale, rows[:, None], where, K, SQUARE)
        total += part
    out = tl.sum(total, 1)
    if scale is not None and not SQUARE:
        out *= _scale(scale, rows, 0, K, SQUARE)
    if norm is not None:
        out *= tl.rsqrt(tl.sum(squares, 0) / K + eps)
    if SILU:
        gate, up = tl.split(tl.trans(tl.reshape(out, (2, OUT))))
        out = _silu_mul(gate, up)
    if residual is not None:
        out += rest.to(tl.float32)
    tl.store(y + n, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _few_load(pointers, known, col, K: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr):
    """`_load_some` of 16-bit values [..., 32] -> the same; WIDE: -> [..., 64], a thread's 8 and the next 8."""
    v = _load_some(pointers, known, col, K, WHOLE)
    if WIDE:
        v = tl.join(v, _load_some(pointers + 8, known, col + 8, K, WHOLE))
        v = tl.reshape(v, (v.shape[0], v.shape[1], v.shape[2], v.shape[3], 4, 8, 2))
        v = tl.permute(v, (0, 1, 2, 3, 4, 6, 5))
        v = tl.reshape(v, (v.shape[0], v.shape[1], v.shape[2], v.shape[3], 64))
    return v


@triton.jit
def _few_step(
    acc, squares, w_tile, x_tile, scale, rows, norm, at, k, xk,
    K: tl.constexpr, WHOLE: tl.constexpr, BLOCK_N: tl.constexpr, SQUARE: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    WARPS: tl.constexpr = acc.shape[0]
    FULL: tl.constexpr = acc.shape[1]
    SLABS: tl.constexpr = x_tile.shape[2]
    WIDTH: tl.constexpr = w_tile.shape[4]
    if norm is not None:
        wide = x_tile.to(tl.float32)
        squares += tl.sum(wide * wide, 2)
        xk = at + tl.broadcast_to(xk, (8, WARPS, SLABS, 1, 32))  # so that each thread loads what it needs
        x_tile = (wide * _few_load(norm + xk, xk >= 0, xk, K, WHOLE, WIDTH == 64).to(tl.float32)).to(x_tile.dtype)
    if SQUARE:
        w_tile = w_tile.to(tl.float32) * _scale(scale, rows, at + tl.min(k, 4, keep_dims=True), K, SQUARE)
    w_tile = _narrow(w_tile, x_tile.dtype)
    x_tile = tl.broadcast_to(x_tile, (8, WARPS, SLABS, FULL // 8, WIDTH))
    GROUPS: tl.constexpr = WIDTH // 4 // EACH
    x_tile = tl.permute(tl.reshape(x_tile, (8, WARPS, SLABS, FULL // 8, 4, GROUPS, EACH)), (1, 3, 0, 2, 5, 4, 6))
    w_tile = tl.permute(tl.reshape(w_tile, (8, WARPS, SLABS, BLOCK_N // 8, 4, GROUPS, EACH)), (1, 2, 5, 4, 6, 3, 0))
    x_tile = tl.reshape(x_tile, (WARPS, FULL, SLABS * WIDTH))
    return tl.dot(x_tile, tl.reshape(w_tile, (WARPS, SLABS * WIDTH, BLOCK_N)), acc), squares


@triton.jit(do_not_specialize=["M"])
def _few(
    x, weight, scale, x_scale, norm, residual, y, M, stride, eps,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WARPS: tl.constexpr, AHEAD: tl.constexpr, SILU: tl.constexpr, PDL: tl.constexpr, SQUARE: tl.constexpr = 0,
):  # fmt: skip
    # A dot's sum does not care for the order of its columns. So memory's order, in which a thread loads 8 neighbours,
    # is relabelled as the order in which the tensor cores want them in registers (of 16 columns a thread holds 2t,
    # 2t+1, 2t+8, 2t+9), for x and weight alike: nothing passes through shared memory. Each warp has columns of its own
    # (the dot's batch), 32 in 32 · WARPS; x's rows are the dot's 16, weight rows its 8. BLOCK_M 8: those 8 rows twice.
    if PDL:
        gdc_launch_dependents()
    FP8: tl.constexpr = scale is not None
    WIDTH: tl.constexpr = 64 if FP8 else 32  # columns of a slab: 16 bytes of weights for each of 4 threads
    SLABS: tl.constexpr = BLOCK_K // (WIDTH * WARPS)
    FULL: tl.constexpr = 16 if BLOCK_M == 8 else BLOCK_M
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    NEAR: tl.constexpr = min(2, STEPS)
    tile = tl.program_id(0)
    # [8 rows, warps, slabs of columns, groups of 8 rows, 32 columns], in the order in which threads are given out.
    eight = tl.arange(0, 8)[:, None, None, None, None]
    slab = tl.arange(0, WARPS)[None, :, None, None, None] + tl.arange(0, SLABS)[None, None, :, None, None] * WARPS
    k = slab * WIDTH + tl.arange(0, WIDTH)[None, None, None, None, :]
    xk = k
    if FP8:
        lane = tl.arange(0, 32)
        xk = slab * WIDTH + (lane // 8 * 16 + lane % 8)[None, None, None, None, :]
    row = tl.arange(0, BLOCK_N // 8)[None, None, None, :, None] * 8 + eight
    OUT: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    row = _weight_rows(tile * OUT, row, N, BLOCK_N, SILU)
    w_at = weight + row * K + k
    ahead = _tuple(_load(w_at, k, K, WHOLE))
    for i in tl.static_range(1, min(AHEAD, STEPS)):
        ahead = ahead + _tuple(_load(w_at + i * BLOCK_K, k + i * BLOCK_K, K, WHOLE))
    if PDL:
        if norm is not None:
            _ask(norm + tl.minimum(tl.arange(0, 256) * 32, K - 16))
        gdc_wait()
    token = tl.arange(0, BLOCK_M // 8)[None, None, None, :, None] * 8 + eight
    x_at = x + token * stride + xk
    near = _tuple(_few_load(x_at, token < M, xk, K, WHOLE, FP8))
    for i in tl.static_range(1, NEAR):
        near = near + _tuple(_few_load(x_at + i * BLOCK_K, token < M, xk + i * BLOCK_K, K, WHOLE, FP8))
    WIDE: tl.constexpr = N // 2 if SILU else N
    m, n = tl.arange(0, FULL), tile * OUT + tl.arange(0, OUT)
    mask = ((m < BLOCK_M) & (m < M))[:, None] & (n < WIDE)[None, :]
    at = m[:, None] * WIDE + n[None, :]
    if residual is not None:
        rest = tl.load(residual + at, mask=mask, other=0.0)
    acc = tl.zeros((WARPS, FULL, BLOCK_N), tl.float32)
    squares = tl.zeros((8, WARPS, BLOCK_M // 8, WIDTH), tl.float32)
    EACH: tl.constexpr = 4 if FP8 else 2
    if FP8 or STEPS <= 4 or (norm is None and STEPS <= 8):
        for i in tl.static_range(STEPS):
            w_tile, x_tile = ahead[0], near[0]
            ahead, near = ahead[1:], near[1:]
            if i + AHEAD < STEPS:
                far = (i + AHEAD) * BLOCK_K
                ahead = ahead + _tuple(_load(w_at + far, k + far, K, WHOLE))
            if i + NEAR < STEPS:
                far = (i + NEAR) * BLOCK_K
                near = near + _tuple(_few_load(x_at + far, token < M, xk + far, K, WHOLE, FP8))
            acc, squares = _few_step(
                *(acc, squares, w_tile, x_tile, scale, row, norm, i * BLOCK_K, k, xk, K, WHOLE, BLOCK_N, SQUARE, EACH)
            )
    else:
        for i in tl.range(STEPS, num_stages=1):
            w_tile, x_tile = ahead[0], near[0]
            far = (i + AHEAD) * BLOCK_K
            ahead = ahead[1:] + _tuple(tl.load(w_at + far, mask=k + far < K, other=0.0))
            far = (i + NEAR) * BLOCK_K
            near = near[1:] + _tuple(_few_load(x_at + far, token < M, xk + far, K, False, FP8))
            acc, squares = _few_step(
                *(acc, squares, w_tile, x_tile, scale, row, norm, i * BLOCK_K, k, xk, K, WHOLE, BLOCK_N, SQUARE, EACH)
            )
    out = tl.sum(acc, 0)
    if FP8 and not SQUARE:
        out *= _scale(scale, _weight_rows(tile * OUT, tl.arange(0, BLOCK_N), N, BLOCK_N, SILU), 0, K, SQUARE)[None, :]
    if norm is not None:
        total = tl.trans(tl.sum(tl.sum(squares, 3), 1))
        total = tl.reshape(tl.broadcast_to(total, (FULL // 8, 8)), (FULL,))
        out *= tl.rsqrt(total / K + eps)[:, None]
    if SILU:
        gate, up = tl.split(tl.permute(tl.reshape(out, (FULL, 2, OUT)), (0, 2, 1)))
        out = _silu_mul(gate, up)
    if residual is not None:
        out += rest.to(tl.float32)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _finish(
    acc, total, scale, x_scale, norm, residual, y, first, m, M, eps,
    N: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """Store sums [weight rows, tokens] behind the columns of y from `first`."""
    ROWS: tl.constexpr = acc.shape[0]
    if norm is not None:
        acc *= tl.rsqrt(total / K + eps)[None, :]
    WIDTH: tl.constexpr = N // 2 if SILU else N
    OUT: tl.constexpr = ROWS // 2 if SILU else ROWS
    if scale is not None and not SQUARE:
        acc *= _scale(scale, _weight_rows(first, tl.arange(0, ROWS), N, ROWS, SILU), 0, K, SQUARE)[:, None]
        if x_scale is not None:
            acc *= tl.load(x_scale + tl.minimum(m, M - 1))[None, :]
    if SILU:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (2, OUT, acc.shape[1])), (1, 2, 0)))
        acc = _silu_mul(gate, up)
    n = first + tl.arange(0, OUT)
    mask = (n < WIDTH)[:, None] & (m < M)[None, :]
    at = m.to(tl.int64)[None, :] * WIDTH + n[:, None]
    if residual is not None:
        acc += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _meet(
    acc, total, scale, x_scale, norm, residual, y, parts, arrived, group, tile, split, first, m, M, eps,
    N: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr, PIECE: tl.constexpr, SILU: tl.constexpr,
    SQUARE: tl.constexpr,
):  # fmt: skip
    """Leave the sums of a slice of K in `parts`; the last program of a tile adds all of them and finishes."""
    BLOCK_N: tl.constexpr = acc.shape[0]
    BLOCK_M: tl.constexpr = acc.shape[1]
    SIZE: tl.constexpr = BLOCK_N * BLOCK_M + BLOCK_M
    HALF: tl.constexpr = 2 if SILU else 1
    column = tl.arange(0, BLOCK_M)
    meeting = group * (tl.num_programs(1) // SPLIT) + tile
    part = parts + (meeting * SPLIT + split) * SIZE
    tl.store(part + tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + column[None, :], acc)
    if norm is not None:
        tl.store(part + BLOCK_N * BLOCK_M + column, total)
    tl.debug_barrier()  # all threads have stored before one of them says so
    if tl.atomic_add(arrived + meeting, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
        tl.store(arrived + meeting, 0)
        parts += meeting * SPLIT * SIZE
        squares = tl.zeros((BLOCK_M,), tl.float32)
        if norm is not None:
            for i in tl.static_range(SPLIT):
                squares += tl.load(parts + i * SIZE + BLOCK_N * BLOCK_M + column, cache_modifier=".cg")
        # A piece of the tile at a time, so that all its parts are on their way at once.
        for i in tl.static_range(BLOCK_N // PIECE):
            at = _weight_rows(i * (PIECE // HALF), tl.arange(0, PIECE), BLOCK_N, PIECE, SILU)
            inside = parts + at[:, None] * BLOCK_M + column[None, :]
            whole = tl.load(inside, cache_modifier=".cg")
            for j in tl.static_range(1, SPLIT):
                whole += tl.load(inside + j * SIZE, cache_modifier=".cg")
            after = first + i * (PIECE // HALF)
            _finish(whole, squares, scale, x_scale, norm, residual, y, after, m, M, eps, N, K, SILU, SQUARE)


@triton.jit(do_not_specialize=["M"])
def _gemm(
    x, weight, scale, x_scale, norm, residual, y, parts, arrived, M, stride, eps,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, DEPTH: tl.constexpr, AHEAD: tl.constexpr, SILU: tl.constexpr, PDL: tl.constexpr,
    MORE: tl.constexpr = 0, PIECE: tl.constexpr = 0, SQUARE: tl.constexpr = 0,
):  # fmt: skip
    # Weights are the dot's first operand (they fill the 16 or 64 rows of the tensor cores), tokens the second (8 do).
    # MORE: a second tile of so many weight rows behind the first: tensors have powers of two, 192 rows fit more shapes.
    if PDL:
        gdc_launch_dependents()
    tile, split = tl.program_id(1) // SPLIT, tl.program_id(1) % SPLIT
    group = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    m, k = group * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    tl.static_assert(SQUARE == 0 or SQUARE % BLOCK_K == 0)  # a step has one scale for each row
    tl.static_assert(MORE == 0 or (SPLIT == 1 and SQUARE == 0))
    SLICE: tl.constexpr = (K + BLOCK_K * SPLIT - 1) // (BLOCK_K * SPLIT) * BLOCK_K
    WHOLE: tl.constexpr = SLICE * SPLIT == K
    HALF: tl.constexpr = 2 if SILU else 1
    begin = split * SLICE
    first = tile * ((BLOCK_N + MORE) // HALF)
    rows = _weight_rows(first, tl.arange(0, BLOCK_N), N, BLOCK_N, SILU)
    w_at = weight + rows[:, None] * K + k[None, :]
    x_at = x + m.to(tl.int64)[None, :] * stride + k[:, None]
    if MORE:
        more_rows = _weight_rows(first + BLOCK_N // HALF, tl.arange(0, MORE), N, MORE, SILU)
        more_at = weight + more_rows[:, None] * K + k[None, :]
        more = tl.zeros((MORE, BLOCK_M), tl.float32)
    if PDL:
        if AHEAD > 0:
            # What the pipeline asks for first comes into the L2 cache (64 bytes each) while the kernel before ends.
            chunk = tl.minimum(begin + tl.arange(0, AHEAD // 32) * 32, K - 16)
            _ask(weight + rows[:, None] * K + chunk[None, :])
            if MORE:
                _ask(weight + more_rows[:, None] * K + chunk[None, :])
        gdc_wait()
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    squares = tl.zeros((BLOCK_K, BLOCK_M), tl.float32)
    for step in tl.range(0, SLICE, BLOCK_K, num_stages=DEPTH):
        at = begin + step
        w_tile = _load(w_at + at, at + k[None, :], K, WHOLE)
        known = m[None, :] < M
        if not WHOLE:
            known = known & (at + k < K)[:, None]
        x_tile = tl.load(x_at + at, mask=known, other=0.0)
        if norm is not None:
            wide = x_tile.to(tl.float32)
            squares += wide * wide
            x_tile = (wide * _load(norm + at + k, at + k, K, WHOLE).to(tl.float32)[:, None]).to(x_tile.dtype)
        w_tile = _narrow(w_tile, x_tile.dtype)
        if SQUARE:
            part = tl.dot(w_tile, x_tile)
            if x_scale is not None:
                part *= tl.load(x_scale + tl.minimum(at, K - 1) // SQUARE * M + tl.minimum(m, M - 1))[None, :]
            acc += part * _scale(scale, rows, at, K, SQUARE)[:, None]
        else:
            acc = tl.dot(w_tile, x_tile, acc)
        if MORE:
            more = tl.dot(_narrow(_load(more_at + at, at + k[None, :], K, WHOLE), x_tile.dtype), x_tile, more)
    total = tl.sum(squares, 0)
    if SPLIT == 1:
        _finish(acc, total, scale, x_scale, norm, residual, y, first, m, M, eps, N, K, SILU, SQUARE)
        if MORE:
            first += BLOCK_N // HALF
            _finish(more, total, scale, x_scale, norm, residual, y, first, m, M, eps, N, K, SILU, SQUARE)
    else:
        _meet(acc, total, scale, x_scale, norm, residual, y, parts, arrived, group, tile, split, first, m, M, eps,
              N, K, SPLIT, PIECE, SILU, SQUARE)  # fmt: skip


class Tile(NamedTuple):
    """How a product is cut: rows and columns of the weight in a step, and how many warps a program has.

    split 0: `_gemv` for one row, else `_few` (columns a multiple of 32 · warps); both ask for `depth` steps ahead.
    Else `_gemm`: `depth` pipeline stages, K in `split` slices, the first `ahead` columns of a slice (a power of two, 32
    or more, or 0) prefetched into the L2 cache. rows: then also the sum of two powers of two from 64, if split is 1.
    tokens: rows of x in a program, 0: as many as there are. apart: a norm is a launch of its own.
    walkers: for weights of few bits, so many programs of `stationary`, which walk over tiles of rows (0: another).
    """

    rows: int
    columns: int
    depth: int
    warps: int
    split: int = 0
    ahead: int = 0
    tokens: int = 0
    apart: bool = False
    walkers: int = 0


def tuned(name: str) -> dict[tuple[int, int, int, bool], Tile | None]:
    data = json.loads((resources.files("qwen3") / "data" / name).read_text())
    return {(rows, n, k, bool(silu)): tile and Tile(*tile) for rows, n, k, silu, tile in data["tiles"]}


TUNED = tuned("linear_tiles.json")
"""(rows of x, N, K, silu) -> what was fastest in a decode step on an H100, from tools/tune/linear.py; None: PyTorch's.

It serves fewer rows too, down to the next power of two and to the next number of rows that stands here."""

MOST_ROWS = 64
"""Above it, where nothing is tuned, PyTorch's product is used, and the norm is always a launch of its own."""

INVARIANT = Tile(rows=128, columns=64, depth=4, warps=4, split=1, tokens=64)
"""The one way of cutting that makes a row's bits independent of how many rows there are."""

PARTS = 8 << 20
"""Floats in the workspace in which the slices of a tile meet; launches that would need more are not split as far."""

ARRIVALS = 16384
"""Tiles that a split launch may have."""

_SMALL = frozenset((torch.bfloat16, torch.float16))
Launch = tuple[Any, tuple[int, ...], dict[str, Any], tuple[Tensor, ...]]


def choose(rows: int, n: int, k: int, silu: bool, processors: int = 132) -> Tile | None:
    """The tile for `rows` rows by weight [n, k] on a device of so many multiprocessors. None: PyTorch's product."""
    least, rows = rows, 1 if rows == 1 else max(8, next_power_of_2(rows))
    if processors == 132:
        for size in range(least, rows + 1):
            if (size, n, k, silu) in TUNED:
                return TUNED[size, n, k, silu]
    if rows > MOST_ROWS:
        return None
    if rows == 1:
        columns = next((c for c in (2048, 1024, 512, 256) if k % c == 0), min(1024, next_power_of_2(k)))
        depth = min(-(-k // columns), 3)
        # About 32 KB in flight in a program, and two programs or more for each multiprocessor.
        height = 16
        while height > 2 and (height * columns * depth > 16384 or n // height < 2 * processors):
            height //= 2
        return Tile(height, columns, depth, 4)
    if rows <= 16:
        # 8 weight rows where only that fills the device. 32 KB of weights asked for in a program, or all there are.
        height = 8 if n < 16 * processors else 16
        warps = 8 if n // height < 2 * processors and k >= 2048 else 4
        columns = 512 if k >= 512 else max(32 * warps, next_power_of_2(k))
        return Tile(height, columns, min(-(-k // columns), 2 if warps == 4 else 4), warps)
    # Each program reads its slice of x too: the more rows, the more weights it should meet there.
    height = {32: 64, 64: 128}[rows]
    columns = 128 if k % 128 == 0 or k > 512 else next_power_of_2(min(k, 128))
    while height > 16 and -(-n // height) * max(1, k // 512) < processors:
        height //= 2
    tiles = -(-n // height)

    def waste(split: int) -> float:
        """Idle share of the last wave, two programs for each multiprocessor; slices cost a little too."""
        programs = tiles * split
        return -(-programs // (2 * processors)) * 2 * processors / programs + 0.03 * split

    most = min(4 * processors // tiles, k // 512, PARTS // (tiles * (height + 1) * rows))
    slices = [s for s in (1, 2, 3, 4, 6, 8) if s <= max(1, most)]
    stage = (height + rows) * columns * 2
    return Tile(height, columns, max(2, min(5, 98304 // stage)), 4, min(slices, key=waste), 512)


@lru_cache
def workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    """(parts [PARTS] float32, arrived [ARRIVALS] int32) of a device, shared by all launches of one stream.

    It must exist before the first capture of a CUDA graph: any product of few rows before that makes it.
    """
    parts = torch.empty(PARTS, dtype=torch.float32, device=device)
    return parts, torch.zeros(ARRIVALS, dtype=torch.int32, device=device)


def fused_linear(
    x: Tensor, weight: Tensor, *, norm: Tensor | None = None, eps: float = 0.0, residual: Tensor | None = None,
    silu: bool = False, invariant: bool = False, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """As `reference_engine.fused_linear`: x [M, K] (rows may stand apart), weight [N, K] -> [M, N], with silu [M, N/2].

    bfloat16 and float16, sums in float32 and one rounding at the end; other dtypes, and K that is no multiple of 16, go
    to the reference. The launches of a device share one workspace: use one stream. A weight may not be written by a
    kernel that itself lets the next one start early: those here read weights before they wait.
    """
    (m, k), (n, columns), dtype = x.shape, weight.shape, x.dtype
    if dtype not in _SMALL or weight.dtype != dtype or k % 16 or columns != k or not m or not weight.is_contiguous():
        return reference_engine.fused_linear(
            *(x, weight), norm=norm, eps=eps, residual=residual, silu=silu, invariant=invariant
        )
    planned, apart = _planned(m, n, k, silu, invariant, x.device)
    if norm is not None and (apart or dtype == torch.float16):
        # In float16 the product of x and the norm's weight may leave its range.
        x, norm = elementwise.rms_norm(x, norm, eps), None
    if planned is None:
        return _library(x, weight, residual, silu, overwrite)
    if x.stride(1) != 1:
        x = x.contiguous()
    if residual is not None and not residual.is_contiguous():
        residual = residual.contiguous()
    y = x.new_empty(m, n // 2 if silu else n)
    start(planned, x, weight, norm, eps, residual, y)
    return y


def start(
    how: Launch, x: Tensor, weight: Tensor, norm: Tensor | None, eps: float, residual: Tensor | None, y: Tensor,
    scale: Tensor | None = None, square: int = 0, x_scale: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill y by one launch as `plan` says. scale, square: of FP8 weights; x_scale: of FP8 x (`quantize_rows`)."""
    kernel, grid, meta, shared = how
    meta = meta | {"SQUARE": square} if square else meta
    m, k = x.shape
    # One row has no stride of its own: what it says there must not make another kernel of it.
    rows = (m, x.stride(0) if m > 1 else k)
    launch(kernel, grid, x, weight, scale, x_scale, norm, residual, y, *shared, *rows, eps, **meta)


@lru_cache(4096)
def _planned(m: int, n: int, k: int, silu: bool, invariant: bool, device: torch.device) -> tuple[Launch | None, bool]:
    """(how a product is launched, None: PyTorch's; whether its norm is a launch before it).

    Remembered, for finding out takes as long as launching."""
    processors, dependent = elementwise.processors(device)
    if invariant:
        return plan(m, n, k, silu, INVARIANT, dependent and m <= MOST_ROWS, device), True
    tile = choose(m, n, k, silu, processors)
    apart = tile is None or tile.apart or m > MOST_ROWS
    return None if tile is None else plan(m, n, k, silu, tile, dependent, device), apart


@lru_cache(4096)  # finding out takes as long as launching
def plan(m: int, n: int, k: int, silu: bool, tile: Tile, dependent: bool, device: torch.device) -> Launch:
    """(kernel, grid, constants, workspace) of x [m, k] by weight [n, k] cut as `tile` says.

    dependent: programmatic dependent launch.
    """
    meta: dict[str, Any] = {"N": n, "K": k, "BLOCK_N": tile.rows, "BLOCK_K": tile.columns, "SILU": silu}
    meta |= {"PDL": dependent, "num_warps": tile.warps}
    if dependent:
        meta["launch_pdl"] = True
    block_m, blocks, shared = tile.tokens or max(8, next_power_of_2(m)), cdiv(n, tile.rows), workspace(device)
    if tile.split == 0:
        meta["AHEAD"] = tile.depth
        if m == 1:
            return _gemv, (blocks,), meta, ()
        return _few, (blocks,), meta | {"BLOCK_M": block_m, "WARPS": tile.warps}, ()
    whole = 1 << (tile.rows.bit_length() - 1)  # the greatest power of two in the rows
    meta |= {"BLOCK_M": block_m, "SPLIT": tile.split, "DEPTH": tile.depth, "AHEAD": tile.ahead}
    if tile.rows != whole:
        meta |= {"BLOCK_N": whole, "MORE": tile.rows - whole}
    if tile.split > 1:
        meta["PIECE"] = min(tile.rows, max(2, 1024 * tile.warps // block_m))
    # Programs that run together share weights (up to 16 neighbours) and rows of x.
    groups = cdiv(m, block_m * 16)
    return _gemm, (cdiv(cdiv(m, block_m), groups), blocks * tile.split, groups), meta, shared


def _library(x: Tensor, weight: Tensor, residual: Tensor | None, silu: bool, overwrite: bool) -> Tensor:
    """PyTorch's product, which many rows are faster in."""
    if silu:
        y = elementwise.silu_mul(torch.mm(x, weight.t()))
        return y if residual is None else y.add_(residual)
    if residual is None:
        return torch.mm(x, weight.t())
    # Not in place, the residual is copied first.
    return torch.addmm(residual, x, weight.t(), out=residual if overwrite and residual.is_contiguous() else None)
