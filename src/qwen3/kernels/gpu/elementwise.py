"""Row kernels around matrix products of many rows: RMSNorm, and SiLU of one half times the other. Any float dtype.

Both round where the references do, so that they differ from them by the order of a sum at most.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3.kernels.gpu.launch import EARLY, cdiv, launch, next_power_of_2, wait


@triton.jit
def _rms_norm(x, weight, y, rows, stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
              PDL: tl.constexpr):  # fmt: skip
    row, col = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (col < WIDTH)[None, :]
    scale = tl.load(weight + col, mask=col < WIDTH, other=0.0).to(tl.float32)
    wait(PDL)
    given = tl.load(x + row[:, None] * stride + col[None, :], mask=mask, other=0.0)
    wide = given.to(tl.float32)
    wide *= tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + eps)[:, None]
    wide = wide.to(given.dtype).to(tl.float32) * scale[None, :]
    tl.store(y + row[:, None] * WIDTH + col[None, :], wide.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _silu_mul(x, y, half, stride, BLOCK: tl.constexpr, PDL: tl.constexpr):
    wait(PDL)
    row, col = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < half
    gate = tl.load(x + row * stride + col, mask=mask, other=0.0)
    up = tl.load(x + row * stride + half + col, mask=mask, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    wide = (wide / (1 + tl.exp(-wide))).to(gate.dtype).to(tl.float32) * up
    tl.store(y + row * half + col, wide.to(y.dtype.element_ty), mask=mask)


@lru_cache
def processors(device: torch.device) -> tuple[int, bool]:
    """Multiprocessors of a device, and whether it can launch a kernel before the previous one has ended."""
    if device.type != "cuda":
        return 132, False
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.major >= 9


def _dependent(device: torch.device) -> dict[str, bool]:
    return EARLY if processors(device)[1] else {"PDL": False}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`: x [..., h], weight [h] -> [..., h]. A row's bits do not depend on the other rows."""
    width = x.shape[-1]
    flat = _rows(x)
    dtype = x.dtype if x.dtype == weight.dtype else torch.promote_types(x.dtype, weight.dtype)
    y = x.new_empty(flat.shape, dtype=dtype)
    block = next_power_of_2(width)
    many = max(1, 2048 // block)  # rows of one program: short rows share one, so that each thread has 16 bytes or more
    launch(_rms_norm, (cdiv(len(flat), many),), flat, weight, y, len(flat), flat.stride(0), eps, WIDTH=width,
           BLOCK=block, ROWS=many, num_warps=8 if block > 4096 else 4, **_dependent(x.device))  # fmt: skip
    return y if x.ndim == 2 else y.view(x.shape)


def silu_mul(gate_up: Tensor) -> Tensor:
    """As `reference.silu_mul`: gate_up [..., 2f] -> silu(gate) · up [..., f]."""
    half = gate_up.shape[-1] // 2
    flat = _rows(gate_up)
    y = gate_up.new_empty((len(flat), half))
    block = min(1024, next_power_of_2(half))
    grid = len(flat), cdiv(half, block)
    launch(_silu_mul, grid, flat, y, half, flat.stride(0), BLOCK=block, **_dependent(flat.device))
    return y if gate_up.ndim == 2 else y.view(*gate_up.shape[:-1], half)


def _rows(x: Tensor) -> Tensor:
    """x as [rows, h] with h contiguous; rows may stand apart."""
    flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()
