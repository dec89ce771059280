"""W8A8 after SmoothQuant (Xiao et al., arXiv:2211.10438): columns whose activations spread far hand a part of that to
the weights, so that both are rounded to int8 with little loss: weights per row here, activations per token at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.quantize.types import Int8

_TINY = 1e-5  # of an activation or weight, below which a column is left alone
_SMALLEST = 1e-12  # scale of a row of zeros: any will do


def smoothing(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Peaks [K] of |x| and of the weights' columns -> s [K], by which x is divided and columns are multiplied:
    max|x|^α / max|w|^(1-α) (equation 4)."""
    s = activations.clamp_min(_TINY).pow(alpha) / weights.clamp_min(_TINY).pow(1 - alpha)
    return torch.where((activations < _TINY) | (weights < _TINY), 1.0, s.clamp_min(_TINY))


def round_int8(weight: Tensor) -> Int8:
    """weight float [N, K] -> int8 of -127 … 127, the largest of each row on the end. Raises UsageError for values that
    are not finite."""
    weight = weight.float()
    peak = weight.abs().amax(1, keepdim=True)
    if not torch.isfinite(peak).all():
        raise UsageError("a weight is NaN or infinite: it cannot be quantized")
    scale = (peak / 127).clamp_min(_SMALLEST)
    return Int8((weight / scale).round().clamp(-127, 127).to(torch.int8), scale)
