"""Weights in float8_e4m3fn under a scale for all, for each row, or for each block of 128 × 128 (official Qwen3 FP8)."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.kernels.fp8 import quantize_fp8
from qwen3.quantize.types import Float8

BLOCK = 128


def round_fp8(weight: Tensor, scale: str = "block") -> Float8:
    """weight float [N, K]; scale "tensor", "channel" or "block". Zeros get a scale above zero, too. Raises UsageError
    for values that are not finite."""
    weight = weight.float()
    if not torch.isfinite(weight).all():
        raise UsageError("a weight is NaN or infinite: it cannot be quantized")
    if scale == "tensor":
        flat = quantize_fp8(weight.flatten().unsqueeze(0))
        return Float8(flat.data.view(weight.shape), flat.scale.view(1))
    found = quantize_fp8(weight, BLOCK if scale == "block" else 0)
    return Float8(found.data, found.scale)
