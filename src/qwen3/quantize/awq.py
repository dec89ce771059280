"""AWQ (Lin et al., arXiv:2306.00978): columns with large activations are multiplied before they are rounded, so that
rounding hurts them less, and their activations divided; section 3.2: s = E|x|^α, the α in [0, 1] of the least loss.

The paper measures the loss of a block's output on a few tokens; here it is that of the matrices' own outputs on all of
them, which E[x xᵀ] gives exactly. Afterwards the scales of groups are searched (the paper's clipping) for the least
error of their part of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3.quantize.gptq import best_rows, row_losses
from qwen3.quantize.rtn import round_rtn
from qwen3.quantize.spec import Spec
from qwen3.quantize.types import Grouped

STEPS = 20  # of α
_SPAN = 1e4  # between a column's factor and another's, at most


class Part(NamedTuple):
    """A matrix [N, K] that shares its factors with others; hessian [K, K] of its inputs, weighted by their number."""

    weight: Tensor
    hessian: Tensor
    spec: Spec


def round_awq(weight: Tensor, hessian: Tensor, spec: Spec) -> Grouped:
    """weight [N, K], scaled already, H of its scaled inputs -> its numbers, each row clipped as serves its output, and
    never worse in (w - ŵ) H (w - ŵ)ᵀ than by `round_rtn`."""
    group = spec.group_of(weight.shape[1])
    bits, symmetric = spec.bits, bool(spec.symmetric)
    plain = round_rtn(weight, bits, group, symmetric, search=spec.search)
    if not spec.search:
        return plain
    count = weight.shape[1] // group
    blocks = torch.stack([hessian[g * group : (g + 1) * group, g * group : (g + 1) * group] for g in range(count)])
    return best_rows([plain, round_rtn(weight, bits, group, symmetric, metric=blocks)], weight, hessian)


def find_scales(parts: Callable[[], Iterable[Part]], mean: Tensor, settle: Callable[[Tensor], Tensor]) -> Tensor:
    """The factors s [K] of the columns, ones if nothing is better.

    parts: called two times; mean: E|x| of the columns; settle: s -> the factors that can be had exactly (what is
    divided by them is stored in fewer bits). The matrices' loss together, rounded as `round_awq` does, is never above
    that without scales.
    """
    ones = torch.ones_like(mean)
    mean = mean.clamp_min(float(mean.max()) / _SPAN)
    if float(mean.max()) == 0:
        return ones
    powers = [mean.pow(step / STEPS) for step in range(STEPS)]
    tried = [settle(s / (s.max() * s.min()).sqrt()) for s in powers]
    losses = torch.zeros(len(tried))
    for part in parts():
        losses += torch.tensor([_loss(part, s, clipped=False) for s in tried])
    best = tried[int(losses.argmin())]
    if bool((best == 1).all()):
        return ones
    final = torch.zeros(2)
    for part in parts():
        final += torch.tensor([_loss(part, s, clipped=True) for s in (ones, best)])
    return best if final[1] < final[0] else ones


def _loss(part: Part, s: Tensor, *, clipped: bool) -> float:
    weight, spec = part.weight * s, part.spec
    if clipped:
        made = round_awq(weight, part.hessian / s / s.unsqueeze(1), spec)
    else:
        made = round_rtn(weight, spec.bits, spec.group_of(weight.shape[1]), bool(spec.symmetric), search=False)
    return float(row_losses(made.dequantize() / s - part.weight, part.hessian).sum())
