"""What a run cost: tokens at a price, or a GPU's seconds at one, and what a right answer came to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.paired import bootstrap, share
from qwen3.evaluate.statistics import Sample, score


@dataclass(frozen=True)
class Prices:
    """input, output: of a million tokens (thinking is output). gpu_hour: of one GPU, of which there are `gpus`.
    kilowatt_hour: of energy, if it was measured. All in `currency`; None: not asked for. Raises UsageError for what is
    no price."""

    input: float | None = None
    output: float | None = None
    gpu_hour: float | None = None
    gpus: int = 1
    kilowatt_hour: float | None = None
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("input", "output", "gpu_hour", "gpus", "kilowatt_hour"):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if value is not None and not good:
                raise UsageError(f"prices: {name} must be a number of at least 0, not {value!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Prices:
        """From a run's head, where `in`, `out` and `gpu` are short for the first three. Raises UsageError for an
        unknown field."""
        short = {"in": "input", "out": "output", "gpu": "gpu_hour"}
        found = {short.get(name, name): price for name, price in (given or {}).items()}
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in found if name not in names]:
            raise UsageError(f"prices: no field {unknown[0]!r}; there are {', '.join(names)}")
        return cls(**found)

    def tokens(self, sample: Sample) -> float | None:
        """Price of a sample by its tokens; None without prices, or where a count is unknown."""
        if self.input is None and self.output is None:
            return None
        answer, total = sample["answer"], 0.0
        for price, names in ((self.input, ("prompt_tokens",)), (self.output, ("thinking_tokens", "answer_tokens"))):
            counts = [answer.get(name) for name in names]
            if price and None in counts:
                return None
            total += (price or 0.0) * sum(count or 0 for count in counts) / 1e6
        return total

    def second(self) -> float | None:
        return None if self.gpu_hour is None else self.gpu_hour * self.gpus / 3600


def costs(head: Mapping[str, Any], samples: Sequence[Sample], seed: int = 0) -> dict[str, Any]:
    """What a run cost, failed samples included, in `currency`.

    by_tokens, by_gpu, energy: totals and what a right answer came to, each {total, per_sample, per_right,
    per_right_interval (95 %, bootstrap over items; None: no bound)}, None where nothing is known. seconds: wall time of
    the run: the head's `seconds`, or, as an estimate from below, the samples' divided by how many ran at once (`basis`
    says which). joules: the head's, if measured. unpriced: samples whose tokens are unknown, left out of by_tokens.
    """
    prices = Prices.of(head.get("prices"))
    each = [prices.tokens(sample) for sample in samples]
    worked = [float(sample["answer"].get("seconds") or 0.0) for sample in samples]
    wall, basis = head.get("seconds"), "measured"
    if wall is None:
        wall, basis = sum(worked) / max(1, int(head.get("concurrency") or 1)), "samples' seconds by concurrency"
    by_gpu = energy = None
    used = sum(worked) or 1.0
    if (rate := prices.second()) is not None:
        by_gpu = _ratio(samples, [rate * wall * one / used for one in worked], seed)
    joules = head.get("joules")
    if joules is not None and prices.kilowatt_hour is not None:
        energy = _ratio(samples, [prices.kilowatt_hour * joules / 3.6e6 * one / used for one in worked], seed)
    return {
        "currency": prices.currency,
        "by_tokens": _ratio(samples, each, seed),
        "by_gpu": by_gpu,
        "energy": energy,
        "seconds": wall,
        "basis": basis,
        "joules": joules,
        "unpriced": sum(one is None for one in each),
    }


def _ratio(samples: Sequence[Sample], paid: Sequence[float | None], seed: int) -> dict[str, Any] | None:
    cost: dict[str, float] = {}
    worth: dict[str, float] = {}
    known = 0
    for sample, price in zip(samples, paid, strict=True):
        if price is not None:
            item = str(sample["item"])
            known += 1
            cost[item] = cost.get(item, 0.0) + price
            worth[item] = worth.get(item, 0.0) + (score(sample) or 0.0)
    if not known:
        return None
    total, right = sum(cost.values()), sum(worth.values())
    bounds = bootstrap(share, list(cost.values()), list(worth.values()), seed=seed) if right else (math.inf, math.inf)
    return {
        "total": total,
        "per_sample": total / known,
        "per_right": total / right if right else None,
        "per_right_interval": [bound if bound < math.inf else None for bound in bounds],
    }


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of (cost, accuracy) no other beats: those that nothing cheaper or as cheap is better than, by cost."""
    out: list[int] = []
    best = -math.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            out.append(i)
            best = points[i][1]
    return out
