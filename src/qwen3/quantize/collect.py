"""What calibration data says about the inputs of a matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3.errors import UsageError


@dataclass(frozen=True)
class Moments:
    """Of the inputs of a matrix with K columns. hessian float32 [K, K]: the mean of x xᵀ over the tokens, or None if it
    was not asked for; mean, peak [K]: of |x|; tokens: how many there were (at least one)."""

    hessian: Tensor | None
    mean: Tensor
    peak: Tensor
    tokens: int


def moments(batches: Iterable[Tensor], *, hessian: bool = True) -> Moments | None:
    """batches: float32 [n, K] each. None if there is no token. Raises UsageError for activations that are not finite.

    Source: GPTQ's H is 2 X Xᵀ (arXiv:2210.17323, equation 2); a factor changes nothing.
    """
    total: Tensor | None = None
    peak: Tensor | None = None
    square: Tensor | None = None
    tokens = 0
    for x in batches:
        if not len(x):
            continue
        if total is None or peak is None:
            total, peak = torch.zeros_like(x[0]), torch.zeros_like(x[0])
            square = torch.zeros(x.shape[1], x.shape[1], device=x.device) if hessian else None
        size = x.abs()
        total += size.sum(0)
        peak = torch.maximum(peak, size.amax(0))
        if square is not None:
            square.addmm_(x.T, x)
        tokens += len(x)
    if total is None or peak is None:
        return None
    if not torch.isfinite(total).all():
        raise UsageError("activations of the calibration data are NaN or infinite: the checkpoint is broken")
    return Moments(None if square is None else square / tokens, total / tokens, peak, tokens)
