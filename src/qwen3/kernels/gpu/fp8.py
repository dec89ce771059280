"""Linear layers with FP8 weights on the GPU.

Up to 64 rows the weight's bytes are all that counts: the kernels of `linear` read them once and multiply in the
activations' own dtype. Above, activations are quantized too (`quantize_rows`) and the FP8 tensor cores work, there or
in cuBLAS.
Twins: `kernels.fp8`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3.kernels import fp8 as plain
from qwen3.kernels.fp8 import FP8, Fp8Weight
from qwen3.kernels.gpu import elementwise, linear
from qwen3.kernels.gpu.launch import EARLY, launch, next_power_of_2, wait

SKINNY_ROWS = 64
NORM_ROWS = 16  # up to here the product normalises its input itself: each program does, so it costs per row
CUBLAS_ROWS = 512  # from here cuBLAS, and a pass of its own for residual or SiLU
_PROGRAMS = 264  # two on each of an H100's 132 multiprocessors


@triton.jit(do_not_specialize=["M"])
def _quantize(
    x, norm, out, scales, M, K, stride, eps,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row, at = tl.program_id(0), tl.arange(0, WIDTH)
    kept = at < K
    source = x + row.to(tl.int64) * stride
    dtype = x.dtype.element_ty
    wait(PDL)
    v = tl.load(source + at, mask=kept, other=0.0).to(tl.float32)
    if norm is not None:
        rms = tl.rsqrt(tl.sum(v * v, 0) / K + eps)
        v = (v * rms).to(dtype).to(tl.float32) * tl.load(norm + at, mask=kept, other=0.0).to(tl.float32)
        v = v.to(dtype).to(tl.float32)
    v = tl.reshape(v, (WIDTH // GROUP, GROUP))
    peak = tl.maximum(tl.max(tl.abs(v), 1), 1e-12)
    v = v * tl.div_rn(448.0, peak)[:, None]
    v = tl.minimum(tl.maximum(v, -448.0), 448.0)
    tl.store(out + row.to(tl.int64) * K + at, tl.reshape(v, (WIDTH,)).to(tl.float8e4nv), mask=kept)
    group = tl.arange(0, WIDTH // GROUP)
    tl.store(scales + group * M + row, tl.div_rn(peak, 448.0), mask=group * GROUP < K)


TUNED = linear.tuned("fp8_tiles.json")
"""As `linear.TUNED`, for weights with a scale per row, up to SKINNY_ROWS. From tools/tune/fp8.py."""


@lru_cache(4096)
def skinny_tile(M: int, N: int, K: int, silu: bool, block: int) -> linear.Tile:
    """How few rows are multiplied."""
    found = TUNED.get((1 if M == 1 else max(8, next_power_of_2(M)), N, K, silu))
    if found is not None and block == 0:
        return found
    if M == 1:
        columns = next((c for c in (4096, 2048, 1024, 512, 256) if K % c == 0), min(1024, next_power_of_2(K)))
        depth, rows = min(-(-K // columns), 2), 16
        while rows > 2 and (rows * columns * depth > 32768 or rows * K > 131072 or N // rows < _PROGRAMS):
            rows //= 2
        return linear.Tile(rows, columns, depth, 4)
    if M <= 16 and block == 0:
        # Steps are written out: the more columns, the more warps share them. 16 rows of x and long sums fill registers.
        rows = 32 if N >= 3840 and K <= 20480 else 16 if N >= 1920 else 8
        many = N // rows >= _PROGRAMS and (M <= 8 or K <= 4096)
        warps = 16 if K > 8192 else 4 if many or K <= 1024 else 8
        columns = {4: 512, 8: 1024, 16: 2048}[warps]
        columns = min(columns, max(64 * warps, next_power_of_2(K)))
        return linear.Tile(rows, columns, 1 if warps == 16 else 2, warps)
    # Two programs for each multiprocessor, as long as their slices stay long.
    split = max(1, min(_PROGRAMS // -(-N // 64), K // 512, 8))
    if M <= 32 and split > 2 and block == 0:
        return linear.Tile(64, 256, 3, 4, split, 512)
    return linear.Tile(64, 128, 5, 4, 4 if M <= 32 and split == 2 else split, 512)


@lru_cache(4096)
def gemm_tile(M: int, N: int, K: int) -> linear.Tile:
    """How rows in FP8 are multiplied: split until every multiprocessor has work."""
    if -(-M // 128) * -(-N // 128) >= _PROGRAMS // 2:
        return linear.Tile(128, 128, 4, 8, 1, tokens=128)
    tiles = -(-M // 128) * -(-N // 64)
    split = max(1, min(_PROGRAMS // tiles, K // 1024, linear.PARTS // (tiles * 65 * 128)))
    return linear.Tile(64, 128, 4, 4, split, tokens=128)


INVARIANT = linear.Tile(64, 128, 4, 4, 1, tokens=64)
"""The one that makes a row's bits independent of how many rows there are."""


def quantize_rows(x: Tensor, norm: Tensor | None = None, eps: float = 0.0, *, group: int = 0) -> tuple[Tensor, Tensor]:
    """As `kernels.fp8.quantize_rows`, in one kernel. Scales are column-major."""
    M, K = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    width = next_power_of_2(max(K, group))
    out = torch.empty(M, K, dtype=FP8, device=x.device)
    scales = torch.empty(-(-K // (group or K)), M, dtype=torch.float32, device=x.device)
    how = {"GROUP": group or width, "WIDTH": width, "num_warps": min(16, max(1, width // 1024)), **EARLY}
    launch(_quantize, (M,), x, norm, out, scales, M, K, x.stride(0), eps, **how)
    return out, scales.t() if group else scales.view(M, 1)


def fp8_linear(
    x: Tensor, weight: Fp8Weight, *, norm: Tensor | None = None, eps: float = 0.0, residual: Tensor | None = None,
    silu: bool = False, invariant: bool = False, tile: linear.Tile | None = None,
) -> Tensor:  # fmt: skip
    """As `reference_engine.fused_linear`. invariant: activations are quantized and one tile serves all sizes.

    Other types than bfloat16 and float16, and K that is no multiple of 16, go to the reference. tile: of few rows.
    """
    M, (N, K) = len(x), weight.shape
    if M == 0 or K % 16 or x.dtype not in (torch.bfloat16, torch.float16):
        return plain.fp8_linear(x, weight, norm=norm, eps=eps, residual=residual, silu=silu, invariant=invariant)
    x = x if x.stride(1) == 1 else x.contiguous()
    residual = None if residual is None else residual.contiguous()
    if M > SKINNY_ROWS or invariant:
        quantized = quantize_rows(x, norm, eps, group=weight.block)
        return multiply(*quantized, weight, residual, silu, x.dtype, INVARIANT if invariant else None)
    if norm is not None and (M > NORM_ROWS or x.dtype == torch.float16):
        x, norm = elementwise.rms_norm(x, norm, eps), None  # (unnormalised, float16 might overflow)
    out = x.new_empty(M, N // 2 if silu else N)
    tile = tile or skinny_tile(M, N, K, silu, weight.block)
    how = linear.plan(M, N, K, silu, tile, elementwise.processors(x.device)[1], x.device)
    linear.start(how, x, weight.data, norm, eps, residual, out, weight.scale, weight.block)
    return out


def multiply(
    x: Tensor, scale: Tensor, weight: Fp8Weight, residual: Tensor | None, silu: bool, dtype: torch.dtype,
    tile: linear.Tile | None = None,
) -> Tensor:  # fmt: skip
    """x FP8 [M, K] and `scale` of `quantize_rows` times weightᵀ on the FP8 tensor cores, as `fp8_linear` -> [M, N]."""
    M, (N, K) = len(x), weight.shape
    if tile is None and M >= CUBLAS_ROWS and weight.block == 0 and N % 16 == 0:
        # use_fast_accum: sums may keep fewer bits than float32.
        y = torch._scaled_mm(x, weight.data.t(), scale, weight.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True)
        y = elementwise.silu_mul(y) if silu else y
        return (y if residual is None else y.add_(residual)).to(dtype)
    out = torch.empty(M, N // 2 if silu else N, dtype=dtype, device=x.device)
    how = linear.plan(M, N, K, silu, tile or gemm_tile(M, N, K), elementwise.processors(x.device)[1], x.device)
    linear.start(how, x, weight.data, None, 0.0, residual, out, weight.scale, weight.block, scale)
    return out
