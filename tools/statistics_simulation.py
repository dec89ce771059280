"""How often 95 % intervals of an evaluation cover the truth: runs of made-up models whose pass rates are known.

    python tools/statistics_simulation.py --repeats 2000 --out benchmarks/DATE-statistics-simulation.json

Items are drawn from a population of pass rates (a beta distribution, all the same, or all right or all wrong), samples
from each item's rate; the truth is the population's mean. Pairs of runs share their items; of three in ten b's rates
are drawn anew: whichever they are (difference, truth 0), or if they are better (gain).
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from qwen3.evaluate.machine import commit
from qwen3.evaluate.runs.record import write_json
from qwen3.evaluate.statistics import components, difference_interval, mean_interval

POPULATIONS: dict[str, tuple[float, float] | float] = {
    "uniform": (1.0, 1.0),
    "middling": (7.0, 3.0),
    "two heaps": (0.2, 0.2),
    "hard, mean 5 %": (0.1, 1.9),
    "hard, mean 2 %": (0.2, 9.8),
    "easy, mean 95 %": (1.9, 0.1),
    "easy, mean 99 %": (4.95, 0.05),
    "all 90 %": 0.9,
}
ITEMS, SAMPLES = (10, 30, 100, 500), (1, 4, 16, 64)


def drawn(population: tuple[float, float] | float, items: int, rng: np.random.Generator) -> tuple[Any, float]:
    """Pass rates [items], and the population's mean."""
    if isinstance(population, float):
        return np.full(items, population), population
    a, b = population
    return rng.beta(a, b, items), a / (a + b)


def one(name: str, items: int, samples: int, repeats: int, rng: np.random.Generator) -> dict[str, Any]:
    """Coverage of the interval of a mean, of a difference and of a gain, in percent; the mean's mean width; the
    estimated variance by sampling as a multiple of the true one."""
    covered = paired = raised = 0
    some, other_some = (drawn(POPULATIONS[name], 1_000_000, rng)[0] for _ in range(2))
    gain = 0.3 * float((np.maximum(some, other_some) - some).mean())
    width = estimated = sampling = 0.0
    for trial in range(repeats):
        rates, truth = drawn(POPULATIONS[name], items, rng)
        right = rng.binomial(samples, rates)
        low, high, _ = mean_interval(right / samples, items * samples)
        covered += low <= truth <= high
        width += 100 * (high - low)
        other, _ = drawn(POPULATIONS[name], items, rng)
        mixed = np.where(rng.random(items) < 0.3, other, rates)  # b: three in ten items have changed
        low, high = difference_interval((rng.binomial(samples, mixed) - right) / samples)
        paired += low <= 0.0 <= high
        better = np.where(rng.random(items) < 0.3, np.maximum(other, rates), rates)  # here they have only become better
        low, high = difference_interval((rng.binomial(samples, better) - right) / samples)
        raised += low <= gain <= high
        if samples > 1 and trial < 20:  # it is slow, and its mean settles soon
            values = [np.repeat((1.0, 0.0), (good, samples - good)) for good in right]
            estimated += components(values)[1] or 0.0
            sampling += float((rates * (1 - rates)).sum()) / samples / items**2
    return {
        "population": name,
        "items": items,
        "samples": samples,
        "mean_covered": 100 * covered / repeats,
        "mean_width": width / repeats,
        "difference_covered": 100 * paired / repeats,
        "gain_covered": 100 * raised / repeats,
        "sampling_variance_ratio": estimated / sampling if sampling else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rng, start, rows = np.random.default_rng(given.seed), time.monotonic(), []
    for name in POPULATIONS:
        for items in ITEMS:
            for samples in SAMPLES:
                rows.append(one(name, items, samples, given.repeats, rng))
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    within = {
        kind: {
            "within 93 to 97": sum(93 <= row[kind] <= 97 for row in rows),
            "above 97": sum(row[kind] > 97 for row in rows),
            "below 93": [[r["population"], r["items"], r["samples"], r[kind]] for r in rows if r[kind] < 93],
            "of": len(rows),
            "mean": float(np.mean([row[kind] for row in rows])),
        }
        for kind in ("mean_covered", "difference_covered", "gain_covered")
    }
    result = {
        "what": "coverage of 95 % intervals by simulation",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": "2 shared EPYC cores",
        "repeats": given.repeats,
        "error_of_coverage": 100 * (0.95 * 0.05 / given.repeats) ** 0.5,
        "seconds": time.monotonic() - start,
        "summary": within,
        "rows": rows,
    }
    write_json(given.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
