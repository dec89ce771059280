"""How sure a run's numbers are: intervals over items, two error sources, pass@k, and two runs on the same items.

The unit is the item: its samples belong together, so an item counts as one draw, whatever the number of its samples.
Intervals are of the mean over items that might have been asked ("is the model this good"). What a second run of the
same items would differ by is `sampling_error`, apart. How often intervals cover is in
`benchmarks/2026-11-23-statistics-simulation.json`, made by `tools/statistics_simulation.py`: 93 to 98 % from 500 items
on; with up to 100 items and many samples of each they are too short where a few items differ from all others, since
those may not have been drawn, and no interval can tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import UsageError
from qwen3.evaluate.paired import sign_test
from qwen3.evaluate.runs.record import Run
from qwen3.tasks.base import interval as wilson

Numbers = NDArray[np.float64]
Sample = Mapping[str, Any]
Z = NormalDist().inv_cdf(0.975)
POWER = NormalDist().inv_cdf(0.8)
_FLIPS = 16  # items up to which all signs are tried
_DRAWS = 20_000


@cache
def t_quantile(share: float, df: float) -> float:
    """Quantile of Student's t, 0 < share < 1. With t = √df·tan(θ) its density is cos(θ)^(df-1), integrated by Gauss and
    Legendre, and θ is found by halving: exact to 1e-6 from df 1 on."""
    if share < 0.5:
        return -t_quantile(1 - share, df)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        half = angle / 2
        tail = scale * half * float(weights @ np.cos(half * (nodes + 1)) ** (df - 1))
        low, high = (angle, high) if tail < share - 0.5 else (low, angle)
    return math.sqrt(df) * math.tan(low)


def by_item(samples: Iterable[Sample], value: Callable[[Sample], float | None]) -> dict[str, Numbers]:
    """Values of each item's samples; None leaves a sample out, an item with none is not in it."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        if (one := value(sample)) is not None:
            found.setdefault(str(sample["item"]), []).append(float(one))
    return {item: np.array(values) for item, values in found.items()}


def score(sample: Sample) -> float | None:
    """A sample's value, 0 to 1; None of one that failed: that says nothing of the model."""
    return None if sample["score"]["outcome"] == "failed" else float(sample["score"]["value"])


def components(values: Sequence[Numbers]) -> tuple[float, float | None]:
    """Variance of the mean over items: all of it, and the part that is due to sampling (unbiased, from the spread
    within items; None where no item has two samples). The rest is due to which items were asked. Infinite for one."""
    count = len(values)
    means = np.array([one.mean() for one in values])
    whole = float(means.var(ddof=1)) / count if count > 1 else math.inf
    spreads = [float(one.var(ddof=1)) for one in values if len(one) > 1]
    if not spreads:
        return whole, None
    usual = float(np.mean(spreads))
    within = sum((float(one.var(ddof=1)) if len(one) > 1 else usual) / len(one) for one in values)
    return whole, within / count**2


def mean_interval(means: Numbers, samples: int | None = None) -> tuple[float, float, str]:
    """95 % interval of the mean over items, and the name of the method. means: of each item, 0 to 1. samples: of all
    items, whose number bounds what the items can tell; None: no such bound.

    Where every item is all right or all wrong: Wilson's, of items. Else Wilson's with the number of items that would
    have this variance (E. L. Korn, B. I. Graubard 1998), t for z, and half an item of the other kind mixed into the
    variance: without it the interval is too short where few items differ from the rest. Raises ValueError for no items.
    """
    count = len(means)
    if not count:
        raise ValueError("there are no items")
    mean = float(means.mean())
    if np.isin(means, (0.0, 1.0)).all() or count == 1:
        return *wilson(mean * count, count), "Wilson"
    pseudo = 0.5 * (mean**2 * (1 - mean) + (1 - mean) ** 2 * mean)
    variance = (float(((means - mean) ** 2).sum()) + pseudo) / (count - 0.5) / count
    effective = min(max(mean * (1 - mean) / variance, count), samples or math.inf)
    effective *= (Z / t_quantile(0.975, count - 1)) ** 2
    return *wilson(mean * effective, effective), "Wilson, effective items"


def accuracy(values: Sequence[Numbers]) -> dict[str, Any]:
    """The mean over items with its errors, all in percent. items, samples: how many. percent; interval (95 %); method.
    error, sampling_error, item_error: standard errors, of the whole and of its two sources (None: not known).
    noise: half-width of the 95 % interval of the mean on these very items. detectable: points between two such runs
    of 80 % power at 5 %: unpaired (other items), same_items (the least that pairing can come to)."""
    means, samples = np.array([one.mean() for one in values]), sum(len(one) for one in values)
    # A sample that may be right in part tells more than one that is right or wrong.
    partial = any(not np.isin(one, (0.0, 1.0)).all() for one in values)
    low, high, method = mean_interval(means, None if partial else samples)
    whole, within = components(values)
    error = 100 * math.sqrt(whole) if whole < math.inf else None
    sampling = None if within is None else 100 * math.sqrt(within)
    item = None if error is None or sampling is None else math.sqrt(max(0.0, error**2 - sampling**2))
    # From the interval's width, not `error`, which is 0 where all items agree.
    width = 100 * (high - low) / (2 * Z)
    power = (Z + POWER) * math.sqrt(2)
    return {
        "items": len(values),
        "samples": samples,
        "percent": 100 * float(means.mean()),
        "interval": [100 * low, 100 * high],
        "method": method,
        "error": error,
        "item_error": item,
        "sampling_error": sampling,
        "noise": None if sampling is None else Z * sampling,
        "detectable": {
            "unpaired": min(100.0, power * width),
            "same_items": None if not sampling else min(100.0, power * sampling),
        },
    }


def pass_at(right: int, of: int, k: int) -> float:
    """Chance that k of `of` samples, drawn without putting back, hold a right one: 1 - C(of - right, k) / C(of, k)
    (M. Chen et al. 2021, unbiased). Raises ValueError for k outside 1..of."""
    if not 1 <= k <= of:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {of}")
    return 1.0 - math.prod((of - right - i) / (of - i) for i in range(min(k, of - right + 1)))


def majority(votes: Sequence[tuple[str | None, float]]) -> float:
    """Worth of the answer that most samples of an item gave. votes: (what was read out of it, its value). Ties are
    split; a sample without an answer has no vote; 0 where nobody has."""
    counts = Counter(answer for answer, _ in votes if answer is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    first = [answer for answer, count in counts.items() if count == most]
    return float(np.mean([np.mean([value for one, value in votes if one == answer]) for answer in first]))


def signs_test(differences: Numbers, seed: int = 0) -> tuple[float, str]:
    """Two-sided p that differences (one an item) are symmetric about 0: permutation of their signs; and how. All
    signs up to 16 items that differ, else 20,000 draws."""
    found = differences[differences != 0]
    if not len(found):
        return 1.0, "no item differs"
    seen = abs(float(found.sum())) - 1e-9
    if len(found) <= _FLIPS:
        bits = (np.arange(2 ** len(found))[:, None] >> np.arange(len(found))) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ found) >= seen)), "permutation, all signs"
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(_DRAWS // 1000):
        hits += int(np.sum(np.abs(rng.choice((-1.0, 1.0), (1000, len(found))) @ found) >= seen))
    return (1 + hits) / (1 + _DRAWS), f"permutation, {_DRAWS:,} draws"


def difference_interval(differences: Numbers) -> tuple[float, float]:
    """95 % interval of the mean difference over items (each -1 to 1): Student's t, with half an item at the largest
    difference to each side mixed into the variance (A. Agresti, Y. Min 2005 do so for pairs of right and wrong)."""
    count, mean = len(differences), float(differences.mean())
    largest = float(np.abs(differences).max()) or 1.0
    variance = (float(((differences - mean) ** 2).sum()) + largest**2) / (count + 1)
    half = t_quantile(0.975, max(1, count - 1)) * math.sqrt(variance / count)
    return max(-1.0, mean - half), min(1.0, mean + half)


def compare(run_a: Run, run_b: Run, seed: int = 0) -> dict[str, Any]:
    """b against a on the items that both have, in percent and points.

    settings: [field, of a, of b] of what was asked differently, beside the model.
    items; left_out: of items in one alone (only_a, only_b); failed_a, failed_b: samples without an answer, excluded.
    points: b less a; interval (95 %); p: permutation test, `test` says how; sign_p: sign test, of better and worse
    items (McNemar's exact test at one sample an item). sampling_error: of the points, if items had been the same again;
    detectable: points that such a pair shows at 80 % power; groups: the same by each key of `about`, with p_holm.
    Raises UsageError for runs of two suites, and where no item is shared.
    """
    suites = [run.head.get("suite") for run in (run_a, run_b)]
    if suites[0] != suites[1]:
        raise UsageError(f"one run is of {suites[0]}, the other of {suites[1]}: compare runs of the same suite")
    samples_a, samples_b = run_a.samples, run_b.samples
    a, b = by_item(samples_a, score), by_item(samples_b, score)
    shared = [item for item in a if item in b]
    if not shared:
        raise UsageError("the two runs share no item that both answered; ask both the same items (--data, --limit)")
    about = {str(sample["item"]): sample.get("about") or {} for sample in samples_a}
    out = _compared([a[item] for item in shared], [b[item] for item in shared], seed)
    groups = []
    for key, value, items in grouped({item: about[item] for item in shared}):
        one = _compared([a[item] for item in items], [b[item] for item in items], seed)
        groups.append({"key": key, "value": value, **one})
    for group, p in zip(groups, holm([group["p"] for group in groups]), strict=True):
        group["p_holm"] = p
    return {
        **out,
        "settings": [
            [key, run_a.head.get(key), run_b.head.get(key)]
            for key in ("mode", "budget", "samples", "sampling", "seed", "template_sha256")
            if run_a.head.get(key) != run_b.head.get(key)
        ],
        "left_out": {"only_a": len(set(a) - set(b)), "only_b": len(set(b) - set(a))},
        "failed_a": sum(score(sample) is None for sample in samples_a),
        "failed_b": sum(score(sample) is None for sample in samples_b),
        "groups": groups,
    }


def _compared(a: Sequence[Numbers], b: Sequence[Numbers], seed: int) -> dict[str, Any]:
    means_a, means_b = (np.array([one.mean() for one in side]) for side in (a, b))
    differences = means_b - means_a
    low, high = difference_interval(differences)
    p, test = signs_test(differences, seed)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    within_a, within_b = components(a)[1], components(b)[1]
    return {
        "items": len(a),
        "percent_a": 100 * float(means_a.mean()),
        "percent_b": 100 * float(means_b.mean()),
        "points": 100 * float(differences.mean()),
        "interval": [100 * low, 100 * high],
        "p": p,
        "test": test,
        "better": better,
        "worse": worse,
        "sign_p": sign_test(min(better, worse), better + worse),
        "sampling_error": None if within_a is None or within_b is None else 100 * math.sqrt(within_a + within_b),
        "detectable": min(100.0, 100 * (Z + POWER) * (high - low) / (2 * Z)),
    }


def grouped(about: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """(key, value, items) of each key of `about` that has 2 to 100 values and not one an item, so that a mean over them
    is one."""
    keys = dict.fromkeys(key for facts in about.values() for key in facts)
    out: list[tuple[str, str, list[str]]] = []
    for key in keys:
        sets: dict[str, list[str]] = {}
        for item, facts in about.items():
            if isinstance(value := facts.get(key), str | int | bool):
                sets.setdefault(str(value), []).append(item)
        if 2 <= len(sets) <= min(100, len(about) / 2):
            out += [(key, value, sets[value]) for value in sorted(sets)]
    return out


def holm(ps: Sequence[float]) -> list[float]:
    """p-values that count how many were looked at (S. Holm 1979), in the order given."""
    out, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = worst
    return out
