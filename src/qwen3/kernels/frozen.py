"""Products with weights that are held compressed and never trained, and grouped products: what adapters stand beside.

A compressed weight (`Fp8Weight`, the trainer's `Nf4Weight`) is written out for a product and forgotten again, on the
way back once more: PyTorch alone would keep what was written out, which is the whole network.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def frozen_linear(x: Tensor, weight: Any) -> Tensor:
    """x [..., in] by a compressed weight [out, in] -> [..., out]; gradients flow to x."""
    out: Tensor = _Frozen.apply(x, weight, None)
    return out


def grouped_linear(x: Tensor, weight: Any, ends: Tensor) -> Tensor:
    """Rows ends[e-1] … ends[e]-1 of x [N, in] by weight[e]ᵀ -> [N, out]; differentiable. weight [E, out, in], a tensor
    or compressed; ends int32 [E]. No number leaves the device for bfloat16 on a Hopper or later GPU."""
    if not isinstance(weight, Tensor):
        out: Tensor = _Frozen.apply(x, weight, ends)
        return out
    return _grouped(x, weight.mT, ends)


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [N, i], weight [E, i, o] -> [N, o]."""
    if x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_properties(x.device).major >= 9:
        out: Tensor = torch._grouped_mm(x, weight, offs=ends)
        return out
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    parts = [part @ weight[e] for e, part in enumerate(x.split(sizes)) if len(part)]
    return torch.cat(parts) if parts else x.new_zeros(0, weight.shape[2])


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, ends: Tensor | None) -> Tensor:
        ctx.weight, ctx.ends = weight, ends
        whole = weight.dequantize(x.dtype)
        return F.linear(x, whole) if ends is None else _grouped(x, whole.mT, ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        whole = ctx.weight.dequantize(outer.dtype)
        return outer @ whole if ctx.ends is None else _grouped(outer.contiguous(), whole, ctx.ends), None, None
