"""Round to nearest: scales and zero points of groups of columns, and the numbers they count.

The scale is chosen, of a few between the one that the largest value asks for and a fraction of it, so that the squared
error is least: values at the end are clipped so that all others stand closer. In which sense it is least is `metric`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.quantize.types import Grouped

TRIES = 16
LEAST = {2: 0.35, 3: 0.45, 4: 0.55, 5: 0.65, 6: 0.75, 8: 0.85}
"""Bits → the smallest scale that is tried, in the one that clips nothing."""
CHUNK = 1 << 21  # weights whose scales are searched at a time
_NORMAL, _SMALLEST, _LARGEST = 2.0**-14, 2.0**-24, 65504.0  # of float16; the smallest is subnormal


def round_rtn(
    weight: Tensor, bits: int, group: int, symmetric: bool, *, search: bool = True, metric: Tensor | None = None
) -> Grouped:
    """weight float [N, K], K a multiple of `group`. Raises UsageError for values not finite or beyond float16 scales.

    metric: see `fit`.
    """
    scale, zero = fit(weight, bits, group, symmetric, search=search, metric=metric)
    return Grouped(encode(weight.float(), scale, zero, bits, group), scale, zero, bits, group)


def fit(
    weight: Tensor, bits: int, group: int, symmetric: bool, *, search: bool = True, metric: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """weight [N, K] -> (scale float16 [N, K/group] above zero, zero uint8 of that shape, or None if symmetric).

    The squared error counts per column [K] as `metric` says, or, with metric [K/group, group, group], is that of the
    product with activations of this covariance. A group of zeros gets the smallest normal scale.
    """
    if metric is not None and metric.dim() == 1:
        metric = metric.view(-1, group)
    step = max(1, CHUNK // weight.shape[1])
    found = [_fit(rows.float(), bits, group, symmetric, search, metric) for rows in weight.split(step)]
    scale = torch.cat([scale for scale, _ in found])
    return scale, None if symmetric else torch.cat([zero for _, zero in found])


def _fit(
    weight: Tensor, bits: int, group: int, symmetric: bool, search: bool, metric: Tensor | None
) -> tuple[Tensor, Tensor]:
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
    if not torch.isfinite(high - low).all():
        raise UsageError("a weight is NaN or infinite: it cannot be quantized")
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    top = (1 << bits) - 1
    best = least = None
    for size in sizes(bits, symmetric, search):
        scale = float16((high - low) * (size / top))
        wide = scale.float()
        zero = torch.full_like(wide, 1 << (bits - 1)) if symmetric else (-low * size / wide).round().clamp(0, top)
        delta = (grouped / wide.unsqueeze(-1)).round_().add_(zero.unsqueeze(-1)).clamp_(0, top)
        delta = delta.sub_(zero.unsqueeze(-1)).mul_(wide.unsqueeze(-1)).sub_(grouped)
        if metric is None:
            error = delta.square_().sum(-1)
        elif metric.dim() == 2:
            error = delta.square_().mul_(metric).sum(-1)
        else:
            error = (torch.einsum("ngi,gij->ngj", delta, metric) * delta).sum(-1)
        zero = zero.to(torch.uint8)
        if least is None or best is None:
            best, least = (scale, zero), error
            continue
        better = error < least
        best = torch.where(better, scale, best[0]), torch.where(better, zero, best[1])
        least = torch.minimum(error, least)
    assert best is not None
    return best


def sizes(bits: int, symmetric: bool, search: bool) -> list[float]:
    """Scales to try, in the one whose numbers span all values; that one first."""
    if not search:
        return [1.0]
    top = (1 << bits) - 1
    # symmetric numbers reach one step further below zero than above: scales at which the largest value meets either end
    ends = [top / (top + 1), top / (top - 1)] if symmetric else []
    return [1.0, *ends, *torch.linspace(1.0, LEAST[bits], TRIES + 1)[1:].tolist()]


def float16(scale: Tensor) -> Tensor:
    """Scales rounded to float16, none of them zero: those of zeros become the smallest normal number, and what would
    vanish the smallest there is. Raises UsageError for one that is too large."""
    if bool((scale > _LARGEST).any()):
        raise UsageError(f"weights are too large: a scale of {scale.max():.3g} does not fit float16")
    return torch.where(scale == 0, _NORMAL, scale.clamp_min(_SMALLEST)).half()


def encode(weight: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group: int) -> Tensor:
    """weight float32 [N, K] -> uint8 [N, K]: the nearest numbers under these scales."""
    grouped, wide = weight.unflatten(1, (-1, group)), scale.float().unsqueeze(-1)
    middle = float(1 << (bits - 1)) if zero is None else zero.float().unsqueeze(-1)
    return (grouped / wide).round_().add_(middle).clamp_(0, (1 << bits) - 1).to(torch.uint8).flatten(1)
