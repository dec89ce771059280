"""GPTQ (Frantar et al., arXiv:2210.17323): columns are rounded one after the other, and what each rounding does to the
layer's output is made up for by the columns that are still to come.

With X the layer's inputs and H = E[x xᵀ], the error of rows ŵ is (w - ŵ) H (w - ŵ)ᵀ. The rows of the Cholesky factor of
H⁻¹ say how the rest of a row answers to an error in one column (section 3.3, steps 2 and 3). Rows are independent, so
that after all, each row that plain rounding would serve better (scales are chosen for the columns alone) takes that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.quantize.rtn import encode, fit, round_rtn
from qwen3.quantize.types import Grouped

BLOCK = 128  # columns whose errors reach the rest of the matrix in one product
TRIES = 6  # to factor a Hessian, each with ten times the damping


@dataclass(frozen=True)
class Factor:
    """What rounding needs of a Hessian, once for all matrices that see the same inputs. order int64 [K]: columns in
    the order in which they are rounded; upper float32 [K, K]: Cholesky factor of H⁻¹ in that order; hessian: H."""

    order: Tensor
    upper: Tensor
    hessian: Tensor
    damp: float


def factor(
    hessian: Tensor, group: int, *, act_order: bool = True, static_groups: bool = True, damp: float = 0.01
) -> Factor:
    """hessian float32 [K, K], symmetric. Raises UsageError if it is not finite or has no factor even when damped.

    act_order: columns with large activations first. static_groups: only within groups, and groups as wholes, so that
    each group's columns stay together and no order need be stored.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all():
        raise UsageError("activations are NaN or infinite: no Hessian")
    columns = len(diagonal)
    order = torch.arange(columns, device=hessian.device)
    if act_order and static_groups:
        grouped = diagonal.view(-1, group)
        inside = grouped.argsort(dim=1, descending=True, stable=True)
        first = grouped.mean(1).argsort(descending=True, stable=True)
        order = (inside + torch.arange(0, columns, group, device=order.device).unsqueeze(1))[first].flatten()
    elif act_order:
        order = diagonal.argsort(descending=True, stable=True)
    mean = float(diagonal.mean())
    if mean == 0:
        return Factor(order, torch.eye(columns, device=hessian.device), hessian, damp)
    tried = damp
    for _ in range(TRIES):
        damped = hessian[order][:, order]
        damped.diagonal().add_(tried * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return Factor(order, upper, hessian, tried)
        tried *= 10
    raise UsageError(f"the Hessian has no Cholesky factor, not even with a damping of {tried / 10:g}")


def round_gptq(
    weight: Tensor, found: Factor, bits: int, group: int, symmetric: bool, *, search: bool = True
) -> Grouped:
    """weight float [N, K] -> its numbers, never worse in (w - ŵ) H (w - ŵ)ᵀ than those of `round_rtn` in any row.

    Its groups must be those that `found` was made with. Raises UsageError as `rtn.fit`.
    """
    order, upper = found.order, found.upper
    original = weight.float()[:, order]
    left, (rows, columns) = original.clone(), weight.shape
    numbers = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
    cost = upper.diagonal() ** -2  # to the output, of a column's error that later ones make up for (OBQ's equation 2)
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    scale: Tensor | None = None
    zero: Tensor | None = None
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty(rows, end - start, device=weight.device)
        for i in range(start, end):
            if i % group == 0:
                scale, zero = fit(
                    left[:, i : i + group], bits, group, symmetric, search=search, metric=cost[i : i + group]
                )
                scales.append(scale)
                zeros += [] if zero is None else [zero]
            assert scale is not None
            column = left[:, i : i + 1]
            q = encode(column, scale, zero, bits, 1)
            numbers[:, i : i + 1] = q
            error = (column - _value(q, scale, zero, bits)) / upper[i, i]
            left[:, i:end] -= error * upper[i, i:end]
            errors[:, i - start : i - start + 1] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    made = Grouped(numbers, torch.cat(scales, 1), None if symmetric else torch.cat(zeros, 1), bits, group)
    plain = round_rtn(original, bits, group, symmetric, search=search)
    return _in_place(best_rows([made, plain], original, found.hessian[order][:, order]), order)


def best_rows(tried: Sequence[Grouped], weight: Tensor, hessian: Tensor) -> Grouped:
    """Each row from that of the tried (alike in form) which has the smallest loss; the first, where they are equal."""
    losses = torch.stack([row_losses(each.dequantize() - weight, hessian) for each in tried])
    best = losses.argmin(0)
    rows = torch.arange(len(best), device=best.device)

    def pick(field: str) -> Tensor:
        return torch.stack([getattr(each, field) for each in tried])[best, rows]

    zero = None if tried[0].zero is None else pick("zero")
    return Grouped(pick("q"), pick("scale"), zero, tried[0].bits, tried[0].group)


def row_losses(delta: Tensor, hessian: Tensor) -> Tensor:
    """delta [N, K] of the weight, H [K, K] -> δ H δᵀ of each row, float32 [N]."""
    return ((delta @ hessian) * delta).sum(1)


def _value(q: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    return (q.float() - (float(1 << (bits - 1)) if zero is None else zero.float())) * scale.float()


def _in_place(made: Grouped, order: Tensor) -> Grouped:
    """Columns back where they were; groups, too, if each has remained together."""
    back = order.argsort()
    groups = (back // made.group).to(torch.int32)  # of each original column, in the order of rounding
    firsts = groups.view(-1, made.group)
    q = made.q[:, back]
    if bool((firsts != firsts[:, :1]).any()):
        return replace(made, q=q, order=groups)
    place = firsts[:, 0].long()
    return replace(made, q=q, scale=made.scale[:, place], zero=None if made.zero is None else made.zero[:, place])
