"""The claims' verdicts, from runs whose truth is known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.claims import (
    CONTRADICTED,
    NOT_TESTABLE,
    NOT_TESTED,
    PART,
    SUPPORTED,
    UNDECIDED,
    Claim,
    claims,
    command,
    decide,
    judge,
    runs_in,
)
from qwen3.evaluate.claims_settled import SETTLED
from qwen3.evaluate.runs import Run
from qwen3.evaluate.suites import suite_named

NAMED = {claim.number: claim for claim in claims()}


def run(
    suite: str, model: str, mode: str, rate: Callable[[int], float], items: int = 200, samples: int = 4, seed: int = 0,
    tokens: int = 100, budget: int | None = None, about: Callable[[int], dict[str, object]] = lambda i: {},
) -> Run:  # fmt: skip
    """A run whose item i is right with probability rate(i)."""
    rng = random.Random(f"{suite}{model}{mode}{seed}{budget}")
    found = []
    for i in range(items):
        for k in range(samples):
            right = float(rng.random() < rate(i))
            answer = {"content": "x", "thinking": "" if mode == "no-think" else "hm", "thinking_tokens": tokens,
                      "answer_tokens": 20}  # fmt: skip
            score = {"value": right, "outcome": "right" if right else "wrong"}
            found.append({"item": f"q{i}", "sample": k, "about": about(i), "answer": answer, "score": score})
    head = {"format": 1, "suite": suite, "model": model, "mode": mode, "budget": budget, "samples": samples}
    return Run(head, found)


def test_thirty_one_claims_each_with_a_way_to_a_verdict() -> None:
    assert list(NAMED) == list(range(1, 32))
    for claim in claims():
        assert claim.claim
        assert claim.report
        assert claim.criterion
        assert bool(claim.why) != bool(claim.tests or claim.settled), claim.number
        assert claim.settled is None or claim.settled in SETTLED
        assert set(claim.articles.split()) <= set("ABCD")
    assert {claim.settled for claim in claims() if claim.settled} == set(SETTLED)


def test_needs_name_suites_that_are_there() -> None:
    for claim in claims():
        for test in claim.tests:
            for need in test["runs"]:
                name = need["suite"]
                suite_named(name)
                line = command(need)
                assert f"qwen3 eval {name}" in line
                assert ("--api-model" in line) == bool(need.get("api"))


def test_without_runs_only_arithmetic_decides() -> None:
    words = {number: judge(claim, [])[0].word for number, claim in NAMED.items()}
    assert words[13] == words[15] == words[21] == words[29] == CONTRADICTED
    assert words[16] == SUPPORTED
    assert words[17] == words[18] == words[19] == PART
    assert all(words[number] == NOT_TESTABLE for number in (20, 23, 24, 26, 27, 28, 30, 31))
    assert words[1] == words[5] == words[22] == NOT_TESTED
    assert "22.2 of 235.1" in judge(NAMED[16], [])[0].detail
    verdict = judge(NAMED[1], [])[0]
    assert verdict.commands == ("qwen3 eval aime24 --model Qwen/Qwen3-235B-A22B --think --samples 64",)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-1, 1, SUPPORTED), (-3, 1, UNDECIDED), (2.1, 9, CONTRADICTED), (-9, -2.1, CONTRADICTED), (-5, 5, UNDECIDED)],
)
def test_an_interval_and_a_region(low: float, high: float, word: str) -> None:
    assert decide(low, high, -2, 2, "d").word == word


def test_how_much_more_it_would_take() -> None:
    """Four times the items halve an interval: from 1 ± 2 to 1 ± 1 it then just touches the bound at 2."""
    assert "about 4.0 times the items" in decide(-1, 3, -2, 2, "d").detail
    assert "far more items" in decide(1, 3, -2, 2, "d").detail


def published(rate: float, samples: int) -> str:
    spread = [max(0.0, min(1.0, rate + d)) for d in (-0.1, 0, 0.1)]
    found = run("aime24", "qwen3:235b", "think", lambda i: spread[i % 3], items=30, samples=samples)
    return judge(NAMED[1], [found])[0].word


def test_a_published_value_is_met_missed_or_left_open() -> None:
    assert published(0.857, 2000) == SUPPORTED
    assert published(0.75, 64) == CONTRADICTED
    assert published(0.857, 8) == UNDECIDED


def test_a_subset_of_the_items_says_nothing_of_a_published_value() -> None:
    found = run("aime24", "qwen3:235b", "think", lambda i: 0.9, items=10, samples=64)
    found.head["limit"] = 10
    assert judge(NAMED[1], [found])[0].word == NOT_TESTED


def test_the_claim_with_two_values_is_right_in_part() -> None:
    found = run("livecodebench", "Qwen/Qwen3-235B-A22B", "think", lambda i: 0.707, items=300, samples=30)
    verdict, parts = judge(NAMED[2], [found])
    assert verdict.word == PART
    assert [part.word for _, part in parts] == [CONTRADICTED, SUPPORTED]


def test_pairs_decide_where_unpaired_runs_would_not() -> None:
    """Items differ much, the models by nothing: the difference is known far better than either mean."""
    claim = Claim(0, "B", "", "", "", [NAMED[5].tests[0]])
    truth = [random.Random(i).random() ** 0.1 for i in range(500)]
    small = run("math500", "/models/Qwen3-4B/", "think", lambda i: truth[i], 500, samples=16)
    large = run("math500", "Qwen2.5-72B-Instruct", "default", lambda i: truth[i], 500, samples=16)
    worse = run("math500", "Qwen/Qwen3-4B", "think", lambda i: truth[i] - 0.1, 500, samples=17)
    assert judge(claim, [small, large])[0].word == SUPPORTED
    assert judge(claim, [small, large, worse])[0].word == CONTRADICTED, "the run with the most samples counts"
    assert judge(claim, [small])[0].commands[0].startswith("qwen3 eval math500 --api")


def test_ratios_of_tokens_and_of_work() -> None:
    think = run("math500", "Qwen/Qwen3-4B", "think", lambda i: 0.9, tokens=4000)
    short = run("math500", "Qwen/Qwen3-4B", "no-think", lambda i: 0.8, tokens=400)
    large = run("math500", "Qwen2.5-72B-Instruct", "default", lambda i: 0.9, tokens=400)
    assert judge(NAMED[7], [think, short])[0].word == SUPPORTED
    barely = run("math500", "Qwen/Qwen3-4B", "think", lambda i: 0.9, tokens=401)
    assert judge(NAMED[7], [barely, short])[0].word == CONTRADICTED
    few = [run("math500", "Qwen/Qwen3-4B", mode, lambda i: 0.9, items=10) for mode in ("think", "no-think")]
    assert judge(NAMED[11], [think, short])[0].word == SUPPORTED
    assert judge(NAMED[11], few)[0].word == UNDECIDED  # all obeyed, but 40 are too few for 99 %
    verdict = judge(NAMED[6], [think, large])[0]
    assert verdict.word == CONTRADICTED
    assert "1.9 times" in verdict.detail  # 420 × 72.7 over 4020 × 4.02
    for sample in large.samples:
        sample["answer"]["answer_tokens"] = None
    with pytest.raises(UsageError, match="not counted"):
        judge(NAMED[6], [think, large])


def test_a_curve_that_rises_and_one_that_falls() -> None:
    budgets = [256 << i for i in range(8)]
    curve = [
        run("gpqa", "Qwen/Qwen3-4B", "think", lambda i, n=n: 0.3 + 0.05 * n, budget=budget)  # type: ignore[misc]
        for n, budget in enumerate(budgets)
    ]
    assert judge(NAMED[12], curve)[0].word == SUPPORTED
    dip = run("gpqa", "Qwen/Qwen3-4B", "think", lambda i: 0.1, budget=budgets[4])
    assert judge(NAMED[12], [*curve[:4], dip, *curve[5:]])[0].word == CONTRADICTED
    assert judge(NAMED[12], curve[:7])[0].word == NOT_TESTED


def test_dates_and_languages() -> None:
    dates = {"2024-11-01": 0.8, "2025-02-01": 0.4}
    found = run(
        "livecodebench", "Qwen/Qwen3-235B-A22B", "think", lambda i: [*dates.values()][i % 2],
        about=lambda i: {"date": [*dates][i % 2]},
    )  # fmt: skip
    assert dict(judge(NAMED[9], [found])[1])["LiveCodeBench by date"].word == SUPPORTED
    rates = {"eng": 0.9, "swh": 0.8, "xxx": 0.03}
    by_language = run(
        "belebele", "Qwen/Qwen3-235B-A22B", "think", lambda i: [*rates.values()][i % 3], samples=1,
        about=lambda i: {"language": [*rates][i % 3]},
    )  # fmt: skip
    verdict = judge(NAMED[22], [by_language])[0]
    assert verdict.word == CONTRADICTED
    assert "2 of 3 languages" in verdict.detail
    assert verdict.detail.endswith("xxx")


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    folder = tmp_path / "4B-think" / "math500"
    folder.mkdir(parents=True)
    found = run("math500", "Qwen/Qwen3-4B", "think", lambda i: 1.0, items=3)
    (folder / "run.json").write_text(json.dumps(found.head))
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in found.samples))
    assert [one.head["suite"] for one in runs_in(tmp_path)] == ["math500"]
    with pytest.raises(UsageError, match="no such folder"):
        runs_in(tmp_path / "none")
