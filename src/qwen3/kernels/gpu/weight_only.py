"""Linear layers with weights of 4 and 8 bits (`kernels.grouped`) on the GPU, activations in 16.

Up to FEW_ROWS rows `_few` reads each weight once, straight into the registers that the matrix units want, and applies
scales to sums of whole groups. Up to MOST_ROWS `_gemm` widens tiles of weights on their way. Above, the weight is
written out once and PyTorch's product does the rest. Twins: `kernels.grouped`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qwen3.errors import UsageError
from qwen3.kernels import grouped as plain
from qwen3.kernels.gpu import elementwise, linear, stationary
from qwen3.kernels.gpu.launch import EARLY, cdiv, launch, next_power_of_2, wait
from qwen3.kernels.gpu.linear import _ask, _finish, _meet, _silu_mul, _tuple, _weight_rows
from qwen3.kernels.gpu.unpack import excess, minus, numbers
from qwen3.kernels.grouped import SLAB, GroupWeight

FEW_ROWS = 16
MOST_ROWS = 512


@triton.jit
def columns(k, BITS: tl.constexpr, GROUP: tl.constexpr):
    """The columns of numbers `k` in the order in which a row holds them (but for words' halves), see `columns_of`."""
    S: tl.constexpr = 16 // BITS
    thread, span, r = k // (8 * S) % 4, k // 8 % S, k % 8
    own = thread * 8 + r
    if GROUP == 16:
        own = r // 4 * 16 + thread * 4 + r % 4
    return k // (32 * S) * (32 * S) + span * 32 + own


@triton.jit
def marks(
    scale, mins, row, first, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Scales and minima of rows `row` [R] and the numbers `first` … of BLOCK (whole slabs), as `widened` takes them."""
    # Of a slab a thread's numbers lie together, and of these a group's.
    G: tl.constexpr = 1 if GROUP >= 512 // BITS else 512 // BITS // GROUP
    if GROUP % BLOCK == 0 or GROUP >= K:
        at = (tl.minimum(first, K - 1) // GROUP * N + row)[:, None, None, None, None]
    else:
        part = tl.arange(0, BLOCK * BITS // 512)[None, :, None, None, None] * (512 // BITS)
        part += tl.arange(0, G)[None, None, None, :, None] * (512 // BITS // G)
        at = tl.minimum(first + part, K - 1) // GROUP * N + row[:, None, None, None, None]
    s = tl.load(scale + at)
    return s, s if mins is None else tl.load(mins + at)


@triton.jit
def widened(words, s, low, MINS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr):
    """int32 words [R, whole slabs], scales and minima -> float32 [R, numbers in the order of `columns`]."""
    R: tl.constexpr = words.shape[0]
    SLABS: tl.constexpr = words.shape[1] // 16
    G: tl.constexpr = 1 if GROUP >= 512 // BITS else 512 // BITS // GROUP
    OFFSET: tl.constexpr = excess(BITS, tl.bfloat16)
    q = tl.reshape(numbers(words, BITS, tl.bfloat16), (R, SLABS, 4, G, 128 // BITS // G)).to(tl.float32)
    s = s.to(tl.float32)
    least = low.to(tl.float32) - OFFSET * s if MINS else -(OFFSET + (1 << (BITS - 1))) * s
    q = q * s + least
    return tl.reshape(q, (R, SLABS * 512 // BITS))


@triton.jit
def _few_ask(w_at, scale, mins, n_row, warp, column, step, LENGTH: tl.constexpr, WARPS: tl.constexpr,
             COLUMNS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """A step's words, scales and minima."""
    words = tl.load(w_at + step * (WARPS * 16), mask=step * WARPS + warp < LENGTH, other=0)
    at = tl.minimum((column + step * (WARPS * COLUMNS)) // GROUP, (K - 1) // GROUP) * N + n_row
    s = tl.load(scale + at)
    return words, s, s if mins is None else tl.load(mins + at)


@triton.jit
def _few_x(at, known, column, step, WIDTH: tl.constexpr, K: tl.constexpr):
    return tl.load(at + step * WIDTH, mask=known & (column + step * WIDTH < K), other=0.0)


@triton.jit
def _few_step(
    acc, squares, given, x_tile, norm, k, step, GROUP: tl.constexpr, BITS: tl.constexpr, K: tl.constexpr,
    MINS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    words, s, low = given
    dtype: tl.constexpr = x_tile.dtype
    WARPS: tl.constexpr = words.shape[1]
    ROWS: tl.constexpr = words.shape[3]
    SPANS: tl.constexpr = x_tile.shape[2]
    WIDTH: tl.constexpr = x_tile.shape[4]
    LONG: tl.constexpr = SPANS * WIDTH // G  # columns of a dot
    BATCH: tl.constexpr = acc.shape[0]
    FULL: tl.constexpr = acc.shape[1]
    BLOCK_N: tl.constexpr = acc.shape[2]
    if norm is not None:
        wide = x_tile.to(tl.float32)
        squares += tl.sum(wide * wide, 2)
        at = tl.broadcast_to(k, (8, WARPS, SPANS, 1, WIDTH))  # so that each thread loads what it needs
        x_tile = (wide * _few_x(norm + at, at >= 0, at, step, WARPS * SPANS * WIDTH, K).to(tl.float32)).to(dtype)
    OFFSET: tl.constexpr = excess(BITS, dtype)
    q = numbers(words, BITS, dtype)
    MUCH: tl.constexpr = OFFSET + (1 << (BITS - 1))
    if not MINS and MUCH != 0:
        q = minus(q, tl.full(q.shape, MUCH, tl.float32).to(dtype))
    # Four of a thread, those of 4 threads side by side: Triton's registers of a dot whose operand was joined.
    q = tl.reshape(q, (8, WARPS, ROWS, 4, G, LONG // 16, 4))
    q = tl.reshape(tl.permute(q, (4, 1, 5, 3, 6, 2, 0)), (BATCH, LONG, BLOCK_N))
    x_tile = tl.broadcast_to(x_tile, (8, WARPS, SPANS, FULL // 8, WIDTH))
    x_tile = tl.reshape(x_tile, (8, WARPS, G, SPANS // G, FULL // 8, 4, WIDTH // 16, 4))
    x_tile = tl.reshape(tl.permute(x_tile, (2, 1, 4, 0, 3, 6, 5, 7)), (BATCH, FULL, LONG))
    acc += tl.dot(x_tile, q) * s.to(tl.float32)
    if MINS:
        acc += tl.dot(x_tile, tl.full(q.shape, 1.0, tl.float32).to(dtype)) * (
            low.to(tl.float32) - OFFSET * s.to(tl.float32)
        )
    return acc, squares


@triton.jit(do_not_specialize=["M"])
def _few(
    x, data, scale, mins, norm, residual, y, M, stride, eps,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, WARPS: tl.constexpr, AHEAD: tl.constexpr, SILU: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # As `linear._few`: x's rows are the dot's 16, weight rows its 8; each warp has slabs of columns of its own. The
    # dot's batch is of warps and, where groups are smaller than slabs, of the groups in a slab.
    if PDL:
        gdc_launch_dependents()
    COLUMNS: tl.constexpr = 512 // BITS  # of a slab
    WIDTH: tl.constexpr = 16 if GROUP == 16 else 32  # columns in which 4 threads have all their neighbours
    G: tl.constexpr = 1 if GROUP >= COLUMNS else COLUMNS // GROUP
    FULL: tl.constexpr = 16
    LENGTH: tl.constexpr = (K + COLUMNS - 1) // COLUMNS
    STEPS: tl.constexpr = (LENGTH + WARPS - 1) // WARPS
    tile = tl.program_id(0)
    OUT: tl.constexpr = BLOCK_N // 2 if SILU else BLOCK_N
    # [8 rows, warps, 1 or spans of columns, groups of 8 rows, columns], in the order in which threads are given out.
    eight = tl.arange(0, 8)[:, None, None, None, None]
    warp = tl.arange(0, WARPS)[None, :, None, None, None]
    row = _weight_rows(tile * OUT, tl.arange(0, BLOCK_N // 8)[None, None, None, :, None] * 8 + eight, N, BLOCK_N, SILU)
    w_at = data + row * (LENGTH * 16) + warp * 16 + tl.arange(0, 16)[None, None, None, None, :]
    # [groups · warps, 1, rows], as the sums are.
    batch = tl.arange(0, WARPS * G)[:, None, None]
    column = batch % WARPS * COLUMNS + batch // WARPS * (COLUMNS // G)
    n_row = _weight_rows(tile * OUT, tl.arange(0, BLOCK_N)[None, None, :], N, BLOCK_N, SILU)
    ahead = _tuple(_few_ask(w_at, scale, mins, n_row, warp, column, 0, LENGTH, WARPS, COLUMNS, N, K, GROUP))
    for i in tl.static_range(1, AHEAD):
        asked = _few_ask(w_at, scale, mins, n_row, warp, column, i, LENGTH, WARPS, COLUMNS, N, K, GROUP)
        ahead = ahead + _tuple(asked)
    if PDL:
        if norm is not None:
            _ask(norm + tl.minimum(tl.arange(0, 256) * 32, K - 16))
        gdc_wait()
    span = tl.arange(0, COLUMNS // WIDTH)[None, None, :, None, None]
    k = warp * COLUMNS + span * WIDTH + tl.arange(0, WIDTH)[None, None, None, None, :]
    token = tl.arange(0, BLOCK_M // 8)[None, None, None, :, None] * 8 + eight
    x_at = x + token * stride + k
    near = _tuple(_few_x(x_at, token < M, k, 0, WARPS * COLUMNS, K))
    near = near + _tuple(_few_x(x_at, token < M, k, 1, WARPS * COLUMNS, K))
    WIDE: tl.constexpr = N // 2 if SILU else N
    m, n = tl.arange(0, FULL), tile * OUT + tl.arange(0, OUT)
    mask = ((m < BLOCK_M) & (m < M))[:, None] & (n < WIDE)[None, :]
    to = m[:, None] * WIDE + n[None, :]
    if residual is not None:
        rest = tl.load(residual + to, mask=mask, other=0.0)
    acc = tl.zeros((WARPS * G, FULL, BLOCK_N), tl.float32)
    squares = tl.zeros((8, WARPS, BLOCK_M // 8, WIDTH), tl.float32)
    MINS: tl.constexpr = mins is not None
    if STEPS <= 8 and G == 1:
        for i in tl.static_range(STEPS):
            given, x_tile = ahead[0], near[0]
            ahead, near = ahead[1:], near[1:]
            if i + AHEAD < STEPS:
                asked = _few_ask(w_at, scale, mins, n_row, warp, column, i + AHEAD, LENGTH, WARPS, COLUMNS, N, K, GROUP)
                ahead = ahead + _tuple(asked)
            if i + 2 < STEPS:
                near = near + _tuple(_few_x(x_at, token < M, k, i + 2, WARPS * COLUMNS, K))
            acc, squares = _few_step(acc, squares, given, x_tile, norm, k, i, GROUP, BITS, K, MINS, G)
    else:
        for i in tl.range(STEPS, num_stages=1):
            given, x_tile = ahead[0], near[0]
            asked = _few_ask(w_at, scale, mins, n_row, warp, column, i + AHEAD, LENGTH, WARPS, COLUMNS, N, K, GROUP)
            ahead = ahead[1:] + _tuple(asked)
            near = near[1:] + _tuple(_few_x(x_at, token < M, k, i + 2, WARPS * COLUMNS, K))
            acc, squares = _few_step(acc, squares, given, x_tile, norm, k, i, GROUP, BITS, K, MINS, G)
    out = tl.sum(acc, 0)
    if norm is not None:
        total = tl.trans(tl.sum(tl.sum(squares, 3), 1))
        total = tl.reshape(tl.broadcast_to(total, (FULL // 8, 8)), (FULL,))
        out *= tl.rsqrt(total / K + eps)[:, None]
    if SILU:
        gate, up = tl.split(tl.permute(tl.reshape(out, (FULL, 2, OUT)), (0, 2, 1)))
        out = _silu_mul(gate, up)
    if residual is not None:
        out += rest.to(tl.float32)
    tl.store(y + to, out.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def _gemm(
    x, data, scale, mins, residual, y, parts, arrived, M, stride,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, DEPTH: tl.constexpr, PIECE: tl.constexpr,
    SILU: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # As `linear._gemm`: weights are the dot's first operand.
    wait(PDL)
    tile, split = tl.program_id(1) // SPLIT, tl.program_id(1) % SPLIT
    group = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    m, k = group * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    HALF: tl.constexpr = 2 if SILU else 1
    first = tile * (BLOCK_N // HALF)
    LENGTH: tl.constexpr = (K + 512 // BITS - 1) // (512 // BITS) * 16
    SLICE: tl.constexpr = (K + BLOCK_K * SPLIT - 1) // (BLOCK_K * SPLIT) * BLOCK_K
    rows = _weight_rows(first, tl.arange(0, BLOCK_N), N, BLOCK_N, SILU)
    column = columns(k, BITS, GROUP)
    word = tl.arange(0, BLOCK_K * BITS // 32)[None, :]
    w_at = data + rows[:, None] * LENGTH + word
    x_at = x + m.to(tl.int64)[None, :] * stride + column[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    s, low = marks(scale, mins, rows, split * SLICE, N, K, GROUP, BITS, BLOCK_K)
    for step in tl.range(0, SLICE, BLOCK_K, num_stages=DEPTH):
        at = split * SLICE + step
        known = m[None, :] < M
        if SLICE * SPLIT == K:
            words = tl.load(w_at + at * BITS // 32)
        else:
            words = tl.load(w_at + at * BITS // 32, mask=at * BITS // 32 + word < LENGTH, other=0)
            known = known & (at + column < K)[:, None]
        x_tile = tl.load(x_at + at, mask=known, other=0.0)
        w_tile = widened(words, s, low, mins is not None, GROUP, BITS)
        s, low = marks(scale, mins, rows, at + BLOCK_K, N, K, GROUP, BITS, BLOCK_K)  # too small to be pipelined
        acc = tl.dot(w_tile.to(x_tile.dtype), x_tile, acc)
    if SPLIT == 1:
        _finish(acc, m, None, None, None, residual, y, first, m, M, 0.0, N, K, SILU, 0)
    else:
        _meet(acc, m, None, None, None, residual, y, parts, arrived, group, tile, split, first, m, M, 0.0,
              N, K, SPLIT, PIECE, SILU, 0)  # fmt: skip


@triton.jit(do_not_specialize=["COUNT"])
def _rows(
    ids, data, scale, mins, out, COUNT, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    at, first = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * BLOCK
    wait(PDL)
    row = tl.minimum(at, COUNT - 1)
    if ids is not None:
        row = tl.load(ids + row)
    row = row.to(tl.int32)
    LENGTH: tl.constexpr = (K + 512 // BITS - 1) // (512 // BITS) * 16
    word = first * BITS // 32 + tl.arange(0, BLOCK * BITS // 32)[None, :]
    words = tl.load(data + row[:, None] * LENGTH + word, mask=word < LENGTH, other=0)
    s, low = marks(scale, mins, row, first, N, K, GROUP, BITS, BLOCK)
    w = widened(words, s, low, mins is not None, GROUP, BITS)
    column = first + columns(tl.arange(0, BLOCK), BITS, GROUP)
    mask = (at < COUNT)[:, None] & (column < K)[None, :]
    tl.store(out + at.to(tl.int64)[:, None] * K + column[None, :], w.to(out.dtype.element_ty), mask=mask)


def group_rows(weight: GroupWeight, ids: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """As `kernels.grouped.group_rows`, in one kernel."""
    N, K = weight.shape
    count = N if ids is None else ids.numel()
    out = torch.empty(count, K, dtype=dtype or weight.dtype, device=weight.device)
    if count:
        block = SLAB[weight.bits] * 4
        rows = 1 if ids is not None and count < 64 else 16
        flat = None if ids is None else ids.reshape(-1)
        launch(_rows, (cdiv(count, rows), cdiv(K, block)), flat, *weight.tensors, out, count, ROWS=rows,
               BLOCK=block, num_warps=4, **_shape(weight), **EARLY)  # fmt: skip
    return out if ids is None else out.view(*ids.shape, K)


def _shape(weight: GroupWeight) -> dict[str, int]:
    return {"N": weight.shape[-2], "K": weight.columns, "GROUP": weight.group, "BITS": weight.bits}


INVARIANT = linear.Tile(64, 128, 4, 4, 1, tokens=64)
"""The one that makes a row's bits independent of how many rows there are."""


def tuned() -> dict[tuple[int, ...], linear.Tile | None]:
    data = json.loads((resources.files("qwen3") / "data" / "weight_only_tiles.json").read_text())
    return {(*key, bool(silu)): tile and linear.Tile(*tile) for *key, silu, tile in data["tiles"]}


TUNED = tuned()
"""(bits, rows of x, N, K, silu) -> what was fastest, from tools/tune/weight_only.py; None: the weight is written out.
It serves fewer rows too, as `linear.TUNED`."""


@lru_cache(4096)
def choose(M: int, N: int, K: int, bits: int, silu: bool = False, processors: int = 132) -> linear.Tile | None:
    """How M rows are multiplied; split 0: by `_few`, `depth` steps ahead, else by `_gemm`; None: by PyTorch. apart:
    x is normalised before, once, and not by every program of `_few`, where that is more work than widening weights."""
    for size in range(M, (1 if M == 1 else max(8, next_power_of_2(M))) + 1) if processors == 132 else ():
        if (bits, size, N, K, silu) in TUNED:
            return TUNED[bits, size, N, K, silu]
    if M > MOST_ROWS:
        return None
    if M <= FEW_ROWS:
        slabs, height = cdiv(K, SLAB[bits]), 16
        while height > 8 and cdiv(N, height) < 4 * processors:
            height //= 2
        warps = 4 if cdiv(N, height) >= 2 * processors or slabs < 16 else 8
        return linear.Tile(height, SLAB[bits], min(4, cdiv(slabs, warps)), warps)
    tokens = min(128, max(16, next_power_of_2(M)))
    height = 128 if M > 128 else 64
    tiles = cdiv(N, height) * cdiv(M, tokens)
    split = max(1, min(2 * processors // tiles, K // 512, 8, linear.PARTS // (tiles * (height + 1) * tokens)))
    return linear.Tile(height, 128, 3 if M > 64 else 4, 8 if M > 64 else 4, split, tokens=tokens)


@lru_cache(4096)
def plan(m: int, n: int, silu: bool, tile: linear.Tile, dependent: bool, device: torch.device) -> linear.Launch:
    """(kernel, grid, constants, workspace) of m rows by n rows of weights; dependent: programmatic dependent launch."""
    if tile.walkers:
        if m > stationary.MOST_ROWS:
            raise UsageError(f"{m} rows: so many cannot stay in registers, {stationary.MOST_ROWS} can")
        return stationary.plan(n, silu, tile, 0, dependent, device)
    meta: dict[str, Any] = {"BLOCK_N": tile.rows, "SILU": silu, "PDL": dependent, "num_warps": tile.warps}
    if dependent:
        meta["launch_pdl"] = True
    blocks, shared = cdiv(n, tile.rows), linear.workspace(device)
    if tile.split == 0:
        meta |= {"BLOCK_M": max(8, next_power_of_2(m)), "WARPS": tile.warps, "AHEAD": tile.depth}
        return _few, (blocks,), meta, ()
    meta |= {"BLOCK_M": tile.tokens, "BLOCK_K": tile.columns, "SPLIT": tile.split, "DEPTH": tile.depth}
    meta["PIECE"] = min(tile.rows, max(2, 1024 * tile.warps // tile.tokens))
    groups = cdiv(m, tile.tokens * 16)
    return _gemm, (cdiv(cdiv(m, tile.tokens), groups), blocks * tile.split, groups), meta, shared


def group_linear(
    x: Tensor, weight: GroupWeight, *, norm: Tensor | None = None, eps: float = 0.0, residual: Tensor | None = None,
    silu: bool = False, invariant: bool = False, tile: linear.Tile | None = None,
) -> Tensor:  # fmt: skip
    """As `reference_engine.fused_linear`. invariant: one tile serves all sizes. tile: which to take.

    Other types than bfloat16 and float16, and K that is no multiple of 16, go to the reference.
    """
    M, (N, K) = len(x), weight.shape
    if M == 0 or K % 16 or x.dtype not in (torch.bfloat16, torch.float16):
        return plain.group_linear(x, weight, norm=norm, eps=eps, residual=residual, silu=silu, invariant=invariant)
    x = x if x.stride(1) == 1 else x.contiguous()
    residual = None if residual is None else residual.contiguous()
    processors, dependent = elementwise.processors(x.device)
    if tile is None and invariant:
        tile = INVARIANT
    elif tile is None:
        tile = choose(M, N, K, weight.bits, silu, processors)
    many = tile is None or (tile.split > 0 and not tile.walkers)
    if norm is not None and (tile is None or many or tile.apart or x.dtype == torch.float16):
        x, norm = elementwise.rms_norm(x, norm, eps), None  # (unnormalised, float16 might overflow)
    if tile is None:
        return linear._library(x, group_rows(weight, None, x.dtype), residual, silu, overwrite=False)
    out = x.new_empty(M, N // 2 if silu else N)
    kernel, grid, meta, shared = plan(M, N, silu, tile, dependent, x.device)
    given = (residual, out, *shared) if many else (norm, residual, out, *shared)
    places = (None, None) if tile.walkers else ()  # of experts
    tail = (M, x.stride(0) if M > 1 else K, *(() if many else (eps,)))
    launch(kernel, grid, x, *weight.tensors, *given, *places, *tail, **_shape(weight), **meta)
    return out
