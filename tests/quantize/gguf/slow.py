"""The searches of `search.py` and `round.py`, group by group and number by number, in Python's own floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwen3.kernels.packed import TABLE
from qwen3.quantize.gguf.round import Plan
from qwen3.quantize.gguf.search import Levels

PARTS = (0.9, 0.94, 0.97, 1.0, 1.03)
Row = Sequence[float]


def half(value: float) -> float:
    return float(np.float16(value))


def nearest(value: float, levels: Levels) -> float:
    if levels.table:
        return min(TABLE, key=lambda level: abs(level - value))
    return min(max(round(value), levels.low), levels.high)


def sums(x: Row, w: Row, q: Row) -> tuple[float, float, float, float, float]:
    """Σw, Σwq, Σwq², Σwx, Σwxq."""
    both = list(zip(w, x, q, strict=True))
    return (
        sum(w), sum(a * c for a, _, c in both), sum(a * c * c for a, _, c in both), sum(a * b for a, b, _ in both),
        sum(a * b * c for a, b, c in both),
    )  # fmt: skip


def fit_scale(x: Row, w: Row, levels: Levels, targets: Row, rounds: int = 1) -> float:
    extreme = max(x, key=abs)
    best, found = 0.0, 0.0
    for target in targets:
        q = [nearest(value * target / extreme, levels) for value in x]
        _, _, square, _, along = sums(x, w, q)
        if square and along * along / square > found:
            best, found = along / square, along * along / square
    for _ in range(rounds):
        _, _, square, _, along = sums(x, w, [nearest(value / best, levels) for value in x])
        best = along / square
    return best


def solve(x: Row, w: Row, q: Row, signed: bool) -> tuple[float, float]:
    weight, linear, square, first, along = sums(x, w, q)
    determinant = weight * square - linear * linear
    if determinant > 1e-6 * weight * square:
        scale = (weight * along - first * linear) / determinant
        minimum = (linear * along - square * first) / determinant
    else:
        scale, minimum = along / square if square else 0.0, 0.0
    if not signed and minimum < 0:
        scale, minimum = along / square, 0.0
    if scale <= 0:
        scale, minimum = 0.0, -first / weight if signed else max(0.0, -first / weight)
    return scale, minimum


def cost(x: Row, w: Row, q: Row, scale: float, minimum: float = 0.0) -> float:
    return sum(c * (a - scale * b + minimum) ** 2 for a, b, c in zip(x, q, w, strict=True))


def level(x: Row, scale: float, minimum: float, high: int) -> list[float]:
    return [min(max(round((value + minimum) / scale), 0), high) if scale else 0 for value in x]


def fit_range(x: Row, w: Row, high: int, steps: Row, signed: bool, rounds: int = 1) -> tuple[float, float]:
    top, least = (max(x), min(x)) if signed else (max(0.0, *x), min(0.0, *x))

    def tried(scale: float, minimum: float) -> tuple[float, float, float]:
        q = level(x, scale, minimum, high)
        fitted = solve(x, w, q, signed)
        return cost(x, w, q, *fitted), *fitted

    found = [min(tried((top - least) / (high + step), -least) for step in steps)]
    for _ in range(rounds):
        found.append(tried(*found[-1][1:]))
    _, scale, minimum = min(found)
    return scale, minimum


def scaled(plan: Plan, x: Row, w: Row) -> list[float]:
    """A block of Q3_K, Q6_K or IQ4_XS, as it is read back."""
    assert plan.marks is not None
    low, high = plan.marks
    groups = [(x[i : i + plan.group], w[i : i + plan.group]) for i in range(0, len(x), plan.group)]
    scales = [fit_scale(*group, plan.levels, plan.targets) for group in groups]
    for _ in range(plan.rounds):
        pairs = []
        for (own, weights), scale in zip(groups, scales, strict=True):
            q = [nearest(value / scale, plan.levels) if scale else 0 for value in own]
            _, _, square, _, along = sums(own, weights, q)
            pairs.append((along, square))
        wanted = [along / square if square else 0.0 for along, square in pairs]
        best = (-float("inf"), 0.0, [0])
        for part in PARTS:
            d = half(max(wanted, key=abs) / (low * part))
            for _ in range(2):
                marks = [min(max(round(value / d), low), high) for value in wanted]
                both = list(zip(marks, pairs, strict=True))
                d = half(sum(m * a for m, (a, _) in both) / sum(m * m * s for m, (_, s) in both))
            gain = sum(d * m * (2 * a - d * m * s) for m, (a, s) in both)
            best = max(best, (gain, d, marks), key=lambda option: option[0])
        scales = [best[1] * mark for mark in best[2]]
    return [
        scale * nearest(value / scale, plan.levels) if scale else 0.0
        for (own, _), scale in zip(groups, scales, strict=True)
        for value in own
    ]
