"""Two models on the same questions: how sure a difference is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
RESAMPLES = 2000


def sign_test(fewer: int, of: int) -> float:
    """Two-sided p of a fair coin that shows one side at most `fewer` of `of` times (exact binomial; 1 for no throws).

    For answers that only one of two models has right it is McNemar's exact test (Q. McNemar 1947).
    """
    fewer = min(fewer, of - fewer)
    tail = sum(math.comb(of, k) for k in range(fewer + 1))
    return min(1.0, math.exp(math.log(2 * tail) - of * math.log(2)))


def bootstrap(
    statistic: Callable[..., Numbers], *columns: Sequence[float] | Numbers, seed: int = 0
) -> tuple[float, float]:
    """95 % interval (percentiles) of a statistic over questions, drawn again with replacement `RESAMPLES` times.

    columns: one number for each question; questions are drawn, so what belongs to one stays together. statistic: takes
    the columns as [resamples, questions], gives [resamples]. Infinite values count as such. Raises ValueError for no
    questions.
    """
    count = len(columns[0])
    if not count:
        raise ValueError("there is nothing to draw from")
    picks = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    found = np.sort(statistic(*(np.asarray(column, dtype=np.float64)[picks] for column in columns)))
    return float(found[round(0.025 * (RESAMPLES - 1))]), float(found[round(0.975 * (RESAMPLES - 1))])


def share(above: Numbers, below: Numbers) -> Numbers:
    """Sum over questions of one column by that of another; infinite where that is zero."""
    total = below.sum(-1)
    return np.divide(above.sum(-1), total, out=np.full_like(total, np.inf), where=total != 0)
