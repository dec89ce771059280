"""Scales for groups of numbers, by weighted least squares: the search behind GGUF's block types.

A group's numbers x become scale · level (and, for types with minima, less a minimum), levels being few whole numbers or
a table's. For given levels the best scale solves a linear equation, for a given scale the best levels are the nearest;
so a dozen first scales are tried, the best is kept, and the two steps alternate. Neither step can add to the error
Σ w (x - x')². Tensors are [elements of a group, ..., blocks]: what is summed comes first, what is broadcast last, so
that every step runs along memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qwen3.kernels.packed import TABLE

TINY = 1e-30  # below every weight that float16 scales can stand for


@dataclass(frozen=True)
class Levels:
    """What a number may become before it is scaled: the whole numbers low … high, or those of `packed.TABLE`."""

    low: int
    high: int
    table: bool = False

    def nearest(self, values: Tensor) -> Tensor:
        """float32 [...] -> the nearest level of each, in place if it can be."""
        if not self.table:
            return values.round_().clamp_(self.low, self.high)
        return _table()[1].index_select(0, _place(values).view(-1)).view(values.shape)

    def index(self, levels: Tensor) -> Tensor:
        """Levels, as `nearest` gives them -> uint8, from 0."""
        if not self.table:
            return (levels - self.low).to(torch.uint8)
        return _table()[0].index_select(0, _place(levels).view(-1)).view(levels.shape)


@cache
def _table() -> tuple[Tensor, Tensor]:
    """For every half step from -128 to 128: the index of the nearest value, and the value."""
    levels = torch.tensor(TABLE, dtype=torch.float32)
    middle = (torch.arange(513) * 0.5 - 128 + 0.25).unsqueeze(1)  # borders between levels are whole or half numbers
    index = (middle - levels).abs().argmin(1)
    return index.to(torch.uint8), levels[index]


def _place(values: Tensor) -> Tensor:
    return (values * 2 + 256).clamp_(0, 512).int()


def inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where there is none."""
    return torch.where(scale.abs() > TINY, 1 / scale, 0.0)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where that has no meaning."""
    return torch.where(below > TINY, above / below, 0.0)


def pick(gain: Tensor, *options: Tensor) -> list[Tensor]:
    """gain [C, ...], options [C, (groups,) ...] -> of each option the one with the greatest gain, [(groups,) ...]."""
    best = gain.argmax(0, keepdim=True)
    shaped = [best if option.dim() == best.dim() else best.unsqueeze(1) for option in options]
    return [o.gather(0, at.expand(1, *o.shape[1:]))[0] for o, at in zip(options, shaped, strict=True)]


class Scratch:
    """Numbers x with weights w (None: all 1), float32 [g, ...], and room for levels of theirs: what is allocated anew
    for every step costs more than the step."""

    def __init__(self, x: Tensor, w: Tensor | None) -> None:
        self.x, self.w = x, w
        self.wx = x if w is None else w * x
        self.weight = torch.full_like(x[0], len(x)) if w is None else w.sum(0)
        self.q, self.product = torch.empty_like(x), torch.empty_like(x)

    def level(self, scale: Tensor, levels: Levels, minimum: Tensor | None = None) -> Tensor:
        """The levels for x ≈ scale · q - minimum, [g, ...]; overwritten by the next ones."""
        if minimum is None:
            torch.mul(self.x, inverse(scale), out=self.q)
        else:
            torch.add(self.x, minimum, out=self.q).mul_(inverse(scale))
        self.q = levels.nearest(self.q)
        return self.q

    def square(self, out: Tensor | None = None) -> Tensor:
        """Σ w q²"""
        torch.mul(self.q, self.q, out=self.product)
        return torch.sum(self.product if self.w is None else self.product.mul_(self.w), 0, out=out)

    def linear(self, out: Tensor | None = None) -> Tensor:
        """Σ w q"""
        return torch.sum(self.q if self.w is None else torch.mul(self.w, self.q, out=self.product), 0, out=out)

    def along(self, out: Tensor | None = None) -> Tensor:
        """Σ w x q"""
        return torch.sum(torch.mul(self.wx, self.q, out=self.product), 0, out=out)


def fit_scale(data: Scratch, levels: Levels, targets: tuple[float, ...], rounds: int = 1) -> Tensor:
    """The scale float32 [...] of each group, of either sign.

    targets: where the number that is furthest from 0 may come to lie before it is rounded.
    """
    extreme = data.x.gather(0, data.x.abs().argmax(0, keepdim=True))[0]
    along, square = extreme.new_empty(2, len(targets), *extreme.shape)
    for i, target in enumerate(targets):
        data.level(extreme / target, levels)
        data.along(along[i]), data.square(square[i])
    scale = ratio(along, square)
    (best,) = pick(scale * along, scale)  # by so much is the error below Σ w x²
    for _ in range(rounds):
        data.level(best, levels)
        total = data.square()
        best = torch.where(total > TINY, data.along() / total, best)
    return best


def fit_range(
    data: Scratch, levels: Levels, steps: tuple[float, ...], *, signed: bool, rounds: int = 1
) -> tuple[Tensor, Tensor]:
    """(scale, minimum) float32 [...] of each group: x ≈ scale · q - minimum, q from 0.

    steps: how many levels more than there are the range from least to largest may have at first. signed: the minimum
    may be below 0, else it is not.
    """
    top, least = data.x.amax(0), data.x.amin(0)
    if not signed:
        least, top = least.clamp_max(0), top.clamp_min(0)
    first = Sums(data.weight, top, top, data.wx.sum(0), top)
    found = [first.tried(data, levels, [((top - least) / (levels.high + step), -least) for step in steps], signed)]
    for _ in range(rounds):
        found.append(first.tried(data, levels, [found[-1][:2]], signed))
    gains, scales, minima = (torch.stack([each[i] for each in found]) for i in (2, 0, 1))
    scale, minimum = pick(gains, scales, minima)
    return scale, minimum


@dataclass(frozen=True)
class Sums:
    """Σw, Σwq, Σwq², Σwx, Σwxq of each group: all that the error depends on for given levels. [..., groups, n]"""

    weight: Tensor
    linear: Tensor
    square: Tensor
    first: Tensor
    along: Tensor

    def tried(
        self, data: Scratch, levels: Levels, starts: list[tuple[Tensor, Tensor]], signed: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Levels for each (scale, minimum), least squares for the levels: the best (scale, minimum, gain)."""
        linear, square, along = self.weight.new_empty(3, len(starts), *self.weight.shape)
        for i, (scale, minimum) in enumerate(starts):
            data.level(scale, levels, minimum)
            data.along(along[i]), data.linear(linear[i]), data.square(square[i])
        sums = Sums(self.weight, linear, square, self.first, along)
        scale, minimum = sums.solve(signed)
        gain = sums.gain(scale, minimum)
        best = pick(gain, scale, minimum, gain)
        return best[0], best[1], best[2]

    def gain(self, s: Tensor, m: Tensor) -> Tensor:
        """By how much Σ w (x - s·q + m)² is below Σ w x²."""
        return s * (2 * self.along - s * self.square) + m * (2 * (s * self.linear - self.first) - m * self.weight)

    def solve(self, signed: bool) -> tuple[Tensor, Tensor]:
        """Least squares of x ≈ s · q - m: (s, m), s ≥ 0, and m ≥ 0 unless `signed`."""
        determinant = self.weight * self.square - self.linear * self.linear
        fits = determinant > 1e-6 * self.weight * self.square
        plain = ratio(self.along, self.square)
        scale = torch.where(fits, (self.weight * self.along - self.first * self.linear) / determinant, plain)
        minimum = torch.where(fits, (self.linear * self.along - self.square * self.first) / determinant, 0.0)
        if not signed:
            scale, minimum = torch.where(minimum < 0, plain, scale), minimum.clamp_min(0)
        alone = scale <= 0  # levels say nothing: the mean does
        mean = -ratio(self.first, self.weight)
        mean = mean if signed else mean.clamp_min(0)
        return scale.clamp_min(0), torch.where(alone, mean, minimum)
