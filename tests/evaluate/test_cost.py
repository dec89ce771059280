"""Prices of tokens and of time, what a right answer costs, and what is ahead."""

from __future__ import annotations

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.cost import Prices, costs, front
from qwen3.evaluate.runs.record import Run
from tests.evaluate.made_up import run, sample


def test_tokens_at_a_price() -> None:
    prices = Prices.of({"in": 1.0, "out": 10.0})
    assert prices.tokens(sample("q", 0, "right")) == pytest.approx((100 + 10 * 400) / 1e6)
    assert prices.tokens(sample("q", 0, "right", thinking_tokens=None)) is None
    assert Prices().tokens(sample("q", 0, "right")) is None
    assert Prices(input=1.0).tokens(sample("q", 0, "right", thinking_tokens=None)) == pytest.approx(1e-4)


def test_a_right_answer_pays_for_the_wrong_ones() -> None:
    made = run(["rw"] * 20 + ["wf"] * 20, prices={"out": 1000.0, "gpu": 3600.0}, concurrency=4)
    found = costs(made.head, made.samples)
    tokens, gpu = found["by_tokens"], found["by_gpu"]
    assert tokens["total"] == pytest.approx(80 * 0.4)
    assert tokens["per_right"] == pytest.approx(1.6)
    low, high = tokens["per_right_interval"]
    assert low < 1.6 < high < 3
    assert found["seconds"] == 40
    assert found["basis"] != "measured"
    assert gpu["total"] == pytest.approx(40)
    assert gpu["per_right"] == pytest.approx(2)


def test_measured_time_and_energy() -> None:
    made = run(["r", "r"], prices={"gpu": 36.0, "gpus": 2, "kilowatt_hour": 0.5}, seconds=100.0, joules=7.2e6)
    found = costs(made.head, made.samples)
    assert found["by_gpu"]["total"] == pytest.approx(2.0)
    assert found["basis"] == "measured"
    assert found["energy"]["total"] == pytest.approx(1.0)


def test_nothing_right_has_no_price_each() -> None:
    made = run(["w", "w"], prices={"out": 1.0})
    found = costs(made.head, made.samples)["by_tokens"]
    assert found["per_right"] is None
    assert found["per_right_interval"] == [None, None]


def test_unknown_counts_are_told() -> None:
    samples = [sample("a", 0, "right"), sample("b", 0, "right", answer_tokens=None)]
    found = costs(Run({"prices": {"out": 1.0}}, samples).head, samples)
    assert found["unpriced"] == 1
    assert found["by_tokens"]["total"] == pytest.approx(4e-4)


@pytest.mark.parametrize(("given", "said"), [
    ({"in": -1}, "input must be"), ({"out": "2"}, "output must be"), ({"tax": 1}, "no field 'tax'"),
])  # fmt: skip
def test_what_is_no_price(given: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Prices.of(given)


def test_front() -> None:
    assert front([(3, 50), (1, 40), (2, 35), (3, 60), (4, 60)]) == [1, 3]
    assert front([]) == []
