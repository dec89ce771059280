"""A run's sum: classes of outcome apart, failed samples in no figure, and what must be said beside it."""

from __future__ import annotations

import json

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.runs.record import Run
from qwen3.evaluate.summary import summarise
from tests.evaluate.made_up import HEAD, run, sample


def test_classes_are_apart() -> None:
    found = summarise(run(["rrwt", "rreu", "rrrr", "wwwf"]))
    assert {name: one["count"] for name, one in found["outcomes"].items()} == {
        "right": 8, "wrong": 4, "truncated": 1, "empty": 1, "unparsed": 1, "failed": 1,
    }  # fmt: skip
    assert found["percent"] == pytest.approx(100 * (0.5 + 0.5 + 1 + 0) / 4)
    assert found["finished"]["percent"] == pytest.approx(100 * (2 / 3 + 1 + 1 + 0) / 4)
    assert found["accuracy"]["samples"] == 15
    assert not found["quotable"]
    assert "items: q003" in " ".join(found["cautions"])
    assert any(line.startswith("TRUNCATED: 6.2%") and "1000 tokens" in line for line in found["cautions"])
    json.dumps(found, allow_nan=False)


def test_a_failed_sample_is_not_wrong() -> None:
    assert summarise(run(["r"] * 200 + ["f"]))["percent"] == 100
    few = summarise(run(["r"] * 200 + ["f"]))
    assert few["quotable"]
    assert "1 of 201 samples failed" in few["cautions"][0]
    assert not summarise(run(["r"] * 50 + ["f"]))["quotable"]


def test_little_truncation_does_not_shout() -> None:
    assert not any("TRUNCATED" in line for line in summarise(run(["r"] * 99 + ["t"]))["cautions"])


def test_a_run_that_is_not_finished() -> None:
    made = run(["rr", "rw"])
    found = summarise(Run(made.head, made.samples[:3]))
    assert found["missing"] == 1
    assert not found["quotable"]
    assert "1 of 4 samples are missing" in found["cautions"][0]


def test_nothing_answered() -> None:
    for samples in ([], run(["f"]).samples):
        with pytest.raises(UsageError, match="no sample of this run was answered"):
            summarise(Run(HEAD, samples))


def test_pass_at_k_and_majority() -> None:
    found = summarise(run(["rrww", "wwww"]))
    assert found["pass_at"]["1"]["percent"] == pytest.approx(25)
    assert found["pass_at"]["2"]["percent"] == pytest.approx(50 * 5 / 6)
    assert list(found["pass_at"]) == ["1", "2", "4"]
    assert found["majority"] is None
    votes = [sample("a", k, "right" if k else "wrong", extracted=str(k > 0)) for k in range(3)]
    assert summarise(Run(HEAD, votes))["majority"]["percent"] == 100


def test_parts_of_values_between() -> None:
    samples = [sample(f"q{i}", 0, "wrong", 0.5, parts={"strict": 0.0, "loose": i % 2}) for i in range(4)]
    found = summarise(Run(HEAD, samples))
    assert found["percent"] == 50
    assert found["parts"] == {"strict": 0.0, "loose": 50.0}
    assert not found["pass_at"]


def test_groups_tokens_and_costs() -> None:
    found = summarise(run(["r", "w"] * 10, prices={"out": 2.5}))
    assert [(g["value"], g["percent"], g["items"]) for g in found["groups"]] == [("a", 100, 10), ("b", 0, 10)]
    assert found["tokens"]["thinking"]["p95"] == 300
    assert found["seconds"]["mean"] == 2
    assert sum(count for _, count in found["tokens"]["answer"]["histogram"]) == 20
    assert found["cost"]["by_tokens"]["per_right"] == pytest.approx(0.002)


def test_published_values_of_the_same_model_and_mode() -> None:
    (reference,) = summarise(run(["r"] * 97 + ["w"] * 3))["references"]
    assert reference["value"] == 97
    assert reference["inside"]
    assert not summarise(run(["r"] * 50 + ["w"] * 50))["references"][0]["inside"]
    assert summarise(run(["r"] * 10, model="qwen3:4b"))["references"]  # as a model that was loaded here is called
    for other in ({"budget": 512}, {"model": "Qwen/Qwen3-9B"}, {"suite": "nobody's"}):
        assert summarise(run(["r"] * 10, **other))["references"] == []
