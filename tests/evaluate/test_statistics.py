"""Intervals cover, sources of error are told apart, and small cases come out as counted by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.paired import sign_test
from qwen3.evaluate.runs.record import Run
from qwen3.evaluate.statistics import (
    accuracy,
    compare,
    components,
    difference_interval,
    grouped,
    holm,
    majority,
    mean_interval,
    pass_at,
    signs_test,
    t_quantile,
    wilson,
)  # fmt: skip
from tests.evaluate.made_up import run


@pytest.mark.parametrize(("share", "df", "wanted"), [
    (0.975, 1, 12.70620474), (0.975, 9, 2.26215716), (0.975, 499, 1.96472939), (0.9, 3, 1.63774436),
    (0.025, 9, -2.26215716),
])  # fmt: skip
def test_quantiles_are_the_tables_ones(share: float, df: float, wanted: float) -> None:
    assert t_quantile(share, df) == pytest.approx(wanted, rel=1e-6)


def test_quantiles_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")  # scipy: in no extra
    for df in (1, 2.5, 7, 63, 5000):
        for share in (0.01, 0.3, 0.8, 0.995):
            assert t_quantile(share, df) == pytest.approx(stats.t.ppf(share, df), rel=1e-5)


@pytest.mark.parametrize(("beta", "items", "samples"), [
    ((1.0, 1.0), 10, 4), ((1.0, 1.0), 500, 16), ((7.0, 3.0), 30, 1), ((0.2, 0.2), 30, 64),
    ((0.2, 9.8), 100, 4), ((1.9, 0.1), 100, 16), ((1.9, 0.1), 500, 1), ((4.95, 0.05), 500, 4),
])  # fmt: skip
def test_intervals_cover_the_truth(beta: tuple[float, float], items: int, samples: int) -> None:
    """93 to 97 %, and beside it three standard errors of so short a simulation."""
    repeats, rng, truth = 600, np.random.default_rng(7), beta[0] / sum(beta)
    right = rng.binomial(samples, rng.beta(*beta, (repeats, items)))
    hits = 0
    for row in right:
        low, high, _ = mean_interval(row / samples, items * samples)
        hits += low <= truth <= high
    tolerance = 3 * 100 * (0.95 * 0.05 / repeats) ** 0.5
    assert 93 - tolerance <= 100 * hits / repeats <= 97 + tolerance


def test_differences_intervals_cover_and_their_test_holds_its_level() -> None:
    rng, covered, found = np.random.default_rng(3), 0, 0
    for _ in range(400):
        rates = rng.beta(0.5, 0.5, 40)
        other = np.where(rng.random(40) < 0.3, rng.beta(0.5, 0.5, 40), rates)
        differences = (rng.binomial(2, other) - rng.binomial(2, rates)) / 2
        low, high = difference_interval(differences)
        covered += low <= 0 <= high
        found += signs_test(differences[:14])[0] < 0.05
    assert 92 <= covered / 4 <= 98.5
    assert found / 4 < 5 + 3.3


def test_the_two_sources_of_error_are_told_apart() -> None:
    """The estimate of the sampling variance is unbiased, and so is that of the whole."""
    rng = np.random.default_rng(5)
    items, samples, found = 20, 5, []
    for _ in range(400):
        rates = rng.beta(1, 1, items)
        found.append(components([(rng.random(samples) < rate).astype(float) for rate in rates]))
    whole, within = np.mean(np.array(found, dtype=float), axis=0)
    between = 1 / 12
    sampling = 1 / 6 / samples  # of a uniform rate: E p(1-p) = 1/6
    assert within == pytest.approx(sampling / items, rel=0.05)
    assert whole == pytest.approx((between + sampling) / items, rel=0.06)


def test_items_alone_or_luck_alone() -> None:
    fixed = accuracy([np.ones(4), np.zeros(4)] * 10)
    assert fixed["sampling_error"] == 0
    assert fixed["item_error"] == fixed["error"] > 10
    luck = accuracy([np.array([1.0, 0.0, 1.0, 0.0])] * 20)
    assert luck["error"] == luck["item_error"] == 0
    assert luck["sampling_error"] > 5
    single = accuracy([np.ones(1), np.zeros(1)])
    assert single["sampling_error"] is None
    assert single["item_error"] is None


@pytest.mark.parametrize(("right", "of"), [(0, 10), (10, 10), (3, 10), (1, 1)])
def test_one_sample_an_item_is_wilsons(right: int, of: int) -> None:
    means = np.array([1.0] * right + [0.0] * (of - right))
    assert mean_interval(means, of)[:2] == pytest.approx(wilson(right, of))


def test_no_items_are_no_interval() -> None:
    with pytest.raises(ValueError, match="no items"):
        mean_interval(np.array([]))


def test_thirty_items_tell_no_small_difference() -> None:
    points = accuracy([np.ones(1)] * 15 + [np.zeros(1)] * 15)["detectable"]["unpaired"]
    assert 30 < points < 40  # 2.8 · √2 · √(0.25 / 30)


def test_pass_at_k_counts_all_subsets() -> None:
    for of in range(1, 7):
        for right in range(of + 1):
            for k in range(1, of + 1):
                drawn = list(combinations([1] * right + [0] * (of - right), k))
                assert pass_at(right, of, k) == pytest.approx(np.mean([max(one) for one in drawn]))
    with pytest.raises(ValueError, match="at least 5"):
        pass_at(1, 4, 5)


def test_majority() -> None:
    assert majority([("7", 1.0), ("7", 1.0), ("8", 0.0)]) == 1
    assert majority([("7", 1.0), ("8", 0.0), (None, 0.0)]) == 0.5
    assert majority([(None, 0.0), (None, 0.0), ("7", 1.0)]) == 1
    assert majority([(None, 0.0)]) == 0


def test_signs_by_all_and_by_draws() -> None:
    few = np.array([1.0, 1, 1, 1, 1, -1])
    assert signs_test(few)[0] == pytest.approx(sign_test(1, 6))  # of equal sizes it is the sign test
    assert signs_test(np.zeros(5)) == (1.0, "no item differs")
    many = np.array([1.0] * 25 + [-1.0] * 15)
    assert signs_test(many)[0] == pytest.approx(sign_test(15, 40), abs=0.015)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_groups_are_keys_with_few_values() -> None:
    about = {f"q{i}": {"subject": "ab"[i % 2], "id": i, "same": 1, "date": [1]} for i in range(10)}
    assert [(key, value, len(items)) for key, value, items in grouped(about)] == [
        ("subject", "a", 5),
        ("subject", "b", 5),
    ]


def test_compare_pairs_items_and_says_what_it_left_out() -> None:
    a = run(["rr", "ww", "rw", "ff", "ww"], mode="no-think")
    b = run(["rr", "rr", "rr", "rr"])
    found = compare(a, b)
    assert found["items"] == 3
    assert found["left_out"] == {"only_a": 1, "only_b": 1}
    assert found["failed_a"] == 2
    assert found["points"] == pytest.approx(50)
    assert (found["better"], found["worse"]) == (2, 0)
    assert found["interval"][0] < 0 < found["interval"][1]
    assert found["p"] == 0.5
    assert found["settings"] == [["mode", "no-think", "think"]]
    same = compare(b, b)
    assert same["points"] == 0
    assert same["p"] == 1
    assert same["interval"][0] < 0 < same["interval"][1]


def test_compare_refuses_what_shares_nothing() -> None:
    with pytest.raises(UsageError, match="share no item"):
        compare(run(["r"]), run(["f"]))
    with pytest.raises(UsageError, match="same suite"):
        compare(run(["r"]), run(["r"], suite="gsm8k"))


def test_a_difference_that_is_there_is_found() -> None:
    a, b = run(["rwww"] * 40), run(["rrrw"] * 40)
    found = compare(Run(a.head, a.samples), b)
    assert found["points"] == 50
    assert found["p"] < 0.001
    assert found["interval"][0] > 40
    assert [group["value"] for group in found["groups"]] == ["a", "b"]
    assert all(group["p_holm"] >= group["p"] for group in found["groups"])
