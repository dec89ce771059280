"""Linear layers with FP8 weights on the GPU.

Up to 64 rows the weight's bytes are all that counts: `_skinny` reads them once and multiplies in the activations' own
dtype. Above, activations are quantized too (`quantize_rows`) and the FP8 tensor cores work, in `_gemm` or in cuBLAS.
Twins: `kernels.fp8`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qwen3.kernels import fp8 as plain
from qwen3.kernels.fp8 import FP8, Fp8Weight
from qwen3.kernels.gpu import elementwise
from qwen3.kernels.gpu.launch import PDL, launch, next_power_of_2
from qwen3.kernels.gpu.linear import workspace

SKINNY_ROWS = 64
NORM_ROWS = 16  # up to here `_skinny` normalises its input itself: each program does, so it costs per row
CUBLAS_ROWS = 512  # from here cuBLAS, and a pass of its own for residual or SiLU
_PROGRAMS = 264  # two on each of an H100's 132 multiprocessors
_PDL = {"PDL": PDL, "launch_pdl": PDL}


@triton.jit(do_not_specialize=["M"])
def _quantize(
    x, norm, out, scales, M, K, stride, eps,
    SILU: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, WIDTH)
    kept = at < K
    source = x + row.to(tl.int64) * stride
    dtype = x.dtype.element_ty
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    v = tl.load(source + at, mask=kept, other=0.0).to(tl.float32)
    if norm is not None:
        rms = tl.rsqrt(tl.sum(v * v, 0) / K + eps)
        v = (v * rms).to(dtype).to(tl.float32) * tl.load(norm + at, mask=kept, other=0.0).to(tl.float32)
        v = v.to(dtype).to(tl.float32)
    if SILU:
        up = tl.load(source + K + at, mask=kept, other=0.0).to(tl.float32)
        v = ((v * tl.sigmoid(v)).to(dtype).to(tl.float32) * up).to(dtype).to(tl.float32)
    v = tl.reshape(v, (WIDTH // GROUP, GROUP))
    peak = tl.maximum(tl.max(tl.abs(v), 1), 1e-12)
    v = v * tl.div_rn(448.0, peak)[:, None]
    v = tl.minimum(tl.maximum(v, -448.0), 448.0)
    tl.store(out + row.to(tl.int64) * K + at, tl.reshape(v, (WIDTH,)).to(tl.float8e4nv), mask=kept)
    group = tl.arange(0, WIDTH // GROUP)
    tl.store(scales + group * M + row, tl.div_rn(peak, 448.0), mask=group * GROUP < K)


@triton.jit
def _store(acc, rm, tile, residual, out, M, N: tl.constexpr, SILU: tl.constexpr, BN: tl.constexpr):
    """acc [BM, BN] float32 -> out; SILU: its first half are gate columns, the second their up columns."""
    H: tl.constexpr = BN // 2 if SILU else BN
    if SILU:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, H)), (0, 2, 1)))
        acc = gate * tl.sigmoid(gate) * up
    WIDTH: tl.constexpr = N // 2 if SILU else N
    column = tile * H + tl.arange(0, H)
    at = rm.to(tl.int64)[:, None] * WIDTH + column[None, :]
    kept = (rm < M)[:, None] & (column < WIDTH)[None, :]
    if residual is not None:
        acc += tl.load(residual + at, mask=kept, other=0.0).to(tl.float32)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["M"])
def _skinny(
    x, w, scale, norm, residual, out, parts, arrived, M, stride, eps,
    N: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SHARE: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0), tl.program_id(1)
    H: tl.constexpr = BN // 2 if SILU else BN
    i = tl.arange(0, BN)
    row = tl.minimum(tile * H + i % H + (i // H) * (N // 2), N - 1)
    rm, rk = tl.arange(0, BM), tl.arange(0, BK)
    first = part * SHARE
    w_at = w + row.to(tl.int64)[:, None] * K + (first + rk)[None, :]
    x_at = x + tl.minimum(rm, M - 1).to(tl.int64)[:, None] * stride + (first + rk)[None, :]
    if PDL:
        gdc_launch_dependents()
        if AHEAD > 0:
            # the kernel before this one leaves memory idle while it ends: the first weights come into the L2 cache
            ahead = tl.minimum(first + tl.arange(0, AHEAD // 64) * 64, K - 16)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l",
                [(w + row.to(tl.int64)[:, None] * K + ahead[None, :]).to(tl.uint64)],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        gdc_wait()
    acc = tl.zeros((BN, BM), tl.float32)
    square = tl.zeros((BM,), tl.float32)
    for k in range(0, SHARE, BK):
        if SHARE * SPLIT == K:
            b, a = tl.load(w_at), tl.load(x_at)
        else:
            left = rk[None, :] < K - first - k
            b, a = tl.load(w_at, mask=left, other=0.0), tl.load(x_at, mask=left, other=0.0)
        if norm is not None:
            # the row's 1/rms is a factor of the result: it waits for the last square
            wide = a.to(tl.float32)
            square += tl.sum(wide * wide, 1)
            gain = tl.load(norm + first + k + rk, mask=first + k + rk < K, other=0.0).to(tl.float32)
            a = (wide * gain[None, :]).to(a.dtype)
        if BLOCK:
            s = tl.load(scale + (row // BLOCK) * tl.cdiv(K, BLOCK) + tl.minimum(first + k, K - 1) // BLOCK)
            acc += tl.dot(b.to(a.dtype), tl.trans(a)) * s[:, None]
        else:
            acc = tl.dot(b.to(a.dtype), tl.trans(a), acc)
        w_at += BK
        x_at += BK
    if SPLIT > 1:
        # the last of a tile's programs adds all parts, always in the same order
        SIZE: tl.constexpr = (BN + 1) * BM
        at = i[:, None] * BM + rm[None, :]
        tl.store(parts + (tile * SPLIT + part) * SIZE + at, acc)
        if norm is not None:
            tl.store(parts + (tile * SPLIT + part) * SIZE + BN * BM + rm, square)
        tl.debug_barrier()  # all threads have stored before one of them says so
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") != SPLIT - 1:
            return
        tl.store(arrived + tile, 0)
        acc = tl.zeros((BN, BM), tl.float32)
        square = tl.zeros((BM,), tl.float32)
        for other in tl.static_range(SPLIT):
            acc += tl.load(parts + (tile * SPLIT + other) * SIZE + at, cache_modifier=".cg")
            if norm is not None:
                square += tl.load(parts + (tile * SPLIT + other) * SIZE + BN * BM + rm, cache_modifier=".cg")
    if norm is not None:
        acc *= tl.rsqrt(square / K + eps)[None, :]
    if not BLOCK:
        acc *= tl.load(scale + row)[:, None]
    _store(tl.trans(acc), rm, tile, residual, out, M, N, SILU, BN)


@triton.jit(do_not_specialize=["M"])
def _gemm(
    x, w, x_scale, w_scale, residual, out, M, N: tl.constexpr, K: tl.constexpr,
    SILU: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BAND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # programs go through bands of BAND row tiles, so that those running together share weights and rows in the cache
    pid, height, width = tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN)
    top = pid // (BAND * width) * BAND
    band = tl.minimum(height - top, BAND)
    inside = pid % (BAND * width)
    tile = inside // band
    H: tl.constexpr = BN // 2 if SILU else BN
    i = tl.arange(0, BN)
    row = tl.minimum(tile * H + i % H + (i // H) * (N // 2), N - 1)
    rm, rk = (top + inside % band) * BM + tl.arange(0, BM), tl.arange(0, BK)
    rx = tl.minimum(rm, M - 1)
    x_at = x + rx.to(tl.int64)[:, None] * K + rk[None, :]
    w_at = w + row.to(tl.int64)[:, None] * K + rk[None, :]
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        if K % BK == 0:
            a, b = tl.load(x_at), tl.load(w_at)
        else:
            left = rk[None, :] < K - k
            a, b = tl.load(x_at, mask=left, other=0.0), tl.load(w_at, mask=left, other=0.0)
        if BLOCK:
            here = k // BLOCK
            s, t = tl.load(x_scale + here * M + rx), tl.load(w_scale + (row // BLOCK) * tl.cdiv(K, BLOCK) + here)
            acc += tl.dot(a, tl.trans(b)) * s[:, None] * t[None, :]
        else:
            acc = tl.dot(a, tl.trans(b), acc)
        x_at += BK
        w_at += BK
    if not BLOCK:
        acc *= tl.load(x_scale + rx)[:, None] * tl.load(w_scale + row)[None, :]
    _store(acc, rm, tile, residual, out, M, N, SILU, BN)


class Tile(NamedTuple):
    """How a product is cut: weight rows, K of a step, slices of K (`_skinny`) or rows of x (`_gemm`), stages, warps."""

    bn: int
    bk: int
    split: int = 1
    bm: int = 0
    stages: int = 4
    warps: int = 4
    ahead: int = 512  # bytes of each weight row that `_skinny` prefetches


def skinny_tile(M: int, N: int, K: int) -> Tile:
    """Two programs for each multiprocessor, as long as their slices stay long."""
    return Tile(64, 128, max(1, min(_PROGRAMS // -(-N // 64), K // 512, 8)), stages=5)


def gemm_tile(M: int, N: int, K: int) -> Tile:
    if M <= 64:
        return INVARIANT
    small = -(-M // 128) * -(-N // 128) < _PROGRAMS // 2
    return Tile(64, 128, bm=128) if small else Tile(128, 128, bm=128, warps=8)


INVARIANT = Tile(64, 128, bm=64)
"""The one that makes a row's bits independent of how many rows there are."""


def quantize_rows(
    x: Tensor, norm: Tensor | None = None, eps: float = 0.0, *, group: int = 0, silu: bool = False
) -> tuple[Tensor, Tensor]:
    """As `kernels.fp8.quantize_rows`, in one kernel. silu: x [M, 2K] holds gate, then up. Scales are column-major."""
    M, K = len(x), x.shape[1] // (2 if silu else 1)
    x = x if x.stride(1) == 1 else x.contiguous()
    width = next_power_of_2(max(K, group))
    out = torch.empty(M, K, dtype=FP8, device=x.device)
    scales = torch.empty(-(-K // (group or K)), M, dtype=torch.float32, device=x.device)
    how = {"SILU": silu, "GROUP": group or width, "WIDTH": width, "num_warps": min(16, max(1, width // 1024)), **_PDL}
    launch(_quantize, (M,), x, norm, out, scales, M, K, x.stride(0), eps, **how)
    return out, scales.t() if group else scales.view(M, 1)


def fp8_linear(
    x: Tensor, weight: Fp8Weight, *, norm: Tensor | None = None, eps: float = 0.0, residual: Tensor | None = None,
    silu: bool = False, out_dtype: torch.dtype | None = None, invariant: bool = False, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """As `reference_engine.fused_linear`. invariant: activations are quantized and one tile serves all sizes.

    Other types than bfloat16 and float16, and K that is no multiple of 16, go to the reference. tile: for tuning.
    """
    M, (N, K) = len(x), weight.shape
    if M == 0 or K % 16 or x.dtype not in (torch.bfloat16, torch.float16):
        options = {"norm": norm, "eps": eps, "residual": residual, "silu": silu, "invariant": invariant}
        return plain.fp8_linear(x, weight, **options, out_dtype=out_dtype)
    x = x if x.stride(1) == 1 else x.contiguous()
    residual = None if residual is None else residual.contiguous()
    dtype = out_dtype or x.dtype
    if M > SKINNY_ROWS or invariant:
        tile = INVARIANT if invariant else tile
        return multiply(*quantize_rows(x, norm, eps, group=weight.block), weight, residual, silu, dtype, tile)
    if norm is not None and (M > NORM_ROWS or x.dtype == torch.float16):
        x, norm = elementwise.rms_norm(x, norm, eps), None  # (unnormalised, float16 might overflow)
    out = torch.empty(M, N // 2 if silu else N, dtype=dtype, device=x.device)
    tile = tile or skinny_tile(M, N, K)
    share = -(-K // (tile.bk * tile.split)) * tile.bk
    split = -(-K // share)
    args = (x, weight.data, weight.scale, norm, residual, out, *workspace(x.device), M, x.stride(0) if M > 1 else K)
    how = {"N": N, "K": K, "SILU": silu, "BLOCK": weight.block, "BM": max(8, next_power_of_2(M)), "BN": tile.bn}
    how |= {"BK": tile.bk, "SHARE": share, "SPLIT": split, "AHEAD": tile.ahead, **_PDL}
    how |= {"num_warps": tile.warps, "num_stages": tile.stages}
    launch(_skinny, (-(-N // tile.bn), split), *args, eps, **how)
    return out


def fp8_mlp(
    x: Tensor, up: Fp8Weight, down: Fp8Weight, *, norm: Tensor, eps: float, residual: Tensor, invariant: bool = False
) -> Tensor:
    """down(silu(gate(n)) · up(n)) + residual [M, h], n = rms_norm(x [M, h]). For many rows SiLU writes FP8 at once."""
    if _for_cublas(len(x), up) and not invariant:
        h = cublas(*quantize_rows(x, norm, eps, group=up.block), up)
        return multiply(*quantize_rows(h, group=down.block, silu=True), down, residual, False, x.dtype)
    h = fp8_linear(x, up, norm=norm, eps=eps, silu=True, invariant=invariant)
    return fp8_linear(h, down, residual=residual, invariant=invariant)


def multiply(
    x: Tensor, scale: Tensor, weight: Fp8Weight, residual: Tensor | None, silu: bool, dtype: torch.dtype,
    tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """x FP8 [M, K] and `scale` of `quantize_rows` times weightᵀ on the FP8 tensor cores, as `fp8_linear` -> [M, N]."""
    M, (N, K) = len(x), weight.shape
    if tile is None and _for_cublas(M, weight):
        out = cublas(x, scale, weight)
        out = elementwise.silu_mul(out) if silu else out
        return (out if residual is None else out.add_(residual)).to(dtype)
    out = torch.empty(M, N // 2 if silu else N, dtype=dtype, device=x.device)
    tile = tile or gemm_tile(M, N, K)
    how = {"N": N, "K": K, "SILU": silu, "BLOCK": weight.block, "BM": tile.bm, "BN": tile.bn, "BK": tile.bk, "BAND": 8}
    how |= {"num_warps": tile.warps, "num_stages": tile.stages, **_PDL}
    grid = (-(-M // tile.bm) * -(-N // tile.bn),)
    launch(_gemm, grid, x, weight.data, scale, weight.scale, residual, out, M, **how)
    return out


def cublas(x: Tensor, scale: Tensor, weight: Fp8Weight, fast: bool = True) -> Tensor:
    """The product alone, in bfloat16. fast: sums of one scale per row may keep fewer bits than float32."""
    if weight.block:
        rows, blocks = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
        return F.scaled_mm(x, weight.data.t(), scale, rows, weight.scale.t(), blocks)
    return torch._scaled_mm(x, weight.data.t(), scale, weight.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=fast)


def _for_cublas(M: int, weight: Fp8Weight) -> bool:
    """Blocks stay with `_gemm` until cuBLAS is seen to win there; it wants K in fours of them (tools/tune/fp8.py)."""
    return M >= CUBLAS_ROWS and weight.block == 0 and weight.shape[0] % 16 == 0
