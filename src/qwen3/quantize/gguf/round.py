"""Rows of weights to blocks of a GGUF type: levels, scales and, for types of 256, the whole numbers that scale those.

For a type of 256 the groups' scales and minima are themselves rounded to a few bits of one float16 each. Levels, those
whole numbers and the two float16 are then fitted in turn, each to what the others are, so that what rounding one costs
the others take up again. The error that is made small is Σ w (x - x')²; w is the importance of a weight's column, the
mean x² of the activations it meets, by which its error counts in the layer's output. Without it all count alike: on the
embedded model that gave a smaller divergence than weights of |x| or x² did.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3.quantize.gguf.search import Levels, Scratch, Sums, fit_range, fit_scale, inverse, pick, ratio


@dataclass(frozen=True)
class Plan:
    """How a type is searched. marks: the least and the greatest of the whole numbers that scale a group (None: the
    group's scale is a float16 of its own). targets: see `fit_scale`; steps: see `fit_range` (types with minima).
    rounds: of fitting everything in turn."""

    block: int
    group: int
    levels: Levels
    targets: tuple[float, ...] = ()
    steps: tuple[float, ...] = ()
    marks: tuple[int, int] | None = None
    signed: bool = False
    rounds: int = 2


@dataclass(frozen=True)
class Fitted:
    """Of n blocks: q uint8 [n, block] counted from 0, scale and minimum float16 [n], marks [groups, n] of the scales,
    then of the minima, whole numbers in float32."""

    q: Tensor
    scale: Tensor
    minimum: Tensor | None = None
    marks: Tensor | None = None
    least: Tensor | None = None


def _spread(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(first + (last - first) * i / (count - 1) for i in range(count))


def _both(first: float, last: float, count: int, other: float) -> tuple[float, ...]:
    """The furthest number at the longer end, -first … -last, or at the shorter."""
    return (*(-value for value in _spread(first, last, count)), *_spread(other - 0.3, other + 0.5, 3))


PLANS = {
    "Q4_0": Plan(32, 32, Levels(-8, 7), _both(7.2, 9.0, 8, 7)),
    "Q5_0": Plan(32, 32, Levels(-16, 15), _both(15.2, 17.0, 8, 15)),
    "IQ4_NL": Plan(32, 32, Levels(-127, 113, True), (*_spread(-136, -118, 7), *_spread(107, 121, 4))),
    "TQ1_0": Plan(256, 256, Levels(-1, 1), _spread(1, 2.5, 7)),
    "TQ2_0": Plan(256, 256, Levels(-1, 1), _spread(1, 2.5, 7)),
    "Q4_1": Plan(32, 32, Levels(0, 15), steps=_spread(-1, 0.8, 7), signed=True),
    "Q5_1": Plan(32, 32, Levels(0, 31), steps=_spread(-1, 0.8, 7), signed=True),
    "Q2_K": Plan(256, 16, Levels(0, 3), steps=_spread(-0.5, 1.0, 8), marks=(0, 15), rounds=3),
    "Q4_K": Plan(256, 32, Levels(0, 15), steps=_spread(-1, 0.8, 7), marks=(0, 63)),
    "Q5_K": Plan(256, 32, Levels(0, 31), steps=_spread(-1, 0.8, 7), marks=(0, 63)),
    "Q3_K": Plan(256, 16, Levels(-4, 3), (*_both(3.2, 5.0, 8, 3), -6.0), marks=(-32, 31)),
    "Q6_K": Plan(256, 16, Levels(-32, 31), _both(31.1, 32.9, 7, 31), marks=(-128, 127)),
    "IQ4_XS": Plan(256, 32, Levels(-127, 113, True), (*_spread(-136, -118, 7), *_spread(107, 121, 4)), marks=(-32, 31)),
}


_PARTS = torch.tensor((0.9, 0.94, 0.97, 1.0, 1.03)).unsqueeze(1)


def fit(kind: str, x: Tensor, importance: Tensor | None) -> Fitted:
    """x float32 [n, block], importance likewise (about 1) or None -> its blocks, of a type in `PLANS`."""
    plan = PLANS[kind]
    shape = (len(x), plan.block // plan.group, plan.group)
    x = x.view(shape).permute(2, 1, 0).contiguous()
    importance = None if importance is None else importance.reshape(shape).permute(2, 1, 0).contiguous()
    data = Scratch(x, importance)
    if plan.marks is None:
        return _alone(plan, data)
    return _with_minima(plan, data, plan.marks[1]) if plan.steps else _scaled(plan, data, *plan.marks)


def _flat(q: Tensor) -> Tensor:
    """[g, groups, n] -> [n, block]."""
    return q.permute(2, 1, 0).reshape(q.shape[2], -1)


def _rounded(value: Tensor) -> Tensor:
    """To what float16 holds, still float32."""
    return value.half().float()


def _alone(plan: Plan, data: Scratch) -> Fitted:
    """Scales of their own: one group, one block."""
    if plan.steps:
        found = fit_range(data, plan.levels, plan.steps, signed=True, rounds=plan.rounds)
        scale, minimum = (_rounded(part) for part in found)
        q = plan.levels.index(data.level(scale, plan.levels, minimum))
        return Fitted(_flat(q), scale[0].half(), -minimum[0].half())
    scale = _rounded(fit_scale(data, plan.levels, plan.targets, plan.rounds))
    return Fitted(_flat(plan.levels.index(data.level(scale, plan.levels))), scale[0].half())


def _scaled(plan: Plan, data: Scratch, low: int, high: int) -> Fitted:
    """Groups whose scales are whole numbers of one float16."""
    best = fit_scale(data, plan.levels, plan.targets)
    for _ in range(plan.rounds):
        data.level(best, plan.levels)
        d, marks = _mark(data.along(), data.square(), low, high)
        best = d * marks
    q = plan.levels.index(data.level(best, plan.levels))
    return Fitted(_flat(q), d.half(), marks=marks)


def _mark(along: Tensor, square: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The float16 [n] and whole numbers [groups, n] for given levels, from Σwxq and Σwq²: the best of a few."""
    wanted = ratio(along, square)
    extreme = wanted.gather(0, wanted.abs().argmax(0, keepdim=True))
    d = _rounded(extreme / (low * _PARTS)).unsqueeze(1)
    for _ in range(2):
        marks = (wanted * inverse(d)).round_().clamp_(low, high)
        d = _rounded(ratio((marks * along).sum(1, keepdim=True), (marks * marks * square).sum(1, keepdim=True)))
    scale = d * marks
    best = pick((scale * (2 * along - scale * square)).sum(1), d[:, 0], marks)
    return best[0], best[1]


def _with_minima(plan: Plan, data: Scratch, top: int) -> Fitted:
    """Groups whose scales and minima are whole numbers of one float16 each."""
    first = data.wx.sum(0)
    scale, minimum = fit_range(data, plan.levels, plan.steps, signed=False)
    for _ in range(plan.rounds):
        data.level(scale, plan.levels, minimum)
        sums = Sums(data.weight, data.linear(), data.square(), first, data.along())
        d, dmin, marks, least = _mark_both(sums, top)
        scale, minimum = d * marks, dmin * least
    q = plan.levels.index(data.level(scale, plan.levels, minimum))
    return Fitted(_flat(q), d.half(), dmin.half(), marks, least)


def _mark_both(sums: Sums, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(d, dmin [n], marks, least [groups, n]) for given levels: the best of a few d, with that the best of a few dmin,
    then each of the four in turn for the values of the others."""
    scale, _ = sums.solve(False)
    d = _rounded(scale.amax(0) / (top * _PARTS)).unsqueeze(1)
    marks = (scale * inverse(d)).round_().clamp_(0, top)
    wanted = ratio(d * marks * sums.linear - sums.first, sums.weight.expand_as(marks)).clamp_min_(0)
    d, marks, wanted = pick(sums.gain(d * marks, wanted).sum(1), d[:, 0], marks, wanted)
    dmin = _rounded(wanted.amax(0) / (top * _PARTS)).unsqueeze(1)
    least = (wanted * inverse(dmin)).round_().clamp_(0, top)
    dmin, least = pick(sums.gain(d * marks, dmin * least).sum(1), dmin[:, 0], least)
    options = [(d, dmin, marks, least)]
    for _ in range(2):
        s = ratio(sums.along + dmin * least * sums.linear, sums.square)
        marks = (s * inverse(d)).round_().clamp_(0, top)
        m = ratio(d * marks * sums.linear - sums.first, sums.weight)
        least = (m * inverse(dmin)).round_().clamp_(0, top)
        a, c = (marks * marks * sums.square).sum(0), (least * least * sums.weight).sum(0)
        b = (marks * least * sums.linear).sum(0)
        e, f = (marks * sums.along).sum(0), (least * sums.first).sum(0)
        determinant = a * c - b * b
        fits = determinant > 1e-6 * a * c
        d = torch.where(fits, _rounded((e * c - b * f) / determinant).clamp_min(0), d)
        dmin = torch.where(fits, _rounded((b * e - a * f) / determinant).clamp_min(0), dmin)
        options.append((d, dmin, marks, least))
    ds, dmins, all_marks, all_least = (torch.stack(each) for each in zip(*options, strict=True))
    gain = sums.gain(ds.unsqueeze(1) * all_marks, dmins.unsqueeze(1) * all_least).sum(1)
    best = pick(gain, ds, dmins, all_marks, all_least)
    return best[0], best[1], best[2], best[3]
